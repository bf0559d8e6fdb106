//! What kind of decoder a base is: read from Hugging Face's `config.json` or from GGUF metadata.

use std::path::Path;

use retune_kernels::rope::RopeStyle;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::formats::gguf::Gguf;

/// A family of models that share their tensors' names and maths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama and its kin: no biases; in GGUF the rows of q and k are interleaved.
    Llama,
    /// Qwen2 and 2.5: biases on q, k and v.
    Qwen2,
}

/// What an unknown architecture's error tells.
pub const SUPPORTED: &str = "llama (Llama, SmolLM2, TinyLlama) and qwen2 (Qwen2, Qwen2.5)";

impl Architecture {
    /// The name that GGUF and Hugging Face's `model_type` use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
        }
    }

    fn parse(name: &str, path: &Path) -> Result<Self> {
        match name {
            "llama" => Ok(Self::Llama),
            "qwen2" => Ok(Self::Qwen2),
            other => Err(Error::file(
                path,
                format!("the architecture '{other}' is not supported"),
                format!("retune trains {SUPPORTED}; choose a base of one of these families"),
            )),
        }
    }
}

/// The sizes and constants of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub norm_eps: f32,
    /// `[head_dim / 2]`: the rotation per position of each pair, with the base's frequency scaling applied.
    pub inv_freq: Vec<f32>,
    /// How the files order the rows of q and k; adapters in memory follow it.
    pub rope_style: RopeStyle,
    pub context_length: usize,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the head is the embedding.
    pub tied_head: bool,
}

impl ModelConfig {
    /// From `config.json`; `path` stands in errors.
    pub fn from_hf(json: &Value, path: &Path) -> Result<Self> {
        let read = HfConfig { json, path };
        let model_type = json.get("model_type").and_then(Value::as_str).unwrap_or("");
        let architecture = Architecture::parse(model_type, path)?;
        let (hidden, heads) = (read.size("hidden_size")?, read.size("num_attention_heads")?);
        let head_dim = read.optional_size("head_dim")?.unwrap_or(hidden / heads);
        let theta = read.rope_number("rope_theta").unwrap_or(10_000.0);
        read.refuse("hidden_act", |v| v != "silu", "the activation")?;
        read.refuse("mlp_bias", |v| v == &Value::Bool(true), "a bias in the MLP")?;
        read.refuse("use_sliding_window", |v| v == &Value::Bool(true), "a sliding window")?;
        let attention_bias = json.get("attention_bias").and_then(Value::as_bool).unwrap_or(false);
        if attention_bias && architecture == Architecture::Llama {
            return Err(read.unsupported("attention_bias", "a bias on all of attention"));
        }
        check_head_dim(head_dim, path)?;
        let mut inv_freq = inverse_frequencies(theta, head_dim);
        read.scale_rope(&mut inv_freq)?;
        Self {
            architecture,
            vocab_size: read.size("vocab_size")?,
            hidden,
            intermediate: read.size("intermediate_size")?,
            layers: read.size("num_hidden_layers")?,
            heads,
            kv_heads: read.optional_size("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            norm_eps: json.get("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6) as f32,
            inv_freq,
            rope_style: RopeStyle::Half,
            context_length: read.optional_size("max_position_embeddings")?.unwrap_or(2048),
            qkv_bias: architecture == Architecture::Qwen2,
            tied_head: json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
        }
        .checked(path)
    }

