//! Rotary position embedding (Su et al., 2021), in place on q or k. Saved between the passes: the table.

use rayon::prelude::*;

use crate::simd::simd;

/// Values of one piece of work for a thread.
const PIECE: usize = 1 << 14;

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
        let mut table = Self::default();
        table.cos.reserve_exact(positions.len() * inv_freq.len());
        table.sin.reserve_exact(positions.len() * inv_freq.len());
        for &position in positions {
            for &frequency in inv_freq {
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                table.cos.push(cos);
                table.sin.push(sin);
            }
        }
        table
    }
}

/// x: `[n, heads * head_dim]`, turned in place.
pub fn forward(x: &mut [f32], heads: usize, head_dim: usize, table: &RopeTable, style: RopeStyle) {
    turn(x, heads, head_dim, table, style, 1.0);
}

/// The gradient turns back by the same angles, in place.
pub fn backward(dx: &mut [f32], heads: usize, head_dim: usize, table: &RopeTable, style: RopeStyle) {
    turn(dx, heads, head_dim, table, style, -1.0);
}

fn turn(x: &mut [f32], heads: usize, head_dim: usize, table: &RopeTable, style: RopeStyle, sign: f32) {
    let (row, half) = (heads * head_dim, head_dim / 2);
    assert!(head_dim > 0 && head_dim.is_multiple_of(2), "a head of {head_dim} values has no pairs to turn");
    assert!(
        table.cos.len() == table.sin.len() && heads > 0 && x.len() * half == table.cos.len() * row,
        "x has {} rows of {row}, the table of angles {}",
        x.len() / row.max(1),
        table.cos.len() / half
    );
    let rows = PIECE.div_ceil(row);
    let parts = |(x, cos, sin): (&mut [f32], &[f32], &[f32])| match style {
        RopeStyle::Half => turn_halves(x, heads, cos, sin, sign, half),
        RopeStyle::Interleaved => turn_pairs(x, heads, cos, sin, sign, half),
    };
    if x.len() <= 2 * PIECE {
        return parts((x, &table.cos, &table.sin));
    }
    (x.par_chunks_mut(rows * row), table.cos.par_chunks(rows * half), table.sin.par_chunks(rows * half))
        .into_par_iter()
        .for_each(parts);
}

simd! {
    fn turn_halves(x: &mut [f32], heads: usize, cos: &[f32], sin: &[f32], sign: f32, half: usize) {
        for (i, head) in x.chunks_exact_mut(2 * half).enumerate() {
            let at = i / heads * half;
            let (first, second) = head.split_at_mut(half);
            for (((a, b), c), s) in first.iter_mut().zip(second).zip(&cos[at..at + half]).zip(&sin[at..at + half]) {
                let s = s * sign;
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
    }
}

simd! {
    fn turn_pairs(x: &mut [f32], heads: usize, cos: &[f32], sin: &[f32], sign: f32, half: usize) {
        for (i, head) in x.chunks_exact_mut(2 * half).enumerate() {
            let at = i / heads * half;
            for (([a, b], c), s) in head.as_chunks_mut::<2>().0.iter_mut().zip(&cos[at..at + half]).zip(&sin[at..at + half]) {
                let s = s * sign;
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{gradient, gradients, normal, relative_error, tensor, threads, values, var};
    use candle_core::Tensor;

    fn inv_freq(half: usize) -> Vec<f32> {
        (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect()
    }

    /// `x * cos + rotate_half(x) * sin`, made of candle's differentiable ops.
    fn oracle(x: &Tensor, heads: usize, head_dim: usize, table: &RopeTable, style: RopeStyle) -> Tensor {
        let (n, half) = (x.dims()[0], head_dim / 2);
        let (cos, sin) = (tensor(&table.cos, &[n, 1, half]), tensor(&table.sin, &[n, 1, half]));
        let (a, b) = match style {
            RopeStyle::Half => {
                let x = x.reshape((n, heads, 2, half)).unwrap();
                (x.narrow(2, 0, 1).unwrap().squeeze(2).unwrap(), x.narrow(2, 1, 1).unwrap().squeeze(2).unwrap())
            }
            RopeStyle::Interleaved => {
                let x = x.reshape((n, heads, half, 2)).unwrap();
                (x.narrow(3, 0, 1).unwrap().squeeze(3).unwrap(), x.narrow(3, 1, 1).unwrap().squeeze(3).unwrap())
            }
        };
        let turned_a = (a.broadcast_mul(&cos).unwrap() - b.broadcast_mul(&sin).unwrap()).unwrap();
        let turned_b = (b.broadcast_mul(&cos).unwrap() + a.broadcast_mul(&sin).unwrap()).unwrap();
        let at = if style == RopeStyle::Half { 2 } else { 3 };
        Tensor::stack(&[turned_a, turned_b], at).unwrap().reshape((n, heads * head_dim)).unwrap()
    }

    #[test]
    fn forward_and_gradient_agree_with_autograd_in_both_styles() {
        for style in [RopeStyle::Half, RopeStyle::Interleaved] {
            for (n, heads, head_dim) in [(1, 1, 2), (7, 3, 8), (90, 9, 64), (5, 2, 18)] {
                let positions: Vec<u32> = (0..n as u32).map(|i| i * i % 4000).collect();
                let table = RopeTable::new(&positions, &inv_freq(head_dim / 2));
                let size = n * heads * head_dim;
                let (x, dy) = (normal(size, 1), normal(size, 2));
                let leaf = var(&x, &[n, heads * head_dim]);
                let y = oracle(&leaf, heads, head_dim, &table, style);
                let store = gradients(&y, &dy);
                let mut out = x.clone();
                forward(&mut out, heads, head_dim, &table, style);
                assert!(relative_error(&out, &values(&y)) < 2e-7);
                let mut dx = dy.clone();
                backward(&mut dx, heads, head_dim, &table, style);
                assert!(relative_error(&dx, &gradient(&store, &leaf)) < 2e-7);
            }
        }
    }

    #[test]
    fn angles_are_products_in_f32() {
        let table = RopeTable::new(&[0, 1, 3001], &[1.0, 0.1]);
        assert_eq!(table.cos[..2], [1.0, 1.0]);
        assert_eq!(table.sin[..2], [0.0, 0.0]);
        assert!((table.sin[2] - 0.841_470_96).abs() < 1e-7 && (table.cos[3] - 0.995_004_2).abs() < 1e-7);
        // 3001 * 0.1 rounds to f32 first: 300.1 there is 300.100006...
        let angle = 3001f32 * 0.1f32;
        assert!((f64::from(table.cos[5]) - f64::from(angle).cos()).abs() < 1e-7);
    }

    #[test]
    fn turning_back_undoes_it_for_any_number_of_threads() {
        let (n, heads, head_dim) = (300, 4, 32);
        let positions: Vec<u32> = (0..n as u32).collect();
        let table = RopeTable::new(&positions, &inv_freq(16));
        let x = normal(n * heads * head_dim, 1);
        let run = |count| {
            let mut y = x.clone();
            threads(count, || forward(&mut y, heads, head_dim, &table, RopeStyle::Half));
            y
        };
        let mut y = run(1);
        assert!(y == run(3));
        backward(&mut y, heads, head_dim, &table, RopeStyle::Half);
        assert!(relative_error(&y, &x) < 3e-7);
    }
}
