//! stories260K, a truly pretrained small llama: golden ids, logits and text, from the Hugging Face folder and from its GGUF.

mod common;

use common::retune_json;
use retune::base::Base;
use retune::model::{Stream, Workspace};

fn bases(test: &str) -> Option<[String; 2]> {
    let folder = common::data(test)?.join("models/stories260K");
    Some([folder.to_string_lossy().into_owned(), folder.join("stories260K-f32.gguf").to_string_lossy().into_owned()])
}

fn golden(base: &str) -> serde_json::Value {
    let path = std::path::Path::new(base);
    let folder = if path.is_dir() { path } else { path.parent().unwrap() };
    serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap()
}

#[test]
fn folder_and_gguf_give_the_golden_ids_and_logits() {
    let Some(bases) = bases("folder_and_gguf_give_the_golden_ids_and_logits") else { return };
    for name in bases {
        let (base, golden) = (Base::open(&name).unwrap(), golden(&name));
        let ids = base.tokenizer.encode(golden["prompt"].as_str().unwrap(), true).unwrap();
        let expected: Vec<u32> = golden["ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
        assert_eq!(ids, expected, "{name}");
        let logits = base.decoder.logits(&Stream::packed(&[&ids]), &[ids.len() - 1], None, &mut Workspace::default(), None);
        for (i, expected) in golden["last_logits_first16"].as_array().unwrap().iter().enumerate() {
            let error = (f64::from(logits[i]) - expected.as_f64().unwrap()).abs();
            assert!(error < 1e-4, "{name}: logit {i} is off by {error}");
        }
    }
}

#[test]
fn folder_and_gguf_speak_the_golden_text() {
    let Some(bases) = bases("folder_and_gguf_speak_the_golden_text") else { return };
    for name in bases {
        let golden = golden(&name);
        let ids: Vec<u64> = golden["greedy_from_bos_200"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect();
        let n = ids.len().to_string();
        let out = retune_json(&["generate", "--base", &name, "--raw", "--json", "--max-tokens", &n, "--prompt", ""]);
        let found: Vec<u64> = out["ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect();
        assert_eq!(found, ids, "{name}");
        assert_eq!(out["text"].as_str().unwrap().trim_start(), golden["greedy_text"].as_str().unwrap(), "{name}");
    }
}
