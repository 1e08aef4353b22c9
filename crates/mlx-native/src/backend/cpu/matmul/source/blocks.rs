//! GGML formats of 32-value blocks: a scale (and a minimum) and 16 bytes of nibbles, or 32 bytes.
#![allow(non_camel_case_types)]

use super::super::Weight;
use super::super::simd::{ByRow, MAX_LANES, Simd, four};
use super::{Scales, Source};
use crate::format::ggml::codebooks::{E2M1_DOUBLED, IQ4_VALUES};

/// Rows of blocks.
#[derive(Clone, Copy)]
pub(in super::super) struct Rows {
    base: *const u8,
    /// Behind the last row.
    end: *const u8,
    row_bytes: usize,
}

impl Rows {
    /// Rows of `k` values in blocks of `values` values and `bytes` bytes.
    #[inline(always)]
    pub(super) fn new(weight: &Weight, k: usize, values: usize, bytes: usize) -> Rows {
        let all = match weight {
            Weight::Ggml { blocks, .. } => blocks.as_ptr_range(),
            Weight::Affine { packed, .. } | Weight::Fp { packed, .. } => packed.as_ptr_range(),
        };
        Rows { base: all.start, end: all.end, row_bytes: k / values * bytes }
    }

    /// The rows' first bytes.
    #[inline(always)]
    pub(super) unsafe fn at(&self, rows: [usize; 4]) -> [*const u8; 4] {
        // SAFETY: the rows exist.
        unsafe { four!(|r| self.base.add(rows[r] * self.row_bytes)) }
    }
}

/// Four rows at the first block of a step, and how many of its blocks lie within k.
pub(in super::super) struct Stage {
    p: [*const u8; 4],
    blocks: usize,
    /// The first 32 values' place in their block, for blocks of several times 32 values.
    first: usize,
}

/// Asks for `bytes` bytes of four rows from byte `at` on.
#[inline(always)]
pub(super) unsafe fn prefetch<S: Simd>(rows: &[*const u8; 4], at: usize, bytes: usize) {
    // SAFETY: any address may be prefetched; the caller runs on S's instruction set.
    unsafe { S::prefetch_once(rows.map(|row| row.wrapping_add(at)), bytes) }
}

/// What stands in for blocks beyond k.
static ZEROS: [u8; 16] = [0; 16];

/// 16 bytes at `OFFSET` of each block; zeros for blocks beyond k.
#[inline(always)]
unsafe fn bytes<S: Simd, const STRIDE: usize, const OFFSET: usize>(stage: &Stage, r: usize) -> S::Bytes {
    let p = stage.p[r];
    // SAFETY: the staged blocks exist.
    unsafe {
        if stage.blocks >= S::LANES {
            S::strided::<STRIDE, OFFSET>(p)
        } else {
            S::gather(four!(|i| if i < stage.blocks { p.add(i * STRIDE + OFFSET) } else { ZEROS.as_ptr() }))
        }
    }
}

/// The u16 at byte `offset` of each block of a row, 0 beyond k.
#[inline(always)]
unsafe fn words<S: Simd>(stage: &Stage, r: usize, stride: usize, offset: usize) -> [u16; MAX_LANES] {
    // SAFETY: the staged blocks exist.
    unsafe {
        let word = |i: usize| stage.p[r].add(i * stride + offset).cast::<u16>().read_unaligned();
        four!(|i| if i < S::LANES && i < stage.blocks { word(i) } else { 0 })
    }
}

/// The f16 at byte `OFFSET` of each block of four rows, 0 beyond k.
#[inline(always)]
unsafe fn halves<S: Simd, const STRIDE: usize, const OFFSET: usize>(stage: &Stage) -> S::Floats {
    // SAFETY: the staged blocks exist.
    unsafe {
        if stage.blocks >= S::LANES {
            return S::strided_f16::<STRIDE, OFFSET>(stage.p);
        }
        let rows = four!(|r| words::<S>(stage, r, STRIDE, OFFSET));
        S::f16_lanes(four!(|i| joined(four!(|r| rows[r][i]))))
    }
}

/// The low and the high nibbles of 16 bytes of each block.
#[inline(always)]
pub(super) unsafe fn nibbles<S: Simd>(v: S::Bytes) -> [S::Bytes; 2] {
    // SAFETY: the caller runs on S's instruction set.
    unsafe { [S::and(v, 15), S::and(S::shr(v, [4; MAX_LANES]), 15)] }
}

