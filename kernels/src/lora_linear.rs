//! `y = W x + b + s B (A x)` (Hu et al., 2021). W and the bias are frozen: the backward pass gives
//! dx, dA and dB, never dW.
//!
//! With X `[n, in]`, T = s X A^T `[n, rank]` and dT = s dY B `[n, rank]`:
//!
//! ```text
//! Y  = X W^T + b + T B^T
//! dX = dY W + dT A        dA = dT^T X        dB = dY^T T
//! ```
//!
//! Saved between the passes: X, which other layers share, and nothing of its own.

use rayon::prelude::*;

use crate::matmul::{Mat, gemm};
use crate::weight::Weight;

/// The trained pair of one linear layer: A `[rank, in]`, B `[out, rank]`, row-major; `scale` is alpha / rank
/// (alpha / sqrt(rank) for rsLoRA).
#[derive(Clone, Copy, Debug)]
pub struct LoraPair<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub rank: usize,
    pub scale: f32,
}

impl LoraPair<'_> {
    /// `t = s x A^T`, `[n, rank]`.
    fn down(&self, x: &[f32], n: usize, t: &mut [f32]) {
        let columns = x.len() / n;
        gemm(t, self.rank, self.scale, Mat::new(x, n, columns), Mat::new(self.a, self.rank, columns).t(), 0.0);
    }
}

/// A linear layer as it stands in the model.
#[derive(Clone, Copy)]
pub struct LoraLinear<'a> {
    pub weight: &'a Weight,
    pub bias: Option<&'a [f32]>,
    pub lora: Option<LoraPair<'a>>,
}

impl LoraLinear<'_> {
    /// x `[n, in]`, y `[n, out]` (overwritten). `scratch` is resized to `[n, rank]` where needed.
    pub fn forward(&self, x: &[f32], n: usize, y: &mut [f32], scratch: &mut Vec<f32>) {
        self.check(x, n, y);
        if n == 0 {
            return;
        }
        let out = self.weight.rows();
        match self.bias {
            None => self.weight.mul(x, n, y, 0.0),
            Some(bias) => {
                y.par_chunks_mut(out).with_min_len((1usize << 14).div_ceil(out)).for_each(|y| y.copy_from_slice(bias));
                self.weight.mul(x, n, y, 1.0);
            }
        }
        if let Some(lora) = self.lora {
            let t = resized(scratch, n * lora.rank);
            lora.down(x, n, t);
            gemm(y, out, 1.0, Mat::new(t, n, lora.rank), Mat::new(lora.b, out, lora.rank).t(), 1.0);
        }
    }

    /// dy `[n, out]`, x `[n, in]`. ADDS to dx `[n, in]` where it is given (`None`: nobody needs it), and
    /// adds to `grads` = (da, db) where the layer has a LoRA. `A x` is computed again, not saved.
    pub fn backward(
        &self,
        dy: &[f32],
        x: &[f32],
        n: usize,
        dx: Option<&mut [f32]>,
        grads: Option<(&mut [f32], &mut [f32])>,
        scratch: &mut Vec<f32>,
    ) {
        self.check(x, n, dy);
        if n == 0 {
            return;
        }
        let (columns, out) = (self.weight.cols(), self.weight.rows());
        let dy_matrix = Mat::new(dy, n, out);
        let mut dx = dx;
        if let Some(dx) = dx.as_deref_mut() {
            assert_eq!(dx.len(), n * columns, "dx must be [{n}, {columns}]");
            self.weight.mul_transposed(dy, n, dx, 1.0);
        }
        let Some(lora) = self.lora else { return };
        let rank = lora.rank;
        let (t, dt) = resized(scratch, 2 * n * rank).split_at_mut(n * rank);
        gemm(dt, rank, lora.scale, dy_matrix, Mat::new(lora.b, out, rank), 0.0);
        if let Some(dx) = dx {
            gemm(dx, columns, 1.0, Mat::new(dt, n, rank), Mat::new(lora.a, rank, columns), 1.0);
        }
        if let Some((da, db)) = grads {
            assert_eq!(da.len(), rank * columns, "dA must be [{rank}, {columns}]");
            assert_eq!(db.len(), out * rank, "dB must be [{out}, {rank}]");
            lora.down(x, n, t);
            gemm(da, columns, 1.0, Mat::new(dt, n, rank).t(), Mat::new(x, n, columns), 1.0);
            gemm(db, rank, 1.0, dy_matrix.t(), Mat::new(t, n, rank), 1.0);
        }
    }

    fn check(&self, x: &[f32], n: usize, y: &[f32]) {
        let (out, columns) = (self.weight.rows(), self.weight.cols());
        assert_eq!(x.len(), n * columns, "x must be [{n}, {columns}]");
        assert_eq!(y.len(), n * out, "y must be [{n}, {out}]");
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), out, "the bias must be [{out}]");
        }
        if let Some(lora) = self.lora {
            assert_eq!(lora.a.len(), lora.rank * columns, "A must be [{}, {columns}]", lora.rank);
            assert_eq!(lora.b.len(), out * lora.rank, "B must be [{out}, {}]", lora.rank);
        }
    }
}

