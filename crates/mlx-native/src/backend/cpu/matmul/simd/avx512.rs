//! AVX-512 with VNNI and VBMI: four lanes. Codes are unsigned (`vpdpbusd`).
#![allow(unsafe_op_in_unsafe_fn)] // The contract of all of them stands at `simd`.

mod bits;
mod by_row;
mod e4m3;
mod groups;
mod halves;
mod lanes;
mod levels;
mod record;
mod rowwise;
mod strided;
mod unpack;

use std::arch::x86_64::*;

use super::super::panels::{self, Columns, Kind, Outputs};
use super::super::prepare::{Order, Sums};
use super::super::source::{self, Codes, Decode, Decoded, Levels};
use super::super::tiles::{self, Step};
use super::{MAX_LANES, Simd, ask, four};
use lanes::by_lane;
use strided::Strided;

/// See the module's comment.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

#[inline(always)]
unsafe fn low(p: *const u8) -> __m128i {
    _mm_loadu_si128(p.cast())
}

/// Dwords of four 4-byte rows to bytes [lane][row].
#[inline(always)]
unsafe fn byte_rows(rows: [u32; 4]) -> __m128i {
    let v = _mm_set_epi32(rows[3] as i32, rows[2] as i32, rows[1] as i32, rows[0] as i32);
    _mm_shuffle_epi8(v, _mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0))
}

