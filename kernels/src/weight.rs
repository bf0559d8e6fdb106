//! A frozen weight matrix, kept as it is stored: multiply by it, multiply by its transpose, read a
//! row, nothing else. Quantised weights are dequantised a panel of rows at a time and never kept.

use bytes::Bytes;
pub use candle_core::quantized::GgmlDType;

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    F32,
    F16,
    BF16,
    /// GGML's block formats: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, Q8_K.
    Quant(GgmlDType),
}

impl DType {
    /// Bytes of one row of `cols` values; `None` where `cols` is no multiple of the block.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let _ = cols;
        todo!()
    }
}

/// A frozen `[rows, cols]` matrix (out features, in features).
#[derive(Clone)]
pub struct Weight {
    rows: usize,
    cols: usize,
    dtype: DType,
    data: Bytes,
}

impl Weight {
    /// Takes `data` as stored (a slice of a memory map costs nothing). Unaligned f32 is copied once.
    /// An error says the expected and the found number of bytes, or that the row does not fit the block.
    pub fn from_bytes(dtype: DType, rows: usize, cols: usize, data: Bytes) -> Result<Self, String> {
        let _ = (dtype, rows, cols, data);
        todo!()
    }

    pub fn from_f32(values: Vec<f32>, rows: usize, cols: usize) -> Self {
        let _ = (values, rows, cols);
        todo!()
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes as stored.
    pub fn size_bytes(&self) -> usize {
        self.data.len()
    }

    /// `y = x W^T + beta * y`; x `[n, cols]`, y `[n, rows]`.
    pub fn mul(&self, x: &[f32], n: usize, y: &mut [f32], beta: f32) {
        let _ = (x, n, y, beta);
        todo!()
    }

    /// `dx = dy W + beta * dx`; dy `[n, rows]`, dx `[n, cols]`.
    pub fn mul_transposed(&self, dy: &[f32], n: usize, dx: &mut [f32], beta: f32) {
        let _ = (dy, n, dx, beta);
        todo!()
    }

    /// `y = x W[rows]^T`, only the given rows of the weight (a panel of the head); y `[n, rows.len()]`.
    pub fn mul_rows(&self, rows: std::ops::Range<usize>, x: &[f32], n: usize, y: &mut [f32]) {
        let _ = (rows, x, n, y);
        todo!()
    }

    /// Row `i`, dequantised into `out` (`[cols]`): an embedding.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        let _ = (i, out);
        todo!()
    }

    /// All values as f32 `[rows, cols]`.
    pub fn to_f32(&self) -> Vec<f32> {
        todo!()
    }
}
