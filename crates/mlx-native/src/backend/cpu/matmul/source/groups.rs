//! MLX formats: rows of packed bits, with scales (and biases) of groups in buffers of their own.

use super::super::Weight;
use super::super::simd::{ByRow, MAX_LANES, Simd, four};
use super::super::tiles::AHEAD_BYTES_ONE;
use super::blocks::{MXFP4_CODES, joined, nibbles, prefetch};
use super::{ANY_SIDES, Scales, Source};
use crate::DType;
use crate::format::FpMode;

/// Rows of `BITS`-bit values in one little-endian stream.
pub(in super::super) struct Packed<const BITS: usize> {
    base: *const u8,
    pitch: usize,
    k: usize,
}

/// Where four rows begin.
#[derive(Clone, Copy)]
pub(in super::super) struct Rows {
    packed: [*const u8; 4],
    /// Bytes from the first row's first scale to theirs.
    side: [usize; 4],
}

/// Four packed rows at a step.
pub(in super::super) struct Stage {
    p: [*const u8; 4],
    /// Bytes of the row from here on, at most the step's.
    bytes: usize,
    /// The step's first block of 32.
    block: usize,
    /// Blocks that begin within k, at most LANES.
    blocks: usize,
    /// See [`Rows`].
    side: [usize; 4],
}

/// Bytes of a step of the widest format.
const MAX_STEP_BYTES: usize = 32 * MAX_LANES;

impl<const BITS: usize> Packed<BITS> {
    #[inline(always)]
    fn new(packed: &[u8], pitch: usize, k: usize) -> Self {
        Packed { base: packed.as_ptr(), pitch, k }
    }

    /// Rows whose scales take `side` bytes.
    #[inline(always)]
    unsafe fn rows(&self, rows: [usize; 4], side: usize) -> Rows {
        // SAFETY: the rows exist.
        unsafe { Rows { packed: four!(|r| self.base.add(rows[r] * self.pitch)), side: four!(|r| rows[r] * side) } }
    }

    #[inline(always)]
    unsafe fn stage<S: Simd, const FULL: bool>(&self, rows: &Rows, step: usize) -> Stage {
        let (at, step_bytes) = (step * 4 * BITS * S::LANES, 4 * BITS * S::LANES);
        let block = step * S::LANES;
        // SAFETY: the step begins within the rows.
        let p = unsafe { four!(|r| rows.packed[r].add(at)) };
        let bytes = if FULL { step_bytes } else { (self.pitch - at).min(step_bytes) };
        let blocks = if FULL { S::LANES } else { (self.k.div_ceil(32) - block).min(S::LANES) };
        Stage { p, bytes, block, blocks, side: rows.side }
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(rows: &Rows, step: usize) {
        // SAFETY: any address may be prefetched; the caller runs on S's instruction set.
        unsafe { prefetch::<S>(&rows.packed, step * 4 * BITS * S::LANES, 4 * BITS * S::LANES) }
    }

    /// Values in their order, or with `pairs` even ones first.
    #[inline(always)]
    unsafe fn codes<S: Simd>(stage: &Stage, r: usize, pairs: bool) -> [S::Bytes; 2] {
        // SAFETY: `bytes` bytes of the row follow.
        unsafe {
            if stage.bytes >= 4 * BITS * S::LANES {
                Self::values::<S>(stage.p[r], pairs)
            } else {
                let mut whole = [0u8; MAX_STEP_BYTES];
                whole.as_mut_ptr().copy_from_nonoverlapping(stage.p[r], stage.bytes);
                Self::values::<S>(whole.as_ptr(), pairs)
            }
        }
    }

    /// The values of a whole step.
    #[inline(always)]
    unsafe fn values<S: Simd>(p: *const u8, pairs: bool) -> [S::Bytes; 2] {
        // SAFETY: a step's bytes stand at `p`. With `pairs`, nibbles stay in their bytes.
        unsafe {
            if pairs {
                nibbles::<S>(S::load(p))
            } else if BITS == 4 {
                let bytes = S::load(p);
                let [lo, hi] = S::zip_bytes(bytes, S::shr(bytes, [4; MAX_LANES]));
                [S::and(lo, 15), S::and(hi, 15)]
            } else if BITS == 8 {
                S::block_halves(p)
            } else {
                S::unpack::<BITS>(p)
            }
        }
    }
}

/// Asks for four rows' cache lines behind the one with byte `at` of their scales, when a step of `step_bytes` begins a line there. A line is first used by a
/// step before the one that begins in it, so what is asked for lies a line ahead.
#[inline(always)]
unsafe fn prefetch_side<S: Simd>(base: *const u8, rows: &Rows, at: usize, step_bytes: usize) {
    if at % 64 < step_bytes.max(1) {
        let base = base.wrapping_add(at + 64);
        // SAFETY: any address may be prefetched; the caller runs on S's instruction set.
        unsafe { S::prefetch_once(rows.side.map(|first| base.wrapping_add(first)), 1) };
    }
}

/// MLX affine groups of 32·2ᵉ values: s·q + b.
pub(in super::super) struct Affine<const BITS: usize> {
    packed: Packed<BITS>,
    scales: *const u8,
    biases: *const u8,
    dtype: DType,
    /// Groups of a row.
    groups: usize,
    /// log₂ of the blocks of 32 in a group.
    shift: u32,
}

/// A T at each of four places.
#[inline(always)]
unsafe fn words<T: Copy + Into<u64>>(values: *const u8, at: [usize; 4]) -> [u64; 4] {
    // SAFETY: the groups exist.
    unsafe { four!(|r| values.add(at[r]).cast::<T>().read_unaligned().into()) }
}

impl<const BITS: usize> Affine<BITS> {
    /// What codes are multiplied with, and what is added then.
    #[inline(always)]
    unsafe fn of_codes<S: Simd>(scale: S::Floats, bias: S::Floats) -> Scales<S> {
        // SAFETY: the caller runs on S's instruction set. Signed codes are q − 128.
        unsafe {
            let signed = BITS == 8 && S::WIDE_OFFSET == 0;
            Scales::with_min(scale, if signed { S::mul_add(scale, S::splat(128.0), bias) } else { bias })
        }
    }

