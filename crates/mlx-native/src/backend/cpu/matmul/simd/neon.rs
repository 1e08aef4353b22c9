//! AArch64 NEON with the dot-product extension: one lane. Codes are signed (`sdot`).
#![allow(unsafe_op_in_unsafe_fn)] // The contract of all of them stands at `simd`.

use std::arch::aarch64::*;
use std::arch::asm;

use half::{bf16, f16};

use super::super::panels::{self, Columns, Kind, Outputs};
use super::super::source::{self, Decode, Decoded};
use super::super::tiles::{self, Step};
use super::as_bytes::{half_bytes_as_words, levels_as_bytes};
use super::{MAX_LANES, Simd};

/// See the module's comment.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// `sdot` by vector. The intrinsic is not stable yet.
#[inline(always)]
unsafe fn sdot(mut sum: int32x4_t, codes: uint8x16_t, x: uint8x16_t) -> int32x4_t {
    asm!(
        "sdot {sum:v}.4s, {codes:v}.16b, {x:v}.16b",
        sum = inout(vreg) sum,
        codes = in(vreg) codes,
        x = in(vreg) x,
        options(pure, nomem, nostack, preserves_flags)
    );
    sum
}

/// `sdot` by one dword of x.
macro_rules! sdot_dword {
    ($sum:ident, $codes:ident, $x:ident, $s:literal) => {
        asm!(
            concat!("sdot {sum:v}.4s, {codes:v}.16b, {x:v}.4b[", $s, "]"),
            sum = inout(vreg) $sum,
            codes = in(vreg) $codes,
            x = in(vreg) $x,
            options(pure, nomem, nostack, preserves_flags)
        )
    };
}

#[inline(always)]
unsafe fn floats(v: [f32; 4]) -> float32x4_t {
    vld1q_f32(v.as_ptr())
}

impl Simd for Neon {
    const LANES: usize = 1;
    const ROW_VECTORS: usize = 2;
    const TILE_COLUMNS: [usize; 2] = [6, 4];
    const WIDE_OFFSET: u8 = 0;
    type Bytes = uint8x16_t;
    type Ints = int32x4_t;
    type Floats = float32x4_t;
    type ByRow = super::Nowhere;
    half_bytes_as_words!();
    levels_as_bytes!();