    /// From a GGUF file's metadata (keys: ggml docs/gguf.md, "LLM").
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let path = gguf.path.as_path();
        let name = gguf.get_str("general.architecture")?.unwrap_or("");
        let architecture = Architecture::parse(name, path)?;
        let key = |suffix: &str| format!("{name}.{suffix}");
        let optional = |suffix: &str| -> Result<Option<usize>> { Ok(gguf.get_u64(&key(suffix))?.map(|n| n as usize)) };
        let size = |suffix: &str| -> Result<usize> {
            optional(suffix)?.ok_or_else(|| {
                Error::file(
                    path,
                    format!("the metadata key '{}' is missing", key(suffix)),
                    "the file is no complete model; fetch or convert it again",
                )
            })
        };
        let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?);
        let head_dim = optional("attention.key_length")?.unwrap_or_else(|| hidden.checked_div(heads).unwrap_or(0));
        check_head_dim(head_dim, path)?;
        if let Some(scaling) = gguf.get_str(&key("rope.scaling.type"))?
            && scaling != "none"
        {
            return Err(Error::file(
                path,
                format!("rope scaling '{scaling}' is not supported"),
                "use a base without rope scaling",
            ));
        }
        let rotated = optional("rope.dimension_count")?.unwrap_or(head_dim);
        if rotated != head_dim {
            return Err(Error::file(
                path,
                format!("only {rotated} of {head_dim} values of a head are rotated: not supported"),
                format!("retune trains {SUPPORTED}"),
            ));
        }
        let mut inv_freq = inverse_frequencies(f64::from(gguf.get_f32(&key("rope.freq_base"))?.unwrap_or(10_000.0)), head_dim);
        // Llama 3.1's scaling comes as one divisor a pair (llama.cpp, llama-model.cpp, "rope_freqs").
        if let Some(info) = gguf.tensor("rope_freqs.weight") {
            let data = gguf.data(info);
            let factors: Vec<f32> = data.as_ref().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            if factors.len() != inv_freq.len() {
                return Err(Error::file(
                    path,
                    format!("rope_freqs.weight holds {} values, expected {}", factors.len(), inv_freq.len()),
                    "the file is damaged; fetch it again",
                ));
            }
            inv_freq.iter_mut().zip(factors).for_each(|(f, divisor)| *f /= divisor);
        }
        let embedding = gguf.tensor("token_embd.weight").ok_or_else(|| {
            Error::file(
                path,
                "the tensor token_embd.weight is missing",
                "the file is no complete model; fetch or convert it again",
            )
        })?;
        Self {
            architecture,
            vocab_size: embedding.shape.first().copied().unwrap_or(0),
            hidden,
            intermediate: size("feed_forward_length")?,
            layers: size("block_count")?,
            heads,
            kv_heads: optional("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            norm_eps: gguf.get_f32(&key("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-5),
            inv_freq,
            rope_style: match architecture {
                Architecture::Llama => RopeStyle::Interleaved,
                Architecture::Qwen2 => RopeStyle::Half,
            },
            context_length: optional("context_length")?.unwrap_or(2048),
            qkv_bias: gguf.tensor("blk.0.attn_q.bias").is_some(),
            tied_head: gguf.tensor("output.weight").is_none(),
        }
        .checked(path)
    }

    /// Width of q (and of what goes into the output projection).
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of k and of v.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Weights in linear layers, the head included: the N of "4N operations a token".
    pub fn linear_weights(&self) -> usize {
        let attention = self.hidden * (2 * self.q_width() + 2 * self.kv_width());
        self.layers * (attention + 3 * self.hidden * self.intermediate) + self.hidden * self.vocab_size
    }

    fn checked(self, path: &Path) -> Result<Self> {
        let wrong = |what: String| Err(Error::file(path, what, "the model's files do not fit together; fetch them again"));
        for (name, n, most) in [
            ("vocabulary", self.vocab_size, 1 << 24),
            ("hidden size", self.hidden, 1 << 20),
            ("MLP width", self.intermediate, 1 << 24),
            ("number of layers", self.layers, 1 << 12),
            ("number of heads", self.heads, 1 << 16),
            ("number of kv heads", self.kv_heads, 1 << 16),
            ("context length", self.context_length, 1 << 28),
        ] {
            if n == 0 || n > most {
                return wrong(format!("the {name} is {n}, expected 1 to {most}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return wrong(format!("{} heads cannot share {} kv heads", self.heads, self.kv_heads));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return wrong(format!("the epsilon of the norms is {}, expected a small number", self.norm_eps));
        }
        if self.inv_freq.iter().any(|f| !(f.is_finite() && *f > 0.0)) {
            return wrong("the rope base or its scaling gives angles that are no numbers above 0".to_owned());
        }
        Ok(self)
    }
}

/// The rotation as a GGUF file says it.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeScaling {
    pub theta: f32,
    /// `[head_dim / 2]`: what each pair's frequency is divided by (`rope_freqs.weight`); `None` where nothing is scaled.
    pub divisors: Option<Vec<f32>>,
}

impl RopeScaling {
    /// From a `config.json` that [`ModelConfig::from_hf`] has taken; in f32, step by step as conversion/llama.py of llama.cpp
    /// (`generate_extra_tensors`) computes the divisors of "llama3".
    pub fn from_hf(json: &Value, path: &Path, head_dim: usize) -> Result<Self> {
        let read = HfConfig { json, path };
        let theta = read.rope_number("rope_theta").unwrap_or(10_000.0) as f32;
        if read.rope_kind() != "llama3" {
            return Ok(Self { theta, divisors: None });
        }
        let number = |key: &str, default: f32| read.rope_number(key).map_or(default, |n| n as f32);
        let (factor, original) = (number("factor", 8.0), number("original_max_position_embeddings", 8192.0));
        let (low, high) = (number("low_freq_factor", 1.0), number("high_freq_factor", 4.0));
        let divisor = |f: f32| {
            let wavelength = std::f32::consts::TAU / f;
            if wavelength < original / high {
                1.0
            } else if wavelength > original / low {
                factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        let divisors = inverse_frequencies(f64::from(theta), head_dim).into_iter().map(divisor).collect();
        Ok(Self { theta, divisors: Some(divisors) })
    }
}

/// Before anything of that size is made: the number comes from a file.
fn check_head_dim(head_dim: usize, path: &Path) -> Result<()> {
    if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > 1024 {
        return Err(Error::file(
            path,
            format!("the size of a head is {head_dim}, expected an even number from 2 to 1024"),
            "the model's files do not fit together; fetch them again",
        ));
    }
    Ok(())
}

/// `theta^(-2i/d)`, in f32 as transformers computes it.
fn inverse_frequencies(theta: f64, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / head_dim as f32)).collect()
}

struct HfConfig<'a> {
    json: &'a Value,
    path: &'a Path,
}