/// The table's values for the low and the high nibbles.
#[inline(always)]
unsafe fn looked_up<S: Simd>(v: S::Bytes, table: &[u8; 16]) -> [S::Bytes; 2] {
    // SAFETY: the caller runs on S's instruction set.
    unsafe { [S::lookup(v, table), S::lookup(S::shr(v, [4; MAX_LANES]), table)] }
}

/// Four u16, the first one lowest.
#[inline(always)]
pub(super) fn joined(words: [u16; 4]) -> u64 {
    words[0] as u64 | ((words[1] as u64) << 16) | ((words[2] as u64) << 32) | ((words[3] as u64) << 48)
}

/// Four bytes as four u16.
#[inline(always)]
pub(in super::super) fn widened(bytes: u64) -> u64 {
    let pairs = (bytes | (bytes << 16)) & 0x0000_FFFF_0000_FFFF;
    (pairs | (pairs << 8)) & 0x00FF_00FF_00FF_00FF
}

/// Eight nibbles as bytes.
#[inline(always)]
pub(super) fn nibble_bytes(nibbles: u32) -> u64 {
    let pairs = widened(nibbles as u64);
    (pairs | (pairs << 4)) & 0x0F0F_0F0F_0F0F_0F0F
}

/// Sixteen signed values as wide codes of an instruction set.
pub(super) const fn wide_table(values: &[i8; 16], offset: u8) -> [u8; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (values[i] as u8).wrapping_add(offset);
        i += 1;
    }
    table
}

/// The parts of [`Source`] that all formats of 32-value blocks share.
macro_rules! block_source {
    ($name:ident, $bytes:literal) => {
        block_source!($name, $bytes, 1);
    };
    ($name:ident, $bytes:literal, $blocks:literal) => {
        const STEP_BYTES: usize = S::LANES * $bytes / $blocks;
        type Rows = [*const u8; 4];
        type Stage = Stage;

        #[inline(always)]
        unsafe fn new(weight: &Weight, k: usize) -> Self {
            $name { rows: Rows::new(weight, k, 32 * $blocks, $bytes), blocks: k / 32 }
        }
        #[inline(always)]
        unsafe fn rows(&self, rows: [usize; 4]) -> Self::Rows {
            // SAFETY: the caller's rows exist.
            unsafe { self.rows.at(rows) }
        }
        #[inline(always)]
        unsafe fn prefetch(&self, rows: &Self::Rows, step: usize) {
            // SAFETY: any address may be prefetched.
            unsafe { prefetch::<S>(rows, step * S::LANES / $blocks * $bytes, S::LANES * $bytes / $blocks) }
        }
        #[inline(always)]
        unsafe fn stage<const FULL: bool>(&self, rows: &Self::Rows, step: usize) -> Stage {
            let block = step * S::LANES;
            let blocks = if FULL { S::LANES } else { self.blocks - block };
            // SAFETY: the step begins within the row.
            let p = unsafe { four!(|r| rows[r].add(block / $blocks * $bytes)) };
            Stage { p, blocks, first: block - block / $blocks * $blocks }
        }
        #[inline(always)]
        unsafe fn stage_over(&self, rows: &Self::Rows, step: usize) -> Stage {
            // SAFETY: the caller's promise; a whole step that lies in the weight can be read.
            unsafe {
                let bytes = S::LANES / $blocks * $bytes;
                if rows.iter().all(|row| row.wrapping_add((step + 1) * bytes) <= self.rows.end) {
                    Source::<S>::stage::<true>(self, rows, step)
                } else {
                    Source::<S>::stage::<false>(self, rows, step)
                }
            }
        }
    };
}

/// A format of 32-value blocks.
macro_rules! block_formats {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $(
            $(#[$doc])*
            pub(in super::super) struct $name {
                rows: Rows,
                blocks: usize,
            }
        )*
    };
}

block_formats! {
    /// d·(q − 8).
    Q4_0
    /// d·q + m.
    Q4_1
    /// d·(q − 16).
    Q5_0
    /// d·q + m, five bits.
    Q5_1
    /// d·q, eight bits.
    Q8_0
    /// d·K\[q\].
    IQ4_NL
    /// E2M1 with a power of two.
    MXFP4
    /// E2M1 with an E4M3 scale for each 16 values, blocks of 64.
    NVFP4
    /// ±d, blocks of 128.
    Q1_0
}

