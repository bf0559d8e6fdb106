//! The head and its cross entropy, fused: works in chunks over the trained tokens only, and leaves
//! the gradient of the hidden states behind in the forward pass.

use crate::weight::Weight;

/// A token to predict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Row of the hidden states that predicts it.
    pub position: usize,
    /// The token's id.
    pub id: u32,
    /// Its weight in the loss: `loss = sum(weight * -log p(id))`.
    pub weight: f32,
}

/// hidden `[n, d]` (after the final norm), head `[vocab, d]`. Writes `-log p` of each target to `losses`
/// (unweighted). Where `dhidden` `[n, d]` is given it is overwritten with the gradient of the weighted sum:
/// rows with no target become 0. Memory: one chunk of logits (at most about 64 MB), whatever n is.
pub fn forward(hidden: &[f32], head: &Weight, targets: &[Target], losses: &mut [f32], dhidden: Option<&mut [f32]>) {
    let _ = (hidden, head, targets, losses, dhidden);
    todo!()
}
