//! Scales of MLX's groups for several steps at once.
#![allow(unsafe_op_in_unsafe_fn)] // The contract stands at `simd`.

use std::arch::x86_64::*;

use super::super::{Simd, four};
use super::Avx512;

/// Where place r of each lane of four steps lies among eight numbers of each row, each for two blocks.
const PLACES: [[i32; 16]; 4] = {
    let mut index = [[0; 16]; 4];
    let mut t = 0;
    while t < 64 {
        let (block, r) = (t / 4, t % 4);
        index[t / 16][t % 16] = (8 * r + block / 2) as i32;
        t += 1;
    }
    index
};

/// The sixteen numbers of `v` as f32.
#[inline(always)]
unsafe fn widened(v: __m256i, f16: bool) -> __m512 {
    if f16 { _mm512_cvtph_ps(v) } else { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(v))) }
}

/// See [`Simd::groups_of_64`].
#[inline(always)]
pub(super) unsafe fn of_64(p: [*const u8; 4], f16: bool) -> [__m512; 4] {
    let v = Avx512::gather(p);
    let (first, last) = (widened(_mm512_castsi512_si256(v), f16), widened(_mm512_extracti64x4_epi64::<1>(v), f16));
    four!(|s| _mm512_permutex2var_ps(first, _mm512_loadu_si512(PLACES[s].as_ptr().cast()), last))
}
