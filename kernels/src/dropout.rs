//! Dropout (Srivastava et al., 2014) on what an adapter reads: `x * mask / (1 - rate)`, so that the mean stays.
//!
//! No mask is ever stored. Whether a value is left out is a pure function of its token's key, its layer and its column, so
//! that the backward pass, and a block that is computed again, find the same mask, whatever the number of threads and
//! however rows are packed:
//!
//! ```text
//! key(token) = mix(mix(mix(mix("dropout", seed), step), row in the step), position in the row)
//! word(j)    = the j-th output of splitmix64 from the state mix(key(token), place), for the columns 2 j and 2 j + 1
//! left out   = 32 bits of the word (the low half for the even column) < rate * 2^32
//! ```

use rayon::prelude::*;

use crate::rng::{GOLDEN, splitmix};
use crate::simd::simd;

/// The keys start from here: the letters of "dropout".
const DOMAIN: u64 = 0x0064_726f_706f_7574;
/// Values that a thread takes at least.
const PIECE_VALUES: usize = 1 << 14;

/// One key of two words.
fn mix(key: u64, value: u64) -> u64 {
    splitmix(key ^ value)
}

/// The key of a token: of the training's seed, the step, the row's number in the step, the token's position in its row.
pub fn token_key(seed: u64, step: u64, row: u64, position: u64) -> u64 {
    [seed, step, row, position].into_iter().fold(DOMAIN, mix)
}

/// The mask of one linear layer over the tokens of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Dropout<'a> {
    /// Share of the values that are left out, `0 <= rate < 1`.
    pub rate: f64,
    /// `[n]`, of [`token_key`].
    pub tokens: &'a [u64],
    /// Tells the linear layers of a model from each other.
    pub place: u64,
}

impl Dropout<'_> {
    /// `out = x * mask / (1 - rate)`; both `[n, columns]`.
    pub fn forward(&self, x: &[f32], out: &mut [f32]) {
        self.each(x, out, false);
    }

    /// `dx += dout * mask / (1 - rate)`; both `[n, columns]`.
    pub fn backward(&self, dout: &[f32], dx: &mut [f32]) {
        self.each(dout, dx, true);
    }

    fn each(&self, from: &[f32], to: &mut [f32], add: bool) {
        let columns = from.len() / self.tokens.len();
        assert_eq!(from.len(), self.tokens.len() * columns, "{} tokens do not divide the values", self.tokens.len());
        assert_eq!(from.len(), to.len(), "dropout keeps the shape");
        // A rate just below 1 rounds to 2^32; the largest of 32 bits is as good.
        let threshold = (self.rate * 4_294_967_296.0).round().min(u32::MAX.into()) as u32;
        let scale = (1.0 / (1.0 - self.rate)) as f32;
        let rows = from.par_chunks_exact(columns).zip(to.par_chunks_exact_mut(columns));
        self.tokens.par_iter().zip(rows).with_min_len(PIECE_VALUES.div_ceil(columns)).for_each(|(&key, (from, to))| {
            mask_row(mix(key, self.place), threshold, scale, from, to, add);
        });
    }
}

/// Words that are made at once.
const WORDS: usize = 32;

