//! Bases and adapters that are cut, hostile or of another kind: each is refused with what was found, what was expected and
//! the next step, and no folder is left behind.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{files, refused, retune_json, says};
use retune::formats::gguf::{Gguf, TensorSource, Value, Writer};
use retune::formats::safetensors::{Tensors, write_f32};
use serde_json::json;

const ROW: &str = "{\"instruction\":\"w3 w4\",\"output\":\"w5 w6 w7\"}\n";

fn path(p: &Path) -> &str {
    p.to_str().expect("UTF-8")
}

/// A scratch folder with rows in it.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("rows.jsonl"), ROW.repeat(3)).unwrap();
        Self { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn rows(&self) -> PathBuf {
        self.at("rows.jsonl")
    }

    /// A training that must be refused before it touches the disk.
    fn train(&self, base: &Path) -> String {
        let out = self.at("out");
        let message = refused(
            1,
            &[
                "train",
                "--template",
                "plain",
                "--max-steps",
                "2",
                "--base",
                path(base),
                "--data",
                path(&self.rows()),
                "--out",
                path(&out),
            ],
        );
        assert!(!out.exists(), "{message}: left {:?}", files(&out));
        message
    }

    fn gguf(&self, bytes: &[u8]) -> PathBuf {
        let file = self.at("base.gguf");
        fs::write(&file, bytes).unwrap();
        file
    }

    /// The demo's base with its metadata and tensors changed.
    fn rewritten(&self, change: impl FnOnce(&mut Vec<(String, Value)>, &mut Vec<TensorSource>)) -> PathBuf {
        let source = demo();
        let (writer, mut tensors) = source.copy();
        let mut metadata = writer.metadata;
        change(&mut metadata, &mut tensors);
        tensors.iter_mut().for_each(|t| (t.padding, t.size_bytes) = (None, None));
        let file = self.at("base.gguf");
        Writer::new(metadata).write(&file, tensors).unwrap();
        file
    }

    /// The llama fixture with a tokenizer of words w3..w96, `<s>` and `</s>`.
    fn folder(&self) -> PathBuf {
        let (from, to) = (common::root().join("tests/parity/llama/base"), self.at("base"));
        fs::create_dir_all(&to).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
        fs::write(to.join("tokenizer.json"), tokenizer(97).to_string()).unwrap();
        fs::write(to.join("tokenizer_config.json"), "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"add_bos_token\":true}")
            .unwrap();
        to
    }

    /// The same with a change to config.json.
    fn configured(&self, key: &str, value: serde_json::Value) -> PathBuf {
        let base = self.folder();
        let file = base.join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config[key] = value;
        fs::write(&file, config.to_string()).unwrap();
        base
    }
}

fn demo() -> Gguf {
    Gguf::open(&common::root().join("models/demo.gguf")).unwrap()
}

fn tokenizer(words: usize) -> serde_json::Value {
    let special = ["<unk>", "<s>", "</s>"];
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..words).map(|i| (special.get(i).map_or_else(|| format!("w{i}"), ToString::to_string), i.into())).collect();
    let added: Vec<_> = special.iter().enumerate().map(|(id, content)| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    })
}

/// Where the bytes of `needle` end in `bytes`.
fn behind(bytes: &[u8], needle: &str) -> usize {
    bytes.windows(needle.len()).position(|w| w == needle.as_bytes()).expect("it is there") + needle.len()
}

#[test]
fn the_folder_that_the_others_break_is_whole() {
    let place = Place::new();
    let loss =
        retune_json(&["loss", "--json", "--template", "plain", "--base", path(&place.folder()), "--data", path(&place.rows())]);
    // Three words and the end in each of three rows.
    assert_eq!(loss["trained_tokens"], 12);
    assert!(loss["loss"].as_f64().unwrap() > 1.0, "{loss}");
}

#[test]
fn a_cut_gguf_is_refused_wherever_it_is_cut() {
    let place = Place::new();
    let whole = fs::read(common::root().join("models/demo.gguf")).unwrap();
    let first_tensor = whole.len() - demo().tensors.iter().map(|t| t.size_bytes).sum::<usize>();
    for length in
        [0, 3, 4, 7, 8, 15, 20, 24, 30, 60, 500, 5000, first_tensor - 4096, first_tensor, whole.len() / 2, whole.len() - 1]
    {
        let message = place.train(&place.gguf(&whole[..length]));
        says(&message, &["base.gguf", "download or convert it again"]);
        assert!(
            ["cut", "cannot fit", "are left", "behind the end"].iter().any(|word| message.contains(word)),
            "{length}: {message}"
        );
    }
}

