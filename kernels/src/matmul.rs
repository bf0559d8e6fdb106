//! Dense f32 matrix products over strided views.
//!
//! Large products go to the `gemm` crate, which shares the cells of `out` among threads and never splits the inner
//! dimension: every cell is one sum in one order, so that the bits do not depend on the number of threads.
//! A product with one row (decoding) reads the matrix once and is bound by memory; it has its own code.

use rayon::prelude::*;

use crate::vector::{add_scaled, dot, scale};

/// Operations (2 m n k) below which threads cost more than they bring.
const PARALLEL_OPERATIONS: usize = 2_000_000;
/// Values of the matrix below which the product with one row stays on one thread.
const PARALLEL_VALUES: usize = 1 << 17;

/// A read-only view of a matrix; transposing is free.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix `[rows, cols]`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert!(data.len() >= rows * cols, "a matrix of {rows} x {cols} needs {} values, got {}", rows * cols, data.len());
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// Columns `start..start + cols` of a row-major matrix with `row_stride` columns.
    pub fn columns(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || data.len() >= (rows - 1) * row_stride + cols);
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, without a copy.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Values from the first to behind the last cell.
    fn span(&self) -> usize {
        if self.rows == 0 || self.cols == 0 {
            return 0;
        }
        (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride + 1
    }
}

/// `out = alpha * a b + beta * out`, `a` is `[m, k]`, `b` is `[k, n]`, `out` is row-major `[m, n]`
/// with `out_stride` values from row to row. Uses all threads of rayon when the product is large.
/// `beta == 0` overwrites (NaN in `out` does not survive).
pub fn gemm(out: &mut [f32], out_stride: usize, alpha: f32, a: Mat, b: Mat, beta: f32) {
    let parallel = 2 * a.rows * a.cols * b.cols >= PARALLEL_OPERATIONS;
    product(out, out_stride, alpha, a, b, beta, parallel);
}

/// The same on the calling thread only, for use inside a parallel region.
pub fn gemm_serial(out: &mut [f32], out_stride: usize, alpha: f32, a: Mat, b: Mat, beta: f32) {
    product(out, out_stride, alpha, a, b, beta, false);
}

fn product(out: &mut [f32], out_stride: usize, alpha: f32, a: Mat, b: Mat, beta: f32, parallel: bool) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert_eq!(k, b.rows, "[{m}, {k}] times [{}, {n}]: the inner sizes differ", b.rows);
    assert!(a.span() <= a.data.len() && b.span() <= b.data.len(), "a view reaches behind its data");
    if m == 0 || n == 0 {
        return;
    }
    assert!(out_stride >= n || m == 1, "rows of {n} values overlap at a stride of {out_stride}");
    assert!((m - 1) * out_stride + n <= out.len(), "out has {} values, needs {}", out.len(), (m - 1) * out_stride + n);
    if m == 1 && k > 0 && (b.row_stride == 1 || b.col_stride == 1) {
        return row_product(&mut out[..n], alpha, a, b, beta, k * n >= PARALLEL_VALUES);
    }
    let threads = if parallel { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    // SAFETY: the views and `out` were found to hold every cell that is read or written, `out` is borrowed
    // mutably and overlaps neither view, and its rows do not overlap each other.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            beta != 0.0,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            // The crate's alpha belongs to what is in `out` already, its beta to the product.
            beta,
            alpha,
            false,
            false,
            false,
            threads,
        );
    }
}

