//! Single bits times a column: [`Simd::bit_steps`].
//!
//! A dword of bits is a block of 32 values. Bit j of its four bytes meets four activations in one dot, so that eight dots of a vector are the sums of sixteen
//! blocks, with nothing to add up across places.
#![allow(unsafe_op_in_unsafe_fn)] // The contract stands at `simd`.

use std::arch::x86_64::*;

use super::super::{Simd, four};
use super::Avx512;
use super::strided::Strided;

/// For each lane, its values 8b + j in dword j: those that one dot takes.
const BY_BIT: [i8; 16] = [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15];

/// The matrix that moves the lowest bit of a byte to the second place, and drops the others; shifted by j, it moves bit j.
const TWICE_BIT: i64 = 1 << 48;

/// Where the starts are in a spread record.
const STARTS: usize = 192;

/// See [`Simd::arrange_bits`]: of the eight vectors of codes, number j has in dword s of lane l the values 8b + j of block l of step s.
#[inline(always)]
pub(super) unsafe fn arrange<const START: bool>(x: *mut u8, stride: usize) {
    let order = _mm512_broadcast_i32x4(_mm_loadu_si128(BY_BIT.as_ptr().cast()));
    let dwords = four!(|s| {
        let record = x.add(s * stride);
        // Pairs of bytes of the first sixteen values, and of the last.
        let low = _mm512_shuffle_epi8(Avx512::load(record), order);
        let high = _mm512_shuffle_epi8(Avx512::load(record.add(64)), order);
        [_mm512_unpacklo_epi16(low, high), _mm512_unpackhi_epi16(low, high)]
    });
    let halves = [Avx512::transpose(four!(|s| dwords[s][0])), Avx512::transpose(four!(|s| dwords[s][1]))];
    for (half, vectors) in halves.into_iter().enumerate() {
        for (j, vector) in vectors.into_iter().enumerate() {
            Avx512::store(x.add(place(4 * half + j, stride)), vector);
        }
    }
    if START {
        // Dword s of each lane: the start of that lane's block of step s.
        let [starts, ..] = Avx512::transpose(four!(|s| Avx512::load(x.add(s * stride + STARTS))));
        Avx512::store(x.add(STARTS), starts);
    }
}

/// Where vector `j` of codes is in the records of four steps.
#[inline(always)]
fn place(j: usize, stride: usize) -> usize {
    j / 2 * stride + j % 2 * 64
}

/// See [`Simd::bit_steps`].
#[inline(always)]
pub(super) unsafe fn steps<const STRIDE: usize, const OFFSET: usize, const START: bool>(
    p: [*const u8; 4],
    x: *const u8,
    stride: usize,
) -> [__m512i; 4] {
    let index = Avx512::load(Strided::<STRIDE, OFFSET>::DWORDS.as_ptr());
    let bits = four!(|r| {
        let [first, second] = Strided::<STRIDE, OFFSET>::both(p[r], 16);
        _mm512_permutex2var_epi8(first, index, second)
    });
    // Two sums a row: a dot waits for the one before it.
    let start = if START { Avx512::load(x.add(STARTS)) } else { _mm512_setzero_si512() };
    let mut sums = [[start, _mm512_setzero_si512()]; 4];
    for j in 0..8 {
        let x = Avx512::load(x.add(place(j, stride)));
        for r in 0..4 {
            // A product of bits is one instruction, but of the kind that two of the processor's units do; these two bits are left to the others.
            let codes = match j {
                1 => Avx512::and(bits[r], 2),
                3 => Avx512::and(_mm512_srli_epi32::<2>(bits[r]), 2),
                _ => _mm512_gf2p8affine_epi64_epi8::<0>(bits[r], _mm512_set1_epi64(TWICE_BIT << j)),
            };
            sums[r][j % 2] = _mm512_dpbusd_epi32(sums[r][j % 2], codes, x);
        }
    }
    Avx512::transpose(four!(|r| _mm512_add_epi32(sums[r][0], sums[r][1])))
}
