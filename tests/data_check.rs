//! `retune data check`: what it tells of files that are as they should be, and of files that are not.

mod common;

use std::fs;
use std::path::Path;

use common::{refused, retune, retune_json, says};
use serde_json::{Value, json};

/// Writes rows as JSON lines.
fn rows(folder: &Path, name: &str, rows: &[Value]) -> String {
    let path = folder.join(name);
    fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What is said, and the exit code.
fn said(args: &[&str]) -> (String, i32) {
    let output = retune(args);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
}

fn json_of(args: &[&str]) -> (Value, i32) {
    let (text, code) = said(&[args, &["--json"]].concat());
    (serde_json::from_str(&text).unwrap(), code)
}

/// So many different words.
fn words(seed: usize, n: usize) -> String {
    (0..n).map(|i| format!("w{}", (seed * 7919 + i * i * 31 + i) % 9973)).collect::<Vec<_>>().join(" ")
}

#[test]
fn every_finding_is_told_with_its_rows() {
    let scratch = tempfile::tempdir().unwrap();
    let row = |request: &str, answer: &str| json!({"prompt": request, "completion": answer});
    let (request, answer) = (words(1, 40), words(2, 80));
    let mut near = answer.clone();
    near.push_str(" and so on");
    let file = rows(
        scratch.path(),
        "rows.jsonl",
        &[
            row(&request, &answer),
            row("Name a fruit.", "Apple."),
            row(&request, &format!(" {answer}\n")),
            row(&request, &near),
            row("Name a fruit.", "Pear."),
            row("Say nothing.", " "),
            row("Say no.", &"no, ".repeat(40)),
        ],
    );
    let (found, code) = json_of(&["data", "check", &file]);
    assert_eq!(code, 0, "{found}");
    assert_eq!((&found["rows"], &found["kind"], &found["unit"]), (&json!(7), &json!("good work"), &json!("words")));
    assert_eq!(found["exact"], json!([{"row": 3, "of": 1, "likeness": 1.0}]));
    // 76 of 79 shingles are in both.
    assert_eq!(found["near"], json!([{"row": 4, "of": 1, "likeness": 76.0 / 79.0}]));
    assert_eq!(found["same_request"], json!([{"row": 5, "of": 2, "likeness": 1.0}]));
    assert_eq!((&found["empty"], &found["looping"]), (&json!([6]), &json!([7])));
    let length = json!({"min": 2, "median": 42, "p95": 123, "max": 123, "longest_row": 4, "sum": 415});
    assert_eq!(found["length"], length);
    let (text, _) = said(&["data", "check", &file]);
    says(
        &text,
        &[
            "rows.jsonl: 7 rows, good work\n",
            "  same         1 that an earlier row has already: 3 = 1\n",
            "  near         1 nearly the same as an earlier row: 4 ~ 1 (0.96)\n",
            "  asked again  1 with another answer to an earlier row's request: 5 asks as 2\n",
            "  empty        1 with an empty answer: 6\n",
            "  looping      1 with an answer that ends in a loop: 7\n",
            "nothing stands in the way\n",
        ],
    );
}

#[test]
fn all_rows_that_do_not_read_are_told_and_the_exit_code_is_1() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("rows.jsonl");
    let good = json!({"instruction": "a", "output": "b"});
    fs::write(&path, format!("{good}\n{{\"instruction\": \"x\"}}\nnot JSON\n{good}\n{{\"instruction\": \"y\"}}\n")).unwrap();
    let (text, code) = said(&["data", "check", path.to_str().unwrap()]);
    assert_eq!(code, 1);
    says(
        &text,
        &[
            "rows.jsonl: 5 rows",
            "  PROBLEM      2 unreadable: has the keys [instruction], which is no shape that is known (line 2, line 5)\n",
            "  PROBLEM      1 unreadable: expected a JSON object that starts with {, found \"not JSON\" (line 3)\n",
            "  same         1 that an earlier row has already: 4 = 1\n",
            "not fit to train on as it is\n",
        ],
    );
    fs::write(&path, "").unwrap();
    let (text, code) = said(&["data", "check", path.to_str().unwrap()]);
    assert_eq!(code, 1);
    says(&text, &["0 rows", "there is no row to train on"]);
    refused(1, &["data", "check", "/no/such/rows.jsonl"]);
    refused(2, &["data", "check", path.to_str().unwrap(), "--max-length", "9"]);
}

#[test]
fn held_out_rows_among_the_training_rows_are_a_problem() {
    let scratch = tempfile::tempdir().unwrap();
    let row = |seed: usize, answer: &str| json!({"messages": [{"role": "user", "content": words(seed, 30)}, {"role": "assistant", "content": answer}]});
    let quoted = words(5, 60);
    let held_out = rows(scratch.path(), "held_out.jsonl", &[row(3, "yes"), row(4, &quoted)]);
    let quote: Vec<&str> = quoted.split(' ').skip(20).take(13).collect();
    let fine = [row(6, "no"), row(7, "yes")];
    let file = rows(scratch.path(), "fine.jsonl", &fine);
    let (text, code) = said(&["data", "check", &file, "--against", &held_out]);
    assert_eq!(code, 0);
    says(&text, &["  held out     no row repeats one of ", "held_out.jsonl\n"]);
    let leaking = [fine[0].clone(), row(3, "another answer"), row(8, &format!("so {}", quote.join(", ")))];
    let file = rows(scratch.path(), "leaking.jsonl", &leaking);
    let (found, code) = json_of(&["data", "check", &file, "--against", &held_out]);
    let expected = json!([
        {"row": 2, "held_out_row": 1, "shared": "nearly the same request"},
        {"row": 3, "held_out_row": 2, "shared": format!("the words \"{}\"", quote.join(" "))},
    ]);
    assert_eq!((&found["contaminated"], code), (&expected, 1));
}

