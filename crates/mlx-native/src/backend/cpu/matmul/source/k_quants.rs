//! GGML formats of 256-value blocks made of bit fields. A block is 8/LANES steps, staged together; lane i of step s is its sub-block s·LANES + i of
//! 32 values.
#![allow(non_camel_case_types)]

use super::super::Weight;
use super::super::rowwise::Rowwise;
use super::super::simd::{ByRow, MAX_LANES, Simd, both_halves, four};
use super::blocks::{Rows, iq4_codes, joined, nibble_bytes, prefetch};
use super::{FOLDED_START, Scales, Source};

/// Four rows at a block, with what is decoded for the block as a whole.
pub(in super::super) struct Stage<T> {
    p: [*const u8; 4],
    scales: T,
}

/// For each row, N times a byte for each 32 values.
type Words<const N: usize> = [[u64; N]; 4];

/// Lane i's sub-block at step s.
#[inline(always)]
fn sub_block<S: Simd>(s: usize, i: usize) -> usize {
    s * S::LANES + i
}

/// For each row, the bytes of the s-th step out of the stage's n-th eight.
#[inline(always)]
fn step_bytes<S: Simd, const N: usize>(stage: &Stage<Words<N>>, n: usize, s: usize) -> [u32; 4] {
    four!(|r| (stage.scales[r][n] >> (8 * S::LANES * s)) as u32)
}

/// 16 bytes for each lane, at what `offset` gives for the lane's sub-block.
#[inline(always)]
unsafe fn gather<S: Simd>(p: *const u8, s: usize, offset: impl Fn(usize) -> usize) -> S::Bytes {
    // SAFETY: offsets lie within the block; lanes from LANES on are not read.
    unsafe { S::gather(four!(|i| p.wrapping_add(offset(sub_block::<S>(s, i) % 8)))) }
}

/// `f(sub-block)` for each lane.
#[inline(always)]
fn per_lane<S: Simd, T>(s: usize, f: impl Fn(usize) -> T) -> [T; MAX_LANES] {
    four!(|i| f(sub_block::<S>(s, i) % 8))
}

/// The f16 at byte `offset` of four rows' blocks, in every lane.
#[inline(always)]
unsafe fn block_scale<S: Simd>(p: &[*const u8; 4], offset: usize) -> S::Floats {
    // SAFETY: the field lies within the block.
    unsafe { S::f16_lanes([joined(four!(|r| p[r].add(offset).cast::<u16>().read_unaligned())); MAX_LANES]) }
}

/// Little-endian u64 at `p`.
#[inline(always)]
unsafe fn word(p: *const u8) -> u64 {
    // SAFETY: the caller's field lies within the block.
    unsafe { p.cast::<u64>().read_unaligned() }
}

/// [`Source::add_block`] of one row of x after the other, by a function of the instruction set, for blocks of so many bytes.
macro_rules! add_block {
    ($bytes:expr, $add:ident) => {
        #[inline(always)]
        unsafe fn add_block<const M: usize>(
            &self,
            rows: &Self::Rows,
            block: usize,
            x: [*const u8; M],
            mut totals: [[S::Floats; 4]; M],
        ) -> [[S::Floats; 4]; M] {
            for (totals, x) in totals.iter_mut().zip(x) {
                // SAFETY: the block lies within the rows.
                *totals = unsafe { S::ByRow::$add(four!(|r| rows[r].add(block * $bytes)), x.cast(), *totals) };
            }
            totals
        }
    };
}