/// Codes that `$split` makes of the nibbles of the bytes at `$quants` of blocks of `$bytes` bytes.
macro_rules! nibble_codes {
    ($bytes:literal, $quants:literal, $split:expr) => {
        #[inline(always)]
        unsafe fn codes(&self, stage: &Stage, r: usize, _: usize) -> [S::Bytes; 2] {
            // SAFETY: the staged blocks exist.
            unsafe { <Self as Source<S>>::split(Source::<S>::stored(self, stage, r)) }
        }
        const SPLIT: bool = true;
        #[inline(always)]
        unsafe fn stored(&self, stage: &Stage, r: usize) -> S::Bytes {
            // SAFETY: the staged blocks exist.
            unsafe { bytes::<S, $bytes, $quants>(stage, r) }
        }
        #[inline(always)]
        unsafe fn split(stored: S::Bytes) -> [S::Bytes; 2] {
            // SAFETY: the caller runs on S's instruction set.
            unsafe { $split(stored) }
        }
    };
}

impl<S: Simd> Source<S> for Q4_0 {
    const OFFSET: i32 = 8;
    block_source!(Q4_0, 18);
    nibble_codes!(18, 2, nibbles::<S>);

    #[inline(always)]
    unsafe fn scales(&self, stage: &Stage, _: usize) -> Scales<S> {
        // SAFETY: the staged blocks exist.
        unsafe { Scales::plain(halves::<S, 18, 0>(stage)) }
    }
}

impl<S: Simd> Source<S> for Q4_1 {
    const MINS: bool = true;
    block_source!(Q4_1, 20);
    nibble_codes!(20, 4, nibbles::<S>);

    #[inline(always)]
    unsafe fn scales(&self, stage: &Stage, _: usize) -> Scales<S> {
        // SAFETY: the staged blocks exist.
        unsafe { Scales::with_min(halves::<S, 20, 0>(stage), halves::<S, 20, 2>(stage)) }
    }
}

/// Nibbles at byte `QUANTS` of each block, with fifth bits from the u32 at byte `BITS`.
#[inline(always)]
unsafe fn five_bits<S: Simd, const STRIDE: usize, const QUANTS: usize, const BITS: usize>(
    stage: &Stage,
    r: usize,
) -> [S::Bytes; 2] {
    // SAFETY: the staged blocks exist.
    unsafe {
        let [lo, hi] = nibbles::<S>(bytes::<S, STRIDE, QUANTS>(stage, r));
        if stage.blocks >= S::LANES {
            return S::strided_fifth_bits::<STRIDE, BITS>([lo, hi], stage.p[r]);
        }
        let bits = |half: usize| S::spread(words::<S>(stage, r, STRIDE, BITS + 2 * half), 16);
        [S::or(lo, bits(0)), S::or(hi, bits(1))]
    }
}

impl<S: Simd> Source<S> for Q5_0 {
    const OFFSET: i32 = 16;
    block_source!(Q5_0, 22);

    #[inline(always)]
    unsafe fn scales(&self, stage: &Stage, _: usize) -> Scales<S> {
        // SAFETY: the staged blocks exist.
        unsafe { Scales::plain(halves::<S, 22, 0>(stage)) }
    }
    #[inline(always)]
    unsafe fn codes(&self, stage: &Stage, r: usize, _: usize) -> [S::Bytes; 2] {
        // SAFETY: the staged blocks exist.
        unsafe { five_bits::<S, 22, 6, 2>(stage, r) }
    }
}

impl<S: Simd> Source<S> for Q5_1 {
    const MINS: bool = true;
    block_source!(Q5_1, 24);

    #[inline(always)]
    unsafe fn scales(&self, stage: &Stage, _: usize) -> Scales<S> {
        // SAFETY: the staged blocks exist.
        unsafe { Scales::with_min(halves::<S, 24, 0>(stage), halves::<S, 24, 2>(stage)) }
    }
    #[inline(always)]
    unsafe fn codes(&self, stage: &Stage, r: usize, _: usize) -> [S::Bytes; 2] {
        // SAFETY: the staged blocks exist.
        unsafe { five_bits::<S, 24, 8, 4>(stage, r) }
    }
}

impl<S: Simd> Source<S> for Q8_0 {
    const WIDE: bool = true;
    block_source!(Q8_0, 34);

