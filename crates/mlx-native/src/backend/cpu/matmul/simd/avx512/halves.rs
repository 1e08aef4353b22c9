//! Scales of halves of sub-blocks: [`Simd::HalfBytes`], sixteen bytes of each of four rows.
#![allow(unsafe_op_in_unsafe_fn)] // The contract stands at `simd`.

use std::arch::x86_64::*;

use super::super::{Simd, four};
use super::{Avx512, low};

/// For each step and half, where its bytes are in four rows of sixteen: lane after lane, row after row.
static HALF_BYTES: [[u8; 16]; 4] = {
    let mut index = [[0; 16]; 4];
    let mut t = 0;
    while t < 64 {
        let (part, lane, row) = (t / 16, t % 16 / 4, t % 4);
        index[part][t % 16] = (16 * row + 2 * (4 * (part / 2) + lane) + part % 2) as u8;
        t += 1;
    }
    index
};

/// Where the bytes of a step and half are, in the top bytes of dwords: whatever comes below is shifted out.
#[inline(always)]
unsafe fn half_step(s: usize, half: usize) -> __m512i {
    _mm512_slli_epi32::<24>(_mm512_cvtepu8_epi32(low(HALF_BYTES[(2 * s + half) % 4].as_ptr())))
}

/// Bytes of a step and half, side by side.
#[inline(always)]
pub(super) unsafe fn bytes(v: __m512i, s: usize, half: usize) -> __m128i {
    let index = _mm512_castsi128_si512(low(HALF_BYTES[(2 * s + half) % 4].as_ptr()));
    _mm512_castsi512_si128(_mm512_permutexvar_epi8(index, v))
}

/// See [`Simd::half_u8`].
#[inline(always)]
pub(super) unsafe fn unsigned(v: __m512i, s: usize, half: usize) -> __m512 {
    _mm512_cvtepi32_ps(_mm512_srli_epi32::<24>(_mm512_permutexvar_epi8(half_step(s, half), v)))
}

/// See [`Simd::half_i8`].
#[inline(always)]
pub(super) unsafe fn signed(v: __m512i, s: usize, half: usize) -> __m512 {
    _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_permutexvar_epi8(half_step(s, half), v)))
}

/// See [`Simd::q3_k_scales`].
#[inline(always)]
pub(super) unsafe fn q3_k_scales(p: [*const u8; 4]) -> __m512i {
    _mm512_sub_epi8(q3_k_scales_and_32(p), _mm512_set1_epi8(32))
}

/// As they are stored, 32 more than they are.
#[inline(always)]
pub(super) unsafe fn q3_k_scales_and_32(p: [*const u8; 4]) -> __m512i {
    let rows = Avx512::gather(p);
    // Sixteen nibbles, and above each the byte that has its two high bits.
    let low = _mm_set_epi64x(0x0908_0706_0504_0302, 0x0908_0706_0504_0302);
    let low = _mm512_shuffle_epi8(rows, _mm512_broadcast_i32x4(low));
    let low = _mm512_srlv_epi64(low, _mm512_set_epi64(4, 0, 4, 0, 4, 0, 4, 0));
    let high = _mm512_shuffle_epi8(rows, _mm512_set1_epi32(0x0D0C_0B0A));
    let high = _mm512_rolv_epi32(high, _mm512_broadcast_i32x4(_mm_set_epi32(30, 0, 2, 4)));
    // (low & 15) | (high & 48)
    Avx512::and(_mm512_ternarylogic_epi64::<0xCA>(_mm512_set1_epi8(15), low, high), 63)
}

/// See [`Simd::f16_pairs`].
#[inline(always)]
pub(super) unsafe fn f16_pairs(p: [*const u8; 4]) -> [__m512; 2] {
    let [a, b, c, d] = four!(|r| p[r].cast::<i32>().read_unaligned());
    let pairs = _mm_set_epi32(d, c, b, a);
    let order = _mm_set_epi8(15, 14, 11, 10, 7, 6, 3, 2, 13, 12, 9, 8, 5, 4, 1, 0);
    let sorted = _mm_shuffle_epi8(pairs, order);
    let (first, second) =
        (_mm256_broadcastq_epi64(sorted), _mm256_broadcastq_epi64(_mm_unpackhi_epi64(sorted, sorted)));
    [_mm512_cvtph_ps(first), _mm512_cvtph_ps(second)]
}
