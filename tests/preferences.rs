//! Preferences through the command line: a pretrained small model learns which answers are wanted, and only that.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::retune_ok;
use retune::train::plan::MemoryPlan;
use serde_json::{Value, json};

fn path(p: &Path) -> &str {
    p.to_str().expect("UTF-8")
}

const NAMES: [&str; 12] = ["Lily", "Tom", "Sue", "Ben", "Anna", "Max", "Mia", "Sam", "Tim", "Lucy", "Jack", "Amy"];
const PLACES: [&str; 6] = ["park", "house", "garden", "farm", "beach", "school"];
const KIND: [&str; 3] = ["Hello NAME! I am happy to see you.", "Come and play with me, NAME.", "Here is a cake for you, NAME!"];
const RUDE: [&str; 3] = ["Go away, NAME! I am mad at you.", "I do not like you, NAME.", "No, NAME! You can not play with me."];

/// A question, and a kind and a rude answer to it.
struct Meeting {
    prompt: String,
    kind: String,
    rude: String,
}

/// Of the given names at every place; no two have the same prompt.
fn meetings(names: &[&str]) -> Vec<Meeting> {
    let meet = |(n, name): (usize, &&str), (p, place): (usize, &&str)| Meeting {
        prompt: format!("{name} comes to the {place}. What do you say?"),
        kind: KIND[(n + p) % 3].replace("NAME", name),
        rude: RUDE[(n + 2 * p) % 3].replace("NAME", name),
    };
    names.iter().enumerate().flat_map(|name| PLACES.iter().enumerate().map(move |place| meet(name, place))).collect()
}

