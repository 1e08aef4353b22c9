//! MLX formats: rows of packed bits, with scales (and biases) of groups in buffers of their own.

use super::super::Weight;
use super::super::simd::{MAX_LANES, Simd, four};
use super::blocks::{MXFP4_CODES, joined, nibbles, prefetch};
use super::{Scales, Source};
use crate::DType;
use crate::format::FpMode;

/// Rows of `BITS`-bit values in one little-endian stream.
pub(in super::super) struct Packed<const BITS: usize> {
    base: *const u8,
    pitch: usize,
    k: usize,
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
    rows: [usize; 4],
}

/// Bytes of a step of the widest format.
const MAX_STEP_BYTES: usize = 32 * MAX_LANES;

impl<const BITS: usize> Packed<BITS> {
    #[inline(always)]
    fn new(packed: &[u8], pitch: usize, k: usize) -> Self {
        Packed { base: packed.as_ptr(), pitch, k }
    }

    #[inline(always)]
    unsafe fn stage<S: Simd, const FULL: bool>(&self, rows: &[usize; 4], step: usize) -> Stage {
        let (at, step_bytes) = (step * 4 * BITS * S::LANES, 4 * BITS * S::LANES);
        let block = step * S::LANES;
        // SAFETY: the step begins within the rows.
        let p = unsafe { four!(|r| self.base.add(rows[r] * self.pitch + at)) };
        let bytes = if FULL { step_bytes } else { (self.pitch - at).min(step_bytes) };
        let blocks = if FULL { S::LANES } else { (self.k.div_ceil(32) - block).min(S::LANES) };
        Stage { p, bytes, block, blocks, rows: *rows }
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, rows: &[usize; 4], step: usize) {
        let rows = four!(|r| self.base.wrapping_add(rows[r] * self.pitch));
        // SAFETY: any address may be prefetched; the caller runs on S's instruction set.
        unsafe { prefetch::<S>(&rows, step * 4 * BITS * S::LANES, 4 * BITS * S::LANES) }
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
            } else if BITS == 8 {
                S::block_halves(p)
            } else {
                S::unpack::<BITS>(p)
            }
        }
    }
}

/// Scales of groups: rows of `row_bytes` at `base`.
struct Side {
    base: *const u8,
    row_bytes: usize,
}