#[test]
fn a_hostile_gguf_is_refused_before_anything_of_its_size_is_made() {
    let place = Place::new();
    let whole = fs::read(common::root().join("models/demo.gguf")).unwrap();
    let patched = |at: usize, bytes: &[u8]| {
        let mut copy = whole.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        place.train(&place.gguf(&copy))
    };
    let huge = (1u64 << 60).to_le_bytes();
    says(&patched(8, &huge), &["1152921504606846976 tensors"]);
    says(&patched(16, &huge), &["1152921504606846976 metadata keys"]);
    says(&patched(24, &huge), &["a string of 1152921504606846976 bytes"]);
    says(&patched(8, &u64::MAX.to_le_bytes()), &["18446744073709551615 tensors"]);
    says(
        &patched(behind(&whole, "tokenizer.ggml.tokens") + 8, &huge),
        &["1152921504606846976 elements of tokenizer.ggml.tokens"],
    );
    says(&patched(0, b"GGML"), &["no GGUF file", "\"GGML\""]);
    says(&patched(4, &1u32.to_le_bytes()), &["version 1", "versions 2 and 3"]);
    // A tensor: name, dimensions (u32), each of them (u64), type (u32), offset (u64).
    let q = behind(&whole, "blk.1.attn_q.weight");
    says(&patched(q, &99u32.to_le_bytes()), &["blk.1.attn_q.weight", "99 dimensions"]);
    says(&patched(q + 4, &huge), &["blk.1.attn_q.weight"]);
    says(&patched(q + 4 + 16 + 4, &0u64.to_le_bytes()), &["overlapping tensors"]);
    says(&patched(q + 4 + 16 + 4, &(1u64 << 60).to_le_bytes()), &["blk.1.attn_q.weight", "behind the end"]);
}

#[test]
fn a_gguf_whose_metadata_cannot_be_true_is_refused() {
    let cases: [(&str, Value, &[&str]); 11] = [
        ("general.architecture", Value::string("mamba"), &["'mamba' is not supported", "llama", "qwen2"]),
        ("llama.attention.head_count", Value::U32(0), &["head"]),
        ("llama.attention.head_count_kv", Value::U32(5), &["cannot share 5 kv heads"]),
        ("llama.attention.key_length", Value::U64(1 << 60), &["the size of a head is 1152921504606846976"]),
        ("llama.block_count", Value::U32(u32::MAX), &["number of layers", "4294967295"]),
        ("llama.block_count", Value::U32(4096), &["is missing"]),
        ("llama.context_length", Value::U64(1 << 60), &["context length", "1152921504606846976"]),
        ("llama.embedding_length", Value::string("wide"), &["llama.embedding_length", "expected an integer"]),
        ("llama.feed_forward_length", Value::U32(7), &["ffn_gate.weight", "expected [7, "]),
        ("llama.rope.freq_base", Value::F32(0.0), &["rope base"]),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN), &["epsilon", "NaN"]),
    ];
    for (key, value, parts) in cases {
        let place = Place::new();
        let base = place.rewritten(|metadata, _| match metadata.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => metadata.push((key.to_owned(), value)),
        });
        says(&place.train(&base), parts);
    }
    let place = Place::new();
    let base = place.rewritten(|metadata, _| metadata.retain(|(key, _)| key != "llama.block_count"));
    says(&place.train(&base), &["llama.block_count", "missing"]);
    let base = place.rewritten(|_, tensors| tensors.retain(|t| t.name != "blk.2.ffn_up.weight"));
    says(&place.train(&base), &["blk.2.ffn_up.weight", "missing"]);
    let base = place.rewritten(|metadata, _| metadata.retain(|(key, _)| !key.starts_with("tokenizer.")));
    says(&place.train(&base), &["tokenizer"]);
    for key in ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"] {
        let base = place.rewritten(|metadata, _| {
            metadata.retain(|(k, _)| k != key);
            metadata.push((key.to_owned(), Value::U32(4_000_000)));
        });
        // llama.cpp warns of such an id and goes on without it; so may we, but never by reading past the embedding.
        let output = common::retune(&["loss", "--template", "plain", "--base", path(&base), "--data", path(&place.rows())]);
        if !output.status.success() {
            common::refusal(1, &output, key);
        }
    }
}

#[test]
fn a_vocabulary_larger_than_the_model_is_refused() {
    let place = Place::new();
    let base = place.rewritten(|metadata, _| {
        for (key, value) in metadata {
            if key == "tokenizer.ggml.tokens"
                && let Value::Array(_, items) = value
            {
                items.extend((0..9).map(|i| Value::string(format!("extra{i}"))));
            }
            if key == "tokenizer.ggml.token_type"
                && let Value::Array(_, items) = value
            {
                items.extend((0..9).map(|_| Value::I32(1)));
            }
        }
    });
    says(&place.train(&base), &["the tokenizer of", "tokens, the model has"]);
    let base = place.folder();
    fs::write(base.join("tokenizer.json"), tokenizer(120).to_string()).unwrap();
    says(&place.train(&base), &["has 120 tokens, the model has 97"]);
    // As many tokens as rows, but one of them has an id far behind.
    let mut holes = tokenizer(97);
    holes["model"]["vocab"]["w96"] = json!(5000);
    fs::write(base.join("tokenizer.json"), holes.to_string()).unwrap();
    says(&place.train(&base), &["has the id 5000, the model has the rows 0 to 96"]);
}

