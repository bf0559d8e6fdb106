//! Products with few rows, as in decoding: `y = x W^T` where x has up to `FEW` rows. A matrix product packs W first,
//! which costs more than the product itself here; these read W once, in place.
//!
//! Each value of y is one sum in one order, whatever the number of rows: an answer does not depend on
//! what else is in its batch.

use crate::simd::{LANES, Vector, simd};

/// Up to as many rows of x; from here on packing pays.
pub(crate) const FEW: usize = 32;

/// Row-major rows with `stride` values from one to the next.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

impl<'a> Rows<'a> {
    /// `N` rows of `len` values from row `first`.
    #[inline(always)]
    fn get<const N: usize>(self, first: usize, len: usize) -> [&'a [f32]; N] {
        std::array::from_fn(|i| &self.data[(first + i) * self.stride..][..len])
    }
}

simd! {
    [V] /// y `[rows, n]` (the transpose of x W^T), W `[rows, len]`, x `[n, len]`.
    pub(crate) fn few_rows(w: Rows, rows: usize, x: Rows, n: usize, len: usize, y: &mut [f32]) {
        let y = &mut y[..rows * n];
        if V::MANY_REGISTERS {
            tiles::<V, 4, 4>(w, rows, x, n, len, y);
        } else {
            tiles::<V, 2, 2>(w, rows, x, n, len, y);
        }
    }
}

#[inline(always)]
fn tiles<V: Vector, const R: usize, const C: usize>(w: Rows, rows: usize, x: Rows, n: usize, len: usize, y: &mut [f32]) {
    let (whole_rows, whole_n) = (rows / R * R, n / C * C);
    for row in (0..whole_rows).step_by(R) {
        for i in (0..whole_n).step_by(C) {
            tile::<V, R, C>(w.get(row, len), x.get(i, len), n, &mut y[row * n + i..]);
        }
        for i in whole_n..n {
            tile::<V, R, 1>(w.get(row, len), x.get(i, len), n, &mut y[row * n + i..]);
        }
    }
    for row in whole_rows..rows {
        for i in 0..n {
            tile::<V, 1, 1>(w.get(row, len), x.get(i, len), n, &mut y[row * n + i..]);
        }
    }
}

/// `R` rows of W with `C` rows of x, all of one length: the sums stay in registers.
#[inline(always)]
fn tile<V: Vector, const R: usize, const C: usize>(w: [&[f32]; R], x: [&[f32]; C], n: usize, y: &mut [f32]) {
    let (w_chunks, w_tails) = (w.map(|w| w.as_chunks::<LANES>().0), w.map(|w| w.as_chunks::<LANES>().1));
    let (x_chunks, x_tails) = (x.map(|x| x.as_chunks::<LANES>().0), x.map(|x| x.as_chunks::<LANES>().1));
    let mut sums = [[0.0f32; C]; R];
    // Loops rather than `array::map`, whose closures are compiled without the vector instructions.
    // SAFETY: `simd!` names V only where the machine has its instructions.
    unsafe {
        let mut acc = [[V::zero(); C]; R];
        for at in 0..w_chunks[0].len() {
            let mut x = [V::zero(); C];
            for c in 0..C {
                x[c] = V::load(&x_chunks[c][at]);
            }
            for r in 0..R {
                let w = V::load(&w_chunks[r][at]);
                for c in 0..C {
                    acc[r][c] = w.mul_add(x[c], acc[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                sums[r][c] = acc[r][c].sum();
            }
        }
    }
    for r in 0..R {
        for c in 0..C {
            let tail = w_tails[r].iter().zip(x_tails[c]).fold(0.0f32, |sum, (w, x)| w.mul_add(*x, sum));
            y[r * n + c] = sums[r][c] + tail;
        }
    }
}

simd! {
    [V] /// `y [len] = sum(p[j] * row j of v)`: some outputs at a time, in registers, over all rows.
    pub(crate) fn weighted_sum(p: &[f32], v: Rows, y: &mut [f32]) {
        let (wide, rest) = y.as_chunks_mut::<{ 4 * LANES }>();
        let mut at = 0;
        for y in wide {
            y.copy_from_slice(columns::<V, 4>(p, v, at).as_flattened());
            at += 4 * LANES;
        }
        let (narrow, rest) = rest.as_chunks_mut::<LANES>();
        for y in narrow {
            [*y] = columns::<V, 1>(p, v, at);
            at += LANES;
        }
        for y in rest {
            *y = p.iter().enumerate().fold(0.0f32, |sum, (j, p)| p.mul_add(v.data[j * v.stride + at], sum));
            at += 1;
        }
    }
}

/// `N * LANES` columns of the weighted sum.
#[inline(always)]
fn columns<V: Vector, const N: usize>(p: &[f32], v: Rows, at: usize) -> [[f32; LANES]; N] {
    // SAFETY: `simd!` names V only where the machine has its instructions.
    unsafe {
        let mut acc = [V::zero(); N];
        for (j, p) in p.iter().enumerate() {
            let (chunks, _) = v.data[j * v.stride + at..][..N * LANES].as_chunks::<LANES>();
            let p = V::splat(*p);
            for i in 0..N {
                acc[i] = p.mul_add(V::load(&chunks[i]), acc[i]);
            }
        }
        let mut out = [[0.0; LANES]; N];
        for i in 0..N {
            out[i] = acc[i].to_array();
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{normal, relative_error};

    #[test]
    fn products_agree_with_the_definition_and_do_not_depend_on_the_batch() {
        for (rows, len) in [(1, 1), (4, 16), (9, 15), (7, 64), (13, 333)] {
            let (w_stride, x_stride) = (len + 5, len + 2);
            let (w, x) = (normal(rows * w_stride, 1), normal(FEW * x_stride, 2));
            let (w, x) = (Rows { data: &w, stride: w_stride }, Rows { data: &x, stride: x_stride });
            let mut whole = vec![f32::NAN; rows * FEW];
            few_rows(w, rows, x, FEW, len, &mut whole);
            let right: Vec<f32> = (0..rows * FEW)
                .map(|i| {
                    let (r, c) = (i / FEW, i % FEW);
                    let products = (0..len).map(|l| f64::from(w.data[r * w_stride + l]) * f64::from(x.data[c * x_stride + l]));
                    products.sum::<f64>() as f32
                })
                .collect();
            assert!(relative_error(&whole, &right) < 1e-6);
            for n in 1..FEW {
                let mut y = vec![f32::NAN; rows * n];
                few_rows(w, rows, x, n, len, &mut y);
                for (i, y) in y.iter().enumerate() {
                    assert_eq!(y.to_bits(), whole[i / n * FEW + i % n].to_bits(), "row {} of {n}", i % n);
                }
            }
        }
    }

    #[test]
    fn a_weighted_sum_agrees_with_the_definition() {
        for (keys, len) in [(0, 8), (1, 1), (3, 8), (5, 63), (100, 64), (33, 200)] {
            let stride = len + 3;
            let (p, v) = (normal(keys, 1), normal(keys * stride, 2));
            let mut y = vec![f32::NAN; len];
            weighted_sum(&p, Rows { data: &v, stride }, &mut y);
            let right: Vec<f32> =
                (0..len).map(|i| (0..keys).map(|j| f64::from(p[j]) * f64::from(v[j * stride + i])).sum::<f64>() as f32).collect();
            assert!(relative_error(&y, &right) < 1e-6, "{keys} keys of {len}");
        }
    }
}
