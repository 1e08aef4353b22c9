//! Where weight codes and scales come from: one [`Source`] for each family of formats, and the choice of a kernel.

mod blocks;
pub(super) mod decoded;
mod groups;
mod k_quants;

use super::prepare::{Layout, Order, Sums, rows_in_one};
use super::rowwise::Rowwise;
use super::simd::{Simd, four, unrolled};
use super::tiles::AHEAD_BYTES_ONE;
use super::{Config, Kernel, Precision, Weight, floats, tiles};
use crate::backend::cpu::isa::Isa;
use crate::format::ggml::{
    BlockIQ1_M, BlockIQ1_S, BlockIQ2_S, BlockIQ2_XS, BlockIQ2_XXS, BlockIQ3_S, BlockIQ3_XXS, BlockTQ1_0,
};
use crate::format::{FpMode, GgmlType, WeightFormat};
pub(super) use blocks::widened;
use decoded::Blocks;
pub(super) use decoded::isa as decode;
pub(super) use decoded::{Codes, Decode, Decoded, Levels, even_signs};
use groups::{Affine, Fp4};
pub(super) use k_quants::q3_k_scales;

/// Scales and minimums of one step of four rows, in (lane, row) places; the second of each is for the second halves of blocks, and used
/// only with [`Source::HALVES`], minimums only with [`Source::MINS`].
pub(super) struct Scales<S: Simd> {
    /// A weight is `scale · (code − offset) + min`.
    pub scale: [S::Floats; 2],
    /// See `scale`.
    pub min: [S::Floats; 2],
}

impl<S: Simd> Scales<S> {
    /// One scale a block.
    #[inline(always)]
    unsafe fn plain(scale: S::Floats) -> Self {
        // SAFETY: the caller runs on S's instruction set.
        unsafe { Scales { scale: [scale, S::splat(0.0)], min: [S::splat(0.0); 2] } }
    }

    /// One scale and one minimum a block.
    #[inline(always)]
    unsafe fn with_min(scale: S::Floats, min: S::Floats) -> Self {
        // SAFETY: the caller runs on S's instruction set.
        unsafe { Scales { scale: [scale, S::splat(0.0)], min: [min, S::splat(0.0)] } }
    }
}

/// See [`Source::sides`]: the kinds are the numbers below.
pub(super) const ANY_SIDES: usize = 2;

/// A weight matrix as 8-bit codes, read four rows and some steps at a time.
///
/// # Safety
/// All functions are called on S's instruction set, with rows that the weight has and steps below ⌈k / (32·LANES)⌉. `stage::<true>` only where all of its
/// steps lie within k.
pub(super) trait Source<S: Simd>: Sized {
    /// Scales belong to 16 values instead of 32.
    const HALVES: bool = false;
    /// There are minimums.
    const MINS: bool = false;
    /// Codes use all 256 values, see [`Simd::dot`].
    const WIDE: bool = false;
    /// The first halves of blocks are their even values, the second halves their odd ones; without [`HALVES`](Self::HALVES) only.
    const PAIRS: bool = false;
    /// What has been added to the signed weights to make codes.
    const OFFSET: i32 = if Self::WIDE { S::WIDE_OFFSET as i32 } else { 0 };
    /// There are [`folded`](Self::folded) codes of formats with scales for each 16 values.
    const FOLDED: bool = false;
    /// Scales times [`BIAS`](super::simd::BIAS) are exact and finite, and no group's scale is shared.
    const FUSED: bool = !(Self::HALVES && Self::MINS);
    /// Steps that are staged together; at most those of 256 values.
    const STEPS: usize = 1;
    /// Bytes of a row that a step reads.
    const STEP_BYTES: usize;
    /// How far ahead of their use a single column's weights are asked for: two distances of which [`Distances`](super::ahead::Distances) finds the faster one,
    /// or one of them twice.
    const AHEAD_BYTES: [usize; 2] = [AHEAD_BYTES_ONE; 2];
    /// A row may end within a step; then STEPS is 1.
    const TAILS: bool = true;
    /// Four rows.
    type Rows: Copy;
    /// Four rows at some steps: pointers, or what had to be decoded for all of them at once.
    type Stage;

