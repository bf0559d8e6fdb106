//! The decoder: embed -> blocks -> norm -> head, forward and backward side by side, top-down as a paper has it.
//! Training, scoring and generation run the same blocks. The base is frozen: the only gradients that are ever
//! made are the adapter's and those of the activations on the way to it.
//!
//! Letters in shapes: n tokens of the packed stream, d hidden, i MLP width.

use retune_kernels::attention::{self, Heads, Plan, Segment};
use retune_kernels::cross_entropy::{self, Target};
use retune_kernels::dropout::{Dropout, token_key};
use retune_kernels::lora_linear::{LoraGrads, LoraLinear, LoraPair};
use retune_kernels::rope::{self, RopeTable};
use retune_kernels::{rms_norm, swiglu};

use super::adapter::{Adapter, AdapterSpec, Module};
use super::config::ModelConfig;
use super::weights::Weights;

/// A base, ready to compute.
#[derive(Clone)]
pub struct Decoder {
    pub config: ModelConfig,
    pub weights: Weights,
}

/// Tokens that go through the model together: any number of rows, one after another, no padding.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream {
    pub ids: Vec<u32>,
    /// Position of each token in its row, from 0.
    pub positions: Vec<u32>,
    pub plan: Plan,
    /// Rows of a [`KvCache`] where each token's key and value go; empty without a cache.
    cache_rows: Vec<usize>,
    dropout: Option<StreamDropout>,
}

/// Dropout on what the adapter reads: its rate, and the key of each token.
#[derive(Clone, Debug, PartialEq)]
struct StreamDropout {
    rate: f64,
    tokens: Vec<u64>,
}

impl Stream {
    /// Rows packed one after another; none sees another.
    pub fn packed(rows: &[&[u32]]) -> Self {
        let lengths: Vec<usize> = rows.iter().map(|r| r.len()).collect();
        Self {
            ids: rows.concat(),
            positions: lengths.iter().flat_map(|&n| 0..n as u32).collect(),
            plan: Plan::packed(&lengths),
            cache_rows: Vec::new(),
            dropout: None,
        }
    }

