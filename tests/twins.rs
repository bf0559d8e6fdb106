//! The fixtures of tests/parity in GGUF's clothes: the same model and the same adapter give the same logits from a Hugging
//! Face folder and from a GGUF file, in all four pairings. Rope base and norm epsilon are moved away from every default.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use retune::export::merge::{MergeType, merge};
use retune::formats::gguf::{GgmlType, Gguf, TensorSource, Value, Writer};
use retune::formats::safetensors::Tensors;
use retune::model::weights::Weights;
use retune::model::{Adapter, Decoder, ModelConfig, Module, Stream, Workspace, adapter_files};

const ROPE_BASE: f32 = 40_000.0;
const NORM_EPS: f32 = 0.02;

/// The fixture as a Hugging Face folder with our rope base and epsilon.
fn folder_base(family: &str, rope_base: f32, norm_eps: f32) -> Decoder {
    let base = common::root().join("tests/parity").join(family).join("base");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(base.join("config.json")).unwrap()).unwrap();
    json["rope_parameters"]["rope_theta"] = rope_base.into();
    json["rms_norm_eps"] = norm_eps.into();
    let config = ModelConfig::from_hf(&json, &base).unwrap();
    let weights = Weights::from_hf(&Tensors::open_folder(&base).unwrap(), &config, &base).unwrap();
    Decoder { config, weights }
}

/// Rows as llama.cpp's converter orders those of q and k: `[heads, 2, half]` becomes `[heads, half, 2]`.
fn interleaved(values: &[f32], cols: usize, heads: usize) -> Vec<f32> {
    let half = values.len() / cols / heads / 2;
    let rows = (0..heads).flat_map(|head| (0..half).flat_map(move |i| [(head * 2) * half + i, (head * 2 + 1) * half + i]));
    rows.flat_map(|row| &values[row * cols..(row + 1) * cols]).copied().collect()
}

/// Writes the fixture's weights as llama.cpp's converter would.
fn write_gguf(family: &str, config: &ModelConfig, path: &Path) {
    let base = common::root().join("tests/parity").join(family).join("base");
    let tensors = Tensors::open_folder(&base).unwrap();
    let name = config.architecture.name();
    let key = |suffix: &str| format!("{name}.{suffix}");
    let number = |n: usize| Value::U32(n as u32);
    let metadata = vec![
        ("general.architecture".to_owned(), Value::string(name)),
        (key("embedding_length"), number(config.hidden)),
        (key("feed_forward_length"), number(config.intermediate)),
        (key("block_count"), number(config.layers)),
        (key("context_length"), number(config.context_length)),
        (key("attention.head_count"), number(config.heads)),
        (key("attention.head_count_kv"), number(config.kv_heads)),
        (key("attention.key_length"), number(config.head_dim)),
        (key("attention.layer_norm_rms_epsilon"), Value::F32(NORM_EPS)),
        (key("rope.freq_base"), Value::F32(ROPE_BASE)),
    ];
    let mut names = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), "token_embd.weight".to_owned()),
        ("model.norm.weight".to_owned(), "output_norm.weight".to_owned()),
        ("lm_head.weight".to_owned(), "output.weight".to_owned()),
    ]);
    for layer in 0..config.layers {
        let (hf, gguf) = (format!("model.layers.{layer}"), format!("blk.{layer}"));
        names.insert(format!("{hf}.input_layernorm.weight"), format!("{gguf}.attn_norm.weight"));
        names.insert(format!("{hf}.post_attention_layernorm.weight"), format!("{gguf}.ffn_norm.weight"));
        for module in Module::ALL {
            for part in ["weight", "bias"] {
                names.insert(format!("{hf}.{}.{part}", module.hf_path()), format!("{gguf}.{}.{part}", module.gguf_name()));
            }
        }
    }
    let mut sources = Vec::new();
    for hf in tensors.names() {
        let shape = tensors.get(hf).unwrap().shape.clone();
        let mut values = tensors.f32(hf, &shape).unwrap();
        let cols = if shape.len() == 2 { shape[1] } else { 1 };
        let heads = if hf.contains("q_proj") { config.heads } else { config.kv_heads };
        if name == "llama" && (hf.contains("q_proj") || hf.contains("k_proj")) {
            values = interleaved(&values, cols, heads);
        }
        let bytes = Bytes::from(bytemuck::cast_slice::<f32, u8>(&values).to_vec());
        sources.push(TensorSource::new(names[hf].clone(), shape, GgmlType::F32, move || Ok(bytes)));
    }
    Writer::new(metadata).write(path, sources).unwrap();
}

