//! Weight-decomposed LoRA (Liu et al., 2024): `V = W + s B A` gives the direction of each row, a trained magnitude its
//! length: `y = (magnitude / |V|) V x + b`. The norms |V| are constants for the gradient, as in the paper (4.3) and in PEFT.
//!
//! V is never made: `|V|^2 = |W|^2 + 2 s (W A^T) . B + s^2 (B A A^T) . B`, row by row.

use rayon::prelude::*;

use crate::lora_linear::LoraPair;
use crate::matmul::{Mat, gemm};
use crate::weight::Weight;

/// What multiplies the rows of V: for given A, B and magnitude; computed again when any of them moves.
#[derive(Clone, Debug, PartialEq)]
pub struct RowScale {
    /// `[out]`: magnitude / |V|.
    pub factors: Vec<f32>,
    /// `[out]`: 1 / |V|, the derivative of the factor by the magnitude.
    pub inverse_norms: Vec<f32>,
}

impl RowScale {
    /// `row_squares` `[out]` are those of `weight` ([`Weight::row_squares`]), `magnitude` is `[out]`. A row of V that is all
    /// zeros has no direction: it keeps the factor 1, and its magnitude gets no gradient.
    pub fn new(weight: &Weight, row_squares: &[f64], pair: &LoraPair, magnitude: &[f32]) -> Self {
        assert_eq!(magnitude.len(), weight.rows(), "the magnitude must be [{}]", weight.rows());
        let norms = row_norms(weight, row_squares, pair);
        let factors = norms.iter().zip(magnitude).map(|(n, m)| if *n > 0.0 { m / n } else { 1.0 }).collect();
        let inverse_norms = norms.iter().map(|n| if *n > 0.0 { 1.0 / n } else { 0.0 }).collect();
        Self { factors, inverse_norms }
    }
}

/// `|W + s B A|` of each row, `[out]`.
fn row_norms(weight: &Weight, row_squares: &[f64], pair: &LoraPair) -> Vec<f32> {
    let (out, columns, rank, s) = (weight.rows(), weight.cols(), pair.rank, f64::from(pair.scale));
    assert_eq!(row_squares.len(), out, "the squares of the rows must be [{out}]");
    let mut cross = vec![0.0; rank * out]; // [rank, out]: A W^T
    weight.mul(pair.a, rank, &mut cross, 0.0);
    let a = Mat::new(pair.a, rank, columns);
    let mut gram = vec![0.0; rank * rank]; // [rank, rank]: A A^T
    gemm(&mut gram, rank, 1.0, a, a.t(), 0.0);
    let mut own = vec![0.0; out * rank]; // [out, rank]: B A A^T
    gemm(&mut own, rank, 1.0, Mat::new(pair.b, out, rank), Mat::new(&gram, rank, rank), 0.0);
    let row = |(o, (b, own)): (usize, (&[f32], &[f32]))| {
        let added = b.iter().zip(own).enumerate().map(|(r, (b, own))| {
            let cross = f64::from(cross[r * out + o]);
            f64::from(*b) * (2.0 * s * cross + s * s * f64::from(*own))
        });
        // Rounding may leave a square of nothing below 0.
        (row_squares[o] + added.sum::<f64>()).max(0.0).sqrt() as f32
    };
    pair.b.par_chunks_exact(rank).zip(own.par_chunks_exact(rank)).enumerate().with_min_len(1024).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::quantize;
    use crate::testing::{normal, relative_error, tensor, values};
    use crate::weight::{DType, GgmlDType};

    fn agrees_with_the_dense_product(weight: &Weight, rank: usize) {
        let (out, columns) = (weight.rows(), weight.cols());
        let (a, b, scale) = (normal(rank * columns, 2), normal(out * rank, 3), 0.7);
        let (av, bv) = (tensor(&a, &[rank, columns]), tensor(&b, &[out, rank]));
        let dense = (tensor(&weight.to_f32(), &[out, columns]) + (bv.matmul(&av).unwrap() * f64::from(scale)).unwrap()).unwrap();
        let right = values(&dense.sqr().unwrap().sum(1).unwrap().sqrt().unwrap());
        let pair = LoraPair { a: &a, b: &b, rank, scale, dora: None, dropout: None };
        let norms = row_norms(weight, &weight.row_squares(), &pair);
        assert!(relative_error(&norms, &right) < 1e-6);
        let magnitude: Vec<f32> = (0..out).map(|o| 1.0 + o as f32).collect();
        let rows = RowScale::new(weight, &weight.row_squares(), &pair, &magnitude);
        let factors: Vec<f32> = right.iter().zip(&magnitude).map(|(n, m)| m / n).collect();
        let inverse: Vec<f32> = right.iter().map(|n| 1.0 / n).collect();
        assert!(relative_error(&rows.factors, &factors) < 1e-6 && relative_error(&rows.inverse_norms, &inverse) < 1e-6);
    }

    #[test]
    fn norms_are_those_of_the_dense_product() {
        for (out, columns, rank) in [(1, 5, 1), (9, 17, 3), (48, 64, 16), (300, 576, 40)] {
            agrees_with_the_dense_product(&Weight::from_f32(normal(out * columns, 1), out, columns), rank);
        }
        let bytes = quantize(DType::Quant(GgmlDType::Q4_1), &normal(192 * 576, 1), 576).unwrap();
        let weight = Weight::from_bytes(DType::Quant(GgmlDType::Q4_1), 192, 576, bytes.into()).unwrap();
        agrees_with_the_dense_product(&weight, 8);
    }

    #[test]
    fn with_b_zero_the_magnitude_of_the_base_gives_factors_of_exactly_one() {
        let (out, columns, rank) = (40, 33, 4);
        let mut w = normal(out * columns, 1);
        // A row without a direction, as in a pruned model.
        w[columns..2 * columns].fill(0.0);
        let weight = Weight::from_f32(w, out, columns);
        let squares = weight.row_squares();
        let (a, b) = (normal(rank * columns, 2), vec![0.0; out * rank]);
        let magnitude: Vec<f32> = squares.iter().map(|s| s.sqrt() as f32).collect();
        let pair = LoraPair { a: &a, b: &b, rank, scale: 2.0, dora: None, dropout: None };
        let rows = RowScale::new(&weight, &squares, &pair, &magnitude);
        assert!(rows.factors.iter().all(|f| *f == 1.0), "{:?}", rows.factors);
        assert_eq!(rows.inverse_norms[1], 0.0);
        assert!(rows.inverse_norms.iter().all(|n| n.is_finite()));
    }
}
