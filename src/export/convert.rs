//! A Hugging Face folder as a GGUF file, as llama.cpp's `convert_hf_to_gguf.py` writes it: the same tensors in the same order
//! with the same bytes, and the metadata that a loader reads. What is other on purpose: the name (general.name) is the folder's
//! or the hub's and nothing is guessed from it, nothing is read from README.md, and see `text::tokenizer::to_gguf`.

mod metadata;

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use rayon::prelude::*;
use retune_kernels::DType;
use safetensors::Dtype;
use serde::Serialize;
use serde_json::Value as Json;

pub use super::types::ConvertType;
use super::types::fitting;
use crate::error::{Error, Result};
use crate::formats::gguf::{GgmlType, TensorSource, Writer};
use crate::formats::row_order;
use crate::formats::safetensors::{RawTensor, Tensors};
use crate::model::weights::Weights;
use crate::model::{Architecture, ModelConfig, Module, RopeScaling};
use crate::text::template::Template;
use crate::text::tokenizer::to_gguf;

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConvertReport {
    pub tensors: usize,
    /// How matrices are stored (`BF16`).
    #[serde(rename = "type")]
    pub ggml_type: String,
    /// What a user should know, a sentence each.
    pub notes: Vec<String>,
}

/// Writes a folder's model durably to `out`. `name` is what people call it. Whatever the loader refuses (an architecture that
/// is not known, missing tensors, wrong shapes) is refused here, and so are NaN, infinity, values that the type cannot hold,
/// tensors that the architecture has no place for, and a vocabulary that would be served other ids.
pub fn convert(folder: &Path, name: &str, convert_type: ConvertType, out: &Path) -> Result<ConvertReport> {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let json: Json = serde_json::from_str(&text)
        .map_err(|e| Error::file(&path, format!("no valid JSON: {e}"), "mend the file, or fetch the model again"))?;
    let config = ModelConfig::from_hf(&json, &path)?;
    let tensors = Tensors::open_folder(folder)?;
    Weights::from_hf(&tensors, &config, folder)?;
    let rope = RopeScaling::from_hf(&json, &path, config.head_dim)?;
    let plan = Plan { folder, asked: resolve(convert_type, &tensors), config: &config, tensors: &tensors };
    let placed = plan.place()?;

    let vocabulary = to_gguf(folder, config.vocab_size)?;
    let weights: usize = placed.iter().map(|p| p.shape.iter().product::<usize>()).sum();
    let weights = weights + rope.divisors.as_ref().map_or(0, Vec::len);
    let mut metadata = metadata::model(folder, name, &json, &config, &rope, weights, plan.asked)?;
    metadata.extend(vocabulary.metadata);
    if let Some(template) = Template::from_folder(folder, &vocabulary.tokenizer)?
        && let Some(source) = template.source()
    {
        metadata.push(("tokenizer.chat_template".to_owned(), crate::formats::gguf::Value::string(source)));
    }

    let mut sources = Vec::new();
    if let Some(divisors) = &rope.divisors {
        let bytes = Bytes::from(bytemuck::cast_slice::<f32, u8>(divisors).to_vec());
        sources.push(TensorSource::new("rope_freqs.weight", [divisors.len()], GgmlType::F32, move || Ok(bytes)));
    }
    let plan = &plan;
    for place in &placed {
        sources.push(TensorSource::new(place.gguf_name.clone(), place.shape.clone(), place.ggml_type, || plan.bytes(place)));
    }
    let report = ConvertReport { tensors: sources.len(), ggml_type: plan.asked.name(), notes: plan.notes(&placed) };
    Writer::new(metadata).write(out, sources)?;
    Ok(report)
}

/// The type that `convert_type` means for a folder, by its name: `bf16`.
pub fn type_name(folder: &Path, convert_type: ConvertType) -> Result<String> {
    Ok(resolve(convert_type, &Tensors::open_folder(folder)?).name().to_lowercase())
}

