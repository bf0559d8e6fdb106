//! The one seeded generator of random numbers (xoshiro256++ seeded through splitmix64; Blackman and Vigna,
//! 2019). Its whole state is four words, so that a checkpoint can carry it.

/// The step of splitmix64's state: 2^64 divided by the golden ratio.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// What splitmix64 gives from the state `x` (Steele, Lea, Flood, 2014): its j-th output (from 0) from a state is
/// `splitmix(state + j * GOLDEN)`.
#[inline(always)]
pub fn splitmix(x: u64) -> u64 {
    let mut z = x.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of random numbers; the same seed gives the same stream on every machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self { state: [0, 1, 2, 3].map(|j: u64| splitmix(seed.wrapping_add(j.wrapping_mul(GOLDEN)))) }
    }

    /// The state, for a checkpoint.
    pub fn state(&self) -> [u64; 4] {
        self.state
    }

    /// A generator that goes on where `state` was taken.
    pub fn from_state(state: [u64; 4]) -> Self {
        Self { state }
    }

    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Uniform in `[0, 1)` with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n` without bias (Lemire, 2019). `n` must not be 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "below(0) has no answer");
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(n);
            let low = wide as u64;
            if low >= n.wrapping_neg() % n {
                return (wide >> 64) as u64;
            }
        }
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let u = 1.0 - self.uniform();
        (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * self.uniform()).cos()
    }

    /// Shuffles in place (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_that_of_the_reference_code() {
        // The first outputs of xoshiro256plusplus.c from the state 1, 2, 3, 4.
        let mut rng = Rng::from_state([1, 2, 3, 4]);
        let first: [u64; 4] = std::array::from_fn(|_| rng.next_u64());
        assert_eq!(first, [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386]);
        // The first output of splitmix64.c from the seed 0.
        assert_eq!(Rng::new(0).state()[0], 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn a_saved_state_goes_on_with_the_same_numbers() {
        let mut rng = Rng::new(5);
        rng.normal();
        let mut again = Rng::from_state(rng.state());
        assert_eq!([rng.next_u64(), rng.below(10)], [again.next_u64(), again.below(10)]);
    }

    #[test]
    fn draws_have_the_moments_that_they_should() {
        let mut rng = Rng::new(1);
        let n = 100_000;
        let uniform: Vec<f64> = (0..n).map(|_| rng.uniform()).collect();
        assert!(uniform.iter().all(|u| (0.0..1.0).contains(u)));
        assert!((uniform.iter().sum::<f64>() / f64::from(n) - 0.5).abs() < 0.005);
        let normal: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        assert!((normal.iter().sum::<f64>() / f64::from(n)).abs() < 0.015);
        assert!((normal.iter().map(|x| x * x).sum::<f64>() / f64::from(n) - 1.0).abs() < 0.02);
        let mut counts = [0u32; 7];
        (0..70_000).for_each(|_| counts[rng.below(7) as usize] += 1);
        assert!(counts.iter().all(|c| (9_600..10_400).contains(c)), "{counts:?}");
    }

    #[test]
    fn a_shuffle_keeps_every_item_and_reaches_every_order() {
        let mut rng = Rng::new(3);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..500 {
            let mut items = [1, 2, 3, 4];
            rng.shuffle(&mut items);
            let mut sorted = items;
            sorted.sort_unstable();
            assert_eq!(sorted, [1, 2, 3, 4]);
            seen.insert(items);
        }
        assert_eq!(seen.len(), 24);
    }
}
