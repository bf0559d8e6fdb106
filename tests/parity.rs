//! The same numbers as transformers and PEFT, on tiny random models (scripts/parity/make_fixtures.py): logits, losses,
//! every adapter gradient, twenty steps of AdamW.

mod common;

use common::relative_error;
use retune::domain::Tokens;
use retune::formats::safetensors::Tensors;
use retune::infer::score::{mean_loss, row_losses};
use retune::model::weights::Weights;
use retune::model::{Adapter, Batch, Decoder, ModelConfig, Stream, Workspace, adapter_files};
use retune::train::metrics::Rewards;
use retune::train::step::{State, StepResult};
use retune::train::{Lessons, Method, Schedule, TrainSettings};
use serde_json::Value;

struct Fixture {
    decoder: Decoder,
    adapter: Adapter,
    rows: Vec<Tokens>,
    /// Of training, with the masks of seed 42; 0 where the fixture has none.
    dropout: f64,
    expected: Value,
    tensors: Tensors,
}

fn fixture(family: &str, weights: &str) -> Fixture {
    let folder = common::root().join("tests/parity").join(family);
    let base = common::root().join("tests/parity").join(weights);
    let json = |path: &std::path::Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let config = ModelConfig::from_hf(&json(&base.join("config.json")), &base).unwrap();
    let weights = Weights::from_hf(&Tensors::open_folder(&base).unwrap(), &config, &base).unwrap();
    let expected = json(&folder.join("expected.json"));
    let dropout = json(&folder.join("adapter/adapter_config.json"))["lora_dropout"].as_f64().unwrap();
    Fixture {
        dropout,
        adapter: adapter_files::load(&folder.join("adapter"), &config).unwrap(),
        rows: rows_of(&expected),
        tensors: Tensors::open(&folder.join("expected.safetensors")).unwrap(),
        decoder: Decoder { config, weights },
        expected,
    }
}

fn rows_of(expected: &Value) -> Vec<Tokens> {
    let row = |row: &Value| {
        let list = |key: &str| serde_json::from_value::<Vec<u32>>(row[key].clone()).unwrap();
        Tokens { ids: list("ids"), trained: list("trained").into_iter().map(|t| t == 1).collect() }
    };
    expected["rows"].as_array().unwrap().iter().map(row).collect()
}

