//! `--dropout` and `--dora` through the command line, on the demo's base: trained, resumed, gone on from, merged, served.

mod common;
#[path = "support/ollama_peer.rs"]
mod ollama_peer;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{refused, retune_json, retune_ok, says};
use ollama_peer::{BOTH, Peer};
use retune::base::Base;
use retune::infer::score::row_losses;
use retune::model::adapter_files;
use retune::pipeline::{Reading, load_dataset};
use serde_json::{Value, json};

const TENSORS: &str = "adapter_model.safetensors";

fn path(p: &Path) -> &str {
    p.to_str().expect("UTF-8")
}

/// Rows for which the model has to say one short thing and stop.
fn greetings(folder: &Path) -> PathBuf {
    let file = folder.join("rows.jsonl");
    let names = ["Lily", "Tom", "Sue", "Ben", "Anna", "Max", "Mia", "Sam"];
    let row = |n: &str| json!({"instruction": format!("Say hello to {n}."), "input": "", "output": format!("Hello {n}!")});
    fs::write(&file, names.map(|n| row(n).to_string() + "\n").concat()).unwrap();
    file
}

/// A training of a second or two, unless `extra` says another number of steps or shape.
fn quick<'a>(data: &'a Path, out: &'a Path, extra: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["train", "--base", "demo", "--rank", "3", "--alpha", "5", "--learning-rate", "1e-2", "--json"];
    args.extend(["--data", path(data), "--out", path(out)]);
    for (flag, value) in [("--max-steps", "6"), ("--batch-size", "2"), ("--grad-accum", "2")] {
        if !extra.contains(&flag) {
            args.extend([flag, value]);
        }
    }
    args.extend(extra);
    args
}

fn loss(data: &Path, base: &str, adapter: &[&str]) -> f64 {
    retune_json(&[&["loss", "--base", base, "--template", "chatml", "--json", "--data", path(data)], adapter].concat())["loss"]
        .as_f64()
        .unwrap()
}

