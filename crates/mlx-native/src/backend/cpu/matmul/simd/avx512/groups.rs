//! Scales of MLX's groups for several steps at once.
#![allow(unsafe_op_in_unsafe_fn)] // The contract stands at `simd`.

use std::arch::x86_64::*;

use super::super::{Simd, four};
use super::{Avx512, low};

/// Which of eight numbers of each row place t of step s belongs to, each of them being two blocks': row, number.
const fn number(s: usize, t: usize) -> (usize, usize) {
    (t % 4, (4 * s + t / 4) / 2)
}

/// Where the bytes of a step's bf16 are in four rows of sixteen, in the upper halves of f32.
const UPPER_HALVES: [[u8; 64]; 4] = {
    let mut index = [[0; 64]; 4];
    let mut at = 0;
    while at < 256 {
        let (row, number) = number(at / 64, at % 64 / 4);
        index[at / 64][at % 64] = (16 * row + 2 * number + at % 2) as u8;
        at += 1;
    }
    index
};

/// Where a step's numbers are in four rows of eight.
const PLACES: [[i32; 16]; 4] = {
    let mut index = [[0; 16]; 4];
    let mut t = 0;
    while t < 64 {
        let (row, number) = number(t / 16, t % 16);
        index[t / 16][t % 16] = (8 * row + number) as i32;
        t += 1;
    }
    index
};

/// Where the bytes of a row's bf16 are, each of them twice, in the upper halves of f32.
const TWICE_UPPER: [u8; 64] = {
    let mut index = [0; 64];
    let mut at = 0;
    while at < 64 {
        index[at] = (at / 8 * 2 + at % 2) as u8;
        at += 1;
    }
    index
};

/// See [`ByRow::row_groups_of_64`].
#[inline(always)]
pub(super) unsafe fn of_row(p: *const u8, f16: bool) -> __m512 {
    if f16 {
        let twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
        return _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_cvtph_ps(low(p))));
    }
    let v = _mm512_castsi128_si512(low(p));
    let upper = 0xCCCC_CCCC_CCCC_CCCC;
    _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi8(upper, Avx512::load(TWICE_UPPER.as_ptr()), v))
}

/// See [`Simd::groups_of_64`].
#[inline(always)]
pub(super) unsafe fn of_64(p: [*const u8; 4], f16: bool) -> [__m512; 4] {
    let v = Avx512::gather(p);
    if !f16 {
        let upper = 0xCCCC_CCCC_CCCC_CCCC;
        return four!(|s| {
            let index = Avx512::load(UPPER_HALVES[s].as_ptr());
            _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi8(upper, index, v))
        });
    }
    let first = _mm512_cvtph_ps(_mm512_castsi512_si256(v));
    let last = _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(v));
    four!(|s| _mm512_permutex2var_ps(first, _mm512_loadu_si512(PLACES[s].as_ptr().cast()), last))
}
