//! Single bits times a column: [`ByRow::bit_sums`].
//!
//! A dword of bits is a block of 32 values. Bit j of its four bytes meets four activations in one dot, so that eight dots of a vector are the sums of sixteen
//! blocks, with nothing to add up across places.
#![allow(unsafe_op_in_unsafe_fn)] // The contract stands at `simd`.

use std::arch::x86_64::*;

use super::super::{Simd, four};
use super::Avx512;

/// For each lane, its values 8b + j in dword j: those that one dot takes.
const BY_BIT: [i8; 16] = [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15];

/// The matrix that moves the lowest bit of a byte to the second place, and drops the others; shifted by j, it moves bit j.
const TWICE_BIT: i64 = 1 << 48;

/// Where the notes are in a spread record: scales, then sums or starts.
const NOTES: [usize; 2] = [128, 192];
/// Behind them. The first record has the scales of all sixteen blocks there, the second one their sums or starts.
const FREE: usize = 256;

/// See [`ByRow::arrange_bits`]: of the eight vectors of codes, number j has the values 8b + j of block i in dword i.
#[inline(always)]
pub(super) unsafe fn arrange<const TWICE: bool>(x: *mut u8, stride: usize) {
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
            Avx512::store(x.add(place(4 * half + j, stride)), Avx512::turned(vector));
        }
    }
    if TWICE {
        for s in 0..4 {
            let scales = x.add(s * stride + NOTES[0]).cast::<f32>();
            _mm512_storeu_ps(scales, _mm512_mul_ps(_mm512_loadu_ps(scales), _mm512_set1_ps(0.5)));
        }
    }
    for (i, place) in NOTES.into_iter().enumerate() {
        let [notes, ..] = Avx512::transpose(four!(|s| Avx512::load(x.add(s * stride + place))));
        Avx512::store(x.add(i * stride + FREE), Avx512::turned(notes));
    }
}

/// See [`ByRow::block_notes`].
#[inline(always)]
pub(super) unsafe fn notes(x: *const u8, stride: usize, place: usize) -> __m512i {
    Avx512::load(x.add(place * stride + FREE))
}

/// Where vector `j` of codes is in the records of four steps.
#[inline(always)]
fn place(j: usize, stride: usize) -> usize {
    j / 2 * stride + j % 2 * 64
}

/// See [`ByRow::bit_sums`].
#[inline(always)]
pub(super) unsafe fn sums<const STRIDE: usize, const OFFSET: usize, const START: bool>(
    p: [*const u8; 4],
    x: *const u8,
    stride: usize,
) -> [__m512i; 4] {
    let bits = four!(|r| Avx512::strided::<STRIDE, OFFSET>(p[r]));
    let start = if START { notes(x, stride, 1) } else { _mm512_setzero_si512() };
    let mut sums = [start; 4];
    for j in 0..8 {
        let x = Avx512::load(x.add(place(j, stride)));
        for r in 0..4 {
            let codes = match j {
                1 => Avx512::and(bits[r], 2),
                _ => _mm512_gf2p8affine_epi64_epi8::<0>(bits[r], _mm512_set1_epi64(TWICE_BIT << j)),
            };
            sums[r] = _mm512_dpbusd_epi32(sums[r], codes, x);
        }
    }
    sums
}
