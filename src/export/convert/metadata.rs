//! What a file says of its model, in the order of llama.cpp's converter (conversion/base.py: `prepare_metadata`,
//! `set_gguf_parameters`; conversion/llama.py).

use std::path::Path;

use serde_json::Value as Json;

use crate::error::{Error, Result};
use crate::formats::gguf::{GgmlType, Value};
use crate::model::{Architecture, ModelConfig, RopeScaling};

type Keys = Vec<(String, Value)>;

/// All keys but the tokenizer's. `weights`: how many numbers the file's tensors hold.
pub fn model(
    folder: &Path,
    name: &str,
    json: &Json,
    config: &ModelConfig,
    rope: &RopeScaling,
    weights: usize,
    asked: GgmlType,
) -> Result<Keys> {
    let architecture = config.architecture.name();
    let mut keys = Keys::new();
    let mut put = |key: String, value: Value| keys.push((key, value));
    put("general.architecture".to_owned(), Value::string(architecture));
    put("general.type".to_owned(), Value::string("model"));
    for (key, value) in sampling(folder)? {
        put(format!("general.sampling.{key}"), value);
    }
    put("general.name".to_owned(), Value::string(name));
    put("general.size_label".to_owned(), Value::string(size_label(weights)));

    let number = |n: usize| Value::U32(n as u32);
    let mut put_own = |key: &str, value: Value| put(format!("{architecture}.{key}"), value);
    put_own("block_count", number(config.layers));
    put_own("context_length", number(config.context_length));
    put_own("embedding_length", number(config.hidden));
    put_own("feed_forward_length", number(config.intermediate));
    put_own("attention.head_count", number(config.heads));
    put_own("attention.head_count_kv", number(config.kv_heads));
    put_own("rope.freq_base", Value::F32(rope.theta));
    put_own("attention.layer_norm_rms_epsilon", Value::F32(config.norm_eps));
    // transformers' class for llama fills `head_dim` in, the one for qwen2 does not know it.
    let is_llama = config.architecture == Architecture::Llama;
    if is_llama || json.get("head_dim").is_some_and(|v| !v.is_null()) {
        put_own("attention.key_length", number(config.head_dim));
        put_own("attention.value_length", number(config.head_dim));
    }
    put("general.file_type".to_owned(), Value::U32(file_type(asked)));
    let mut put_own = |key: &str, value: Value| put(format!("{architecture}.{key}"), value);
    if is_llama {
        put_own("vocab_size", number(config.vocab_size));
        put_own("rope.dimension_count", number(config.head_dim));
    }
    put("general.quantization_version".to_owned(), Value::U32(2));
    Ok(keys)
}

/// How the publisher samples: generation_config.json (gguf-py, metadata.py).
fn sampling(folder: &Path) -> Result<Vec<(&'static str, Value)>> {
    let path = folder.join("generation_config.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", &path)(e)),
    };
    let json: Json =
        serde_json::from_str(&text).map_err(|e| Error::file(&path, format!("is no valid JSON: {e}"), "fetch the file again"))?;
    let float = |key: &str| json.get(key).and_then(Json::as_f64).map(|x| Value::F32(x as f32));
    let found = [
        ("top_k", json.get("top_k").and_then(Json::as_i64).and_then(|n| i32::try_from(n).ok()).map(Value::I32)),
        ("top_p", float("top_p")),
        ("min_p", float("min_p")),
        ("temp", float("temperature")),
        ("penalty_repeat", float("repetition_penalty")),
    ];
    Ok(found.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
}

/// `260K`, `1.2B`: two digits at least (gguf-py, utility.py, `model_weight_count_rounded_notation`).
fn size_label(weights: usize) -> String {
    let (scaled, suffix) = match weights as f64 {
        n if n > 1e12 => (n * 1e-12, "T"),
        n if n > 1e9 => (n * 1e-9, "B"),
        n if n > 1e6 => (n * 1e-6, "M"),
        n => (n * 1e-3, "K"),
    };
    // Python rounds halves to even, and a lone 0 has no digits.
    let digits = match scaled.round_ties_even() as u64 {
        0 => 0,
        n => n.to_string().len(),
    };
    format!("{scaled:.*}{suffix}", 2usize.saturating_sub(digits))
}

/// llama.h, `llama_ftype`: of the mixes, the one that is mostly this type.
fn file_type(asked: GgmlType) -> u32 {
    match asked {
        GgmlType::F32 => 0,
        GgmlType::Q4_0 => 2,
        GgmlType::Q4_1 => 3,
        GgmlType::Q8_0 => 7,
        GgmlType::Q5_0 => 8,
        GgmlType::Q5_1 => 9,
        GgmlType::Q2_K => 10,
        GgmlType::Q3_K => 11,
        GgmlType::Q4_K => 14,
        GgmlType::Q5_K => 16,
        GgmlType::Q6_K => 18,
        GgmlType::BF16 => 32,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_as_gguf_py_tells_them() {
        for (weights, label) in [
            (260_032, "260K"),
            (596, "0.6K"),
            (300, "0.30K"),
            (1_235_814_400, "1.2B"),
            (134_515_008, "135M"),
            (9_500_000, "10M"),
            (70_553_706_496, "71B"),
            (99_999, "100K"),
        ] {
            assert_eq!(size_label(weights), label, "{weights}");
        }
    }
}