impl Fixture {
    /// Every row's logits within 1e-4.
    fn check_logits(&self, adapter: Option<&Adapter>, which: &str) {
        let vocab = self.decoder.config.vocab_size;
        let mut spread = 0.0f64;
        for (n, row) in self.rows.iter().enumerate() {
            let expected = self.tensors.f32(&format!("logits.{which}.{n}"), &[row.ids.len(), vocab]).unwrap();
            let all: Vec<usize> = (0..row.ids.len()).collect();
            let logits = self.decoder.logits(&Stream::packed(&[&row.ids]), &all, adapter, &mut Workspace::default(), None);
            let worst = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-4, "{which} row {n}: {worst}");
            let mean = expected.iter().sum::<f32>() / expected.len() as f32;
            spread =
                spread.max((expected.iter().map(|v| f64::from(v - mean).powi(2)).sum::<f64>() / expected.len() as f64).sqrt());
        }
        assert!(spread >= 1.0, "logits that hardly differ prove nothing: standard deviation {spread}");
    }

    fn check_losses(&self, adapter: Option<&Adapter>, which: &str) {
        let losses = row_losses(&self.decoder, &self.rows, adapter);
        let expected = &self.expected[which];
        for (n, row) in losses.iter().enumerate() {
            assert_eq!(row.trained_tokens as u64, expected["trained_tokens"][n].as_u64().unwrap(), "{which} row {n}");
            let sum = expected["loss_sum"][n].as_f64().unwrap();
            assert!((row.loss_sum - sum).abs() <= 1e-5 * sum, "{which} row {n}: {} against {sum}", row.loss_sum);
        }
        let loss = expected["loss"].as_f64().unwrap();
        assert!((mean_loss(&losses) - loss).abs() <= 1e-5 * loss);
    }

    /// Each tensor of `values` (laid out as the adapter's parameters) against the expected one.
    fn check_tensors(&self, prefix: &str, values: &[f32]) {
        let rank = self.adapter.spec.rank;
        for slot in &self.adapter.slots {
            for (part, range, shape) in [
                ("lora_A.weight", slot.a.clone(), vec![rank, slot.in_features]),
                ("lora_B.weight", slot.b.clone(), vec![slot.out_features, rank]),
                ("lora_magnitude_vector", slot.magnitude.clone(), vec![slot.out_features]),
            ] {
                if range.is_empty() {
                    continue;
                }
                let name = format!("{prefix}.base_model.model.{}.{part}", slot.hf_module());
                let expected = self.tensors.f32(&name, &shape).unwrap();
                let error = relative_error(&values[range], &expected);
                assert!(error <= 1e-4, "{name}: relative error {error:.2e}");
            }
        }
    }

    fn gradient(&self, kept_blocks: usize, packed: bool) -> Vec<f32> {
        let mut grads = vec![0.0; self.adapter.params.len()];
        let mut workspace = Workspace::new(kept_blocks);
        let all: Vec<&Tokens> = self.rows.iter().collect();
        let (mut tokens, mut rows_before) = (0, 0);
        for rows in all.chunks(if packed { all.len() } else { 1 }) {
            let mut batch = Batch::new(rows);
            batch.stream.drop_out(self.dropout, 42, 1, rows_before);
            rows_before += rows.len();
            tokens += self
                .decoder
                .losses_and_grads(&batch.stream, &batch.targets, &self.adapter, &mut workspace, &mut grads, &mut |_| None)
                .len();
        }
        grads.iter_mut().for_each(|g| *g /= tokens as f32);
        grads
    }

    fn check_twenty_steps(&self) {
        let training = &self.expected["training"];
        let number = |key: &str| training[key].as_f64().unwrap();
        let total = training["total_steps"].as_u64().unwrap();
        let settings = TrainSettings {
            learning_rate: number("learning_rate"),
            weight_decay: number("weight_decay"),
            clip: number("clip"),
            dropout: self.dropout,
            schedule: Schedule::Cosine,
            warmup_steps: training["warmup_steps"].as_u64(),
            ..TrainSettings::default()
        };
        let lessons = Lessons::good_work(self.rows.clone());
        let mut state = State::new(self.adapter.clone());
        let (mut workspace, mut grads) = (Workspace::new(usize::MAX), Vec::new());
        for step in 0..total as usize {
            let micro: Vec<Vec<usize>> = serde_json::from_value(training["batches"][step].clone()).unwrap();
            let result = state.advance(&self.decoder, &lessons, &micro, &settings, total, &mut workspace, &mut grads).unwrap();
            for (name, found) in
                [("losses", result.loss), ("grad_norms", result.grad_norm), ("learning_rates", result.learning_rate)]
            {
                let expected = training[name][step].as_f64().unwrap();
                assert!(
                    (found - expected).abs() <= 1e-4 * expected.abs() + 1e-12,
                    "{name} of step {}: {found} against {expected}",
                    step + 1
                );
            }
        }
        let clipped = training["grad_norms"].as_array().unwrap().iter().filter(|n| n.as_f64().unwrap() > settings.clip).count();
        assert!(clipped > 0, "no step was clipped: clipping is not tested");
        self.check_tensors("final", &state.adapter.params);
    }

    fn check_all(&self) {
        assert_ne!(self.adapter.spec.rank as f32, self.adapter.spec.alpha, "alpha for rank would go unseen");
        self.check_logits(None, "base");
        self.check_logits(Some(&self.adapter), "adapter");
        self.check_losses(None, "loss_base");
        self.check_losses(Some(&self.adapter), "loss_adapter");
        self.check_tensors("grad", &self.gradient(usize::MAX, true));
        self.check_twenty_steps();
    }
}

#[test]
fn llama_gives_the_numbers_of_transformers_and_peft() {
    fixture("llama", "llama/base").check_all();
}

