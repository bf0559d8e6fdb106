//! `y = W x + b + s B (A x)` (Hu et al., 2021). W and the bias are frozen: the backward pass gives
//! dx, dA and dB, never dW.

use crate::weight::Weight;

/// The trained pair of one linear layer: A `[rank, in]`, B `[out, rank]`, row-major; `scale` is alpha / rank
/// (alpha / sqrt(rank) for rsLoRA).
#[derive(Clone, Copy, Debug)]
pub struct LoraPair<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub rank: usize,
    pub scale: f32,
}

/// A linear layer as it stands in the model.
#[derive(Clone, Copy)]
pub struct LoraLinear<'a> {
    pub weight: &'a Weight,
    pub bias: Option<&'a [f32]>,
    pub lora: Option<LoraPair<'a>>,
}

impl LoraLinear<'_> {
    /// x `[n, in]`, y `[n, out]` (overwritten). `scratch` is resized to `[n, rank]` where needed.
    pub fn forward(&self, x: &[f32], n: usize, y: &mut [f32], scratch: &mut Vec<f32>) {
        let _ = (x, n, y, scratch);
        todo!()
    }

    /// dy `[n, out]`, x `[n, in]`. ADDS to dx `[n, in]` where it is given (`None`: nobody needs it), and
    /// adds to `grads` = (da, db) where the layer has a LoRA. `A x` is computed again, not saved.
    pub fn backward(
        &self,
        dy: &[f32],
        x: &[f32],
        n: usize,
        dx: Option<&mut [f32]>,
        grads: Option<(&mut [f32], &mut [f32])>,
        scratch: &mut Vec<f32>,
    ) {
        let _ = (dy, x, n, dx, grads, scratch);
        todo!()
    }
}