/// The first `len` values of a buffer that only ever grows.
fn resized(scratch: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    &mut scratch[..len]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::quantize;
    use crate::testing::{gradient, gradients, normal, relative_error, tensor, threads, values, var};
    use crate::weight::{DType, GgmlDType};

    fn plus(a: &[f32], b: &[f32]) -> Vec<f32> {
        a.iter().zip(b).map(|(a, b)| a + b).collect()
    }

    fn agrees_with_autograd(weight: &Weight, n: usize, rank: usize, with_bias: bool) {
        let (out, columns) = (weight.rows(), weight.cols());
        let w = weight.to_f32();
        let (x, bias, dy) = (normal(n * columns, 2), normal(out, 3), normal(n * out, 4));
        let (a, b, scale) = (normal(rank * columns, 5), normal(out * rank, 6), 1.7);
        let (xv, av, bv) = (var(&x, &[n, columns]), var(&a, &[rank, columns]), var(&b, &[out, rank]));
        let mut y = xv.matmul(&tensor(&w, &[out, columns]).t().unwrap()).unwrap();
        if with_bias {
            y = y.broadcast_add(&tensor(&bias, &[out])).unwrap();
        }
        let adapter = xv.matmul(&av.t().unwrap()).unwrap().matmul(&bv.t().unwrap()).unwrap();
        let y = (y + (adapter * f64::from(scale)).unwrap()).unwrap();
        let store = gradients(&y, &dy);

        let lora = Some(LoraPair { a: &a, b: &b, rank, scale });
        let layer = LoraLinear { weight, bias: with_bias.then_some(&bias), lora };
        let mut scratch = Vec::new();
        let mut ours = vec![f32::NAN; n * out];
        layer.forward(&x, n, &mut ours, &mut scratch);
        assert!(relative_error(&ours, &values(&y)) < 2e-6);

        let (old_dx, old_da, old_db) = (normal(n * columns, 7), normal(rank * columns, 8), normal(out * rank, 9));
        let (mut dx, mut da, mut db) = (old_dx.clone(), old_da.clone(), old_db.clone());
        scratch.fill(f32::NAN);
        layer.backward(&dy, &x, n, Some(&mut dx), Some((&mut da, &mut db)), &mut scratch);
        assert!(relative_error(&dx, &plus(&old_dx, &gradient(&store, &xv))) < 2e-6);
        assert!(relative_error(&da, &plus(&old_da, &gradient(&store, &av))) < 2e-6);
        assert!(relative_error(&db, &plus(&old_db, &gradient(&store, &bv))) < 2e-6);

        // Nobody needs dx: the gradients are the same bits.
        let (mut da2, mut db2) = (old_da.clone(), old_db.clone());
        layer.backward(&dy, &x, n, None, Some((&mut da2, &mut db2)), &mut scratch);
        assert!(da == da2 && db == db2);
    }

    #[test]
    fn forward_and_gradients_agree_with_autograd() {
        for (n, columns, out, rank) in [(1, 32, 48, 2), (5, 17, 9, 3), (70, 64, 172, 8), (33, 300, 5, 16), (200, 576, 192, 16)] {
            let weight = Weight::from_f32(normal(out * columns, 1), out, columns);
            agrees_with_autograd(&weight, n, rank, true);
            agrees_with_autograd(&weight, n, rank, false);
        }
    }

    #[test]
    fn a_quantised_weight_agrees_with_autograd_on_its_values() {
        let bytes = quantize(DType::Quant(GgmlDType::Q4_1), &normal(192 * 576, 1), 576).unwrap();
        let weight = Weight::from_bytes(DType::Quant(GgmlDType::Q4_1), 192, 576, bytes.into()).unwrap();
        agrees_with_autograd(&weight, 40, 4, true);
        agrees_with_autograd(&weight, 1, 4, false);
    }

    #[test]
    fn without_lora_it_is_the_plain_layer() {
        let weight = Weight::from_f32(normal(6 * 4, 1), 6, 4);
        let layer = LoraLinear { weight: &weight, bias: None, lora: None };
        let (x, dy) = (normal(3 * 4, 2), normal(3 * 6, 3));
        let (mut y, mut right) = (vec![f32::NAN; 18], vec![0.0; 18]);
        layer.forward(&x, 3, &mut y, &mut Vec::new());
        weight.mul(&x, 3, &mut right, 0.0);
        assert_eq!(y, right);
        let (mut dx, mut right) = (vec![1.0; 12], vec![1.0; 12]);
        layer.backward(&dy, &x, 3, Some(&mut dx), None, &mut Vec::new());
        weight.mul_transposed(&dy, 3, &mut right, 1.0);
        assert_eq!(dx, right);
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let (n, columns, out, rank) = (301, 576, 1536, 16);
        let bytes = quantize(DType::Quant(GgmlDType::Q8_0), &normal(out * columns, 1), columns).unwrap();
        let weight = Weight::from_bytes(DType::Quant(GgmlDType::Q8_0), out, columns, bytes.into()).unwrap();
        let (x, dy, a, b) = (normal(n * columns, 2), normal(n * out, 3), normal(rank * columns, 4), normal(out * rank, 5));
        let run = |count| {
            let layer = LoraLinear { weight: &weight, bias: None, lora: Some(LoraPair { a: &a, b: &b, rank, scale: 2.0 }) };
            let (mut y, mut dx) = (vec![0.0; n * out], vec![0.0; n * columns]);
            let (mut da, mut db) = (vec![0.0; rank * columns], vec![0.0; out * rank]);
            threads(count, || {
                let mut scratch = Vec::new();
                layer.forward(&x, n, &mut y, &mut scratch);
                layer.backward(&dy, &x, n, Some(&mut dx), Some((&mut da, &mut db)), &mut scratch);
            });
            (y, dx, da, db)
        };
        let one = run(1);
        assert!(one == run(2) && one == run(3));
    }
}