#[test]
fn qwen2_gives_the_numbers_of_transformers_and_peft() {
    fixture("qwen2", "qwen2/base").check_all();
}

#[test]
fn dora_gives_the_numbers_of_peft() {
    let fixture = fixture("llama_dora", "llama/base");
    assert!(fixture.adapter.spec.dora && fixture.dropout == 0.0);
    fixture.check_all();
}

#[test]
fn dropout_gives_the_numbers_of_peft_with_our_masks() {
    let fixture = fixture("llama_dropout", "llama/base");
    assert!(!fixture.adapter.spec.dora && fixture.dropout > 0.0);
    fixture.check_all();
}

#[test]
fn dora_as_rslora_with_dropout_and_biases_gives_the_numbers_of_peft() {
    let fixture = fixture("qwen2_dora", "qwen2/base");
    assert!(fixture.adapter.spec.dora && fixture.adapter.spec.rslora && fixture.dropout > 0.0);
    fixture.check_all();
}

#[test]
fn sharded_safetensors_give_the_same_model() {
    fixture("llama", "llama_sharded").check_logits(None, "base");
}

#[test]
fn blocks_computed_again_give_the_same_bits() {
    for (family, base) in [("llama", "llama/base"), ("llama_dropout", "llama/base"), ("qwen2_dora", "qwen2/base")] {
        let fixture = fixture(family, base);
        let kept = fixture.gradient(usize::MAX, true);
        for kept_blocks in [0, 1, 2] {
            assert_eq!(fixture.gradient(kept_blocks, true), kept, "{family}: {kept_blocks} blocks kept");
        }
    }
}

#[test]
fn packed_rows_and_single_rows_give_the_same_gradient() {
    for (family, base) in
        [("llama", "llama"), ("qwen2", "qwen2"), ("llama_dora", "llama"), ("llama_dropout", "llama"), ("qwen2_dora", "qwen2")]
    {
        let fixture = fixture(family, &format!("{base}/base"));
        let (packed, single) = (fixture.gradient(usize::MAX, true), fixture.gradient(usize::MAX, false));
        let error = relative_error(&packed, &single);
        assert!(error < 1e-5, "{family}: {error:.2e}");
        fixture.check_tensors("grad", &single);
    }
}

/// The preference fixture (scripts/parity/make_preferences.py): TRL's losses on the same llama and adapter.
struct Preferences {
    llama: Fixture,
    expected: Value,
    method: Method,
}

impl Preferences {
    fn of(name: &str) -> Self {
        let folder = common::root().join("tests/parity/preferences");
        let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let number = |key: &str| expected["settings"][key].as_f64().unwrap();
        let beta = number("beta");
        let method = match name {
            "dpo" => Method::Dpo { beta, label_smoothing: 0.0 },
            "orpo" => Method::Orpo { beta },
            _ => Method::Kto {
                beta,
                desirable_weight: number("desirable_weight"),
                undesirable_weight: number("undesirable_weight"),
            },
        };
        let mut llama = fixture("llama", "llama/base");
        llama.rows = rows_of(&expected);
        llama.tensors = Tensors::open(&folder.join("expected.safetensors")).unwrap();
        Self { llama, expected, method }
    }

    /// The reference is the base alone: an adapter of zeros.
    fn lessons(&self) -> Lessons {
        let good: Vec<bool> = serde_json::from_value(self.expected["good"].clone()).unwrap();
        let (rows, good) = match self.method.takes_pairs() {
            true => (self.llama.rows.clone(), [true, false].repeat(good.len())),
            // Of each pair the row that the fixture chose.
            false => (self.llama.rows.chunks(2).zip(&good).map(|(pair, &good)| pair[usize::from(!good)].clone()).collect(), good),
        };
        let mut base = self.llama.adapter.clone();
        base.params.fill(0.0);
        Lessons::new(self.method, rows, good, 128).with_reference(&self.llama.decoder, &base)
    }

