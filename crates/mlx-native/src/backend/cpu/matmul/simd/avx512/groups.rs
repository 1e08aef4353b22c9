//! Scales of MLX's groups for several steps at once.
#![allow(unsafe_op_in_unsafe_fn)] // The contract stands at `simd`.

use std::arch::x86_64::*;

use super::super::{Simd, four};
use super::Avx512;

/// Where place r of each lane of four steps lies, if row r has `1 << by` numbers, and a number serves `1 << shift` blocks of 32.
const fn places(by: u32, shift: u32) -> [[i32; 16]; 4] {
    let mut index = [[0; 16]; 4];
    let mut t = 0;
    while t < 64 {
        let (block, r) = (t / 4, t % 4);
        index[t / 16][t % 16] = ((r << by) + (block >> shift) % (1 << by)) as i32;
        t += 1;
    }
    index
}

const OF_32: [[i32; 16]; 4] = places(3, 0);
const OF_64: [[i32; 16]; 4] = places(3, 1);
const OF_128: [[i32; 16]; 4] = places(2, 2);

/// The sixteen numbers of `v` as f32.
#[inline(always)]
unsafe fn widened(v: __m256i, f16: bool) -> __m512 {
    if f16 { _mm512_cvtph_ps(v) } else { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(v))) }
}

/// Eight numbers of each of four rows.
#[inline(always)]
unsafe fn eight(p: [*const u8; 4], f16: bool) -> [__m512; 2] {
    let v = Avx512::gather(p);
    [widened(_mm512_castsi512_si256(v), f16), widened(_mm512_extracti64x4_epi64::<1>(v), f16)]
}

/// See [`Simd::groups_of_steps`].
#[inline(always)]
pub(super) unsafe fn of_steps(p: [*const u8; 4], shift: u32, f16: bool) -> [__m512; 4] {
    let pick = |v: [__m512; 2], index: &[i32; 16]| {
        _mm512_permutex2var_ps(v[0], _mm512_loadu_si512(index.as_ptr().cast()), v[1])
    };
    match shift {
        0 => {
            let v = [eight(p, f16), eight(four!(|r| p[r].add(16)), f16)];
            four!(|s| pick(v[s / 2], &OF_32[s]))
        }
        1 => {
            let v = eight(p, f16);
            four!(|s| pick(v, &OF_64[s]))
        }
        _ => {
            // Four numbers of each row.
            let [a, b, c, d] = four!(|r| p[r].cast::<i64>().read_unaligned());
            let v = widened(_mm256_set_epi64x(d, c, b, a), f16);
            four!(|s| pick([v, v], &OF_128[s]))
        }
    }
}
