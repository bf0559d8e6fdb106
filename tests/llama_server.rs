//! llama.cpp reads what we write and computes what we compute: log-probabilities over the whole vocabulary, of the base, of
//! the base with our GGUF adapter, and of the merged file, against our own. Skipped, with a line, where it is absent.

mod common;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use retune::base::Base;
use retune::infer::generate::log_sum_exp;
use retune::model::{Adapter, Stream, Workspace, adapter_files};
use serde_json::{Value, json};

/// In log-probability; 3e-5 was measured.
const TOLERANCE: f32 = 1e-3;

struct Server {
    url: String,
    child: Child,
}

impl Server {
    fn start(program: &Path, model: &Path, adapter: Option<&Path>, folder: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = std::fs::File::create(folder.join("llama-server.log")).unwrap();
        let mut command = Command::new(program);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--no-webui", "--ctx-size", "512", "--parallel", "1"]);
        // Attention in f32, as ours: its flash attention alone makes .03 on this model.
        command.args(["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"]);
        command.arg("--model").arg(model);
        if let Some(adapter) = adapter {
            command.arg("--lora").arg(adapter);
        }
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut server = Self { url: format!("http://127.0.0.1:{port}"), child };
        let start = Instant::now();
        while ureq::get(&format!("{}/health", server.url)).call().is_err() {
            let log = || std::fs::read_to_string(folder.join("llama-server.log")).unwrap_or_default();
            assert!(server.child.try_wait().unwrap().is_none(), "llama-server ended: {}", log());
            assert!(start.elapsed() < Duration::from_secs(120), "llama-server does not start: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// The log-probability of every token after `ids`, with the adapter scaled by `scale` where the server has one.
    fn logprobs(&self, ids: &[u32], vocab: usize, scale: Option<f32>) -> Vec<f32> {
        let mut body = json!({"prompt": ids, "n_predict": 1, "n_probs": vocab, "temperature": 0.0, "cache_prompt": false});
        if let Some(scale) = scale {
            body["lora"] = json!([{"id": 0, "scale": scale}]);
        }
        let mut response = ureq::post(&format!("{}/completion", self.url)).send_json(&body).unwrap();
        let answer: Value = response.body_mut().read_json().unwrap();
        assert_eq!(answer["tokens_evaluated"], ids.len(), "{answer}");
        let mut logprobs = vec![f32::NAN; vocab];
        for one in answer["completion_probabilities"][0]["top_logprobs"].as_array().unwrap() {
            logprobs[one["id"].as_u64().unwrap() as usize] = one["logprob"].as_f64().unwrap() as f32;
        }
        assert!(logprobs.iter().all(|p| !p.is_nan()), "some tokens are missing");
        logprobs
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn own(base: &Base, ids: &[u32], adapter: Option<&Adapter>) -> Vec<f32> {
    let logits = base.decoder.logits(&Stream::packed(&[ids]), &[ids.len() - 1], adapter, &mut Workspace::default(), None);
    let sum = log_sum_exp(&logits);
    logits.iter().map(|logit| logit - sum).collect()
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Trains on `base`, then compares base, adapter and merged file after prefixes of a prompt.
fn compare(program: &Path, name: &str, file: &Path, prompt: &str) {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { scratch.path().join(name) };
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let rows: String = ["red", "blue", "green", "big"]
        .iter()
        .map(|word| {
            json!({"instruction": format!("{prompt} {word}"), "output": format!("no {word} {word} here")}).to_string() + "\n"
        })
        .collect();
    std::fs::write(path("rows.jsonl"), rows).unwrap();
    let (base_text, out) = (text(file), text(&path("adapter")));
    common::retune_ok(&[
        "train",
        "--base",
        &base_text,
        "--template",
        "alpaca",
        "--data",
        &text(&path("rows.jsonl")),
        "--out",
        &out,
        "--rank",
        "4",
        "--alpha",
        "12",
        "--max-steps",
        "60",
        "--batch-size",
        "4",
        "--grad-accum",
        "1",
        "--learning-rate",
        "1e-2",
        "--json",
    ]);
    let merged = path("merged.gguf");
    common::retune_ok(&["merge", "--base", &base_text, "--adapter", &out, "--out", &text(&merged), "--type", "f32"]);

    let base = Base::open(&base_text).unwrap();
    let adapter = adapter_files::load(&path("adapter"), &base.decoder.config).unwrap();
    let vocab = base.decoder.config.vocab_size;
    let ids = base.tokenizer.encode(prompt, true).unwrap();
    let server = Server::start(program, file, Some(&path("adapter/adapter.gguf")), scratch.path());
    let merged = Server::start(program, &merged, None, scratch.path());
    let mut worst = [0f32; 3];
    let mut effect = f32::INFINITY;
    for n in [1, ids.len() / 2, ids.len()] {
        let ids = &ids[..n];
        let (plain, tuned) = (own(&base, ids, None), own(&base, ids, Some(&adapter)));
        let found = [
            apart(&server.logprobs(ids, vocab, Some(0.0)), &plain),
            apart(&server.logprobs(ids, vocab, Some(1.0)), &tuned),
            apart(&merged.logprobs(ids, vocab, None), &tuned),
        ];
        worst = [0, 1, 2].map(|i| worst[i].max(found[i]));
        effect = effect.min(apart(&plain, &tuned));
    }
    println!(
        "{name}: base {:.1e}, with adapter {:.1e}, merged {:.1e} apart from llama.cpp over {vocab} tokens; base and adapter at least {effect:.2}",
        worst[0], worst[1], worst[2]
    );
    assert!(effect >= 1000.0 * TOLERANCE, "{name}: the adapter changes too little to prove anything: {effect}");
    assert!(worst.iter().all(|one| *one <= TOLERANCE), "{name}: {worst:?}");
}

#[test]
fn llama_cpp_gives_our_log_probabilities_with_our_adapter_and_our_merged_file() {
    let test = "llama_cpp_gives_our_log_probabilities_with_our_adapter_and_our_merged_file";
    let Some(program) = common::peer(test, "llama/bin/llama-server") else { return };
    let Some(data) = common::data(test) else { return };
    let file = data.join("models/stories260K/stories260K-f32.gguf");
    compare(&program, "stories260K", &file, "Once upon a time, there was a little girl named Lily. She had a ball.");
}