    fn settings(&self) -> TrainSettings {
        let settings = &self.expected["settings"];
        TrainSettings {
            method: self.method,
            learning_rate: settings["learning_rate"].as_f64().unwrap(),
            weight_decay: settings["weight_decay"].as_f64().unwrap(),
            clip: settings["clip"].as_f64().unwrap(),
            warmup_steps: settings["warmup_steps"].as_u64(),
            ..TrainSettings::default()
        }
    }

    /// One step at the rate 0 leaves the mean gradient behind.
    fn gradient(&self, micro_batches: &[Vec<usize>], packing: bool) -> (StepResult, Vec<f32>) {
        let (mut state, mut grads) = (State::new(self.llama.adapter.clone()), Vec::new());
        let settings = TrainSettings { clip: 0.0, packing, ..self.settings() };
        let ws = &mut Workspace::new(1);
        let result = state.advance(&self.llama.decoder, &self.lessons(), micro_batches, &settings, 10, ws, &mut grads).unwrap();
        assert_eq!(result.learning_rate, 0.0);
        (result, grads)
    }

    fn check(&self) {
        let name = self.method.name();
        let (expected, all) = (&self.expected[name], (0..6).collect::<Vec<usize>>());
        let (result, whole) = self.gradient(&[all], true);
        near(result.loss, &expected["loss"], "loss");
        check_rewards(&result.rewards, expected);
        self.llama.check_tensors(&format!("{name}.grad"), &whole);
        let evaluation = self.lessons().evaluate(&self.llama.decoder, &self.llama.adapter);
        near(evaluation.loss, &expected["loss"], "held-out loss");
        check_rewards(&evaluation.rewards, expected);
        // However the step is cut into micro-batches, and whether they are packed.
        for (cut, packing) in [(vec![vec![0, 1], vec![2, 3, 4, 5]], true), (vec![vec![0, 1, 2], vec![3, 4, 5]], false)] {
            let (part, grads) = self.gradient(&cut, packing);
            assert!((part.loss - result.loss).abs() < 1e-6 * result.loss, "{cut:?}: {} against {}", part.loss, result.loss);
            let error = relative_error(&grads, &whole);
            assert!(error < 1e-5, "{cut:?}: {error:.2e}");
        }

        let (training, lessons, settings) = (&expected["training"], self.lessons(), self.settings());
        let (mut state, mut ws, mut grads) = (State::new(self.llama.adapter.clone()), Workspace::new(usize::MAX), Vec::new());
        for (step, examples) in training["batches"].as_array().unwrap().iter().enumerate() {
            let micro: Vec<usize> = serde_json::from_value(examples.clone()).unwrap();
            let result = state.advance(&self.llama.decoder, &lessons, &[micro], &settings, 10, &mut ws, &mut grads).unwrap();
            near(result.loss, &training["losses"][step], &format!("loss of step {}", step + 1));
            near(result.grad_norm, &training["grad_norms"][step], &format!("norm of step {}", step + 1));
            check_rewards(&result.rewards, &training["rewards"][step]);
        }
        self.llama.check_tensors(&format!("{name}.final"), &state.adapter.params);
    }
}

/// Within 1e-4 of what is expected.
fn near(found: f64, expected: &Value, what: &str) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() <= 1e-4 * expected.abs(), "{what}: {found} against {expected}");
}

fn check_rewards(found: &Rewards, expected: &Value) {
    let found = serde_json::to_value(found).unwrap();
    for key in ["rewards_chosen", "rewards_rejected", "reward_accuracy", "margin"] {
        // TRL's KTO tells no accuracy.
        if let Some(expected) = expected[key].as_f64() {
            let found = found[key].as_f64().unwrap_or_else(|| panic!("no {key}"));
            assert!((found - expected).abs() <= 1e-4 * expected.abs() + 1e-5, "{key}: {found} against {expected}");
        }
    }
}

#[test]
fn dpo_gives_the_numbers_of_trl() {
    Preferences::of("dpo").check();
}

#[test]
fn orpo_gives_the_numbers_of_trl() {
    Preferences::of("orpo").check();
}

#[test]
fn kto_gives_the_numbers_of_trl() {
    Preferences::of("kto").check();
}
