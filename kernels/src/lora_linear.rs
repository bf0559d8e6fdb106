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
//! With DoRA (Liu et al., 2024) the rows of U = X W^T + T B^T are scaled, Y = U diag(f) + b, and everything that flows back
//! is scaled, too; f = magnitude / |W + s B A|, whose norm counts as constant:
//!
//! ```text
//! dY' = dY diag(f), in the place of dY above        dmagnitude = column sums of (dY * U) / |W + s B A|
//! ```
//!
//! Dropout puts X' = mask(X) in the place of X wherever the adapter reads it. Under DoRA that is U as a whole (as in PEFT,
//! tuners/lora/variants.py), so that Y = (X - X') W^T + b + U' diag(f).
//!
//! Saved between the passes: X, which other layers share, and with DoRA U; else nothing of its own.

use rayon::prelude::*;

use crate::dora::RowScale;
use crate::dropout::Dropout;
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
    /// Of the rows of W + s B A, where the adapter is DoRA.
    pub dora: Option<&'a RowScale>,
    /// In training only.
    pub dropout: Option<Dropout<'a>>,
}

impl LoraPair<'_> {
    /// `t = s x A^T`, `[n, rank]`.
    fn down(&self, x: &[f32], n: usize, t: &mut [f32]) {
        let columns = x.len() / n;
        gemm(t, self.rank, self.scale, Mat::new(x, n, columns), Mat::new(self.a, self.rank, columns).t(), 0.0);
    }

    /// `y += s x A^T B^T`; t is `[n, rank]`.
    fn add_product(&self, x: &[f32], n: usize, t: &mut [f32], y: &mut [f32]) {
        let out = y.len() / n;
        self.down(x, n, t);
        gemm(y, out, 1.0, Mat::new(t, n, self.rank), Mat::new(self.b, out, self.rank).t(), 1.0);
    }

    /// What the adapter reads of x: x itself, or what dropout leaves of it in `buffer`.
    fn input<'x>(&self, x: &'x [f32], buffer: &'x mut [f32]) -> &'x [f32] {
        match self.dropout {
            None => x,
            Some(dropout) => {
                dropout.forward(x, buffer);
                buffer
            }
        }
    }
}

/// Where the gradients of a pair are added, laid out as the pair.
pub struct LoraGrads<'a> {
    pub a: &'a mut [f32],
    pub b: &'a mut [f32],
    /// `[out]`; empty without DoRA.
    pub magnitude: &'a mut [f32],
    /// `[n, out]`, as the forward pass left it; empty without DoRA.
    pub unscaled: &'a [f32],
}

/// A linear layer as it stands in the model.
#[derive(Clone, Copy)]
pub struct LoraLinear<'a> {
    pub weight: &'a Weight,
    pub bias: Option<&'a [f32]>,
    pub lora: Option<LoraPair<'a>>,
}

