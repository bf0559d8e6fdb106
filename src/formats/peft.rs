//! PEFT folders: `adapter_config.json` and `adapter_model.safetensors`, as huggingface/peft writes and loads them.
//! Tensors here are in Hugging Face's names and row order.

use std::path::Path;

use crate::error::Result;

/// `adapter_config.json`, the part we understand. Unknown peft types, `bias` other than "none", and settings that
/// change the result (rank_pattern, alpha_pattern, modules_to_save, ...) are errors that name them where they are set.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftConfig {
    pub rank: usize,
    pub alpha: f32,
    pub rslora: bool,
    pub dora: bool,
    pub dropout: f32,
    /// `q_proj`, ... sorted as given.
    pub target_modules: Vec<String>,
    pub base_model: Option<String>,
}

/// One LoRA pair: `module` is like `model.layers.0.self_attn.q_proj`.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftPair {
    pub module: String,
    pub rank: usize,
    pub in_features: usize,
    pub out_features: usize,
    /// `[rank, in]`
    pub a: Vec<f32>,
    /// `[out, rank]`
    pub b: Vec<f32>,
}

/// Reads a folder; every pair complete, shapes consistent, finite values.
pub fn read(folder: &Path) -> Result<(PeftConfig, Vec<PeftPair>)> {
    let _ = folder;
    todo!()
}

/// Writes both files durably (tensors first, then the config), keys `base_model.model.<module>.lora_A.weight`.
pub fn write(folder: &Path, config: &PeftConfig, pairs: &[PeftPair]) -> Result<()> {
    let _ = (folder, config, pairs);
    todo!()
}