    /// The weight `[n, k]`, whose format is this source's.
    unsafe fn new(weight: &Weight, k: usize) -> Self;
    /// Four rows.
    unsafe fn rows(&self, rows: [usize; 4]) -> Self::Rows;
    /// Steps `step..step + STEPS`; with `FULL = false` some of their values may lie beyond k.
    unsafe fn stage<const FULL: bool>(&self, rows: &Self::Rows, step: usize) -> Self::Stage;
    /// A step in which the rows end. Blocks behind k may be any of the weight, or as those of [`stage`](Self::stage) are.
    #[inline(always)]
    unsafe fn stage_over(&self, rows: &Self::Rows, step: usize) -> Self::Stage {
        // SAFETY: the caller's promise.
        unsafe { self.stage::<false>(rows, step) }
    }
    /// Scales of the s-th staged step.
    unsafe fn scales(&self, stage: &Self::Stage, s: usize) -> Scales<S>;
    /// Asks for the memory of a step of four rows, which need not exist.
    #[inline(always)]
    unsafe fn prefetch(&self, _rows: &Self::Rows, _step: usize) {}
    /// The loop over one column takes four steps at once, and is compiled for each kind of [`sides`](Self::sides).
    const BY_SIDES: bool = false;
    /// Which scales the weight has, or `ANY_SIDES`.
    #[inline(always)]
    fn sides(&self) -> usize {
        ANY_SIDES
    }
    /// Asks for a quarter of the memory of steps `step..step + 4` of four rows, which need not exist.
    #[inline(always)]
    unsafe fn prefetch_quarter<const SIDES: usize>(&self, rows: &Self::Rows, step: usize, quarter: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.prefetch(rows, step + quarter) }
    }
    /// Scales of steps `step..step + 4`, all of which lie within k: loaded together they take a third of the instructions. STEPS is 1 then, and `SIDES`
    /// what [`sides`](Self::sides) says. With [`TOGETHER`](Self::TOGETHER) they are the scales of what [`sums`](Self::sums) gives.
    #[inline(always)]
    unsafe fn four_scales<const SIDES: usize>(&self, rows: &Self::Rows, step: usize) -> [Scales<S>; 4] {
        // SAFETY: the caller's promise.
        unsafe { four!(|s| self.scales(&self.stage::<true>(rows, step + s), 0)) }
    }
    /// The loop over one column reads scales and sums of x spread to all places, from memory of its own: for formats whose codes keep the shuffling
    /// units busy.
    const SPREAD: bool = false;
    /// Steps that one column takes together, with [`SPREAD`](Self::SPREAD), where [`sums`](Self::sums) is faster than codes and dots: 4, or 0.
    const TOGETHER: usize = 0;
    /// What four rows are together may be added up row by row, by [`add_together`](Self::add_together): sums are not in the order of other kernels then.
    #[inline(always)]
    fn by_rows<const SIDES: usize>() -> bool {
        false
    }
    /// Adds the products of four rows with these steps of arranged x to `totals`, of each row the sum of all places.
    #[inline(always)]
    unsafe fn add_together<const SIDES: usize>(
        &self,
        _rows: &Self::Rows,
        _step: usize,
        _x: *const u8,
        _stride: usize,
        totals: [S::Floats; 4],
    ) -> [S::Floats; 4] {
        totals
    }
    /// Brings the codes of x in so many spread records, `stride` bytes from one to the next, into the order that [`sums`](Self::sums) needs.
    #[inline(always)]
    unsafe fn arrange(_x: *mut u8, _stride: usize) {}
    /// [`prefetch`](Self::prefetch) of four steps at once.
    #[inline(always)]
    unsafe fn prefetch_four(&self, rows: &Self::Rows, step: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            unrolled!(4, |s| {
                self.prefetch(rows, step + s);
            });
        }
    }
    /// Sums of codes, or of a multiple of them, times arranged x for each of these steps, with what undoes the codes' offset, by half if these have scales.
    #[inline(always)]
    unsafe fn sums(&self, _rows: &Self::Rows, _step: usize, _x: *const u8, _stride: usize) -> [[S::Ints; 2]; 4] {
        // SAFETY: the caller runs on S's instruction set.
        unsafe { [[S::zero_ints(); 2]; 4] }
    }
    /// How few rows of x are prepared for [`add_block`](Self::add_block), where that is faster than codes and dots. Blocks have 256 values, and a row begins with one.
    const ROWWISE: Option<Rowwise> = None;
    /// Adds the products of this block of four rows with M rows of x, as [`ROWWISE`](Self::ROWWISE) says, to `totals[row of x]`, of each weight row the sum of
    /// all places.
    #[inline(always)]
    unsafe fn add_block<const M: usize>(
        &self,
        _rows: &Self::Rows,
        _block: usize,
        _x: [*const u8; M],
        _totals: [[S::Floats; 4]; M],
    ) -> [[S::Floats; 4]; M] {
        unreachable!("only with ROWWISE")
    }
    /// [`codes`](Self::codes) for one column, which may be multiples of them.
    #[inline(always)]
    unsafe fn multiples(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2] {
        // SAFETY: the caller's promise.
        unsafe { self.codes(stage, r, s) }
    }
    /// Sums of codes from those of [`multiples`](Self::multiples) at the s-th staged step.
    #[inline(always)]
    unsafe fn of_multiples(sums: S::Ints, _s: usize) -> S::Ints {
        sums
    }
    /// Codes of row r at the s-th staged step: first and second halves of its blocks.
    unsafe fn codes(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2];
    /// Codes are what [`split`](Self::split) makes of [`stored`](Self::stored) bytes, byte by byte.
    const SPLIT: bool = false;
    /// Bytes of row r that codes come from.
    #[inline(always)]
    unsafe fn stored(&self, _stage: &Self::Stage, _r: usize) -> S::Bytes {
        unreachable!("only with SPLIT")
    }
    /// The codes of first and second halves.
    #[inline(always)]
    unsafe fn split(_stored: S::Bytes) -> [S::Bytes; 2] {
        unreachable!("only with SPLIT")
    }
    /// Two blocks share a scale and a minimum; eight of formats without minimums, and of [`folded`](Self::folded) codes.
    #[inline(always)]
    fn spans(&self) -> bool {
        false
    }
    /// [`codes`](Self::codes) multiplied by the integers that the scales of halves are multiples of, so that a span needs one scale. Those of formats without
    /// minimums are wide, and their start is that of both halves, shifted by [`FOLDED_START`].
    #[inline(always)]
    unsafe fn folded(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2] {
        // SAFETY: the caller's promise.
        unsafe { self.codes(stage, r, s) }
    }
    /// The span's scale of [`folded`](Self::folded) codes in every lane.
    #[inline(always)]
    unsafe fn span_scale(&self, _stage: &Self::Stage) -> S::Floats {
        // SAFETY: the caller runs on S's instruction set.
        unsafe { S::splat(0.0) }
    }
}