impl LoraLinear<'_> {
    /// x `[n, in]`, y `[n, out]` (overwritten). Where a backward pass follows, `unscaled` gets U `[n, out]` of a DoRA layer
    /// (and is left alone without). `scratch` grows to the rank (and to `in`, with dropout) values a token.
    pub fn forward(&self, x: &[f32], n: usize, y: &mut [f32], unscaled: Option<&mut Vec<f32>>, scratch: &mut Vec<f32>) {
        self.check(x, n, y);
        if n == 0 {
            return;
        }
        let Some(lora) = self.lora else { return self.base(x, n, y) };
        let kept = if lora.dropout.is_some() { x.len() } else { 0 };
        let (t, kept) = resized(scratch, n * lora.rank + kept).split_at_mut(n * lora.rank);
        let input = lora.input(x, kept);
        let Some(rows) = lora.dora else {
            self.base(x, n, y);
            return lora.add_product(input, n, t, y);
        };
        if lora.dropout.is_none() {
            self.weight.mul(x, n, y, 0.0);
            lora.add_product(x, n, t, y);
            if let Some(unscaled) = unscaled {
                resized(unscaled, y.len()).copy_from_slice(y);
            }
            return scale_rows(y, &rows.factors, self.bias);
        }
        let mut nobody = Vec::new();
        let u = resized(unscaled.unwrap_or(&mut nobody), y.len());
        self.weight.mul(input, n, u, 0.0);
        lora.add_product(input, n, t, u);
        kept.par_iter_mut().zip(x).with_min_len(PIECE_VALUES).for_each(|(kept, x)| *kept = x - *kept);
        self.base(kept, n, y);
        add_scaled_rows(y, u, &rows.factors);
    }

    /// dy `[n, out]`, x `[n, in]`. ADDS to dx `[n, in]` where it is given (`None`: nobody needs it), and
    /// adds to `grads` where the layer has a LoRA. `A x` is computed again, not saved.
    pub fn backward(
        &self,
        dy: &[f32],
        x: &[f32],
        n: usize,
        dx: Option<&mut [f32]>,
        grads: Option<LoraGrads>,
        scratch: &mut Vec<f32>,
    ) {
        self.check(x, n, dy);
        if n == 0 {
            return;
        }
        let (columns, out) = (self.weight.cols(), self.weight.rows());
        if let Some(dx) = dx.as_deref() {
            assert_eq!(dx.len(), n * columns, "dx must be [{n}, {columns}]");
        }
        let Some(lora) = self.lora else {
            if let Some(dx) = dx {
                self.weight.mul_transposed(dy, n, dx, 1.0);
            }
            return;
        };
        let rank = lora.rank;
        let masked = if lora.dropout.is_some() { n * columns } else { 0 };
        let scaled = if lora.dora.is_some() { n * out } else { 0 };
        let (low, rest) = resized(scratch, 2 * n * rank + masked + scaled).split_at_mut(2 * n * rank);
        let ((t, dt), (masked, scaled)) = (low.split_at_mut(n * rank), rest.split_at_mut(masked));
        // What flows back into U.
        let du = match lora.dora {
            None => dy,
            Some(rows) => {
                scaled.copy_from_slice(dy);
                scale_rows(scaled, &rows.factors, None);
                &*scaled
            }
        };
        gemm(dt, rank, lora.scale, Mat::new(du, n, out), Mat::new(lora.b, out, rank), 0.0);
        if let Some(grads) = grads {
            assert_eq!(grads.a.len(), rank * columns, "dA must be [{rank}, {columns}]");
            assert_eq!(grads.b.len(), out * rank, "dB must be [{out}, {rank}]");
            let input = lora.input(x, masked);
            lora.down(input, n, t);
            gemm(grads.a, columns, 1.0, Mat::new(dt, n, rank).t(), Mat::new(input, n, columns), 1.0);
            gemm(grads.b, rank, 1.0, Mat::new(du, n, out).t(), Mat::new(t, n, rank), 1.0);
            if let Some(rows) = lora.dora {
                add_magnitude_gradient(dy, &grads.unscaled[..n * out], &rows.inverse_norms, grads.magnitude);
            }
        }
        let Some(dx) = dx else { return };
        let (dt, a) = (Mat::new(dt, n, rank), Mat::new(lora.a, rank, columns));
        let Some(dropout) = lora.dropout else {
            self.weight.mul_transposed(du, n, dx, 1.0);
            return gemm(dx, columns, 1.0, dt, a, 1.0);
        };
        self.weight.mul_transposed(dy, n, dx, 1.0);
        gemm(masked, columns, 1.0, dt, a, 0.0);
        if lora.dora.is_some() {
            scaled.par_iter_mut().zip(dy).with_min_len(PIECE_VALUES).for_each(|(du, dy)| *du -= dy);
            self.weight.mul_transposed(scaled, n, masked, 1.0);
        }
        dropout.backward(masked, dx);
    }

    /// `y = W x + b`
    fn base(&self, x: &[f32], n: usize, y: &mut [f32]) {
        let out = self.weight.rows();
        match self.bias {
            None => self.weight.mul(x, n, y, 0.0),
            Some(bias) => {
                y.par_chunks_mut(out).with_min_len(PIECE_VALUES.div_ceil(out)).for_each(|y| y.copy_from_slice(bias));
                self.weight.mul(x, n, y, 1.0);
            }
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
            if let Some(rows) = lora.dora {
                assert!(rows.factors.len() == out && rows.inverse_norms.len() == out, "the rows' scale must be [{out}]");
            }
            if let Some(dropout) = lora.dropout {
                assert_eq!(dropout.tokens.len(), n, "dropout needs the keys of {n} tokens");
            }
        }
    }
}

