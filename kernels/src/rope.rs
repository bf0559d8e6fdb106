//! Rotary position embedding (Su et al., 2021), in place on q or k.

/// Which two values of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `i` and `i + d/2`: Hugging Face's order, GGUF's for qwen2 ("neox").
    Half,
    /// `2i` and `2i + 1`: GGUF's order for llama ("norm").
    Interleaved,
}

/// cos and sin for a list of positions, `[n, head_dim / 2]` each.
#[derive(Clone, Debug, Default)]
pub struct RopeTable {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

impl RopeTable {
    /// `inv_freq`: `[head_dim / 2]`, scaling already applied. Angles are computed in f32 as transformers does.
    pub fn new(positions: &[u32], inv_freq: &[f32]) -> Self {
        let _ = (positions, inv_freq);
        todo!()
    }
}

/// x: `[n, heads * head_dim]`, turned in place.
pub fn forward(x: &mut [f32], heads: usize, head_dim: usize, table: &RopeTable, style: RopeStyle) {
    let _ = (x, heads, head_dim, table, style);
    todo!()
}

/// The gradient turns back by the same angles, in place.
pub fn backward(dx: &mut [f32], heads: usize, head_dim: usize, table: &RopeTable, style: RopeStyle) {
    let _ = (dx, heads, head_dim, table, style);
    todo!()
}