/// The parts of [`Source`] that all formats of 256-value blocks share; `$decode` makes the stage's scales from pointers to the blocks.
macro_rules! block_source {
    ($name:ident, $bytes:literal, $scales:ty, |$p:ident| $decode:expr) => {
        const STEPS: usize = 8 / S::LANES;
        const STEP_BYTES: usize = $bytes * S::LANES / 8;
        const TAILS: bool = false;
        type Rows = [*const u8; 4];
        type Stage = Stage<$scales>;

        #[inline(always)]
        unsafe fn new(weight: &Weight, k: usize) -> Self {
            $name(Rows::new(weight, k, 256, $bytes))
        }
        #[inline(always)]
        unsafe fn rows(&self, rows: [usize; 4]) -> Self::Rows {
            // SAFETY: the caller's rows exist.
            unsafe { self.0.at(rows) }
        }
        #[inline(always)]
        unsafe fn prefetch(&self, rows: &Self::Rows, step: usize) {
            // SAFETY: any address may be prefetched.
            unsafe { prefetch::<S>(rows, step / (8 / S::LANES) * $bytes, $bytes) }
        }
        #[inline(always)]
        unsafe fn stage<const FULL: bool>(&self, rows: &Self::Rows, step: usize) -> Self::Stage {
            // SAFETY: the block lies within the row, and `$decode` reads fields of it.
            unsafe {
                let $p = four!(|r| rows[r].add(step / (8 / S::LANES) * $bytes));
                Stage { p: $p, scales: $decode }
            }
        }
    };
}

/// Q2_K: per 16 values d·(scale & 15)·q − dmin·(scale >> 4).
pub(in super::super) struct Q2_K(Rows);
/// Q3_K: per 16 values d·(scale − 32)·(q − 4).
pub(in super::super) struct Q3_K(Rows);
/// Q4_K: per 32 values d·scale·q − dmin·min.
pub(in super::super) struct Q4_K(Rows);
/// Q5_K: Q4_K with five bits.
pub(in super::super) struct Q5_K(Rows);
/// Q6_K: per 16 values d·scale·(q − 32).
pub(in super::super) struct Q6_K(Rows);
/// IQ4_XS: per 32 values d·(scale − 32)·K\[q\].
pub(in super::super) struct IQ4_XS(Rows);
/// TQ2_0: d·(q − 1).
pub(in super::super) struct TQ2_0(Rows);

const NIBBLES: u64 = 0x0F0F_0F0F_0F0F_0F0F;

/// Sixteen bytes at `offset` of four rows' blocks, by half.
#[inline(always)]
unsafe fn half_bytes<S: Simd>(p: &[*const u8; 4], offset: usize) -> S::HalfBytes {
    // SAFETY: the field lies within the block.
    unsafe { S::half_bytes(four!(|r| [word(p[r].add(offset)), word(p[r].add(offset + 8))])) }
}

/// Two-bit fields of Q2_K, Q3_K and TQ2_0: sub-block j is bits 2·(j % 4) of 32 bytes at 32·(j / 4).
#[inline(always)]
unsafe fn two_bits<S: Simd>(p: *const u8, s: usize, half: usize) -> S::Bytes {
    // SAFETY: 64 bytes of fields stand at `p`.
    unsafe {
        // All lanes of a step are sub-blocks of the same 32 bytes.
        let bytes = S::repeat(p.add(s * S::LANES / 4 * 32 + half));
        S::and(S::shr(bytes, per_lane::<S, _>(s, |j| 2 * (j % 4) as u32)), 3)
    }
}

impl<S: Simd> Source<S> for TQ2_0 {
    const SPREAD: bool = true;
    const OFFSET: i32 = 1;
    block_source!(TQ2_0, 66, (), |_p| ());

    #[inline(always)]
    fn spans(&self) -> bool {
        true
    }

    #[inline(always)]
    unsafe fn scales(&self, stage: &Self::Stage, _: usize) -> Scales<S> {
        // SAFETY: the staged blocks exist.
        unsafe { Scales::plain(block_scale::<S>(&stage.p, 64)) }
    }
    #[inline(always)]
    unsafe fn codes(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2] {
        // SAFETY: the staged blocks exist.
        unsafe { both_halves!(|half| two_bits::<S>(stage.p[r], s, half)) }
    }
    #[inline(always)]
    unsafe fn multiples(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2] {
        // SAFETY: the staged blocks exist.
        unsafe {
            let p = stage.p[r].add(s * S::LANES / 4 * 32);
            both_halves!(|half| S::fields(S::repeat(p.add(half)), s * S::LANES))
        }
    }
    #[inline(always)]
    unsafe fn of_multiples(sums: S::Ints, s: usize) -> S::Ints {
        // SAFETY: the caller runs on S's instruction set.
        unsafe { S::of_fields(sums, s * S::LANES) }
    }
}

