//! Blocks of 256 values of four weight rows times few rows of x, each added up by itself: [`ByRow`].
//!
//! A vector is 64 bytes of a block as they are stored. Every dword of it is a place of its own until the end: what is dotted with it, and added up in integers,
//! belongs to the same values of x for each weight row, and these have one scale. So nothing moves, and what needs no moving takes few instructions.
#![allow(unsafe_op_in_unsafe_fn)] // The contract stands at `simd`.

use std::arch::x86_64::*;

use super::super::super::prepare::INVERSE_MAX;
use super::super::super::rowwise::{Digits, Fields, Sums};
use super::super::{Simd, four};
use super::lanes::one_each;
use super::{Avx512, halves};

/// In all places of a lane the sum of its four.
#[inline(always)]
unsafe fn lane_sums(v: __m512) -> __m512 {
    let v = _mm512_add_ps(v, _mm512_permute_ps::<0b01_00_11_10>(v));
    _mm512_add_ps(v, _mm512_permute_ps::<0b10_11_00_01>(v))
}

/// |v| as an integer, which compares like it; infinity and NaN are above all others.
#[inline(always)]
unsafe fn magnitude(v: __m512) -> __m512i {
    _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7FFF_FFFF))
}

/// For magnitudes, (the largest of a lane / most, most / the largest) in its places; NaN for the first where that is not finite.
#[inline(always)]
unsafe fn lane_scales(v: __m512i, most: f32) -> [__m512; 2] {
    let v = _mm512_max_epu32(v, _mm512_shuffle_epi32::<0b01_00_11_10>(v));
    scales(_mm512_max_epu32(v, _mm512_shuffle_epi32::<0b10_11_00_01>(v)), most)
}

/// [`lane_scales`] of each place.
#[inline(always)]
unsafe fn scales(largest: __m512i, most: f32) -> [__m512; 2] {
    let infinite = _mm512_cmpge_epu32_mask(largest, _mm512_set1_epi32(0x7F80_0000));
    let largest = _mm512_max_ps(_mm512_castsi512_ps(largest), _mm512_set1_ps(most / INVERSE_MAX));
    let scale = _mm512_mul_ps(largest, _mm512_set1_ps(1.0 / most));
    [_mm512_mask_mov_ps(scale, infinite, _mm512_set1_ps(f32::NAN)), _mm512_div_ps(_mm512_set1_ps(most), largest)]
}

/// See [`ByRow::digits_of_x`].
#[inline(always)]
pub(super) unsafe fn digits_of_x(x: *const f32, to: *mut Digits) {
    let factors = (&raw mut (*to).factors).cast::<u8>();
    for quarter in 0..4 {
        let x = |n: usize| match quarter {
            0 | 1 => _mm512_loadu_ps(x.add(32 * n + 16 * quarter)),
            2 => _mm512_loadu_ps(x.add(160 + 16 * n)),
            _ if n < 4 => _mm512_maskz_loadu_ps(15, x.add(240 + 4 * n)),
            _ => _mm512_setzero_ps(),
        };
        let (three, one) = (_mm512_set1_ps(0.75), _mm512_set1_ps(0.25));
        let mut largest = magnitude(_mm512_mul_ps(x(0), three));
        for n in 1..5 {
            let factor = _mm512_fmsub_ps(x(n), three, _mm512_mul_ps(x(n - 1), one));
            largest = _mm512_max_epu32(largest, magnitude(factor));
        }
        // A factor differs from this by a third of a rounding error, a sixth at most, before it is rounded itself.
        let [scale, inverse] = lane_scales(largest, 126.8);
        let inverse = _mm512_mul_ps(inverse, three);
        let mut stands_for = _mm512_setzero_ps();
        let mut sum = _mm512_setzero_ps();
        for n in 0..5 {
            let factor = _mm512_cvtps_epi32(_mm512_fmsub_ps(x(n), inverse, stands_for));
            _mm_storeu_si128(factors.add(64 * n + 16 * quarter).cast(), _mm512_cvtepi32_epi8(factor));
            stands_for =
                _mm512_mul_ps(_mm512_add_ps(_mm512_cvtepi32_ps(factor), stands_for), _mm512_set1_ps(1.0 / 3.0));
            sum = _mm512_add_ps(sum, stands_for);
        }
        let last = _mm512_cvtps_epi32(_mm512_sub_ps(_mm512_setzero_ps(), stands_for));
        _mm_storeu_si128(factors.add(64 * 5 + 16 * quarter).cast(), _mm512_cvtepi32_epi8(last));
        let left = _mm512_add_ps(stands_for, _mm512_cvtepi32_ps(last));
        let less = _mm512_fmadd_ps(sum, _mm512_set1_ps(256.0), _mm512_mul_ps(left, _mm512_set1_ps(Digits::REST)));
        let start = _mm512_cvtps_epi32(_mm512_sub_ps(_mm512_setzero_ps(), lane_sums(less)));
        _mm_storeu_si128((&raw mut (*to).start[4 * quarter]).cast(), one_each(start));
        let scale = _mm512_mul_ps(scale, _mm512_set1_ps(4.0 / 256.0));
        _mm_storeu_si128((&raw mut (*to).scale[4 * quarter]).cast(), one_each(_mm512_castps_si512(scale)));
    }
}