    /// Scales and biases of four rows at a step; 0 beyond k.
    #[inline(always)]
    unsafe fn values<S: Simd>(&self, stage: &Stage) -> [S::Floats; 2] {
        // SAFETY: a block that begins within k has a group.
        unsafe {
            if self.dtype == DType::F32 {
                // Not the stage itself: what a function sees has to be in memory, in every step.
                let of = |values| self.f32_values(stage.side, stage.block, stage.blocks.min(S::LANES), values);
                return [of(self.scales), of(self.biases)].map(|values| S::load_floats(values.as_ptr()));
            }
            if S::LANES == 4 && stage.blocks == 4 {
                // The groups of a step, one behind the other.
                let at = 2 * (stage.block >> self.shift);
                let (scales, biases) = (self.scales.add(at), self.biases.add(at));
                let [scales, biases] = match self.shift {
                    0 => [words::<u64>(scales, stage.side), words::<u64>(biases, stage.side)],
                    1 => [words::<u32>(scales, stage.side), words::<u32>(biases, stage.side)],
                    _ => [words::<u16>(scales, stage.side), words::<u16>(biases, stage.side)],
                };
                return if self.dtype == DType::F16 {
                    [S::f16_groups(scales, self.shift), S::f16_groups(biases, self.shift)]
                } else {
                    [S::bf16_groups(scales, self.shift), S::bf16_groups(biases, self.shift)]
                };
            }
            let lanes = |values: *const u8| {
                let word = |r: usize, i: usize| {
                    let at = stage.side[r] + 2 * ((stage.block + i) >> self.shift);
                    if i < S::LANES && i < stage.blocks { values.add(at).cast::<u16>().read_unaligned() } else { 0 }
                };
                four!(|i| joined(four!(|r| word(r, i))))
            };
            let (scales, biases) = (lanes(self.scales), lanes(self.biases));
            if self.dtype == DType::F16 {
                [S::f16_lanes(scales), S::f16_lanes(biases)]
            } else {
                [S::bf16_lanes(scales), S::bf16_lanes(biases)]
            }
        }
    }

