//! A record of activations at once: [`Simd::quantize`].
#![allow(unsafe_op_in_unsafe_fn)] // The contract stands at `simd`.

use std::arch::x86_64::*;

use super::super::super::prepare::{INVERSE_MAX, Order, Sums};
use super::super::{BIAS_BITS, Simd, four};
use super::Avx512;
use super::lanes::one_each;

/// See [`Simd::quantize`].
#[inline(always)]
pub(super) unsafe fn quantize(x: *const f32, record: *mut u8, halves: bool, sums: Sums, order: Order) -> bool {
    let magnitude = _mm512_set1_epi32(0x7FFF_FFFF);
    let even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    let odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
    let x = four!(|b| {
        let (low, high) = (_mm512_loadu_ps(x.add(32 * b)), _mm512_loadu_ps(x.add(32 * b + 16)));
        if order.pairs {
            [_mm512_permutex2var_ps(low, even, high), _mm512_permutex2var_ps(low, odd, high)]
        } else {
            [low, high]
        }
    });
    // Lane b of what follows belongs to block b.
    let [a, b, c, d] = Avx512::regroup(four!(|b| {
        let low = _mm512_and_si512(_mm512_castps_si512(x[b][0]), magnitude);
        _mm512_max_epu32(low, _mm512_and_si512(_mm512_castps_si512(x[b][1]), magnitude))
    }));
    let largest = _mm512_max_epu32(_mm512_max_epu32(a, b), _mm512_max_epu32(c, d));
    let largest = _mm512_max_epu32(largest, _mm512_shuffle_epi32::<0b01_00_11_10>(largest));
    let largest = _mm512_max_epu32(largest, _mm512_shuffle_epi32::<0b10_11_00_01>(largest));
    let infinite = _mm512_cmpge_epu32_mask(largest, _mm512_set1_epi32(0x7F80_0000));
    let largest = _mm512_castsi512_ps(largest);
    let most = _mm512_mul_ps(largest, _mm512_set1_ps(INVERSE_MAX));
    let tiny = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(most, _mm512_set1_ps(127.0));
    if infinite | tiny != 0 {
        return false;
    }
    let inverse = _mm512_div_ps(_mm512_set1_ps(127.0), largest);
    let inverse = [
        _mm512_shuffle_f32x4::<0x00>(inverse, inverse),
        _mm512_shuffle_f32x4::<0x55>(inverse, inverse),
        _mm512_shuffle_f32x4::<0xAA>(inverse, inverse),
        _mm512_shuffle_f32x4::<0xFF>(inverse, inverse),
    ];
    let codes = four!(|b| {
        let low = _mm512_cvtps_epi32(_mm512_mul_ps(x[b][0], inverse[b]));
        [low, _mm512_cvtps_epi32(_mm512_mul_ps(x[b][1], inverse[b]))]
    });
    for half in [0, 1] {
        let words =
            [_mm512_packs_epi32(codes[0][half], codes[1][half]), _mm512_packs_epi32(codes[2][half], codes[3][half])];
        // Lane d has dword d of each block.
        let by_dword = _mm512_packs_epi16(words[0], words[1]);
        let bytes = if order.by_dword { by_dword } else { Avx512::turned(by_dword) };
        Avx512::store(record.add(64 * half), bytes);
    }
    let scales = _mm512_mul_ps(largest, _mm512_set1_ps(1.0 / 127.0));
    _mm_storeu_si128(record.add(128).cast(), one_each(_mm512_castps_si512(scales)));
    if halves {
        note(record.add(144), four!(|b| codes[b][0]), sums, scales);
        note(record.add(160), four!(|b| codes[b][1]), sums, scales);
    } else {
        note(record.add(144), four!(|b| _mm512_add_epi32(codes[b][0], codes[b][1])), sums, scales);
    }
    true
}

/// Writes what a record says about the sums of its codes: `codes[b]` and lane b of the scales belong to block b.
#[inline(always)]
unsafe fn note(place: *mut u8, codes: [__m512i; 4], sums: Sums, scales: __m512) {
    let [a, b, c, d] = Avx512::regroup(codes);
    let sum = _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
    let sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32::<0b01_00_11_10>(sum));
    let sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32::<0b10_11_00_01>(sum));
    let sum = match sums {
        Sums::Offset(offset) => {
            _mm512_sub_epi32(_mm512_set1_epi32(BIAS_BITS), _mm512_mullo_epi32(sum, _mm512_set1_epi32(offset)))
        }
        Sums::Plain => _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), scales)),
    };
    _mm_storeu_si128(place.cast(), one_each(sum));
}
