//! Formats of 256-value blocks whose codes come from tables: grids of points, and powers of three. A block of four rows is brought into one form first:
//! for each value the index of its level, for each eight values a byte of signs, and scales. A code is then `CODES[level + 8·sign]`.
//!
//! Grids are looked up in vectors where there are instructions for it; what leads there are operations on words of eight bytes, which the compiler makes
//! vectors of.
#![allow(non_camel_case_types)]

use super::super::Weight;
use super::super::rowwise::Rowwise;
use super::super::simd::{ByRow, MAX_LANES, Simd, both_halves, four};
use super::blocks::{Rows, joined, nibble_bytes, prefetch, widened};
use super::{Scales, Source};
use crate::format::ggml::grids;
use crate::format::ggml::{
    BlockIQ1_M, BlockIQ1_S, BlockIQ2_S, BlockIQ2_XS, BlockIQ2_XXS, BlockIQ3_S, BlockIQ3_XXS, BlockTQ1_0,
};

/// A block of four rows. What is written as a vector is read as the same vector or a part of it: anything else waits until the cache has it.
#[repr(align(64))]
pub(crate) struct Decoded<S: Simd> {
    /// Each row's level indices.
    levels: [S::Levels; 4],
    /// For each row, a bit a value: whether it is negative, or what else changes the code; see [`Simd::sign_words`].
    signs: [[u64; 4]; 4],
    /// See [`Decode::multipliers`].
    multipliers: [[u64; 2]; 4],
    /// The rows' f16 scales, the first one lowest.
    d: u64,
}

/// A block that decodes to levels, signs and scales.
pub(crate) trait Decode: Copy {
    /// Scales belong to 16 values instead of 32.
    const HALVES: bool;
    /// What codes have more than the signed weights.
    const OFFSET: i32;
    /// What the level indices are.
    const LEVELS: Levels;
    /// 7-bit codes: place level + 8·sign; without signs they are the levels.
    const CODES: [u8; 16];
    /// A scale is FACTOR · d · (multiplier + ½).
    const FACTOR: f32;
    /// The bits of d.
    fn d(&self) -> u16;
    /// Bytes of multipliers: one a sub-block in the first word, or two of them in both.
    ///
    /// # Safety
    /// The machine has S's instruction set.
    unsafe fn multipliers<S: Simd>(&self) -> [u64; 2];
    /// A byte of signs for each eight values: word j has those of sub-block j.
    ///
    /// # Safety
    /// The machine has S's instruction set.
    unsafe fn signs<S: Simd>(&self) -> Option<[u32; 8]>;
    /// The level indices of the block, which lies at `p`.
    ///
    /// # Safety
    /// It does, and the machine has S's instruction set.
    unsafe fn levels<S: Simd>(&self, p: *const u8) -> S::Levels;
}

/// Where level indices come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Levels {
    /// Eight of two bits in a grid's point.
    Two,
    /// Four of three bits in a grid's point.
    Three,
    /// Eight of four bits in a grid's point, of which two are used.
    Four,
    /// Ternary digits.
    Digits,
}

impl Levels {
    /// What the bits of a level can say.
    const fn count(self) -> usize {
        match self {
            Levels::Two | Levels::Four | Levels::Digits => 4,
            Levels::Three => 8,
        }
    }
}

/// The codes of a format for [`Simd::level_codes`]. Sets without lookups of six bits need the first field only.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only AVX-512 looks up six bits"))]
pub(crate) struct Codes {
    /// [`Decode::CODES`].
    pub codes: [u8; 16],
    /// Without a sign: the code of level i % 4 or i % 8, whatever the bits above are.
    pub of_bits: [u8; 64],
    /// What a sign does to them.
    pub sign: Sign,
}

/// What a sign does to a code.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "see `Codes`"))]
pub(crate) enum Sign {
    /// It makes it what is missing to this sum.
    Mirrors(u8),
    /// It makes it so much less.
    Lowers(u8),
}

