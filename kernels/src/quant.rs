//! GGML's block formats: to f32 (our own code, since candle's is compiled for SSE2 only and wants aligned
//! blocks; its results are the oracle, bit for bit) and from f32 (candle's).
//! Layouts: ggml-common.h and dequantize_row_* of ggml-quants.c.

#[cfg(test)]
mod tests;

use candle_core::quantized::{GgmlDType, k_quants};
use half::{bf16, f16};

use crate::simd::simd;
use crate::weight::DType;

/// Writes the values of `bytes` (whole blocks, of any alignment) to `out`; both hold the same number of blocks.
pub(crate) fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    use GgmlDType as G;
    match dtype {
        DType::F32 | DType::Quant(G::F32) => from_f32_bytes(bytes, out),
        DType::F16 | DType::Quant(G::F16) => from_f16_bytes(bytes, out),
        DType::BF16 | DType::Quant(G::BF16) => from_bf16_bytes(bytes, out),
        DType::Quant(G::Q4_0) => blocks::<Q4_0>(bytes, out),
        DType::Quant(G::Q4_1) => blocks::<Q4_1>(bytes, out),
        DType::Quant(G::Q5_0) => blocks::<Q5_0>(bytes, out),
        DType::Quant(G::Q5_1) => blocks::<Q5_1>(bytes, out),
        DType::Quant(G::Q8_0) => blocks::<Q8_0>(bytes, out),
        DType::Quant(G::Q8_1) => blocks::<Q8_1>(bytes, out),
        DType::Quant(G::Q2K) => blocks::<Q2K>(bytes, out),
        DType::Quant(G::Q3K) => blocks::<Q3K>(bytes, out),
        DType::Quant(G::Q4K) => blocks::<Q4K>(bytes, out),
        DType::Quant(G::Q5K) => blocks::<Q5K>(bytes, out),
        DType::Quant(G::Q6K) => blocks::<Q6K>(bytes, out),
        DType::Quant(G::Q8K) => blocks::<Q8K>(bytes, out),
    }
}

simd! {
    fn from_f32_bytes(bytes: &[u8], out: &mut [f32]) {
        for (y, x) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *y = f32::from_le_bytes(*x);
        }
    }
}

simd! {
    fn from_f16_bytes(bytes: &[u8], out: &mut [f32]) {
        for (y, x) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *y = half_to_f32(*x);
        }
    }
}

simd! {
    fn from_bf16_bytes(bytes: &[u8], out: &mut [f32]) {
        for (y, x) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *y = f32::from_bits(u32::from(u16::from_le_bytes(*x)) << 16);
        }
    }
}

