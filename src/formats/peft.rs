//! PEFT folders: `adapter_config.json` and `adapter_model.safetensors`, as huggingface/peft writes and loads them.
//! Tensors here are in Hugging Face's names and row order.

mod config;
#[cfg(test)]
mod tests;

use std::path::Path;

use super::{durable, safetensors};
use crate::error::{Error, Result};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
/// What PEFT puts before the names of the base's modules.
const PREFIX: &str = "base_model.model.";

/// `adapter_config.json`, the part we understand. Unknown peft types, `bias` other than "none", and settings that
/// change the result (rank_pattern, alpha_pattern, modules_to_save, ...) are errors that name them where they are set.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftConfig {
    pub rank: usize,
    pub alpha: f32,
    pub rslora: bool,
    pub dora: bool,
    pub dropout: f32,
    /// `q_proj`, ... as given; where the file has a pattern ("all-linear"), the last parts of the pairs' modules.
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
    /// `[out]`, of every pair of a DoRA adapter and of no other.
    pub magnitude: Option<Vec<f32>>,
}

/// Reads a folder; every pair complete, shapes consistent, finite values. One error tells all tensors that are wrong.
pub fn read(folder: &Path) -> Result<(PeftConfig, Vec<PeftPair>)> {
    let config_path = folder.join(CONFIG);
    let text = std::fs::read(&config_path).map_err(Error::io("read", &config_path))?;
    let (mut config, targets) =
        config::parse(&text).map_err(|problem| Error::file(&config_path, problem.message, problem.hint))?;

    let tensors_path = folder.join(TENSORS);
    if !tensors_path.is_file() && folder.join("adapter_model.bin").is_file() {
        return Err(Error::file(
            folder,
            format!("holds adapter_model.bin, expected {TENSORS}"),
            "pickled weights can run code and are not read: save the adapter with safe_serialization=True",
        ));
    }
    let tensors = safetensors::Tensors::open(&tensors_path)?;
    let parts = find_parts(&tensors, &config).map_err(|problems| {
        let hint = "train LoRA on linear layers only (target_modules), at one rank, without modules_to_save";
        Error::file(&tensors_path, problems.join("; "), hint)
    })?;
    let mut pairs = Vec::with_capacity(parts.len());
    for Parts { module, a, b, magnitude } in parts {
        let ([rank, in_features], [out_features, _]) = (a.1, b.1);
        let (a, b) = (tensors.f32(a.0, &a.1)?, tensors.f32(b.0, &b.1)?);
        let magnitude = magnitude.map(|name| tensors.f32(name, &[out_features])).transpose()?;
        pairs.push(PeftPair { module: module.to_owned(), rank, in_features, out_features, a, b, magnitude });
    }
    config.target_modules = match targets {
        config::Targets::List(list) => list,
        config::Targets::Pattern => {
            let mut last: Vec<String> = Vec::new();
            for pair in &pairs {
                let name = pair.module.rsplit('.').next().unwrap_or_default();
                if !last.iter().any(|seen| seen == name) {
                    last.push(name.to_owned());
                }
            }
            last
        }
    };
    Ok((config, pairs))
}

/// Writes both files durably (tensors first, then the config), keys `base_model.model.<module>.lora_A.weight`, and of DoRA
/// `<module>.lora_magnitude_vector`. The folder is made where it is missing.
pub fn write(folder: &Path, config: &PeftConfig, pairs: &[PeftPair]) -> Result<()> {
    let fault = |message: String| Error::file(folder, message, "this is a fault of retune: please report it");
    let mut tensors = Vec::with_capacity(3 * pairs.len());
    for pair in pairs {
        let PeftPair { module, rank, in_features, out_features, a, b, magnitude } = pair;
        if *rank != config.rank {
            return Err(fault(format!("cannot hold the rank {rank} of {module} beside rank {} of the adapter", config.rank)));
        }
        if config.dora != magnitude.is_some() {
            return Err(fault(format!("cannot hold some layers with DoRA's magnitude and some without: {module}")));
        }
        tensors.push((format!("{PREFIX}{module}.lora_A.weight"), vec![*rank, *in_features], a.as_slice()));
        tensors.push((format!("{PREFIX}{module}.lora_B.weight"), vec![*out_features, *rank], b.as_slice()));
        if let Some(magnitude) = magnitude {
            tensors.push((format!("{PREFIX}{module}.lora_magnitude_vector"), vec![*out_features], magnitude.as_slice()));
        }
    }
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    // transformers refuses safetensors without this entry.
    safetensors::write_f32(&folder.join(TENSORS), &tensors, &[("format", "pt".to_owned())])?;
    durable::write(&folder.join(CONFIG), config::render(config).as_bytes())
}

