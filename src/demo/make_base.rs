//! Makes the demo's base: a random llama with a byte-level vocabulary, taught its skills by this project's own trainer.
//!
//! The trainer only ever trains adapters. So the base learns through one of a rank high enough to move whole matrices,
//! which is then merged; the embedding, which is the head, too, stays as it was drawn.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use retune_kernels::rng::Rng;
use retune_kernels::weight::GgmlDType;
use retune_kernels::{DType, quantize};

use super::exact_match;
use super::task::{self, SKILLS, Split};
use crate::base::Base;
use crate::domain::Tokens;
use crate::error::{Error, Result};
use crate::export::merge::{MergeType, merge};
use crate::formats::gguf::{GgmlType, TensorSource, Value, Writer};
use crate::model::{Adapter, AdapterSpec, adapter_files};
use crate::text::render::Renderer;
use crate::train::plan::{MemoryPlan, default_budget};
use crate::train::{Job, Lessons, Progress, TrainSettings};

const HIDDEN: usize = 192;
/// Rows of 192 values are no multiple of 256, rows of 512 are: K-quants take only the one kind.
const INTERMEDIATE: usize = 512;
const LAYERS: usize = 4;
const HEADS: usize = 6;
const KV_HEADS: usize = 3;
const CONTEXT: usize = 512;

/// How the base is taught.
pub struct Recipe {
    pub rows: usize,
    pub steps: u64,
    pub batch_size: usize,
    pub learning_rate: f64,
    pub rank: usize,
    pub seed: u64,
}

impl Default for Recipe {
    fn default() -> Self {
        Self { rows: 40_000, steps: 700, batch_size: 48, learning_rate: 1.5e-3, rank: 64, seed: 1 }
    }
}

/// Writes the base to `out` and says how well it does on each of its held-out skills.
pub fn make(out: &Path, recipe: &Recipe, progress: &mut dyn Progress) -> Result<Vec<(&'static str, f64)>> {
    let work = out.with_extension("making");
    std::fs::create_dir_all(&work).map_err(Error::io("create", &work))?;
    let random = work.join("random.gguf");
    write_random(&random, &mut Rng::new(recipe.seed))?;
    let base = Base::open(&random.to_string_lossy())?;
    let template = base.template(None)?;
    let renderer = Renderer { tokenizer: &base.tokenizer, template: &template, system: None };

    let mut rng = Rng::new(recipe.seed + 1);
    let rows: Vec<Tokens> = (0..recipe.rows)
        .map(|n| Ok(renderer.render(&task::skill(SKILLS[n % SKILLS.len()], &mut rng, Split::Train).example(n + 1))?.tokens))
        .collect::<Result<_>>()?;
    let settings = TrainSettings {
        max_steps: Some(recipe.steps),
        batch_size: recipe.batch_size,
        grad_accum: 1,
        learning_rate: recipe.learning_rate,
        warmup_steps: Some(100),
        seed: recipe.seed,
        ..TrainSettings::default()
    };
    let spec = AdapterSpec { rank: recipe.rank, alpha: recipe.rank as f32, ..AdapterSpec::default() };
    let start = Adapter::fresh(&base.decoder, spec, &mut rng);
    let lessons = Lessons::good_work(rows);
    let plan = MemoryPlan::new(&base.decoder, &start, &lessons, &settings, default_budget())?;
    let job = Job {
        decoder: &base.decoder,
        lessons: &lessons,
        settings: &settings,
        plan,
        start,
        evaluate: None,
        folder: &work,
        identity: "demo base".into(),
        save_every: 200,
        stop: &AtomicBool::new(false),
    };
    let outcome = job.run(true, progress)?;
    if let Some(failure) = outcome.failure {
        return Err(failure);
    }
    let Some(gguf) = base.origin.gguf() else { unreachable!("the random base is a GGUF file") };
    let pairs = adapter_files::gguf_pairs(&outcome.adapter, &base.decoder.config);
    merge(gguf, &pairs, outcome.adapter.spec.scale(), MergeType::To(DType::Quant(GgmlDType::Q8_0)), out)?;

    let made = Base::open(&out.to_string_lossy())?;
    let mut rng = Rng::new(recipe.seed + 2);
    SKILLS
        .iter()
        .map(|&name| {
            let items = task::items(60, || task::skill(name, &mut rng, Split::HeldOut));
            Ok((name, exact_match(&made, &template, None, &items)?.share()))
        })
        .collect()
}