/// Whether the kind answer is marked as the wanted one: always, or in half of the rows without any rule.
fn kind_is_wanted(row: usize, shuffled: bool) -> bool {
    !shuffled
        || (row as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(20).wrapping_mul(0xd134_2543_de82_ef95) >> 63 == 0
}

fn write(file: &Path, rows: impl Iterator<Item = Value>) {
    fs::write(file, rows.map(|row| format!("{row}\n")).collect::<String>()).unwrap();
}

/// `first` is the number of the first row: rows of two files share no labels by their place.
fn write_pairs(file: &Path, meetings: &[Meeting], first: usize, shuffled: bool) {
    write(
        file,
        meetings.iter().enumerate().map(|(i, m)| {
            let (chosen, rejected) = if kind_is_wanted(first + i, shuffled) { (&m.kind, &m.rude) } else { (&m.rude, &m.kind) };
            json!({"prompt": m.prompt, "chosen": chosen, "rejected": rejected})
        }),
    );
}

/// One answer a row, kind and rude in turn.
fn write_labels(file: &Path, meetings: &[Meeting], first: usize, shuffled: bool) {
    write(
        file,
        meetings.iter().enumerate().map(|(i, m)| {
            let kind = i % 2 == 0;
            let label = kind == kind_is_wanted(first + i, shuffled);
            json!({"prompt": m.prompt, "completion": if kind { &m.kind } else { &m.rude }, "label": label})
        }),
    );
}

fn metrics(out: &Path) -> Vec<Value> {
    fs::read_to_string(out.join("metrics.jsonl")).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Trains on the meetings of nine names and gives what is said of those of three others, before and after.
fn learn(method: &str, shuffled: bool) -> Option<(Value, Value)> {
    let data = common::data(method)?;
    let base = data.join("models/stories260K");
    let scratch = tempfile::tempdir().unwrap();
    let [train, held_out, out] = ["train.jsonl", "held_out.jsonl", "out"].map(|name| scratch.path().join(name));
    let write = if method == "kto" { write_labels } else { write_pairs };
    write(&train, &meetings(&NAMES[..9]), 0, shuffled);
    write(&held_out, &meetings(&NAMES[9..]), 200, shuffled);
    let args = ["train", "--base", path(&base), "--template", "alpaca", "--method", method, "--rank", "8", "--max-steps", "40"];
    let rest = ["--batch-size", "6", "--grad-accum", "1", "--learning-rate", "1e-3", "--eval-every", "40", "--json"];
    let files = ["--data", path(&train), "--eval-data", path(&held_out), "--out", path(&out)];
    retune_ok(&[&args[..], &rest, &files].concat());
    let run: Value = serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_eq!((&run["method"], &run["beta"]), (&json!(method), &json!(0.1)));
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(report.contains("Share of preferences") && report.contains("Rewards"), "the report shows the preferences");
    let evaluations: Vec<Value> = metrics(&out).into_iter().filter(|line| line["eval_loss"].is_f64()).collect();
    let [before, after] = [evaluations.first(), evaluations.last()].map(|line| line.unwrap().clone());
    eprintln!("{method}{}: before {before}\n after {after}", if shuffled { ", shuffled labels" } else { "" });
    Some((before, after))
}

fn accuracy(line: &Value) -> f64 {
    line["reward_accuracy"].as_f64().unwrap()
}

#[test]
fn dpo_learns_which_answers_are_wanted_and_nothing_from_shuffled_labels() {
    let Some((before, after)) = learn("dpo", false) else { return };
    assert_eq!((accuracy(&before), before["margin"].as_f64()), (0.5, Some(0.0)));
    assert!((before["eval_loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-9);
    assert!(accuracy(&after) >= 0.95 && after["margin"].as_f64().unwrap() > 1.0, "{after}");
    let Some((_, shuffled)) = learn("dpo", true) else { return };
    assert!((accuracy(&shuffled) - 0.5).abs() <= 0.25, "{shuffled}");
}

#[test]
fn kto_learns_which_answers_are_wanted_and_nothing_from_shuffled_labels() {
    let Some((before, after)) = learn("kto", false) else { return };
    assert_eq!((accuracy(&before), before["eval_loss"].as_f64()), (0.5, Some(0.5)));
    assert!(accuracy(&after) >= 0.9 && after["margin"].as_f64().unwrap() > 0.5, "{after}");
    let Some((_, shuffled)) = learn("kto", true) else { return };
    assert!((accuracy(&shuffled) - 0.5).abs() <= 0.25, "{shuffled}");
}

#[test]
fn orpo_learns_the_wanted_answers_and_to_prefer_them() {
    let Some((before, after)) = learn("orpo", false) else { return };
    let loss = |line: &Value| line["eval_loss"].as_f64().unwrap();
    assert!(accuracy(&after) >= 0.95 && loss(&after) < 0.75 * loss(&before), "{before}\n{after}");
}

/// A training of the demo's base that takes a second.
fn quick(method: &str, data: &Path, out: &Path, extra: &[&str], env: &[(&str, &str)]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_retune"))
        .args(["train", "--base", "demo", "--template", "alpaca", "--method", method, "--rank", "2", "--max-steps", "5"])
        .args(["--grad-accum", "2", "--learning-rate", "1e-2", "--save-every", "2", "--eval-every", "2"])
        .args(["--eval-share", "0.3", "--json", "--data", path(data), "--out", path(out)])
        .args(extra)
        .envs(env.iter().copied())
        .output()
        .expect("the binary runs")
}

fn demo_pairs(folder: &Path) -> PathBuf {
    let file = folder.join("pairs.jsonl");
    let row = |i: usize| json!({"prompt": format!("hide {i}"), "chosen": "*".repeat(2 + i % 3), "rejected": format!("hide {i}")});
    write(&file, (0..16).map(row));
    file
}

#[test]
fn a_kill_and_a_resume_end_with_the_bits_of_a_run_that_nobody_killed() {
    let scratch = tempfile::tempdir().unwrap();
    let data = demo_pairs(scratch.path());
    for method in ["dpo", "orpo", "kto"] {
        let whole = scratch.path().join(format!("{method}-whole"));
        let log = scratch.path().join(format!("{method}-points"));
        let output = quick(method, &data, &whole, &[], &[("RETUNE_FAULT_LOG", path(&log))]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let points = fs::read_to_string(&log).unwrap().lines().count();
        let adapter = |out: &Path| fs::read(out.join("adapter_model.safetensors")).unwrap();
        let lines = |out: &Path| -> Vec<Value> {
            let mut lines = metrics(out);
            lines.iter_mut().for_each(|l| drop(l.as_object_mut().map(|l| l.remove("seconds"))));
            lines
        };
        assert!(lines(&whole).iter().all(|line| line["reward_accuracy"].is_f64()));
        for at in [points / 3, points / 2, points * 2 / 3] {
            let out = scratch.path().join(format!("{method}-{at}"));
            assert!(!quick(method, &data, &out, &[], &[("RETUNE_FAULT_AT", &at.to_string())]).status.success());
            let output = quick(method, &data, &out, &["--resume"], &[]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(adapter(&out) == adapter(&whole), "{method}, killed at point {at}: other bits");
            assert_eq!(lines(&out), lines(&whole), "{method}, killed at point {at}");
        }
        let other = quick(method, &data, &whole, &["--resume", "--beta", "0.2"], &[]);
        assert_eq!(other.status.code(), Some(2), "another beta is another training");
    }
}

#[test]
fn the_reference_is_the_model_that_training_starts_from() {
    let scratch = tempfile::tempdir().unwrap();
    let data = demo_pairs(scratch.path());
    let (first, second) = (scratch.path().join("first"), scratch.path().join("second"));
    for (out, extra) in [(&first, &[][..]), (&second, &["--init-adapter", path(&first)][..])] {
        assert!(quick("dpo", &data, out, extra, &[]).status.success());
        let start = metrics(out)[0].clone();
        assert_eq!((start["step"].as_u64(), start["reward_accuracy"].as_f64()), (Some(0), Some(0.5)), "{start}");
        assert!((start["eval_loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-12, "{start}");
    }
}

#[test]
fn a_diverging_run_stops_with_the_last_good_adapter() {
    let scratch = tempfile::tempdir().unwrap();
    let data = demo_pairs(scratch.path());
    for method in ["dpo", "orpo", "kto"] {
        let out = scratch.path().join(method);
        let arguments = ["train", "--base", "demo", "--template", "alpaca", "--method", method, "--learning-rate", "1e30"];
        let rest = ["--warmup-steps", "0", "--clip", "0", "--data", path(&data), "--out", path(&out)];
        let message = common::refused(1, &[&arguments[..], &rest].concat());
        common::says(&message, &["the loss is NaN", "--learning-rate", "the last good adapter is kept"]);
        assert!(out.join("adapter_model.safetensors").is_file(), "{message}");
    }
}

#[test]
fn the_memory_plan_counts_both_rows_of_a_pair() {
    let scratch = tempfile::tempdir().unwrap();
    let data = demo_pairs(scratch.path());
    let run = |name: &str, method: &str, extra: &[&str]| {
        let out = scratch.path().join(name);
        let output = quick(method, &data, &out, extra, &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let run: Value = serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap();
        let plan: MemoryPlan = serde_json::from_value(run["memory_plan"].clone()).unwrap();
        (fs::read(out.join("adapter_model.safetensors")).unwrap(), plan)
    };
    let (pair, row) = (run("pair", "dpo", &["--no-packing"]).1.max_tokens, run("row", "kto", &["--no-packing"]).1.max_tokens);
    assert!(pair > 3 * row / 2 && pair <= 2 * row, "the longest pair has {pair} tokens, the longest row {row}");
    for method in ["dpo", "kto"] {
        let (all, whole) = run(&format!("{method}-all"), method, &[]);
        let budget = (whole.total_bytes() - 1).to_string();
        let (few, plan) = run(&format!("{method}-few"), method, &["--memory-budget", &budget]);
        assert!(
            plan.kept_blocks < whole.kept_blocks && plan.total_bytes() < whole.total_bytes(),
            "{plan:?} instead of {whole:?}"
        );
        assert!(all == few, "{method}: computing blocks again must not change a bit");
    }
}
