//! The frozen weights of a base, kept as its files store them.

use std::path::Path;
use std::sync::OnceLock;

use retune_kernels::{DType, Weight};

use super::adapter::Module;
use super::config::ModelConfig;
use crate::error::{Error, Result};
use crate::formats::gguf::Gguf;
use crate::formats::safetensors::Tensors;

/// A linear layer.
#[derive(Clone)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Weight,
    /// `[out]`
    pub bias: Option<Vec<f32>>,
    row_squares: OnceLock<Vec<f64>>,
}

impl Linear {
    /// The squared norm of each row of the weight, `[out]`; computed when it is first asked for.
    pub fn row_squares(&self) -> &[f64] {
        self.row_squares.get_or_init(|| self.weight.row_squares())
    }
}

/// One block: norms `[hidden]`, and the seven linear layers in the order of [`Module::ALL`].
#[derive(Clone)]
pub struct Block {
    pub attention_norm: Vec<f32>,
    pub mlp_norm: Vec<f32>,
    linears: [Linear; 7],
}

impl Block {
    pub fn linear(&self, module: Module) -> &Linear {
        &self.linears[module as usize]
    }
}

/// All of a model.
#[derive(Clone)]
pub struct Weights {
    /// `[vocab, hidden]`
    pub embedding: Weight,
    pub blocks: Vec<Block>,
    /// `[hidden]`
    pub final_norm: Vec<f32>,
    head: Option<Weight>,
}

impl Weights {
    /// `[vocab, hidden]`: the head, or the embedding where they are tied.
    pub fn head(&self) -> &Weight {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes of all matrices as stored.
    pub fn size_bytes(&self) -> usize {
        let blocks: usize = self.blocks.iter().flat_map(|b| &b.linears).map(|l| l.weight.size_bytes()).sum();
        blocks + self.embedding.size_bytes() + self.head.as_ref().map_or(0, Weight::size_bytes)
    }

    /// How most of the linear layers are stored, for people ("Q4_1").
    pub fn dtype_name(&self) -> String {
        match self.blocks.first().map(|b| b.linear(Module::Q).weight.dtype()) {
            Some(DType::Quant(q)) => format!("{q:?}"),
            Some(other) => format!("{other:?}"),
            None => String::new(),
        }
    }

    /// The first weight that is NaN or infinite, by its role: what to tell when a base gives no finite loss.
    pub fn find_non_finite(&self) -> Option<String> {
        let bad = |values: &[f32]| values.iter().any(|v| !v.is_finite());
        for (n, block) in self.blocks.iter().enumerate() {
            if bad(&block.attention_norm) || bad(&block.mlp_norm) {
                return Some(format!("a norm of layer {n}"));
            }
            for module in Module::ALL {
                let linear = block.linear(module);
                if bad(&linear.weight.to_f32()) || linear.bias.as_deref().is_some_and(bad) {
                    return Some(format!("{} of layer {n}", module.hf_name()));
                }
            }
        }
        let rest = [
            ("the final norm", bad(&self.final_norm)),
            ("the embedding", bad(&self.embedding.to_f32())),
            ("the head", bad(&self.head().to_f32())),
        ];
        rest.into_iter().find(|(_, is_bad)| *is_bad).map(|(name, _)| name.to_owned())
    }

    /// From safetensors in Hugging Face's names.
    pub fn from_hf(tensors: &Tensors, config: &ModelConfig, path: &Path) -> Result<Self> {
        load(&HfStore { tensors, path }, config)
    }

    /// From a GGUF file; matrices stay slices of its memory map.
    pub fn from_gguf(gguf: &Gguf, config: &ModelConfig) -> Result<Self> {
        load(&GgufStore { gguf }, config)
    }
}

/// Where tensors come from, and what they are called there.
trait Store {
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Weight>;
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>>;
    fn block(&self, layer: usize, part: &str) -> String;
    /// The names of embedding, final norm and head.
    fn top(&self) -> [&'static str; 3];
    /// The names of the two norms inside a block.
    fn norms(&self) -> [&'static str; 2];
    fn module(&self, module: Module) -> &'static str;
}

fn load(store: &dyn Store, config: &ModelConfig) -> Result<Weights> {
    let [embedding, final_norm, head] = store.top();
    let mut blocks = Vec::with_capacity(config.layers);
    for layer in 0..config.layers {
        let linear = |module: Module| -> Result<Linear> {
            let (out_features, in_features) = module.shape(config);
            let name = store.block(layer, store.module(module));
            let has_bias = config.qkv_bias && matches!(module, Module::Q | Module::K | Module::V);
            Ok(Linear {
                weight: store.matrix(&format!("{name}.weight"), out_features, in_features)?,
                bias: if has_bias { Some(store.vector(&format!("{name}.bias"), out_features)?) } else { None },
                row_squares: OnceLock::new(),
            })
        };
        let [attention_norm, mlp_norm] = store.norms();
        let [q, k, v, o, gate, up, down] = Module::ALL;
        blocks.push(Block {
            attention_norm: store.vector(&format!("{}.weight", store.block(layer, attention_norm)), config.hidden)?,
            mlp_norm: store.vector(&format!("{}.weight", store.block(layer, mlp_norm)), config.hidden)?,
            linears: [linear(q)?, linear(k)?, linear(v)?, linear(o)?, linear(gate)?, linear(up)?, linear(down)?],
        });
    }
    Ok(Weights {
        embedding: store.matrix(embedding, config.vocab_size, config.hidden)?,
        blocks,
        final_norm: store.vector(final_norm, config.hidden)?,
        head: if config.tied_head { None } else { Some(store.matrix(head, config.vocab_size, config.hidden)?) },
    })
}

struct HfStore<'a> {
    tensors: &'a Tensors,
    path: &'a Path,
}

impl Store for HfStore<'_> {
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        use safetensors::Dtype;
        let tensor = self.tensors.get(name).ok_or_else(|| missing(self.path, name))?;
        if tensor.shape != [rows, cols] {
            return Err(wrong_shape(self.path, name, &tensor.shape, &[rows, cols]));
        }
        let dtype = match tensor.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(Error::file(
                    self.path,
                    format!("the tensor {name} is stored as {other:?}"),
                    "retune reads F32, F16 and BF16 safetensors; for quantised weights use a GGUF file",
                ));
            }
        };
        Weight::from_bytes(dtype, rows, cols, tensor.data.clone())
            .map_err(|e| Error::file(self.path, format!("the tensor {name}: {e}"), "fetch the file again"))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.tensors.f32(name, &[len])
    }

    fn block(&self, layer: usize, part: &str) -> String {
        format!("model.layers.{layer}.{part}")
    }

    fn top(&self) -> [&'static str; 3] {
        ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    }

    fn norms(&self) -> [&'static str; 2] {
        ["input_layernorm", "post_attention_layernorm"]
    }

    fn module(&self, module: Module) -> &'static str {
        module.hf_path()
    }
}

