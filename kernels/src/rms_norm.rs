//! RMS norm (Zhang and Sennrich, 2019): `y = x / rms(x) * w`, `rms(x) = sqrt(mean(x^2) + eps)`.
//! Saved between the passes: x, and `1 / rms` of each row.

use rayon::prelude::*;

use crate::simd::simd;
use crate::vector::{dot_body, sum3_body};

/// Values of one piece of work for a thread.
const PIECE: usize = 1 << 14;

/// x, y: `[n, d]`, w: `[d]`; `inv_rms`: `[n]`, saved for the backward pass.
pub fn forward(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], inv_rms: &mut [f32]) {
    let (n, d) = (inv_rms.len(), w.len());
    assert!(d > 0 && x.len() == n * d && y.len() == n * d, "x {} and y {} must be [{n}, {d}]", x.len(), y.len());
    let rows = PIECE.div_ceil(d);
    if n <= 2 * rows {
        return forward_rows(x, w, eps, y, inv_rms);
    }
    (x.par_chunks(rows * d), y.par_chunks_mut(rows * d), inv_rms.par_chunks_mut(rows))
        .into_par_iter()
        .for_each(|(x, y, inv_rms)| forward_rows(x, w, eps, y, inv_rms));
}

/// ADDS the gradient of x to `dx` (it is the residual stream's); the weight is frozen and gets none.
pub fn backward(dy: &[f32], x: &[f32], w: &[f32], inv_rms: &[f32], dx: &mut [f32]) {
    let (n, d) = (inv_rms.len(), w.len());
    assert!(d > 0 && [dy.len(), x.len(), dx.len()] == [n * d; 3], "dy, x and dx must be [{n}, {d}]");
    let rows = PIECE.div_ceil(d);
    if n <= 2 * rows {
        return backward_rows(dy, x, w, inv_rms, dx);
    }
    (dy.par_chunks(rows * d), x.par_chunks(rows * d), inv_rms.par_chunks(rows), dx.par_chunks_mut(rows * d))
        .into_par_iter()
        .for_each(|(dy, x, inv_rms, dx)| backward_rows(dy, x, w, inv_rms, dx));
}

simd! {
    fn forward_rows(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], inv_rms: &mut [f32]) {
        let d = w.len();
        for ((x, y), inv_rms) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(inv_rms) {
            let inv = 1.0 / (dot_body(x, x) / d as f32 + eps).sqrt();
            *inv_rms = inv;
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * inv * w;
            }
        }
    }
}

simd! {
    // y = x r w with r = (mean(x^2) + eps)^(-1/2), dr/dx = -r^3 x / d:
    // dx = r (w dy - x r^2 mean(w dy x))
    fn backward_rows(dy: &[f32], x: &[f32], w: &[f32], inv_rms: &[f32], dx: &mut [f32]) {
        let d = w.len();
        for (((dy, x), dx), r) in dy.chunks_exact(d).zip(x.chunks_exact(d)).zip(dx.chunks_exact_mut(d)).zip(inv_rms) {
            let mean = sum3_body(dy, x, w) / d as f32;
            let back = r * r * r * mean;
            for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(w) {
                *dx += r * w * dy - back * x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{gradient, gradients, normal, relative_error, tensor, threads, values, var};

    #[test]
    fn forward_and_gradient_agree_with_autograd() {
        for (n, d) in [(1, 1), (3, 17), (5, 64), (40, 576), (200, 257)] {
            let (x, w, dy, old) = (normal(n * d, 1), normal(d, 2), normal(n * d, 3), normal(n * d, 4));
            let eps = 1e-2;
            let leaf = var(&x, &[n, d]);
            let mean = (leaf.sqr().unwrap().sum_keepdim(1).unwrap() / d as f64).unwrap();
            let rms = (mean + f64::from(eps)).unwrap().sqrt().unwrap();
            let y = leaf.broadcast_div(&rms).unwrap().broadcast_mul(&tensor(&w, &[d])).unwrap();
            let store = gradients(&y, &dy);

            let (mut out, mut inv) = (vec![f32::NAN; n * d], vec![f32::NAN; n]);
            forward(&x, &w, eps, &mut out, &mut inv);
            assert!(relative_error(&out, &values(&y)) < 5e-7);
            assert!(relative_error(&inv, &values(&rms.recip().unwrap())) < 5e-7);

            let mut dx = old.clone();
            backward(&dy, &x, &w, &inv, &mut dx);
            let right: Vec<f32> = old.iter().zip(gradient(&store, &leaf)).map(|(a, b)| a + b).collect();
            assert!(relative_error(&dx, &right) < 1e-6);
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let (n, d) = (301, 576);
        let (x, w, dy) = (normal(n * d, 1), normal(d, 2), normal(n * d, 3));
        let run = |count| {
            let (mut y, mut inv, mut dx) = (vec![0.0; n * d], vec![0.0; n], vec![0.0; n * d]);
            threads(count, || {
                forward(&x, &w, 1e-5, &mut y, &mut inv);
                backward(&dy, &x, &w, &inv, &mut dx);
            });
            (y, dx)
        };
        assert!(run(1) == run(3));
    }
}