    /// [`values`](Self::values) that are stored as f32.
    #[inline(never)]
    unsafe fn f32_values(
        &self,
        side: [usize; 4],
        block: usize,
        lanes: usize,
        values: *const u8,
    ) -> [f32; 4 * MAX_LANES] {
        let mut floats = [0.0; 4 * MAX_LANES];
        for i in 0..lanes {
            for (r, first) in side.iter().enumerate() {
                let at = first + 4 * ((block + i) >> self.shift);
                // SAFETY: a block that begins within k has a group.
                floats[4 * i + r] = unsafe { values.add(at).cast::<f32>().read_unaligned() };
            }
        }
        floats
    }
}

impl<S: Simd, const BITS: usize> Source<S> for Affine<BITS> {
    const MINS: bool = true;
    // Scales may be f32, or as large as a bf16 can be.
    const FUSED: bool = false;
    const WIDE: bool = BITS == 8;
    const PAIRS: bool = BITS == 4;
    const STEP_BYTES: usize = 4 * BITS * S::LANES;
    // What reads fastest depends on the speed of memory: docs/performance.md.
    const AHEAD_BYTES: [usize; 2] = match BITS {
        4..=6 => [AHEAD_BYTES_ONE, 1024],
        8 => [1024; 2],
        _ => [AHEAD_BYTES_ONE; 2],
    };
    const OFFSET: i32 = 0;
    const BY_SIDES: bool = true;
    const SPREAD: bool = BITS == 1;
    const TOGETHER: usize = if BITS == 1 && S::ByRow::THERE { 4 } else { 0 };
    type Rows = Rows;
    type Stage = Stage;