    #[inline(always)]
    unsafe fn load(p: *const u8) -> uint8x16_t {
        vld1q_u8(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, v: uint8x16_t) {
        vst1q_u8(p, v)
    }
    #[inline(always)]
    unsafe fn gather(p: [*const u8; MAX_LANES]) -> uint8x16_t {
        vld1q_u8(p[0])
    }
    #[inline(always)]
    unsafe fn strided<const STRIDE: usize, const OFFSET: usize>(p: *const u8) -> uint8x16_t {
        vld1q_u8(p.add(OFFSET))
    }
    #[inline(always)]
    unsafe fn block_halves(p: *const u8) -> [uint8x16_t; 2] {
        [vld1q_u8(p), vld1q_u8(p.add(16))]
    }
    #[inline(always)]
    unsafe fn repeat(p: *const u8) -> uint8x16_t {
        vld1q_u8(p)
    }
    #[inline(always)]
    unsafe fn and(v: uint8x16_t, mask: u8) -> uint8x16_t {
        vandq_u8(v, vdupq_n_u8(mask))
    }
    #[inline(always)]
    unsafe fn or(v: uint8x16_t, w: uint8x16_t) -> uint8x16_t {
        vorrq_u8(v, w)
    }
    #[inline(always)]
    unsafe fn xor(v: uint8x16_t, mask: u8) -> uint8x16_t {
        veorq_u8(v, vdupq_n_u8(mask))
    }
    #[inline(always)]
    unsafe fn shr(v: uint8x16_t, count: [u32; MAX_LANES]) -> uint8x16_t {
        vshlq_u8(v, vdupq_n_s8(-(count[0] as i8)))
    }
    #[inline(always)]
    unsafe fn shl4(v: uint8x16_t) -> uint8x16_t {
        vshlq_n_u8::<4>(v)
    }
    #[inline(always)]
    unsafe fn lookup(v: uint8x16_t, table: &[u8; 16]) -> uint8x16_t {
        vqtbl1q_u8(vld1q_u8(table.as_ptr()), Self::and(v, 15))
    }
    #[inline(always)]
    unsafe fn repeat_words(words: [u64; 2]) -> uint8x16_t {
        vcombine_u8(vcreate_u8(words[0]), vcreate_u8(words[1]))
    }
    #[inline(always)]
    unsafe fn products(
        codes: uint8x16_t,
        scales: uint8x16_t,
        at: [usize; MAX_LANES],
        factors: &[i16; 8],
        offset: u8,
    ) -> uint8x16_t {
        // Both bytes of a word are the scale, and the upper one does not reach the low bits of a product.
        let scales = vreinterpretq_s16_u8(vqtbl1q_u8(scales, vdupq_n_u8(at[0] as u8)));
        let products = vmovn_u16(vreinterpretq_u16_s16(vmulq_s16(scales, vld1q_s16(factors.as_ptr()))));
        vqtbl1q_u8(vcombine_u8(vadd_u8(products, vdup_n_u8(offset)), vdup_n_u8(0)), codes)
    }
    #[inline(always)]
    unsafe fn pick(v: uint8x16_t, mask: [u8; MAX_LANES], value: u8) -> uint8x16_t {
        vandq_u8(vtstq_u8(v, vdupq_n_u8(mask[0])), vdupq_n_u8(value))
    }
    #[inline(always)]
    unsafe fn spread(bits: [u16; MAX_LANES], value: u8) -> uint8x16_t {
        let [low, high] = bits[0].to_le_bytes();
        let bit = vcreate_u8(u64::from_le_bytes([1, 2, 4, 8, 16, 32, 64, 128]));
        let bytes = vcombine_u8(vdup_n_u8(low), vdup_n_u8(high));
        vandq_u8(vtstq_u8(bytes, vcombine_u8(bit, bit)), vdupq_n_u8(value))
    }

    #[inline(always)]
    unsafe fn dot(_wide: bool, sum: int32x4_t, codes: uint8x16_t, x: uint8x16_t) -> int32x4_t {
        sdot(sum, codes, x)
    }
    #[inline(always)]
    unsafe fn dot_dword(_wide: bool, mut sum: int32x4_t, codes: uint8x16_t, x: uint8x16_t, s: usize) -> int32x4_t {
        match s {
            0 => sdot_dword!(sum, codes, x, 0),
            1 => sdot_dword!(sum, codes, x, 1),
            2 => sdot_dword!(sum, codes, x, 2),
            _ => sdot_dword!(sum, codes, x, 3),
        }
        sum
    }
    #[inline(always)]
    unsafe fn transpose(v: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        let v = v.map(|v| vreinterpretq_u32_u8(v));
        let (a, b) = (vtrn1q_u32(v[0], v[1]), vtrn2q_u32(v[0], v[1]));
        let (c, d) = (vtrn1q_u32(v[2], v[3]), vtrn2q_u32(v[2], v[3]));
        let low = |v: uint32x4_t, w: uint32x4_t| {
            vreinterpretq_u8_u64(vtrn1q_u64(vreinterpretq_u64_u32(v), vreinterpretq_u64_u32(w)))
        };
        let high = |v: uint32x4_t, w: uint32x4_t| {
            vreinterpretq_u8_u64(vtrn2q_u64(vreinterpretq_u64_u32(v), vreinterpretq_u64_u32(w)))
        };
        [low(a, c), low(b, d), high(a, c), high(b, d)]
    }
    #[inline(always)]
    unsafe fn sum_each(v: [int32x4_t; 4]) -> int32x4_t {
        vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]))
    }
    #[inline(always)]
    unsafe fn zip(lo: uint8x16_t, hi: uint8x16_t) -> [uint8x16_t; 2] {
        [vcombine_u8(vget_low_u8(lo), vget_low_u8(hi)), vcombine_u8(vget_high_u8(lo), vget_high_u8(hi))]
    }
    #[inline(always)]
    unsafe fn zip_bytes(v: uint8x16_t, w: uint8x16_t) -> [uint8x16_t; 2] {
        [vzip1q_u8(v, w), vzip2q_u8(v, w)]
    }
    #[inline(always)]
    unsafe fn broadcast(p: *const u8) -> uint8x16_t {
        vreinterpretq_u8_u32(vdupq_n_u32(p.cast::<u32>().read_unaligned()))
    }
    #[inline(always)]
    unsafe fn splat_int(v: i32) -> int32x4_t {
        vdupq_n_s32(v)
    }
    #[inline(always)]
    unsafe fn columns<K: Kind, const REST: bool>(job: &Columns) {
        panels::isa::neon::<K, REST>(job)
    }
    #[inline(always)]
    unsafe fn outputs(job: &Outputs) {
        panels::finish::neon(job)
    }
    #[inline(always)]
    unsafe fn decode<B: Decode>(rows: &[*const u8; 4], block: usize) -> Decoded<Self> {
        source::decode::neon::<B>(rows, block)
    }
    #[inline(always)]
    unsafe fn step<K: Kind, const T: usize>(step: &Step<Self, T>) {
        tiles::isa::neon::<K, T>(step)
    }
    #[inline(always)]
    unsafe fn zero_ints() -> int32x4_t {
        vdupq_n_s32(0)
    }
    #[inline(always)]
    unsafe fn spread_floats(p: *const f32) -> float32x4_t {
        vdupq_n_f32(p.read_unaligned())
    }
    #[inline(always)]
    unsafe fn load_ints(p: *const i32) -> int32x4_t {
        vld1q_s32(p)
    }
    #[inline(always)]
    unsafe fn spread_ints(p: *const i32) -> int32x4_t {
        vdupq_n_s32(p.read_unaligned())
    }
    #[inline(always)]
    unsafe fn add_ints(v: int32x4_t, w: int32x4_t) -> int32x4_t {
        vaddq_s32(v, w)
    }
    #[inline(always)]
    unsafe fn to_floats(v: int32x4_t) -> float32x4_t {
        vcvtq_f32_s32(v)
    }
    #[inline(always)]
    unsafe fn as_floats(v: int32x4_t) -> float32x4_t {
        vreinterpretq_f32_s32(v)
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> float32x4_t {
        vdupq_n_f32(v)
    }
    #[inline(always)]
    unsafe fn load_floats(p: *const f32) -> float32x4_t {
        vld1q_f32(p)
    }
    #[inline(always)]
    unsafe fn store_floats(p: *mut f32, v: float32x4_t) {
        vst1q_f32(p, v)
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> float32x4_t {
        floats(p.cast::<[u16; 4]>().read_unaligned().map(|h| f16::from_bits(h).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> float32x4_t {
        floats(p.cast::<[u16; 4]>().read_unaligned().map(|h| bf16::from_bits(h).to_f32()))
    }
    #[inline(always)]
    unsafe fn mul(v: float32x4_t, w: float32x4_t) -> float32x4_t {
        vmulq_f32(v, w)
    }
    #[inline(always)]
    unsafe fn add(v: float32x4_t, w: float32x4_t) -> float32x4_t {
        vaddq_f32(v, w)
    }
    #[inline(always)]
    unsafe fn mul_add(v: float32x4_t, w: float32x4_t, z: float32x4_t) -> float32x4_t {
        vfmaq_f32(z, v, w)
    }
    #[inline(always)]
    unsafe fn f16_lanes(words: [u64; MAX_LANES]) -> float32x4_t {
        let mut out: float32x4_t;
        asm!(
            "fcvtl {out:v}.4s, {bits:v}.4h",
            out = lateout(vreg) out,
            bits = in(vreg) vcreate_u16(words[0]),
            options(pure, nomem, nostack, preserves_flags)
        );
        out
    }
    #[inline(always)]
    unsafe fn bf16_lanes(words: [u64; MAX_LANES]) -> float32x4_t {
        vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vcreate_u16(words[0]))))
    }
    #[inline(always)]
    unsafe fn words(words: [u64; 2 * MAX_LANES]) -> uint8x16_t {
        vcombine_u8(vcreate_u8(words[0]), vcreate_u8(words[1]))
    }
    #[inline(always)]
    unsafe fn u8_rows(rows: [u32; 4]) -> float32x4_t {
        vcvtq_f32_u32(vandq_u32(vld1q_u32(rows.as_ptr()), vdupq_n_u32(255)))
    }
    #[inline(always)]
    unsafe fn i8_rows(rows: [u32; 4]) -> float32x4_t {
        let top = vshlq_n_s32::<24>(vreinterpretq_s32_u32(vld1q_u32(rows.as_ptr())));
        vcvtq_f32_s32(vshrq_n_s32::<24>(top))
    }
    #[inline(always)]
    unsafe fn fold(v: float32x4_t) -> [f32; 4] {
        let mut out = [0.0; 4];
        vst1q_f32(out.as_mut_ptr(), v);
        out
    }
    #[inline(always)]
    unsafe fn sum(v: float32x4_t) -> f32 {
        let [a, b, c, d] = Self::fold(v);
        (a + c) + (b + d)
    }
}