fn logits(decoder: &Decoder, adapter: Option<&Adapter>) -> Vec<f32> {
    let ids: Vec<u32> = (0..40).map(|i| (i * 29 + 7) % decoder.config.vocab_size as u32).collect();
    let all: Vec<usize> = (0..ids.len()).collect();
    decoder.logits(&Stream::packed(&[&ids]), &all, adapter, &mut Workspace::default(), None)
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// `adapter_family` is the fixture whose adapter is taken.
fn twins_agree(family: &str, adapter_family: &str) {
    let scratch = tempfile::tempdir().unwrap();
    let folder = folder_base(family, ROPE_BASE, NORM_EPS);
    let path = scratch.path().join("base.gguf");
    write_gguf(family, &folder.config, &path);
    let gguf = Gguf::open(&path).unwrap();
    let config = ModelConfig::from_gguf(&gguf).unwrap();
    let weights = Weights::from_gguf(&gguf, &config).unwrap();
    let twin = Decoder { config, weights };

    let plain = logits(&folder, None);
    let difference = worst(&logits(&twin, None), &plain);
    assert!(difference < 1e-4, "{family}: the bases differ by {difference}");
    for (rope_base, norm_eps) in [(10_000.0, NORM_EPS), (1_000_000.0, NORM_EPS), (ROPE_BASE, 1e-5), (ROPE_BASE, 1e-6)] {
        let moved = worst(&logits(&folder_base(family, rope_base, norm_eps), None), &plain);
        assert!(moved > 1e-2, "{family}: rope base {rope_base} and epsilon {norm_eps} would go unseen ({moved})");
    }

    // The adapter: PEFT's folder, and what each base writes of it as GGUF and as PEFT, on both bases.
    let source = common::root().join("tests/parity").join(adapter_family).join("adapter");
    let expected = logits(&folder, Some(&adapter_files::load(&source, &folder.config).unwrap()));
    let moved = worst(&expected, &plain);
    assert!(moved > 0.1, "{family}: an adapter that changes nothing proves nothing ({moved})");
    let mut written = vec![source.clone()];
    for (n, base) in [&folder, &twin].into_iter().enumerate() {
        let adapter = adapter_files::load(&source, &base.config).unwrap();
        let (peft, file) = (scratch.path().join(format!("peft-{n}")), scratch.path().join(format!("{n}.gguf")));
        adapter_files::save_peft(&peft, &adapter, &base.config, None, 0.0).unwrap();
        let open = |folder: &Path| Tensors::open(&folder.join("adapter_model.safetensors")).unwrap();
        let (theirs, ours) = (open(&source), open(&peft));
        assert_eq!(theirs.names().len(), ours.names().len());
        for name in theirs.names() {
            let shape = &theirs.get(name).unwrap().shape;
            assert_eq!(theirs.f32(name, shape).unwrap(), ours.f32(name, shape).unwrap(), "{name} as PEFT wrote it");
        }
        written.push(peft);
        match adapter_files::save_gguf(&file, &adapter, &base.config) {
            Err(refusal) => assert!(adapter.spec.dora && refusal.to_string().contains("DoRA"), "{refusal}"),
            Ok(()) => {
                assert!(!adapter.spec.dora, "a GGUF adapter cannot say DoRA");
                written.push(file);
            }
        }
        // Merged and unmerged are one model.
        let merged = scratch.path().join(format!("merged-{n}.gguf"));
        let pairs = adapter_files::gguf_pairs(&adapter, &base.config);
        merge(&gguf, &pairs, adapter.spec.scale(), MergeType::Keep, &merged).unwrap();
        let gguf = Gguf::open(&merged).unwrap();
        let config = ModelConfig::from_gguf(&gguf).unwrap();
        let weights = Weights::from_gguf(&gguf, &config).unwrap();
        let difference = worst(&logits(&Decoder { config, weights }, None), &expected);
        assert!(difference < 1e-4, "{adapter_family}: merged, as base {n} has it, differs by {difference}");
    }
    for path in &written {
        for base in [&folder, &twin] {
            let adapter = adapter_files::load(path, &base.config).unwrap();
            let difference = worst(&logits(base, Some(&adapter)), &expected);
            let on = if std::ptr::eq(base, &twin) { "GGUF" } else { "folder" };
            assert!(difference < 1e-4, "{family}: {} on the {on} differs by {difference}", path.display());
        }
    }
    // All four files of one kind hold the same values, whichever base wrote them.
    let read = |name: &str| std::fs::read(scratch.path().join(name)).unwrap();
    if scratch.path().join("0.gguf").exists() {
        assert!(read("0.gguf") == read("1.gguf"), "{family}: the GGUF adapters of the two bases differ");
    }
    assert!(
        read("peft-0/adapter_model.safetensors") == read("peft-1/adapter_model.safetensors"),
        "{family}: PEFT folders differ"
    );
}

#[test]
fn llama_from_a_folder_and_from_gguf_is_one_model() {
    twins_agree("llama", "llama");
}

#[test]
fn qwen2_from_a_folder_and_from_gguf_is_one_model() {
    twins_agree("qwen2", "qwen2");
}

#[test]
fn a_dora_adapter_is_one_on_both_and_merged() {
    twins_agree("llama", "llama_dora");
    twins_agree("qwen2", "qwen2_dora");
}

#[test]
fn an_rslora_adapter_scales_by_the_root_of_its_rank_in_every_file() {
    let scratch = tempfile::tempdir().unwrap();
    let base = folder_base("llama", ROPE_BASE, NORM_EPS);
    let mut adapter = adapter_files::load(&common::root().join("tests/parity/llama/adapter"), &base.config).unwrap();
    let (rank, alpha) = (adapter.spec.rank as f32, adapter.spec.alpha);
    // The same function, said in two ways: alpha / rank, and as rsLoRA alpha' / sqrt(rank) with alpha' = alpha / sqrt(rank).
    let expected = logits(&base, Some(&adapter));
    adapter.spec.rslora = true;
    assert!(worst(&logits(&base, Some(&adapter)), &expected) > 0.1, "rsLoRA with the same alpha is another function");
    adapter.spec.alpha = alpha / rank.sqrt();
    assert!(worst(&logits(&base, Some(&adapter)), &expected) < 1e-4);
    let (peft, file) = (scratch.path().join("peft"), scratch.path().join("a.gguf"));
    adapter_files::save_peft(&peft, &adapter, &base.config, None, 0.0).unwrap();
    adapter_files::save_gguf(&file, &adapter, &base.config).unwrap();
    for path in [peft, file] {
        let loaded = adapter_files::load(&path, &base.config).unwrap();
        let difference = worst(&logits(&base, Some(&loaded)), &expected);
        assert!(difference < 1e-4, "{} differs by {difference}", path.display());
    }
}
