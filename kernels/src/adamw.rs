//! AdamW (Loshchilov and Hutter, 2019, algorithm 2) over one flat buffer of parameters, and the
//! clipping of its gradient by the global norm. Moments are f32.

use rayon::prelude::*;

use crate::simd::simd;

/// Values of one piece of work for a thread; also the unit in which the norm is summed.
const PIECE: usize = 1 << 14;

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

/// The factors of one step, in f32 as torch's kernels take them.
#[derive(Clone, Copy)]
struct Factors {
    keep: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    eps: f32,
    root_correction2: f32,
    step_size: f32,
}

impl AdamW {
    /// One step in place; `step` counts from 1. All slices have the same length.
    /// As torch.optim.AdamW: decay first (`p -= lr * weight_decay * p`), then the update.
    pub fn step(&self, params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32], learning_rate: f32, step: u64) {
        let n = params.len();
        assert!([grads.len(), m.len(), v.len()] == [n; 3], "{n} parameters need as many gradients and moments");
        assert!(step >= 1, "steps count from 1");
        let (beta1, beta2) = (as_written(self.beta1), as_written(self.beta2));
        let learning_rate = as_written(learning_rate);
        let power = step as f64;
        let factors = Factors {
            keep: (1.0 - learning_rate * as_written(self.weight_decay)) as f32,
            beta2: self.beta2,
            one_minus_beta1: (1.0 - beta1) as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            eps: self.eps,
            root_correction2: (1.0 - beta2.powf(power)).sqrt() as f32,
            step_size: (learning_rate / (1.0 - beta1.powf(power))) as f32,
        };
        if n <= 2 * PIECE {
            return step_piece(params, grads, m, v, factors);
        }
        (params.par_chunks_mut(PIECE), grads.par_chunks(PIECE), m.par_chunks_mut(PIECE), v.par_chunks_mut(PIECE))
            .into_par_iter()
            .for_each(|(params, grads, m, v)| step_piece(params, grads, m, v, factors));
    }
}

/// The f64 that was meant by a setting: 0.999 and not 0.99900001287. The difference matters in `1 - beta2`,
/// which torch computes in f64 from the decimal that the user wrote.
fn as_written(setting: f32) -> f64 {
    // What Display writes is the shortest decimal that reads back as this f32.
    setting.to_string().parse().unwrap_or(f64::from(setting))
}

simd! {
    fn step_piece(params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32], f: Factors) {
        for (((p, g), m), v) in params.iter_mut().zip(grads).zip(m).zip(v) {
            let kept = *p * f.keep;
            *m += f.one_minus_beta1 * (g - *m);
            *v = f.beta2 * *v + f.one_minus_beta2 * g * g;
            let denominator = v.sqrt() / f.root_correction2 + f.eps;
            *p = kept - f.step_size * (*m / denominator);
        }
    }
}

/// The L2 norm over all of `grads`, summed in f64 in a fixed order.
pub fn global_norm(grads: &[f32]) -> f64 {
    let sum: f64 = if grads.len() <= 2 * PIECE {
        grads.chunks(PIECE).map(squares).sum()
    } else {
        // Collected before they are summed: the order is that of the pieces.
        grads.par_chunks(PIECE).map(squares).collect::<Vec<f64>>().iter().sum()
    };
    sum.sqrt()
}

simd! {
    fn squares(x: &[f32]) -> f64 {
        let mut acc = [0.0f64; 16];
        let (chunks, tail) = x.as_chunks::<16>();
        for chunk in chunks {
            for (acc, x) in acc.iter_mut().zip(chunk) {
                *acc += f64::from(*x) * f64::from(*x);
            }
        }
        let tail: f64 = tail.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        acc.iter().sum::<f64>() + tail
    }
}