    #[inline(always)]
    unsafe fn new(weight: &Weight, k: usize) -> Self {
        let (format, packed, scales, biases) = match weight {
            Weight::Affine { format, packed, scales, biases } => (*format, *packed, scales.as_ptr(), biases.as_ptr()),
            // A source is chosen by the weight's format.
            Weight::Ggml { .. } | Weight::Fp { .. } => unreachable!("an affine kernel runs on affine weights"),
        };
        let groups = k.div_ceil(format.group_size as usize);
        let shift = (format.group_size / 32).trailing_zeros();
        let packed = Packed::new(packed, format.row_bytes(k).unwrap_or(0), k);
        Affine { packed, scales, biases, dtype: format.scale_dtype, groups, shift }
    }
    #[inline(always)]
    unsafe fn rows(&self, rows: [usize; 4]) -> Rows {
        // SAFETY: the caller's promise.
        unsafe { self.packed.rows(rows, self.groups * self.dtype.size_of()) }
    }
    #[inline(always)]
    unsafe fn prefetch(&self, rows: &Rows, step: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            Packed::<BITS>::prefetch::<S>(rows, step);
            // One of the steps that share a group is enough.
            if (step * S::LANES) & ((1 << self.shift) - 1) < S::LANES {
                let size = self.dtype.size_of();
                let (at, step_bytes) = (((step * S::LANES) >> self.shift) * size, (S::LANES >> self.shift) * size);
                prefetch_side::<S>(self.scales, rows, at, step_bytes);
                prefetch_side::<S>(self.biases, rows, at, step_bytes);
            }
        }
    }
    #[inline(always)]
    unsafe fn stage<const FULL: bool>(&self, rows: &Rows, step: usize) -> Stage {
        // SAFETY: the caller's promise.
        unsafe { self.packed.stage::<S, FULL>(rows, step) }
    }
    #[inline(always)]
    unsafe fn scales(&self, stage: &Stage, _: usize) -> Scales<S> {
        // SAFETY: the caller's promise.
        unsafe {
            let [scale, min] = self.values::<S>(stage);
            Self::of_codes(scale, min)
        }
    }
    /// Groups of 64 with scales in bf16 (0) and in f16 (1): each kind is compiled for every width and instruction set, so these are the usual ones.
    #[inline(always)]
    fn sides(&self) -> usize {
        match (self.shift, self.dtype) {
            (1, DType::BF16) => 0,
            (1, DType::F16) => 1,
            _ => ANY_SIDES,
        }
    }
    #[inline(always)]
    unsafe fn prefetch_quarter<const SIDES: usize>(&self, rows: &Rows, step: usize, quarter: usize) {
        // SAFETY: any address may be prefetched; the caller runs on S's instruction set.
        unsafe {
            let (at, lines) = (step * 4 * BITS * S::LANES, (16 * BITS * S::LANES).div_ceil(64));
            for line in lines * quarter / 4..lines * (quarter + 1) / 4 {
                S::prefetch_once(rows.packed.map(|row| row.wrapping_add(at + 64 * line)), 1);
            }
            if quarter == 0 {
                prefetch_side::<S>(self.scales, rows, step * S::LANES, 4 * S::LANES);
                prefetch_side::<S>(self.biases, rows, step * S::LANES, 4 * S::LANES);
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch_four(&self, rows: &Rows, step: usize) {
        // SAFETY: any address may be prefetched; the caller runs on S's instruction set. Four steps of single bits are a line.
        unsafe {
            S::prefetch_once(rows.packed.map(|row| row.wrapping_add(16 * step)), 1);
            let size = self.dtype.size_of();
            let (at, step_bytes) = (((step * S::LANES) >> self.shift) * size, ((4 * S::LANES) >> self.shift) * size);
            prefetch_side::<S>(self.scales, rows, at, step_bytes);
            prefetch_side::<S>(self.biases, rows, at, step_bytes);
        }
    }
    #[inline(always)]
    unsafe fn arrange(x: *mut u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe { S::ByRow::arrange_bits::<true>(x, stride) }
    }
    #[inline(always)]
    unsafe fn sums(&self, rows: &Rows, step: usize, x: *const u8, stride: usize) -> [[S::Ints; 2]; 4] {
        // SAFETY: four steps of single bits are 64 bytes of each row.
        unsafe {
            let sums = S::ByRow::by_step(S::ByRow::bit_sums::<16, 0, false>(
                four!(|r| rows.packed[r].add(16 * step)),
                x,
                stride,
            ));
            four!(|s| [sums[s]; 2])
        }
    }
    #[inline(always)]
    fn by_rows<const SIDES: usize>() -> bool {
        BITS == 1 && SIDES != ANY_SIDES
    }
    #[inline(always)]
    unsafe fn add_together<const SIDES: usize>(
        &self,
        rows: &Rows,
        step: usize,
        x: *const u8,
        stride: usize,
        totals: [S::Floats; 4],
    ) -> [S::Floats; 4] {
        // SAFETY: four steps of single bits are 64 bytes of each row, and eight groups.
        unsafe {
            let sums = S::ByRow::bit_sums::<16, 0, false>(four!(|r| rows.packed[r].add(16 * step)), x, stride);
            let (x_scales, x_sums) = (S::ByRow::block_notes(x, stride, 0), S::ByRow::block_notes(x, stride, 1));
            four!(|r| {
                let of = |values: *const u8| {
                    S::ByRow::row_groups_of_64(values.add(step * S::LANES + rows.side[r]), SIDES == 1)
                };
                let v = S::mul(S::to_floats(sums[r]), of(self.scales));
                S::mul_add(x_sums, of(self.biases), S::mul_add(v, x_scales, totals[r]))
            })
        }
    }
    #[inline(always)]
    unsafe fn four_scales<const SIDES: usize>(&self, rows: &Rows, step: usize) -> [Scales<S>; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            if SIDES == ANY_SIDES {
                return four!(|s| self.scales(&self.packed.stage::<S, true>(rows, step + s), 0));
            }
            let of =
                |values: *const u8| S::groups_of_64(four!(|r| values.add(step * S::LANES + rows.side[r])), SIDES == 1);
            let (scales, mins) = (of(self.scales), of(self.biases));
            four!(|s| Self::of_codes(scales[s], mins[s]))
        }
    }
    #[inline(always)]
    fn spans(&self) -> bool {
        self.shift > 0
    }
    #[inline(always)]
    unsafe fn codes(&self, stage: &Stage, r: usize, _: usize) -> [S::Bytes; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let [lo, hi] = Packed::<BITS>::codes::<S>(stage, r, BITS == 4);
            if BITS == 8 && S::WIDE_OFFSET == 0 { [S::xor(lo, 128), S::xor(hi, 128)] } else { [lo, hi] }
        }
    }
}

/// MLX mxfp4 (HALF = false: a scale for each 32 values) and nvfp4 (HALF = true: for each 16).
pub(in super::super) struct Fp4<const HALF: bool> {
    packed: Packed<4>,
    scales: *const u8,
    mode: FpMode,
    groups: usize,
}

impl<S: Simd, const HALF: bool> Source<S> for Fp4<HALF> {
    const HALVES: bool = HALF;
    const PAIRS: bool = !HALF;
    const STEP_BYTES: usize = 16 * S::LANES;
    const OFFSET: i32 = 12;
    // Scales without halves may be as large as an f32 can be.
    const FUSED: bool = HALF;
    type Rows = Rows;
    type Stage = Stage;

