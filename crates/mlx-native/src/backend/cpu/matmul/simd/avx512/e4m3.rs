//! E4M3 numbers as f32.
#![allow(unsafe_op_in_unsafe_fn)] // The contract stands at `simd`.

use std::arch::x86_64::*;

use super::super::{Simd, four};
use super::Avx512;
use crate::format::fp::e4m3_to_f32;

/// Where [`Simd::unsigned_e4m3`] finds its bytes: for each half, lane after lane, row after row.
static PAIRS_OF_ROWS: [u8; 32] = {
    let mut index = [0; 32];
    let mut t = 0;
    while t < 32 {
        index[t] = (t % 4 * 8 + t % 16 / 4 * 2 + t / 16) as u8;
        t += 1;
    }
    index
};

/// Sixteen numbers. With the exponent moved from four bits to the five of f16 they are 2⁸ times too small, subnormal ones included.
#[inline(always)]
pub(super) unsafe fn numbers(bytes: __m128i) -> __m512 {
    // Extending the sign puts it where f16 has it, and once more where the fifth bit of the exponent is.
    let moved = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(bytes));
    let half = _mm256_and_si256(moved, _mm256_set1_epi16(0xBFFFu16 as i16));
    let ones = _mm256_set1_epi16(0x3F80);
    let not_a_number = _mm256_cmpeq_epi16_mask(_mm256_and_si256(half, ones), ones);
    let half = _mm256_mask_mov_epi16(half, not_a_number, _mm256_set1_epi16(0x7E00));
    _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0))
}

/// The upper sixteen bits of each magnitude as f32, which hold all of it: their first bytes, then their second bytes.
static MAGNITUDES: [[u8; 128]; 2] = {
    let mut bytes = [[0; 128]; 2];
    let mut code = 0;
    while code < 128 {
        let bits = e4m3_to_f32(code as u8).to_bits();
        bytes[0][code] = (bits >> 16) as u8;
        bytes[1][code] = (bits >> 24) as u8;
        code += 1;
    }
    bytes
};

/// Sixty-four numbers, looked up a byte at a time.
#[inline(always)]
pub(super) unsafe fn many(p: *const u8) -> [__m512; 4] {
    // Fours in the order in which joining bytes, then words, lane by lane puts them right.
    let order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    let codes = _mm512_permutexvar_epi32(order, Avx512::load(p));
    let look_up = |table: &[u8; 128]| {
        _mm512_permutex2var_epi8(Avx512::load(table.as_ptr()), codes, Avx512::load(table.as_ptr().add(64)))
    };
    let (first, second) = (look_up(&MAGNITUDES[0]), look_up(&MAGNITUDES[1]));
    // second | (codes & 0x80)
    let second = _mm512_ternarylogic_epi64::<0b1111_1000>(second, codes, _mm512_set1_epi8(0x80u8 as i8));
    let (low, high) = (_mm512_unpacklo_epi8(first, second), _mm512_unpackhi_epi8(first, second));
    let zero = _mm512_setzero_si512();
    [
        _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, low)),
        _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, low)),
        _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, high)),
        _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, high)),
    ]
}

/// See [`unsigned_e4m3`](super::super::Simd::unsigned_e4m3).
#[inline(always)]
pub(super) unsafe fn unsigned(rows: [u64; 4]) -> [__m512; 2] {
    let [a, b, c, d] = four!(|r| rows[r] as i64);
    let index = _mm256_loadu_si256(PAIRS_OF_ROWS.as_ptr().cast());
    let bytes = _mm256_permutexvar_epi8(index, _mm256_set_epi64x(d, c, b, a));
    let ones = _mm256_set1_epi8(0x7F);
    let bytes = _mm256_and_si256(bytes, ones);
    let bytes = _mm256_maskz_mov_epi8(_mm256_cmpneq_epu8_mask(bytes, ones), bytes);
    // As in [`numbers`], with neither signs nor what is no number.
    let moved = _mm512_slli_epi16::<7>(_mm512_cvtepu8_epi16(bytes));
    let halved = _mm512_set1_ps(128.0);
    let high = _mm512_extracti64x4_epi64::<1>(moved);
    [
        _mm512_mul_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(moved)), halved),
        _mm512_mul_ps(_mm512_cvtph_ps(high), halved),
    ]
}