impl Side {
    /// Asks for four rows' cache lines behind the one at byte `at` of the row, when a step of `step_bytes` begins a line there. A line is first used by a
    /// step before the one that begins in it, so what is asked for lies a line ahead.
    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, rows: &[usize; 4], at: usize, step_bytes: usize) {
        if at % 64 < step_bytes.max(1) {
            for row in rows {
                // SAFETY: any address may be prefetched; the caller runs on S's instruction set.
                unsafe { S::prefetch(self.base.wrapping_add(row * self.row_bytes + at + 64)) };
            }
        }
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

impl<const BITS: usize> Affine<BITS> {
    /// [`values`](Self::values) that are stored as f32.
    #[inline(never)]
    unsafe fn f32_values(&self, stage: &Stage, values: *const u8, lanes: usize) -> [f32; 4 * MAX_LANES] {
        let mut floats = [0.0; 4 * MAX_LANES];
        for i in 0..lanes.min(stage.blocks) {
            for (r, row) in stage.rows.iter().enumerate() {
                let at = row * self.groups + ((stage.block + i) >> self.shift);
                // SAFETY: a block that begins within k has a group.
                floats[4 * i + r] = unsafe { values.cast::<f32>().add(at).read_unaligned() };
            }
        }
        floats
    }

    /// The scales or biases of four rows at a step; 0 beyond k.
    #[inline(always)]
    unsafe fn values<S: Simd>(&self, stage: &Stage, values: *const u8) -> S::Floats {
        let at = |r: usize, i: usize| stage.rows[r] * self.groups + ((stage.block + i) >> self.shift);
        // SAFETY: a block that begins within k has a group.
        unsafe {
            let word = |r: usize, i: usize| {
                if i < S::LANES && i < stage.blocks { values.cast::<u16>().add(at(r, i)).read_unaligned() } else { 0 }
            };
            if self.dtype == DType::F32 {
                return S::load_floats(self.f32_values(stage, values, S::LANES).as_ptr());
            }
            if S::LANES == 4 && stage.blocks == 4 {
                // The groups of a step, one behind the other.
                let groups = |r: usize| {
                    let p = values.cast::<u16>().add(at(r, 0));
                    match self.shift {
                        0 => p.cast::<u64>().read_unaligned(),
                        1 => p.cast::<u32>().read_unaligned() as u64,
                        _ => p.read_unaligned() as u64,
                    }
                };
                let rows = four!(|r| groups(r));
                return if self.dtype == DType::F16 {
                    S::f16_groups(rows, self.shift)
                } else {
                    S::bf16_groups(rows, self.shift)
                };
            }
            let words = four!(|i| joined(four!(|r| word(r, i))));
            if self.dtype == DType::F16 { S::f16_lanes(words) } else { S::bf16_lanes(words) }
        }
    }
}

impl<S: Simd, const BITS: usize> Source<S> for Affine<BITS> {
    const MINS: bool = true;
    const WIDE: bool = BITS == 8;
    const PAIRS: bool = BITS == 4;
    const STEP_BYTES: usize = 4 * BITS * S::LANES;
    const OFFSET: i32 = 0;
    type Rows = [usize; 4];
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
    unsafe fn rows(&self, rows: [usize; 4]) -> Self::Rows {
        rows
    }
    #[inline(always)]
    unsafe fn prefetch(&self, rows: &Self::Rows, step: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            self.packed.prefetch::<S>(rows, step);
            let size = self.dtype.size_of();
            for base in [self.scales, self.biases] {
                let side = Side { base, row_bytes: self.groups * size };
                let at = ((step * S::LANES) >> self.shift) * size;
                // One of the steps that share a group is enough.
                if (step * S::LANES) & ((1 << self.shift) - 1) < S::LANES {
                    side.prefetch::<S>(rows, at, (S::LANES >> self.shift) * size);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn stage<const FULL: bool>(&self, rows: &Self::Rows, step: usize) -> Stage {
        // SAFETY: the caller's promise.
        unsafe { self.packed.stage::<S, FULL>(rows, step) }
    }
    #[inline(always)]
    unsafe fn scales(&self, stage: &Stage, _: usize) -> Scales<S> {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = self.values::<S>(stage, self.scales);
            let mut min = self.values::<S>(stage, self.biases);
            if BITS == 8 && S::WIDE_OFFSET == 0 {
                // Signed codes are q − 128.
                min = S::mul_add(scale, S::splat(128.0), min);
            }
            Scales::with_min(scale, min)
        }
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
    type Rows = [usize; 4];
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
    unsafe fn rows(&self, rows: [usize; 4]) -> Self::Rows {
        rows
    }
    #[inline(always)]
    unsafe fn prefetch(&self, rows: &Self::Rows, step: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            self.packed.prefetch::<S>(rows, step);
            let parts = 1 + HALF as usize;
            let side = Side { base: self.scales, row_bytes: self.groups };
            side.prefetch::<S>(rows, step * S::LANES * parts, S::LANES * parts);
        }
    }
    #[inline(always)]
    unsafe fn stage<const FULL: bool>(&self, rows: &Self::Rows, step: usize) -> Stage {
        // SAFETY: the caller's promise.
        unsafe { self.packed.stage::<S, FULL>(rows, step) }
    }
    #[inline(always)]
    unsafe fn scales(&self, stage: &Stage, _: usize) -> Scales<S> {
        if !HALF && stage.blocks >= S::LANES {
            // SAFETY: the groups exist.
            let bytes = |r: usize| unsafe {
                let p = self.scales.add(stage.rows[r] * self.groups + stage.block);
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
                let eight = |r: usize| self.scales.add(stage.rows[r] * self.groups + 2 * stage.block).cast::<u64>();
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
            for (r, row) in stage.rows.iter().enumerate() {
                for (h, scales) in scales.iter_mut().enumerate().take(parts) {
                    let group = (stage.block + i) * parts + h;
                    if group < self.groups {
                        // Codes are twice the values. SAFETY: the group exists.
                        scales[4 * i + r] =
                            0.5 * self.mode.scale(unsafe { *self.scales.add(row * self.groups + group) });
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
