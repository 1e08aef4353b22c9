//! Level indices of a block of 256 values, kept as packed bits until they are used: [`Simd::Levels`].
#![allow(unsafe_op_in_unsafe_fn)] // The contract stands at `simd`.

use std::arch::x86_64::*;

use super::super::super::source::decoded::{Codes, Levels, Sign};
use super::super::Simd;
use super::Avx512;

/// Points of a grid, or two vectors of digits.
pub(super) type Packed = [__m512i; 2];

/// 64 of a table's entries, in two registers, for the low six bits of 32 indices.
#[inline(always)]
unsafe fn part<const POINTS: usize>(table: &[u16; POINTS], indices: __m512i, i: usize) -> __m512i {
    let p = table.as_ptr().add(64 * i).cast();
    _mm512_permutex2var_epi16(_mm512_loadu_si512(p), indices, _mm512_loadu_si512(p.cast::<__m512i>().add(1)))
}

/// Four times as many, for eight bits of the indices, of which `bits` are the last two.
#[inline(always)]
unsafe fn parts<const POINTS: usize>(table: &[u16; POINTS], indices: __m512i, bits: [u32; 2], i: usize) -> __m512i {
    let low = _mm512_mask_blend_epi16(bits[0], part(table, indices, i), part(table, indices, i + 1));
    let high = _mm512_mask_blend_epi16(bits[0], part(table, indices, i + 2), part(table, indices, i + 3));
    _mm512_mask_blend_epi16(bits[1], low, high)
}

/// The table's entries for 32 indices.
#[inline(always)]
unsafe fn points<const POINTS: usize>(table: &[u16; POINTS], indices: __m512i) -> __m512i {
    let bits = [
        _mm512_test_epi16_mask(indices, _mm512_set1_epi16(64)),
        _mm512_test_epi16_mask(indices, _mm512_set1_epi16(128)),
    ];
    let mut points = parts(table, indices, bits, 0);
    let above = _mm512_srli_epi16::<8>(indices);
    for i in 1..POINTS / 256 {
        let here = _mm512_cmpeq_epi16_mask(above, _mm512_set1_epi16(i as i16));
        points = _mm512_mask_mov_epi16(points, here, parts(table, indices, bits, 4 * i));
    }
    points
}

/// See [`Simd::levels2`].
#[inline(always)]
pub(super) unsafe fn two<const POINTS: usize>(table: &[u16; POINTS], indices: &[u64; 8]) -> Packed {
    [points(table, Avx512::load(indices.as_ptr().cast())), _mm512_setzero_si512()]
}

/// See [`Simd::levels3`].
#[inline(always)]
pub(super) unsafe fn three<const POINTS: usize>(table: &[u16; POINTS], indices: &[u64; 16]) -> Packed {
    let p = indices.as_ptr();
    [points(table, Avx512::load(p.cast())), points(table, Avx512::load(p.add(8).cast()))]
}

/// See [`Simd::levels4`].
#[inline(always)]
pub(super) unsafe fn four<const POINTS: usize>(table: &[u32; POINTS], indices: &[u64; 8]) -> Packed {
    // Through memory: the load units have time, and taking indices out of a vector costs more.
    let p = (&raw const *indices).cast::<u16>();
    let entry = |i: usize| *table.get_unchecked(p.add(i).read_volatile() as usize % POINTS) as i32;
    let lane = |i: usize| _mm_set_epi32(entry(4 * i + 3), entry(4 * i + 2), entry(4 * i + 1), entry(4 * i));
    let step = |s: usize| {
        let v = _mm512_castsi128_si512(lane(4 * s));
        let v = _mm512_inserti32x4::<1>(v, lane(4 * s + 1));
        let v = _mm512_inserti32x4::<2>(v, lane(4 * s + 2));
        _mm512_inserti32x4::<3>(v, lane(4 * s + 3))
    };
    [step(0), step(1)]
}

/// See [`Simd::long_indices`].
#[inline(always)]
pub(super) unsafe fn long_indices<const BITS: u32, const PITCH: usize>(low: &[u8; 32], high: [u16; 8]) -> [u64; 8] {
    let p = PITCH as u8;
    let fields = _mm512_set1_epi64(i64::from_le_bytes([0, 0, 0, p, 0, 2 * p, 0, 3 * p]));
    let high = _mm512_cvtepu16_epi64(_mm_loadu_si128(high.as_ptr().cast()));
    let high = _mm512_multishift_epi64_epi8(fields, high);
    let high = _mm512_and_si512(high, _mm512_set1_epi16(((1 << BITS) - 1) << 8));
    let low = _mm512_cvtepu8_epi16(_mm256_loadu_si256(low.as_ptr().cast()));
    std::mem::transmute::<__m512i, [u64; 8]>(_mm512_or_si512(low, high))
}

