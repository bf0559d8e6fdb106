//! The small vector functions that the ops share: dot products, scaled sums, `exp`. Reductions run in
//! `LANES * 4` lanes that are added up in one fixed tree, whatever the machine.

pub(crate) use crate::simd::LANES;
use crate::simd::{simd, sum_lanes};

/// `sum(a * b)`, for the body of a `simd!` function. Four accumulators hide the latency of the FMA unit.
#[inline(always)]
pub(crate) fn dot_body(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut acc = [[0.0f32; LANES]; 4];
    let mut long_a = a.chunks_exact(4 * LANES);
    let mut long_b = b.chunks_exact(4 * LANES);
    for (x, y) in (&mut long_a).zip(&mut long_b) {
        for (j, acc) in acc.iter_mut().enumerate() {
            for l in 0..LANES {
                acc[l] = x[j * LANES + l].mul_add(y[j * LANES + l], acc[l]);
            }
        }
    }
    let mut short_a = long_a.remainder().chunks_exact(LANES);
    let mut short_b = long_b.remainder().chunks_exact(LANES);
    for (x, y) in (&mut short_a).zip(&mut short_b) {
        for l in 0..LANES {
            acc[0][l] = x[l].mul_add(y[l], acc[0][l]);
        }
    }
    let mut total = [0.0f32; LANES];
    for l in 0..LANES {
        total[l] = (acc[0][l] + acc[1][l]) + (acc[2][l] + acc[3][l]);
    }
    let mut tail = 0.0f32;
    for (x, y) in short_a.remainder().iter().zip(short_b.remainder()) {
        tail = x.mul_add(*y, tail);
    }
    sum_lanes(total) + tail
}

/// `sum(a * b * c)` over three slices of one length, for the body of a `simd!` function.
#[inline(always)]
pub(crate) fn sum3_body(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut acc = [0.0f32; LANES];
    let ((a, a_tail), (b, b_tail), (c, c_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>(), c.as_chunks::<LANES>());
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for l in 0..LANES {
            acc[l] = (a[l] * b[l]).mul_add(c[l], acc[l]);
        }
    }
    let mut tail = 0.0f32;
    for ((a, b), c) in a_tail.iter().zip(b_tail).zip(c_tail) {
        tail = (a * b).mul_add(*c, tail);
    }
    sum_lanes(acc) + tail
}

simd! {
    /// `sum(a * b)` over the shorter of the two.
    pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
        dot_body(a, b)
    }
}

simd! {
    /// `y += s * x`.
    pub(crate) fn add_scaled(y: &mut [f32], s: f32, x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = s.mul_add(*x, *y);
        }
    }
}

simd! {
    /// `y *= s`.
    pub(crate) fn scale(y: &mut [f32], s: f32) {
        for y in y {
            *y *= s;
        }
    }
}

/// `e^x` with a relative error below 2e-7 (1e-7 typically), without a branch, so that a loop over it vectorises.
/// NaN stays NaN, overflow gives infinity, underflow passes through the denormals to 0.
/// Cody and Waite's reduction to `|r| <= ln 2 / 2` and the polynomial of cephes' expf.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // 355 / 512: its products with n have no rounding.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons rather than min and max: those would turn NaN into a number.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let nf = rounded - ROUND;
    let r = nf.mul_add(-LN2_HIGH, x);
    let r = nf.mul_add(-LN2_LOW, r);
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    // 2^n in two factors, since n reaches from -150 to 128.
    let half = n >> 1;
    let first = f32::from_bits((half.wrapping_add(127) as u32) << 23);
    let second = f32::from_bits((n.wrapping_sub(half).wrapping_add(127) as u32) << 23);
    p * first * second
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The largest value in fixed lanes; NaN is passed over (it comes back through the exponentials).
#[inline(always)]
fn max_body(x: &[f32]) -> f32 {
    let mut acc = [f32::NEG_INFINITY; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for l in 0..LANES {
            acc[l] = if chunk[l] > acc[l] { chunk[l] } else { acc[l] };
        }
    }
    let mut most = f32::NEG_INFINITY;
    for &v in acc.iter().chain(chunks.remainder()) {
        most = if v > most { v } else { most };
    }
    most
}

