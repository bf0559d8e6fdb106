//! Dense f32 matrix products over strided views.

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
}

/// `out = alpha * a b + beta * out`, `a` is `[m, k]`, `b` is `[k, n]`, `out` is row-major `[m, n]`
/// with `out_stride` values from row to row. Uses all threads of rayon when the product is large.
/// `beta == 0` overwrites (NaN in `out` does not survive).
pub fn gemm(out: &mut [f32], out_stride: usize, alpha: f32, a: Mat, b: Mat, beta: f32) {
    let _ = (out, out_stride, alpha, a, b, beta);
    todo!()
}

/// The same on the calling thread only, for use inside a parallel region.
pub fn gemm_serial(out: &mut [f32], out_stride: usize, alpha: f32, a: Mat, b: Mat, beta: f32) {
    let _ = (out, out_stride, alpha, a, b, beta);
    todo!()
}