/// The f16 at these places as f32, in memory: a load puts one to all places of a vector.
#[inline(always)]
unsafe fn f16(p: [*const u8; 4]) -> [f32; 4] {
    let [a, b, c, d] = four!(|r| p[r].cast::<u16>().read_unaligned() as u64);
    let words = a | (b << 16) | (c << 32) | (d << 48);
    let mut floats = [0.0; 4];
    _mm_storeu_ps(floats.as_mut_ptr(), _mm_cvtph_ps(_mm_cvtsi64_si128(words as i64)));
    std::hint::black_box(floats)
}

/// `sums · scale · x_scale + total`.
#[inline(always)]
unsafe fn added(sums: __m512i, scale: f32, x_scale: __m512, total: __m512) -> __m512 {
    _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(scale)), x_scale, total)
}

/// `v`, of which the compiler knows nothing: out of additions it would make multiplications of bytes, which take four instructions.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn kept(mut v: __m512i) -> __m512i {
    std::arch::asm!("/* {0} */", inout(zmm_reg) v, options(pure, nomem, nostack, preserves_flags));
    v
}

/// See [`ByRow::add_tq1_0`].
#[inline(always)]
pub(super) unsafe fn add_tq1_0<const M: usize>(
    p: [*const u8; 4],
    x: [*const Digits; M],
    mut totals: [[__m512; 4]; M],
) -> [[__m512; 4]; M] {
    let d = f16(four!(|r| p[r].add(52)));
    let mut rests = four!(|r| _mm512_maskz_loadu_epi32((1 << 13) - 1, p[r].cast()));
    let mut sums = [[_mm512_setzero_si512(); 4]; M];
    for i in 0..M {
        sums[i] = [Avx512::load((&raw const (*x[i]).start).cast()); 4];
    }
    for n in 0..6 {
        for i in 0..M {
            let factors = Avx512::load((&raw const (*x[i]).factors[n]).cast());
            for r in 0..4 {
                sums[i][r] = _mm512_dpbusd_epi32(sums[i][r], rests[r], factors);
            }
        }
        if n < 5 {
            for rest in &mut rests {
                *rest = kept(_mm512_add_epi8(_mm512_add_epi8(*rest, *rest), *rest));
            }
        }
    }
    for i in 0..M {
        let scale = _mm512_loadu_ps((&raw const (*x[i]).scale).cast());
        for r in 0..4 {
            totals[i][r] = added(sums[i][r], d[r], scale, totals[i][r]);
        }
    }
    totals
}

