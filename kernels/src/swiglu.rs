//! SwiGLU (Shazeer, 2020): `y = silu(gate) * up`.

/// gate, up, y: the same length.
pub fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
    let _ = (gate, up, y);
    todo!()
}

/// Overwrites dgate and dup.
pub fn backward(dy: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    let _ = (dy, gate, up, dgate, dup);
    todo!()
}
