//! The few vector operations that the matmul kernels are made of, once for each instruction set.
//!
//! A *step* is what one vector pair covers: [`Simd::LANES`] blocks of 32 values. Its codes lie in two vectors of
//! 16 bytes a lane: `lo` holds the first sixteen values of each block, `hi` the last sixteen. A vector of floats has four
//! places a lane, one for each of four weight rows. So a lane is a block, and a place in it a row, whatever the vectors' width.
//!
//! # Safety
//! Every function of [`Simd`] is unsafe for two reasons only, which its callers in `matmul` uphold: the machine has the
//! instruction set (the implementing type is reached through [`Isa`](super::super::isa::Isa) alone, inside a function compiled for that set),
//! and pointers are valid for the bytes that the function's comment names.

use super::panels::{Columns, Kind, Outputs};
use super::prepare::{Order, Sums};
use super::source::{Codes, Decode, Decoded, Levels, even_signs, q3_k_scales, widened};
use super::tiles::Step;
use crate::format::fp::e4m3_to_f32;
use crate::format::ggml::fp4::e8m0_half;

mod as_bytes;
#[cfg(target_arch = "x86_64")]
mod ask;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
mod by_row;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
pub(super) mod portable;
mod unroll;

/// For each lane i the u16 number i >> shift of four rows.
#[inline(always)]
fn by_lane(rows: [u64; 4], shift: u32) -> [u64; MAX_LANES] {
    four!(|i| {
        let [a, b, c, d] = rows.map(|row| row >> (16 * (i >> shift)) & 0xFFFF);
        a | (b << 16) | (c << 32) | (d << 48)
    })
}

pub(super) use by_row::{ByRow, Nowhere};
pub(super) use unroll::{array, both_halves, every_set, four, initialized, unrolled};

/// Widest vector's lanes: bounds arrays that have one entry a lane.
pub(super) const MAX_LANES: usize = 4;

/// An f32 between 2²³ and 2²⁴ counts in ones: the bits of this one, with an integer below 2²² added, are those of this one plus the integer. Integer sums
/// that begin with these bits need no conversion.
pub(super) const BIAS: f32 = 12_582_912.0;
/// See [`BIAS`].
pub(super) const BIAS_BITS: i32 = BIAS.to_bits() as i32;

