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

/// Compiles the function for every `Level` and calls the one for this machine.
macro_rules! simd {
    ($(#[$doc:meta])* $vis:vis fn $name:ident $(<$g:ident : $bound:path>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$g: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn plain $(<$g: $bound>)? ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
            #[allow(clippy::too_many_arguments)]
            fn avx2 $(<$g: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                plain $(::<$g>)? ($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
            #[allow(clippy::too_many_arguments)]
            fn avx512 $(<$g: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                plain $(::<$g>)? ($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            match $crate::simd::level() {
                // SAFETY: `level` is Avx512 only where every feature that `avx512` enables was detected.
                $crate::simd::Level::Avx512 => return unsafe { avx512 $(::<$g>)? ($($arg),*) },
                // SAFETY: the same for `avx2`.
                $crate::simd::Level::Avx2 => return unsafe { avx2 $(::<$g>)? ($($arg),*) },
                $crate::simd::Level::Plain => {}
            }
            plain $(::<$g>)? ($($arg),*)
        }
    };
}
pub(crate) use simd;