impl Codes {
    const fn of<B: Decode>() -> Codes {
        let (codes, levels) = (B::CODES, B::LEVELS.count());
        let mut of_bits = [0; 64];
        let mut i = 0;
        while i < 64 {
            of_bits[i] = codes[i % levels];
            i += 1;
        }
        let sum = codes[0] + codes[8];
        let less = codes[0].wrapping_sub(codes[8]);
        let (mut mirrors, mut lowers) = (true, true);
        i = 0;
        // The fourth code of two bits may be none.
        while i < if levels == 4 { 3 } else { levels } {
            mirrors &= codes[i] + codes[8 + i] == sum;
            lowers &= codes[i].wrapping_sub(codes[8 + i]) == less;
            i += 1;
        }
        assert!(mirrors || lowers || matches!(B::LEVELS, Levels::Digits));
        Codes { codes, of_bits, sign: if mirrors { Sign::Mirrors(sum) } else { Sign::Lowers(less) } }
    }
}

/// Rows of blocks B.
pub(in super::super) struct Blocks<B> {
    rows: Rows,
    block: std::marker::PhantomData<B>,
}

impl<S: Simd, B: Decode> Source<S> for Blocks<B> {
    const HALVES: bool = B::HALVES;
    const OFFSET: i32 = B::OFFSET;
    const STEPS: usize = 8 / S::LANES;
    const STEP_BYTES: usize = size_of::<B>() * S::LANES / 8;
    const TAILS: bool = false;
    // Grids wait for other things.
    const SPREAD: bool = matches!(B::LEVELS, Levels::Digits);
    const ROWWISE: Option<Rowwise> =
        if S::ByRow::THERE && matches!(B::LEVELS, Levels::Digits) { Some(Rowwise::Ternary) } else { None };
    type Rows = [*const u8; 4];
    type Stage = Decoded<S>;

    #[inline(always)]
    unsafe fn new(weight: &Weight, k: usize) -> Self {
        Blocks { rows: Rows::new(weight, k, 256, size_of::<B>()), block: std::marker::PhantomData }
    }
    #[inline(always)]
    unsafe fn rows(&self, rows: [usize; 4]) -> Self::Rows {
        // SAFETY: the caller's rows exist.
        unsafe { self.rows.at(rows) }
    }
    #[inline(always)]
    unsafe fn prefetch(&self, rows: &Self::Rows, step: usize) {
        // SAFETY: any address may be prefetched.
        unsafe { prefetch::<S>(rows, step / (8 / S::LANES) * size_of::<B>(), size_of::<B>()) }
    }
    #[inline(always)]
    unsafe fn stage<const FULL: bool>(&self, rows: &Self::Rows, step: usize) -> Self::Stage {
        let block = step / (8 / S::LANES);
        // SAFETY: the block lies within the rows. Digits need few registers, and nothing but the loop around them.
        unsafe { if B::LEVELS == Levels::Digits { decode::<S, B>(rows, block) } else { S::decode::<B>(rows, block) } }
    }
    #[inline(always)]
    unsafe fn add_block<const M: usize>(
        &self,
        rows: &Self::Rows,
        block: usize,
        x: [*const u8; M],
        totals: [[S::Floats; 4]; M],
    ) -> [[S::Floats; 4]; M] {
        // SAFETY: the block lies within the rows, and TQ1_0 is the only format of digits.
        unsafe { S::ByRow::add_tq1_0(four!(|r| rows[r].add(block * size_of::<B>())), x.map(|x| x.cast()), totals) }
    }
    #[inline(always)]
    unsafe fn scales(&self, stage: &Self::Stage, s: usize) -> Scales<S> {
        // SAFETY: the caller runs on S's instruction set.
        unsafe {
            let d = S::mul(S::f16_lanes([stage.d; MAX_LANES]), S::splat(B::FACTOR));
            let times = |multipliers: S::Floats| S::mul(d, S::add(multipliers, S::splat(0.5)));
            if B::HALVES {
                let multipliers = S::half_bytes(stage.multipliers);
                let times = |half: usize| times(S::half_u8(multipliers, s, half));
                Scales { scale: [times(0), times(1)], min: [S::splat(0.0); 2] }
            } else {
                let bytes = four!(|r| (stage.multipliers[r][0] >> (8 * S::LANES * s)) as u32);
                Scales::plain(times(S::u8_rows(bytes)))
            }
        }
    }
    #[inline(always)]
    unsafe fn multiples(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            if B::LEVELS == Levels::Digits {
                both_halves!(|half| S::digits_at(&stage.levels[r], s, half / 16))
            } else {
                self.codes(stage, r, s)
            }
        }
    }
    #[inline(always)]
    unsafe fn of_multiples(sums: S::Ints, s: usize) -> S::Ints {
        // SAFETY: the caller runs on S's instruction set.
        unsafe { if B::LEVELS == Levels::Digits && s == 0 { S::of_fields(sums, 0) } else { sums } }
    }
    #[inline(always)]
    unsafe fn codes(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2] {
        let first = s * S::LANES;
        // SAFETY: the caller runs on S's instruction set.
        both_halves!(|half| unsafe {
            let levels = S::levels_at(&stage.levels[r], B::LEVELS, s, half / 16);
            if B::LEVELS == Levels::Digits {
                S::and(levels, 3)
            } else {
                let signs = stage.signs[r][first / 4 % 2 * 2 + half / 16] >> (16 * (first % 4));
                S::level_codes(levels, signs, const { &Codes::of::<B>() })
            }
        })
    }
}

