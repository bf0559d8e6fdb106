//! A frozen weight matrix, kept as it is stored: multiply by it, multiply by its transpose, read a
//! row, nothing else. Quantised weights are dequantised a panel of rows at a time and never kept.

use std::ops::Range;

use bytes::Bytes;
pub use candle_core::quantized::GgmlDType;
use rayon::prelude::*;

use crate::few_rows::{FEW, Rows, few_rows};
use crate::matmul::{Mat, gemm};
use crate::quant::dequantize;
use crate::scratch;

#[cfg(target_endian = "big")]
compile_error!("weights are used as they are stored, in little-endian order");

/// Values of one dequantised panel (1 MiB): it stays in the second cache between being written and read.
const PANEL_VALUES: usize = 1 << 18;
/// Fewer rows make the product inefficient, whatever their length.
const PANEL_ROWS_MIN: usize = 64;
/// Values that a thread dequantises at once.
const PIECE_VALUES: usize = 1 << 14;

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
    /// Values and bytes of one block.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Quant(dtype) => (dtype.block_size(), dtype.type_size()),
        }
    }

    /// Values that are stored together; a row is a multiple of it.
    pub fn block_values(self) -> usize {
        self.block().0
    }

    /// Bytes of one row of `cols` values; `None` where `cols` is no multiple of the block.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let (values, bytes) = self.block();
        if cols.is_multiple_of(values) { (cols / values).checked_mul(bytes) } else { None }
    }
}

/// As GGUF tools write it: `f16`, `q8_0`, `q4_K`.
impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 | Self::Quant(GgmlDType::F32) => "f32",
            Self::F16 | Self::Quant(GgmlDType::F16) => "f16",
            Self::BF16 | Self::Quant(GgmlDType::BF16) => "bf16",
            Self::Quant(GgmlDType::Q4_0) => "q4_0",
            Self::Quant(GgmlDType::Q4_1) => "q4_1",
            Self::Quant(GgmlDType::Q5_0) => "q5_0",
            Self::Quant(GgmlDType::Q5_1) => "q5_1",
            Self::Quant(GgmlDType::Q8_0) => "q8_0",
            Self::Quant(GgmlDType::Q8_1) => "q8_1",
            Self::Quant(GgmlDType::Q2K) => "q2_K",
            Self::Quant(GgmlDType::Q3K) => "q3_K",
            Self::Quant(GgmlDType::Q4K) => "q4_K",
            Self::Quant(GgmlDType::Q5K) => "q5_K",
            Self::Quant(GgmlDType::Q6K) => "q6_K",
            Self::Quant(GgmlDType::Q8K) => "q8_K",
        })
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

/// Owns floats, shows bytes.
struct Floats(Vec<f32>);

impl AsRef<[u8]> for Floats {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl Weight {
    /// Takes `data` as stored (a slice of a memory map costs nothing). Unaligned f32 is copied once.
    /// An error says the expected and the found number of bytes, or that the row does not fit the block.
    pub fn from_bytes(dtype: DType, rows: usize, cols: usize, data: Bytes) -> Result<Self, String> {
        let dtype = match dtype {
            DType::Quant(GgmlDType::F32) => DType::F32,
            DType::Quant(GgmlDType::F16) => DType::F16,
            DType::Quant(GgmlDType::BF16) => DType::BF16,
            other => other,
        };
        let Some(row_bytes) = dtype.row_bytes(cols) else {
            return Err(format!(
                "a row of {cols} values does not fit {dtype}, whose blocks hold {}: the file's shape or type is wrong",
                dtype.block_values()
            ));
        };
        let Some(expected) = row_bytes.checked_mul(rows) else {
            return Err(format!("a matrix of {rows} x {cols} {dtype} is larger than memory can be: the file's shape is wrong"));
        };
        if data.len() != expected {
            return Err(format!(
                "a matrix of {rows} x {cols} {dtype} needs {expected} bytes, found {}: the file is cut or its shape is wrong",
                data.len()
            ));
        }
        if dtype == DType::F32 && bytemuck::try_cast_slice::<u8, f32>(&data).is_err() {
            let mut values = vec![0.0; rows * cols];
            dequantize(dtype, &data, &mut values);
            return Ok(Self::from_f32(values, rows, cols));
        }
        Ok(Self { rows, cols, dtype, data })
    }