/// The first matrix in 16 bits says what `auto` is (conversion/base.py, `LlamaFileType.GUESSED`).
fn resolve(convert_type: ConvertType, tensors: &Tensors) -> GgmlType {
    if let ConvertType::To(asked) = convert_type {
        return asked;
    }
    let guess = |name: &str| match tensors.get(name) {
        Some(tensor) if tensor.shape.len() < 2 => None,
        Some(tensor) if tensor.dtype == Dtype::BF16 => Some(GgmlType::BF16),
        Some(tensor) if tensor.dtype == Dtype::F16 => Some(GgmlType::F16),
        _ => None,
    };
    tensors.names_by_shard().into_iter().find_map(guess).unwrap_or(GgmlType::F16)
}

/// One tensor of the file.
struct Place {
    hf_name: String,
    gguf_name: String,
    /// Row-major.
    shape: Vec<usize>,
    ggml_type: GgmlType,
    /// Another type was asked for.
    instead_of: Option<GgmlType>,
    /// Rows of a head, where those are interleaved.
    head_rows: Option<usize>,
}

struct Plan<'a> {
    folder: &'a Path,
    asked: GgmlType,
    config: &'a ModelConfig,
    tensors: &'a Tensors,
}

impl Plan<'_> {
    /// Every tensor of the folder with its place in the file, in the converter's order.
    fn place(&self) -> Result<Vec<Place>> {
        let names = gguf_names(self.config);
        let mut placed = Vec::new();
        let mut strange = Vec::new();
        for hf_name in self.tensors.names_by_shard() {
            let Some((gguf_name, module)) = names.get(hf_name) else {
                // The first are computed, not learnt; of a tied head the embedding is all there is.
                let computed = [".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"]
                    .iter()
                    .any(|end| hf_name.ends_with(end));
                let tied = self.config.tied_head && hf_name == "lm_head.weight";
                if !computed && !tied {
                    strange.push(hf_name);
                }
                continue;
            };
            let shape = self.tensors.get(hf_name).map(|t| t.shape.clone()).unwrap_or_default();
            let (ggml_type, instead_of) = self.stored_as(gguf_name, &shape);
            let interleaved = self.config.architecture == Architecture::Llama && matches!(module, Some(Module::Q | Module::K));
            placed.push(Place {
                hf_name: hf_name.to_owned(),
                gguf_name: gguf_name.clone(),
                shape,
                ggml_type,
                instead_of,
                head_rows: interleaved.then_some(self.config.head_dim),
            });
        }
        if strange.is_empty() {
            return Ok(placed);
        }
        strange.truncate(5);
        Err(Error::file(
            self.folder,
            format!(
                "has tensors that the {} architecture has no place for: {}",
                self.config.architecture.name(),
                strange.join(", ")
            ),
            "a file without them would be another model; take a base of this architecture as it was published",
        ))
    }

    /// Norms and vectors are f32; rows that do not fit the blocks fall back; below 8 bits the head is kept finer, as
    /// llama-quantize does (src/llama-quant.cpp, `llama_tensor_get_type`).
    fn stored_as(&self, gguf_name: &str, shape: &[usize]) -> (GgmlType, Option<GgmlType>) {
        if shape.len() < 2 || gguf_name.ends_with("_norm.weight") {
            return (GgmlType::F32, None);
        }
        let cols = shape[1];
        let head = if self.config.tied_head { "token_embd.weight" } else { "output.weight" };
        let coarse = !matches!(self.asked, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::Q8_0);
        let asked = if coarse && gguf_name == head { GgmlType::Q6_K } else { self.asked };
        let stored = fitting(asked, cols);
        (stored, (stored != asked).then_some(asked))
    }

    fn notes(&self, placed: &[Place]) -> Vec<String> {
        let mut counts: Vec<((GgmlType, GgmlType), usize)> = Vec::new();
        for place in placed {
            let Some(asked) = place.instead_of else { continue };
            match counts.iter_mut().find(|(key, _)| *key == (asked, place.ggml_type)) {
                Some(known) => known.1 += 1,
                None => counts.push(((asked, place.ggml_type), 1)),
            }
        }
        let say =
            |((asked, stored), n)| format!("{n} tensors are stored as {stored}: their rows do not fit the blocks of {asked}");
        counts.into_iter().map(say).collect()
    }

    /// The bytes of one tensor, made a few rows at a time.
    fn bytes(&self, place: &Place) -> Result<Bytes> {
        const CHUNK_VALUES: usize = 1 << 18;
        let missing = || Error::file(self.folder, format!("the tensor {} is gone", place.hf_name), "fetch the model again");
        let tensor = self.tensors.get(&place.hf_name).ok_or_else(missing)?;
        let &[_, cols] = place.shape.as_slice() else {
            let values = self.tensors.f32(&place.hf_name, &place.shape)?;
            return Ok(Bytes::from(bytemuck::cast_slice::<f32, u8>(&values).to_vec()));
        };
        let dtype = place.ggml_type.dtype().unwrap_or(DType::F32);
        let row_bytes = dtype.row_bytes(cols).unwrap_or(0);
        let chunk_rows = place.head_rows.unwrap_or_else(|| (CHUNK_VALUES / cols.max(1)).max(1));
        let mut out = vec![0; place.ggml_type.size_bytes(&place.shape).unwrap_or(0)];
        out.par_chunks_mut((chunk_rows * row_bytes).max(1)).enumerate().try_for_each(|(chunk, out)| {
            let first = chunk * chunk_rows;
            let rows = out.len() / row_bytes;
            let mut values = self.rows(place, tensor, first, rows, cols)?; // [rows, cols]
            if place.head_rows.is_some() {
                row_order::hf_to_gguf(&mut values, cols, 1);
            }
            let made = retune_kernels::quantize(dtype, &values, cols).map_err(|problem| {
                Error::file(
                    self.folder,
                    format!("tensor {}, rows from {first} on: {problem}", place.hf_name),
                    "choose another --type",
                )
            })?;
            out.copy_from_slice(&made);
            Ok(())
        })?;
        Ok(Bytes::from(out))
    }

    /// Rows of a matrix as f32. Errors: NaN, infinity.
    fn rows(&self, place: &Place, tensor: &RawTensor, first: usize, rows: usize, cols: usize) -> Result<Vec<f32>> {
        let row_bytes = tensor.data.len() / place.shape[0].max(1);
        let data = tensor.data.slice(first * row_bytes..(first + rows) * row_bytes);
        let part = RawTensor { dtype: tensor.dtype, shape: vec![rows, cols], data };
        let values = part.to_f32().unwrap_or_default();
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(at) => Err(Error::file(
                self.folder,
                format!("tensor {} holds {} in row {}", place.hf_name, values[at], first + at / cols),
                "the weights are broken (a training that diverged?): take another version of them",
            )),
        }
    }
}

