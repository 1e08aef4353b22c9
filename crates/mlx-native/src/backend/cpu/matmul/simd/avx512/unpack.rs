//! Values of a few bits from a stream: [`Simd::unpack`].
#![allow(unsafe_op_in_unsafe_fn)] // The contract stands at `simd`.

use std::arch::x86_64::*;

use super::super::Simd;
use super::Avx512;

/// Where [`Simd::unpack`] finds its bytes and bits.
struct UnpackIndex<const BITS: usize>;

impl<const BITS: usize> UnpackIndex<BITS> {
    /// For each half, the bytes of the stream that go into each qword: value v of the half of block i is value 32·i + 16·half + v.
    const INDEX: &'static [[u8; 64]; 2] = &{
        let mut index = [[0; 64]; 2];
        let mut t = 0;
        while t < 128 {
            let (half, qword, byte) = (t / 64, t / 8 % 8, t % 8);
            let octet = qword / 2 * 4 + half * 2 + qword % 2;
            index[half][t % 64] = (octet * BITS + if byte < BITS { byte } else { 0 }) as u8;
            t += 1;
        }
        index
    };

    /// For each half, the first bit of each byte's value within its block.
    const OF_BLOCK: &'static [[u8; 64]; 2] = &{
        let mut fields = [[0; 64]; 2];
        let mut t = 0;
        while t < 128 {
            fields[t / 64][t % 64] = ((t / 64 * 16 + t % 16) * BITS) as u8;
            t += 1;
        }
        fields
    };

    /// The first bit of each byte's value within its qword.
    const FIELDS: &'static [u8; 64] = &{
        let mut fields = [0; 64];
        let mut t = 0;
        while t < 64 {
            fields[t] = (t % 8 * BITS) as u8;
            t += 1;
        }
        fields
    };
}

/// See [`Simd::unpack`].
#[inline(always)]
pub(super) unsafe fn unpack<const BITS: usize>(p: *const u8) -> [__m512i; 2] {
    if BITS == 1 {
        return Avx512::bit_blocks(p, 1);
    }
    if BITS == 2 {
        // A block is a qword, which both qwords of its lane take their bits from.
        let stream = _mm512_castsi256_si512(_mm256_loadu_si256(p.cast()));
        let blocks = _mm512_permutexvar_epi64(_mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0), stream);
        let half =
            |fields: &[u8; 64]| Avx512::and(_mm512_multishift_epi64_epi8(Avx512::load(fields.as_ptr()), blocks), 3);
        return [half(&UnpackIndex::<BITS>::OF_BLOCK[0]), half(&UnpackIndex::<BITS>::OF_BLOCK[1])];
    }
    // The BITS bytes of eight values go to the bottom of each qword, where every byte of the result takes its bits.
    let bytes = 16 * BITS;
    let field = Avx512::load(UnpackIndex::<BITS>::FIELDS.as_ptr());
    let first = _mm512_maskz_loadu_epi8(if bytes >= 64 { u64::MAX } else { (1 << bytes) - 1 }, p.cast());
    let second = if bytes > 64 {
        _mm512_maskz_loadu_epi8(if bytes >= 128 { u64::MAX } else { (1 << (bytes - 64)) - 1 }, p.add(64).cast())
    } else {
        first
    };
    let half = UnpackIndex::<BITS>::INDEX;
    let (lo, hi) = (Avx512::load(half[0].as_ptr()), Avx512::load(half[1].as_ptr()));
    let (lo, hi) = if bytes > 64 {
        (_mm512_permutex2var_epi8(first, lo, second), _mm512_permutex2var_epi8(first, hi, second))
    } else {
        (_mm512_permutexvar_epi8(lo, first), _mm512_permutexvar_epi8(hi, first))
    };
    if BITS == 8 {
        return [lo, hi];
    }
    let mask = 0xFF >> (8 - BITS);
    [
        Avx512::and(_mm512_multishift_epi64_epi8(field, lo), mask),
        Avx512::and(_mm512_multishift_epi64_epi8(field, hi), mask),
    ]
}