    #[inline(always)]
    unsafe fn scales(&self, stage: &Stage, _: usize) -> Scales<S> {
        // SAFETY: the staged blocks exist.
        unsafe { Scales::plain(halves::<S, 34, 0>(stage)) }
    }
    #[inline(always)]
    unsafe fn codes(&self, stage: &Stage, r: usize, _: usize) -> [S::Bytes; 2] {
        // SAFETY: the staged blocks exist. Adding 128 to a byte is flipping its highest bit.
        unsafe {
            let (lo, hi) = (bytes::<S, 34, 2>(stage, r), bytes::<S, 34, 18>(stage, r));
            [S::xor(lo, S::WIDE_OFFSET), S::xor(hi, S::WIDE_OFFSET)]
        }
    }
}

/// A codebook as wide codes.
struct Iq4Table<S>(std::marker::PhantomData<S>);

impl<S: Simd> Iq4Table<S> {
    const CODES: [u8; 16] = wide_table(&IQ4_VALUES, S::WIDE_OFFSET);
}

/// Codes of IQ4_NL and IQ4_XS from 16 bytes of each block.
#[inline(always)]
pub(super) unsafe fn iq4_codes<S: Simd>(v: S::Bytes) -> [S::Bytes; 2] {
    // SAFETY: the caller runs on S's instruction set.
    unsafe { looked_up::<S>(v, &Iq4Table::<S>::CODES) }
}

impl<S: Simd> Source<S> for IQ4_NL {
    const WIDE: bool = true;
    block_source!(IQ4_NL, 18);
    nibble_codes!(18, 2, iq4_codes::<S>);

    #[inline(always)]
    unsafe fn scales(&self, stage: &Stage, _: usize) -> Scales<S> {
        // SAFETY: the staged blocks exist.
        unsafe { Scales::plain(halves::<S, 18, 0>(stage)) }
    }
}

/// Twice the E2M1 values + 12.
pub(super) static MXFP4_CODES: [u8; 16] = wide_table(&E2M1_DOUBLED, 12);

impl<S: Simd> Source<S> for MXFP4 {
    const OFFSET: i32 = 12;
    // Scales may be as large as an f32 can be.
    const FUSED: bool = false;
    block_source!(MXFP4, 17);
    nibble_codes!(17, 1, |v| looked_up::<S>(v, &MXFP4_CODES));

    #[inline(always)]
    unsafe fn scales(&self, stage: &Stage, _: usize) -> Scales<S> {
        // SAFETY: the staged blocks exist; blocks beyond k have any scale, as their codes of x are 0.
        unsafe {
            let exponent = |r: usize, i: usize| {
                if i < S::LANES && i < stage.blocks { (*stage.p[r].add(17 * i) as u32) << (8 * i) } else { 0 }
            };
            Scales::plain(S::exp2_rows(four!(|r| exponent(r, 0) | exponent(r, 1) | exponent(r, 2) | exponent(r, 3))))
        }
    }
}

/// The two scales of block `j` of 32 values: a stored block is four scales, then 16 bytes of codes for each of two such blocks.
#[inline(always)]
fn nvfp4_scales(p: *const u8, j: usize) -> *const u8 {
    p.wrapping_add(j / 2 * 36 + j % 2 * 2)
}

/// Whether a stage is two stored blocks, all lanes within k.
#[inline(always)]
fn whole_pairs<S: Simd>(stage: &Stage) -> bool {
    S::LANES == 4 && stage.blocks >= 4
}

/// The codes of block `j` of 32 values.
#[inline(always)]
fn nvfp4_codes(p: *const u8, j: usize) -> *const u8 {
    p.wrapping_add(j / 2 * 36 + 4 + j % 2 * 16)
}

impl<S: Simd> Source<S> for NVFP4 {
    const HALVES: bool = true;
    const OFFSET: i32 = 12;
    block_source!(NVFP4, 36, 2);