/// Four rows' blocks.
///
/// # Safety
/// The blocks exist, at any address, and the machine has S's instruction set.
#[inline(always)]
unsafe fn decode<S: Simd, B: Decode>(rows: &[*const u8; 4], block: usize) -> Decoded<S> {
    // SAFETY: the caller's promise.
    unsafe {
        let p = four!(|r| rows[r].cast::<B>().add(block));
        let blocks = four!(|r| p[r].read_unaligned());
        Decoded {
            levels: four!(|r| blocks[r].levels::<S>(p[r].cast())),
            signs: four!(|r| match blocks[r].signs::<S>() {
                Some(signs) => S::sign_words(signs),
                None => [0; 4],
            }),
            multipliers: four!(|r| blocks[r].multipliers::<S>()),
            d: joined(four!(|r| blocks[r].d())),
        }
    }
}

/// [`decode`] compiled for each instruction set.
pub(in super::super) mod isa {
    use super::{Decode, Decoded, decode};
    use crate::backend::cpu::matmul::simd::every_set;

    macro_rules! compiled {
        ($(#[$attribute:meta])* $name:ident, $set:ty) => {
            $(#[$attribute])*
            #[inline(never)]
            pub(in super::super::super) unsafe fn $name<B: Decode>(rows: &[*const u8; 4], block: usize) -> Decoded<$set> {
                // SAFETY: the caller's promise is the same.
                unsafe { decode::<$set, B>(rows, block) }
            }
        };
    }

    every_set!(compiled);
}

/// Four bits a level: too large for registers, the table is read entry by entry.
static IQ1: [u32; 2048] = nibbles(&grids::IQ1);
static IQ2_XXS: [u16; 256] = grids::IQ2_XXS;
static IQ2_XS: [u16; 512] = grids::IQ2_XS;
static IQ2_S: [u16; 1024] = grids::IQ2_S;
static IQ3_XXS: [u16; 256] = grids::IQ3_XXS;
static IQ3_S: [u16; 512] = grids::IQ3_S;

/// Points with four bits a level instead of two.
const fn nibbles<const POINTS: usize>(points: &[u16; POINTS]) -> [u32; POINTS] {
    let mut wide = [0; POINTS];
    let mut i = 0;
    while i < 8 * POINTS {
        wide[i / 8] |= ((points[i / 8] >> (2 * (i % 8)) & 3) as u32) << (4 * (i % 8));
        i += 1;
    }
    wide
}

/// 64 ± magnitude.
const fn magnitudes(levels: [u8; 8]) -> [u8; 16] {
    let mut codes = [0; 16];
    let mut i = 0;
    while i < 8 {
        codes[i] = 64 + levels[i];
        codes[8 + i] = 64 - levels[i];
        i += 1;
    }
    codes
}

const IQ2_CODES: [u8; 16] = magnitudes([8, 25, 43, 0, 0, 0, 0, 0]);
/// 16 + 8·point ± 1 for points −1, 0, 1: an eighth of the scale makes point ± 1/8 of them.
const IQ1_CODES: [u8; 16] = [9, 17, 25, 0, 0, 0, 0, 0, 7, 15, 23, 0, 0, 0, 0, 0];

/// Four 7-bit sign codes from the low bits of a word, each with an eighth bit that makes the number of signs even.
#[inline(always)]
pub(in super::super) fn even_signs(word: u32) -> u32 {
    let halves = (word & 0x3FFF) | ((word & 0x0FFF_C000) << 2);
    let codes = (halves & 0x007F_007F) | ((halves & 0x3F80_3F80) << 1);
    let folded = codes ^ (codes >> 4);
    let folded = folded ^ (folded >> 2);
    let folded = folded ^ (folded >> 1);
    codes | ((folded & 0x0101_0101) << 7)
}

/// Grid indices as words of four.
#[inline(always)]
fn indices<const WORDS: usize>(word: impl Fn(usize) -> u64) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    for (j, place) in words.iter_mut().enumerate() {
        *place = word(j);
    }
    words
}

/// A field's bytes as larger words. Blocks lie in memory as in their file, so a word is one of a little-endian machine: as everywhere in these kernels.
#[inline(always)]
fn words<A: bytemuck::Pod, B: bytemuck::Pod>(field: A) -> B {
    bytemuck::cast(field)
}

/// Eight times what `f` gives.
#[inline(always)]
fn eight(f: impl Fn(usize) -> u32) -> [u32; 8] {
    let mut words = [0; 8];
    for (j, place) in words.iter_mut().enumerate() {
        *place = f(j);
    }
    words
}

/// Sixteen multipliers of four bits.
#[inline(always)]
fn nibble_multipliers(nibbles: [u8; 8]) -> [u64; 2] {
    let nibbles = u64::from_le_bytes(nibbles);
    [nibble_bytes(nibbles as u32), nibble_bytes((nibbles >> 32) as u32)]
}

impl Decode for BlockIQ2_XXS {
    const HALVES: bool = false;
    const OFFSET: i32 = 64;
    const LEVELS: Levels = Levels::Two;
    const CODES: [u8; 16] = IQ2_CODES;
    const FACTOR: f32 = 0.25;