    /// Panics where there are not `rows * cols` values.
    pub fn from_f32(values: Vec<f32>, rows: usize, cols: usize) -> Self {
        assert_eq!(values.len(), rows * cols, "a matrix of {rows} x {cols} needs {} values", rows * cols);
        Self { rows, cols, dtype: DType::F32, data: Bytes::from_owner(Floats(values)) }
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
        self.mul_panel(0..self.rows, x, n, y, beta);
    }

    /// `dx = dy W + beta * dx`; dy `[n, rows]`, dx `[n, cols]`.
    /// Panels are added in their order, whatever the number of threads.
    pub fn mul_transposed(&self, dy: &[f32], n: usize, dx: &mut [f32], beta: f32) {
        let (rows, cols) = (self.rows, self.cols);
        assert_eq!(dy.len(), n * rows, "dy must be [{n}, {rows}]");
        assert_eq!(dx.len(), n * cols, "dx must be [{n}, {cols}]");
        if rows == 0 {
            return gemm(dx, cols, 1.0, Mat::new(dy, n, 0), Mat::new(&[], 0, cols), beta);
        }
        self.panels(0..rows, |panel, w| {
            let beta = if panel.start == 0 { beta } else { 1.0 };
            let dy = Mat::columns(&dy[panel.start.min(dy.len())..], n, panel.len(), rows);
            gemm(dx, cols, 1.0, dy, w, beta);
        });
    }

    /// `y = x W[rows]^T`, only the given rows of the weight (a panel of the head); y `[n, rows.len()]`.
    pub fn mul_rows(&self, rows: Range<usize>, x: &[f32], n: usize, y: &mut [f32]) {
        self.mul_panel(rows, x, n, y, 0.0);
    }

    /// Row `i`, dequantised into `out` (`[cols]`): an embedding.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.rows, "row {i} of a matrix with {} rows", self.rows);
        assert_eq!(out.len(), self.cols, "a row has {} values", self.cols);
        dequantize(self.dtype, self.row_data(i..i + 1), out);
    }

    /// The squared norm of each row, `[rows]`.
    pub fn row_squares(&self) -> Vec<f64> {
        let square = |i: usize| {
            scratch::with(self.cols, |row| {
                self.row(i, row);
                row.iter().map(|w| f64::from(*w).powi(2)).sum()
            })
        };
        (0..self.rows).into_par_iter().with_min_len(PIECE_VALUES.div_ceil(self.cols.max(1))).map(square).collect()
    }