impl HfConfig<'_> {
    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => match v.as_u64() {
                Some(n) => Ok(Some(n as usize)),
                None => Err(Error::file(
                    self.path,
                    format!("'{key}' is {v}, expected a whole number"),
                    "mend the file, or fetch the model again",
                )),
            },
        }
    }

    fn size(&self, key: &str) -> Result<usize> {
        match self.optional_size(key)? {
            Some(n) if n > 0 => Ok(n),
            Some(_) => Err(Error::file(self.path, format!("'{key}' is 0"), "mend the file, or fetch the model again")),
            None => Err(Error::file(self.path, format!("'{key}' is missing"), "mend the file, or fetch the model again")),
        }
    }

    fn unsupported(&self, key: &str, what: &str) -> Error {
        Error::file(
            self.path,
            format!("'{key}' is {}: {what} is not supported", self.json.get(key).unwrap_or(&Value::Null)),
            format!("retune trains {SUPPORTED}"),
        )
    }

    fn refuse(&self, key: &str, bad: impl Fn(&Value) -> bool, what: &str) -> Result<()> {
        match self.json.get(key) {
            Some(v) if !v.is_null() && bad(v) => Err(self.unsupported(key, what)),
            _ => Ok(()),
        }
    }

    /// A number of the rope settings: flat (transformers 4) or under `rope_parameters` (transformers 5) or `rope_scaling`.
    fn rope_number(&self, key: &str) -> Option<f64> {
        let nested = |outer: &str| self.json.get(outer).and_then(|v| v.get(key)).and_then(Value::as_f64);
        nested("rope_parameters").or_else(|| nested("rope_scaling")).or_else(|| self.json.get(key).and_then(Value::as_f64))
    }

    /// `default`, `llama3`, ...
    fn rope_kind(&self) -> &str {
        let settings = self.json.get("rope_parameters").filter(|v| !v.is_null()).or_else(|| self.json.get("rope_scaling"));
        settings.and_then(|v| v.get("rope_type").or_else(|| v.get("type"))).and_then(Value::as_str).unwrap_or("default")
    }

    /// Applies "llama3" scaling (transformers, modeling_rope_utils.py, `_compute_llama3_parameters`).
    fn scale_rope(&self, inv_freq: &mut [f32]) -> Result<()> {
        match self.rope_kind() {
            "default" => Ok(()),
            "llama3" => {
                let number = |key: &str| {
                    self.rope_number(key).ok_or_else(|| {
                        Error::file(
                            self.path,
                            format!("rope scaling 'llama3' without '{key}'"),
                            "mend the file, or fetch the model again",
                        )
                    })
                };
                let (factor, low, high) = (number("factor")?, number("low_freq_factor")?, number("high_freq_factor")?);
                let original = number("original_max_position_embeddings")?;
                for f in inv_freq {
                    let wavelength = 2.0 * std::f64::consts::PI / f64::from(*f);
                    let smooth = (original / wavelength - low) / (high - low);
                    let (fast, slow) = (f64::from(*f), f64::from(*f) / factor);
                    *f = smooth.clamp(0.0, 1.0).mul_add(fast - slow, slow) as f32;
                }
                Ok(())
            }
            other => Err(Error::file(
                self.path,
                format!("rope scaling '{other}' is not supported"),
                "use a base without rope scaling, or with 'llama3'",
            )),
        }
    }
}