    #[inline(always)]
    fn d(&self) -> u16 {
        self.d.to_bits()
    }
    #[inline(always)]
    unsafe fn multipliers<S: Simd>(&self) -> [u64; 2] {
        let words: [u64; 8] = words(self.qs);
        // SAFETY: the caller's promise.
        [unsafe { S::top_nibbles(eight(|j| (words[j] >> 32) as u32)) }, 0]
    }
    #[inline(always)]
    unsafe fn signs<S: Simd>(&self) -> Option<[u32; 8]> {
        let words: [u64; 8] = words(self.qs);
        // SAFETY: the caller's promise.
        Some(unsafe { S::even_signs(eight(|j| (words[j] >> 32) as u32)) })
    }
    #[inline(always)]
    unsafe fn levels<S: Simd>(&self, _: *const u8) -> S::Levels {
        let words: [u64; 8] = words(self.qs);
        // SAFETY: the caller's promise.
        unsafe { S::levels2(&IQ2_XXS, &indices(|j| widened(words[j] & 0xFFFF_FFFF))) }
    }
}

impl Decode for BlockIQ2_XS {
    const HALVES: bool = true;
    const OFFSET: i32 = 64;
    const LEVELS: Levels = Levels::Two;
    const CODES: [u8; 16] = IQ2_CODES;
    const FACTOR: f32 = 0.25;

