//! AdamW (Loshchilov and Hutter, 2019, algorithm 2) over one flat buffer of parameters, and the
//! clipping of its gradient by the global norm. Moments are f32.

/// What does not change from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

impl AdamW {
    /// One step in place; `step` counts from 1. All slices have the same length.
    /// As torch.optim.AdamW: decay first (`p -= lr * weight_decay * p`), then the update.
    pub fn step(&self, params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32], learning_rate: f32, step: u64) {
        let _ = (params, grads, m, v, learning_rate, step);
        todo!()
    }
}

/// The L2 norm over all of `grads`, summed in f64 in a fixed order.
pub fn global_norm(grads: &[f32]) -> f64 {
    let _ = grads;
    todo!()
}

/// Scales `grads` so that its norm is at most `max_norm`; as torch: factor `max_norm / (norm + 1e-6)`,
/// applied only where it is below 1. Returns the norm before clipping.
pub fn clip_global_norm(grads: &mut [f32], max_norm: f32) -> f64 {
    let _ = (grads, max_norm);
    todo!()
}
