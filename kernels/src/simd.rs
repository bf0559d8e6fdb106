//! One x86-64 binary that uses the vector units it finds: `simd!` compiles a function once for AVX-512,
//! once for AVX2 and once plain, and picks at run time. Other machines have the plain one only.
//!
//! The bodies are ordinary safe code that the compiler vectorises; sums run in a fixed number of lanes,
//! so that their order does not depend on the width of the machine. `mul_add` is one instruction on the first
//! two levels and on aarch64; on an x86-64 without FMA (before 2013) it is a slow call, but a right one.

use std::sync::atomic::{AtomicU8, Ordering};

/// What the vector code may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    Plain = 1,
    /// AVX2, FMA, F16C: x86-64-v3.
    Avx2 = 2,
    /// AVX-512 F, BW, CD, DQ, VL: x86-64-v4.
    Avx512 = 3,
}

/// 0: not asked yet.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// The level in use: the best that this machine has, unless `limit` lowered it.
#[inline]
pub fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        3 => Level::Avx512,
        2 => Level::Avx2,
        1 => Level::Plain,
        _ => limit(Level::Avx512),
    }
}

/// Uses at most `most` from now on, in the whole process, and returns what that is here. For tests and
/// measurements; the products of the `gemm` crate choose for themselves.
pub fn limit(most: Level) -> Level {
    let level = detect().min(most);
    LEVEL.store(level as u8, Ordering::Relaxed);
    level
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let v3 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt");
    let v4 = v3
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (v3, v4) {
        (_, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        _ => Level::Plain,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Plain
}

/// Lanes of a `Vector`.
pub(crate) const LANES: usize = 16;

/// Sixteen values of f32 in registers.
///
/// # Safety
/// The functions must only run where the machine has the instructions; `simd!` names each type only there.
pub(crate) trait Vector: Copy {
    /// Whether there are registers for a tile of 4 x 4 vectors.
    const MANY_REGISTERS: bool;
    unsafe fn zero() -> Self;
    unsafe fn load(x: &[f32; LANES]) -> Self;
    unsafe fn splat(x: f32) -> Self;
    /// `self * b + sum`, rounded once.
    unsafe fn mul_add(self, b: Self, sum: Self) -> Self;
    unsafe fn to_array(self) -> [f32; LANES];
    /// The sum of the lanes, halves first: 0 + 8, .. 7 + 15, then quarters, and so on. The same bits on every level.
    unsafe fn sum(self) -> f32;
}

/// Plain code; correct everywhere.
impl Vector for [f32; LANES] {
    const MANY_REGISTERS: bool = false;
    #[inline(always)]
    unsafe fn zero() -> Self {
        [0.0; LANES]
    }
    #[inline(always)]
    unsafe fn load(x: &[f32; LANES]) -> Self {
        *x
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, sum: Self) -> Self {
        std::array::from_fn(|l| self[l].mul_add(b[l], sum[l]))
    }
    #[inline(always)]
    unsafe fn to_array(self) -> [f32; LANES] {
        self
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        sum_lanes(self)
    }
}

/// The sum of the lanes in the order of `Vector::sum`.
#[inline(always)]
pub(crate) fn sum_lanes(mut acc: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            acc[i] += acc[i + half];
        }
        half /= 2;
    }
    acc[0]
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Vector};

    // SAFETY of every block below: the trait's own condition; a pointer to an array of sixteen values may be read or
    // written for sixteen values, at any alignment.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Vector for __m512 {
        const MANY_REGISTERS: bool = true;
        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn load(x: &[f32; LANES]) -> Self {
            unsafe { _mm512_loadu_ps(x.as_ptr()) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, b: Self, sum: Self) -> Self {
            unsafe { _mm512_fmadd_ps(self, b, sum) }
        }
        #[inline(always)]
        unsafe fn to_array(self) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self) };
            out
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe { sum_eight(_mm256_add_ps(_mm512_castps512_ps256(self), _mm512_extractf32x8_ps::<1>(self))) }
        }
    }

    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Vector for [__m256; 2] {
        const MANY_REGISTERS: bool = false;
        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { [_mm256_setzero_ps(), _mm256_setzero_ps()] }
        }
        #[inline(always)]
        unsafe fn load(x: &[f32; LANES]) -> Self {
            unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { [_mm256_set1_ps(x), _mm256_set1_ps(x)] }
        }
        #[inline(always)]
        unsafe fn mul_add(self, b: Self, sum: Self) -> Self {
            unsafe { [_mm256_fmadd_ps(self[0], b[0], sum[0]), _mm256_fmadd_ps(self[1], b[1], sum[1])] }
        }
        #[inline(always)]
        unsafe fn to_array(self) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), self[0]);
                _mm256_storeu_ps(out.as_mut_ptr().add(8), self[1]);
            }
            out
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe { sum_eight(_mm256_add_ps(self[0], self[1])) }
        }
    }

    #[inline(always)]
    #[allow(clippy::undocumented_unsafe_blocks)]
    unsafe fn sum_eight(x: __m256) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