impl Simd for Avx512 {
    const LANES: usize = 4;
    const ROW_VECTORS: usize = 2;
    const TILE_COLUMNS: [usize; 2] = [6, 4];
    const FUSED: bool = true;
    const WIDE_OFFSET: u8 = 128;
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;
    type HalfBytes = __m512i;
    type Levels = levels::Packed;
    type ByRow = Self;
    const ROWS_IN_LANES: bool = true;

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[inline(always)]
    unsafe fn prefetch_once<const N: usize>(p: [*const u8; N], bytes: usize) {
        ask::once(p, bytes);
    }
    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512i {
        _mm512_loadu_si512(p.cast())
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, v: __m512i) {
        _mm512_storeu_si512(p.cast(), v)
    }
    #[inline(always)]
    unsafe fn gather(p: [*const u8; MAX_LANES]) -> __m512i {
        let v = _mm512_castsi128_si512(low(p[0]));
        let v = _mm512_inserti32x4::<1>(v, low(p[1]));
        let v = _mm512_inserti32x4::<2>(v, low(p[2]));
        _mm512_inserti32x4::<3>(v, low(p[3]))
    }
    #[inline(always)]
    unsafe fn gather_pairs(p: [*const u8; 2]) -> __m512i {
        let [a, b] = p.map(|p| _mm256_loadu_si256(p.cast()));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b)
    }
    #[inline(always)]
    unsafe fn strided<const STRIDE: usize, const OFFSET: usize>(p: *const u8) -> __m512i {
        if STRIDE == 16 {
            return Self::load(p.add(OFFSET));
        }
        let index = Self::load(Strided::<STRIDE, OFFSET>::BYTES.as_ptr());
        if Strided::<STRIDE, OFFSET>::THREE {
            // The fourth lane is where it has to be in a vector that begins 48 bytes before it.
            let last = Self::load(p.add(3 * STRIDE + OFFSET - 48));
            let first = Self::load(p.add(Strided::<STRIDE, OFFSET>::AT));
            strided::permuted_where(last, 0x0000_FFFF_FFFF_FFFF, index, first)
        } else {
            let [first, second] = Strided::<STRIDE, OFFSET>::both(p, 16);
            _mm512_permutex2var_epi8(first, index, second)
        }
    }
    #[inline(always)]
    unsafe fn block_halves(p: *const u8) -> [__m512i; 2] {
        let (v, w) = (Self::load(p), Self::load(p.add(64)));
        [_mm512_shuffle_i32x4::<0x88>(v, w), _mm512_shuffle_i32x4::<0xDD>(v, w)]
    }
    #[inline(always)]
    unsafe fn repeat(p: *const u8) -> __m512i {
        _mm512_broadcast_i32x4(low(p))
    }
    #[inline(always)]
    unsafe fn and(v: __m512i, mask: u8) -> __m512i {
        _mm512_and_si512(v, _mm512_set1_epi8(mask as i8))
    }
    #[inline(always)]
    unsafe fn or(v: __m512i, w: __m512i) -> __m512i {
        _mm512_or_si512(v, w)
    }
    #[inline(always)]
    unsafe fn xor(v: __m512i, mask: u8) -> __m512i {
        _mm512_xor_si512(v, _mm512_set1_epi8(mask as i8))
    }
    #[inline(always)]
    unsafe fn shr(v: __m512i, count: [u32; MAX_LANES]) -> __m512i {
        let [a, b, c, d] = four!(|i| count[i] as i64);
        _mm512_srlv_epi64(v, _mm512_set_epi64(d, d, c, c, b, b, a, a))
    }
    #[inline(always)]
    unsafe fn fields(v: __m512i, _first: usize) -> __m512i {
        // Codes have all eight bits here, and a scale of their own for each lane.
        let [a, b, c, d] =
            [0x0303_0303_0303_0303i64, 0x0C0C_0C0C_0C0C_0C0C, 0x3030_3030_3030_3030, !0x3F3F_3F3F_3F3F_3F3F];
        _mm512_and_si512(v, _mm512_set_epi64(d, d, c, c, b, b, a, a))
    }
    #[inline(always)]
    unsafe fn of_fields(sums: __m512i, _first: usize) -> __m512i {
        _mm512_srav_epi32(sums, _mm512_set_epi32(6, 6, 6, 6, 4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0))
    }
    #[inline(always)]
    unsafe fn per_field(scales: __m512) -> __m512 {
        let [a, b, c, d] = [1.0, 1.0 / 4.0, 1.0 / 16.0, 1.0 / 64.0];
        _mm512_mul_ps(scales, _mm512_set_ps(d, d, d, d, c, c, c, c, b, b, b, b, a, a, a, a))
    }
    #[inline(always)]
    unsafe fn bit_to<const TO: usize>(v: __m512i, first: usize) -> __m512i {
        // A bit stays within its byte, whatever turns up beside it.
        let [a, b, c, d] = four!(|i| (first + i) as i64 - TO as i64);
        Self::and(_mm512_rorv_epi64(v, _mm512_set_epi64(d, d, c, c, b, b, a, a)), 1 << TO)
    }
    #[inline(always)]
    unsafe fn shl4(v: __m512i) -> __m512i {
        _mm512_slli_epi16::<4>(v)
    }
    #[inline(always)]
    unsafe fn lookup(v: __m512i, table: &[u8; 16]) -> __m512i {
        // Six bits of an index count here: the table is there four times.
        _mm512_permutexvar_epi8(v, Self::repeat(table.as_ptr()))
    }
    #[inline(always)]
    unsafe fn repeat_words(words: [u64; 2]) -> __m512i {
        _mm512_broadcast_i32x4(_mm_set_epi64x(words[1] as i64, words[0] as i64))
    }
    #[inline(always)]
    unsafe fn products(
        codes: __m512i,
        scales: __m512i,
        at: [usize; MAX_LANES],
        factors: &[i16; 8],
        offset: u8,
    ) -> __m512i {
        let [a, b, c, d] = four!(|i| (at[i] as u64 * 0x0101_0101_0101_0101) as i64);
        // Both bytes of a word are its lane's scale, and the upper one does not reach the low bits of a product.
        let scales = _mm512_shuffle_epi8(scales, _mm512_set_epi64(d, d, c, c, b, b, a, a));
        let products = _mm512_mullo_epi16(scales, _mm512_broadcast_i32x4(low(factors.as_ptr().cast())));
        let products = _mm512_add_epi8(products, _mm512_set1_epi8(offset as i8));
        _mm512_shuffle_epi8(products, _mm512_add_epi8(codes, codes))
    }
    #[inline(always)]
    unsafe fn pick(v: __m512i, mask: [u8; MAX_LANES], value: u8) -> __m512i {
        let [a, b, c, d] = four!(|i| (mask[i] as u64 * 0x0101_0101_0101_0101) as i64);
        let set = _mm512_test_epi8_mask(v, _mm512_set_epi64(d, d, c, c, b, b, a, a));
        _mm512_maskz_mov_epi8(set, _mm512_set1_epi8(value as i8))
    }
    #[inline(always)]
    unsafe fn spread(bits: [u16; MAX_LANES], value: u8) -> __m512i {
        let [a, b, c, d] = four!(|i| bits[i] as u64);
        _mm512_maskz_mov_epi8(a | (b << 16) | (c << 32) | (d << 48), _mm512_set1_epi8(value as i8))
    }
    #[inline(always)]
    unsafe fn strided_fifth_bits<const STRIDE: usize, const OFFSET: usize>(
        nibbles: [__m512i; 2],
        p: *const u8,
    ) -> [__m512i; 2] {
        let [first, second] = Strided::<STRIDE, OFFSET>::masks(p);
        [strided::add_where(nibbles[0], first, 16), strided::add_where(nibbles[1], second, 16)]
    }
    #[inline(always)]
    unsafe fn bit_blocks(p: *const u8, value: u8) -> [__m512i; 2] {
        let p = p.cast::<u64>();
        let (v, w) =
            (Self::spread_word(p.read_unaligned(), value), Self::spread_word(p.add(1).read_unaligned(), value));
        [_mm512_shuffle_i32x4::<0x88>(v, w), _mm512_shuffle_i32x4::<0xDD>(v, w)]
    }
    #[inline(always)]
    unsafe fn spread_word(bits: u64, value: u8) -> __m512i {
        _mm512_maskz_mov_epi8(bits, _mm512_set1_epi8(value as i8))
    }

    #[inline(always)]
    unsafe fn dot(_wide: bool, sum: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(sum, codes, x)
    }
    #[inline(always)]
    unsafe fn dot_dword(wide: bool, sum: __m512i, codes: __m512i, x: __m512i, s: usize) -> __m512i {
        let x = match s {
            0 => _mm512_shuffle_epi32::<0x00>(x),
            1 => _mm512_shuffle_epi32::<0x55>(x),
            2 => _mm512_shuffle_epi32::<0xAA>(x),
            _ => _mm512_shuffle_epi32::<0xFF>(x),
        };
        Self::dot(wide, sum, codes, x)
    }
    #[inline(always)]
    unsafe fn rows_in_lanes(v: [__m512i; 4]) -> [__m512i; 4] {
        lanes::rows(v)
    }
    #[inline(always)]
    unsafe fn turned(v: __m512i) -> __m512i {
        lanes::turned(v)
    }
    #[inline(always)]
    unsafe fn turned_floats(v: __m512) -> __m512 {
        _mm512_castsi512_ps(lanes::turned(_mm512_castps_si512(v)))
    }
    #[inline(always)]
    unsafe fn repeat_floats(p: *const f32) -> __m512 {
        _mm512_broadcast_f32x4(_mm_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn repeat_ints(p: *const i32) -> __m512i {
        Self::repeat(p.cast())
    }
    #[inline(always)]
    unsafe fn transpose(v: [__m512i; 4]) -> [__m512i; 4] {
        let a = _mm512_unpacklo_epi32(v[0], v[1]);
        let b = _mm512_unpacklo_epi32(v[2], v[3]);
        let c = _mm512_unpackhi_epi32(v[0], v[1]);
        let d = _mm512_unpackhi_epi32(v[2], v[3]);
        [
            _mm512_unpacklo_epi64(a, b),
            _mm512_unpackhi_epi64(a, b),
            _mm512_unpacklo_epi64(c, d),
            _mm512_unpackhi_epi64(c, d),
        ]
    }
    #[inline(always)]
    unsafe fn sum_each(v: [__m512i; 4]) -> __m512i {
        let a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
        let b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
        _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))
    }
    #[inline(always)]
    unsafe fn zip(lo: __m512i, hi: __m512i) -> [__m512i; 2] {
        [_mm512_unpacklo_epi64(lo, hi), _mm512_unpackhi_epi64(lo, hi)]
    }
    #[inline(always)]
    unsafe fn zip_bytes(v: __m512i, w: __m512i) -> [__m512i; 2] {
        [_mm512_unpacklo_epi8(v, w), _mm512_unpackhi_epi8(v, w)]
    }
    #[inline(always)]
    unsafe fn broadcast(p: *const u8) -> __m512i {
        _mm512_set1_epi32(p.cast::<i32>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn regroup(v: [__m512i; 4]) -> [__m512i; 4] {
        lanes::regroup(v)
    }
    #[inline(always)]
    unsafe fn regroup_floats(v: [__m512; 4]) -> [__m512; 4] {
        let v = Self::regroup(four!(|i| _mm512_castps_si512(v[i])));
        four!(|i| _mm512_castsi512_ps(v[i]))
    }
    #[inline(always)]
    unsafe fn splat_int(v: i32) -> __m512i {
        _mm512_set1_epi32(v)
    }
    #[inline(always)]
    unsafe fn columns<K: Kind, const REST: bool>(job: &Columns) {
        panels::isa::avx512::<K, REST>(job)
    }
    #[inline(always)]
    unsafe fn outputs(job: &Outputs) {
        panels::finish::avx512(job)
    }
    #[inline(always)]
    unsafe fn levels2<const POINTS: usize>(table: &[u16; POINTS], indices: &[u64; 8]) -> levels::Packed {
        levels::two(table, indices)
    }
    #[inline(always)]
    unsafe fn levels3<const POINTS: usize>(table: &[u16; POINTS], indices: &[u64; 16]) -> levels::Packed {
        levels::three(table, indices)
    }
    #[inline(always)]
    unsafe fn levels4<const POINTS: usize>(table: &[u32; POINTS], indices: &[u64; 8]) -> levels::Packed {
        levels::four(table, indices)
    }
    #[inline(always)]
    unsafe fn long_indices<const BITS: u32, const PITCH: usize>(low: &[u8; 32], high: [u16; 8]) -> [u64; 8] {
        levels::long_indices::<BITS, PITCH>(low, high)
    }
    #[inline(always)]
    unsafe fn top_nibbles(v: [u32; 8]) -> u64 {
        levels::top_nibbles(v)
    }
    #[inline(always)]
    unsafe fn digits(p: *const u8) -> levels::Packed {
        levels::digits(p)
    }
    #[inline(always)]
    unsafe fn levels_at(levels: &levels::Packed, kind: Levels, s: usize, half: usize) -> __m512i {
        levels::at(levels, kind, s, half)
    }
    #[inline(always)]
    unsafe fn digits_at(levels: &levels::Packed, s: usize, half: usize) -> __m512i {
        levels::digits_at(levels, s, half)
    }
    #[inline(always)]
    unsafe fn level_codes(levels: __m512i, signs: u64, codes: &Codes) -> __m512i {
        levels::codes(levels, signs, codes)
    }
    #[inline(always)]
    unsafe fn sign_words(signs: [u32; 8]) -> [u64; 4] {
        levels::sign_words(signs)
    }
    #[inline(always)]
    unsafe fn even_signs(codes: [u32; 8]) -> [u32; 8] {
        levels::even_signs(codes)
    }
    #[inline(always)]
    unsafe fn decode<B: Decode>(rows: &[*const u8; 4], block: usize) -> Decoded<Self> {
        source::decode::avx512::<B>(rows, block)
    }
    #[inline(always)]
    unsafe fn step<K: Kind, const T: usize>(step: &Step<Self, T>) {
        tiles::isa::avx512::<K, T>(step)
    }
    #[inline(always)]
    unsafe fn zero_ints() -> __m512i {
        _mm512_setzero_si512()
    }
    #[inline(always)]
    unsafe fn spread_floats(p: *const f32) -> __m512 {
        let lane = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
        _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(p)), lane)
    }
    #[inline(always)]
    unsafe fn load_ints(p: *const i32) -> __m512i {
        Self::load(p.cast())
    }
    #[inline(always)]
    unsafe fn spread_ints(p: *const i32) -> __m512i {
        _mm512_castps_si512(Self::spread_floats(p.cast()))
    }
    #[inline(always)]
    unsafe fn add_ints(v: __m512i, w: __m512i) -> __m512i {
        _mm512_add_epi32(v, w)
    }
    #[inline(always)]
    unsafe fn to_floats(v: __m512i) -> __m512 {
        _mm512_cvtepi32_ps(v)
    }
    #[inline(always)]
    unsafe fn as_floats(v: __m512i) -> __m512 {
        _mm512_castsi512_ps(v)
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> __m512 {
        _mm512_set1_ps(v)
    }
    #[inline(always)]
    unsafe fn load_floats(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store_floats(p: *mut f32, v: __m512) {
        _mm512_storeu_ps(p, v)
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))))
    }
    #[inline(always)]
    unsafe fn mul(v: __m512, w: __m512) -> __m512 {
        _mm512_mul_ps(v, w)
    }
    #[inline(always)]
    unsafe fn add(v: __m512, w: __m512) -> __m512 {
        _mm512_add_ps(v, w)
    }
    #[inline(always)]
    unsafe fn mul_add(v: __m512, w: __m512, z: __m512) -> __m512 {
        _mm512_fmadd_ps(v, w, z)
    }
    #[inline(always)]
    unsafe fn f16_lanes(words: [u64; MAX_LANES]) -> __m512 {
        let [a, b, c, d] = four!(|i| words[i] as i64);
        _mm512_cvtph_ps(_mm256_set_epi64x(d, c, b, a))
    }
    #[inline(always)]
    unsafe fn bf16_lanes(words: [u64; MAX_LANES]) -> __m512 {
        let [a, b, c, d] = four!(|i| words[i] as i64);
        let bits = _mm512_cvtepu16_epi32(_mm256_set_epi64x(d, c, b, a));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
    }
    #[inline(always)]
    unsafe fn f16_groups(rows: [u64; 4], shift: u32) -> __m512 {
        _mm512_cvtph_ps(_mm512_cvtepi32_epi16(by_lane(rows, shift, u32::MAX)))
    }
    #[inline(always)]
    unsafe fn strided_f16<const STRIDE: usize, const OFFSET: usize>(p: [*const u8; 4]) -> __m512 {
        _mm512_cvtph_ps(Strided::<STRIDE, OFFSET>::words(p))
    }
    #[inline(always)]
    unsafe fn bf16_groups(rows: [u64; 4], shift: u32) -> __m512 {
        // The upper half of an f32.
        _mm512_castsi512_ps(by_lane(rows, shift, 0xAAAA_AAAA))
    }
    #[inline(always)]
    unsafe fn groups_of_64(p: [*const u8; 4], f16: bool) -> [__m512; 4] {
        groups::of_64(p, f16)
    }
    #[inline(always)]
    unsafe fn words(words: [u64; 2 * MAX_LANES]) -> __m512i {
        Self::load(words.as_ptr().cast())
    }
    #[inline(always)]
    unsafe fn unpack<const BITS: usize>(p: *const u8) -> [__m512i; 2] {
        unpack::unpack::<BITS>(p)
    }
    #[inline(always)]
    unsafe fn u8_rows(rows: [u32; 4]) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(byte_rows(rows)))
    }
    #[inline(always)]
    unsafe fn i8_rows(rows: [u32; 4]) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(byte_rows(rows)))
    }
    #[inline(always)]
    unsafe fn half_bytes(rows: [[u64; 2]; 4]) -> __m512i {
        let [a, b, c, d] = rows;
        Self::words([a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]])
    }
    #[inline(always)]
    unsafe fn q3_k_scales(p: [*const u8; 4]) -> __m512i {
        halves::q3_k_scales(p)
    }
    #[inline(always)]
    unsafe fn f16_pairs(p: [*const u8; 4]) -> [__m512; 2] {
        halves::f16_pairs(p)
    }
    #[inline(always)]
    unsafe fn half_nibbles(v: __m512i) -> (__m512i, __m512i) {
        (Self::and(v, 15), Self::and(_mm512_srli_epi16::<4>(v), 15))
    }
    #[inline(always)]
    unsafe fn half_u8(v: __m512i, s: usize, half: usize) -> __m512 {
        halves::unsigned(v, s, half)
    }
    #[inline(always)]
    unsafe fn half_i8(v: __m512i, s: usize, half: usize) -> __m512 {
        halves::signed(v, s, half)
    }
    #[inline(always)]
    unsafe fn half_e4m3(v: __m512i, s: usize, half: usize) -> __m512 {
        e4m3::numbers(halves::bytes(v, s, half))
    }
    #[inline(always)]
    unsafe fn unsigned_e4m3(rows: [u64; 4]) -> [__m512; 2] {
        e4m3::unsigned(rows)
    }
    #[inline(always)]
    unsafe fn load_e4m3(p: *const u8) -> __m512 {
        e4m3::numbers(low(p))
    }
    #[inline(always)]
    unsafe fn load_e4m3_four(p: *const u8) -> [__m512; 4] {
        e4m3::many(p)
    }
    #[inline(always)]
    unsafe fn exp2_rows(rows: [u32; 4]) -> __m512 {
        let exponent = _mm512_sub_ps(Self::u8_rows(rows), _mm512_set1_ps(128.0));
        _mm512_scalef_ps(_mm512_set1_ps(1.0), exponent)
    }
    #[inline(always)]
    unsafe fn lanes_of(count: usize, v: __m512, w: __m512) -> __m512 {
        _mm512_mask_blend_ps(0xFFFF << (4 * count), v, w)
    }
    #[inline(always)]
    unsafe fn fold(v: __m512) -> [f32; 4] {
        let half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
        let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
        let mut out = [0.0; 4];
        _mm_storeu_ps(out.as_mut_ptr(), quarter);
        out
    }
    #[inline(always)]
    unsafe fn fold_lanes(v: [__m512; 4]) -> __m512 {
        _mm512_add_ps(_mm512_add_ps(v[0], v[2]), _mm512_add_ps(v[1], v[3]))
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        let [a, b, c, d] = Self::fold(v);
        (a + c) + (b + d)
    }
    #[inline(always)]
    unsafe fn largest(x: &[f32; 32]) -> f32 {
        let magnitude = _mm512_set1_epi32(0x7FFF_FFFF);
        let a = _mm512_and_si512(_mm512_loadu_si512(x.as_ptr().cast()), magnitude);
        let b = _mm512_and_si512(_mm512_loadu_si512(x.as_ptr().add(16).cast()), magnitude);
        f32::from_bits(_mm512_reduce_max_epu32(_mm512_max_epu32(a, b)))
    }
    #[inline(always)]
    unsafe fn quantize(x: *const f32, record: *mut u8, halves: bool, sums: Sums, order: Order) -> bool {
        record::quantize(x, record, halves, sums, order)
    }
    #[inline(always)]
    unsafe fn round(x: &mut [f32; 32], codes: &mut [u8; 32]) -> [i32; 2] {
        let p = x.as_mut_ptr();
        let (a, b) = (_mm512_loadu_ps(p), _mm512_loadu_ps(p.add(16)));
        let (i, j) = (_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
        _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(i));
        _mm_storeu_si128(codes.as_mut_ptr().add(16).cast(), _mm512_cvtepi32_epi8(j));
        _mm512_storeu_ps(p, _mm512_sub_ps(a, _mm512_cvtepi32_ps(i)));
        _mm512_storeu_ps(p.add(16), _mm512_sub_ps(b, _mm512_cvtepi32_ps(j)));
        [_mm512_reduce_add_epi32(i), _mm512_reduce_add_epi32(j)]
    }
}