simd! {
    /// The largest value; `-inf` where there is none.
    pub(crate) fn max(x: &[f32]) -> f32 {
        max_body(x)
    }
}

/// Replaces x by `e^(x - shift)` and returns the sum.
#[inline(always)]
fn exp_shifted_body(x: &mut [f32], shift: f32) -> f32 {
    let mut acc = [0.0f32; LANES];
    let mut chunks = x.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for l in 0..LANES {
            chunk[l] = exp(chunk[l] - shift);
            acc[l] += chunk[l];
        }
    }
    let mut tail = 0.0f32;
    for v in chunks.into_remainder() {
        *v = exp(*v - shift);
        tail += *v;
    }
    sum_lanes(acc) + tail
}

simd! {
    /// Replaces x by `e^(x - shift)` and returns the sum.
    pub(crate) fn exp_shifted(x: &mut [f32], shift: f32) -> f32 {
        exp_shifted_body(x, shift)
    }
}

simd! {
    /// One row of an online softmax (Milakov and Gimelshein, 2018): the new maximum of `seen` and x, and the sum of
    /// `e^(x - maximum)`, which replaces x.
    pub(crate) fn softmax_step(x: &mut [f32], seen: f32) -> (f32, f32) {
        let here = max_body(x);
        let most = if here > seen { here } else { seen };
        let sum = exp_shifted_body(x, most);
        (most, sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn exp_is_within_two_units_of_the_last_place() {
        let mut worst = 0.0f64;
        for i in 0..1_000_000 {
            let x = (-87.0 + 175.6 * f64::from(i) / 1e6) as f32;
            let right = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / right - 1.0).abs());
        }
        assert!(worst < 1.6e-7, "relative error {worst:e}");
    }

    #[test]
    fn exp_keeps_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(88.7) < f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        let tiny = f64::from(exp(-100.0)) / (-100.0f64).exp();
        assert!((tiny - 1.0).abs() < 0.05, "denormals: {tiny}");
    }

    #[test]
    fn dot_is_right_for_every_length() {
        let mut rng = Rng::new(1);
        for n in (0..200).chain([1000, 4097]) {
            let a: Vec<f32> = (0..n).map(|_| rng.normal() as f32).collect();
            let b: Vec<f32> = (0..n).map(|_| rng.normal() as f32).collect();
            let right: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let size: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a * b).abs()).sum();
            assert!((f64::from(dot(&a, &b)) - right).abs() <= 1e-6 * size, "n {n}");
        }
    }

    #[test]
    fn softmax_step_agrees_with_the_definition_for_every_length() {
        let mut rng = Rng::new(2);
        for n in 1..70 {
            let x: Vec<f32> = (0..n).map(|_| 3.0 * rng.normal() as f32).collect();
            let mut p = x.clone();
            let (most, sum) = softmax_step(&mut p, 0.5);
            let right = x.iter().fold(0.5f32, |a, b| a.max(*b));
            assert_eq!(most, right);
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let right_sum: f64 = x.iter().map(|v| f64::from(v - right).exp()).sum();
            assert!((f64::from(sum) / right_sum - 1.0).abs() < 5e-7, "n {n}");
            for (p, x) in p.iter().zip(&x) {
                assert!((f64::from(*p) / f64::from(x - right).exp() - 1.0).abs() < 2e-7);
            }
        }
    }

    #[test]
    fn scale_and_add_scaled_reach_every_value() {
        for n in [0, 1, 15, 16, 17, 100] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let mut y = vec![1.0; n];
            add_scaled(&mut y, 2.0, &x);
            scale(&mut y, 3.0);
            for (i, y) in y.iter().enumerate() {
                assert_eq!(*y, 3.0 + 6.0 * i as f32);
            }
        }
    }
}