/// An IEEE half as f32, exact, without a branch: the exponent is rebiased by a product with 2^112.
#[inline(always)]
fn half_to_f32(bytes: [u8; 2]) -> f32 {
    let h = u32::from(u16::from_le_bytes(bytes));
    let finite = f32::from_bits((h & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = if h & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(finite.to_bits() | special | ((h & 0x8000) << 16))
}

/// One block format: `BYTES` of storage hold `VALUES` values.
trait Block {
    const BYTES: usize;
    const VALUES: usize;
    /// `x` is one block, `y` its values.
    fn decode(x: &[u8], y: &mut [f32]);
}

simd! {
    fn blocks<B: Block>(bytes: &[u8], out: &mut [f32]) {
        for (x, y) in bytes.chunks_exact(B::BYTES).zip(out.chunks_exact_mut(B::VALUES)) {
            B::decode(x, y);
        }
    }
}

/// The `N` bytes of `x` from `at`.
#[inline(always)]
fn field<const N: usize>(x: &[u8], at: usize) -> &[u8; N] {
    // The slice has N bytes, so that the conversion cannot fail.
    (&x[at..at + N]).try_into().expect("N bytes")
}

/// The f16 at byte `at`.
#[inline(always)]
fn half_at(x: &[u8], at: usize) -> f32 {
    half_to_f32(*field::<2>(x, at))
}

/// Keeps the compiler from vectorising over blocks, which scatters single values to memory and takes four times
/// as long as vectors within the block.
#[inline(always)]
fn one_block(scale: f32) -> f32 {
    std::hint::black_box(scale)
}

struct Q4_0;
impl Block for Q4_0 {
    const BYTES: usize = 18;
    const VALUES: usize = 32;
    #[inline(always)]
    fn decode(x: &[u8], y: &mut [f32]) {
        let (d, q) = (one_block(half_at(x, 0)), field::<16>(x, 2));
        let (low, high) = y.split_at_mut(16);
        for j in 0..16 {
            low[j] = (i32::from(q[j] & 15) - 8) as f32 * d;
            high[j] = (i32::from(q[j] >> 4) - 8) as f32 * d;
        }
    }
}

struct Q4_1;
impl Block for Q4_1 {
    const BYTES: usize = 20;
    const VALUES: usize = 32;
    #[inline(always)]
    fn decode(x: &[u8], y: &mut [f32]) {
        let (d, m, q) = (one_block(half_at(x, 0)), half_at(x, 2), field::<16>(x, 4));
        let (low, high) = y.split_at_mut(16);
        for j in 0..16 {
            low[j] = i32::from(q[j] & 15) as f32 * d + m;
            high[j] = i32::from(q[j] >> 4) as f32 * d + m;
        }
    }
}

/// The fifth bits of Q5_0 and Q5_1 together with the low four: `[0..16]` and `[16..32]` of the block.
#[inline(always)]
fn five_bits(high_bits: &[u8; 4], q: &[u8; 16], j: usize) -> (i32, i32) {
    let h = u32::from_le_bytes(*high_bits);
    let low = u32::from(q[j] & 15) | ((h >> j & 1) << 4);
    let high = u32::from(q[j] >> 4) | ((h >> (j + 16) & 1) << 4);
    (low as i32, high as i32)
}

struct Q5_0;
impl Block for Q5_0 {
    const BYTES: usize = 22;
    const VALUES: usize = 32;
    #[inline(always)]
    fn decode(x: &[u8], y: &mut [f32]) {
        let (d, h, q) = (half_at(x, 0), field::<4>(x, 2), field::<16>(x, 6));
        let (low, high) = y.split_at_mut(16);
        for j in 0..16 {
            let (a, b) = five_bits(h, q, j);
            low[j] = (a - 16) as f32 * d;
            high[j] = (b - 16) as f32 * d;
        }
    }
}

struct Q5_1;
impl Block for Q5_1 {
    const BYTES: usize = 24;
    const VALUES: usize = 32;
    #[inline(always)]
    fn decode(x: &[u8], y: &mut [f32]) {
        let (d, m, h, q) = (half_at(x, 0), half_at(x, 2), field::<4>(x, 4), field::<16>(x, 8));
        let (low, high) = y.split_at_mut(16);
        for j in 0..16 {
            let (a, b) = five_bits(h, q, j);
            low[j] = a as f32 * d + m;
            high[j] = b as f32 * d + m;
        }
    }
}

struct Q8_0;
impl Block for Q8_0 {
    const BYTES: usize = 34;
    const VALUES: usize = 32;
    #[inline(always)]
    fn decode(x: &[u8], y: &mut [f32]) {
        let (d, q) = (half_at(x, 0), field::<32>(x, 2));
        for j in 0..32 {
            y[j] = f32::from(q[j] as i8) * d;
        }
    }
}

struct Q8_1;
impl Block for Q8_1 {
    const BYTES: usize = 36;
    const VALUES: usize = 32;
    #[inline(always)]
    fn decode(x: &[u8], y: &mut [f32]) {
        let (d, q) = (half_at(x, 0), field::<32>(x, 4));
        for j in 0..32 {
            y[j] = f32::from(q[j] as i8) * d;
        }
    }
}

struct Q2K;
impl Block for Q2K {
    const BYTES: usize = 84;
    const VALUES: usize = 256;
    #[inline(always)]
    fn decode(x: &[u8], y: &mut [f32]) {
        let (scales, d, min) = (field::<16>(x, 0), half_at(x, 80), half_at(x, 82));
        for (part, y) in y.chunks_exact_mut(16).enumerate() {
            // 128 values share 32 bytes, two bits each; a scale is for 16 values.
            let q = field::<16>(x, 16 + part / 8 * 32 + part % 2 * 16);
            let shift = part % 8 / 2 * 2;
            let (dl, ml) = (d * f32::from(scales[part] & 15), min * f32::from(scales[part] >> 4));
            for j in 0..16 {
                y[j] = dl * f32::from(q[j] >> shift & 3) - ml;
            }
        }
    }
}

/// The 16 six-bit scales of Q3_K.
#[inline(always)]
fn scales_q3k(packed: &[u8; 12]) -> [i32; 16] {
    std::array::from_fn(|i| {
        let low = if i < 8 { packed[i] & 15 } else { packed[i - 8] >> 4 };
        let high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
        i32::from(low | high << 4)
    })
}

struct Q3K;
impl Block for Q3K {
    const BYTES: usize = 110;
    const VALUES: usize = 256;
    #[inline(always)]
    fn decode(x: &[u8], y: &mut [f32]) {
        let (scales, d) = (scales_q3k(field::<12>(x, 96)), half_at(x, 108));
        for (part, y) in y.chunks_exact_mut(16).enumerate() {
            let high = field::<16>(x, part % 2 * 16);
            let q = field::<16>(x, 32 + part / 8 * 32 + part % 2 * 16);
            let shift = part % 8 / 2 * 2;
            let bit = part / 2;
            let dl = d * (scales[part] as f32 - 32.0);
            for j in 0..16 {
                let missing = if high[j] >> bit & 1 == 0 { 4 } else { 0 };
                y[j] = dl * (i32::from(q[j] >> shift & 3) - missing) as f32;
            }
        }
    }
}

/// Scale and minimum `j` (of 8) of Q4_K and Q5_K, six bits each.
#[inline(always)]
fn scale_min(j: usize, q: &[u8; 12]) -> (f32, f32) {
    let (scale, min) =
        if j < 4 { (q[j] & 63, q[j + 4] & 63) } else { (q[j + 4] & 15 | (q[j - 4] >> 6) << 4, q[j + 4] >> 4 | (q[j] >> 6) << 4) };
    (f32::from(scale), f32::from(min))
}

struct Q4K;
impl Block for Q4K {
    const BYTES: usize = 144;
    const VALUES: usize = 256;
    #[inline(always)]
    fn decode(x: &[u8], y: &mut [f32]) {
        let (d, min, scales) = (half_at(x, 0), half_at(x, 2), field::<12>(x, 4));
        for (part, y) in y.chunks_exact_mut(64).enumerate() {
            let q = field::<32>(x, 16 + part * 32);
            let ((s1, m1), (s2, m2)) = (scale_min(2 * part, scales), scale_min(2 * part + 1, scales));
            let (d1, m1, d2, m2) = (d * s1, min * m1, d * s2, min * m2);
            let (low, high) = y.split_at_mut(32);
            for j in 0..32 {
                low[j] = d1 * f32::from(q[j] & 15) - m1;
                high[j] = d2 * f32::from(q[j] >> 4) - m2;
            }
        }
    }
}

struct Q5K;
impl Block for Q5K {
    const BYTES: usize = 176;
    const VALUES: usize = 256;
    #[inline(always)]
    fn decode(x: &[u8], y: &mut [f32]) {
        let (d, min, scales, h) = (half_at(x, 0), half_at(x, 2), field::<12>(x, 4), field::<32>(x, 16));
        for (part, y) in y.chunks_exact_mut(64).enumerate() {
            let q = field::<32>(x, 48 + part * 32);
            let ((s1, m1), (s2, m2)) = (scale_min(2 * part, scales), scale_min(2 * part + 1, scales));
            let (d1, m1, d2, m2) = (d * s1, min * m1, d * s2, min * m2);
            let (low, high) = y.split_at_mut(32);
            for j in 0..32 {
                low[j] = d1 * f32::from(q[j] & 15 | (h[j] >> (2 * part) & 1) << 4) - m1;
                high[j] = d2 * f32::from(q[j] >> 4 | (h[j] >> (2 * part + 1) & 1) << 4) - m2;
            }
        }
    }
}

struct Q6K;
impl Block for Q6K {
    const BYTES: usize = 210;
    const VALUES: usize = 256;
    #[inline(always)]
    fn decode(x: &[u8], y: &mut [f32]) {
        let d = half_at(x, 208);
        for (part, y) in y.chunks_exact_mut(32).enumerate() {
            // 128 values: 64 bytes of low nibbles, 32 bytes of pairs of high bits, 8 scales.
            let (half, quarter) = (part / 4, part % 4);
            let low = field::<32>(x, half * 64 + quarter % 2 * 32);
            let high = field::<32>(x, 128 + half * 32);
            let scales = field::<2>(x, 192 + half * 8 + quarter * 2);
            let (low_shift, high_shift) = (quarter / 2 * 4, quarter * 2);
            for (s, y) in y.chunks_exact_mut(16).enumerate() {
                let ds = d * f32::from(scales[s] as i8);
                for j in 0..16 {
                    let q = (low[s * 16 + j] >> low_shift & 15) | (high[s * 16 + j] >> high_shift & 3) << 4;
                    y[j] = ds * (i32::from(q) - 32) as f32;
                }
            }
        }
    }
}

struct Q8K;
impl Block for Q8K {
    const BYTES: usize = 292;
    const VALUES: usize = 256;
    #[inline(always)]
    fn decode(x: &[u8], y: &mut [f32]) {
        let (d, q) = (f32::from_le_bytes(*field::<4>(x, 0)), field::<256>(x, 4));
        for j in 0..256 {
            y[j] = d * f32::from(q[j] as i8);
        }
    }
}

/// Writes rows of `cols` values in the given format, as ggml's `quantize_row_*_ref` does.
/// An error says what does not fit: a row that is no multiple of the block, values that are no whole rows, or
/// values that the format cannot hold (NaN, infinity).
pub fn quantize(dtype: DType, values: &[f32], cols: usize) -> Result<Vec<u8>, String> {
    use GgmlDType as G;
    if dtype.row_bytes(cols).is_none() {
        return Err(format!(
            "a row of {cols} values does not fit {dtype}, whose blocks hold {}; choose another type for this tensor, f16 for example",
            dtype.block_values()
        ));
    }
    if cols == 0 || !values.len().is_multiple_of(cols) {
        return Err(format!("{} values are no whole number of rows of {cols}", values.len()));
    }
    let largest = match dtype {
        DType::F32 | DType::Quant(G::F32) => f32::INFINITY,
        // The next value rounds to infinity.
        DType::F16 | DType::Quant(G::F16) => 65519.0,
        _ => f32::MAX,
    };
    // NaN compares as false; f32 itself holds everything.
    let held = |v: &f32| v.abs() <= largest || largest.is_infinite();
    if let Some(at) = values.iter().position(|v| !held(v)) {
        return Err(format!(
            "value {} in row {}, column {} cannot be stored as {dtype}; check that the base and the adapter are undamaged, or choose bf16 or f32 for this tensor",
            values[at],
            at / cols,
            at % cols
        ));
    }
    Ok(match dtype {
        DType::F32 | DType::Quant(G::F32) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 | DType::Quant(G::F16) => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        DType::BF16 | DType::Quant(G::BF16) => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        DType::Quant(G::Q4_0) => from_float::<k_quants::BlockQ4_0>(values),
        DType::Quant(G::Q4_1) => from_float::<k_quants::BlockQ4_1>(values),
        DType::Quant(G::Q5_0) => from_float::<k_quants::BlockQ5_0>(values),
        DType::Quant(G::Q5_1) => from_float::<k_quants::BlockQ5_1>(values),
        DType::Quant(G::Q8_0) => from_float::<k_quants::BlockQ8_0>(values),
        DType::Quant(G::Q8_1) => from_float::<k_quants::BlockQ8_1>(values),
        DType::Quant(G::Q2K) => from_float::<k_quants::BlockQ2K>(values),
        DType::Quant(G::Q3K) => from_float::<k_quants::BlockQ3K>(values),
        DType::Quant(G::Q4K) => from_float::<k_quants::BlockQ4K>(values),
        DType::Quant(G::Q5K) => from_float::<k_quants::BlockQ5K>(values),
        DType::Quant(G::Q6K) => from_float::<k_quants::BlockQ6K>(values),
        DType::Quant(G::Q8K) => from_float::<k_quants::BlockQ8K>(values),
    })
}

/// candle's quantiser, over threads in pieces of whole blocks (blocks do not know of each other).
fn from_float<B: k_quants::GgmlType>(values: &[f32]) -> Vec<u8> {
    use rayon::prelude::*;
    const PIECE: usize = 1 << 14;
    let mut blocks = vec![B::zeros(); values.len() / B::BLCK_SIZE];
    blocks
        .par_chunks_mut(PIECE / B::BLCK_SIZE)
        .zip(values.par_chunks(PIECE))
        .for_each(|(blocks, values)| B::from_float(values, blocks));
    // SAFETY: candle's blocks are repr(C) of f16, f32 and integers without padding (it checks their sizes
    // at compile time against ggml's), so that each of their bytes is initialised.
    unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast::<u8>(), size_of_val(blocks.as_slice())) }.to_vec()
}