/// Values that a thread takes at least.
const PIECE_VALUES: usize = 1 << 14;

/// `y = y diag(factors) + bias`, y `[n, out]`.
fn scale_rows(y: &mut [f32], factors: &[f32], bias: Option<&[f32]>) {
    let out = factors.len();
    y.par_chunks_exact_mut(out).with_min_len(PIECE_VALUES.div_ceil(out)).for_each(|y| {
        match bias {
            None => y.iter_mut().zip(factors).for_each(|(y, f)| *y *= f),
            Some(bias) => y.iter_mut().zip(factors).zip(bias).for_each(|((y, f), b)| *y = *y * f + b),
        };
    });
}

/// `y += u diag(factors)`, both `[n, out]`.
fn add_scaled_rows(y: &mut [f32], u: &[f32], factors: &[f32]) {
    let out = factors.len();
    y.par_chunks_exact_mut(out).zip(u.par_chunks_exact(out)).with_min_len(PIECE_VALUES.div_ceil(out)).for_each(|(y, u)| {
        y.iter_mut().zip(u).zip(factors).for_each(|((y, u), f)| *y += u * f);
    });
}

/// `dmagnitude += column sums of (dy * u) * inverse_norms`. A column's sum runs over the tokens in their order.
fn add_magnitude_gradient(dy: &[f32], u: &[f32], inverse_norms: &[f32], dmagnitude: &mut [f32]) {
    const COLUMNS: usize = 64;
    let out = inverse_norms.len();
    assert_eq!(dmagnitude.len(), out, "the magnitude's gradient must be [{out}]");
    let min = PIECE_VALUES.div_ceil(COLUMNS * (dy.len() / out));
    let pieces = dmagnitude.par_chunks_mut(COLUMNS).zip(inverse_norms.par_chunks(COLUMNS)).enumerate().with_min_len(min);
    pieces.for_each(|(piece, (dmagnitude, inverse_norms))| {
        let mut sums = [0.0f32; COLUMNS];
        for (dy, u) in dy.chunks_exact(out).zip(u.chunks_exact(out)) {
            let here = piece * COLUMNS..piece * COLUMNS + dmagnitude.len();
            for ((sum, dy), u) in sums.iter_mut().zip(&dy[here.clone()]).zip(&u[here]) {
                *sum += dy * u;
            }
        }
        for ((d, sum), inverse) in dmagnitude.iter_mut().zip(sums).zip(inverse_norms) {
            *d += sum * inverse;
        }
    });
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
    use crate::dropout::token_key;
    use crate::quant::quantize;
    use crate::testing::{gradient, gradients, normal, relative_error, tensor, threads, values, var};
    use crate::weight::{DType, GgmlDType};

    fn plus(a: &[f32], b: &[f32]) -> Vec<f32> {
        a.iter().zip(b).map(|(a, b)| a + b).collect()
    }

    /// What of the adapter a test has.
    #[derive(Clone, Copy)]
    struct Case {
        bias: bool,
        dora: bool,
        dropout: f64,
    }

    const PLAIN: Case = Case { bias: false, dora: false, dropout: 0.0 };

    fn agrees_with_autograd(weight: &Weight, n: usize, rank: usize, case: Case) {
        let (out, columns) = (weight.rows(), weight.cols());
        let w = weight.to_f32();
        let (x, bias, dy) = (normal(n * columns, 2), normal(out, 3), normal(n * out, 4));
        let (a, b, scale) = (normal(rank * columns, 5), normal(out * rank, 6), 1.7);
        let magnitude: Vec<f32> = normal(out, 10).iter().map(|m| 3.0 + m).collect();
        let tokens: Vec<u64> = (0..n as u64).map(|i| token_key(42, 1, 0, i)).collect();
        let dropout = (case.dropout > 0.0).then_some(Dropout { rate: case.dropout, tokens: &tokens, place: 3 });
        let mut mask = vec![1.0; n * columns];
        if let Some(dropout) = dropout {
            dropout.forward(&vec![1.0; n * columns], &mut mask);
        }

        let (xv, av, bv) = (var(&x, &[n, columns]), var(&a, &[rank, columns]), var(&b, &[out, rank]));
        let (mv, wt) = (var(&magnitude, &[out]), tensor(&w, &[out, columns]).t().unwrap());
        let masked = (xv.as_tensor() * tensor(&mask, &[n, columns])).unwrap();
        let mut y = xv.matmul(&wt).unwrap();
        if case.bias {
            y = y.broadcast_add(&tensor(&bias, &[out])).unwrap();
        }
        let adapter = masked.matmul(&av.t().unwrap()).unwrap().matmul(&bv.t().unwrap()).unwrap();
        let adapter = (adapter * f64::from(scale)).unwrap();
        // As PEFT has it: base + (f - 1) W x' + f s B A x', f = magnitude / |W + s B A| with the norm detached.
        let y = if case.dora {
            let dense = (&wt.t().unwrap() + (bv.matmul(&av).unwrap() * f64::from(scale)).unwrap()).unwrap();
            let norms = dense.sqr().unwrap().sum(1).unwrap().sqrt().unwrap().detach();
            let f = (mv.as_tensor() / norms).unwrap();
            let base = masked.matmul(&wt).unwrap().broadcast_mul(&(&f - 1.0).unwrap()).unwrap();
            ((y + base).unwrap() + adapter.broadcast_mul(&f).unwrap()).unwrap()
        } else {
            (y + adapter).unwrap()
        };
        let store = gradients(&y, &dy);

        let plain = LoraPair { a: &a, b: &b, rank, scale, dora: None, dropout };
        let rows = RowScale::new(weight, &weight.row_squares(), &plain, &magnitude);
        let lora = Some(LoraPair { dora: case.dora.then_some(&rows), ..plain });
        let layer = LoraLinear { weight, bias: case.bias.then_some(&bias), lora };
        let (mut scratch, mut unscaled) = (Vec::new(), Vec::new());
        let mut ours = vec![f32::NAN; n * out];
        layer.forward(&x, n, &mut ours, Some(&mut unscaled), &mut scratch);
        assert!(relative_error(&ours, &values(&y)) < 2e-6);
        let mut again = vec![f32::NAN; n * out];
        layer.forward(&x, n, &mut again, None, &mut scratch);
        assert!(again == ours, "no backward pass follows: the same bits");

        let (old_dx, old_da, old_db) = (normal(n * columns, 7), normal(rank * columns, 8), normal(out * rank, 9));
        let old_dm = normal(if case.dora { out } else { 0 }, 11);
        let run = |dx: Option<&mut [f32]>, scratch: &mut Vec<f32>| {
            let (mut da, mut db, mut dm) = (old_da.clone(), old_db.clone(), old_dm.clone());
            let grads = LoraGrads { a: &mut da, b: &mut db, magnitude: &mut dm, unscaled: &unscaled };
            layer.backward(&dy, &x, n, dx, Some(grads), scratch);
            (da, db, dm)
        };
        let mut dx = old_dx.clone();
        scratch.fill(f32::NAN);
        let grads = run(Some(&mut dx), &mut scratch);
        assert!(relative_error(&dx, &plus(&old_dx, &gradient(&store, &xv))) < 2e-6);
        assert!(relative_error(&grads.0, &plus(&old_da, &gradient(&store, &av))) < 2e-6);
        assert!(relative_error(&grads.1, &plus(&old_db, &gradient(&store, &bv))) < 2e-6);
        if case.dora {
            assert!(relative_error(&grads.2, &plus(&old_dm, &gradient(&store, &mv))) < 2e-6);
        }
        // Nobody needs dx: the gradients are the same bits.
        assert!(run(None, &mut scratch) == grads);
    }

    #[test]
    fn forward_and_gradients_agree_with_autograd() {
        for (n, columns, out, rank) in [(1, 32, 48, 2), (5, 17, 9, 3), (70, 64, 172, 8), (33, 300, 5, 16), (200, 576, 192, 16)] {
            let weight = Weight::from_f32(normal(out * columns, 1), out, columns);
            agrees_with_autograd(&weight, n, rank, PLAIN);
            for (dora, dropout) in [(false, 0.0), (false, 0.3), (true, 0.0), (true, 0.3)] {
                agrees_with_autograd(&weight, n, rank, Case { bias: true, dora, dropout });
            }
        }
    }

    #[test]
    fn a_quantised_weight_agrees_with_autograd_on_its_values() {
        let bytes = quantize(DType::Quant(GgmlDType::Q4_1), &normal(192 * 576, 1), 576).unwrap();
        let weight = Weight::from_bytes(DType::Quant(GgmlDType::Q4_1), 192, 576, bytes.into()).unwrap();
        agrees_with_autograd(&weight, 40, 4, Case { bias: true, dora: true, dropout: 0.1 });
        agrees_with_autograd(&weight, 1, 4, PLAIN);
    }

    #[test]
    fn without_lora_it_is_the_plain_layer() {
        let weight = Weight::from_f32(normal(6 * 4, 1), 6, 4);
        let layer = LoraLinear { weight: &weight, bias: None, lora: None };
        let (x, dy) = (normal(3 * 4, 2), normal(3 * 6, 3));
        let (mut y, mut right) = (vec![f32::NAN; 18], vec![0.0; 18]);
        layer.forward(&x, 3, &mut y, None, &mut Vec::new());
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
        let tokens: Vec<u64> = (0..n as u64).map(|i| token_key(42, 1, 0, i)).collect();
        let rows = RowScale { factors: normal(out, 6), inverse_norms: normal(out, 7) };
        for (dora, dropout) in [(None, None), (Some(&rows), Some(Dropout { rate: 0.1, tokens: &tokens, place: 0 }))] {
            let lora = Some(LoraPair { a: &a, b: &b, rank, scale: 2.0, dora, dropout });
            let layer = LoraLinear { weight: &weight, bias: None, lora };
            let run = |count| {
                let (mut y, mut dx) = (vec![0.0; n * out], vec![0.0; n * columns]);
                let (mut da, mut db, mut dm) = (vec![0.0; rank * columns], vec![0.0; out * rank], vec![0.0; out]);
                threads(count, || {
                    let (mut scratch, mut unscaled) = (Vec::new(), Vec::new());
                    layer.forward(&x, n, &mut y, Some(&mut unscaled), &mut scratch);
                    let grads = LoraGrads { a: &mut da, b: &mut db, magnitude: &mut dm, unscaled: &unscaled };
                    layer.backward(&dy, &x, n, Some(&mut dx), Some(grads), &mut scratch);
                });
                (y, dx, da, db, dm)
            };
            let one = run(1);
            assert!(one == run(2) && one == run(3));
        }
    }
}
