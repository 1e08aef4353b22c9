//! Plain Rust with one lane of 16 bytes; the compiler makes the baseline's vectors of it.
#![allow(unsafe_op_in_unsafe_fn)] // The contract of all of them stands at `simd`.

use half::{bf16, f16};

use super::super::panels::{self, Columns, Kind, Outputs};
use super::super::source::{self, Decode, Decoded};
use super::super::tiles::{self, Step};
use super::as_bytes::{half_bytes_as_words, levels_as_bytes};
use super::{MAX_LANES, Simd};

/// See the module's comment.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map<T: Copy, U>(v: [T; 4], f: impl Fn(T) -> U) -> [U; 4] {
    v.map(f)
}

#[inline(always)]
fn zip<T: Copy>(v: [T; 4], w: [T; 4], f: impl Fn(T, T) -> T) -> [T; 4] {
    std::array::from_fn(|i| f(v[i], w[i]))
}

impl Simd for Portable {
    const LANES: usize = 1;
    const TILED: bool = false;
    const WIDE_OFFSET: u8 = 0;
    type Bytes = [u8; 16];
    type Ints = [i32; 4];
    type Floats = [f32; 4];
    type ByRow = super::Nowhere;
    half_bytes_as_words!();
    levels_as_bytes!();

    #[inline(always)]
    unsafe fn load(p: *const u8) -> [u8; 16] {
        p.cast::<[u8; 16]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, v: [u8; 16]) {
        p.cast::<[u8; 16]>().write_unaligned(v)
    }
    #[inline(always)]
    unsafe fn gather(p: [*const u8; MAX_LANES]) -> [u8; 16] {
        Self::load(p[0])
    }
    #[inline(always)]
    unsafe fn strided<const STRIDE: usize, const OFFSET: usize>(p: *const u8) -> [u8; 16] {
        Self::load(p.add(OFFSET))
    }
    #[inline(always)]
    unsafe fn block_halves(p: *const u8) -> [[u8; 16]; 2] {
        [Self::load(p), Self::load(p.add(16))]
    }
    #[inline(always)]
    unsafe fn repeat(p: *const u8) -> [u8; 16] {
        Self::load(p)
    }
    #[inline(always)]
    unsafe fn and(v: [u8; 16], mask: u8) -> [u8; 16] {
        v.map(|b| b & mask)
    }
    #[inline(always)]
    unsafe fn or(v: [u8; 16], w: [u8; 16]) -> [u8; 16] {
        std::array::from_fn(|i| v[i] | w[i])
    }
    #[inline(always)]
    unsafe fn xor(v: [u8; 16], mask: u8) -> [u8; 16] {
        v.map(|b| b ^ mask)
    }
    #[inline(always)]
    unsafe fn shr(v: [u8; 16], count: [u32; MAX_LANES]) -> [u8; 16] {
        v.map(|b| b >> count[0])
    }
    #[inline(always)]
    unsafe fn shl4(v: [u8; 16]) -> [u8; 16] {
        v.map(|b| b << 4)
    }
    #[inline(always)]
    unsafe fn lookup(v: [u8; 16], table: &[u8; 16]) -> [u8; 16] {
        v.map(|b| table[(b & 15) as usize])
    }
    #[inline(always)]
    unsafe fn repeat_words(words: [u64; 2]) -> [u8; 16] {
        std::array::from_fn(|i| words[i / 8].to_le_bytes()[i % 8])
    }
    #[inline(always)]
    unsafe fn products(
        codes: [u8; 16],
        scales: [u8; 16],
        at: [usize; MAX_LANES],
        factors: &[i16; 8],
        offset: u8,
    ) -> [u8; 16] {
        codes.map(|c| (factors[c as usize % 8] as u8).wrapping_mul(scales[at[0]]).wrapping_add(offset))
    }
    #[inline(always)]
    unsafe fn pick(v: [u8; 16], mask: [u8; MAX_LANES], value: u8) -> [u8; 16] {
        v.map(|b| if b & mask[0] != 0 { value } else { 0 })
    }
    #[inline(always)]
    unsafe fn spread(bits: [u16; MAX_LANES], value: u8) -> [u8; 16] {
        std::array::from_fn(|t| if (bits[0] >> t) & 1 == 1 { value } else { 0 })
    }