    #[inline(always)]
    fn d(&self) -> u16 {
        self.d.to_bits()
    }
    #[inline(always)]
    unsafe fn multipliers<S: Simd>(&self) -> [u64; 2] {
        nibble_multipliers(self.scales)
    }
    #[inline(always)]
    unsafe fn signs<S: Simd>(&self) -> Option<[u32; 8]> {
        let words: [u64; 8] = words(self.qs);
        // SAFETY: the caller's promise.
        Some(unsafe {
            S::even_signs(eight(|j| {
                let codes = (words[j] >> 9) & 0x007F_007F_007F_007F;
                let pairs = codes | (codes >> 9);
                (pairs & 0x3FFF) as u32 | (((pairs >> 32) & 0x3FFF) << 14) as u32
            }))
        })
    }
    #[inline(always)]
    unsafe fn levels<S: Simd>(&self, _: *const u8) -> S::Levels {
        let words: [u64; 8] = words(self.qs);
        // SAFETY: the caller's promise.
        unsafe { S::levels2(&IQ2_XS, &indices(|j| words[j] & 0x01FF_01FF_01FF_01FF)) }
    }
}

impl Decode for BlockIQ2_S {
    const HALVES: bool = true;
    const OFFSET: i32 = 64;
    const LEVELS: Levels = Levels::Two;
    const CODES: [u8; 16] = IQ2_CODES;
    const FACTOR: f32 = 0.25;

    #[inline(always)]
    fn d(&self) -> u16 {
        self.d.to_bits()
    }
    #[inline(always)]
    unsafe fn multipliers<S: Simd>(&self) -> [u64; 2] {
        nibble_multipliers(self.scales)
    }
    #[inline(always)]
    unsafe fn signs<S: Simd>(&self) -> Option<[u32; 8]> {
        Some(words(self.signs))
    }
    #[inline(always)]
    unsafe fn levels<S: Simd>(&self, _: *const u8) -> S::Levels {
        // SAFETY: the caller's promise.
        unsafe { S::levels2(&IQ2_S, &S::long_indices::<2, 2>(&self.qs, self.qh.map(u16::from))) }
    }
}

impl Decode for BlockIQ3_XXS {
    const HALVES: bool = false;
    const OFFSET: i32 = 64;
    const LEVELS: Levels = Levels::Three;
    const CODES: [u8; 16] = magnitudes([4, 12, 20, 28, 36, 44, 52, 62]);
    const FACTOR: f32 = 0.5;

    #[inline(always)]
    fn d(&self) -> u16 {
        self.d.to_bits()
    }
    #[inline(always)]
    unsafe fn multipliers<S: Simd>(&self) -> [u64; 2] {
        // SAFETY: the caller's promise.
        [unsafe { S::top_nibbles(words(self.scales_and_signs)) }, 0]
    }
    #[inline(always)]
    unsafe fn signs<S: Simd>(&self) -> Option<[u32; 8]> {
        // SAFETY: the caller's promise.
        Some(unsafe { S::even_signs(words(self.scales_and_signs)) })
    }
    #[inline(always)]
    unsafe fn levels<S: Simd>(&self, _: *const u8) -> S::Levels {
        let qs: [u32; 16] = words(self.qs);
        // SAFETY: the caller's promise.
        unsafe { S::levels3(&IQ3_XXS, &indices(|j| widened(qs[j] as u64))) }
    }
}

impl Decode for BlockIQ3_S {
    const HALVES: bool = false;
    const OFFSET: i32 = 64;
    const LEVELS: Levels = Levels::Three;
    const CODES: [u8; 16] = magnitudes([1, 3, 5, 7, 9, 11, 13, 15]);
    const FACTOR: f32 = 2.0;

    #[inline(always)]
    fn d(&self) -> u16 {
        self.d.to_bits()
    }
    #[inline(always)]
    unsafe fn multipliers<S: Simd>(&self) -> [u64; 2] {
        [nibble_bytes(u32::from_le_bytes(self.scales)), 0]
    }
    #[inline(always)]
    unsafe fn signs<S: Simd>(&self) -> Option<[u32; 8]> {
        Some(words(self.signs))
    }
    #[inline(always)]
    unsafe fn levels<S: Simd>(&self, _: *const u8) -> S::Levels {
        let qs: [[u8; 32]; 2] = words(self.qs);
        let qh: [u32; 2] = words(self.qh);
        let high = |half: usize| nibble_bytes(qh[half]).to_le_bytes().map(u16::from);
        // SAFETY: the caller's promise.
        unsafe {
            let [low, high] = [S::long_indices::<1, 1>(&qs[0], high(0)), S::long_indices::<1, 1>(&qs[1], high(1))];
            S::levels3(&IQ3_S, &words([low, high]))
        }
    }
}

impl Decode for BlockIQ1_S {
    const HALVES: bool = false;
    const OFFSET: i32 = 16;
    const LEVELS: Levels = Levels::Four;
    const CODES: [u8; 16] = IQ1_CODES;
    const FACTOR: f32 = 0.25;