/// See [`Simd::top_nibbles`].
#[inline(always)]
pub(super) unsafe fn top_nibbles(v: [u32; 8]) -> u64 {
    let nibbles = _mm256_srli_epi32::<28>(_mm256_loadu_si256(v.as_ptr().cast()));
    _mm_cvtsi128_si64(_mm256_cvtepi32_epi8(nibbles)) as u64
}

/// For each byte of TQ1_0 its first four digits, two bits each, and its last.
static DIGITS: [[u8; 256]; 2] = {
    let mut digits = [[0; 256]; 2];
    let mut byte = 0;
    while byte < 256 {
        // A digit is what three times the byte carries; what is left has the next one.
        let (mut rest, mut n) = (byte, 0);
        while n < 5 {
            let digit = (rest * 3) >> 8;
            digits[n / 4][byte] |= (digit as u8) << (2 * (n % 4));
            rest = rest * 3 % 256;
            n += 1;
        }
        byte += 1;
    }
    digits
};

/// The table's entries for 64 bytes, of which `high` have their top bit.
#[inline(always)]
unsafe fn of_bytes(table: &[u8; 256], bytes: __m512i, high: u64) -> __m512i {
    let four = |i: usize| Avx512::load(table.as_ptr().add(64 * i));
    let low = _mm512_permutex2var_epi8(four(0), bytes, four(1));
    _mm512_mask_mov_epi8(low, high, _mm512_permutex2var_epi8(four(2), bytes, four(3)))
}

/// See [`Simd::digits`].
#[inline(always)]
pub(super) unsafe fn digits(p: *const u8) -> Packed {
    let bytes = _mm512_maskz_loadu_epi32((1 << 13) - 1, p.cast());
    let high = _mm512_movepi8_mask(bytes);
    [of_bytes(&DIGITS[0], bytes, high), of_bytes(&DIGITS[1], bytes, high)]
}

/// For the second step of a block of TQ1_0, by half: where its bytes are in both vectors of [`digits`], and how far to shift them.
static SECOND: [([u8; 64], [u32; 16]); 2] = {
    let mut places = [([0; 64], [0; 16]); 2];
    let mut t = 0;
    while t < 128 {
        let (half, lane, byte) = (t / 64, t % 64 / 16, t % 16);
        // Sub-blocks 5 and 6 are digits 0 to 3 of the third sixteen bytes, 4 and half of 7 last digits, the rest digits of four bytes.
        let (place, digit) = match (lane, half) {
            (0, _) => (64 + 16 * half + byte, 0),
            (1 | 2, _) => (32 + byte, 2 * (lane - 1) + half),
            (_, 0) => (64 + 32 + byte, 0),
            _ => (48 + byte % 4, byte / 4),
        };
        places[half].0[t % 64] = place as u8;
        places[half].1[t % 64 / 4] = 2 * digit as u32;
        t += 1;
    }
    places
};

/// The packed digits of the first step of a block of TQ1_0: sub-block i is digit i of the first 32 bytes.
#[inline(always)]
unsafe fn first_digits(levels: &Packed, half: usize) -> __m512i {
    if half == 0 {
        _mm512_shuffle_i32x4::<0x00>(levels[0], levels[0])
    } else {
        _mm512_shuffle_i32x4::<0x55>(levels[0], levels[0])
    }
}

/// See [`Simd::digits_at`].
#[inline(always)]
pub(super) unsafe fn digits_at(levels: &Packed, s: usize, half: usize) -> __m512i {
    if s == 0 {
        Avx512::fields(first_digits(levels, half), 0)
    } else {
        Avx512::and(at(levels, Levels::Digits, s, half), 3)
    }
}

