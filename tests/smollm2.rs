//! SmolLM2-135M-Instruct on its Q4_1 GGUF: a real model, held to what transformers and PEFT computed on the same weights,
//! dequantised (`scripts/parity/smollm2_tools.py`). Skipped, with a line that says so, without the peers or the test data.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::{retune_json, retune_ok};
use retune::base::Base;
use retune::infer::score::{RowLoss, mean_loss, row_losses};
use retune::model::{Adapter, Workspace, adapter_files};
use retune::pipeline::{Reading, load_dataset};
use retune::train::step::State;
use retune::train::{Lessons, Schedule, TrainSettings};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// How far a loss may be from PEFT's, as a share of PEFT's. Both sides compute in f32 and sum in another order; what was
/// seen is below 1e-6.
const TOLERANCE: f64 = 1e-3;

fn expected() -> Value {
    serde_json::from_slice(&fs::read(common::root().join("tests/parity/smollm2/expected.json")).unwrap()).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(number).collect()
}

#[track_caller]
fn assert_near(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() <= TOLERANCE * expected.abs(), "{what}: {found}, PEFT has {expected}");
}

/// The first `count` lines of a file of the tool calls, in a file of their own.
fn first_rows(data: &Path, name: &str, count: usize, folder: &Path) -> PathBuf {
    let text = fs::read_to_string(data.join("sft").join(name)).unwrap();
    let lines: Vec<&str> = text.lines().take(count).collect();
    assert_eq!(lines.len(), count, "{name} has too few rows");
    let file = folder.join(name);
    fs::write(&file, lines.join("\n") + "\n").unwrap();
    file
}

#[test]
fn smollm2_rows_have_the_ids_and_masks_of_transformers() {
    const TEST: &str = "smollm2_rows_have_the_ids_and_masks_of_transformers";
    let (Some(base), Some(data)) = (common::smollm2(TEST), common::data(TEST)) else { return };
    let expected = expected();
    let scratch = tempfile::tempdir().unwrap();
    for (name, key) in [("tool_calls_train.jsonl", "train_rows"), ("tool_calls_heldout.jsonl", "held_out_rows")] {
        let rows = expected[key].as_array().unwrap();
        let file = first_rows(&data, name, rows.len(), scratch.path());
        let out = retune_ok(&["render", "--base", base.to_str().unwrap(), "--data", file.to_str().unwrap(), "--json"]);
        assert_eq!(out.lines().count(), rows.len(), "{name}");
        for (line, row) in out.lines().zip(rows) {
            let found: Value = serde_json::from_str(line).unwrap();
            for part in ["text", "ids", "trained"] {
                assert_eq!(found[part], row[part], "{part} of row {} of {name}", found["row"]);
            }
        }
    }
}

#[test]
fn smollm2_says_greedily_what_transformers_says() {
    let Some(base) = common::smollm2("smollm2_says_greedily_what_transformers_says") else { return };
    let golden = &expected()["generation"];
    let answer = retune_json(&[
        "generate",
        "--base",
        base.to_str().unwrap(),
        "--prompt",
        "What is the capital of France?",
        "--max-tokens",
        "24",
        "--json",
    ]);
    assert_eq!((&answer["ids"], &answer["text"]), (&golden["greedy_ids"], &golden["greedy_text"]));
    assert_eq!(answer["prompt_tokens"].as_u64(), Some(golden["ids"].as_array().unwrap().len() as u64));
    assert_eq!(answer["ended"], true);
}

#[test]
fn answers_to_a_file_are_those_to_its_prompts_one_by_one() {
    const TEST: &str = "answers_to_a_file_are_those_to_its_prompts_one_by_one";
    let (Some(base), Some(data)) = (common::smollm2(TEST), common::data(TEST)) else { return };
    let scratch = tempfile::tempdir().unwrap();
    let file = first_rows(&data, "tool_calls_heldout.jsonl", 3, scratch.path());
    let (base, rows) = (base.to_str().unwrap(), fs::read_to_string(&file).unwrap());
    let out = retune_ok(&[
        "generate",
        "--base",
        base,
        "--data",
        file.to_str().unwrap(),
        "--max-tokens",
        "8",
        "--json",
        "--alternatives",
        "2",
    ]);
    assert_eq!(out.lines().count(), 3);
    for (i, (line, row)) in out.lines().zip(rows.lines()).enumerate() {
        let (together, row): (Value, Value) = (serde_json::from_str(line).unwrap(), serde_json::from_str(row).unwrap());
        let alone = retune_json(&[
            "generate",
            "--base",
            base,
            "--prompt",
            row["messages"][0]["content"].as_str().unwrap(),
            "--max-tokens",
            "8",
            "--json",
        ]);
        assert_eq!(together["row"], i + 1);
        for part in ["text", "ids", "prompt_tokens"] {
            assert_eq!(together[part], alone[part], "{part} of row {}", i + 1);
        }
        for (step, alternatives) in together["alternatives"].as_array().unwrap().iter().enumerate() {
            assert_eq!(alternatives.as_array().unwrap().len(), 2);
            assert_eq!(alternatives[0]["id"], together["ids"][step], "greedy takes the most probable token");
            assert!(number(&alternatives[0]["logprob"]) >= number(&alternatives[1]["logprob"]));
        }
    }
}