/// `out [n] = alpha * a [k] b [k, n] + beta * out`, where the columns or the rows of b are contiguous.
fn row_product(out: &mut [f32], alpha: f32, a: Mat, b: Mat, beta: f32, parallel: bool) {
    let (k, n) = (b.rows, b.cols);
    let gathered: Vec<f32>;
    let row = if a.col_stride == 1 {
        &a.data[..k]
    } else {
        gathered = (0..k).map(|i| a.data[i * a.col_stride]).collect();
        &gathered
    };
    let part = |start: usize, out: &mut [f32]| {
        if b.row_stride == 1 {
            for (j, out) in out.iter_mut().enumerate() {
                let column = &b.data[(start + j) * b.col_stride..][..k];
                let sum = alpha * dot(row, column);
                *out = if beta == 0.0 { sum } else { beta * *out + sum };
            }
        } else {
            if beta == 0.0 {
                out.fill(0.0);
            } else if beta != 1.0 {
                scale(out, beta);
            }
            for (i, value) in row.iter().enumerate() {
                add_scaled(out, alpha * value, &b.data[i * b.row_stride + start..][..out.len()]);
            }
        }
    };
    if parallel {
        // At least half a threshold a piece, and a cache line at least.
        let piece = n.div_ceil(rayon::current_num_threads() * 4).max((PARALLEL_VALUES / 2).div_ceil(k)).max(16);
        out.par_chunks_mut(piece).enumerate().for_each(|(i, out)| part(i * piece, out));
    } else {
        part(0, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{normal, relative_error, threads};
    use proptest::prelude::*;

    /// The definition, in f64.
    fn reference(out: &[f32], out_stride: usize, alpha: f32, a: Mat, b: Mat, beta: f32) -> Vec<f32> {
        let mut y = out.to_vec();
        for i in 0..a.rows {
            for j in 0..b.cols {
                let sum: f64 = (0..a.cols)
                    .map(|l| {
                        f64::from(a.data[i * a.row_stride + l * a.col_stride])
                            * f64::from(b.data[l * b.row_stride + j * b.col_stride])
                    })
                    .sum();
                let old = if beta == 0.0 { 0.0 } else { f64::from(beta) * f64::from(out[i * out_stride + j]) };
                y[i * out_stride + j] = (f64::from(alpha) * sum + old) as f32;
            }
        }
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn products_agree_with_the_definition(
            m in 1usize..40, k in 1usize..90, n in 1usize..70, turn_a: bool, turn_b: bool,
            alpha in -2.0f32..2.0, beta in prop_oneof![Just(0.0f32), Just(1.0), Just(0.5)], seed: u64,
        ) {
            let (x, y) = (normal(m * k, seed), normal(k * n, seed ^ 1));
            let a = if turn_a { Mat::new(&x, k, m).t() } else { Mat::new(&x, m, k) };
            let b = if turn_b { Mat::new(&y, n, k).t() } else { Mat::new(&y, k, n) };
            let stride = n + 3;
            let old = normal(m * stride, seed ^ 2);
            let right = reference(&old, stride, alpha, a, b, beta);
            let mut out = old.clone();
            gemm(&mut out, stride, alpha, a, b, beta);
            prop_assert!(relative_error(&out, &right) < 2e-6);
            let mut serial = old;
            gemm_serial(&mut serial, stride, alpha, a, b, beta);
            prop_assert_eq!(out, serial);
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        for (m, k, n) in [(1264, 576, 1536), (300, 1111, 257), (16, 2048, 576), (2048, 64, 172), (1, 576, 49152), (1, 3000, 64)] {
            let (x, y) = (normal(m * k, 1), normal(k * n, 2));
            for turned in [false, true] {
                let b = if turned { Mat::new(&y, n, k).t() } else { Mat::new(&y, k, n) };
                let run = |count| {
                    let mut out = vec![0.5; m * n];
                    threads(count, || gemm(&mut out, n, 1.0, Mat::new(&x, m, k), b, 1.0));
                    out
                };
                let one = run(1);
                assert!(one == run(2) && one == run(3) && one == run(7), "[{m}, {k}] x [{k}, {n}], turned: {turned}");
                let mut serial = vec![0.5; m * n];
                gemm_serial(&mut serial, n, 1.0, Mat::new(&x, m, k), b, 1.0);
                assert!(one == serial, "serial differs at [{m}, {k}] x [{k}, {n}]");
            }
        }
    }

    #[test]
    fn beta_zero_overwrites_nan() {
        let (x, y) = (normal(12, 1), normal(20, 2));
        for m in [1, 3] {
            let mut out = vec![f32::NAN; m * 5];
            gemm(&mut out, 5, 1.0, Mat::new(&x, m, 4), Mat::new(&y, 4, 5), 0.0);
            assert!(out.iter().all(|v| v.is_finite()));
        }
    }

    #[test]
    fn an_empty_inner_dimension_leaves_beta_times_out() {
        let mut out = vec![2.0; 6];
        gemm(&mut out, 3, 1.0, Mat::new(&[], 2, 0), Mat::new(&[], 0, 3), 0.5);
        assert_eq!(out, vec![1.0; 6]);
        gemm(&mut out[..3], 3, 1.0, Mat::new(&[], 1, 0), Mat::new(&[], 0, 3), 0.0);
        assert_eq!(out, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn a_panel_of_columns_is_the_same_as_its_copy() {
        let wide = normal(7 * 30, 3);
        let y = normal(8 * 5, 4);
        let copy: Vec<f32> = (0..7).flat_map(|i| wide[i * 30 + 11..i * 30 + 19].to_vec()).collect();
        let (mut a, mut b) = (vec![0.0; 35], vec![0.0; 35]);
        gemm(&mut a, 5, 1.0, Mat::columns(&wide[11..], 7, 8, 30), Mat::new(&y, 8, 5), 0.0);
        gemm(&mut b, 5, 1.0, Mat::new(&copy, 7, 8), Mat::new(&y, 8, 5), 0.0);
        assert_eq!(a, b);
    }

    #[test]
    #[should_panic(expected = "the inner sizes differ")]
    fn unequal_inner_sizes_are_refused() {
        gemm(&mut [0.0; 4], 2, 1.0, Mat::new(&[0.0; 4], 2, 2), Mat::new(&[0.0; 6], 3, 2), 0.0);
    }

    #[test]
    #[should_panic(expected = "out has 3 values, needs 4")]
    fn a_short_out_is_refused() {
        gemm(&mut [0.0; 3], 2, 1.0, Mat::new(&[0.0; 4], 2, 2), Mat::new(&[0.0; 4], 2, 2), 0.0);
    }
}