/// An instruction set's vectors. See the module's comment for what `unsafe` asks for.
pub(super) trait Simd: Copy + 'static {
    /// Blocks of 32 values in a step: 1, 2 or 4.
    const LANES: usize;
    /// Whether there are registers for tiles of several columns; the results are the same bits.
    const TILED: bool = true;
    /// Vectors of weight rows that share a load of x: what the registers hold.
    const ROW_VECTORS: usize = 1;
    /// Columns of a tile over a panel, for formats with one scale a block and with two: what the registers hold.
    const TILE_COLUMNS: [usize; 2] = [4, 4];
    /// Multiply-adds are fused, and take no more instructions where the third operand stands in memory than a multiplication does: tiles over a panel scale
    /// sums that begin with [`BIAS_BITS`] and take the bias off at once.
    const FUSED: bool = false;
    /// What has to be added to a signed 8-bit weight for [`dot`](Simd::dot) with wide codes: 128 where codes are unsigned there, else 0.
    const WIDE_OFFSET: u8;

    /// 16·LANES bytes.
    type Bytes: Copy;
    /// 4·LANES i32.
    type Ints: Copy;
    /// 4·LANES f32.
    type Floats: Copy;
    /// Sixteen bytes of each of four rows, arranged for [`half_u8`](Simd::half_u8).
    type HalfBytes: Copy;
    /// Level indices of 256 values.
    type Levels: Copy;
    /// What adds up one row of x weight row by weight row.
    type ByRow: ByRow<Self>;

    /// Asks for the cache line at `p`.
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}
    /// Asks for `bytes` bytes from each of these addresses on. They are read once, and need not displace what the outer caches hold.
    #[inline(always)]
    unsafe fn prefetch_once<const N: usize>(_p: [*const u8; N], _bytes: usize) {}
    /// Bytes from 16·LANES bytes at `p`.
    unsafe fn load(p: *const u8) -> Self::Bytes;
    /// To 16·LANES bytes at `p`.
    unsafe fn store(p: *mut u8, v: Self::Bytes);
    /// Lane i: the 16 bytes at `p[i]`; entries from LANES on are not read.
    unsafe fn gather(p: [*const u8; MAX_LANES]) -> Self::Bytes;
    /// Lanes 2i and 2i + 1: the 32 bytes at `p[i]`, for four lanes.
    #[inline(always)]
    unsafe fn gather_pairs(p: [*const u8; 2]) -> Self::Bytes {
        // SAFETY: the caller's promise.
        unsafe { Self::gather(four!(|i| p[i / 2].add(16 * (i % 2)))) }
    }
    /// Lane i: the 16 bytes at `p + i·STRIDE + OFFSET`, a part of a block of STRIDE bytes. 16 ≤ STRIDE ≤ 40.
    unsafe fn strided<const STRIDE: usize, const OFFSET: usize>(p: *const u8) -> Self::Bytes;
    /// The first and the second sixteen bytes of the LANES times 32 bytes at `p`.
    unsafe fn block_halves(p: *const u8) -> [Self::Bytes; 2];
    /// Every lane: the 16 bytes at `p`.
    unsafe fn repeat(p: *const u8) -> Self::Bytes;
    /// `v & mask`, the same mask in every byte.
    unsafe fn and(v: Self::Bytes, mask: u8) -> Self::Bytes;
    /// `v | w`.
    unsafe fn or(v: Self::Bytes, w: Self::Bytes) -> Self::Bytes;
    /// `v ^ mask`, the same mask in every byte.
    unsafe fn xor(v: Self::Bytes, mask: u8) -> Self::Bytes;
    /// Bits of lane i shifted right by `count[i]` < 8; bits may come in from the byte above, so mask the result.
    unsafe fn shr(v: Self::Bytes, count: [u32; MAX_LANES]) -> Self::Bytes;
    /// Lane i: bits 2f and 2f + 1 for f = (first + i) % 4 as codes, which may be left where they are, as 4ᶠ times the codes: see
    /// [`per_field`](Simd::per_field).
    #[inline(always)]
    unsafe fn fields(v: Self::Bytes, first: usize) -> Self::Bytes {
        // SAFETY: the caller runs on this instruction set.
        unsafe { Self::and(Self::shr(v, four!(|i| 2 * ((first + i) % 4) as u32)), 3) }
    }
    /// Divides scales of codes by what [`fields`](Simd::fields) leaves in them; lane i belongs to field i.
    #[inline(always)]
    unsafe fn per_field(scales: Self::Floats) -> Self::Floats {
        scales
    }
    /// Sums of codes from sums of what [`fields`](Simd::fields) leaves; lane i belongs to field first + i.
    #[inline(always)]
    unsafe fn of_fields(sums: Self::Ints, _first: usize) -> Self::Ints {
        sums
    }
    /// Bit first + i of lane i moved to bit TO, all other bits 0.
    #[inline(always)]
    unsafe fn bit_to<const TO: usize>(v: Self::Bytes, first: usize) -> Self::Bytes {
        // SAFETY: the caller runs on this instruction set.
        unsafe { Self::pick(v, four!(|i| 1 << ((first + i) % 8)), 1 << TO) }
    }
    /// Every byte's bits shifted left by 4; bits may come in from the byte below, so the upper four bits of `v` are 0.
    unsafe fn shl4(v: Self::Bytes) -> Self::Bytes;
    /// `table[v & 15]` for each byte.
    unsafe fn lookup(v: Self::Bytes, table: &[u8; 16]) -> Self::Bytes;
    /// Every lane: the words' bytes, lowest first.
    unsafe fn repeat_words(words: [u64; 2]) -> Self::Bytes;
    /// For each code c < 8 of lane i, the low eight bits of `factors[c] · scales[at[i]] + offset`; `scales` are the same in all lanes.
    unsafe fn products(
        codes: Self::Bytes,
        scales: Self::Bytes,
        at: [usize; MAX_LANES],
        factors: &[i16; 8],
        offset: u8,
    ) -> Self::Bytes;
    /// `value` in each byte of lane i that has a bit of `mask[i]`, else 0.
    unsafe fn pick(v: Self::Bytes, mask: [u8; MAX_LANES], value: u8) -> Self::Bytes;
    /// Byte t of lane i: `value` if bit t of `bits[i]` is set, else 0.
    unsafe fn spread(bits: [u16; MAX_LANES], value: u8) -> Self::Bytes;

    /// Lane i: `value` where a bit of u32 number i at `p` is set, for its first and its second sixteen bits.
    #[inline(always)]
    unsafe fn bit_blocks(p: *const u8, value: u8) -> [Self::Bytes; 2] {
        // SAFETY: the caller's promise; lanes from LANES on are not read.
        unsafe {
            let word = |i: usize, h: usize| p.cast::<u16>().add(2 * i + h).read_unaligned();
            let half = |h: usize| Self::spread(four!(|i| if i < Self::LANES { word(i, h) } else { 0 }), value);
            [half(0), half(1)]
        }
    }
    /// [`spread`](Simd::spread) of the u16 of a word, the lowest first.
    #[inline(always)]
    unsafe fn spread_word(bits: u64, value: u8) -> Self::Bytes {
        // SAFETY: the caller runs on this instruction set.
        unsafe { Self::spread(four!(|i| (bits >> (16 * i)) as u16), value) }
    }

    /// Adds to each i32 the products of its four codes with its four activations. `wide` says that codes use all
    /// 256 values (signed + [`WIDE_OFFSET`](Simd::WIDE_OFFSET)), otherwise they are 0..=127. Activations are −127..=127.
    unsafe fn dot(wide: bool, sum: Self::Ints, codes: Self::Bytes, x: Self::Bytes) -> Self::Ints;
    /// [`dot`](Simd::dot) of the codes and dword `s` of each lane of `x`, repeated in its lane.
    unsafe fn dot_dword(wide: bool, sum: Self::Ints, codes: Self::Bytes, x: Self::Bytes, s: usize) -> Self::Ints;
    /// Where several columns share codes, a lane is a weight row and a place in it a block, not the other way round. What belongs to x is then the same in all
    /// lanes, so that a load repeats it and nothing is shuffled. There are four lanes.
    const ROWS_IN_LANES: bool = false;
    /// Place i of lane r of result s: dword s of lane i of `v[r]`. With [`ROWS_IN_LANES`](Self::ROWS_IN_LANES).
    #[inline(always)]
    unsafe fn rows_in_lanes(v: [Self::Bytes; 4]) -> [Self::Bytes; 4] {
        v
    }
    /// Place i of lane j: what was in place j of lane i. With [`ROWS_IN_LANES`](Self::ROWS_IN_LANES).
    #[inline(always)]
    unsafe fn turned(v: Self::Bytes) -> Self::Bytes {
        v
    }
    /// [`turned`](Self::turned) floats.
    #[inline(always)]
    unsafe fn turned_floats(v: Self::Floats) -> Self::Floats {
        v
    }
    /// Every lane: the four floats at `p`. With [`ROWS_IN_LANES`](Self::ROWS_IN_LANES).
    #[inline(always)]
    unsafe fn repeat_floats(_p: *const f32) -> Self::Floats {
        // SAFETY: the caller's promise.
        unsafe { Self::splat(0.0) }
    }
    /// [`repeat_floats`](Self::repeat_floats) of integers.
    #[inline(always)]
    unsafe fn repeat_ints(_p: *const i32) -> Self::Ints {
        // SAFETY: the caller's promise.
        unsafe { Self::zero_ints() }
    }
    /// In each lane, a 4 × 4 transposition of dwords: dword r of result s is dword s of `v[r]`.
    unsafe fn transpose(v: [Self::Bytes; 4]) -> [Self::Bytes; 4];
    /// In each lane, place r: the sum of the four i32 of `v[r]`.
    unsafe fn sum_each(v: [Self::Ints; 4]) -> Self::Ints;
    /// Lane by lane the first eight bytes of `lo` and of `hi`, and the last eight of both.
    unsafe fn zip(lo: Self::Bytes, hi: Self::Bytes) -> [Self::Bytes; 2];
    /// Lane by lane the first eight bytes of `v` and of `w` in turn, and the last eight of both.
    unsafe fn zip_bytes(v: Self::Bytes, w: Self::Bytes) -> [Self::Bytes; 2];
    /// Every dword: the one at `p`.
    unsafe fn broadcast(p: *const u8) -> Self::Bytes;
    /// Transposes lanes: lane j of result i is lane i of `v[j]`, for i, j < LANES.
    #[inline(always)]
    unsafe fn regroup(v: [Self::Bytes; MAX_LANES]) -> [Self::Bytes; MAX_LANES] {
        v
    }
    /// [`regroup`](Simd::regroup) of floats.
    #[inline(always)]
    unsafe fn regroup_floats(v: [Self::Floats; MAX_LANES]) -> [Self::Floats; MAX_LANES] {
        v
    }
    /// All zero.
    unsafe fn zero_ints() -> Self::Ints;
    /// The same value in every place.
    unsafe fn splat_int(v: i32) -> Self::Ints;
    /// v + w.
    unsafe fn add_ints(v: Self::Ints, w: Self::Ints) -> Self::Ints;
    /// The nearest floats.
    unsafe fn to_floats(v: Self::Ints) -> Self::Floats;
    /// The floats that have these bits.
    unsafe fn as_floats(v: Self::Ints) -> Self::Floats;
    /// Integers as floats, from their sums with [`BIAS_BITS`].
    #[inline(always)]
    unsafe fn unbiased(v: Self::Ints) -> Self::Floats {
        // SAFETY: the caller runs on this instruction set.
        unsafe { Self::add(Self::as_floats(v), Self::splat(-BIAS)) }
    }

    /// The same value in every place.
    unsafe fn splat(v: f32) -> Self::Floats;
    /// 4·LANES f32 at `p`.
    unsafe fn load_floats(p: *const f32) -> Self::Floats;
    /// Lane i: four times the f32 at `p + i`.
    unsafe fn spread_floats(p: *const f32) -> Self::Floats;
    /// 4·LANES i32 at `p`.
    unsafe fn load_ints(p: *const i32) -> Self::Ints;
    /// Lane i: four times the i32 at `p + i`.
    unsafe fn spread_ints(p: *const i32) -> Self::Ints;
    /// To 4·LANES f32 at `p`.
    unsafe fn store_floats(p: *mut f32, v: Self::Floats);
    /// 4·LANES f16 at `p`, widened.
    unsafe fn load_f16(p: *const u16) -> Self::Floats;
    /// 4·LANES bf16 at `p`, widened.
    unsafe fn load_bf16(p: *const u16) -> Self::Floats;
    /// v · w.
    unsafe fn mul(v: Self::Floats, w: Self::Floats) -> Self::Floats;
    /// v + w.
    unsafe fn add(v: Self::Floats, w: Self::Floats) -> Self::Floats;
    /// v · w + z, fused where the set has it.
    unsafe fn mul_add(v: Self::Floats, w: Self::Floats, z: Self::Floats) -> Self::Floats;
    /// Lane i: the four f16 of `words[i]`, lowest first.
    unsafe fn f16_lanes(words: [u64; MAX_LANES]) -> Self::Floats;
    /// Lane i: the four bf16 of `words[i]`, lowest first.
    unsafe fn bf16_lanes(words: [u64; MAX_LANES]) -> Self::Floats;
    /// Place r of lane i: f16 number i >> shift of `rows[r]`.
    #[inline(always)]
    unsafe fn f16_groups(rows: [u64; 4], shift: u32) -> Self::Floats {
        // SAFETY: the caller runs on this instruction set.
        unsafe { Self::f16_lanes(by_lane(rows, shift)) }
    }
    /// Place r of lane i: the f16 at `p[r] + i·STRIDE + OFFSET`, in a block of STRIDE bytes.
    #[inline(always)]
    unsafe fn strided_f16<const STRIDE: usize, const OFFSET: usize>(p: [*const u8; 4]) -> Self::Floats {
        // SAFETY: the caller's promise; lanes from LANES on are not read.
        unsafe {
            Self::f16_lanes(four!(|i| {
                if i < Self::LANES {
                    let [a, b, c, d] = four!(|r| p[r].add(i * STRIDE + OFFSET).cast::<u16>().read_unaligned() as u64);
                    a | (b << 16) | (c << 32) | (d << 48)
                } else {
                    0
                }
            }))
        }
    }
    /// `nibbles` with 16 added to those bytes of lane i for which the u32 at `p + i·STRIDE + OFFSET`, in a block of STRIDE bytes, has a bit set: its first
    /// sixteen bits belong to the first vector.
    #[inline(always)]
    unsafe fn strided_fifth_bits<const STRIDE: usize, const OFFSET: usize>(
        nibbles: [Self::Bytes; 2],
        p: *const u8,
    ) -> [Self::Bytes; 2] {
        // SAFETY: the caller's promise; lanes from LANES on are not read.
        unsafe {
            let word = |i: usize, half: usize| p.add(i * STRIDE + OFFSET + 2 * half).cast::<u16>().read_unaligned();
            let bits = |half: usize| four!(|i| if i < Self::LANES { word(i, half) } else { 0 });
            [Self::or(nibbles[0], Self::spread(bits(0), 16)), Self::or(nibbles[1], Self::spread(bits(1), 16))]
        }
    }
    /// [`f16_groups`](Simd::f16_groups) of bf16.
    #[inline(always)]
    unsafe fn bf16_groups(rows: [u64; 4], shift: u32) -> Self::Floats {
        // SAFETY: the caller runs on this instruction set.
        unsafe { Self::bf16_lanes(by_lane(rows, shift)) }
    }
    /// Place r of lane i of result s: number (s·LANES + i) / 2 of the f16 or bf16 at `p[r]`.
    #[inline(always)]
    unsafe fn groups_of_64(p: [*const u8; 4], f16: bool) -> [Self::Floats; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            four!(|s| {
                let lane = |i: usize| {
                    let word = |r: usize| p[r].cast::<u16>().add((s * Self::LANES + i) / 2).read_unaligned() as u64;
                    if i < Self::LANES { word(0) | (word(1) << 16) | (word(2) << 32) | (word(3) << 48) } else { 0 }
                };
                let words = four!(|i| lane(i));
                if f16 { Self::f16_lanes(words) } else { Self::bf16_lanes(words) }
            })
        }
    }
    /// Place r of lane i: byte i of `rows[r]`, unsigned.
    unsafe fn u8_rows(rows: [u32; 4]) -> Self::Floats;
    /// Place r of lane i: byte i of `rows[r]`, signed.
    unsafe fn i8_rows(rows: [u32; 4]) -> Self::Floats;
    /// Sixteen bytes of each of four rows: byte 2j + h belongs to half h of sub-block j.
    unsafe fn half_bytes(rows: [[u64; 2]; 4]) -> Self::HalfBytes;
    /// The sixteen signed scales of Q3_K from twelve bytes in the middle of the sixteen at each pointer.
    #[inline(always)]
    unsafe fn q3_k_scales(p: [*const u8; 4]) -> Self::HalfBytes {
        // SAFETY: the caller's promise.
        unsafe { Self::half_bytes(four!(|r| q3_k_scales(p[r].add(2)))) }
    }
    /// Place r of every lane: the f16 at `p[r]`, and the one behind it.
    #[inline(always)]
    unsafe fn f16_pairs(p: [*const u8; 4]) -> [Self::Floats; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let words = |i: usize| {
                let [a, b, c, d] = four!(|r| p[r].cast::<u16>().add(i).read_unaligned() as u64);
                [a | (b << 16) | (c << 32) | (d << 48); MAX_LANES]
            };
            [Self::f16_lanes(words(0)), Self::f16_lanes(words(1))]
        }
    }
    /// The low and the high four bits of each byte.
    unsafe fn half_nibbles(v: Self::HalfBytes) -> (Self::HalfBytes, Self::HalfBytes);
    /// Place r of lane i: row r's byte of half `half` of sub-block s·LANES + i, unsigned.
    unsafe fn half_u8(v: Self::HalfBytes, s: usize, half: usize) -> Self::Floats;
    /// [`half_u8`](Simd::half_u8), signed.
    unsafe fn half_i8(v: Self::HalfBytes, s: usize, half: usize) -> Self::Floats;
    /// [`half_u8`](Simd::half_u8) of E4M3 numbers.
    unsafe fn half_e4m3(v: Self::HalfBytes, s: usize, half: usize) -> Self::Floats;
    /// Place r of lane i of result h: half of the E4M3 number in byte 2i + h of `rows[r]`, its sign ignored and all ones being 0.
    #[inline(always)]
    unsafe fn unsigned_e4m3(rows: [u64; 4]) -> [Self::Floats; 2] {
        let unsigned = |word: u64| {
            let word = word & 0x7F7F_7F7F_7F7F_7F7F;
            let ones = (word + 0x0101_0101_0101_0101) & 0x8080_8080_8080_8080;
            word & !(ones - (ones >> 7))
        };
        // SAFETY: the caller runs on this instruction set.
        unsafe {
            let bytes = Self::half_bytes(four!(|r| [unsigned(rows[r]), 0]));
            let half = Self::splat(0.5);
            [Self::mul(Self::half_e4m3(bytes, 0, 0), half), Self::mul(Self::half_e4m3(bytes, 0, 1), half)]
        }
    }
    /// 4·LANES E4M3 numbers at `p`.
    #[inline(always)]
    unsafe fn load_e4m3(p: *const u8) -> Self::Floats {
        let mut values = [0.0; 4 * MAX_LANES];
        // SAFETY: as many bytes stand at `p`, and the array has as many places; the caller runs on this instruction set.
        unsafe {
            for (i, value) in values.iter_mut().enumerate().take(4 * Self::LANES) {
                *value = e4m3_to_f32(*p.add(i));
            }
            Self::load_floats(values.as_ptr())
        }
    }
    /// 16·LANES E4M3 numbers at `p`.
    #[inline(always)]
    unsafe fn load_e4m3_four(p: *const u8) -> [Self::Floats; 4] {
        // SAFETY: the caller's promise.
        unsafe { four!(|i| Self::load_e4m3(p.add(4 * Self::LANES * i))) }
    }
    /// Place r of lane i: 2 to the power of byte i of `rows[r]` − 128.
    #[inline(always)]
    unsafe fn exp2_rows(rows: [u32; 4]) -> Self::Floats {
        let mut values = [0.0; 4 * MAX_LANES];
        for i in 0..Self::LANES {
            for r in 0..4 {
                values[4 * i + r] = e8m0_half((rows[r] >> (8 * i)) as u8);
            }
        }
        // SAFETY: the array has 4·LANES places; the caller runs on this instruction set.
        unsafe { Self::load_floats(values.as_ptr()) }
    }
    /// Lanes below `count` of `v`, the others of `w`. Sets of one lane have no use for it.
    #[inline(always)]
    unsafe fn lanes_of(_count: usize, v: Self::Floats, _w: Self::Floats) -> Self::Floats {
        v
    }
    /// Place r: the sum over the lanes, always in the same order, and in the same one if they have moved around by some lanes.
    unsafe fn fold(v: Self::Floats) -> [f32; 4];
    /// The sum over the vectors of all lanes, in the order of [`fold`](Simd::fold).
    #[inline(always)]
    unsafe fn fold_lanes(v: [Self::Floats; MAX_LANES]) -> Self::Floats {
        v[0]
    }
    /// The loop over a panel, compiled once for each kind of format; REST: in tiles of fewer columns.
    unsafe fn columns<K: Kind, const REST: bool>(job: &Columns);
    /// The sums of a panel's loop, added up and written.
    unsafe fn outputs(job: &Outputs);
    /// One step of some columns, compiled once for each kind of format.
    unsafe fn step<K: Kind, const T: usize>(step: &Step<Self, T>);
    /// The sum of all places, always in the same order.
    unsafe fn sum(v: Self::Floats) -> f32;

    /// The words' bytes, lowest first; words from 2·LANES on are not used.
    unsafe fn words(words: [u64; 2 * MAX_LANES]) -> Self::Bytes;

    /// Eight values of `BITS` bits, lowest first, as bytes.
    #[inline(always)]
    unsafe fn expand<const BITS: usize>(word: u64) -> u64 {
        if BITS == 8 {
            return word;
        }
        let mut bytes = 0;
        for j in 0..8 {
            bytes |= ((word >> (BITS * j)) & ((1 << BITS) - 1)) << (8 * j);
        }
        bytes
    }

    /// The values of a step (first and second halves of its blocks) from 4·BITS·LANES bytes of a little-endian stream of `BITS`-bit values.
    #[inline(always)]
    unsafe fn unpack<const BITS: usize>(p: *const u8) -> [Self::Bytes; 2] {
        let bytes = 4 * BITS * Self::LANES;
        // SAFETY: reads of eight bytes are moved back where they would end behind the stream.
        unsafe {
            let mut octets = [0; 4 * MAX_LANES];
            for (o, octet) in octets.iter_mut().enumerate().take(4 * Self::LANES) {
                let at = o * BITS;
                let word = if bytes < 8 {
                    p.cast::<u32>().read_unaligned() as u64 >> (8 * at)
                } else {
                    let from = at.min(bytes - 8);
                    p.add(from).cast::<u64>().read_unaligned() >> (8 * (at - from))
                };
                *octet = Self::expand::<BITS>(word);
            }
            let half = |h: usize| {
                let o = |i: usize| octets[4 * (i / 2) + 2 * h + i % 2];
                [o(0), o(1), o(2), o(3), o(4), o(5), o(6), o(7)]
            };
            [Self::words(half(0)), Self::words(half(1))]
        }
    }

    /// A block of four rows of a format with tables, compiled once for each.
    unsafe fn decode<B: Decode>(rows: &[*const u8; 4], block: usize) -> Decoded<Self>;

    /// Eight levels of two bits for each of 32 indices, four to a word: those in the table's entry.
    unsafe fn levels2<const POINTS: usize>(table: &[u16; POINTS], indices: &[u64; 8]) -> Self::Levels;
    /// Four levels of three bits for each of 64 indices.
    unsafe fn levels3<const POINTS: usize>(table: &[u16; POINTS], indices: &[u64; 16]) -> Self::Levels;
    /// [`levels2`](Simd::levels2) of a table with four bits a level.
    unsafe fn levels4<const POINTS: usize>(table: &[u32; POINTS], indices: &[u64; 8]) -> Self::Levels;
    /// Indices of more than eight bits, four to a word: `low`, and above it `BITS` bits of `high[j]`, at PITCH·l for index l of word j.
    #[inline(always)]
    unsafe fn long_indices<const BITS: u32, const PITCH: usize>(low: &[u8; 32], high: [u16; 8]) -> [u64; 8] {
        let mut indices = [0; 8];
        for (index, (low, high)) in indices.iter_mut().zip(low.as_chunks::<4>().0.iter().zip(high)) {
            let mask = (1 << BITS) - 1;
            let above = |l: usize| ((high as u64 >> (PITCH * l)) & mask) << (16 * l + 8);
            *index = widened(u32::from_le_bytes(*low) as u64) | above(0) | above(1) | above(2) | above(3);
        }
        indices
    }
    /// A byte for the four highest bits of each.
    #[inline(always)]
    unsafe fn top_nibbles(v: [u32; 8]) -> u64 {
        u64::from_le_bytes(v.map(|v| (v >> 28) as u8))
    }
    /// The digits in the 52 bytes of a block of TQ1_0 at `p`.
    unsafe fn digits(p: *const u8) -> Self::Levels;
    /// A half's levels at step s of a block, in the lowest bits; any bits may stand above.
    unsafe fn levels_at(levels: &Self::Levels, kind: Levels, s: usize, half: usize) -> Self::Bytes;
    /// A half's digits at step s of a block of TQ1_0; those of the first step as [`fields`](Simd::fields) leaves them.
    #[inline(always)]
    unsafe fn digits_at(levels: &Self::Levels, s: usize, half: usize) -> Self::Bytes {
        // SAFETY: the caller runs on this instruction set.
        unsafe { Self::and(Self::levels_at(levels, Levels::Digits, s, half), 3) }
    }
    /// The codes of levels, those with a sign for set bits: a u16 of bits a lane.
    #[inline(always)]
    unsafe fn level_codes(levels: Self::Bytes, signs: u64, codes: &Codes) -> Self::Bytes {
        // SAFETY: the caller runs on this instruction set.
        unsafe { Self::lookup(Self::or(levels, Self::spread_word(signs, 8)), &codes.codes) }
    }
    /// Signs by half: u16 number i of word 2g + h has half h of sub-block 4g + i.
    #[inline(always)]
    unsafe fn sign_words(signs: [u32; 8]) -> [u64; 4] {
        four!(|w| (0..4).rfold(0, |bits, i| (bits << 16) | (signs[w / 2 * 4 + i] >> (16 * (w % 2)) & 0xFFFF) as u64))
    }
    /// For four 7-bit sign codes each, the low 28 bits of a word: bytes with an eighth bit that makes the number of signs even.
    #[inline(always)]
    unsafe fn even_signs(codes: [u32; 8]) -> [u32; 8] {
        codes.map(even_signs)
    }

    /// The largest of |x|, infinite or NaN if one of them is.
    #[inline(always)]
    unsafe fn largest(x: &[f32; 32]) -> f32 {
        // Magnitudes compare as integers; so do infinity and NaN, which are above all others.
        let mut largest = [0; 8];
        for (j, x) in x.iter().enumerate() {
            largest[j % 8] = (x.to_bits() & 0x7FFF_FFFF).max(largest[j % 8]);
        }
        f32::from_bits(largest.into_iter().fold(0, u32::max))
    }

    /// The record of 32·LANES values in one column, as [`prepare`](super::prepare) describes it; false, and nothing written, where this set has no faster
    /// way or the values need care.
    #[inline(always)]
    unsafe fn quantize(_x: *const f32, _record: *mut u8, _halves: bool, _sums: Sums, _order: Order) -> bool {
        false
    }

    /// Rounds |x| ≤ 127.5 to the nearest integers, ties to even: writes them as i8, leaves x − code in x, and returns the sums of the
    /// first and last sixteen codes.
    #[inline(always)]
    unsafe fn round(x: &mut [f32; 32], codes: &mut [u8; 32]) -> [i32; 2] {
        // Adding 1.5·2²³ leaves the integer in the low bits.
        let mut sums = [0; 2];
        for (j, (x, code)) in x.iter_mut().zip(codes).enumerate() {
            let integer = (*x + BIAS).to_bits() as i32 - BIAS_BITS;
            *code = integer as u8;
            *x -= integer as f32;
            sums[j / 16] += integer;
        }
        sums
    }
}