simd! {
    /// One token: `to = from * mask * scale`, or added to it.
    fn mask_row(state: u64, threshold: u32, scale: f32, from: &[f32], to: &mut [f32], add: bool) {
        let mut state = state;
        for (from, to) in from.chunks(2 * WORDS).zip(to.chunks_mut(2 * WORDS)) {
            let mut words = [0u64; WORDS];
            for (j, word) in words.iter_mut().enumerate() {
                *word = splitmix(state.wrapping_add((j as u64).wrapping_mul(GOLDEN)));
            }
            state = state.wrapping_add((WORDS as u64).wrapping_mul(GOLDEN));
            // In little-endian order, the only one here, the low half of a word comes first.
            let bits: [u32; 2 * WORDS] = bytemuck::cast(words);
            for ((from, to), bits) in from.iter().zip(to).zip(bits) {
                let kept = if bits < threshold { 0.0 } else { from * scale };
                *to = if add { *to + kept } else { kept };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::threads;

    fn keys(n: u64) -> Vec<u64> {
        (0..n).map(|i| token_key(42, 3, i / 10, i % 10)).collect()
    }

    fn mask(rate: f64, tokens: &[u64], place: u64, columns: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; tokens.len() * columns];
        Dropout { rate, tokens, place }.forward(&vec![1.0; out.len()], &mut out);
        out
    }

    /// The share of places where both are left out; `rate * rate` where they know nothing of each other.
    fn both(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).filter(|(a, b)| **a == 0.0 && **b == 0.0).count() as f64 / a.len() as f64
    }

    #[test]
    fn the_share_that_is_left_out_is_the_rate_and_the_mean_stays() {
        let tokens = keys(1000);
        for rate in [0.05, 0.1, 0.5, 0.9] {
            let mask = mask(rate, &tokens, 5, 333);
            let n = mask.len() as f64;
            // Four standard deviations.
            let bound = 4.0 * (rate * (1.0 - rate) / n).sqrt();
            let share = mask.iter().filter(|m| **m == 0.0).count() as f64 / n;
            assert!((share - rate).abs() < bound, "{share} of {rate}");
            let mean = mask.iter().map(|m| f64::from(*m)).sum::<f64>() / n;
            assert!((mean - 1.0).abs() < bound / (1.0 - rate), "mean {mean} at {rate}");
            assert!(mask.iter().all(|m| *m == 0.0 || *m == (1.0 / (1.0 - rate)) as f32));
        }
        assert!(mask(0.0, &tokens, 5, 333).iter().all(|m| *m == 1.0));
    }

    #[test]
    fn masks_of_places_tokens_steps_rows_and_columns_know_nothing_of_each_other() {
        let (rate, columns) = (0.3, 257);
        let tokens = keys(1000);
        let first = mask(rate, &tokens, 5, columns);
        let bound = 4.0 * (rate * rate / first.len() as f64).sqrt();
        let other_step: Vec<u64> = (0..1000).map(|i| token_key(42, 4, i / 10, i % 10)).collect();
        let other_seed: Vec<u64> = (0..1000).map(|i| token_key(43, 3, i / 10, i % 10)).collect();
        for (what, other) in [
            ("the next place", mask(rate, &tokens, 6, columns)),
            ("the place of the next layer", mask(rate, &tokens, 12, columns)),
            ("the next step", mask(rate, &other_step, 5, columns)),
            ("the next seed", mask(rate, &other_seed, 5, columns)),
            // The next position, and the same position of the next row.
            ("the next token", mask(rate, &[&tokens[1..], &tokens[..1]].concat(), 5, columns)),
            ("the next row", mask(rate, &[&tokens[10..], &tokens[..10]].concat(), 5, columns)),
            ("the next column", [&first[1..], &first[..1]].concat()),
        ] {
            let share = both(&first, &other);
            assert!((share - rate * rate).abs() < bound, "{what}: {share}, expected {}", rate * rate);
        }
        let mut distinct = tokens.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), tokens.len());
    }

    #[test]
    fn a_token_keeps_its_mask_wherever_it_stands_and_whoever_computes() {
        let tokens = keys(300);
        let columns = 65;
        let whole = mask(0.4, &tokens, 9, columns);
        assert_eq!(mask(0.4, &tokens[100..200], 9, columns), whole[100 * columns..200 * columns]);
        assert_eq!(threads(3, || mask(0.4, &tokens, 9, columns)), threads(1, || mask(0.4, &tokens, 9, columns)));
    }

    #[test]
    fn backward_adds_through_the_same_mask() {
        let tokens = keys(20);
        let mask = mask(0.25, &tokens, 1, 7);
        let dout: Vec<f32> = (0..mask.len()).map(|i| i as f32 - 50.0).collect();
        let mut dx = vec![1.0; mask.len()];
        Dropout { rate: 0.25, tokens: &tokens, place: 1 }.backward(&dout, &mut dx);
        for ((dx, d), m) in dx.iter().zip(&dout).zip(&mask) {
            assert_eq!(*dx, 1.0 + d * m);
        }
    }
}
