//! Adapters in files: PEFT folders (Hugging Face's names and row order) and GGUF adapters (GGUF's), to and from the
//! row order of the base in memory.

use std::path::Path;

use retune_kernels::rope::RopeStyle;

use super::adapter::{Adapter, AdapterSpec, Module, Slot};
use super::config::{Architecture, ModelConfig};
use crate::error::{Error, Result};
use crate::formats::gguf::Gguf;
use crate::formats::gguf_adapter::{self, GgufPair};
use crate::formats::peft::{self, PeftConfig, PeftPair};
use crate::formats::row_order::{gguf_to_hf, hf_to_gguf};

/// Which order a file's rows of q and k have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    HuggingFace,
    Gguf,
}

/// Loads a PEFT folder or a GGUF adapter for a base.
pub fn load(path: &Path, config: &ModelConfig) -> Result<Adapter> {
    if path.is_dir() { load_peft(path, config) } else { load_gguf(path, config) }
}

fn load_peft(folder: &Path, config: &ModelConfig) -> Result<Adapter> {
    let (peft, pairs) = peft::read(folder)?;
    let found = |p: PeftPair| Found { name: p.module, rank: p.rank, a: p.a, b: p.b, magnitude: p.magnitude };
    assemble(
        folder,
        config,
        Rows::HuggingFace,
        pairs.into_iter().map(found).collect(),
        |targets| AdapterSpec { rank: peft.rank, alpha: peft.alpha, rslora: peft.rslora, dora: peft.dora, targets },
        |slot| slot.hf_module(),
    )
}

fn load_gguf(path: &Path, config: &ModelConfig) -> Result<Adapter> {
    let gguf = Gguf::open(path)?;
    let file = gguf_adapter::read(&gguf)?;
    if file.architecture != config.architecture.name() {
        return Err(Error::file(
            path,
            format!("the adapter is for '{}', the base is '{}'", file.architecture, config.architecture.name()),
            "use the adapter with the base that it was trained on",
        ));
    }
    let rank = file.pairs.first().map_or(0, |p| p.rank);
    // llama.cpp reads alpha 0 as "scale 1" (llama-adapter.h, get_scale).
    let alpha = if file.alpha == 0.0 { rank as f32 } else { file.alpha };
    let found = |p: GgufPair| Found { name: p.tensor, rank: p.rank, a: p.a, b: p.b, magnitude: p.magnitude };
    assemble(
        path,
        config,
        Rows::Gguf,
        file.pairs.into_iter().map(found).collect(),
        |targets| AdapterSpec { rank, alpha, rslora: false, dora: false, targets },
        |slot| slot.gguf_tensor(),
    )
}

/// A pair as a file names it.
struct Found {
    name: String,
    rank: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    magnitude: Option<Vec<f32>>,
}

fn assemble(
    path: &Path,
    config: &ModelConfig,
    rows: Rows,
    found: Vec<Found>,
    spec: impl Fn(Vec<Module>) -> AdapterSpec,
    name: impl Fn(&Slot) -> String,
) -> Result<Adapter> {
    let wrong = |what: String| Error::file(path, what, "use the adapter with the base that it was trained on");
    let everything = Adapter::zeros(config, spec(Module::ALL.to_vec()));
    let targets: Vec<Module> = Module::ALL
        .into_iter()
        .filter(|&m| everything.slots.iter().any(|s| s.module == m && found.iter().any(|f| f.name == name(s))))
        .collect();
    let mut adapter = Adapter::zeros(config, spec(targets));
    let mut taken = 0;
    for slot in adapter.slots.clone() {
        // A layer that the file leaves out keeps its zeros: it adds nothing, and can learn when training goes on.
        let Some(pair) = found.iter().find(|f| f.name == name(&slot)) else {
            if adapter.spec.dora {
                return Err(Error::file(
                    path,
                    format!("this DoRA adapter leaves out {}, and has that layer elsewhere", name(&slot)),
                    "retune reads DoRA of all blocks: train it again without layers_to_transform",
                ));
            }
            continue;
        };
        taken += 1;
        if pair.rank != adapter.spec.rank {
            return Err(wrong(format!("adapter rank {} in {}, expected {}", pair.rank, pair.name, adapter.spec.rank)));
        }
        if pair.a.len() != slot.a.len() || pair.b.len() != slot.b.len() {
            return Err(wrong(format!(
                "{} is for a layer of {} -> {} features, the base has {} -> {}",
                pair.name,
                pair.a.len() / pair.rank.max(1),
                pair.b.len() / pair.rank.max(1),
                slot.in_features,
                slot.out_features
            )));
        }
        let (mut b, mut magnitude) = (pair.b.clone(), pair.magnitude.clone().unwrap_or_default());
        for (values, cols) in [(&mut b, pair.rank), (&mut magnitude, 1)] {
            match rows {
                Rows::HuggingFace => from_hf(config, &slot, cols, values),
                Rows::Gguf => from_gguf(config, &slot, cols, values),
            }
        }
        let params = &mut *adapter.params;
        params[slot.a.clone()].copy_from_slice(&pair.a);
        params[slot.b.clone()].copy_from_slice(&b);
        params[slot.magnitude.clone()].copy_from_slice(&magnitude);
    }
    match found.iter().find(|f| !adapter.slots.iter().any(|s| name(s) == f.name)) {
        Some(stranger) => Err(wrong(format!("the adapter has {}, which the base has not", stranger.name))),
        None if taken == 0 => Err(wrong("the adapter holds no layer of this base".into())),
        None => Ok(adapter),
    }
}