    #[inline(always)]
    unsafe fn dot(_wide: bool, sum: [i32; 4], codes: [u8; 16], x: [u8; 16]) -> [i32; 4] {
        // Codes up to 127 and signed codes are both i8 here.
        std::array::from_fn(|i| {
            (4 * i..4 * i + 4).fold(sum[i], |sum, j| sum + (codes[j] as i8 as i16 * x[j] as i8 as i16) as i32)
        })
    }
    #[inline(always)]
    unsafe fn dot_dword(wide: bool, sum: [i32; 4], codes: [u8; 16], x: [u8; 16], s: usize) -> [i32; 4] {
        Self::dot(wide, sum, codes, std::array::from_fn(|i| x[4 * s + i % 4]))
    }
    #[inline(always)]
    unsafe fn transpose(v: [[u8; 16]; 4]) -> [[u8; 16]; 4] {
        std::array::from_fn(|s| std::array::from_fn(|i| v[i / 4][4 * s + i % 4]))
    }
    #[inline(always)]
    unsafe fn sum_each(v: [[i32; 4]; 4]) -> [i32; 4] {
        map(v, |v| v[0] + v[1] + v[2] + v[3])
    }
    #[inline(always)]
    unsafe fn zip(lo: [u8; 16], hi: [u8; 16]) -> [[u8; 16]; 2] {
        [0, 8].map(|first| std::array::from_fn(|i| if i < 8 { lo[first + i] } else { hi[first + i - 8] }))
    }
    #[inline(always)]
    unsafe fn zip_bytes(v: [u8; 16], w: [u8; 16]) -> [[u8; 16]; 2] {
        [0, 8].map(|first| std::array::from_fn(|i| if i % 2 == 0 { v[first + i / 2] } else { w[first + i / 2] }))
    }
    #[inline(always)]
    unsafe fn broadcast(p: *const u8) -> [u8; 16] {
        std::array::from_fn(|i| *p.add(i % 4))
    }
    #[inline(always)]
    unsafe fn splat_int(v: i32) -> [i32; 4] {
        [v; 4]
    }
    #[inline(always)]
    unsafe fn columns<K: Kind, const REST: bool>(job: &Columns) {
        panels::isa::portable::<K, REST>(job)
    }
    #[inline(always)]
    unsafe fn outputs(job: &Outputs) {
        panels::finish::portable(job)
    }
    #[inline(always)]
    unsafe fn decode<B: Decode>(rows: &[*const u8; 4], block: usize) -> Decoded<Self> {
        source::decode::portable::<B>(rows, block)
    }
    #[inline(always)]
    unsafe fn step<K: Kind, const T: usize>(step: &Step<Self, T>) {
        tiles::isa::portable::<K, T>(step)
    }
    #[inline(always)]
    unsafe fn zero_ints() -> [i32; 4] {
        [0; 4]
    }
    #[inline(always)]
    unsafe fn spread_floats(p: *const f32) -> [f32; 4] {
        [p.read_unaligned(); 4]
    }
    #[inline(always)]
    unsafe fn load_ints(p: *const i32) -> [i32; 4] {
        p.cast::<[i32; 4]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn spread_ints(p: *const i32) -> [i32; 4] {
        [p.read_unaligned(); 4]
    }
    #[inline(always)]
    unsafe fn add_ints(v: [i32; 4], w: [i32; 4]) -> [i32; 4] {
        zip(v, w, |v, w| v + w)
    }
    #[inline(always)]
    unsafe fn to_floats(v: [i32; 4]) -> [f32; 4] {
        map(v, |v| v as f32)
    }
    #[inline(always)]
    unsafe fn as_floats(v: [i32; 4]) -> [f32; 4] {
        map(v, |v| f32::from_bits(v as u32))
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> [f32; 4] {
        [v; 4]
    }
    #[inline(always)]
    unsafe fn load_floats(p: *const f32) -> [f32; 4] {
        p.cast::<[f32; 4]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store_floats(p: *mut f32, v: [f32; 4]) {
        p.cast::<[f32; 4]>().write_unaligned(v)
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> [f32; 4] {
        map(p.cast::<[u16; 4]>().read_unaligned(), |h| f16::from_bits(h).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> [f32; 4] {
        map(p.cast::<[u16; 4]>().read_unaligned(), |h| bf16::from_bits(h).to_f32())
    }
    #[inline(always)]
    unsafe fn mul(v: [f32; 4], w: [f32; 4]) -> [f32; 4] {
        zip(v, w, |v, w| v * w)
    }
    #[inline(always)]
    unsafe fn add(v: [f32; 4], w: [f32; 4]) -> [f32; 4] {
        zip(v, w, |v, w| v + w)
    }
    #[inline(always)]
    unsafe fn mul_add(v: [f32; 4], w: [f32; 4], z: [f32; 4]) -> [f32; 4] {
        Self::add(Self::mul(v, w), z)
    }
    #[inline(always)]
    unsafe fn f16_lanes(words: [u64; MAX_LANES]) -> [f32; 4] {
        std::array::from_fn(|r| f16::from_bits((words[0] >> (16 * r)) as u16).to_f32())
    }
    #[inline(always)]
    unsafe fn bf16_lanes(words: [u64; MAX_LANES]) -> [f32; 4] {
        std::array::from_fn(|r| bf16::from_bits((words[0] >> (16 * r)) as u16).to_f32())
    }
    #[inline(always)]
    unsafe fn words(words: [u64; 2 * MAX_LANES]) -> [u8; 16] {
        (words[0] as u128 | ((words[1] as u128) << 64)).to_le_bytes()
    }
    #[inline(always)]
    unsafe fn u8_rows(rows: [u32; 4]) -> [f32; 4] {
        map(rows, |r| r as u8 as f32)
    }
    #[inline(always)]
    unsafe fn i8_rows(rows: [u32; 4]) -> [f32; 4] {
        map(rows, |r| r as i8 as f32)
    }
    #[inline(always)]
    unsafe fn fold(v: [f32; 4]) -> [f32; 4] {
        v
    }
    #[inline(always)]
    unsafe fn sum(v: [f32; 4]) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }
}