    #[inline(always)]
    unsafe fn scales(&self, stage: &Stage, _: usize) -> Scales<S> {
        // SAFETY: the staged blocks exist; those beyond k have the scale 0.
        unsafe {
            let pair = |r: usize, i: usize| {
                if i < S::LANES && i < stage.blocks {
                    let at = nvfp4_scales(stage.p[r], stage.first + i);
                    (at.cast::<u16>().read_unaligned() as u64) << (16 * i)
                } else {
                    0
                }
            };
            let rows = if whole_pairs::<S>(stage) {
                let four_scales =
                    |r: usize, j: usize| nvfp4_scales(stage.p[r], j).cast::<u32>().read_unaligned() as u64;
                four!(|r| four_scales(r, 0) | (four_scales(r, 2) << 32))
            } else {
                four!(|r| pair(r, 0) | pair(r, 1) | pair(r, 2) | pair(r, 3))
            };
            // GGML ignores the sign, and all ones mean 0 instead of NaN. Codes are twice the values.
            Scales { scale: S::unsigned_e4m3(rows), min: [S::splat(0.0); 2] }
        }
    }
    #[inline(always)]
    unsafe fn codes(&self, stage: &Stage, r: usize, _: usize) -> [S::Bytes; 2] {
        // SAFETY: the staged blocks exist. Eight bytes have sixteen values, the first eight in the low nibbles.
        unsafe {
            let block = |i: usize| {
                if i < S::LANES && i < stage.blocks { nvfp4_codes(stage.p[r], stage.first + i) } else { ZEROS.as_ptr() }
            };
            let bytes = if whole_pairs::<S>(stage) {
                S::gather_pairs([nvfp4_codes(stage.p[r], 0), nvfp4_codes(stage.p[r], 2)])
            } else {
                S::gather(four!(|i| block(i)))
            };
            let [lo, hi] = looked_up::<S>(bytes, &MXFP4_CODES);
            S::zip(lo, hi)
        }
    }
}

impl<S: Simd> Source<S> for Q1_0 {
    const OFFSET: i32 = 1;
    const SPREAD: bool = true;
    const TOGETHER: usize = if S::ByRow::THERE { 4 } else { 0 };
    block_source!(Q1_0, 18, 4);

    #[inline(always)]
    unsafe fn prefetch_four(&self, rows: &Self::Rows, step: usize) {
        // SAFETY: any address may be prefetched.
        unsafe { prefetch::<S>(rows, 18 * step, 72) }
    }

    #[inline(always)]
    unsafe fn arrange(x: *mut u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe { S::ByRow::arrange_bits::<false>(x, stride) }
    }
    #[inline(always)]
    unsafe fn sums(&self, rows: &Self::Rows, step: usize, x: *const u8, stride: usize) -> [[S::Ints; 2]; 4] {
        // SAFETY: four blocks are four steps there.
        unsafe {
            let sums =
                S::ByRow::by_step(S::ByRow::bit_sums::<18, 2, true>(four!(|r| rows[r].add(18 * step)), x, stride));
            four!(|s| [sums[s]; 2])
        }
    }
    #[inline(always)]
    fn by_rows<const SIDES: usize>() -> bool {
        true
    }
    #[inline(always)]
    unsafe fn add_together<const SIDES: usize>(
        &self,
        rows: &Self::Rows,
        step: usize,
        x: *const u8,
        stride: usize,
        totals: [S::Floats; 4],
    ) -> [S::Floats; 4] {
        // SAFETY: four blocks are four steps there.
        unsafe {
            let blocks = four!(|r| rows[r].add(18 * step));
            let sums = S::ByRow::bit_sums::<18, 2, true>(blocks, x, stride);
            let (scales, x_scales) = (S::ByRow::row_f16_steps::<18>(blocks), S::ByRow::block_notes(x, stride, 0));
            four!(|r| S::mul_add(S::mul(S::unbiased(sums[r]), scales[r]), x_scales, totals[r]))
        }
    }
    #[inline(always)]
    unsafe fn four_scales<const SIDES: usize>(&self, rows: &Self::Rows, step: usize) -> [Scales<S>; 4] {
        // SAFETY: four blocks are four steps there.
        unsafe {
            let scales = S::ByRow::f16_steps::<18>(four!(|r| rows[r].add(18 * step)));
            four!(|s| Scales::plain(scales[s]))
        }
    }

    #[inline(always)]
    unsafe fn scales(&self, stage: &Stage, _: usize) -> Scales<S> {
        // SAFETY: the staged block exists; LANES divides its four times 32 values.
        unsafe {
            Scales::plain(S::f16_lanes([joined(four!(|r| stage.p[r].cast::<u16>().read_unaligned())); MAX_LANES]))
        }
    }
    #[inline(always)]
    unsafe fn codes(&self, stage: &Stage, r: usize, _: usize) -> [S::Bytes; 2] {
        // SAFETY: the staged block exists.
        unsafe { S::bit_blocks(stage.p[r].add(2 + 4 * stage.first), 2) }
    }
}
