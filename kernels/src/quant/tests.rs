use super::*;
use crate::testing::normal;
use candle_core::quantized::{GgmlType, QStorage, QTensor};
use candle_core::{Device, Tensor};

const BLOCK_TYPES: [GgmlDType; 12] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q8_1,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
    GgmlDType::Q8K,
];

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// candle's dequantisation of the same bytes.
fn candle(dtype: GgmlDType, bytes: &[u8], n: usize) -> Vec<f32> {
    let storage = QStorage::from_data(bytes.to_vec().into(), &Device::Cpu, dtype).unwrap();
    let tensor = QTensor::new(storage, n).unwrap().dequantize(&Device::Cpu).unwrap();
    tensor.to_vec1().unwrap()
}

#[test]
fn every_block_type_gives_candles_bits_at_every_alignment() {
    for dtype in BLOCK_TYPES {
        let values = normal(256 * 37, 5);
        let bytes = quantize(DType::Quant(dtype), &values, 256).unwrap();
        assert_eq!(bytes.len(), DType::Quant(dtype).row_bytes(256).unwrap() * 37);
        let right = candle(dtype, &bytes, values.len());
        let mut shifted = vec![0xa5; bytes.len() + 3];
        for offset in 0..4 {
            shifted[offset..offset + bytes.len()].copy_from_slice(&bytes);
            let mut out = vec![f32::NAN; values.len()];
            dequantize(DType::Quant(dtype), &shifted[offset..offset + bytes.len()], &mut out);
            assert_eq!(bits(&out), bits(&right), "{dtype:?} at offset {offset}");
        }
    }
}

/// Random bytes reach every bit of every field, and scales of every size.
#[test]
fn random_bytes_give_candles_bits() {
    for dtype in BLOCK_TYPES {
        let size = DType::Quant(dtype).row_bytes(256).unwrap();
        let mut rng = crate::rng::Rng::new(11);
        let bytes: Vec<u8> = (0..size * 64).map(|_| rng.next_u64() as u8).collect();
        let right = candle(dtype, &bytes, 256 * 64);
        let mut out = vec![0.0; right.len()];
        dequantize(DType::Quant(dtype), &bytes, &mut out);
        for (i, (a, b)) in out.iter().zip(&right).enumerate() {
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "{dtype:?} value {i}: {a} is not {b}");
        }
    }
}

#[test]
fn every_half_is_exact() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut out = vec![0.0; 1 << 16];
    dequantize(DType::F16, &bytes, &mut out);
    let mut out16 = vec![0.0; 1 << 16];
    dequantize(DType::BF16, &bytes, &mut out16);
    for i in 0..=u16::MAX {
        let (a, right) = (out[usize::from(i)], f16::from_bits(i).to_f32());
        assert!(a.to_bits() == right.to_bits() || (a.is_nan() && right.is_nan()), "f16 {i:#x}");
        let (b, right) = (out16[usize::from(i)], bf16::from_bits(i).to_f32());
        assert!(b.to_bits() == right.to_bits() || (b.is_nan() && right.is_nan()), "bf16 {i:#x}");
    }
}

/// quantize_row_q8_0_ref of ggml-quants.c, written out.
fn q8_0_ref(x: &[f32]) -> Vec<u8> {
    let mut y = Vec::new();
    for x in x.chunks_exact(32) {
        let amax = x.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        let d = amax / 127.0;
        let id = if d == 0.0 { 0.0 } else { 1.0 / d };
        y.extend(f16::from_f32(d).to_le_bytes());
        // roundf: halves away from zero.
        y.extend(x.iter().map(|v| {
            let scaled = v * id;
            (scaled.trunc() + if (scaled - scaled.trunc()).abs() >= 0.5 { scaled.signum() } else { 0.0 }) as i8 as u8
        }));
    }
    y
}

/// quantize_row_q4_0_ref and quantize_row_q4_1_ref of ggml-quants.c.
fn q4_ref(x: &[f32], with_min: bool) -> Vec<u8> {
    let mut y = Vec::new();
    for x in x.chunks_exact(32) {
        let (d, min, half) = if with_min {
            let min = x.iter().copied().fold(f32::MAX, f32::min);
            let max = x.iter().copied().fold(-f32::MAX, f32::max);
            ((max - min) / 15.0, min, 0.5)
        } else {
            let (mut amax, mut max) = (0.0f32, 0.0f32);
            for v in x {
                if amax < v.abs() {
                    amax = v.abs();
                    max = *v;
                }
            }
            (max / -8.0, 0.0, 8.5)
        };
        let id = if d == 0.0 { 0.0 } else { 1.0 / d };
        y.extend(f16::from_f32(d).to_le_bytes());
        if with_min {
            y.extend(f16::from_f32(min).to_le_bytes());
        }
        let q = |v: f32| (((v - min) * id + half) as i8).min(15) as u8;
        y.extend((0..16).map(|j| q(x[j]) | q(x[j + 16]) << 4));
    }
    y
}

#[test]
fn q8_0_q4_0_and_q4_1_are_written_as_ggml_writes_them() {
    let mut values = normal(32 * 2000, 7);
    // Exact halves (d = 1), zeros, a constant block, one sign, tiny values.
    for j in 0..32 {
        values[j] = if j == 0 { 127.0 } else { j as f32 - 15.5 };
        values[32 + j] = 0.0;
        values[64 + j] = -3.25;
        values[96 + j] = 1e-6 * j as f32;
        values[128 + j] = if j % 2 == 0 { 2.0 } else { -2.0 };
    }
    let of = |dtype| quantize(DType::Quant(dtype), &values, 64).unwrap();
    assert_eq!(of(GgmlDType::Q8_0), q8_0_ref(&values));
    assert_eq!(of(GgmlDType::Q4_0), q4_ref(&values, false));
    assert_eq!(of(GgmlDType::Q4_1), q4_ref(&values, true));
}

#[test]
fn quantisation_in_pieces_is_that_of_the_whole() {
    let values = normal((1 << 15) + 512, 9);
    for dtype in [GgmlDType::Q4K, GgmlDType::Q6K] {
        let ours = quantize(DType::Quant(dtype), &values, 256).unwrap();
        let tensor = Tensor::from_slice(&values, values.len(), &Device::Cpu).unwrap();
        let whole = QTensor::quantize(&tensor, dtype).unwrap();
        assert_eq!(ours, whole.data().unwrap().as_ref(), "{dtype:?}");
    }
    assert_eq!(k_quants::BlockQ4K::BLCK_SIZE, 256);
}

#[test]
fn what_does_not_fit_is_an_error_that_says_where() {
    let error = quantize(DType::Quant(GgmlDType::Q4K), &[0.0; 96], 96).unwrap_err();
    assert!(error.contains("96 values does not fit q4_K, whose blocks hold 256"), "{error}");
    let error = quantize(DType::F16, &[0.0; 7], 2).unwrap_err();
    assert!(error.contains("7 values are no whole number of rows of 2"), "{error}");
    let mut values = vec![0.0; 128];
    values[70] = f32::NAN;
    let error = quantize(DType::Quant(GgmlDType::Q8_0), &values, 64).unwrap_err();
    assert!(error.contains("value NaN in row 1, column 6 cannot be stored as q8_0"), "{error}");
    assert!(quantize(DType::F16, &[65519.0], 1).is_ok());
    let error = quantize(DType::F16, &[65520.0], 1).unwrap_err();
    assert!(error.contains("65520"), "{error}");
}