/// See [`Source::folded`].
pub(super) const FOLDED_START: u32 = 5;

/// A kernel and the layout of x that it reads.
pub(super) struct Choice {
    /// The function.
    pub kernel: Kernel,
    /// What it reads.
    pub layout: Layout,
    /// See [`rows_in_one`].
    pub rows_in_one: usize,
    /// See [`Source::ROWWISE`].
    pub rowwise: Option<Rowwise>,
    /// Its name.
    pub name: &'static str,
}

/// Fewer output features than this get 16-bit activations even with [`Precision::Q8`]: rounding errors and a sum that happens to come
/// out near zero average out over many features, not over a few. Small products cost little either way.
const FEW_FEATURES: usize = 64;

/// Rows of fewer values than this get 16-bit activations too: one outlier in 32 values makes that block's error several times the average,
/// and it takes some blocks to outweigh it.
const FEW_VALUES: usize = 17 * 32;

/// The layout of x for an integer kernel: a function of the weight's shape alone, so that a row's bits do not depend on m.
fn codes_layout<S: Simd, F: Source<S>>(config: Config, n: usize, k: usize) -> Layout {
    let planes = match config.activations {
        Precision::Exact => 3,
        Precision::Q8 if n < FEW_FEATURES || k < FEW_VALUES => 2,
        Precision::Q8 => 1,
    };
    let sums = if F::MINS { Sums::Plain } else { Sums::Offset(F::OFFSET) };
    let order = Order { pairs: F::PAIRS, by_dword: S::ROWS_IN_LANES };
    Layout::Codes { k, lanes: S::LANES, halves: F::HALVES, sums, order, planes, times: 1 }
}

/// How many weight rows one row of x meets as one.
fn in_one<S: Simd, F: Source<S>>(n: usize, k: usize) -> usize {
    if F::TAILS && F::TOGETHER == 0 { rows_in_one(S::LANES, n, k) } else { 1 }
}

/// The integer kernel of one source on every instruction set.
macro_rules! codes {
    ($config:expr, $n:expr, $k:expr, $source:ty) => {
        match $config.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Choice {
                kernel: isa::avx512::<$source>,
                layout: codes_layout::<super::simd::avx512::Avx512, $source>($config, $n, $k),
                rows_in_one: in_one::<super::simd::avx512::Avx512, $source>($n, $k),
                rowwise: <$source as Source<super::simd::avx512::Avx512>>::ROWWISE,
                name: "avx512 int8",
            },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Choice {
                kernel: isa::avx2::<$source>,
                layout: codes_layout::<super::simd::avx2::Avx2, $source>($config, $n, $k),
                rows_in_one: in_one::<super::simd::avx2::Avx2, $source>($n, $k),
                rowwise: <$source as Source<super::simd::avx2::Avx2>>::ROWWISE,
                name: "avx2 int8",
            },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Choice {
                kernel: isa::neon::<$source>,
                layout: codes_layout::<super::simd::neon::Neon, $source>($config, $n, $k),
                rows_in_one: in_one::<super::simd::neon::Neon, $source>($n, $k),
                rowwise: <$source as Source<super::simd::neon::Neon>>::ROWWISE,
                name: "neon int8",
            },
            Isa::Portable => Choice {
                kernel: isa::portable::<$source>,
                layout: codes_layout::<super::simd::portable::Portable, $source>($config, $n, $k),
                rows_in_one: in_one::<super::simd::portable::Portable, $source>($n, $k),
                rowwise: <$source as Source<super::simd::portable::Portable>>::ROWWISE,
                name: "portable int8",
            },
        }
    };
}

