//! Loops whose bodies know their turn, and functions for every instruction set.

use std::mem::MaybeUninit;

/// `[e(0), e(1), e(2), e(3)]`. The standard library's array functions take closures, which do not have the caller's
/// instruction set and so are not inlined for certain.
macro_rules! four {
    (|$i:ident| $e:expr) => {
        [
            {
                let $i = 0usize;
                $e
            },
            {
                let $i = 1usize;
                $e
            },
            {
                let $i = 2usize;
                $e
            },
            {
                let $i = 3usize;
                $e
            },
        ]
    };
}

/// `[e(0), e(16)]`: for the first and the second halves of blocks. No closures, see [`four`].
macro_rules! both_halves {
    (|$half:ident| $e:expr) => {
        [
            {
                let $half = 0usize;
                $e
            },
            {
                let $half = 16usize;
                $e
            },
        ]
    };
}

/// `[e(0), …, e(n − 1)]` in an `unsafe` block. No closures, see [`four`].
macro_rules! array {
    ($n:ident, |$i:ident| $e:expr) => {{
        let mut places = [const { std::mem::MaybeUninit::uninit() }; $n];
        for $i in 0..$n {
            places[$i].write($e);
        }
        $crate::backend::cpu::matmul::simd::initialized(places)
    }};
}

/// `e(0); …; e(n − 1);` for a constant n up to 8, each with its own constant.
macro_rules! unrolled {
    ($n:expr, |$i:ident| $e:expr) => {
        unrolled!(@ $n, $i, $e, 0 1 2 3 4 5 6 7)
    };
    (@ $n:expr, $i:ident, $e:expr, $($value:literal)*) => {
        $(
            if $n > $value {
                let $i = $value as usize;
                $e
            }
        )*
    };
}

/// What [`array`] has written; every place is initialized.
#[inline(always)]
pub(in super::super) unsafe fn initialized<V, const N: usize>(places: [MaybeUninit<V>; N]) -> [V; N] {
    // SAFETY: the array has the same layout, and its values are moved out once.
    unsafe { std::mem::transmute_copy(&places) }
}

/// Expands `$compiled!(attributes name, set);` for every instruction set of the target: functions that are compiled for each of them once, under its name.
macro_rules! every_set {
    ($compiled:ident) => {
        $compiled!(
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,gfni,avx2,fma,f16c")]
            avx512,
            $crate::backend::cpu::matmul::simd::avx512::Avx512
        );
        $compiled!(
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi2")]
            avx2,
            $crate::backend::cpu::matmul::simd::avx2::Avx2
        );
        $compiled!(
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon,dotprod")]
            neon,
            $crate::backend::cpu::matmul::simd::neon::Neon
        );
        $compiled!(portable, $crate::backend::cpu::matmul::simd::portable::Portable);
    };
}

pub(in super::super) use {array, both_halves, every_set, four, unrolled};
