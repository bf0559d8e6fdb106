//! `retune cycle` on a real Ollama: from runs to a version that serves; killed at every point it carries on and ends the same.

mod common;
#[path = "support/ollama_peer.rs"]
mod ollama_peer;

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use common::{refusal, says};
use ollama_peer::{Kind, Peer};
use retune::demo::task::{self, Split};
use retune::store::Store;
use retune_kernels::rng::Rng;
use serde_json::{Value, json};

/// A project with `n` good calls of a tool, and small thresholds.
fn project(peer: &Peer, root: &Path, prefix: &str, n: usize) {
    fs::create_dir_all(root.join(".agent")).unwrap();
    let settings = json!({
        "autoExport": {"minRuns": 20, "maxExamples": 400},
        "autoTrain": {"minExamples": 30, "minNew": 20, "baseModel": "demo", "loraRank": 8, "batchSize": 16, "gradAccum": 1, "learningRate": 3e-3},
        "autoDeploy": {"modelNamePrefix": prefix},
        "evaluation": {"heldOutShare": 0.25, "minItems": 20, "maxItems": 60},
    });
    fs::write(root.join(".agent/learning-config.json"), settings.to_string()).unwrap();
    import(peer, root, n, 1, Split::Train);
}

fn import(peer: &Peer, root: &Path, n: usize, seed: u64, split: Split) {
    let mut rng = Rng::new(seed);
    let row = |item: task::Item| json!({"prompt": item.request, "completion": item.answer}).to_string() + "\n";
    let rows: String = task::items(n, || task::tool_call(&mut rng, split, 1)).into_iter().map(row).collect();
    let file = root.join(format!("rows-{seed}.jsonl"));
    fs::write(&file, rows).unwrap();
    let said = peer.retune_ok(root, &["import", file.to_str().unwrap(), "--role", "tools", "--source", "the team", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["taken"], n, "{said}");
}

fn cycle(peer: &Peer, root: &Path, more: &[&str]) -> Value {
    let said = peer.retune_ok(root, &[&["cycle", "--role", "tools", "--json"], more].concat());
    serde_json::from_str(&said).unwrap()
}

#[test]
fn what_was_recorded_becomes_a_version_that_serves_and_the_next_one_needs_news() {
    let Some(peer) = Peer::start(Kind::Current) else { return };
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("project");
    says(&refusal(2, &peer.retune(&root, &[], &["cycle", "--role", "tools"]), "no project"), &["there is no", "retune record"]);
    assert!(!root.exists(), "in a wrong folder nothing is begun");
    project(&peer, &root, "m", 24);
    let little = cycle(&peer, &root, &[]);
    assert_eq!((&little["outcome"], &little["cycle"]), (&json!("nothing"), &Value::Null));
    says(little["message"].as_str().unwrap(), &["of 30 examples in the set"]);
    says(&peer.retune_ok(&root, &["status"]), &["nothing yet at", "of 30 in the set: missing", "last cycle    none"]);

    import(&peer, &root, 280, 2, Split::Train);
    says(&peer.retune_ok(&root, &["cycle", "--dry-run"]), &["tools: would begin a cycle", "60 held out", "nothing serves yet"]);
    assert_eq!(Store::open(&root).unwrap().cycles(None, 9).unwrap(), [], "a dry run begins nothing");
    let made = cycle(&peer, &root, &["--max-steps", "200", "--max-tokens", "48"]);
    assert_eq!(made["outcome"], "promoted", "{made}");
    println!("{}", made["message"]);
    let stages: Vec<&str> = made["stages"].as_array().unwrap().iter().map(|s| s["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["export", "train", "register", "evaluate", "promote"]);
    assert_eq!(peer.digest("m-tools:latest"), peer.digest("m-tools:v1"));
    assert_eq!(made["stages"][2]["digest"], peer.digest("m-tools:v1"));
    says(&peer.retune_ok(&root, &["status"]), &["m-tools:v1, at", "(20", "): promoted"]);
    says(&peer.retune_ok(&root, &["history"]), &["first", "cycle 1, evaluation 1"]);

    // What was held out was never trained on, and what was trained is what is exported.
    let folder = root.join(".agent/cycles/1");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let (train, held_out) = (read("train.jsonl"), read("held_out.jsonl"));
    assert_eq!(
        (train.lines().count(), held_out.lines().count()),
        (made["stages"][0]["detail"]["train"].as_u64().unwrap() as usize, 60)
    );
    let requests = |text: &str| -> Vec<String> {
        let request =
            |line: &str| serde_json::from_str::<Value>(line).unwrap()["messages"][0]["content"].as_str().unwrap().to_owned();
        text.lines().map(request).collect()
    };
    let trained = requests(&train);
    assert!(requests(&held_out).iter().all(|request| !trained.contains(request)));
    assert_eq!(fs::read_to_string(root.join(".agent/sft/tools_sft.jsonl")).unwrap().lines().count(), trained.len());

    let again = cycle(&peer, &root, &[]);
    assert_eq!(again["outcome"], "nothing", "{again}");
    says(
        again["message"].as_str().unwrap(),
        &["0 of 20 eligible runs since the last training", "0 of 20 examples that the last training"],
    );

    // A paraphrase of what is held out, recorded later, stays out: the line is where it was.
    let held = requests(&held_out);
    let file = root.join("leak.jsonl");
    let leak: String = held
        .iter()
        .map(|r| json!({"prompt": format!("{} ", r.to_uppercase()), "completion": "leaked"}).to_string() + "\n")
        .collect();
    fs::write(&file, leak).unwrap();
    peer.retune_ok(&root, &["import", file.to_str().unwrap(), "--role", "tools", "--source", "somebody"]);
    import(&peer, &root, 60, 3, Split::HeldOut);
    let second = cycle(&peer, &root, &["--max-steps", "2", "--max-tokens", "48"]);
    assert!(["inconclusive", "rejected"].contains(&second["outcome"].as_str().unwrap()), "two steps are too few: {second}");
    assert_eq!(peer.digest("m-tools:latest"), peer.digest("m-tools:v1"), "the champion stays");
    let train = fs::read_to_string(root.join(".agent/cycles/2/train.jsonl")).unwrap();
    assert!(!train.contains("leaked"));
    let held_before: std::collections::BTreeSet<String> = held.into_iter().collect();
    assert!(requests(&train).iter().all(|request| !held_before.contains(request)));
}

/// HumanEvalPack as three roles: prompt to solution, buggy code to solution, code to verdict.
#[test]
fn real_code_goes_through_cycles_of_three_roles() {
    let Some(data) = ollama_peer::data_file("sft") else { return };
    let Some(peer) = Peer::start(Kind::Current) else { return };
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    fs::create_dir_all(root.join(".agent")).unwrap();
    let settings = json!({
        "autoExport": {"minRuns": 50}, "autoTrain": {"minExamples": 100, "minNew": 50, "baseModel": "demo", "loraRank": 4, "batchSize": 4, "gradAccum": 1},
        "evaluation": {"minItems": 10},
    });
    fs::write(root.join(".agent/learning-config.json"), settings.to_string()).unwrap();
    let shapes = [
        ("coder", "{{ prompt }}", "{{ canonical_solution }}"),
        ("fixer", "Fix it ({{ failure_symptoms }}):\n{{ declaration }}{{ buggy_solution }}", "{{ canonical_solution }}"),
        ("judge", "Is it right?\n{{ declaration }}{{ canonical_solution }}", "pass"),
        ("judge", "Is it right?\n{{ declaration }}{{ buggy_solution }}", "fail"),
    ];
    for language in ["rust", "python", "js"] {
        let file = data.join(format!("humanevalpack_{language}.jsonl"));
        for (role, prompt, output) in shapes {
            let source = ["--source", "HumanEvalPack", "--terms", "MIT", "--task", "task_id", "--json"];
            let what = ["import", file.to_str().unwrap(), "--role", role, "--prompt", prompt, "--output", output];
            let said: Value = serde_json::from_str(&peer.retune_ok(root, &[&what[..], &source].concat())).unwrap();
            assert_eq!((&said["taken"], &said["refused"]), (&json!(164), &json!(0)), "{said}");
        }
    }
    let said = peer.retune_ok(root, &["cycle", "--max-steps", "20", "--max-tokens", "0", "--type", "f16", "--json"]);
    let made: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let roles: Vec<&str> = made.iter().map(|report| report["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["coder", "fixer", "judge"]);
    for report in &made {
        let stages = report["stages"].as_array().unwrap();
        assert!(stages.len() >= 4, "{report}");
        assert_eq!(stages[2]["digest"], peer.digest(stages[2]["detail"]["name"].as_str().unwrap()), "{report}");
        assert!(stages[0]["detail"]["train"].as_u64().unwrap() >= 100, "{report}");
    }
}

#[test]
fn a_cycle_that_is_killed_anywhere_carries_on_and_ends_as_if_nothing_had_been() {
    let Some(peer) = Peer::start(Kind::Current) else { return };
    let scratch = tempfile::tempdir().unwrap();
    let args = ["cycle", "--role", "tools", "--json", "--max-steps", "8", "--max-tokens", "0"];
    let log = scratch.path().join("points");
    let whole = scratch.path().join("whole");
    project(&peer, &whole, "whole", 84);
    let output = peer.retune(&whole, &[("RETUNE_FAULT_LOG", log.to_str().unwrap())], &args);
    let made: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(made["outcome"], "promoted", "{made}");
    let points = common::fault_points(&log);
    for wanted in [
        "stage export",
        "commit snapshot",
        "commit begin of a cycle",
        "stage register",
        "http create",
        "commit evaluation",
        "http copy",
        "commit stage promote",
        "committed end of a cycle",
    ] {
        assert!(points.iter().any(|point| point.starts_with(wanted)), "no '{wanted}' among {points:#?}");
    }
    let digest = |made: &Value, stage: usize| made["stages"][stage]["digest"].clone();
    let mut killed = 0;
    for n in chosen(&points) {
        let root = scratch.path().join(format!("k{n}"));
        project(&peer, &root, &format!("k{n}"), 84);
        let when = format!("killed at {} ({n})", points[n]);
        let near_end = n + 3 > points.len();
        let dead = peer.retune(&root, &[("RETUNE_FAULT_AT", &(n + 1).to_string())], &args);
        if near_end && dead.status.success() {
            // A moment more or less on the way: this one had no such point.
            continue;
        }
        assert_eq!(dead.status.signal(), Some(9), "{when}: {}", String::from_utf8_lossy(&dead.stderr));
        let alias = format!("k{n}-tools:latest");
        let before = peer.digest(&alias);
        assert!(before.is_empty() || before == peer.digest(&format!("k{n}-tools:v1")), "{when}: a wrong alias");
        let store = Store::open(&root).unwrap();
        let ended = store.cycles(None, 9).unwrap().first().is_some_and(|cycle| cycle.ended_at.is_some());
        drop(store);
        let output = peer.retune(&root, &[], &args);
        let again: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{when}: {}", String::from_utf8_lossy(&output.stderr)));
        let store = Store::open(&root).unwrap();
        assert_eq!(store.damage().unwrap(), None, "{when}");
        let cycles = store.cycles(None, 9).unwrap();
        assert_eq!(cycles.len(), 1, "{when}: one cycle, carried on");
        assert_eq!(cycles[0].outcome.as_deref(), Some("promoted"), "{when}: {again}");
        if ended {
            assert_eq!(again["outcome"], "nothing", "{when}: {again}");
        } else {
            // The same set, the same adapter.
            assert_eq!((digest(&again, 0), digest(&again, 1)), (digest(&made, 0), digest(&made, 1)), "{when}");
        }
        assert_eq!(peer.digest(&alias), peer.digest(&format!("k{n}-tools:v1")), "{when}");
        assert!(!peer.digest(&alias).is_empty(), "{when}");
        assert!(peer.digest(&format!("k{n}-tools:v2")).is_empty(), "{when}: registered twice");
        let moves: Vec<_> = store.moves(None).unwrap().into_iter().filter(|m| m.is_done()).collect();
        assert_eq!(moves.len(), 1, "{when}: {moves:?}");
        let left: Vec<String> =
            common::files(&root.join(".agent")).into_iter().filter(|file| file.ends_with(".partial")).collect();
        assert_eq!(left, [""; 0], "{when}: half files");
        for model in ["latest", "v1"] {
            peer.cli(&["rm", &format!("k{n}-tools:{model}")]);
        }
        fs::remove_dir_all(&root).unwrap();
        killed += 1;
    }
    assert!(killed >= 40, "only {killed} points");
}

/// Every commit, stage and HTTP call, and of each file the moments before it is written and before it takes its name.
/// `RETUNE_EVERY_POINT=1` takes all the others, too, which tests/kill.rs and tests/kill_deploy.rs kill at in their own commands.
fn chosen(points: &[String]) -> Vec<usize> {
    let every = std::env::var_os("RETUNE_EVERY_POINT").is_some();
    let taken = |n: &usize| ["commit", "stage", "http", "rename", "write"].iter().any(|start| points[*n].starts_with(start));
    let is_first = |n: &usize| !points[..*n].contains(&points[*n]);
    (0..points.len()).filter(|n| every || taken(n) && is_first(n)).collect()
}
