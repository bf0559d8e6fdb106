//! Training through the command line, on a truly pretrained small model and on the demo's base.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{retune, retune_json, retune_ok};
use serde_json::{Value, json};

fn path(p: &Path) -> &str {
    p.to_str().expect("UTF-8")
}

/// Writes rows as JSON lines.
fn write_rows(file: &Path, rows: impl IntoIterator<Item = Value>) {
    let text: String = rows.into_iter().map(|r| r.to_string() + "\n").collect();
    fs::write(file, text).unwrap();
}

fn instruction(request: &str, output: &str) -> Value {
    json!({"instruction": request, "input": "", "output": output})
}

/// Short rows for the demo's base.
fn small_data(folder: &Path) -> PathBuf {
    let file = folder.join("rows.jsonl");
    let words = ["kavo", "mune", "pila", "sote", "rugi", "dabe", "fole", "tiku", "vasa", "zemo", "hupi", "jora", "lega"];
    write_rows(&file, words.iter().enumerate().map(|(i, w)| instruction(&format!("hide {w}"), &"*".repeat(2 + i % 5))));
    file
}

fn metrics(out: &Path) -> Vec<Value> {
    fs::read_to_string(out.join("metrics.jsonl")).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn stories_learn_to_tell_children_stories() {
    let Some(data) = common::data("stories_learn_to_tell_children_stories") else { return };
    let scratch = tempfile::tempdir().unwrap();
    let base = data.join("models/stories260K");
    let lines = fs::read_to_string(data.join("sft/children_stories.jsonl")).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    let (held_out, train, out) =
        (scratch.path().join("held_out.jsonl"), scratch.path().join("train.jsonl"), scratch.path().join("out"));
    fs::write(&held_out, lines[..64].join("\n")).unwrap();
    fs::write(&train, lines[64..].join("\n")).unwrap();
    let loss = |adapter: Option<&str>| {
        let mut args = vec![
            "loss",
            "--base",
            path(&base),
            "--template",
            "alpaca",
            "--max-length",
            "256",
            "--json",
            "--data",
            path(&held_out),
        ];
        args.extend(adapter.iter().flat_map(|a| ["--adapter", a]));
        retune_json(&args)["loss"].as_f64().unwrap()
    };
    let before = loss(None);
    // transformers gives 2.57582 on the same rows.
    assert!((before - 2.57582).abs() < 1e-4, "before: {before}");
    retune_ok(&[
        "train",
        "--base",
        path(&base),
        "--template",
        "alpaca",
        "--max-length",
        "256",
        "--rank",
        "8",
        "--alpha",
        "16",
        "--max-steps",
        "300",
        "--batch-size",
        "8",
        "--learning-rate",
        "2e-3",
        "--data",
        path(&train),
        "--out",
        path(&out),
        "--json",
    ]);
    let after = loss(Some(path(&out)));
    eprintln!("stories260K: loss of rows 1-64 {before:.3} before, {after:.3} after 300 steps");
    assert!(after <= 1.25, "after: {after}");
    let gguf = loss(Some(path(&out.join("adapter.gguf"))));
    assert!((gguf - after).abs() < 1e-6, "the GGUF adapter is the same adapter: {gguf} against {after}");

    // The same adapter on the GGUF twin, whose rows of q and k have another order.
    let twin = base.join("stories260K-f32.gguf");
    let on_twin = retune_json(&[
        "loss",
        "--base",
        path(&twin),
        "--template",
        "alpaca",
        "--max-length",
        "256",
        "--json",
        "--data",
        path(&held_out),
        "--adapter",
        path(&out),
    ]);
    assert!((on_twin["loss"].as_f64().unwrap() - after).abs() < 1e-5, "{on_twin} against {after}");
}

/// Rows for which a model has to say one short thing and stop.
fn greetings(folder: &Path) -> PathBuf {
    let file = folder.join("short.jsonl");
    let names = ["Lily", "Tom", "Sue", "Ben", "Anna", "Max", "Mia", "Sam"];
    let row = |i: usize| instruction(&format!("Say hello to {}.", names[i % 8]), &format!("Hello {}!", names[i % 8]));
    write_rows(&file, (0..64).map(row));
    file
}

/// Trains on the greetings, and gives the answer to one of them before and after, with the trained adapter.
fn learn_to_greet(base: &str, folder: &Path) -> (Value, Value, PathBuf) {
    let (file, out) = (greetings(folder), folder.join("out"));
    let speak = |adapter: Option<&Path>| {
        let mut args = vec![
            "generate",
            "--base",
            base,
            "--template",
            "alpaca",
            "--prompt",
            "Say hello to Tom.",
            "--max-tokens",
            "40",
            "--json",
        ];
        args.extend(adapter.iter().flat_map(|a| ["--adapter", path(a)]));
        retune_json(&args)
    };
    let before = speak(None);
    retune_ok(&[
        "train",
        "--base",
        base,
        "--template",
        "alpaca",
        "--rank",
        "8",
        "--max-steps",
        "120",
        "--batch-size",
        "8",
        "--grad-accum",
        "1",
        "--learning-rate",
        "5e-3",
        "--data",
        path(&file),
        "--out",
        path(&out),
        "--json",
    ]);
    (before, speak(Some(&out)), out)
}

#[test]
fn generation_stops_where_the_rows_stopped() {
    let scratch = tempfile::tempdir().unwrap();
    let (before, after, _) = learn_to_greet("demo", scratch.path());
    assert_ne!(before["text"].as_str().map(str::trim), Some("Hello Tom!"), "{before}");
    assert_eq!((after["ended"].as_bool(), after["text"].as_str()), (Some(true), Some("Hello Tom!")), "{after}");
    // The last token is the end of turn, and nearly certain.
    assert!(after["logprobs"].as_array().unwrap().last().unwrap().as_f64().unwrap() > -0.05, "{after}");
}

#[test]
fn the_end_of_turn_is_learnt_as_far_as_a_tied_head_allows() {
    let Some(data) = common::data("the_end_of_turn_is_learnt_as_far_as_a_tied_head_allows") else { return };
    let scratch = tempfile::tempdir().unwrap();
    let base = data.join("models/stories260K");
    // stories260K never saw its </s>: that token and all others that were never seen have one and the same embedding, and
    // the head is tied, so that they share their probability evenly whatever the adapter does.
    let tensors = retune::formats::safetensors::Tensors::open_folder(&base).unwrap();
    let embedding = tensors.f32("model.embed_tokens.weight", &[512, 64]).unwrap();
    let row = |id: usize| &embedding[id * 64..(id + 1) * 64];
    let same = |id: &usize| row(*id).iter().zip(row(2)).all(|(a, b)| (a - b).abs() < 0.01);
    let shared = (0..512).filter(same).count();
    assert!(shared > 100, "only {shared} tokens share the embedding of </s>");
    let (before, _, out) = learn_to_greet(path(&base), scratch.path());
    assert_eq!(before["ended"], false, "the base does not stop by itself");
    let line = scratch.path().join("one.jsonl");
    write_rows(&line, [instruction("Say hello to Tom.", "Hello Tom!")]);
    let loss = |adapter: &[&str]| {
        let args = [&["loss", "--base", path(&base), "--template", "alpaca", "--data", path(&line), "--json"], adapter].concat();
        let json = retune_json(&args);
        json["loss"].as_f64().unwrap() * json["trained_tokens"].as_f64().unwrap()
    };
    let (untrained, learnt, best) = (loss(&[]), loss(&["--adapter", path(&out)]), (shared as f64).ln());
    assert!(untrained > 3.0 * best, "{untrained} before");
    // Which tokens were seen a handful of times is no sharp line.
    assert!((learnt - best).abs() < 0.3, "the whole row costs {learnt}, the end alone at least about ln {shared} = {best}");
}

/// A training of the demo's base that takes a second or two.
fn quick_args<'a>(data: &'a Path, out: &'a Path) -> Vec<&'a str> {
    vec![
        "train",
        "--base",
        "demo",
        "--rank",
        "4",
        "--alpha",
        "10",
        "--max-steps",
        "6",
        "--batch-size",
        "2",
        "--grad-accum",
        "2",
        "--learning-rate",
        "1e-2",
        "--save-every",
        "2",
        "--data",
        path(data),
        "--out",
        path(out),
        "--json",
    ]
}

#[test]
fn one_seed_gives_one_result_and_another_seed_another() {
    let scratch = tempfile::tempdir().unwrap();
    let data = small_data(scratch.path());
    let adapter = |name: &str, extra: &[&str]| {
        let out = scratch.path().join(name);
        let mut args = quick_args(&data, &out);
        args.extend(extra);
        retune_ok(&args);
        fs::read(out.join("adapter_model.safetensors")).unwrap()
    };
    let first = adapter("a", &[]);
    assert!(first == adapter("b", &[]), "the same seed must give the same bytes");
    assert!(first != adapter("c", &["--seed", "7"]), "another seed must give other bytes");
}

#[test]
fn two_times_four_rows_are_eight_rows() {
    let scratch = tempfile::tempdir().unwrap();
    let data = small_data(scratch.path());
    let losses = |name: &str, shape: &[&str]| -> Vec<f64> {
        let out = scratch.path().join(name);
        let mut args = vec![
            "train",
            "--base",
            "demo",
            "--rank",
            "4",
            "--max-steps",
            "5",
            "--learning-rate",
            "1e-2",
            "--data",
            path(&data),
            "--out",
            path(&out),
            "--json",
        ];
        args.extend(shape);
        retune_ok(&args);
        metrics(&out).iter().map(|m| m["loss"].as_f64().unwrap()).collect()
    };
    let accumulated = losses("2x4", &["--batch-size", "2", "--grad-accum", "4"]);
    let whole = losses("8x1", &["--batch-size", "8", "--grad-accum", "1"]);
    let single = losses("no-packing", &["--batch-size", "8", "--grad-accum", "1", "--no-packing"]);
    for (i, expected) in whole.iter().enumerate() {
        for other in [accumulated[i], single[i]] {
            assert!((other - expected).abs() < 1e-4 * expected, "step {}: {other} against {expected}", i + 1);
        }
    }
}

#[test]
fn a_small_memory_budget_computes_blocks_again_and_changes_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let data = small_data(scratch.path());
    let run = |name: &str, extra: &[&str]| {
        let out = scratch.path().join(name);
        let mut args = quick_args(&data, &out);
        args.extend(extra);
        retune_ok(&args);
        let run: Value = serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap();
        let plan: retune::train::plan::MemoryPlan = serde_json::from_value(run["memory_plan"].clone()).unwrap();
        (fs::read(out.join("adapter_model.safetensors")).unwrap(), plan)
    };
    let (all, whole) = run("all", &[]);
    let budget = (whole.total_bytes() - 1).to_string();
    let (few, plan) = run("few", &["--memory-budget", &budget]);
    assert!(plan.kept_blocks < whole.kept_blocks && plan.packing, "{plan:?} instead of {whole:?}");
    assert!(plan.total_bytes() <= budget.parse().unwrap(), "{plan:?}");
    assert!(all == few, "computing blocks again must not change a bit");
    let output = retune(&[quick_args(&data, &scratch.path().join("none")).as_slice(), &["--memory-budget", "50MB"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--memory-budget"));
}

#[test]
fn the_best_adapter_on_held_out_rows_is_kept_and_training_stops_early() {
    let scratch = tempfile::tempdir().unwrap();
    let (data, held_out, out) = (small_data(scratch.path()), scratch.path().join("held_out.jsonl"), scratch.path().join("out"));
    // Held-out rows that contradict the training rows: the more is learnt, the worse they get.
    write_rows(&held_out, ["kavo", "mune"].map(|w| instruction(&format!("say {w}"), w)));
    retune_ok(&[
        "train",
        "--base",
        "demo",
        "--max-steps",
        "60",
        "--learning-rate",
        "2e-2",
        "--warmup-steps",
        "0",
        "--eval-every",
        "2",
        "--patience",
        "3",
        "--data",
        path(&data),
        "--eval-data",
        path(&held_out),
        "--out",
        path(&out),
        "--json",
    ]);
    let lines = metrics(&out);
    let evaluations: Vec<(u64, f64)> =
        lines.iter().filter_map(|m| Some((m["step"].as_u64()?, m["eval_loss"].as_f64()?))).collect();
    let best = evaluations.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let last = *evaluations.last().unwrap();
    assert!(last.0 < 60 && last.1 > best.1, "stopped at {last:?}, best {best:?}");
    let shipped = retune_json(&["loss", "--base", "demo", "--data", path(&held_out), "--adapter", path(&out), "--json"]);
    assert!((shipped["loss"].as_f64().unwrap() - best.1).abs() < 1e-6, "{shipped} against {best:?}");
}

#[test]
fn a_second_training_in_the_same_folder_asks_first() {
    let scratch = tempfile::tempdir().unwrap();
    let (data, out) = (small_data(scratch.path()), scratch.path().join("out"));
    retune_ok(&quick_args(&data, &out));
    let again = retune(&quick_args(&data, &out));
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("--overwrite"));
    // --resume of a finished training has nothing to do; of another training it is refused.
    let report = retune_json(&[quick_args(&data, &out).as_slice(), &["--resume"]].concat());
    assert_eq!(report["steps"], 6);
    let other = retune(&[quick_args(&data, &out).as_slice(), &["--resume", "--weight-decay", "0.5"]].concat());
    assert_eq!(other.status.code(), Some(2));
    retune_ok(&[quick_args(&data, &out).as_slice(), &["--overwrite"]].concat());
}

#[test]
fn going_on_from_an_adapter_keeps_its_shape_and_starts_at_its_loss() {
    let scratch = tempfile::tempdir().unwrap();
    let (data, first, second) = (small_data(scratch.path()), scratch.path().join("first"), scratch.path().join("second"));
    retune_ok(&quick_args(&data, &first));
    let loss = retune_json(&["loss", "--base", "demo", "--data", path(&data), "--adapter", path(&first), "--json"])["loss"]
        .as_f64()
        .unwrap();
    retune_ok(&[
        "train",
        "--base",
        "demo",
        "--init-adapter",
        path(&first),
        "--batch-size",
        "13",
        "--grad-accum",
        "1",
        "--max-steps",
        "1",
        "--data",
        path(&data),
        "--out",
        path(&second),
        "--json",
    ]);
    let run: Value = serde_json::from_slice(&fs::read(second.join("run.json")).unwrap()).unwrap();
    assert_eq!((run["adapter"]["rank"].as_u64(), run["adapter"]["alpha"].as_f64()), (Some(4), Some(10.0)));
    let start = metrics(&second)[0]["loss"].as_f64().unwrap();
    assert!((start - loss).abs() < 1e-5, "{start} against {loss}");
}

#[test]
fn a_base_with_nan_is_told_by_the_name_of_the_place() {
    let scratch = tempfile::tempdir().unwrap();
    let base = scratch.path().join("nan.gguf");
    let mut bytes = fs::read(common::root().join("models/demo.gguf")).unwrap();
    let gguf = retune::formats::gguf::Gguf::open(&common::root().join("models/demo.gguf")).unwrap();
    let norm = gguf.tensor("blk.2.ffn_norm.weight").unwrap();
    let data = gguf.data(norm);

    let offset = data.as_ptr() as usize - gguf.bytes().as_ptr() as usize;
    bytes[offset..offset + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&base, bytes).unwrap();
    let (file, out) = (small_data(scratch.path()), scratch.path().join("out"));
    let output = retune(&["train", "--base", path(&base), "--max-steps", "3", "--data", path(&file), "--out", path(&out)]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("a norm of layer 2"), "{message}");
}

#[test]
fn a_diverging_run_stops_with_the_last_good_adapter() {
    let scratch = tempfile::tempdir().unwrap();
    let (data, out) = (small_data(scratch.path()), scratch.path().join("out"));
    let output = retune(&[
        "train",
        "--base",
        "demo",
        "--max-steps",
        "40",
        "--learning-rate",
        "1e30",
        "--warmup-steps",
        "0",
        "--clip",
        "0",
        "--data",
        path(&data),
        "--out",
        path(&out),
    ]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("--learning-rate") && message.contains("last good adapter"), "{message}");
    let tensors = retune::formats::safetensors::Tensors::open(&out.join("adapter_model.safetensors")).unwrap();
    assert!(!tensors.names().is_empty());
}
