//! Dwords of four vectors, or of one, brought to other lanes.
#![allow(unsafe_op_in_unsafe_fn)] // The contract stands at `simd`.

use std::arch::x86_64::*;

use super::super::four;

/// See [`Simd::regroup`](super::Simd::regroup).
#[inline(always)]
pub(super) unsafe fn regroup(v: [__m512i; 4]) -> [__m512i; 4] {
    let a = _mm512_shuffle_i32x4::<0x44>(v[0], v[1]);
    let b = _mm512_shuffle_i32x4::<0xEE>(v[0], v[1]);
    let c = _mm512_shuffle_i32x4::<0x44>(v[2], v[3]);
    let d = _mm512_shuffle_i32x4::<0xEE>(v[2], v[3]);
    [
        _mm512_shuffle_i32x4::<0x88>(a, c),
        _mm512_shuffle_i32x4::<0xDD>(a, c),
        _mm512_shuffle_i32x4::<0x88>(b, d),
        _mm512_shuffle_i32x4::<0xDD>(b, d),
    ]
}

/// Place i of lane j: what was in place j of lane i.
#[inline(always)]
pub(super) unsafe fn turned(v: __m512i) -> __m512i {
    _mm512_permutexvar_epi32(_mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0), v)
}

/// See [`Simd::rows_in_lanes`](super::Simd::rows_in_lanes).
#[inline(always)]
pub(super) unsafe fn rows(v: [__m512i; 4]) -> [__m512i; 4] {
    // Dwords 0 and 1, or 2 and 3, of two rows' lanes: 16 and more are the second row's.
    let low = _mm512_set_epi32(29, 25, 21, 17, 13, 9, 5, 1, 28, 24, 20, 16, 12, 8, 4, 0);
    let high = _mm512_set_epi32(31, 27, 23, 19, 15, 11, 7, 3, 30, 26, 22, 18, 14, 10, 6, 2);
    let a = _mm512_permutex2var_epi32(v[0], low, v[1]);
    let b = _mm512_permutex2var_epi32(v[2], low, v[3]);
    let c = _mm512_permutex2var_epi32(v[0], high, v[1]);
    let d = _mm512_permutex2var_epi32(v[2], high, v[3]);
    [
        _mm512_shuffle_i64x2::<0x44>(a, b),
        _mm512_shuffle_i64x2::<0xEE>(a, b),
        _mm512_shuffle_i64x2::<0x44>(c, d),
        _mm512_shuffle_i64x2::<0xEE>(c, d),
    ]
}

/// Where [`by_lane`] finds its u16, for groups of one, two and four blocks: each twice.
static GROUPS: [[u16; 32]; 3] = {
    let mut index = [[0; 32]; 3];
    let mut t = 0;
    while t < 96 {
        let (shift, lane, row) = (t / 32, t % 32 / 8, t % 8 / 2);
        index[shift][t % 32] = (4 * row + (lane >> shift)) as u16;
        t += 1;
    }
    index
};

/// Place r of lane i: u16 number i >> shift of `rows[r]`, twice; 0 where `mask` has no bit.
#[inline(always)]
pub(super) unsafe fn by_lane(rows: [u64; 4], shift: u32, mask: u32) -> __m512i {
    let [a, b, c, d] = four!(|r| rows[r] as i64);
    let index = _mm512_loadu_si512(GROUPS[(shift as usize).min(2)].as_ptr().cast());
    _mm512_maskz_permutexvar_epi16(mask, index, _mm512_castsi256_si512(_mm256_set_epi64x(d, c, b, a)))
}

/// The first dword of each lane.
#[inline(always)]
pub(super) unsafe fn one_each(v: __m512i) -> __m128i {
    let first = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
    _mm512_castsi512_si128(_mm512_permutexvar_epi32(first, v))
}