/// Compiles the function for every `Level` and calls the one for this machine. With `[V]` before `fn`, the body
/// may use `V: Vector`; with `<B: Trait>` behind the name, it is generic.
macro_rules! simd {
    ([$v:ident] $(#[$doc:meta])* $vis:vis fn $name:ident ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $crate::simd::simd! { @ $(#[$doc])* $vis fn $name [] [$v: $crate::simd::Vector]
            [[f32; $crate::simd::LANES]] [[std::arch::x86_64::__m256; 2]] [std::arch::x86_64::__m512]
            ($($arg: $ty),*) [$($ret)?] $body }
    };
    ($(#[$doc:meta])* $vis:vis fn $name:ident <$g:ident : $bound:path> ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $crate::simd::simd! { @ $(#[$doc])* $vis fn $name [$g: $bound] [$g: $bound] [$g] [$g] [$g] ($($arg: $ty),*) [$($ret)?] $body }
    };
    ($(#[$doc:meta])* $vis:vis fn $name:ident ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $crate::simd::simd! { @ $(#[$doc])* $vis fn $name [] [] [] [] [] ($($arg: $ty),*) [$($ret)?] $body }
    };
    // [parameters of the outer function] [parameters of the body] and the body's arguments for the three levels.
    (@ $(#[$doc:meta])* $vis:vis fn $name:ident [$($outer:tt)*] [$($inner:tt)*] [$($plain:ty)?] [$($avx2:ty)?] [$($avx512:ty)?]
        ($($arg:ident : $ty:ty),*) [$($ret:ty)?] $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name <$($outer)*> ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn plain <$($inner)*> ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
            #[allow(clippy::too_many_arguments)]
            fn avx2 <$($outer)*> ($($arg: $ty),*) $(-> $ret)? {
                plain $(::<$avx2>)? ($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
            #[allow(clippy::too_many_arguments)]
            fn avx512 <$($outer)*> ($($arg: $ty),*) $(-> $ret)? {
                plain $(::<$avx512>)? ($($arg),*)
            }

            $crate::simd::simd! { @call [$($outer)*] ($($arg),*) plain [$($plain)?] }
        }
    };
    (@call [$($g:ident : $bound:path)?] ($($arg:ident),*) $body:ident [$($plain:ty)?]) => {
        #[cfg(target_arch = "x86_64")]
        match $crate::simd::level() {
            // SAFETY: `level` is Avx512 only where every feature that `avx512` enables was detected.
            $crate::simd::Level::Avx512 => return unsafe { avx512 $(::<$g>)? ($($arg),*) },
            // SAFETY: the same for `avx2`.
            $crate::simd::Level::Avx2 => return unsafe { avx2 $(::<$g>)? ($($arg),*) },
            $crate::simd::Level::Plain => {}
        }
        $body $(::<$plain>)? ($($arg),*)
    };
}
pub(crate) use simd;