impl<S: Simd> Source<S> for Q2_K {
    const SPREAD: bool = true;
    const HALVES: bool = true;
    const MINS: bool = true;
    const FOLDED: bool = true;
    const ROWWISE: Option<Rowwise> = if S::ByRow::THERE { Some(Rowwise::TwoBits) } else { None };
    block_source!(Q2_K, 84, S::HalfBytes, |p| half_bytes::<S>(&p, 0));
    add_block!(84, add_q2_k);

    #[inline(always)]
    unsafe fn scales(&self, stage: &Self::Stage, s: usize) -> Scales<S> {
        // SAFETY: the staged blocks exist.
        unsafe {
            let [d, min] = S::f16_pairs(four!(|r| stage.p[r].add(80)));
            let d = S::per_field(d);
            let min = S::mul(min, S::splat(-1.0));
            let (low, high) = S::half_nibbles(stage.scales);
            Scales {
                scale: [S::mul(S::half_u8(low, s, 0), d), S::mul(S::half_u8(low, s, 1), d)],
                min: [S::mul(S::half_u8(high, s, 0), min), S::mul(S::half_u8(high, s, 1), min)],
            }
        }
    }
    #[inline(always)]
    unsafe fn codes(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2] {
        // SAFETY: the staged blocks exist.
        unsafe {
            let p = stage.p[r].add(16 + s * S::LANES / 4 * 32);
            both_halves!(|half| S::fields(S::repeat(p.add(half)), s * S::LANES))
        }
    }
    #[inline(always)]
    fn spans(&self) -> bool {
        true
    }
    #[inline(always)]
    unsafe fn folded(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2] {
        // SAFETY: the staged blocks exist. Products are 45 at most.
        unsafe {
            let p = stage.p[r];
            let scales = S::and(S::repeat(p), 15);
            both_halves!(|half| {
                let at = per_lane::<S, _>(s, |j| 2 * j + half / 16);
                S::products(two_bits::<S>(p.add(16), s, half), scales, at, &[0, 1, 2, 3, 0, 0, 0, 0], 0)
            })
        }
    }
    #[inline(always)]
    unsafe fn span_scale(&self, stage: &Self::Stage) -> S::Floats {
        // SAFETY: the staged blocks exist.
        unsafe { block_scale::<S>(&stage.p, 80) }
    }
}

/// Subtracts 32 from each byte (0..=63): no borrow crosses a byte once its top bit is set.
#[inline(always)]
fn less_32(v: u64) -> u64 {
    ((v | 0x8080_8080_8080_8080) - 0x2020_2020_2020_2020) ^ 0x8080_8080_8080_8080
}

/// Sixteen signed scales of Q3_K from the twelve bytes at `p`.
#[inline(always)]
pub(in super::super) unsafe fn q3_k_scales(p: *const u8) -> [u64; 2] {
    // SAFETY: the caller's promise.
    let (low, high) = unsafe { (word(p), p.add(8).cast::<u32>().read_unaligned() as u64) };
    // Two high bits of scale j are bits 2·(j / 4) of byte j % 4 of `high`.
    let bits = |shift: u32| (high >> shift) & 0x0303_0303;
    let first = (low & NIBBLES) | ((bits(0) | (bits(2) << 32)) << 4);
    let second = ((low >> 4) & NIBBLES) | ((bits(4) | (bits(6) << 32)) << 4);
    [less_32(first), less_32(second)]
}

impl<S: Simd> Source<S> for Q3_K {
    const SPREAD: bool = true;
    const HALVES: bool = true;
    const OFFSET: i32 = 4;
    // Where wide codes are as fast as others.
    const FOLDED: bool = S::WIDE_OFFSET as i32 == 4 << FOLDED_START;
    const ROWWISE: Option<Rowwise> = if S::ByRow::THERE { Some(Rowwise::ThreeBits) } else { None };
    block_source!(Q3_K, 110, S::HalfBytes, |p| S::q3_k_scales(four!(|r| p[r].add(94))));
    add_block!(110, add_q3_k);