/// See [`ByRow::fields_of_x`].
#[inline(always)]
pub(super) unsafe fn fields_of_x(x: *const f32, to: *mut Fields, sums: Sums) {
    let mut of_sixteen = [0.0; 16];
    for quarter in 0..4 {
        let at = |n: usize| 128 * (quarter / 2) + 32 * n + 16 * (quarter % 2);
        let x = four!(|n| _mm512_loadu_ps(x.add(at(n))));
        let [a, b, c, d] = four!(|n| magnitude(x[n]));
        let largest = _mm512_max_epu32(_mm512_max_epu32(a, b), _mm512_max_epu32(c, d));
        let [scale, inverse] = lane_scales(largest, 127.0);
        for (n, x) in x.into_iter().enumerate() {
            let codes = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
            _mm_storeu_si128((&raw mut (*to).codes[n][16 * quarter]).cast(), _mm512_cvtepi32_epi8(codes));
            of_sixteen[at(n) / 16] = _mm512_reduce_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(codes), scale));
        }
        let scale = _mm512_mul_ps(scale, _mm512_set1_ps(sums.code_factor));
        _mm_storeu_si128((&raw mut (*to).scale[4 * quarter]).cast(), one_each(_mm512_castps_si512(scale)));
    }
    // 24 bits of the sums, eight at a time: each of what the ones before leave over.
    let v = _mm512_loadu_ps(of_sixteen.as_ptr());
    let largest = _mm512_set1_epi32(_mm512_reduce_max_epu32(magnitude(v)) as i32);
    let [scale, inverse] = scales(largest, 127.0);
    let mut scale = _mm512_mul_ps(scale, _mm512_set1_ps(sums.factor));
    let mut rest = _mm512_mul_ps(v, inverse);
    for part in 0..4 {
        let codes = _mm512_cvtps_epi32(rest);
        _mm_storeu_si128((&raw mut (*to).sums[16 * part]).cast(), _mm512_cvtepi32_epi8(codes));
        let start = _mm512_mul_ps(lane_sums(_mm512_cvtepi32_ps(codes)), _mm512_set1_ps(-sums.offset));
        _mm_storeu_si128((&raw mut (*to).sums_start[4 * part]).cast(), one_each(_mm512_cvtps_epi32(start)));
        _mm_storeu_ps((&raw mut (*to).sums_scale[4 * part]).cast(), _mm512_castps512_ps128(scale));
        rest = _mm512_mul_ps(_mm512_sub_ps(rest, _mm512_cvtepi32_ps(codes)), _mm512_set1_ps(254.0));
        scale = _mm512_mul_ps(scale, _mm512_set1_ps(1.0 / 254.0));
    }
}

/// For each of the four fields of a byte, where the scale of each lane's sixteen values is, as the low or the high byte of words.
static SCALE_WORDS: [[[u8; 64]; 4]; 2] = {
    let mut places = [[[0x80; 64]; 4]; 2];
    let mut t = 0;
    while t < 128 {
        let (field, lane, word) = (t / 32, t % 32 / 8, t % 8);
        let scale = (8 * (lane / 2) + 2 * field + lane % 2) as u8;
        places[0][field][16 * lane + 2 * word] = scale;
        places[1][field][16 * lane + 2 * word + 1] = scale;
        t += 1;
    }
    places
};

/// The scales of a field as the low (0) or the high (1) bytes of words.
#[inline(always)]
unsafe fn scale_words(scales: __m512i, byte: usize, field: usize) -> __m512i {
    _mm512_shuffle_epi8(scales, Avx512::load(SCALE_WORDS[byte][field].as_ptr()))
}

/// `codes · x · scales + sums`: unsigned and signed bytes, then words.
#[inline(always)]
unsafe fn scaled_dot(sums: __m512i, codes: __m512i, x: __m512i, scales: __m512i) -> __m512i {
    _mm512_dpwssd_epi32(sums, _mm512_maddubs_epi16(codes, x), scales)
}

/// See [`ByRow::add_q2_k`].
#[inline(always)]
pub(super) unsafe fn add_q2_k(p: [*const u8; 4], x: *const Fields, mut totals: [__m512; 4]) -> [__m512; 4] {
    let (d, min) = (f16(four!(|r| p[r].add(80))), f16(four!(|r| p[r].add(82))));
    let codes = |n: usize| Avx512::load((&raw const (*x).codes[n]).cast());
    let of_sums = Avx512::load((&raw const (*x).sums).cast());
    let scale = _mm512_loadu_ps((&raw const (*x).scale).cast());
    let sums_scale = _mm512_loadu_ps((&raw const (*x).sums_scale).cast());
    for r in 0..4 {
        let notes = Avx512::repeat(p[r]);
        // The first and the third field are codes, the second and the fourth four times as much.
        let scales = Avx512::and(notes, 15);
        let four_scales = _mm512_slli_epi16::<2>(scales);
        let fields = Avx512::load(p[r].add(16));
        let upper = _mm512_srli_epi16::<4>(fields);
        let sums = _mm512_setzero_si512();
        let sums = scaled_dot(sums, Avx512::and(fields, 3), codes(0), scale_words(four_scales, 0, 0));
        let sums = scaled_dot(sums, Avx512::and(fields, 12), codes(1), scale_words(scales, 0, 1));
        let sums = scaled_dot(sums, Avx512::and(upper, 3), codes(2), scale_words(four_scales, 0, 2));
        let sums = scaled_dot(sums, Avx512::and(upper, 12), codes(3), scale_words(scales, 0, 3));
        totals[r] = added(sums, d[r], scale, totals[r]);
        let mins = _mm512_dpbusd_epi32(_mm512_setzero_si512(), Avx512::and(notes, 0xF0), of_sums);
        totals[r] = added(mins, min[r], sums_scale, totals[r]);
    }
    totals
}