/// Hugging Face's names, each with GGUF's (gguf-py, tensor_mapping.py) and the linear layer that it is of.
fn gguf_names(config: &ModelConfig) -> HashMap<String, (String, Option<Module>)> {
    let mut names = HashMap::new();
    let mut add = |hf: String, gguf: String, module| drop(names.insert(hf, (gguf, module)));
    add("model.embed_tokens.weight".to_owned(), "token_embd.weight".to_owned(), None);
    add("model.norm.weight".to_owned(), "output_norm.weight".to_owned(), None);
    if !config.tied_head {
        add("lm_head.weight".to_owned(), "output.weight".to_owned(), None);
    }
    for layer in 0..config.layers {
        let (hf, gguf) = (format!("model.layers.{layer}"), format!("blk.{layer}"));
        for (from, to) in [("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")] {
            add(format!("{hf}.{from}.weight"), format!("{gguf}.{to}.weight"), None);
        }
        for module in Module::ALL {
            add(format!("{hf}.{}.weight", module.hf_path()), format!("{gguf}.{}.weight", module.gguf_name()), Some(module));
            if config.qkv_bias && matches!(module, Module::Q | Module::K | Module::V) {
                add(format!("{hf}.{}.bias", module.hf_path()), format!("{gguf}.{}.bias", module.gguf_name()), Some(module));
            }
        }
    }
    names
}