/// The tensors of a module: name and shape of A and B, the name of the magnitude.
struct Parts<'a> {
    module: &'a str,
    a: (&'a str, [usize; 2]),
    b: (&'a str, [usize; 2]),
    magnitude: Option<&'a str>,
}

/// Puts the tensors of each module together by their names, in file order; or tells all that is wrong with them.
fn find_parts<'a>(tensors: &'a safetensors::Tensors, config: &PeftConfig) -> Result<Vec<Parts<'a>>, Vec<String>> {
    /// A, B, magnitude.
    type Found<'a> = [Option<(&'a str, &'a [usize])>; 3];
    let mut found: Vec<(&str, Found)> = Vec::new();
    let mut place = std::collections::HashMap::new();
    let mut problems = Vec::new();
    for name in tensors.names() {
        let shape = tensors.get(name).map_or(&[][..], |tensor| &tensor.shape);
        match parse_name(name) {
            Some((module, part)) if config.dora || part != Part::Magnitude => {
                let i = *place.entry(module).or_insert_with(|| {
                    found.push((module, [None; 3]));
                    found.len() - 1
                });
                if let Some((other, _)) = found[i].1[part as usize].replace((name, shape)) {
                    problems.push(format!("{name} and {other} are the same part of {module}"));
                }
            }
            _ => problems.push(format!("{name} {shape:?} is neither lora_A nor lora_B of a linear layer")),
        }
    }
    let mut all = Vec::with_capacity(found.len());
    for (module, [a, b, magnitude]) in found {
        match (a, b) {
            (Some((a, &[rank, in_features])), Some((b, &[out_features, rank_b]))) if rank == rank_b && rank == config.rank => {
                match magnitude {
                    None if config.dora => problems.push(format!("{module} has no lora_magnitude_vector, and this is DoRA")),
                    Some((name, shape)) if shape != [out_features] => {
                        problems.push(format!("{name} is {shape:?}, expected [{out_features}]"));
                    }
                    _ => {}
                }
                let magnitude = magnitude.map(|(name, _)| name);
                all.push(Parts { module, a: (a, [rank, in_features]), b: (b, [out_features, rank]), magnitude });
            }
            (Some((_, a)), Some((_, b))) => {
                let rank = config.rank;
                problems.push(format!(
                    "{module} has lora_A {a:?} and lora_B {b:?}, expected [{rank}, in] and [out, {rank}] as {CONFIG} says"
                ));
            }
            (None, _) => problems.push(format!("{module} has no lora_A")),
            (_, None) => problems.push(format!("{module} has no lora_B")),
        }
    }
    if all.is_empty() && problems.is_empty() {
        problems.push("holds no tensors".to_owned());
    }
    if problems.is_empty() { Ok(all) } else { Err(problems) }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    A,
    B,
    Magnitude,
}

/// Module and part of a tensor's name: `base_model.model.M.lora_A.weight` today; `M.lora_A.default.weight` where a
/// state dict was saved by hand with the adapter's name in it; without the prefix where mlx or diffusers wrote it.
fn parse_name(name: &str) -> Option<(&str, Part)> {
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    for (marker, part) in [(".lora_A.", Part::A), (".lora_B.", Part::B), (".lora_magnitude_vector", Part::Magnitude)] {
        if let Some((module, rest)) = name.split_once(marker) {
            let plain =
                part == Part::Magnitude || rest == "weight" || rest.strip_suffix(".weight").is_some_and(|n| !n.contains('.'));
            return (plain && !module.is_empty()).then_some((module, part));
        }
    }
    None
}