#[test]
fn pairs_and_marked_answers_are_known_by_their_first_row() {
    let scratch = tempfile::tempdir().unwrap();
    let pair = |request: &str, chosen: &str, rejected: &str| json!({"prompt": request, "chosen": chosen, "rejected": rejected});
    let looping = "0".repeat(80);
    let file = rows(
        scratch.path(),
        "pairs.jsonl",
        &[pair("a", "b", &looping), pair("a", "b", &looping), pair("a", "b", "c"), pair("d", &looping, "e")],
    );
    let (found, code) = json_of(&["data", "check", &file]);
    assert_eq!((&found["kind"], code), (&json!("pairs of a better and a worse answer"), 0));
    assert_eq!(found["exact"], json!([{"row": 2, "of": 1, "likeness": 1.0}]));
    // A rejected answer may loop.
    assert_eq!((&found["same_request"][0]["row"], &found["looping"]), (&json!(3), &json!([4])));
    let (found, code) = json_of(&["data", "check", &file, "--method", "sft"]);
    assert_eq!((found["unreadable"].as_array().unwrap().len(), code), (4, 1));

    let marked = |request: &str, answer: &str, label: bool| json!({"prompt": request, "completion": answer, "label": label});
    let file = rows(scratch.path(), "marked.jsonl", &[marked("a", "b", true), marked("a", "b", false), marked("a", "b", true)]);
    let (found, code) = json_of(&["data", "check", &file]);
    assert_eq!((&found["kind"], code), (&json!("answers marked good or bad"), 1));
    assert_eq!(found["contradictions"], json!([{"row": 2, "of": 1, "likeness": 1.0}]));
    assert_eq!(found["exact"], json!([{"row": 3, "of": 1, "likeness": 1.0}]));
}

#[test]
fn with_a_base_lengths_are_tokens_and_samples_are_shown_as_trained() {
    let scratch = tempfile::tempdir().unwrap();
    let row = |request: &str, answer: &str| json!({"instruction": request, "output": answer});
    let file = rows(
        scratch.path(),
        "rows.jsonl",
        &[row("hide kavo", "****"), row("hide mune", &"hide ".repeat(40)), row(&"hide ".repeat(60), "x")],
    );
    let args = ["data", "check", file.as_str(), "--base", "demo", "--max-length", "60"];
    let (found, code) = json_of(&args);
    assert_eq!((&found["unit"], &found["max_length"], code), (&json!("tokens"), &json!(60), 0));
    assert_eq!((&found["cut"], &found["without_target"]), (&json!([2, 3]), &json!([3])));
    // The same rows as `retune render` shows.
    let rendered = common::retune_ok(&["render", "--base", "demo", "--data", &file, "--json"]);
    let ids: Vec<usize> =
        rendered.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["ids"].as_array().unwrap().len()).collect();
    assert_eq!(found["length"]["sum"], ids.iter().sum::<usize>());
    assert_eq!(found["length"]["max"], *ids.iter().max().unwrap());
    let (text, _) = said(&[&args[..], &["--samples", "3"]].concat());
    let shown = common::retune_ok(&["render", "--base", "demo", "--data", &file]);
    assert!(text.starts_with(&shown), "{text}\n---\n{shown}");
    says(
        &text,
        &[
            "⟦****",
            "  cut          2 longer than 60 tokens, to be cut: 2, 3\n",
            "  no target    1 with nothing to train in the first 60 tokens",
        ],
    );
    says(
        &refused(2, &["data", "check", &file, "--base", "demo", "--max-length", "100000"]),
        &["--max-length 100000 is more than"],
    );
}

#[test]
fn the_files_of_the_world_are_looked_at_in_seconds() {
    let Some(folder) = common::data("data_check") else { return };
    let path = |file: &str| folder.join(file).to_str().unwrap().to_owned();
    let begun = std::time::Instant::now();
    // (file, rows, exit code, the same, asked again, looping)
    for (file, rows, code, same, asked, looping) in [
        ("sft/alpaca_en_demo.json", 999, 0, 14, 0, 0),
        ("sft/children_stories.jsonl", 1500, 0, 0, 0, 0),
        ("sft/gsm8k_train.jsonl", 7473, 0, 0, 0, 0),
        ("sft/messages_demo.jsonl", 500, 0, 1, 1, 0),
        ("sft/tool_calls_train.jsonl", 2100, 0, 0, 0, 0),
        ("sft/tool_calls_heldout.jsonl", 210, 0, 1, 0, 0),
        ("sft/tool_use_demo.jsonl", 50, 0, 0, 3, 0),
        ("sft/humanevalpack_rust.jsonl", 164, 1, 0, 0, 0),
        ("preference/dpo_en_demo.json", 300, 0, 5, 0, 0),
        ("preference/kto_en_demo.json", 300, 0, 0, 3, 0),
    ] {
        let (found, ended) = json_of(&["data", "check", &path(file)]);
        let n = |key: &str| found[key].as_array().unwrap().len();
        let told = (found["rows"].as_u64().unwrap(), ended, n("exact"), n("same_request"), n("looping"));
        assert_eq!(told, (rows, code, same, asked, looping), "{file}");
        assert_eq!(n("near"), 0, "{file}");
    }
    assert!(begun.elapsed().as_secs() < 60);
    let found = retune_json(&["data", "check", &path("sft/tool_calls_heldout.jsonl"), "--json"]);
    assert_eq!(found["exact"], json!([{"row": 167, "of": 158, "likeness": 1.0}]));
}