/// Scales `grads` so that its norm is at most `max_norm`; as torch: factor `max_norm / (norm + 1e-6)`,
/// applied only where it is below 1. Returns the norm before clipping.
pub fn clip_global_norm(grads: &mut [f32], max_norm: f32) -> f64 {
    let norm = global_norm(grads);
    let factor = f64::from(max_norm) / (norm + 1e-6);
    if factor < 1.0 {
        grads.par_chunks_mut(PIECE).for_each(|grads| crate::vector::scale(grads, factor as f32));
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{normal, relative_error, threads};

    /// torch/optim/adamw.py (_single_tensor_adamw) in f64.
    fn reference(settings: [f64; 4], grads: &[Vec<f32>], start: &[f32], learning_rate: f64) -> Vec<f32> {
        let [beta1, beta2, eps, decay] = settings;
        let mut p: Vec<f64> = start.iter().map(|p| f64::from(*p)).collect();
        let (mut m, mut v) = (vec![0.0; p.len()], vec![0.0; p.len()]);
        for (step, g) in grads.iter().enumerate() {
            let step = step as i32 + 1;
            for i in 0..p.len() {
                let g = f64::from(g[i]);
                p[i] *= 1.0 - learning_rate * decay;
                m[i] += (1.0 - beta1) * (g - m[i]);
                v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
                let denominator = v[i].sqrt() / (1.0 - beta2.powi(step)).sqrt() + eps;
                p[i] -= learning_rate / (1.0 - beta1.powi(step)) * m[i] / denominator;
            }
        }
        p.iter().map(|p| *p as f32).collect()
    }

    #[test]
    fn twenty_steps_agree_with_torchs_algorithm() {
        for n in [1, 33, 3 * PIECE + 1] {
            let start = normal(n, 1);
            // Gradients of very different size, so that eps matters for some.
            let grads: Vec<Vec<f32>> = (0..20)
                .map(|s| normal(n, 10 + s).iter().enumerate().map(|(i, g)| g * 10f32.powi(-(i as i32 % 10))).collect())
                .collect();
            let adamw = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay: 0.1 };
            let (mut p, mut m, mut v) = (start.clone(), vec![0.0; n], vec![0.0; n]);
            for (i, g) in grads.iter().enumerate() {
                adamw.step(&mut p, g, &mut m, &mut v, 0.02, i as u64 + 1);
            }
            let right = reference([0.9, 0.99, 1e-6, 0.1], &grads, &start, 0.02);
            let moved: Vec<f32> = p.iter().zip(&start).map(|(a, b)| a - b).collect();
            let right_moved: Vec<f32> = right.iter().zip(&start).map(|(a, b)| a - b).collect();
            // What is left is the rounding of p itself, twenty times 6e-8 of a value that moved by a few tenths.
            let error = relative_error(&moved, &right_moved);
            assert!(error < 1e-5, "{n} parameters: {error:e}");
        }
    }

    /// At the first step m / correction1 = g and v / correction2 = g^2, whatever the betas.
    #[test]
    fn the_first_step_moves_by_the_learning_rate() {
        let (mut p, mut m, mut v) = ([1.0, -2.0], [0.0; 2], [0.0; 2]);
        AdamW::default().step(&mut p, &[0.5, 0.001], &mut m, &mut v, 0.1, 1);
        assert!((p[0] - 0.899).abs() < 1e-6 && (p[1] + 2.098).abs() < 2e-6, "{p:?}");
    }

    #[test]
    fn decay_alone_shrinks_every_parameter() {
        let (mut p, mut m, mut v) = ([1.0, -2.0], [0.0; 2], [0.0; 2]);
        let adamw = AdamW { weight_decay: 0.5, ..AdamW::default() };
        adamw.step(&mut p, &[0.0, 0.0], &mut m, &mut v, 0.1, 1);
        assert_eq!(p, [0.95, -1.9]);
    }

    #[test]
    fn settings_mean_what_was_written() {
        assert_eq!(as_written(0.999), 0.999);
        assert_eq!(as_written(1e-8), 1e-8);
        assert_eq!(as_written(2e-4), 2e-4);
        assert!(as_written(f32::NAN).is_nan());
    }

    #[test]
    fn the_norm_is_that_of_the_definition_and_clipping_reaches_it() {
        for n in [1, 17, 4 * PIECE + 3] {
            let grads = normal(n, 1);
            let right = grads.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            let one = threads(1, || global_norm(&grads));
            assert!((one / right - 1.0).abs() < 1e-12);
            assert_eq!(one.to_bits(), threads(3, || global_norm(&grads)).to_bits());

            let mut clipped = grads.clone();
            let max_norm = 0.25 * right as f32;
            assert_eq!(clip_global_norm(&mut clipped, max_norm), one);
            assert!((global_norm(&clipped) / f64::from(max_norm) - 1.0).abs() < 1e-4);
            let mut untouched = grads.clone();
            clip_global_norm(&mut untouched, 1.1 * right as f32);
            assert_eq!(untouched, grads);
        }
        assert_eq!(global_norm(&[]), 0.0);
    }

    #[test]
    fn a_nan_gradient_is_told_by_the_norm() {
        let mut grads = vec![1.0, f32::NAN, 2.0];
        assert!(clip_global_norm(&mut grads, 1.0).is_nan());
    }
}
