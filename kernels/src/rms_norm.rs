//! RMS norm (Zhang and Sennrich, 2019): `y = x / rms(x) * w`, `rms(x) = sqrt(mean(x^2) + eps)`.

/// x, y: `[n, d]`, w: `[d]`; `inv_rms`: `[n]`, saved for the backward pass.
pub fn forward(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], inv_rms: &mut [f32]) {
    let _ = (x, w, eps, y, inv_rms);
    todo!()
}

/// ADDS the gradient of x to `dx` (it is the residual stream's); the weight is frozen and gets none.
pub fn backward(dy: &[f32], x: &[f32], w: &[f32], inv_rms: &[f32], dx: &mut [f32]) {
    let _ = (dy, x, w, inv_rms, dx);
    todo!()
}