struct GgufStore<'a> {
    gguf: &'a Gguf,
}

impl Store for GgufStore<'_> {
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        let path = self.gguf.path.as_path();
        let info = self.gguf.tensor(name).ok_or_else(|| missing(path, name))?;
        if info.shape != [rows, cols] {
            return Err(wrong_shape(path, name, &info.shape, &[rows, cols]));
        }
        let dtype = info.ggml_type.dtype().ok_or_else(|| {
            Error::file(
                path,
                format!("the tensor {name} is stored as {}, which retune cannot compute with", info.ggml_type),
                "use a base in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 or Q2_K to Q6_K",
            )
        })?;
        Weight::from_bytes(dtype, rows, cols, self.gguf.data(info))
            .map_err(|e| Error::file(path, format!("the tensor {name}: {e}"), "fetch the file again"))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let path = self.gguf.path.as_path();
        let info = self.gguf.tensor(name).ok_or_else(|| missing(path, name))?;
        if info.shape != [len] {
            return Err(wrong_shape(path, name, &info.shape, &[len]));
        }
        let dtype = info.ggml_type.dtype().ok_or_else(|| {
            Error::file(
                path,
                format!("the tensor {name} is stored as {}", info.ggml_type),
                "use a base whose norms and biases are in F32",
            )
        })?;
        let row = Weight::from_bytes(dtype, 1, len, self.gguf.data(info))
            .map_err(|e| Error::file(path, format!("the tensor {name}: {e}"), "fetch the file again"))?;
        Ok(row.to_f32())
    }

    fn block(&self, layer: usize, part: &str) -> String {
        format!("blk.{layer}.{part}")
    }

    fn top(&self) -> [&'static str; 3] {
        ["token_embd.weight", "output_norm.weight", "output.weight"]
    }

    fn norms(&self) -> [&'static str; 2] {
        ["attn_norm", "ffn_norm"]
    }

    fn module(&self, module: Module) -> &'static str {
        module.gguf_name()
    }
}

fn missing(path: &Path, name: &str) -> Error {
    Error::file(
        path,
        format!("the tensor {name} is missing"),
        "the file is no complete model of its architecture; fetch or convert it again",
    )
}

fn wrong_shape(path: &Path, name: &str, found: &[usize], expected: &[usize]) -> Error {
    Error::file(
        path,
        format!("the tensor {name} has the shape {found:?}, expected {expected:?}"),
        "the weights and the configuration do not belong together; fetch the model again",
    )
}