/// Writes a PEFT folder (SPEC X1). `dropout` is what it was trained with, for whoever trains on with PEFT.
pub fn save_peft(folder: &Path, adapter: &Adapter, config: &ModelConfig, base_model: Option<&str>, dropout: f64) -> Result<()> {
    let spec = &adapter.spec;
    let pairs: Vec<PeftPair> = adapter
        .slots
        .iter()
        .map(|slot| {
            let (mut b, mut magnitude) = (adapter.params[slot.b.clone()].to_vec(), magnitude(adapter, slot));
            if is_interleaved(config, slot) {
                gguf_to_hf(&mut b, spec.rank, heads(config, slot));
                magnitude.iter_mut().for_each(|m| gguf_to_hf(m, 1, heads(config, slot)));
            }
            let a = adapter.params[slot.a.clone()].to_vec();
            PeftPair {
                module: slot.hf_module(),
                rank: spec.rank,
                in_features: slot.in_features,
                out_features: slot.out_features,
                a,
                b,
                magnitude,
            }
        })
        .collect();
    let peft = PeftConfig {
        rank: spec.rank,
        alpha: spec.alpha,
        rslora: spec.rslora,
        dora: spec.dora,
        dropout: dropout as f32,
        target_modules: spec.targets.iter().map(|m| m.hf_name().to_owned()).collect(),
        base_model: base_model.map(str::to_owned),
    };
    peft::write(folder, &peft, &pairs)
}

/// DoRA's magnitude of a layer, in the row order of the base in memory.
fn magnitude(adapter: &Adapter, slot: &Slot) -> Option<Vec<f32>> {
    adapter.spec.dora.then(|| adapter.params[slot.magnitude.clone()].to_vec())
}

/// The pairs in GGUF's names and row order: what a GGUF adapter holds, and what is merged into a GGUF file.
pub fn gguf_pairs(adapter: &Adapter, config: &ModelConfig) -> Vec<GgufPair> {
    let spec = &adapter.spec;
    let pair = |slot: &Slot| {
        let (mut b, mut magnitude) = (adapter.params[slot.b.clone()].to_vec(), magnitude(adapter, slot));
        if is_permuted_in_gguf(config, slot) && config.rope_style == RopeStyle::Half {
            hf_to_gguf(&mut b, spec.rank, heads(config, slot));
            magnitude.iter_mut().for_each(|m| hf_to_gguf(m, 1, heads(config, slot)));
        }
        GgufPair { tensor: slot.gguf_tensor(), rank: spec.rank, a: adapter.params[slot.a.clone()].to_vec(), b, magnitude }
    };
    adapter.slots.iter().map(pair).collect()
}

/// Writes a GGUF adapter (SPEC X2). The format knows no rsLoRA: alpha is written so that alpha / rank is the scale. It
/// cannot say DoRA at all: that is an error.
pub fn save_gguf(path: &Path, adapter: &Adapter, config: &ModelConfig) -> Result<()> {
    let alpha = adapter.spec.scale() * adapter.spec.rank as f32;
    gguf_adapter::write(path, config.architecture.name(), alpha, &gguf_pairs(adapter, config))
}

/// `values` are B (`cols` is the rank) or the magnitude (1).
fn from_hf(config: &ModelConfig, slot: &Slot, cols: usize, values: &mut [f32]) {
    if is_interleaved(config, slot) {
        hf_to_gguf(values, cols, heads(config, slot));
    }
}

fn from_gguf(config: &ModelConfig, slot: &Slot, cols: usize, values: &mut [f32]) {
    if is_permuted_in_gguf(config, slot) && config.rope_style == RopeStyle::Half {
        gguf_to_hf(values, cols, heads(config, slot));
    }
}

/// Whether llama.cpp's converter permutes this layer's rows: q and k of the llama architecture.
fn is_permuted_in_gguf(config: &ModelConfig, slot: &Slot) -> bool {
    config.architecture == Architecture::Llama && matches!(slot.module, Module::Q | Module::K)
}

/// Whether the base in memory has this layer's rows in the permuted order.
fn is_interleaved(config: &ModelConfig, slot: &Slot) -> bool {
    is_permuted_in_gguf(config, slot) && config.rope_style == RopeStyle::Interleaved
}

fn heads(config: &ModelConfig, slot: &Slot) -> usize {
    if slot.module == Module::Q { config.heads } else { config.kv_heads }
}