/// The kernel for a format.
pub(super) fn choose(config: Config, format: WeightFormat, n: usize, k: usize) -> Choice {
    match format {
        WeightFormat::Ggml(ty) => match ty {
            GgmlType::Q4_0 => codes!(config, n, k, blocks::Q4_0),
            GgmlType::Q4_1 => codes!(config, n, k, blocks::Q4_1),
            GgmlType::Q5_0 => codes!(config, n, k, blocks::Q5_0),
            GgmlType::Q5_1 => codes!(config, n, k, blocks::Q5_1),
            GgmlType::Q8_0 => codes!(config, n, k, blocks::Q8_0),
            GgmlType::IQ4_NL => codes!(config, n, k, blocks::IQ4_NL),
            GgmlType::MXFP4 => codes!(config, n, k, blocks::MXFP4),
            GgmlType::Q2_K => codes!(config, n, k, k_quants::Q2_K),
            GgmlType::Q3_K => codes!(config, n, k, k_quants::Q3_K),
            GgmlType::Q4_K => codes!(config, n, k, k_quants::Q4_K),
            GgmlType::Q5_K => codes!(config, n, k, k_quants::Q5_K),
            GgmlType::Q6_K => codes!(config, n, k, k_quants::Q6_K),
            GgmlType::IQ4_XS => codes!(config, n, k, k_quants::IQ4_XS),
            GgmlType::TQ2_0 => codes!(config, n, k, k_quants::TQ2_0),
            GgmlType::NVFP4 => codes!(config, n, k, blocks::NVFP4),
            GgmlType::Q1_0 => codes!(config, n, k, blocks::Q1_0),
            GgmlType::TQ1_0 => codes!(config, n, k, Blocks<BlockTQ1_0>),
            GgmlType::IQ1_S => codes!(config, n, k, Blocks<BlockIQ1_S>),
            GgmlType::IQ1_M => codes!(config, n, k, Blocks<BlockIQ1_M>),
            GgmlType::IQ2_XXS => codes!(config, n, k, Blocks<BlockIQ2_XXS>),
            GgmlType::IQ2_XS => codes!(config, n, k, Blocks<BlockIQ2_XS>),
            GgmlType::IQ2_S => codes!(config, n, k, Blocks<BlockIQ2_S>),
            GgmlType::IQ3_XXS => codes!(config, n, k, Blocks<BlockIQ3_XXS>),
            GgmlType::IQ3_S => codes!(config, n, k, Blocks<BlockIQ3_S>),
            _ => floats::choose(config, k),
        },
        WeightFormat::Affine(affine) if affine.group_size >= 32 && affine.group_size.is_power_of_two() => {
            match affine.bits {
                1 => codes!(config, n, k, Affine<1>),
                2 => codes!(config, n, k, Affine<2>),
                3 => codes!(config, n, k, Affine<3>),
                4 => codes!(config, n, k, Affine<4>),
                5 => codes!(config, n, k, Affine<5>),
                6 => codes!(config, n, k, Affine<6>),
                _ => codes!(config, n, k, Affine<8>),
            }
        }
        WeightFormat::Affine(_) => floats::choose(config, k),
        WeightFormat::Fp(mode) => match mode {
            FpMode::Mxfp4 => codes!(config, n, k, Fp4<false>),
            FpMode::Nvfp4 => codes!(config, n, k, Fp4<true>),
            FpMode::Mxfp8 => floats::choose(config, k),
        },
    }
}

/// The integer kernels compiled for each instruction set, with the groups of rows that its registers hold.
mod isa {
    use super::{Source, tiles};
    use crate::backend::cpu::matmul::Job;
    use crate::backend::cpu::matmul::simd::{Simd, every_set};

    macro_rules! compiled {
        ($(#[$attribute:meta])* $name:ident, $set:ty) => {
            $(#[$attribute])*
            pub(super) unsafe fn $name<F: Source<$set>>(job: &Job) {
                const ROWS: usize = <$set as Simd>::ROW_VECTORS;
                // SAFETY: the caller's promise is the same.
                unsafe { tiles::run::<$set, F, ROWS, ROWS>(job) }
            }
        };
    }
    every_set!(compiled);
}
