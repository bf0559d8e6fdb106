//! MinHash (Broder 1997): 128 bytes that tell how alike two sets of shingles are, and bands of it that alike ones share.

use super::words::mixed;

/// Values of a sketch.
const LANES: usize = 64;
/// Bands of four values: two sets with Jaccard s share one with probability 1 - (1 - s^4)^16, which is .988 at .7, .9998 at .8
/// and 1 - 5e-8 at .9 (.64 at .5, .12 at .3).
pub const BANDS: usize = 16;
const IN_A_BAND: usize = LANES / BANDS;

/// The factors and summands of the lanes' permutations of 32 bits: the same in every build.
const PERMUTATIONS: ([u32; LANES], [u32; LANES]) = permutations();

/// The low bits of the smallest hash under each permutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sketch([u16; LANES]);

impl Sketch {
    /// Of hashes whose bits are mixed.
    pub fn of(shingles: &[u64]) -> Self {
        let (factors, summands) = &PERMUTATIONS;
        let mut smallest = [u32::MAX; LANES];
        for &shingle in shingles {
            let x = (shingle ^ (shingle >> 32)) as u32;
            for lane in 0..LANES {
                let y = factors[lane].wrapping_mul(x).wrapping_add(summands[lane]);
                smallest[lane] = smallest[lane].min(y);
            }
        }
        // The high bits of a minimum are mostly zero: those that are kept must depend on all of them.
        Self(smallest.map(|y| (y.wrapping_mul(0x9e37_79b1) >> 16) as u16))
    }

    /// An estimate of the Jaccard index; its standard deviation is .05 at .8.
    pub fn likeness(&self, other: &Self) -> f64 {
        let same = self.0.iter().zip(&other.0).filter(|(a, b)| a == b).count();
        same as f64 / LANES as f64
    }

    /// A hash of each band.
    pub fn bands(&self) -> [u64; BANDS] {
        std::array::from_fn(|band| {
            let lanes = &self.0[band * IN_A_BAND..(band + 1) * IN_A_BAND];
            mixed(lanes.iter().fold(0, |all, &lane| all << 16 | u64::from(lane)) ^ ((band as u64) << 57))
        })
    }
}

const fn permutations() -> ([u32; LANES], [u32; LANES]) {
    let (mut factors, mut summands) = ([0; LANES], [0; LANES]);
    let mut state = 0x7265_7475_6e65_u64;
    let mut lane = 0;
    while lane < LANES {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        factors[lane] = (state >> 32) as u32 | 1;
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        summands[lane] = (state >> 32) as u32;
        lane += 1;
    }
    (factors, summands)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::words::jaccard;

    /// Two sets of `n` with about the given Jaccard index, and that index.
    fn sets(seed: u64, n: u64, index: f64) -> ([Vec<u64>; 2], f64) {
        let both = (2.0 * n as f64 * index / (1.0 + index)).round() as u64;
        let side = |side: u64| {
            let own = (both..n).map(move |i| mixed(mixed(seed ^ side) ^ i));
            let mut set: Vec<u64> = (0..both).map(|i| mixed(mixed(seed) ^ i)).chain(own).collect();
            set.sort_unstable();
            set
        };
        let pair = [side(1), side(2)];
        let index = jaccard(&pair[0], &pair[1]);
        (pair, index)
    }

    #[test]
    fn likeness_is_the_jaccard_index_on_the_mean() {
        for (n, index) in [(6, 0.5), (200, 0.3), (200, 0.8), (2000, 0.8), (2000, 0.95)] {
            let (mut off, mut squares) = (0.0, 0.0);
            for seed in 0..400 {
                let (pair, index) = sets(mixed(seed + 9), n, index);
                let error = Sketch::of(&pair[0]).likeness(&Sketch::of(&pair[1])) - index;
                off += error / 400.0;
                squares += error * error / 400.0;
            }
            // A binomial's deviation at 64 lanes is at most .0625; of the mean over 400 pairs a twentieth of that.
            assert!(off.abs() < 0.012 && squares.sqrt() < 0.07, "{n} {index}: off by {off}, deviation {}", squares.sqrt());
        }
    }

    #[test]
    fn bands_are_shared_as_often_as_the_curve_says() {
        for (index, at_least, at_most) in
            [(0.9, 0.999, 1.0), (0.8, 0.995, 1.0), (0.7, 0.97, 1.0), (0.3, 0.08, 0.17), (0.1, 0.0, 0.01)]
        {
            let shared = (0..1000)
                .filter(|&seed| {
                    let (pair, _) = sets(mixed(seed + 77), 300, index);
                    let [a, b] = pair.map(|set| Sketch::of(&set).bands());
                    a.iter().zip(&b).any(|(a, b)| a == b)
                })
                .count() as f64
                / 1000.0;
            assert!((at_least..=at_most).contains(&shared), "{index}: {shared}");
        }
    }

    #[test]
    fn a_sketch_takes_128_bytes_and_is_the_same_in_every_build() {
        assert_eq!(size_of::<Sketch>(), 128);
        let first = Sketch::of(&[mixed(1), mixed(2), mixed(3)]).0;
        assert_eq!(&first[..4], &[14994, 21571, 32521, 61482]);
    }
}