    #[inline(always)]
    fn d(&self) -> u16 {
        self.d.to_bits()
    }
    #[inline(always)]
    unsafe fn multipliers<S: Simd>(&self) -> [u64; 2] {
        // The top bit of a nibble is a sign. SAFETY: the caller's promise.
        [unsafe { S::top_nibbles(eight(|j| (self.qh[j] as u32) << 16)) } & 0x0707_0707_0707_0707, 0]
    }
    #[inline(always)]
    unsafe fn signs<S: Simd>(&self) -> Option<[u32; 8]> {
        Some(eight(|j| 0u32.wrapping_sub(self.qh[j] as u32 >> 15)))
    }
    #[inline(always)]
    unsafe fn levels<S: Simd>(&self, _: *const u8) -> S::Levels {
        // SAFETY: the caller's promise.
        unsafe { S::levels4(&IQ1, &S::long_indices::<3, 3>(&self.qs, self.qh)) }
    }
}

impl BlockIQ1_M {
    /// The four nibbles of sub-block j: three bits of an index and one that moves eight values.
    #[inline(always)]
    fn nibbles(&self, j: usize) -> u32 {
        self.qh[2 * j] as u32 | ((self.qh[2 * j + 1] as u32) << 8)
    }
}

impl Decode for BlockIQ1_M {
    const HALVES: bool = true;
    const OFFSET: i32 = 16;
    const LEVELS: Levels = Levels::Four;
    const CODES: [u8; 16] = IQ1_CODES;
    const FACTOR: f32 = 0.25;

    #[inline(always)]
    fn d(&self) -> u16 {
        BlockIQ1_M::d(self).to_bits()
    }
    #[inline(always)]
    unsafe fn multipliers<S: Simd>(&self) -> [u64; 2] {
        // Four times three bits in each u16.
        let bits = u64::from_le_bytes(self.scales);
        let of_pair = |pair: u64| {
            let v = (pair | (pair << 16)) & 0x0000_FFFF_0000_FFFF;
            let field = |i: u64| (v << (5 * i)) & (0x0000_0007_0000_0007 << (8 * i));
            field(0) | field(1) | field(2) | field(3)
        };
        [of_pair(bits & 0xFFFF_FFFF), of_pair(bits >> 32)]
    }
    #[inline(always)]
    unsafe fn signs<S: Simd>(&self) -> Option<[u32; 8]> {
        Some(eight(|j| {
            // The top bit of each nibble, as the lowest of a byte.
            let bits = (self.nibbles(j) >> 3) & 0x1111;
            let bits = (bits & 0x0011) | ((bits & 0x1100) << 8);
            ((bits & 0x0001_0001) | ((bits & 0x0010_0010) << 4)) * 0xFF
        }))
    }
    #[inline(always)]
    unsafe fn levels<S: Simd>(&self, _: *const u8) -> S::Levels {
        // SAFETY: the caller's promise.
        unsafe { S::levels4(&IQ1, &S::long_indices::<3, 4>(&self.qs, words(self.qh))) }
    }
}

impl Decode for BlockTQ1_0 {
    const HALVES: bool = false;
    const OFFSET: i32 = 1;
    const LEVELS: Levels = Levels::Digits;
    const CODES: [u8; 16] = [0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const FACTOR: f32 = 2.0;

    #[inline(always)]
    fn d(&self) -> u16 {
        self.d.to_bits()
    }
    #[inline(always)]
    unsafe fn multipliers<S: Simd>(&self) -> [u64; 2] {
        [0; 2]
    }
    #[inline(always)]
    unsafe fn signs<S: Simd>(&self) -> Option<[u32; 8]> {
        None
    }
    #[inline(always)]
    unsafe fn levels<S: Simd>(&self, p: *const u8) -> S::Levels {
        // SAFETY: the caller's promise; the digits come first.
        unsafe { S::digits(p) }
    }
}
