//! AVX2 with FMA and F16C: two lanes. Codes up to 127 go through `vpmaddubsw` as they are (127·127·2 fits 16 bits), wide codes with the
//! activation's sign moved onto it.
#![allow(unsafe_op_in_unsafe_fn)] // The contract of all of them stands at `simd`.

use std::arch::x86_64::*;

use super::super::panels::{self, Columns, Kind, Outputs};
use super::super::source::{self, Decode, Decoded};
use super::super::tiles::{self, Step};
use super::as_bytes::{half_bytes_as_words, levels_as_bytes};
use super::{MAX_LANES, Simd, ask, four};

/// See the module's comment.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

#[inline(always)]
unsafe fn low(p: *const u8) -> __m128i {
    _mm_loadu_si128(p.cast())
}

/// Low two bytes of four rows to bytes [lane][row].
#[inline(always)]
unsafe fn byte_rows(rows: [u32; 4]) -> __m128i {
    let v = _mm_set_epi32(rows[3] as i32, rows[2] as i32, rows[1] as i32, rows[0] as i32);
    _mm_shuffle_epi8(v, _mm_set_epi8(-1, -1, -1, -1, -1, -1, -1, -1, 13, 9, 5, 1, 12, 8, 4, 0))
}

impl Simd for Avx2 {
    const LANES: usize = 2;
    const WIDE_OFFSET: u8 = 0;
    const FUSED: bool = true;
    type Bytes = __m256i;
    type Ints = __m256i;
    type Floats = __m256;
    type ByRow = super::Nowhere;
    half_bytes_as_words!();
    levels_as_bytes!();

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[inline(always)]
    unsafe fn prefetch_once<const N: usize>(p: [*const u8; N], bytes: usize) {
        ask::once(p, bytes);
    }
    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m256i {
        _mm256_loadu_si256(p.cast())
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, v: __m256i) {
        _mm256_storeu_si256(p.cast(), v)
    }
    #[inline(always)]
    unsafe fn gather(p: [*const u8; MAX_LANES]) -> __m256i {
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low(p[0])), low(p[1]))
    }
    #[inline(always)]
    unsafe fn strided<const STRIDE: usize, const OFFSET: usize>(p: *const u8) -> __m256i {
        let p = p.add(OFFSET);
        if STRIDE == 16 { Self::load(p) } else { Self::gather([p, p.add(STRIDE), p, p]) }
    }
    #[inline(always)]
    unsafe fn block_halves(p: *const u8) -> [__m256i; 2] {
        let (v, w) = (Self::load(p), Self::load(p.add(32)));
        [_mm256_permute2x128_si256::<0x20>(v, w), _mm256_permute2x128_si256::<0x31>(v, w)]
    }
    #[inline(always)]
    unsafe fn repeat(p: *const u8) -> __m256i {
        _mm256_broadcastsi128_si256(low(p))
    }
    #[inline(always)]
    unsafe fn and(v: __m256i, mask: u8) -> __m256i {
        _mm256_and_si256(v, _mm256_set1_epi8(mask as i8))
    }
    #[inline(always)]
    unsafe fn or(v: __m256i, w: __m256i) -> __m256i {
        _mm256_or_si256(v, w)
    }
    #[inline(always)]
    unsafe fn xor(v: __m256i, mask: u8) -> __m256i {
        _mm256_xor_si256(v, _mm256_set1_epi8(mask as i8))
    }
    #[inline(always)]
    unsafe fn shr(v: __m256i, count: [u32; MAX_LANES]) -> __m256i {
        let (a, b) = (count[0] as i64, count[1] as i64);
        _mm256_srlv_epi64(v, _mm256_set_epi64x(b, b, a, a))
    }
    #[inline(always)]
    unsafe fn shl4(v: __m256i) -> __m256i {
        _mm256_slli_epi16::<4>(v)
    }
    #[inline(always)]
    unsafe fn lookup(v: __m256i, table: &[u8; 16]) -> __m256i {
        _mm256_shuffle_epi8(Self::repeat(table.as_ptr()), Self::and(v, 15))
    }
    #[inline(always)]
    unsafe fn repeat_words(words: [u64; 2]) -> __m256i {
        _mm256_broadcastsi128_si256(_mm_set_epi64x(words[1] as i64, words[0] as i64))
    }
    #[inline(always)]
    unsafe fn products(
        codes: __m256i,
        scales: __m256i,
        at: [usize; MAX_LANES],
        factors: &[i16; 8],
        offset: u8,
    ) -> __m256i {
        // As for AVX-512.
        let [a, b, _, _] = four!(|i| (at[i] as u64 * 0x0101_0101_0101_0101) as i64);
        let scales = _mm256_shuffle_epi8(scales, _mm256_set_epi64x(b, b, a, a));
        let products = _mm256_mullo_epi16(scales, _mm256_broadcastsi128_si256(low(factors.as_ptr().cast())));
        let products = _mm256_add_epi8(products, _mm256_set1_epi8(offset as i8));
        _mm256_shuffle_epi8(products, _mm256_add_epi8(codes, codes))
    }
    #[inline(always)]
    unsafe fn pick(v: __m256i, mask: [u8; MAX_LANES], value: u8) -> __m256i {
        let [a, b, ..] = four!(|i| (mask[i] as u64 * 0x0101_0101_0101_0101) as i64);
        let clear = _mm256_cmpeq_epi8(_mm256_and_si256(v, _mm256_set_epi64x(b, b, a, a)), _mm256_setzero_si256());
        _mm256_andnot_si256(clear, _mm256_set1_epi8(value as i8))
    }
    #[inline(always)]
    unsafe fn spread(bits: [u16; MAX_LANES], value: u8) -> __m256i {
        // Bytes 0..8 of a lane repeat the low byte of its bits, bytes 8..16 the high byte.
        let words = |i: usize| {
            let byte = |b: u16| (b as u64 * 0x0101_0101_0101_0101) as i64;
            (byte(bits[i] & 255), byte(bits[i] >> 8))
        };
        let ((a, b), (c, d)) = (words(0), words(1));
        let bit = _mm256_set1_epi64x(i64::from_le_bytes([1, 2, 4, 8, 16, 32, 64, 128]));
        let clear = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_set_epi64x(d, c, b, a), bit), _mm256_setzero_si256());
        _mm256_andnot_si256(clear, _mm256_set1_epi8(value as i8))
    }

    #[inline(always)]
    unsafe fn dot(wide: bool, sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        let pairs = if wide {
            _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes))
        } else {
            _mm256_maddubs_epi16(codes, x)
        };
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
    #[inline(always)]
    unsafe fn dot_dword(wide: bool, sum: __m256i, codes: __m256i, x: __m256i, s: usize) -> __m256i {
        let x = match s {
            0 => _mm256_shuffle_epi32::<0x00>(x),
            1 => _mm256_shuffle_epi32::<0x55>(x),
            2 => _mm256_shuffle_epi32::<0xAA>(x),
            _ => _mm256_shuffle_epi32::<0xFF>(x),
        };
        Self::dot(wide, sum, codes, x)
    }
    #[inline(always)]
    unsafe fn transpose(v: [__m256i; 4]) -> [__m256i; 4] {
        let a = _mm256_unpacklo_epi32(v[0], v[1]);
        let b = _mm256_unpacklo_epi32(v[2], v[3]);
        let c = _mm256_unpackhi_epi32(v[0], v[1]);
        let d = _mm256_unpackhi_epi32(v[2], v[3]);
        [
            _mm256_unpacklo_epi64(a, b),
            _mm256_unpackhi_epi64(a, b),
            _mm256_unpacklo_epi64(c, d),
            _mm256_unpackhi_epi64(c, d),
        ]
    }
    #[inline(always)]
    unsafe fn sum_each(v: [__m256i; 4]) -> __m256i {
        _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]))
    }
    #[inline(always)]
    unsafe fn zip(lo: __m256i, hi: __m256i) -> [__m256i; 2] {
        [_mm256_unpacklo_epi64(lo, hi), _mm256_unpackhi_epi64(lo, hi)]
    }
    #[inline(always)]
    unsafe fn zip_bytes(v: __m256i, w: __m256i) -> [__m256i; 2] {
        [_mm256_unpacklo_epi8(v, w), _mm256_unpackhi_epi8(v, w)]
    }
    #[inline(always)]
    unsafe fn broadcast(p: *const u8) -> __m256i {
        _mm256_set1_epi32(p.cast::<i32>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn regroup(v: [__m256i; 4]) -> [__m256i; 4] {
        [_mm256_permute2x128_si256::<0x20>(v[0], v[1]), _mm256_permute2x128_si256::<0x31>(v[0], v[1]), v[2], v[3]]
    }
    #[inline(always)]
    unsafe fn regroup_floats(v: [__m256; 4]) -> [__m256; 4] {
        [_mm256_permute2f128_ps::<0x20>(v[0], v[1]), _mm256_permute2f128_ps::<0x31>(v[0], v[1]), v[2], v[3]]
    }
    #[inline(always)]
    unsafe fn splat_int(v: i32) -> __m256i {
        _mm256_set1_epi32(v)
    }
    #[inline(always)]
    unsafe fn columns<K: Kind, const REST: bool>(job: &Columns) {
        panels::isa::avx2::<K, REST>(job)
    }
    #[inline(always)]
    unsafe fn outputs(job: &Outputs) {
        panels::finish::avx2(job)
    }
    #[inline(always)]
    unsafe fn decode<B: Decode>(rows: &[*const u8; 4], block: usize) -> Decoded<Self> {
        source::decode::avx2::<B>(rows, block)
    }
    #[inline(always)]
    unsafe fn step<K: Kind, const T: usize>(step: &Step<Self, T>) {
        tiles::isa::avx2::<K, T>(step)
    }
    #[inline(always)]
    unsafe fn zero_ints() -> __m256i {
        _mm256_setzero_si256()
    }
    #[inline(always)]
    unsafe fn spread_floats(p: *const f32) -> __m256 {
        let both = _mm256_castpd_ps(_mm256_set1_pd(p.cast::<f64>().read_unaligned()));
        _mm256_permutevar_ps(both, _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0))
    }
    #[inline(always)]
    unsafe fn load_ints(p: *const i32) -> __m256i {
        Self::load(p.cast())
    }
    #[inline(always)]
    unsafe fn spread_ints(p: *const i32) -> __m256i {
        _mm256_castps_si256(Self::spread_floats(p.cast()))
    }
    #[inline(always)]
    unsafe fn add_ints(v: __m256i, w: __m256i) -> __m256i {
        _mm256_add_epi32(v, w)
    }
    #[inline(always)]
    unsafe fn to_floats(v: __m256i) -> __m256 {
        _mm256_cvtepi32_ps(v)
    }
    #[inline(always)]
    unsafe fn as_floats(v: __m256i) -> __m256 {
        _mm256_castsi256_ps(v)
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> __m256 {
        _mm256_set1_ps(v)
    }
    #[inline(always)]
    unsafe fn load_floats(p: *const f32) -> __m256 {
        _mm256_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store_floats(p: *mut f32, v: __m256) {
        _mm256_storeu_ps(p, v)
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m256 {
        _mm256_cvtph_ps(low(p.cast()))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(low(p.cast()))))
    }
    #[inline(always)]
    unsafe fn mul(v: __m256, w: __m256) -> __m256 {
        _mm256_mul_ps(v, w)
    }
    #[inline(always)]
    unsafe fn add(v: __m256, w: __m256) -> __m256 {
        _mm256_add_ps(v, w)
    }
    #[inline(always)]
    unsafe fn mul_add(v: __m256, w: __m256, z: __m256) -> __m256 {
        _mm256_fmadd_ps(v, w, z)
    }
    #[inline(always)]
    unsafe fn f16_lanes(words: [u64; MAX_LANES]) -> __m256 {
        _mm256_cvtph_ps(_mm_set_epi64x(words[1] as i64, words[0] as i64))
    }
    #[inline(always)]
    unsafe fn bf16_lanes(words: [u64; MAX_LANES]) -> __m256 {
        let bits = _mm_set_epi64x(words[1] as i64, words[0] as i64);
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
    }
    #[inline(always)]
    unsafe fn words(words: [u64; 2 * MAX_LANES]) -> __m256i {
        _mm256_set_epi64x(words[3] as i64, words[2] as i64, words[1] as i64, words[0] as i64)
    }
    #[inline(always)]
    unsafe fn expand<const BITS: usize>(word: u64) -> u64 {
        _pdep_u64(word, (0xFFu64 >> (8 - BITS)).wrapping_mul(0x0101_0101_0101_0101))
    }
    #[inline(always)]
    unsafe fn u8_rows(rows: [u32; 4]) -> __m256 {
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(byte_rows(rows)))
    }
    #[inline(always)]
    unsafe fn i8_rows(rows: [u32; 4]) -> __m256 {
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(byte_rows(rows)))
    }
    #[inline(always)]
    unsafe fn lanes_of(_count: usize, v: __m256, w: __m256) -> __m256 {
        // Of two, it is one.
        _mm256_blend_ps::<0xF0>(v, w)
    }
    #[inline(always)]
    unsafe fn fold(v: __m256) -> [f32; 4] {
        let half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let mut out = [0.0; 4];
        _mm_storeu_ps(out.as_mut_ptr(), half);
        out
    }
    #[inline(always)]
    unsafe fn fold_lanes(v: [__m256; 4]) -> __m256 {
        _mm256_add_ps(v[0], v[1])
    }
    #[inline(always)]
    unsafe fn sum(v: __m256) -> f32 {
        let [a, b, c, d] = Self::fold(v);
        (a + c) + (b + d)
    }
    #[inline(always)]
    unsafe fn largest(x: &[f32; 32]) -> f32 {
        let magnitude = _mm256_set1_epi32(0x7FFF_FFFF);
        let part = four!(|i| _mm256_and_si256(_mm256_loadu_si256(x.as_ptr().add(8 * i).cast()), magnitude));
        let v = _mm256_max_epu32(_mm256_max_epu32(part[0], part[1]), _mm256_max_epu32(part[2], part[3]));
        let v = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
        let v = _mm_max_epu32(v, _mm_shuffle_epi32::<0x4E>(v));
        let v = _mm_max_epu32(v, _mm_shuffle_epi32::<0xB1>(v));
        f32::from_bits(_mm_cvtsi128_si32(v) as u32)
    }
    #[inline(always)]
    unsafe fn round(x: &mut [f32; 32], codes: &mut [u8; 32]) -> [i32; 2] {
        let p = x.as_mut_ptr();
        let v = four!(|i| _mm256_loadu_ps(p.add(8 * i)));
        let n = four!(|i| _mm256_cvtps_epi32(v[i]));
        let _ = four!(|i| _mm256_storeu_ps(p.add(8 * i), _mm256_sub_ps(v[i], _mm256_cvtepi32_ps(n[i]))));
        // Packing works within halves of a vector: the dwords come out as 0 2 4 6 1 3 5 7.
        let bytes = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
        let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256(codes.as_mut_ptr().cast(), bytes);
        let halves = _mm256_hadd_epi32(_mm256_add_epi32(n[0], n[1]), _mm256_add_epi32(n[2], n[3]));
        let halves = _mm256_hadd_epi32(halves, halves);
        let sum = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
        [_mm_cvtsi128_si32(sum), _mm_extract_epi32::<1>(sum)]
    }
}
