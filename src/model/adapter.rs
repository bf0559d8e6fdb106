//! The trained part: one LoRA pair (Hu et al., 2021) for each chosen linear layer of each block, with DoRA (Liu et al.,
//! 2024) the magnitudes of its rows too, all in one flat buffer, so that clipping, the optimiser, checkpoints and an
//! all-reduce see one slice.

use std::ops::{Deref, DerefMut, Range};
use std::sync::OnceLock;

use retune_kernels::dora::RowScale;
use retune_kernels::lora_linear::LoraPair;
use retune_kernels::rng::Rng;
use serde::{Deserialize, Serialize};

use super::config::ModelConfig;
use super::decoder::Decoder;
use super::weights::Linear;
use crate::error::{Error, Result};

/// The linear layers of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Module {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Module {
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// `q_proj`, as PEFT's `target_modules` says it.
    pub fn hf_name(self) -> &'static str {
        self.hf_path().rsplit('.').next().unwrap_or_default()
    }

    /// `self_attn.q_proj`
    pub fn hf_path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// `attn_q`
    pub fn gguf_name(self) -> &'static str {
        match self {
            Self::Q => "attn_q",
            Self::K => "attn_k",
            Self::V => "attn_v",
            Self::O => "attn_output",
            Self::Gate => "ffn_gate",
            Self::Up => "ffn_up",
            Self::Down => "ffn_down",
        }
    }

    /// (out features, in features)
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let (hidden, mlp) = (config.hidden, config.intermediate);
        match self {
            Self::Q => (config.q_width(), hidden),
            Self::K | Self::V => (config.kv_width(), hidden),
            Self::O => (hidden, config.q_width()),
            Self::Gate | Self::Up => (mlp, hidden),
            Self::Down => (hidden, mlp),
        }
    }

    /// `all`, or a list of names as Hugging Face or GGUF says them: `q_proj,v_proj`, `attn_q`, `q`.
    pub fn parse_list(text: &str) -> Result<Vec<Self>> {
        if text.trim() == "all" {
            return Ok(Self::ALL.to_vec());
        }
        let mut modules = Vec::new();
        for name in text.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            let found = Self::ALL
                .into_iter()
                .find(|m| m.hf_name() == name || m.gguf_name() == name || m.hf_name().trim_end_matches("_proj") == name);
            let module = found.ok_or_else(|| {
                let known: Vec<_> = Self::ALL.iter().map(|m| m.hf_name()).collect();
                Error::usage(
                    format!("there is no linear layer called '{name}'"),
                    format!("--targets takes 'all' or some of: {}", known.join(", ")),
                )
            })?;
            if !modules.contains(&module) {
                modules.push(module);
            }
        }
        if modules.is_empty() {
            return Err(Error::usage("--targets names no layer", "use 'all', or names like q_proj,v_proj"));
        }
        modules.sort_unstable();
        Ok(modules)
    }
}

/// What an adapter is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterSpec {
    pub rank: usize,
    pub alpha: f32,
    pub rslora: bool,
    /// Weight-decomposed: a trained magnitude for each row of the weight that the adapter makes.
    #[serde(default)]
    pub dora: bool,
    pub targets: Vec<Module>,
}

impl Default for AdapterSpec {
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, rslora: false, dora: false, targets: Module::ALL.to_vec() }
    }
}

impl AdapterSpec {
    /// What multiplies B A x: alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski, 2023).
    pub fn scale(&self) -> f32 {
        if self.rslora { self.alpha / (self.rank as f32).sqrt() } else { self.alpha / self.rank as f32 }
    }
}

/// Where one pair lies in the flat buffer: A `[rank, in]`, then B `[out, rank]`, then with DoRA the magnitude `[out]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    pub layer: usize,
    pub module: Module,
    pub in_features: usize,
    pub out_features: usize,
    pub a: Range<usize>,
    pub b: Range<usize>,
    /// Empty without DoRA.
    pub magnitude: Range<usize>,
}

impl Slot {
    /// `model.layers.0.self_attn.q_proj`
    pub fn hf_module(&self) -> String {
        format!("model.layers.{}.{}", self.layer, self.module.hf_path())
    }

    /// `blk.0.attn_q.weight`
    pub fn gguf_tensor(&self) -> String {
        format!("blk.{}.{}.weight", self.layer, self.module.gguf_name())
    }
}