    /// All values as f32 `[rows, cols]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        self.dequantize_rows(0..self.rows, self.cols, &mut out);
        out
    }

    fn mul_panel(&self, rows: Range<usize>, x: &[f32], n: usize, y: &mut [f32], beta: f32) {
        let (count, cols) = (rows.len(), self.cols);
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of a matrix with {} rows", self.rows);
        assert_eq!(x.len(), n * cols, "x must be [{n}, {cols}]");
        assert_eq!(y.len(), n * count, "y must be [{n}, {count}]");
        if n == 0 || count == 0 {
            return;
        }
        if n <= FEW && cols > 0 {
            return self.mul_few(rows, x, n, y, beta);
        }
        let start = rows.start;
        self.panels(rows, |panel, w| {
            let y = &mut y[panel.start - start..];
            gemm(y, count, 1.0, Mat::new(x, n, cols), w.t(), beta);
        });
    }

    /// `mul_panel` for few rows of x: a few rows of the weight at a time are dequantised into the first cache and
    /// used there.
    fn mul_few(&self, rows: Range<usize>, x: &[f32], n: usize, y: &mut [f32], beta: f32) {
        let (count, cols) = (rows.len(), self.cols);
        let piece = PIECE_VALUES.div_ceil(cols).next_multiple_of(4);
        let x = Rows { data: x, stride: cols };
        // Rows piece * i.. of the product's transpose `[rows, n]`.
        let work = |i: usize, out: &mut [f32]| {
            let here = rows.start + i * piece..rows.start + i * piece + out.len() / n;
            if let Some(values) = self.floats() {
                let w = Rows { data: &values[here.start * cols..here.end * cols], stride: cols };
                return few_rows(w, here.len(), x, n, cols, out);
            }
            scratch::with(4 * cols, |values| {
                for (j, out) in out.chunks_mut(4 * n).enumerate() {
                    let some = here.start + 4 * j..here.start + 4 * j + out.len() / n;
                    let values = &mut values[..some.len() * cols];
                    dequantize(self.dtype, self.row_data(some.clone()), values);
                    few_rows(Rows { data: values, stride: cols }, some.len(), x, n, cols, out);
                }
            });
        };
        scratch::with(count * n, |product| {
            if count <= piece {
                work(0, product);
            } else {
                product.par_chunks_mut(piece * n).enumerate().for_each(|(i, out)| work(i, out));
            }
            for (i, y) in y.chunks_exact_mut(count).enumerate() {
                for (j, y) in y.iter_mut().enumerate() {
                    let sum = product[j * n + i];
                    *y = if beta == 0.0 { sum } else { beta * *y + sum };
                }
            }
        });
    }

    /// The values, where they are stored as f32.
    fn floats(&self) -> Option<&[f32]> {
        // `from_bytes` and `from_f32` see to it that f32 is aligned.
        (self.dtype == DType::F32).then(|| bytemuck::cast_slice(&self.data))
    }

    fn row_data(&self, rows: Range<usize>) -> &[u8] {
        let row_bytes = self.data.len() / self.rows;
        &self.data[rows.start * row_bytes..rows.end * row_bytes]
    }

    /// Calls `f` with one panel of rows after another, as f32 `[rows, cols]`; f32 itself is one panel, without a copy.
    fn panels(&self, rows: Range<usize>, mut f: impl FnMut(Range<usize>, Mat)) {
        let cols = self.cols;
        if let Some(values) = self.floats() {
            let panel = Mat::new(&values[rows.start * cols..rows.end * cols], rows.len(), cols);
            return f(rows, panel);
        }
        // Rows that start at the same place of a page share the few sets of the first cache that they fall into:
        // packing such a panel takes twice as long.
        let stride = if cols.is_multiple_of(256) { cols + 16 } else { cols };
        let height = (PANEL_VALUES / stride.max(1)).max(PANEL_ROWS_MIN).min(rows.len());
        // Panels of equal height rather than a small last one; whole tiles of the product.
        let count = rows.len().div_ceil(height.max(1)).max(1);
        let height = rows.len().div_ceil(count).next_multiple_of(32).min(rows.len());
        scratch::with(height * stride, |values| {
            let mut start = rows.start;
            while start < rows.end {
                let panel = start..(start + height).min(rows.end);
                let values = &mut values[..panel.len() * stride];
                self.dequantize_rows(panel.clone(), stride, values);
                start = panel.end;
                f(panel.clone(), Mat::columns(values, panel.len(), cols, stride));
            }
        });
    }

    /// out: `[rows, stride]`, of which `cols` columns are written.
    fn dequantize_rows(&self, rows: Range<usize>, stride: usize, out: &mut [f32]) {
        if out.is_empty() {
            return;
        }
        let row_bytes = self.data.len() / self.rows;
        let data = self.row_data(rows);
        let piece_rows = PIECE_VALUES.div_ceil(stride);
        let work = |(out, data): (&mut [f32], &[u8])| {
            for (out, data) in out.chunks_exact_mut(stride).zip(data.chunks_exact(row_bytes)) {
                dequantize(self.dtype, data, &mut out[..self.cols]);
            }
        };
        if out.len() <= 2 * piece_rows * stride {
            return work((out, data));
        }
        out.par_chunks_mut(piece_rows * stride).zip(data.par_chunks(piece_rows * row_bytes)).for_each(work);
    }
}

#[cfg(test)]
mod tests;