/// See [`Simd::levels_at`].
#[inline(always)]
pub(super) unsafe fn at(levels: &Packed, kind: Levels, s: usize, half: usize) -> __m512i {
    let set = |v: [i64; 8]| _mm512_set_epi64(v[7], v[6], v[5], v[4], v[3], v[2], v[1], v[0]);
    match kind {
        Levels::Two => {
            // A sub-block is a qword, which both qwords of its lane take their bits from.
            let first = 4 * s as i64;
            let order = set([first, first, first + 1, first + 1, first + 2, first + 2, first + 3, first + 3]);
            let fields = [[0, 2, 4, 6, 8, 10, 12, 14], [16, 18, 20, 22, 24, 26, 28, 30]];
            let [a, b] = fields.map(|fields| i64::from_le_bytes(fields) + half as i64 * 0x2020_2020_2020_2020);
            _mm512_multishift_epi64_epi8(set([a, b, a, b, a, b, a, b]), _mm512_permutexvar_epi64(order, levels[0]))
        }
        Levels::Three => {
            // A half of a sub-block is a qword.
            let v = levels[s];
            let v = if half == 0 { _mm512_unpacklo_epi64(v, v) } else { _mm512_unpackhi_epi64(v, v) };
            let fields = [[0, 3, 6, 9, 16, 19, 22, 25], [32, 35, 38, 41, 48, 51, 54, 57]];
            let [a, b] = fields.map(i64::from_le_bytes);
            _mm512_multishift_epi64_epi8(set([a, b, a, b, a, b, a, b]), v)
        }
        Levels::Four => {
            let v = levels[s];
            Avx512::zip_bytes(v, _mm512_srli_epi64::<4>(v))[half]
        }
        Levels::Digits if s == 0 => _mm512_srlv_epi64(first_digits(levels, half), set([0, 0, 2, 2, 4, 4, 6, 6])),
        Levels::Digits => {
            let (places, shifts) = &SECOND[half];
            let bytes = _mm512_permutex2var_epi8(levels[0], Avx512::load(places.as_ptr()), levels[1]);
            _mm512_srlv_epi32(bytes, Avx512::load(shifts.as_ptr().cast()))
        }
    }
}

/// See [`Simd::level_codes`].
#[inline(always)]
pub(super) unsafe fn codes(levels: __m512i, signs: u64, codes: &Codes) -> __m512i {
    let plain = _mm512_permutexvar_epi8(levels, Avx512::load(codes.of_bits.as_ptr()));
    match codes.sign {
        Sign::Mirrors(sum) => _mm512_mask_sub_epi8(plain, signs, _mm512_set1_epi8(sum as i8), plain),
        Sign::Lowers(less) => _mm512_mask_sub_epi8(plain, signs, plain, _mm512_set1_epi8(less as i8)),
    }
}

/// See [`Simd::sign_words`].
#[inline(always)]
pub(super) unsafe fn sign_words(signs: [u32; 8]) -> [u64; 4] {
    let order = _mm256_set_epi16(15, 13, 11, 9, 14, 12, 10, 8, 7, 5, 3, 1, 6, 4, 2, 0);
    let words = _mm256_permutexvar_epi16(order, _mm256_loadu_si256(signs.as_ptr().cast()));
    std::mem::transmute::<__m256i, [u64; 4]>(words)
}

/// For each six bits, the highest bit of a byte where their number is odd.
static ODD: [u8; 64] = {
    let mut odd = [0; 64];
    let mut bits = 0usize;
    while bits < 64 {
        odd[bits] = (bits.count_ones() as u8 & 1) << 7;
        bits += 1;
    }
    odd
};

/// See [`Simd::even_signs`].
#[inline(always)]
pub(super) unsafe fn even_signs(codes: [u32; 8]) -> [u32; 8] {
    let fields = _mm512_set1_epi64(i64::from_le_bytes([0, 7, 14, 21, 0, 0, 0, 0]));
    let codes = _mm512_cvtepu32_epi64(_mm256_loadu_si256(codes.as_ptr().cast()));
    let codes = _mm512_multishift_epi64_epi8(fields, codes);
    // The top bit: that of the six, and the seventh moved up.
    let odd = _mm512_permutexvar_epi8(codes, Avx512::load(ODD.as_ptr()));
    let top = _mm512_xor_si512(odd, _mm512_add_epi8(codes, codes));
    // Where the mask has a bit, the code's, else the top's.
    let signs = _mm512_ternarylogic_epi64::<0xCA>(_mm512_set1_epi8(0x7F), codes, top);
    std::mem::transmute::<__m256i, [u32; 8]>(_mm512_cvtepi64_epi32(signs))
}