/// The trained values, as the slots say. They remember the scales of DoRA's rows, which cost a product with the base, and
/// forget them as soon as anyone may change a value. (They also belong to one base and one scale, which an adapter keeps.)
#[derive(Clone, Debug)]
pub struct Params {
    values: Vec<f32>,
    /// One for each slot of a DoRA adapter.
    row_scales: Vec<OnceLock<RowScale>>,
}

impl Deref for Params {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl DerefMut for Params {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.row_scales.fill(OnceLock::new());
        &mut self.values
    }
}

impl PartialEq for Params {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

/// An adapter in the row order of the base that it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    pub spec: AdapterSpec,
    pub slots: Vec<Slot>,
    pub params: Params,
}

impl Adapter {
    /// All zeros: the shape of an adapter, to be filled.
    pub fn zeros(config: &ModelConfig, spec: AdapterSpec) -> Self {
        let mut slots = Vec::new();
        let mut end = 0;
        for layer in 0..config.layers {
            for &module in &spec.targets {
                let (out_features, in_features) = module.shape(config);
                let a = end..end + spec.rank * in_features;
                let b = a.end..a.end + out_features * spec.rank;
                let magnitude = b.end..b.end + if spec.dora { out_features } else { 0 };
                end = magnitude.end;
                slots.push(Slot { layer, module, in_features, out_features, a, b, magnitude });
            }
        }
        let row_scales = vec![OnceLock::new(); if spec.dora { slots.len() } else { 0 }];
        Self { spec, slots, params: Params { values: vec![0.0; end], row_scales } }
    }

    /// A fresh adapter, as PEFT starts it: A uniform within `1 / sqrt(in)` (Kaiming with a = sqrt 5), B zero, the magnitude
    /// that of the base's rows. It changes nothing yet.
    pub fn fresh(base: &Decoder, spec: AdapterSpec, rng: &mut Rng) -> Self {
        let mut adapter = Self::zeros(&base.config, spec);
        let values = &mut *adapter.params;
        for slot in &adapter.slots {
            let bound = 1.0 / (slot.in_features as f64).sqrt();
            values[slot.a.clone()].fill_with(|| ((2.0 * rng.uniform() - 1.0) * bound) as f32);
            if adapter.spec.dora {
                let squares = base.weights.blocks[slot.layer].linear(slot.module).row_squares();
                values[slot.magnitude.clone()].iter_mut().zip(squares).for_each(|(m, square)| *m = square.sqrt() as f32);
            }
        }
        adapter
    }

    fn index(&self, layer: usize, module: Module) -> Option<usize> {
        let place = self.spec.targets.iter().position(|&t| t == module)?;
        Some(layer * self.spec.targets.len() + place)
    }

    pub fn slot(&self, layer: usize, module: Module) -> Option<&Slot> {
        self.slots.get(self.index(layer, module)?)
    }

    /// The pair of a layer, as the kernel wants it; `linear` is that layer of the base that the adapter belongs to.
    pub fn pair(&self, layer: usize, module: Module, linear: &Linear) -> Option<LoraPair<'_>> {
        let index = self.index(layer, module)?;
        let slot = self.slots.get(index)?;
        let values = |range: &Range<usize>| &self.params[range.clone()];
        let (rank, scale) = (self.spec.rank, self.spec.scale());
        let plain = LoraPair { a: values(&slot.a), b: values(&slot.b), rank, scale, dora: None, dropout: None };
        let row_scale = || RowScale::new(&linear.weight, linear.row_squares(), &plain, values(&slot.magnitude));
        Some(LoraPair { dora: self.params.row_scales.get(index).map(|known| known.get_or_init(row_scale)), ..plain })
    }

    /// The places of a pair's gradients (dA, dB, and the magnitude's, empty without DoRA) in a buffer laid out as `params`.
    pub fn grads<'a>(&self, buffer: &'a mut [f32], layer: usize, module: Module) -> Option<[&'a mut [f32]; 3]> {
        let slot = self.slot(layer, module)?;
        let (a, rest) = buffer[slot.a.start..slot.magnitude.end].split_at_mut(slot.a.len());
        let (b, magnitude) = rest.split_at_mut(slot.b.len());
        Some([a, b, magnitude])
    }
}