/// Matrices that move two bits of a byte to its bits 2 and 6: bit `first` and the second one after it, for the upper half of a vector four bits further up.
#[inline(always)]
unsafe fn third_bits(first: u32) -> __m512i {
    let matrix = |bit: u32| (1 << (8 * 5 + bit)) | (1 << (8 + bit + 2));
    let (low, high): (i64, i64) = (matrix(first), matrix(first + 4));
    _mm512_set_epi64(high, high, high, high, low, low, low, low)
}

/// See [`ByRow::add_q3_k`].
#[inline(always)]
pub(super) unsafe fn add_q3_k(p: [*const u8; 4], x: *const Fields, mut totals: [__m512; 4]) -> [__m512; 4] {
    let d = f16(four!(|r| p[r].add(108)));
    let codes = |n: usize| Avx512::load((&raw const (*x).codes[n]).cast());
    let of_sums = Avx512::load((&raw const (*x).sums).cast());
    let sums_start = Avx512::load((&raw const (*x).sums_start).cast());
    let scale = _mm512_loadu_ps((&raw const (*x).scale).cast());
    let sums_scale = _mm512_loadu_ps((&raw const (*x).sums_scale).cast());
    let all = halves::q3_k_scales_and_32(four!(|r| p[r].add(94)));
    let scales_and_32 = [
        _mm512_shuffle_i32x4::<0x00>(all, all),
        _mm512_shuffle_i32x4::<0x55>(all, all),
        _mm512_shuffle_i32x4::<0xAA>(all, all),
        _mm512_shuffle_i32x4::<0xFF>(all, all),
    ];
    for r in 0..4 {
        let scales = _mm512_sub_epi8(scales_and_32[r], _mm512_set1_epi8(32));
        let high = _mm512_broadcast_i64x4(_mm256_loadu_si256(p[r].cast()));
        let low = Avx512::load(p[r].add(32));
        // Nibbles: of the first and third fields, and of the second and fourth.
        let two_bits = _mm512_set1_epi8(0x33);
        let even = _mm512_gf2p8affine_epi64_epi8::<0>(high, third_bits(0));
        let even = _mm512_ternarylogic_epi64::<0xEA>(low, two_bits, even);
        let odd = _mm512_gf2p8affine_epi64_epi8::<0>(high, third_bits(1));
        let odd = _mm512_ternarylogic_epi64::<0xEA>(_mm512_srli_epi16::<2>(low), two_bits, odd);
        let sums = _mm512_setzero_si512();
        let sums = scaled_dot(sums, Avx512::and(even, 15), codes(0), scale_words(scales, 1, 0));
        let sums = scaled_dot(sums, Avx512::and(odd, 15), codes(1), scale_words(scales, 1, 1));
        // What stands in upper nibbles is sixteen times as much.
        let sums = _mm512_slli_epi32::<4>(sums);
        let sums = scaled_dot(sums, Avx512::and(even, 0xF0), codes(2), scale_words(scales, 1, 2));
        let sums = scaled_dot(sums, Avx512::and(odd, 0xF0), codes(3), scale_words(scales, 1, 3));
        totals[r] = added(sums, d[r], scale, totals[r]);
        let fours = _mm512_dpbusd_epi32(sums_start, scales_and_32[r], of_sums);
        totals[r] = added(fours, d[r], sums_scale, totals[r]);
    }
    totals
}