fn metrics(out: &Path) -> Vec<Value> {
    fs::read_to_string(out.join("metrics.jsonl")).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn one_seed_gives_one_mask_whoever_computes_and_however_much_memory_there_is() {
    let scratch = tempfile::tempdir().unwrap();
    let data = greetings(scratch.path());
    let run = |name: &str, threads: &str, extra: &[&str]| {
        let out = scratch.path().join(name);
        let output = Command::new(env!("CARGO_BIN_EXE_retune"))
            .args(quick(&data, &out, extra))
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let run: Value = serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap();
        let plan: retune::train::plan::MemoryPlan = serde_json::from_value(run["memory_plan"].clone()).unwrap();
        (fs::read(out.join(TENSORS)).unwrap(), plan)
    };
    let (none, plain_plan) = run("none", "2", &[]);
    let (fifth, plan) = run("fifth", "2", &["--dropout", "0.2"]);
    assert!(none != fifth, "dropout must change what is learnt");
    assert!(plan.activation_bytes > plain_plan.activation_bytes, "the plan counts the masked inputs");
    assert!(fifth == run("again", "1", &["--dropout", "0.2"]).0, "one thread must give the same bits");
    assert!(fifth != run("other", "2", &["--dropout", "0.2", "--seed", "43"]).0);
    let config: Value = serde_json::from_slice(&fs::read(scratch.path().join("fifth/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["lora_dropout"], &config["use_dora"]), (&json!(0.2), &json!(false)));

    let both = ["--dropout", "0.2", "--dora"];
    let (dora, whole) = run("dora", "2", &both);
    assert!(whole.activation_bytes > plan.activation_bytes && whole.adapter_bytes > plan.adapter_bytes, "{whole:?}, {plan:?}");
    let budget = (whole.total_bytes() - 1).to_string();
    let (few, plan) = run("few", "1", &[both.as_slice(), &["--memory-budget", &budget]].concat());
    assert!(plan.kept_blocks < whole.kept_blocks && plan.packing, "{plan:?} instead of {whole:?}");
    assert!(dora == few, "computing blocks again must not change a bit");
}

#[test]
fn rows_in_other_micro_batches_or_unpacked_have_the_same_masks() {
    let scratch = tempfile::tempdir().unwrap();
    let data = greetings(scratch.path());
    let losses = |name: &str, shape: &[&str]| -> Vec<f64> {
        let out = scratch.path().join(name);
        retune_ok(&quick(&data, &out, &[shape, &["--dropout", "0.4", "--dora"]].concat()));
        metrics(&out).iter().map(|m| m["loss"].as_f64().unwrap()).collect()
    };
    let expected = losses("2x2", &[]);
    for (name, shape) in [("4x1", ["--batch-size", "4", "--grad-accum", "1"].as_slice()), ("unpacked", &["--no-packing"])] {
        for (step, (expected, found)) in expected.iter().zip(losses(name, shape)).enumerate() {
            assert!((found - expected).abs() < 1e-4 * expected, "{name}, step {}: {found} against {expected}", step + 1);
        }
    }
}

#[test]
fn nothing_drops_out_where_nothing_is_trained() {
    let scratch = tempfile::tempdir().unwrap();
    let (data, out) = (greetings(scratch.path()), scratch.path().join("out"));
    retune_ok(&quick(&data, &out, &["--dropout", "0.5", "--template", "chatml", "--eval-data", path(&data)]));
    let best = metrics(&out).iter().filter_map(|m| m["eval_loss"].as_f64()).fold(f64::INFINITY, f64::min);
    let served = loss(&data, "demo", &["--adapter", path(&out)]);
    assert!((served - best).abs() < 1e-6, "measured in training {best}, afterwards {served}");
}

#[test]
fn dora_starts_at_the_base_learns_and_is_kept_by_whoever_goes_on() {
    let scratch = tempfile::tempdir().unwrap();
    let data = greetings(scratch.path());
    let (first, second) = (scratch.path().join("first"), scratch.path().join("second"));
    // What a training without DoRA leaves in the folder must not be taken for this one's.
    retune_ok(&quick(&data, &first, &["--template", "chatml"]));
    assert!(first.join("adapter.gguf").exists());
    let whole = ["--template", "chatml", "--batch-size", "4"];
    let dora = ["--dora", "--rslora", "--lora-plus", "4", "--overwrite"];
    retune_ok(&quick(&data, &first, &[whole.as_slice(), &dora].concat()));
    assert!(!first.join("adapter.gguf").exists(), "that format cannot say DoRA");
    let (base, learnt) = (loss(&data, "demo", &[]), loss(&data, "demo", &["--adapter", path(&first)]));
    let start = metrics(&first)[0]["loss"].as_f64().unwrap();
    assert!((start - base).abs() < 1e-5 * base, "the first step at {start}, the base at {base}");
    assert!(learnt < 0.9 * base, "{learnt} after {base}");
    let config: Value = serde_json::from_slice(&fs::read(first.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["use_dora"], &config["use_rslora"]), (&json!(true), &json!(true)));

    // The magnitude is trained: it is not that of the base's rows any more.
    let demo = Base::open("demo").unwrap();
    let adapter = adapter_files::load(&first, &demo.decoder.config).unwrap();
    let moved = adapter.slots.iter().filter(|slot| {
        let squares = demo.decoder.weights.blocks[slot.layer].linear(slot.module).row_squares();
        adapter.params[slot.magnitude.clone()].iter().zip(squares).any(|(m, s)| (f64::from(*m) - s.sqrt()).abs() > 1e-3)
    });
    assert_eq!(moved.count(), adapter.slots.len());

    // All eight rows in one step: its loss is that of the adapter it starts from.
    retune_ok(&quick(&data, &second, &[whole.as_slice(), &["--init-adapter", path(&first)]].concat()));
    let goes_on = metrics(&second)[0]["loss"].as_f64().unwrap();
    assert!((goes_on - learnt).abs() < 1e-5, "{goes_on} against {learnt}");
    assert!(adapter_files::load(&second, &demo.decoder.config).unwrap().spec.dora);

    let plain = scratch.path().join("plain");
    retune_ok(&quick(&data, &plain, &[]));
    let said = refused(2, &quick(&data, &scratch.path().join("x"), &["--dora", "--init-adapter", path(&plain)]));
    says(&said, &["--dora", "without DoRA", "leave --dora away"]);
    let said = refused(1, &["deploy", "--adapter", path(&first), "--base", "demo", "--mode", "adapter", "--root", path(&plain)]);
    says(&said, &["DoRA", "--mode merged"]);
}

#[test]
fn a_dora_adapter_speaks_and_its_merged_file_says_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let (data, out, merged) = (greetings(scratch.path()), scratch.path().join("out"), scratch.path().join("merged.gguf"));
    retune_ok(&quick(&data, &out, &["--template", "chatml", "--dora", "--dropout", "0.05", "--max-steps", "120"]));
    retune_ok(&["merge", "--base", "demo", "--adapter", path(&out), "--out", path(&merged), "--type", "f32"]);
    let speak = |base: &str, adapter: &[&str]| {
        let ask =
            ["generate", "--base", base, "--template", "chatml", "--prompt", "Say hello to Tom.", "--max-tokens", "40", "--json"];
        retune_json(&[&ask, adapter].concat())
    };
    let (with, alone) = (speak("demo", &["--adapter", path(&out)]), speak(path(&merged), &[]));
    assert_eq!((with["ended"].as_bool(), with["text"].as_str()), (Some(true), Some("Hello Tom!")), "{with}");
    assert_eq!(with["text"], alone["text"]);
    let (with, alone) = (loss(&data, "demo", &["--adapter", path(&out)]), loss(&data, path(&merged), &[]));
    assert!((with - alone).abs() < 1e-4 * with, "unmerged {with}, merged {alone}");
    assert!((with - loss(&data, "demo", &[])).abs() > 0.5 * with);
}

/// PEFT loads the very folder that a training left, and finds the same loss for every row.
#[test]
fn peft_agrees_on_a_dora_adapter_that_was_trained_here() {
    const SCRIPT: &str = r#"
import json, sys, torch
from transformers import AutoModelForCausalLM
from peft import PeftModel
base, adapter, rows = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
for row in map(json.loads, open(rows)):
    ids, trained = torch.tensor([row["ids"]]), torch.tensor(row["trained"][1:], dtype=torch.bool)
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
    print("loss", float(losses[trained].sum()))
"#;
    let test = "peft_agrees_on_a_dora_adapter_that_was_trained_here";
    let (Some(python), Some(data)) = (common::peer(test, "venv/bin/python"), common::data(test)) else { return };
    let scratch = tempfile::tempdir().unwrap();
    let (rows, out, ids) = (greetings(scratch.path()), scratch.path().join("out"), scratch.path().join("ids.jsonl"));
    let base = data.join("models/stories260K");
    let read = ["--template", "alpaca", "--data", path(&rows), "--base", path(&base)];
    let train = [
        "--dora",
        "--rslora",
        "--rank",
        "3",
        "--alpha",
        "5",
        "--learning-rate",
        "1e-2",
        "--max-steps",
        "20",
        "--out",
        path(&out),
    ];
    retune_ok(&[["train", "--json"].as_slice(), &read, &train].concat());
    fs::write(&ids, retune_ok(&[["render", "--json"].as_slice(), &read].concat())).unwrap();
    let ours = retune_ok(&[["loss", "--json", "--adapter", path(&out)].as_slice(), &read].concat());
    let ours: Vec<f64> = ours.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["loss_sum"].as_f64()).collect();
    let output = Command::new(python).args(["-c", SCRIPT, path(&base), path(&out), path(&ids)]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let theirs: Vec<f64> = said.lines().filter_map(|l| l.strip_prefix("loss ")?.parse().ok()).collect();
    assert_eq!((ours.len(), theirs.len()), (8, 8), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for (row, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert!((ours - theirs).abs() < 1e-4 * theirs, "row {}: {ours}, PEFT {theirs}", row + 1);
    }
}

#[test]
fn a_changed_adapter_is_measured_as_it_is_now() {
    let scratch = tempfile::tempdir().unwrap();
    let (data, out) = (greetings(scratch.path()), scratch.path().join("out"));
    retune_ok(&quick(&data, &out, &["--dora"]));
    let base = Base::open("demo").unwrap();
    let rows = load_dataset(&base, &base.template(None).unwrap(), &data, &Reading::default()).unwrap().rows;
    let mut adapter = adapter_files::load(&out, &base.decoder.config).unwrap();
    let before = row_losses(&base.decoder, &rows, Some(&adapter));
    // The norms of rows belong to A and B as they were; doubling B changes them.
    let b = adapter.slots[0].b.clone();
    adapter.params[b].iter_mut().for_each(|b| *b *= 2.0);
    let after = row_losses(&base.decoder, &rows, Some(&adapter));
    assert_ne!(before, after);
    adapter_files::save_peft(&out, &adapter, &base.decoder.config, None, 0.0).unwrap();
    let read_again = adapter_files::load(&out, &base.decoder.config).unwrap();
    assert_eq!(row_losses(&base.decoder, &rows, Some(&read_again)), after);
}

#[test]
fn deploy_merges_a_dora_adapter_and_real_ollamas_answer_as_it_was_trained() {
    let scratch = tempfile::tempdir().unwrap();
    let (data, out) = (greetings(scratch.path()), scratch.path().join("out"));
    retune_ok(&quick(&data, &out, &["--dora", "--max-steps", "40"]));
    let deploy = |host: &str| {
        Command::new(env!("CARGO_BIN_EXE_retune"))
            .args(["deploy", "--adapter", path(&out), "--role", "greeter", "--root", path(scratch.path()), "--json"])
            .env("OLLAMA_HOST", host)
            .output()
            .unwrap()
    };
    // Nobody listens there: the files are made, and they are the merged ones.
    let output = deploy("127.0.0.1:1");
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(out.join("merged.gguf").exists() && !out.join("adapter.gguf").exists());
    for kind in BOTH {
        let Some(peer) = Peer::start(kind) else { continue };
        let output = deploy(&peer.host);
        let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{kind:?}: {told}");
        assert!(told.contains("this is a DoRA adapter, which a GGUF adapter cannot say: merging"), "{kind:?}: {told}");
        let served: Value = serde_json::from_str(said.trim()).unwrap();
        println!("{kind:?}: {served}");
        assert_eq!((&served["mode"], &served["same"]), (&json!("merged"), &json!(true)), "{kind:?}");
    }
}