#[test]
fn a_cut_or_hostile_safetensors_file_is_refused() {
    let place = Place::new();
    let base = place.folder();
    let file = base.join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for length in [0, 7, 8, 100, 8 + header - 1, 8 + header, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..length]).unwrap();
        says(&place.train(&base), &["model.safetensors", "fetch or write it again"]);
    }
    for length in [1u64 << 60, u64::MAX, 200_000_000] {
        fs::write(&file, [&length.to_le_bytes()[..], &whole[8..]].concat()).unwrap();
        says(&place.train(&base), &["its header has", &length.to_string()]);
    }
    let with_header = |text: &str| {
        let bytes = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &[0; 64]].concat();
        fs::write(&file, bytes).unwrap();
        place.train(&base)
    };
    says(&with_header("[]"), &["header that is no JSON object"]);
    let one =
        r#"{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},"b":{"dtype":"F32","shape":[12],"data_offsets":[16,64]}}"#;
    says(&with_header(one), &["tensor b overlaps the tensor before it"]);
    let wide = r#"{"a":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,64]}}"#;
    says(&with_header(wide), &["tensor a", "overflows"]);
    let far = r#"{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,1152921504606846976]}}"#;
    says(&with_header(far), &["tensor a", "outside of the 64 bytes"]);
    let empty = r#"{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}"#;
    says(&with_header(empty), &["has no tensor model.layers.0.input_layernorm.weight", "it holds 1 tensors: a"]);
}

#[test]
fn a_folder_whose_files_do_not_fit_is_refused() {
    let cases: [(&str, serde_json::Value, &[&str]); 12] = [
        ("model_type", json!("mamba"), &["config.json", "'mamba' is not supported", "llama"]),
        ("hidden_size", json!(64), &["model.layers.0.input_layernorm.weight", "[48]", "expected [64]"]),
        ("intermediate_size", json!(64), &["mlp.gate_proj.weight", "[80, 48]", "expected [64, 48]"]),
        ("num_hidden_layers", json!(4), &["model.layers.3."]),
        ("num_hidden_layers", json!(1u64 << 60), &["number of layers"]),
        ("num_attention_heads", json!(0), &["'num_attention_heads' is 0"]),
        ("num_key_value_heads", json!(3), &["4 heads cannot share 3 kv heads"]),
        ("head_dim", json!(1u64 << 60), &["the size of a head is 1152921504606846976"]),
        ("vocab_size", json!("many"), &["'vocab_size' is \"many\", expected a whole number"]),
        ("intermediate_size", serde_json::Value::Null, &["'intermediate_size' is missing"]),
        ("hidden_act", json!("gelu"), &["'hidden_act' is \"gelu\""]),
        ("rope_parameters", json!({"rope_type": "yarn", "rope_theta": 1e4}), &["rope scaling 'yarn' is not supported"]),
    ];
    for (key, value, parts) in cases {
        let place = Place::new();
        says(&place.train(&place.configured(key, value)), parts);
    }
    let place = Place::new();
    let base = place.folder();
    fs::write(base.join("config.json"), "{\"model_type\": ").unwrap();
    says(&place.train(&base), &["config.json", "no valid JSON"]);
    fs::remove_file(base.join("config.json")).unwrap();
    says(&place.train(&base), &["config.json"]);
    let base = place.folder();
    fs::remove_file(base.join("tokenizer.json")).unwrap();
    says(&place.train(&base), &["no tokenizer", "tokenizer.json"]);
    fs::write(base.join("tokenizer.json"), "{\"model\": 3}").unwrap();
    says(&place.train(&base), &["tokenizer.json", "cannot be read as a tokenizer"]);
    let base = place.folder();
    fs::remove_file(base.join("model.safetensors")).unwrap();
    says(&place.train(&base), &["model.safetensors"]);
}