    #[inline(always)]
    unsafe fn new(weight: &Weight, k: usize) -> Self {
        let (mode, packed, scales) = match weight {
            Weight::Fp { mode, packed, scales } => (*mode, *packed, scales.as_ptr()),
            // A source is chosen by the weight's format.
            Weight::Ggml { .. } | Weight::Affine { .. } => unreachable!("an fp kernel runs on fp weights"),
        };
        let packed = Packed::new(packed, mode.row_bytes(k).unwrap_or(0), k);
        Fp4 { packed, scales, mode, groups: mode.groups(k) }
    }
    #[inline(always)]
    unsafe fn rows(&self, rows: [usize; 4]) -> Rows {
        // SAFETY: the caller's promise.
        unsafe { self.packed.rows(rows, self.groups) }
    }
    #[inline(always)]
    unsafe fn prefetch(&self, rows: &Rows, step: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            Packed::<4>::prefetch::<S>(rows, step);
            let parts = 1 + HALF as usize;
            prefetch_side::<S>(self.scales, rows, step * S::LANES * parts, S::LANES * parts);
        }
    }
    #[inline(always)]
    unsafe fn stage<const FULL: bool>(&self, rows: &Rows, step: usize) -> Stage {
        // SAFETY: the caller's promise.
        unsafe { self.packed.stage::<S, FULL>(rows, step) }
    }
    #[inline(always)]
    unsafe fn scales(&self, stage: &Stage, _: usize) -> Scales<S> {
        if !HALF && stage.blocks >= S::LANES {
            // SAFETY: the groups exist.
            let bytes = |r: usize| unsafe {
                let p = self.scales.add(stage.side[r] + stage.block);
                if S::LANES == 4 {
                    p.cast::<u32>().read_unaligned()
                } else {
                    (0..S::LANES).fold(0, |bytes, i| bytes | ((*p.add(i) as u32) << (8 * i)))
                }
            };
            let rows = four!(|r| bytes(r));
            // A byte of all ones stands for infinity, which half of it is not.
            let infinite = |v: u32| (!v).wrapping_sub(0x0101_0101) & v & 0x8080_8080;
            if rows.into_iter().fold(0, |any, v| any | infinite(v)) == 0 {
                // Codes are twice the values, so scales are halved. SAFETY: the caller runs on S's instruction set.
                return unsafe { Scales::plain(S::exp2_rows(rows)) };
            }
        }
        if HALF && S::LANES == 4 && stage.blocks == 4 && stage.block + 4 <= self.groups / 2 {
            // SAFETY: two groups for each of four blocks exist; the caller runs on S's instruction set.
            unsafe {
                let eight = |r: usize| self.scales.add(stage.side[r] + 2 * stage.block).cast::<u64>();
                let bytes = S::half_bytes(four!(|r| [eight(r).read_unaligned(), 0]));
                let half = S::splat(0.5);
                return Scales {
                    scale: [S::mul(S::half_e4m3(bytes, 0, 0), half), S::mul(S::half_e4m3(bytes, 0, 1), half)],
                    min: [S::splat(0.0); 2],
                };
            }
        }
        let parts = 1 + HALF as usize;
        let mut scales = [[0.0; 4 * MAX_LANES]; 2];
        for i in 0..S::LANES.min(stage.blocks) {
            for (r, first) in stage.side.iter().enumerate() {
                for (h, scales) in scales.iter_mut().enumerate().take(parts) {
                    let group = (stage.block + i) * parts + h;
                    if group < self.groups {
                        // Codes are twice the values. SAFETY: the group exists.
                        scales[4 * i + r] = 0.5 * self.mode.scale(unsafe { *self.scales.add(first + group) });
                    }
                }
            }
        }
        // SAFETY: the arrays have 4·LANES places.
        unsafe {
            Scales {
                scale: [S::load_floats(scales[0].as_ptr()), S::load_floats(scales[1].as_ptr())],
                min: [S::splat(0.0); 2],
            }
        }
    }
    #[inline(always)]
    unsafe fn codes(&self, stage: &Stage, r: usize, _: usize) -> [S::Bytes; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let [lo, hi] = Packed::<4>::codes::<S>(stage, r, !HALF);
            [S::lookup(lo, &MXFP4_CODES), S::lookup(hi, &MXFP4_CODES)]
        }
    }
}