/// The vocabulary: all bytes as GPT-2 writes them, the joints of JSON, three special tokens.
fn vocabulary() -> (Vec<String>, Vec<String>, Vec<i32>) {
    // GPT-2's printable stand-ins for bytes (openai/gpt-2, encoder.py, bytes_to_unicode).
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut shifted = 256;
    let mut tokens: Vec<String> = (0..256u32)
        .filter_map(|b| {
            char::from_u32(if printable(b) {
                b
            } else {
                shifted += 1;
                shifted - 1
            })
        })
        .map(String::from)
        .collect();
    let merges = ["\" :", "\": \"", "\" ,", "\", \"", "{ \"", "\" }"].map(String::from).to_vec();
    tokens.extend(merges.iter().map(|m| m.replace(' ', "")));
    let mut types = vec![1; tokens.len()];
    for special in ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] {
        tokens.push(special.to_owned());
        types.push(3);
    }
    (tokens, merges, types)
}

fn write_random(path: &Path, rng: &mut Rng) -> Result<()> {
    let (tokens, merges, types) = vocabulary();
    let vocab = tokens.len();
    let text = |s: &str| Value::string(s);
    let strings = |list: &[String]| Value::strings(list);
    let size = |n: usize| Value::U32(n as u32);
    let metadata: Vec<(String, Value)> = [
        ("general.architecture", text("llama")),
        ("general.name", text("retune demo")),
        ("general.license", text("MIT OR Apache-2.0")),
        ("general.file_type", Value::U32(7)), // mostly Q8_0
        ("llama.context_length", size(CONTEXT)),
        ("llama.embedding_length", size(HIDDEN)),
        ("llama.block_count", size(LAYERS)),
        ("llama.feed_forward_length", size(INTERMEDIATE)),
        ("llama.attention.head_count", size(HEADS)),
        ("llama.attention.head_count_kv", size(KV_HEADS)),
        ("llama.rope.dimension_count", size(HIDDEN / HEADS)),
        ("llama.rope.freq_base", Value::F32(10_000.0)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.vocab_size", size(vocab)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("gpt-2")),
        ("tokenizer.ggml.tokens", strings(&tokens)),
        ("tokenizer.ggml.token_type", Value::Array(5, types.iter().map(|&t| Value::I32(t)).collect())),
        ("tokenizer.ggml.merges", strings(&merges)),
        ("tokenizer.ggml.bos_token_id", size(vocab - 3)),
        ("tokenizer.ggml.eos_token_id", size(vocab - 1)),
        ("tokenizer.ggml.padding_token_id", size(vocab - 3)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ("tokenizer.chat_template", text(CHATML)),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect();

    let mut tensors = Vec::new();
    let mut push = |name: String, shape: Vec<usize>, dtype: DType, ggml_type: u32, values: Vec<f32>| -> Result<()> {
        let cols = shape.last().copied().unwrap_or(1);
        let bytes = quantize(dtype, &values, cols).map_err(|e| Error::unsupported(format!("{name}: {e}"), "report this"))?;
        tensors.push(TensorSource::new(name, shape, GgmlType(ggml_type), move || Ok(Bytes::from(bytes))));
        Ok(())
    };
    let mut matrix =
        |rows: usize, cols: usize, scale: f64| -> Vec<f32> { (0..rows * cols).map(|_| (rng.normal() * scale) as f32).collect() };
    let q8 = DType::Quant(GgmlDType::Q8_0);
    let ones = |n: usize| vec![1.0f32; n];
    // Head and embedding are one: a token that attention brings along is already the one to say.
    push("token_embd.weight".into(), vec![vocab, HIDDEN], q8, 8, matrix(vocab, HIDDEN, 0.1))?;
    let kv = HIDDEN / HEADS * KV_HEADS;
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        push(name("attn_norm"), vec![HIDDEN], DType::F32, 0, ones(HIDDEN))?;
        push(name("ffn_norm"), vec![HIDDEN], DType::F32, 0, ones(HIDDEN))?;
        for (part, rows, cols) in [
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", kv, HIDDEN),
            ("attn_v", kv, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", INTERMEDIATE, HIDDEN),
            ("ffn_up", INTERMEDIATE, HIDDEN),
            ("ffn_down", HIDDEN, INTERMEDIATE),
        ] {
            push(name(part), vec![rows, cols], DType::F32, 0, matrix(rows, cols, 0.7 / (cols as f64).sqrt()))?;
        }
    }
    push("output_norm.weight".into(), vec![HIDDEN], DType::F32, 0, ones(HIDDEN))?;
    Writer::new(metadata).write(path, tensors)
}

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
