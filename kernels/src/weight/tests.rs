use super::*;
use crate::quant::quantize;
use crate::testing::{normal, relative_error, threads};
use proptest::prelude::*;

const QUANTISED: [GgmlDType; 12] = [
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

fn every_type() -> Vec<DType> {
    [DType::F32, DType::F16, DType::BF16].into_iter().chain(QUANTISED.map(DType::Quant)).collect()
}

fn weight(dtype: DType, rows: usize, cols: usize, seed: u64) -> Weight {
    let bytes = quantize(dtype, &normal(rows * cols, seed), cols).unwrap();
    Weight::from_bytes(dtype, rows, cols, bytes.into()).unwrap()
}

/// `x W^T + beta y` in f64; x `[n, cols]`.
fn product(w: &[f32], rows: Range<usize>, cols: usize, x: &[f32], n: usize, y: &[f32], beta: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(n * rows.len());
    for i in 0..n {
        for (j, row) in rows.clone().enumerate() {
            let products = (0..cols).map(|c| f64::from(x[i * cols + c]) * f64::from(w[row * cols + c]));
            let old = if beta == 0.0 { 0.0 } else { f64::from(beta) * f64::from(y[i * rows.len() + j]) };
            out.push((products.sum::<f64>() + old) as f32);
        }
    }
    out
}

#[test]
fn products_with_every_type_are_those_of_its_values() {
    for dtype in every_type() {
        // Rows that are a multiple of 256, and of 32 only; more rows than a panel holds.
        for (rows, cols) in [(5, 32), (37, 96), (70, 256), (300, 1536)] {
            if dtype.row_bytes(cols).is_none() {
                continue;
            }
            let weight = weight(dtype, rows, cols, 1);
            let values = weight.to_f32();
            for n in [0, 1, 3, FEW, FEW + 1, 40] {
                let (x, dy) = (normal(n * cols, 2), normal(n * rows, 3));
                for beta in [0.0, 1.0, 0.5] {
                    let old = if beta == 0.0 { vec![f32::NAN; n * rows] } else { normal(n * rows, 4) };
                    let mut y = old.clone();
                    weight.mul(&x, n, &mut y, beta);
                    let right = product(&values, 0..rows, cols, &x, n, &old, beta);
                    assert!(relative_error(&y, &right) < 1e-6, "{dtype} mul [{n}, {cols}] x [{rows}, {cols}], beta {beta}");

                    let old = if beta == 0.0 { vec![f32::NAN; n * cols] } else { normal(n * cols, 5) };
                    let mut dx = old.clone();
                    weight.mul_transposed(&dy, n, &mut dx, beta);
                    let transposed: Vec<f32> = (0..rows * cols).map(|i| values[i % rows * cols + i / rows]).collect();
                    let right = product(&transposed, 0..cols, rows, &dy, n, &old, beta);
                    assert!(relative_error(&dx, &right) < 1e-6, "{dtype} mul_transposed [{n}, {rows}], beta {beta}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn panels_of_rows_are_the_whole(
        dtype in prop::sample::select(every_type()), rows in 1usize..200, blocks in 1usize..4,
        n in 1usize..40, at in 0.0..1.0f64, seed in 0u64..1000,
    ) {
        let cols = 256 * blocks;
        let weight = weight(dtype, rows, cols, seed);
        let x = normal(n * cols, seed + 1);
        let mut whole = vec![f32::NAN; n * rows];
        weight.mul(&x, n, &mut whole, 0.0);
        let middle = (rows as f64 * at) as usize;
        for part in [0..middle, middle..rows] {
            let mut y = vec![f32::NAN; n * part.len()];
            weight.mul_rows(part.clone(), &x, n, &mut y);
            let right: Vec<f32> = whole.chunks_exact(rows).flat_map(|row| row[part.clone()].to_vec()).collect();
            prop_assert!(relative_error(&y, &right) < 3e-6);
        }
    }

    #[test]
    fn one_row_agrees_with_many(dtype in prop::sample::select(every_type()), rows in 1usize..100, seed in 0u64..1000) {
        let cols = 512;
        let weight = weight(dtype, rows, cols, seed);
        let x = normal(30 * cols, seed + 1);
        let mut many = vec![0.0; 30 * rows];
        weight.mul(&x, 30, &mut many, 0.0);
        for i in 0..30 {
            let mut one = vec![f32::NAN; rows];
            weight.mul(&x[i * cols..(i + 1) * cols], 1, &mut one, 0.0);
            prop_assert!(relative_error(&one, &many[i * rows..(i + 1) * rows]) < 3e-6);
        }
    }
}

#[test]
fn a_row_is_that_of_the_whole() {
    for dtype in every_type() {
        let weight = weight(dtype, 9, 512, 3);
        let all = weight.to_f32();
        let mut row = vec![f32::NAN; 512];
        for i in 0..9 {
            weight.row(i, &mut row);
            assert_eq!(row, all[i * 512..(i + 1) * 512]);
        }
    }
}

#[test]
fn bytes_of_any_alignment_give_the_same_bits() {
    for dtype in every_type() {
        let values = normal(6 * 256, 1);
        let bytes = quantize(dtype, &values, 256).unwrap();
        let aligned = Weight::from_bytes(dtype, 6, 256, bytes.clone().into()).unwrap();
        let mut shifted = vec![0; bytes.len() + 1];
        shifted[1..].copy_from_slice(&bytes);
        let shifted = Weight::from_bytes(dtype, 6, 256, Bytes::from(shifted).slice(1..)).unwrap();
        assert_eq!(aligned.to_f32(), shifted.to_f32());
        let x = normal(256, 2);
        let (mut a, mut b) = ([0.0; 6], [0.0; 6]);
        aligned.mul(&x, 1, &mut a, 0.0);
        shifted.mul(&x, 1, &mut b, 0.0);
        assert_eq!(a, b);
        if dtype == DType::F32 {
            assert_eq!(aligned.to_f32(), values);
        }
    }
}

#[test]
fn aligned_bytes_are_kept_without_a_copy() {
    for dtype in every_type() {
        // A Vec<u8> may start anywhere; this one starts at a multiple of 4.
        let bytes: Bytes = Bytes::from_owner(Floats(vec![0.25; 256]));
        let needed = dtype.row_bytes(256).unwrap();
        let data = if needed <= bytes.len() { bytes.slice(..needed) } else { continue };
        let weight = Weight::from_bytes(dtype, 1, 256, data.clone()).unwrap();
        assert_eq!(weight.data.as_ptr(), data.as_ptr());
        assert_eq!(weight.size_bytes(), needed);
    }
}

#[test]
fn what_does_not_fit_is_an_error_that_says_both_sizes() {
    let error = |dtype, rows, cols, len: usize| Weight::from_bytes(dtype, rows, cols, vec![0; len].into()).err().unwrap();
    let said = error(DType::Quant(GgmlDType::Q4K), 3, 576, 1000);
    assert!(said.contains("576 values does not fit q4_K, whose blocks hold 256"), "{said}");
    let said = error(DType::Quant(GgmlDType::Q8_0), 3, 64, 203);
    assert!(said.contains("3 x 64 q8_0 needs 204 bytes, found 203"), "{said}");
    let said = error(DType::F32, usize::MAX, 64, 8);
    assert!(said.contains("larger than memory can be"), "{said}");
    assert_eq!(DType::F32.row_bytes(usize::MAX), None);
    assert_eq!(DType::Quant(GgmlDType::Q4_1).row_bytes(576), Some(360));
}

#[test]
fn ggml_names_of_plain_types_mean_the_plain_types() {
    let weight = Weight::from_bytes(DType::Quant(GgmlDType::BF16), 1, 2, vec![0x80, 0x3f, 0x00, 0x40].into()).unwrap();
    assert_eq!(weight.dtype(), DType::BF16);
    assert_eq!(weight.to_f32(), [1.0, 2.0]);
}

#[test]
fn a_matrix_with_no_rows_gives_nothing() {
    let weight = Weight::from_f32(Vec::new(), 0, 4);
    weight.mul(&[1.0; 8], 2, &mut [], 0.0);
    let mut dx = [2.0; 8];
    weight.mul_transposed(&[], 2, &mut dx, 0.5);
    assert_eq!(dx, [1.0; 8]);
    assert!(weight.to_f32().is_empty());
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let (rows, cols) = (1200, 768);
    for dtype in [DType::F32, DType::BF16, DType::Quant(GgmlDType::Q8_0), DType::Quant(GgmlDType::Q4K)] {
        let weight = weight(dtype, rows, cols, 1);
        for n in [1, 7, 65] {
            let (x, dy) = (normal(n * cols, 2), normal(n * rows, 3));
            let run = |count| {
                let (mut y, mut dx) = (vec![0.5; n * rows], vec![0.5; n * cols]);
                threads(count, || {
                    weight.mul(&x, n, &mut y, 1.0);
                    weight.mul_transposed(&dy, n, &mut dx, 1.0);
                });
                (y, dx)
            };
            let one = run(1);
            assert!(one == run(2) && one == run(3), "{dtype}, {n} rows");
        }
    }
}
