//! SwiGLU (Shazeer, 2020): `y = silu(gate) * up`, `silu(x) = x / (1 + e^-x)`.
//! Saved between the passes: gate and up.

use rayon::prelude::*;

use crate::simd::simd;
use crate::vector::sigmoid;

/// Values of one piece of work for a thread.
const PIECE: usize = 1 << 14;

/// gate, up, y: the same length.
pub fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
    assert!(gate.len() == y.len() && up.len() == y.len(), "gate {}, up {} and y {} differ", gate.len(), up.len(), y.len());
    if y.len() <= 2 * PIECE {
        return forward_piece(gate, up, y);
    }
    y.par_chunks_mut(PIECE)
        .zip(gate.par_chunks(PIECE))
        .zip(up.par_chunks(PIECE))
        .for_each(|((y, gate), up)| forward_piece(gate, up, y));
}

/// Overwrites dgate and dup.
pub fn backward(dy: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    let n = dy.len();
    assert!([gate.len(), up.len(), dgate.len(), dup.len()] == [n; 4], "gate, up and their gradients must have {n} values");
    if n <= 2 * PIECE {
        return backward_piece(dy, gate, up, dgate, dup);
    }
    (dgate.par_chunks_mut(PIECE), dup.par_chunks_mut(PIECE), dy.par_chunks(PIECE), gate.par_chunks(PIECE), up.par_chunks(PIECE))
        .into_par_iter()
        .for_each(|(dgate, dup, dy, gate, up)| backward_piece(dy, gate, up, dgate, dup));
}

simd! {
    fn forward_piece(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = g * sigmoid(*g) * u;
        }
    }
}

simd! {
    fn backward_piece(dy: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        for ((((dgate, dup), dy), g), u) in dgate.iter_mut().zip(dup).zip(dy).zip(gate).zip(up) {
            let s = sigmoid(*g);
            // silu'(g) = s (1 + g (1 - s))
            *dgate = dy * u * s * (1.0 + g * (1.0 - s));
            *dup = dy * g * s;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{gradient, gradients, normal, relative_error, threads, values, var};

    #[test]
    fn forward_and_gradients_agree_with_autograd() {
        for n in [1, 15, 17, 1000, 3 * PIECE + 5] {
            let scaled = |seed| normal(n, seed).iter().map(|v| 4.0 * v).collect::<Vec<f32>>();
            let (gate, up, dy) = (scaled(1), normal(n, 2), normal(n, 3));
            let (g, u) = (var(&gate, &[n]), var(&up, &[n]));
            let sigmoid = ((g.neg().unwrap().exp().unwrap() + 1.0).unwrap()).recip().unwrap();
            let y = g.mul(&sigmoid).unwrap().mul(&u).unwrap();
            let store = gradients(&y, &dy);

            let mut out = vec![f32::NAN; n];
            forward(&gate, &up, &mut out);
            assert!(relative_error(&out, &values(&y)) < 3e-7);
            let (mut dgate, mut dup) = (vec![f32::NAN; n], vec![f32::NAN; n]);
            backward(&dy, &gate, &up, &mut dgate, &mut dup);
            assert!(relative_error(&dgate, &gradient(&store, &g)) < 5e-7);
            assert!(relative_error(&dup, &gradient(&store, &u)) < 3e-7);
        }
    }

    #[test]
    fn large_gates_saturate() {
        let gate = [-1000.0, -100.0, 100.0, 1000.0];
        let mut y = [0.0; 4];
        forward(&gate, &[2.0; 4], &mut y);
        assert_eq!(y[0], 0.0);
        assert!(y[1].abs() < 1e-35, "{}", y[1]);
        assert_eq!(y[2..], [200.0, 2000.0]);
        let (mut dgate, mut dup) = ([0.0; 4], [0.0; 4]);
        backward(&[1.0; 4], &gate, &[2.0; 4], &mut dgate, &mut dup);
        assert!(dgate[..2].iter().all(|v| v.abs() < 1e-35) && dgate[2..] == [2.0, 2.0]);
        assert_eq!(dup[2..], [100.0, 1000.0]);
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let n = 5 * PIECE + 7;
        let (gate, up) = (normal(n, 1), normal(n, 2));
        let run = |count| {
            let mut y = vec![0.0; n];
            threads(count, || forward(&gate, &up, &mut y));
            y
        };
        assert_eq!(run(1), run(3));
    }
}