    /// Lets the adapter's inputs drop out, in a training with this seed; `first_row` is the number, among all rows of the
    /// step, of the stream's first; each begins at position 0. Masks go with row and position, not with the place in the stream.
    pub fn drop_out(&mut self, rate: f64, seed: u64, step: u64, first_row: usize) {
        if rate == 0.0 {
            return;
        }
        let mut next_row = first_row as u64;
        let key = |&position: &u32| {
            next_row += u64::from(position == 0);
            token_key(seed, step, next_row - 1, position.into())
        };
        self.dropout = Some(StreamDropout { rate, tokens: self.positions.iter().map(key).collect() });
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Keys and values of sequences that are being generated, each with room for `capacity` tokens.
pub struct KvCache {
    capacity: usize,
    lengths: Vec<usize>,
    /// For each block: k and v, `[sequences * capacity, kv_width]`.
    layers: Vec<(Vec<f32>, Vec<f32>)>,
}

impl KvCache {
    pub fn new(config: &ModelConfig, sequences: usize, capacity: usize) -> Self {
        let size = sequences * capacity * config.kv_width();
        Self { capacity, lengths: vec![0; sequences], layers: vec![(vec![0.0; size], vec![0.0; size]); config.layers] }
    }

    /// Tokens that sequence `s` holds.
    pub fn len(&self, s: usize) -> usize {
        self.lengths[s]
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The stream that appends `ids` to each named sequence. Panics where one has no room left.
    pub fn append(&mut self, new: &[(usize, &[u32])]) -> Stream {
        let mut stream = Stream {
            ids: Vec::new(),
            positions: Vec::new(),
            plan: Plan { segments: Vec::new() },
            cache_rows: Vec::new(),
            dropout: None,
        };
        for &(s, ids) in new {
            let (past, first) = (self.lengths[s], s * self.capacity);
            assert!(
                past + ids.len() <= self.capacity,
                "sequence {s} holds {past} of {} tokens, no room for {}",
                self.capacity,
                ids.len()
            );
            let queries = stream.ids.len()..stream.ids.len() + ids.len();
            let own = first + past..first + past + ids.len();
            stream.ids.extend_from_slice(ids);
            stream.positions.extend(past as u32..(past + ids.len()) as u32);
            stream.cache_rows.extend(own.clone());
            let past_rows = first..first + past;
            let sees = if past_rows.is_empty() { Vec::new() } else { Vec::from([past_rows]) };
            stream.plan.segments.push(Segment { queries, sees, own });
            self.lengths[s] += ids.len();
        }
        stream
    }
}

/// What a block's backward pass reads, saved by its forward pass.
#[derive(Default)]
struct Saved {
    x: Vec<f32>,        // (n, d) the block's input
    q: Vec<f32>,        // (n, heads * head_dim), rotated
    k: Vec<f32>,        // (n, kv_heads * head_dim), rotated
    v: Vec<f32>,        // (n, kv_heads * head_dim)
    attended: Vec<f32>, // (n, heads * head_dim)
    lse: Vec<f32>,      // (n, heads)
    middle: Vec<f32>,   // (n, d) the residual stream between attention and MLP
    gate: Vec<f32>,     // (n, i)
    up: Vec<f32>,       // (n, i)
    unscaled: Unscaled,
}

/// What the linear layers of a DoRA adapter give before their rows are scaled, (n, out) each.
#[derive(Default)]
struct Unscaled {
    /// A backward pass follows.
    wanted: bool,
    layers: [Vec<f32>; 7],
}

impl Unscaled {
    fn of(&mut self, module: Module) -> Option<&mut Vec<f32>> {
        self.wanted.then(|| &mut self.layers[module as usize])
    }
}

impl Saved {
    fn fit(&mut self, config: &ModelConfig, n: usize) {
        for (buffer, width) in [
            (&mut self.x, config.hidden),
            (&mut self.q, config.q_width()),
            (&mut self.k, config.kv_width()),
            (&mut self.v, config.kv_width()),
            (&mut self.attended, config.q_width()),
            (&mut self.lse, config.heads),
            (&mut self.middle, config.hidden),
            (&mut self.gate, config.intermediate),
            (&mut self.up, config.intermediate),
        ] {
            buffer.resize(n * width, 0.0);
        }
    }

    /// Values a token.
    fn width(config: &ModelConfig, adapter: &AdapterSpec) -> usize {
        let unscaled: usize = adapter.targets.iter().map(|m| m.shape(config).0).sum();
        2 * config.hidden
            + 2 * config.q_width()
            + 2 * config.kv_width()
            + config.heads
            + 2 * config.intermediate
            + if adapter.dora { unscaled } else { 0 }
    }
}

/// Buffers that live for one op or one block.
#[derive(Default)]
struct Scratch {
    inv_rms: Vec<f32>,  // (n)
    normed: Vec<f32>,   // (n, d)
    active: Vec<f32>,   // (n, i)
    out: Vec<f32>,      // (n, d)
    low_rank: Vec<f32>, // what `LoraLinear` asks for
    dnormed: Vec<f32>,  // (n, d)
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    dattended: Vec<f32>,
    dactive: Vec<f32>, // (n, i)
    dgate: Vec<f32>,   // (n, i)
    dup: Vec<f32>,     // (n, i)
}

impl Scratch {
    fn fit_forward(&mut self, config: &ModelConfig, n: usize) {
        self.inv_rms.resize(n, 0.0);
        self.normed.resize(n * config.hidden, 0.0);
        self.out.resize(n * config.hidden, 0.0);
        self.active.resize(n * config.intermediate, 0.0);
    }

    fn fit_backward(&mut self, config: &ModelConfig, n: usize) {
        self.dnormed.resize(n * config.hidden, 0.0);
        self.dq.resize(n * config.q_width(), 0.0);
        self.dattended.resize(n * config.q_width(), 0.0);
        self.dk.resize(n * config.kv_width(), 0.0);
        self.dv.resize(n * config.kv_width(), 0.0);
        for buffer in [&mut self.dactive, &mut self.dgate, &mut self.dup] {
            buffer.resize(n * config.intermediate, 0.0);
        }
    }

    /// Values a token, of both passes.
    fn width(config: &ModelConfig, adapter: &AdapterSpec, dropout: bool) -> usize {
        let shapes = || adapter.targets.iter().map(|m| m.shape(config));
        let scaled = if adapter.dora { shapes().map(|s| s.0).max().unwrap_or(0) } else { 0 };
        // A masked input, and two words for the token's key.
        let masked = if dropout { shapes().map(|s| s.1).max().unwrap_or(0) + 2 } else { 0 };
        3 * config.hidden
            + 2 * config.q_width()
            + 2 * config.kv_width()
            + 4 * config.intermediate
            + 1
            + 2 * adapter.rank
            + scaled
            + masked
    }
}

/// All memory of the passes; sized by the largest stream seen, then used again.
#[derive(Default)]
pub struct Workspace {
    /// How many of the last blocks keep what they saved; the others keep their input and are computed again.
    pub kept_blocks: usize,
    stream: Vec<f32>,        // (n, d) the residual stream, then its gradient
    hidden: Vec<f32>,        // (n, d) after the final norm, then its gradient
    final_input: Vec<f32>,   // (n, d)
    final_inv_rms: Vec<f32>, // (n)
    dhidden: Vec<f32>,       // (n, d)
    inputs: Vec<Vec<f32>>,   // of the blocks that are computed again, (n, d) each
    kept: Vec<Saved>,
    shared: Saved,
    scratch: Scratch,
}

impl Workspace {
    pub fn new(kept_blocks: usize) -> Self {
        Self { kept_blocks, ..Self::default() }
    }

    /// Bytes of a training step over `tokens` tokens with `kept_blocks` blocks kept (what the memory plan prints;
    /// the loss adds one chunk of logits, at most 64 MB).
    pub fn training_bytes(
        config: &ModelConfig,
        adapter: &AdapterSpec,
        dropout: bool,
        tokens: usize,
        kept_blocks: usize,
    ) -> usize {
        let kept = kept_blocks.min(config.layers);
        let again = config.layers - kept;
        let saved = Saved::width(config, adapter);
        let values = kept * saved
            + if again > 0 { again * config.hidden + saved } else { 0 }
            + Scratch::width(config, adapter, dropout)
            + 4 * config.hidden
            + 1;
        tokens * values * size_of::<f32>()
    }

    /// Bytes of a forward pass over `tokens` tokens of which nothing is kept.
    pub fn scoring_bytes(config: &ModelConfig, adapter: &AdapterSpec, tokens: usize) -> usize {
        let values = Saved::width(config, adapter) + 4 * config.hidden + config.intermediate + 2;
        tokens * values * size_of::<f32>()
    }
}

/// From the losses of all targets, the weight of each; `None` leaves them as they are.
pub type Weigh<'a> = dyn FnMut(&[f32]) -> Option<Vec<f32>> + 'a;

impl Decoder {
    /// `-log p` of each target, in their order. Forward only.
    pub fn losses(&self, stream: &Stream, targets: &[Target], adapter: Option<&Adapter>, ws: &mut Workspace) -> Vec<f32> {
        self.forward(stream, adapter, ws, false, None);
        let mut losses = vec![0.0; targets.len()];
        cross_entropy::forward(&ws.hidden, self.weights.head(), targets, &mut losses, None);
        losses
    }

    /// `-log p` of each target; ADDS to `grads` (laid out as the adapter's parameters) the gradient of
    /// `sum(weight * -log p)`. Where weights depend on the losses, `weigh` gives them (no two targets may share a position then).
    pub fn losses_and_grads(
        &self,
        stream: &Stream,
        targets: &[Target],
        adapter: &Adapter,
        ws: &mut Workspace,
        grads: &mut [f32],
        weigh: &mut Weigh,
    ) -> Vec<f32> {
        let n = stream.len();
        self.forward(stream, Some(adapter), ws, true, None);
        let mut losses = vec![0.0; targets.len()];
        ws.dhidden.resize(n * self.config.hidden, 0.0);
        cross_entropy::forward(&ws.hidden, self.weights.head(), targets, &mut losses, Some(&mut ws.dhidden));
        if let Some(weights) = weigh(&losses) {
            cross_entropy::weigh(&mut ws.dhidden, self.config.hidden, targets, &weights);
        }
        // From here on the residual stream's buffer carries its gradient.
        let mut dx = std::mem::take(&mut ws.stream);
        dx.fill(0.0);
        rms_norm::backward(&ws.dhidden, &ws.final_input, &self.weights.final_norm, &ws.final_inv_rms, &mut dx);
        ws.scratch.fit_backward(&self.config, n);
        let rope = RopeTable::new(&stream.positions, &self.config.inv_freq);
        let first_kept = self.config.layers - ws.kept_blocks.min(self.config.layers);
        for layer in (0..self.config.layers).rev() {
            if layer >= first_kept {
                self.block_backward(layer, &mut dx, &ws.kept[layer - first_kept], stream, &rope, adapter, &mut ws.scratch, grads);
            } else {
                let mut x = std::mem::take(&mut ws.inputs[layer]);
                self.block_forward(layer, &mut x, stream, &rope, Some(adapter), &mut ws.shared, &mut ws.scratch, None);
                ws.inputs[layer] = x;
                self.block_backward(layer, &mut dx, &ws.shared, stream, &rope, adapter, &mut ws.scratch, grads);
            }
        }
        ws.stream = dx;
        losses
    }

    /// Appends the stream to the cache and gives the logits `[rows.len(), vocab]` after the tokens at `rows`.
    pub fn logits(
        &self,
        stream: &Stream,
        rows: &[usize],
        adapter: Option<&Adapter>,
        ws: &mut Workspace,
        cache: Option<&mut KvCache>,
    ) -> Vec<f32> {
        self.forward(stream, adapter, ws, false, cache);
        let d = self.config.hidden;
        let chosen: Vec<f32> = rows.iter().flat_map(|&r| &ws.hidden[r * d..(r + 1) * d]).copied().collect();
        let mut logits = vec![0.0; rows.len() * self.config.vocab_size];
        self.weights.head().mul(&chosen, rows.len(), &mut logits, 0.0);
        logits
    }

    /// Fills `ws.hidden`; for a backward pass, saves what it needs.
    fn forward(
        &self,
        stream: &Stream,
        adapter: Option<&Adapter>,
        ws: &mut Workspace,
        training: bool,
        mut cache: Option<&mut KvCache>,
    ) {
        let (n, d) = (stream.len(), self.config.hidden);
        let mut x = std::mem::take(&mut ws.stream);
        x.resize(n * d, 0.0);
        for (id, row) in stream.ids.iter().zip(x.chunks_exact_mut(d)) {
            self.weights.embedding.row(*id as usize, row);
        }
        let rope = RopeTable::new(&stream.positions, &self.config.inv_freq);
        let first_kept = self.config.layers - ws.kept_blocks.min(self.config.layers);
        if training {
            ws.kept.resize_with(self.config.layers - first_kept, Saved::default);
            ws.inputs.resize_with(first_kept, Vec::new);
        }
        for layer in 0..self.config.layers {
            let saved = if training && layer >= first_kept {
                &mut ws.kept[layer - first_kept]
            } else {
                if training {
                    ws.inputs[layer].clear();
                    ws.inputs[layer].extend_from_slice(&x);
                }
                &mut ws.shared
            };
            saved.unscaled.wanted = training;
            let kv = cache.as_deref_mut().map(|c| &mut c.layers[layer]);
            self.block_forward(layer, &mut x, stream, &rope, adapter, saved, &mut ws.scratch, kv);
        }
        ws.hidden.resize(n * d, 0.0);
        ws.final_inv_rms.resize(n, 0.0);
        rms_norm::forward(&x, &self.weights.final_norm, self.config.norm_eps, &mut ws.hidden, &mut ws.final_inv_rms);
        if training {
            ws.final_input.clear();
            ws.final_input.extend_from_slice(&x);
        }
        ws.stream = x;
    }

    /// x `[n, d]` becomes the block's output; `cached` are the keys and values of a generation.
    #[expect(clippy::too_many_arguments, reason = "the two passes of a block take what a block has")]
    fn block_forward(
        &self,
        layer: usize,
        x: &mut [f32],
        stream: &Stream,
        rope: &RopeTable,
        adapter: Option<&Adapter>,
        saved: &mut Saved,
        scratch: &mut Scratch,
        cached: Option<&mut (Vec<f32>, Vec<f32>)>,
    ) {
        let (config, block, n) = (&self.config, &self.weights.blocks[layer], stream.len());
        saved.fit(config, n);
        scratch.fit_forward(config, n);
        let Scratch { inv_rms, normed, active, out, low_rank, .. } = scratch;
        let unscaled = &mut saved.unscaled;
        let mut forward = |module: Module, x: &[f32], y: &mut [f32]| {
            self.linear(layer, module, adapter, stream).forward(x, n, y, unscaled.of(module), low_rank);
        };

        saved.x.copy_from_slice(x);
        rms_norm::forward(x, &block.attention_norm, config.norm_eps, normed, inv_rms);
        forward(Module::Q, normed, &mut saved.q);
        forward(Module::K, normed, &mut saved.k);
        forward(Module::V, normed, &mut saved.v);
        rope::forward(&mut saved.q, config.heads, config.head_dim, rope, config.rope_style);
        rope::forward(&mut saved.k, config.kv_heads, config.head_dim, rope, config.rope_style);
        let (k, v) = match cached {
            None => (&saved.k, &saved.v),
            Some((k, v)) => {
                let w = config.kv_width();
                for (i, &row) in stream.cache_rows.iter().enumerate() {
                    k[row * w..(row + 1) * w].copy_from_slice(&saved.k[i * w..(i + 1) * w]);
                    v[row * w..(row + 1) * w].copy_from_slice(&saved.v[i * w..(i + 1) * w]);
                }
                (&*k, &*v)
            }
        };
        attention::forward(&saved.q, k, v, &stream.plan, self.heads(), &mut saved.attended, &mut saved.lse);
        forward(Module::O, &saved.attended, out);
        add(x, out);

        saved.middle.copy_from_slice(x);
        rms_norm::forward(x, &block.mlp_norm, config.norm_eps, normed, inv_rms);
        forward(Module::Gate, normed, &mut saved.gate);
        forward(Module::Up, normed, &mut saved.up);
        swiglu::forward(&saved.gate, &saved.up, active);
        forward(Module::Down, active, out);
        add(x, out);
    }

    /// dx `[n, d]`: the gradient of the block's output becomes that of its input. (The first block's input is the
    /// frozen embedding: nobody reads its gradient, so its last part is left out.)
    #[expect(clippy::too_many_arguments, reason = "the two passes of a block take what a block has")]
    fn block_backward(
        &self,
        layer: usize,
        dx: &mut [f32],
        saved: &Saved,
        stream: &Stream,
        rope: &RopeTable,
        adapter: &Adapter,
        scratch: &mut Scratch,
        grads: &mut [f32],
    ) {
        let (config, block, n) = (&self.config, &self.weights.blocks[layer], stream.len());
        let Scratch { inv_rms, normed, active, low_rank, dnormed, dq, dk, dv, dattended, dactive, dgate, dup, .. } = scratch;
        let mut backward = |module: Module, dy: &[f32], x: &[f32], dx: Option<&mut [f32]>| {
            let unscaled = &saved.unscaled.layers[module as usize];
            let grads = adapter.grads(grads, layer, module).map(|[a, b, magnitude]| LoraGrads { a, b, magnitude, unscaled });
            self.linear(layer, module, Some(adapter), stream).backward(dy, x, n, dx, grads, low_rank);
        };

        // MLP. The norm's output and the activation are computed again rather than saved.
        rms_norm::forward(&saved.middle, &block.mlp_norm, config.norm_eps, normed, inv_rms);
        swiglu::forward(&saved.gate, &saved.up, active);
        dactive.fill(0.0);
        backward(Module::Down, dx, active, Some(dactive));
        swiglu::backward(dactive, &saved.gate, &saved.up, dgate, dup);
        dnormed.fill(0.0);
        backward(Module::Gate, dgate, normed, Some(dnormed));
        backward(Module::Up, dup, normed, Some(dnormed));
        rms_norm::backward(dnormed, &saved.middle, &block.mlp_norm, inv_rms, dx);

        // Attention.
        dattended.fill(0.0);
        backward(Module::O, dx, &saved.attended, Some(dattended));
        let read = attention::Saved { q: &saved.q, k: &saved.k, v: &saved.v, out: &saved.attended, lse: &saved.lse };
        attention::backward(dattended, read, &stream.plan, self.heads(), dq, dk, dv);
        rope::backward(dq, config.heads, config.head_dim, rope, config.rope_style);
        rope::backward(dk, config.kv_heads, config.head_dim, rope, config.rope_style);
        rms_norm::forward(&saved.x, &block.attention_norm, config.norm_eps, normed, inv_rms);
        let read_below = layer > 0;
        dnormed.fill(0.0);
        backward(Module::Q, dq, normed, read_below.then_some(&mut **dnormed));
        backward(Module::K, dk, normed, read_below.then_some(&mut **dnormed));
        backward(Module::V, dv, normed, read_below.then_some(&mut **dnormed));
        if read_below {
            rms_norm::backward(dnormed, &saved.x, &block.attention_norm, inv_rms, dx);
        }
    }

    fn heads(&self) -> Heads {
        let ModelConfig { heads, kv_heads, head_dim, .. } = self.config;
        Heads { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt() }
    }

    fn linear<'a>(&'a self, layer: usize, module: Module, adapter: Option<&'a Adapter>, stream: &'a Stream) -> LoraLinear<'a> {
        let linear = self.weights.blocks[layer].linear(module);
        let place = (layer * Module::ALL.len() + module as usize) as u64;
        let dropout = stream.dropout.as_ref().map(|d| Dropout { rate: d.rate, tokens: &d.tokens, place });
        let pair = adapter.and_then(|a| a.pair(layer, module, linear));
        LoraLinear { weight: &linear.weight, bias: linear.bias.as_deref(), lora: pair.map(|pair| LoraPair { dropout, ..pair }) }
    }
}

/// `x += y`
fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