    #[inline(always)]
    unsafe fn scales(&self, stage: &Self::Stage, s: usize) -> Scales<S> {
        // SAFETY: the staged blocks exist.
        unsafe {
            let d = block_scale::<S>(&stage.p, 108);
            let times = |half: usize| S::mul(S::half_i8(stage.scales, s, half), d);
            Scales { scale: [times(0), times(1)], min: [S::splat(0.0); 2] }
        }
    }
    #[inline(always)]
    unsafe fn codes(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2] {
        // SAFETY: the staged blocks exist.
        unsafe {
            let p = stage.p[r];
            both_halves!(|half| {
                let low = two_bits::<S>(p.add(32), s, half);
                let high = S::bit_to::<2>(S::repeat(p.add(half)), s * S::LANES % 8);
                S::or(low, high)
            })
        }
    }
    #[inline(always)]
    fn spans(&self) -> bool {
        <Self as Source<S>>::FOLDED
    }
    #[inline(always)]
    unsafe fn folded(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2] {
        // SAFETY: the staged blocks exist. (4 − q)·(scale − 32) is −128..=124: its negative would need a ninth bit.
        unsafe {
            let scales = S::repeat_words(q3_k_scales(stage.p[r].add(96)));
            let codes = <Self as Source<S>>::codes(self, stage, r, s);
            both_halves!(|half| {
                let at = per_lane::<S, _>(s, |j| 2 * j + half / 16);
                S::products(codes[half / 16], scales, at, &[4, 3, 2, 1, 0, -1, -2, -3], S::WIDE_OFFSET)
            })
        }
    }
    #[inline(always)]
    unsafe fn span_scale(&self, stage: &Self::Stage) -> S::Floats {
        // SAFETY: the staged blocks exist.
        unsafe { S::mul(block_scale::<S>(&stage.p, 108), S::splat(-1.0)) }
    }
}

/// Six-bit scales and minimums of Q4_K and Q5_K.
#[inline(always)]
unsafe fn q4_k_scales(p: *const u8) -> [u64; 2] {
    // SAFETY: twelve bytes of scales stand at 4.
    let (ab, c) = unsafe { (word(p.add(4)), p.add(12).cast::<u32>().read_unaligned()) };
    let (a, b) = (ab as u32, (ab >> 32) as u32);
    let six = 0x3F3F_3F3F;
    let four = 0x0F0F_0F0F;
    let scales_high = (c & four) | ((a >> 2) & 0x3030_3030);
    let mins_high = ((c >> 4) & four) | ((b >> 2) & 0x3030_3030);
    let join = |low: u32, high: u32| low as u64 | ((high as u64) << 32);
    [join(a & six, scales_high), join(b & six, mins_high)]
}

/// Scales and minimums of Q4_K and Q5_K.
#[inline(always)]
unsafe fn q4_k_step<S: Simd>(stage: &Stage<Words<2>>, s: usize) -> Scales<S> {
    // SAFETY: the staged blocks exist.
    unsafe {
        let (d, min) = (block_scale::<S>(&stage.p, 0), block_scale::<S>(&stage.p, 2));
        let min = S::mul(min, S::splat(-1.0));
        let times = |n: usize, d| S::mul(S::u8_rows(step_bytes::<S, _>(stage, n, s)), d);
        Scales::with_min(times(0, d), times(1, min))
    }
}

/// Nibbles of Q4_K and Q5_K: sub-blocks 2g and 2g + 1 are the low and high nibbles of 32 bytes.
#[inline(always)]
unsafe fn q4_k_nibbles<S: Simd>(p: *const u8, s: usize, half: usize) -> S::Bytes {
    // SAFETY: 128 bytes of nibbles stand at `p`.
    unsafe {
        let bytes = gather::<S>(p, s, |j| 32 * (j / 2) + half);
        S::and(S::shr(bytes, per_lane::<S, _>(s, |j| 4 * (j % 2) as u32)), 15)
    }
}

impl<S: Simd> Source<S> for Q4_K {
    const MINS: bool = true;
    block_source!(Q4_K, 144, Words<2>, |p| four!(|r| q4_k_scales(p[r])));