#[test]
fn nan_in_a_folder_s_weights_is_told_by_its_place_and_leaves_no_adapter() {
    let place = Place::new();
    let base = place.folder();
    let file = base.join("model.safetensors");
    let poisoned = |name: &str| {
        let tensors = Tensors::open(&common::root().join("tests/parity/llama/base/model.safetensors")).unwrap();
        let values: Vec<(String, Vec<usize>, Vec<f32>)> = tensors
            .names()
            .iter()
            .map(|n| {
                let shape = tensors.get(n).unwrap().shape.clone();
                let mut values = tensors.f32(n, &shape).unwrap();
                values.iter_mut().take(usize::from(*n == name)).for_each(|v| *v = f32::NAN);
                ((*n).to_owned(), shape, values)
            })
            .collect();
        let borrowed: Vec<_> = values.iter().map(|(n, s, v)| (n.clone(), s.clone(), v.as_slice())).collect();
        write_f32(&file, &borrowed, &[]).unwrap();
    };
    poisoned("model.layers.1.input_layernorm.weight");
    says(&place.train(&base), &["model.layers.1.input_layernorm.weight", "NaN"]);

    poisoned("model.layers.1.mlp.up_proj.weight");
    let (base, rows, out) = (path(&base).to_owned(), place.rows(), place.at("out"));
    let train = refused(
        1,
        &["train", "--template", "plain", "--max-steps", "2", "--base", &base, "--data", path(&rows), "--out", path(&out)],
    );
    says(&train, &["NaN", "up_proj of layer 1", "fetch it again"]);
    let left = files(&out);
    assert!(!left.iter().any(|name| name.starts_with("adapter") || name.ends_with(".partial")), "{left:?}");
    let loss = refused(1, &["loss", "--template", "plain", "--base", &base, "--data", path(&rows)]);
    says(&loss, &["the loss is not finite", "up_proj of layer 1"]);
    for temperature in ["0", "1"] {
        let answer =
            refused(1, &["generate", "--template", "plain", "--prompt", "w3", "--temperature", temperature, "--base", &base]);
        says(&answer, &["not finite", "up_proj of layer 1"]);
    }
}

#[test]
fn an_adapter_that_is_missing_cut_or_another_base_s_is_refused() {
    let place = Place::new();
    let (rows, gone) = (place.rows(), place.at("gone"));
    let loss = |adapter: &Path| refused(1, &["loss", "--base", "demo", "--data", path(&rows), "--adapter", path(adapter)]);
    says(&loss(&gone), &["gone", "check the path"]);
    let fixture = common::root().join("tests/parity/llama/adapter");
    says(&loss(&fixture), &["q_proj is for a layer of 48 -> 48 features, the base has", "the base that it was trained on"]);
    says(&loss(&common::root().join("tests/parity/qwen2/adapter")), &["the base that it was trained on"]);
    says(&loss(&common::root().join("models/demo.gguf")), &["no LoRA adapter"]);
    let empty = place.at("empty");
    fs::create_dir(&empty).unwrap();
    says(&loss(&empty), &["adapter_config.json"]);
    let copy = |name: &str| fs::copy(fixture.join(name), empty.join(name)).unwrap();
    copy("adapter_config.json");
    says(&loss(&empty), &["adapter_model.safetensors"]);
    copy("adapter_model.safetensors");
    let tensors = fs::read(empty.join("adapter_model.safetensors")).unwrap();
    fs::write(empty.join("adapter_model.safetensors"), &tensors[..tensors.len() - 10]).unwrap();
    says(&loss(&empty), &["adapter_model.safetensors", "fetch or write it again"]);
    let out = place.at("out");
    let message =
        refused(1, &["train", "--base", "demo", "--data", path(&rows), "--out", path(&out), "--init-adapter", path(&gone)]);
    says(&message, &["gone"]);
    assert!(!out.exists(), "{:?}", files(&out));
    let merged = place.at("merged.gguf");
    says(&refused(1, &["merge", "--base", "demo", "--adapter", path(&fixture), "--out", path(&merged)]), &["q_proj"]);
    says(
        &refused(2, &["merge", "--base", "demo", "--adapter", path(&fixture), "--out", path(&merged), "--type", "q9_9"]),
        &["q9_9", "q8_0"],
    );
    assert!(!merged.exists());
}

#[test]
fn a_base_that_is_not_there_is_looked_for_and_what_is_there_is_told() {
    let place = Place::new();
    let rows = place.rows();
    says(
        &refused(1, &["loss", "--base", "./nowhere/base.gguf", "--data", path(&rows)]),
        &["./nowhere/base.gguf", "no such base"],
    );
    says(&refused(1, &["loss", "--base", "nowhere.gguf", "--data", path(&rows)]), &["nowhere.gguf", "no such base"]);
    let tag = place.at("models/manifests/registry.ollama.ai/library/smollm2");
    fs::create_dir_all(&tag).unwrap();
    fs::write(tag.join("135m"), "{\"layers\":[]}").unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_retune"))
        .args(["loss", "--base", "smolm2:135m", "--data", path(&rows)])
        .env("OLLAMA_MODELS", place.at("models"))
        .env("HOME", place.at("home"))
        .output()
        .unwrap();
    says(&common::refusal(2, &output, "a tag with a slip"), &["no Ollama model 'smolm2:135m'", "there are smollm2:135m"]);
}