/// The start adapter, which must be the one that PEFT started from.
fn start_adapter(folder: &Path, base: &Base, expected: &Value) -> Adapter {
    let digest = Sha256::digest(fs::read(folder.join("adapter_model.safetensors")).unwrap());
    let found: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(
        found,
        expected["start_adapter_sha256"].as_str().unwrap(),
        "{} is not the adapter of expected.json: run scripts/parity/smollm2_tools.py again",
        folder.display()
    );
    adapter_files::load(folder, &base.decoder.config).unwrap()
}

fn recipe(expected: &Value) -> TrainSettings {
    let recipe = &expected["recipe"];
    TrainSettings {
        batch_size: recipe["batch_size"].as_u64().unwrap() as usize,
        grad_accum: 1,
        learning_rate: number(&recipe["learning_rate"]),
        schedule: Schedule::Cosine,
        warmup_steps: recipe["warmup_steps"].as_u64(),
        weight_decay: number(&recipe["weight_decay"]),
        clip: number(&recipe["clip"]),
        shuffle: false,
        ..TrainSettings::default()
    }
}

fn check_held_out(found: &[RowLoss], expected: &Value, when: &str) {
    assert_eq!(
        found.iter().map(|r| r.trained_tokens as u64).sum::<u64>(),
        expected["trained_tokens"].as_u64().unwrap(),
        "{when}"
    );
    for (i, sum) in numbers(&expected["first_loss_sums"]).into_iter().enumerate() {
        assert_near(found[i].loss_sum, sum, &format!("held-out row {} {when}", i + 1));
    }
    assert_near(mean_loss(found), number(&expected["loss"]), &format!("held-out loss {when}"));
}

#[test]
fn smollm2_learns_tool_calls_as_with_peft_for_twenty_steps() {
    const TEST: &str = "smollm2_learns_tool_calls_as_with_peft_for_twenty_steps";
    let (Some(gguf), Some(start), Some(data)) =
        (common::smollm2(TEST), common::peer(TEST, "smollm2/start-adapter"), common::data(TEST))
    else {
        return;
    };
    let (expected, scratch) = (expected(), tempfile::tempdir().unwrap());
    let base = Base::open(gguf.to_str().unwrap()).unwrap();
    let template = base.template(None).unwrap();
    let settings = recipe(&expected);
    let total_steps = expected["recipe"]["total_steps"].as_u64().unwrap();
    let (steps, rows_per_step) = (20, settings.batch_size);
    let read = |name: &str, count: usize| {
        load_dataset(&base, &template, &first_rows(&data, name, count, scratch.path()), &Reading::default()).unwrap().rows
    };
    let train = read("tool_calls_train.jsonl", steps * rows_per_step);
    let held_out = read("tool_calls_heldout.jsonl", expected["held_out_before"]["rows"].as_u64().unwrap() as usize);

    check_held_out(&row_losses(&base.decoder, &held_out, None), &expected["held_out_before"], "before");

    let mut state = State::new(start_adapter(&start, &base, &expected));
    let (mut workspace, mut grads) = (Workspace::new(usize::MAX), Vec::new());
    let (clock, mut tokens) = (Instant::now(), 0);
    let mut worst = 0.0f64;
    let lessons = Lessons::good_work(train);
    for i in 0..steps {
        let batch = (i * rows_per_step..((i + 1) * rows_per_step).min(lessons.len())).collect();
        let result =
            state.advance(&base.decoder, &lessons, &[batch], &settings, total_steps, &mut workspace, &mut grads).unwrap();
        tokens += result.tokens;
        let peft = |name: &str| number(&expected["steps"][name][i]);
        assert_eq!(result.trained_tokens as f64, peft("trained_tokens"), "step {}", i + 1);
        assert!(
            (result.learning_rate - peft("learning_rates")).abs() <= 1e-12,
            "learning rate of step {}: {}",
            i + 1,
            result.learning_rate
        );
        assert_near(result.loss, peft("losses"), &format!("loss of step {}", i + 1));
        assert_near(result.grad_norm, peft("grad_norms"), &format!("norm of the gradient of step {}", i + 1));
        worst = worst.max((result.loss / peft("losses") - 1.0).abs());
    }
    let seconds = clock.elapsed().as_secs_f64();
    let measured = &expected["measured"];
    eprintln!(
        "SmolLM2, 20 steps: losses at most {worst:.1e} from PEFT's; {:.0} tokens/s on this machine, PEFT {} on {} with {} threads",
        tokens as f64 / seconds,
        measured["tokens_per_second"],
        measured["cpu"],
        measured["threads"]
    );
    check_held_out(&row_losses(&base.decoder, &held_out, Some(&state.adapter)), &expected["held_out_after_20"], "after 20 steps");
}