    #[inline(always)]
    unsafe fn scales(&self, stage: &Self::Stage, s: usize) -> Scales<S> {
        // SAFETY: the caller's promise.
        unsafe { q4_k_step(stage, s) }
    }
    #[inline(always)]
    unsafe fn codes(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2] {
        // SAFETY: the staged blocks exist.
        unsafe { both_halves!(|half| q4_k_nibbles::<S>(stage.p[r].add(16), s, half)) }
    }
}

impl<S: Simd> Source<S> for Q5_K {
    const MINS: bool = true;
    block_source!(Q5_K, 176, Words<2>, |p| four!(|r| q4_k_scales(p[r])));

    #[inline(always)]
    unsafe fn scales(&self, stage: &Self::Stage, s: usize) -> Scales<S> {
        // SAFETY: the caller's promise.
        unsafe { q4_k_step(stage, s) }
    }
    #[inline(always)]
    unsafe fn codes(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2] {
        // SAFETY: the staged blocks exist.
        both_halves!(|half| unsafe {
            let low = q4_k_nibbles::<S>(stage.p[r].add(48), s, half);
            let high = S::bit_to::<4>(S::repeat(stage.p[r].add(16 + half)), s * S::LANES % 8);
            S::or(low, high)
        })
    }
}

impl<S: Simd> Source<S> for Q6_K {
    const HALVES: bool = true;
    const OFFSET: i32 = 32;
    block_source!(Q6_K, 210, S::HalfBytes, |p| half_bytes::<S>(&p, 192));

    #[inline(always)]
    unsafe fn scales(&self, stage: &Self::Stage, s: usize) -> Scales<S> {
        // SAFETY: the staged blocks exist.
        unsafe {
            let d = block_scale::<S>(&stage.p, 208);
            let times = |half: usize| S::mul(S::half_i8(stage.scales, s, half), d);
            Scales { scale: [times(0), times(1)], min: [S::splat(0.0); 2] }
        }
    }
    #[inline(always)]
    unsafe fn codes(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2] {
        // SAFETY: the staged blocks exist.
        both_halves!(|half| unsafe {
            let p = stage.p[r];
            let low = gather::<S>(p, s, |j| 64 * (j / 4) + 32 * (j % 2) + half);
            let low = S::and(S::shr(low, per_lane::<S, _>(s, |j| 4 * (j % 4 / 2) as u32)), 15);
            let high = gather::<S>(p.add(128), s, |j| 32 * (j / 4) + half);
            let high = S::and(S::shr(high, per_lane::<S, _>(s, |j| 2 * (j % 4) as u32)), 3);
            S::or(low, S::shl4(high))
        })
    }
}

/// Signed scales.
#[inline(always)]
unsafe fn iq4_xs_scales(p: *const u8) -> [u64; 1] {
    // SAFETY: two bytes of high bits and four bytes of nibbles stand at 2.
    let (high, low) = unsafe { (p.add(2).cast::<u16>().read_unaligned(), p.add(4).cast::<u32>().read_unaligned()) };
    let pairs = (high as u64 | ((high as u64) << 24)) & 0x0000_00FF_0000_00FF;
    let pairs = (pairs | (pairs << 12)) & 0x000F_000F_000F_000F;
    let pairs = (pairs | (pairs << 6)) & 0x0303_0303_0303_0303;
    [less_32(nibble_bytes(low) | (pairs << 4))]
}

impl<S: Simd> Source<S> for IQ4_XS {
    const WIDE: bool = true;
    block_source!(IQ4_XS, 136, Words<1>, |p| four!(|r| iq4_xs_scales(p[r])));

    #[inline(always)]
    unsafe fn scales(&self, stage: &Self::Stage, s: usize) -> Scales<S> {
        // SAFETY: the staged blocks exist.
        unsafe {
            let d = block_scale::<S>(&stage.p, 0);
            Scales::plain(S::mul(S::i8_rows(step_bytes::<S, _>(stage, 0, s)), d))
        }
    }
    #[inline(always)]
    unsafe fn codes(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2] {
        // SAFETY: the staged blocks exist: sixteen bytes for each sub-block at 8.
        unsafe { iq4_codes::<S>(S::strided::<16, 8>(stage.p[r].add(16 * S::LANES * s))) }
    }
}
