//! Formats of 256-value blocks whose codes come from tables: grids of points, and powers of three. A block of four rows is brought into one form first:
//! for each value the index of its level, for each eight values a byte of signs, and scales. A code is then `CODES[level + 8·sign]`.
//!
//! Grids are looked up in vectors where there are instructions for it; what leads there are operations on words of eight bytes, which the compiler makes
//! vectors of.
#![allow(non_camel_case_types)]

use super::super::Weight;
use super::super::simd::{Simd, both_halves, four};
use super::blocks::{Rows, prefetch, widened};
use super::{Scales, Source};
use crate::format::ggml::grids;
use crate::format::ggml::{
    BlockIQ1_M, BlockIQ1_S, BlockIQ2_S, BlockIQ2_XS, BlockIQ2_XXS, BlockIQ3_S, BlockIQ3_XXS, BlockTQ1_0,
};

/// A block of four rows. What is written as a vector is read as the same vector or a part of it: anything else waits until the cache has it.
#[repr(align(64))]
pub(crate) struct Decoded {
    /// For each row, a level index a value.
    levels: [[u8; 256]; 4],
    /// For each row, a bit a value: whether it is negative, or what else changes the code.
    signs: [[u16; 16]; 4],
    /// For the first and second halves of sub-blocks (only the first without [`Decode::HALVES`]) and each row, by sub-block.
    scales: [[[f32; 8]; 4]; 2],
}

/// One row's share of a [`Decoded`].
pub(crate) struct Row<'a> {
    levels: &'a mut [u8; 256],
    signs: &'a mut [u16; 16],
    scales: [&'a mut [f32; 8]; 2],
}

impl Row<'_> {
    /// Scales of sub-blocks.
    #[inline(always)]
    fn scales(&mut self, scale: impl Fn(usize) -> f32) {
        for (j, place) in self.scales[0].iter_mut().enumerate() {
            *place = scale(j);
        }
    }

    /// Scales of halves of sub-blocks, counted through.
    #[inline(always)]
    fn half_scales(&mut self, scale: impl Fn(usize) -> f32) {
        for (half, scales) in self.scales.iter_mut().enumerate() {
            for (j, place) in scales.iter_mut().enumerate() {
                *place = scale(2 * j + half);
            }
        }
    }

    /// A byte of signs for each eight values: word j has those of sub-block j.
    #[inline(always)]
    fn signs(&mut self, signs: [u32; 8]) {
        for (pair, signs) in self.signs.as_chunks_mut::<2>().0.iter_mut().zip(signs) {
            *pair = [signs as u16, (signs >> 16) as u16];
        }
    }
}

/// A block that decodes to levels, signs and scales.
pub(crate) trait Decode: Copy {
    /// Scales belong to 16 values instead of 32.
    const HALVES: bool;
    /// What codes have more than the signed weights.
    const OFFSET: i32;
    /// 7-bit codes: place level + 8·sign.
    const CODES: [u8; 16];
    /// Fills a row of S's decoded block.
    ///
    /// # Safety
    /// The machine has S's instruction set.
    unsafe fn decode<S: Simd>(&self, row: &mut Row<'_>);
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
    type Rows = [*const u8; 4];
    type Stage = Decoded;

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
        let mut decoded = Decoded { levels: [[0; 256]; 4], signs: [[0; 16]; 4], scales: [[[0.0; 8]; 4]; 2] };
        // SAFETY: the block lies within the rows.
        unsafe { S::decode::<B>(rows, step / (8 / S::LANES), &mut decoded) };
        decoded
    }
    #[inline(always)]
    unsafe fn scales(&self, stage: &Self::Stage, s: usize) -> Scales<S> {
        // SAFETY: eight floats for each row.
        unsafe {
            let of_half = |half: usize| S::float_rows(four!(|r| stage.scales[half][r].as_ptr().add(s * S::LANES % 8)));
            let second = if B::HALVES { of_half(1) } else { S::splat(0.0) };
            Scales { scale: [of_half(0), second], min: [S::splat(0.0); 2] }
        }
    }
    #[inline(always)]
    unsafe fn codes(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2] {
        // SAFETY: 32 levels for each of eight sub-blocks.
        unsafe {
            let levels = S::block_halves(stage.levels[r].as_ptr().add(s * S::LANES % 8 * 32));
            both_halves!(|half| {
                let signs = four!(|i| stage.signs[r][(s * S::LANES + i) % 8 * 2 + half / 16]);
                S::lookup(S::or(levels[half / 16], S::spread(signs, 8)), &B::CODES)
            })
        }
    }
}

/// Four rows' blocks.
///
/// # Safety
/// The blocks exist, at any address, and the machine has S's instruction set.
#[inline(always)]
unsafe fn decode<S: Simd, B: Decode>(rows: &[*const u8; 4], block: usize, decoded: &mut Decoded) {
    let [first, second] = &mut decoded.scales;
    let parts = decoded.levels.iter_mut().zip(&mut decoded.signs).zip(first.iter_mut().zip(second));
    for (row, ((levels, signs), (first, second))) in parts.enumerate() {
        let mut part = Row { levels, signs, scales: [first, second] };
        // SAFETY: the caller's promise.
        unsafe { rows[row].cast::<B>().add(block).read_unaligned().decode::<S>(&mut part) }
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
            pub(in super::super::super) unsafe fn $name<B: Decode>(
                rows: &[*const u8; 4],
                block: usize,
                decoded: &mut Decoded,
            ) {
                // SAFETY: the caller's promise is the same.
                unsafe { decode::<$set, B>(rows, block, decoded) }
            }
        };
    }

    every_set!(compiled);
}

static IQ1: [u16; 2048] = grids::IQ1;
static IQ2_XXS: [u16; 256] = grids::IQ2_XXS;
static IQ2_XS: [u16; 512] = grids::IQ2_XS;
static IQ2_S: [u16; 1024] = grids::IQ2_S;
static IQ3_XXS: [u16; 256] = grids::IQ3_XXS;
static IQ3_S: [u16; 512] = grids::IQ3_S;

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
fn even_signs(word: u32) -> u32 {
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

impl Decode for BlockIQ2_XXS {
    const HALVES: bool = false;
    const OFFSET: i32 = 64;
    const CODES: [u8; 16] = IQ2_CODES;

    #[inline(always)]
    unsafe fn decode<S: Simd>(&self, row: &mut Row<'_>) {
        let d = self.d.to_f32() * 0.25;
        let words: [u64; 8] = words(self.qs);
        row.scales(|j| d * (0.5 + (words[j] >> 60) as f32));
        row.signs(eight(|j| even_signs((words[j] >> 32) as u32)));
        // SAFETY: the caller's promise.
        unsafe { S::levels2(&IQ2_XXS, &indices(|j| widened(words[j] & 0xFFFF_FFFF)), row.levels) }
    }
}

/// d·(nibble + 1/2)
#[inline(always)]
fn nibble_scale(d: f32, nibbles: &[u8; 8], j: usize) -> f32 {
    d * (0.5 + ((nibbles[j / 2] >> (4 * (j % 2))) & 15) as f32)
}

impl Decode for BlockIQ2_XS {
    const HALVES: bool = true;
    const OFFSET: i32 = 64;
    const CODES: [u8; 16] = IQ2_CODES;

    #[inline(always)]
    unsafe fn decode<S: Simd>(&self, row: &mut Row<'_>) {
        let d = self.d.to_f32() * 0.25;
        row.half_scales(|j| nibble_scale(d, &self.scales, j));
        let words: [u64; 8] = words(self.qs);
        row.signs(eight(|j| {
            let codes = (words[j] >> 9) & 0x007F_007F_007F_007F;
            let pairs = codes | (codes >> 9);
            even_signs((pairs & 0x3FFF) as u32 | (((pairs >> 32) & 0x3FFF) << 14) as u32)
        }));
        // SAFETY: the caller's promise.
        unsafe { S::levels2(&IQ2_XS, &indices(|j| words[j] & 0x01FF_01FF_01FF_01FF), row.levels) }
    }
}

impl Decode for BlockIQ2_S {
    const HALVES: bool = true;
    const OFFSET: i32 = 64;
    const CODES: [u8; 16] = IQ2_CODES;

    #[inline(always)]
    unsafe fn decode<S: Simd>(&self, row: &mut Row<'_>) {
        let d = self.d.to_f32() * 0.25;
        row.half_scales(|j| nibble_scale(d, &self.scales, j));
        row.signs(words(self.signs));
        let qs: [u32; 8] = words(self.qs);
        let index = |j: usize| {
            // Two bits for each index.
            let high = self.qh[j] as u64;
            let high = (high | (high << 14) | (high << 28) | (high << 42)) & 0x0003_0003_0003_0003;
            widened(qs[j] as u64) | (high << 8)
        };
        // SAFETY: the caller's promise.
        unsafe { S::levels2(&IQ2_S, &indices(index), row.levels) }
    }
}

impl Decode for BlockIQ3_XXS {
    const HALVES: bool = false;
    const OFFSET: i32 = 64;
    const CODES: [u8; 16] = magnitudes([4, 12, 20, 28, 36, 44, 52, 62]);

    #[inline(always)]
    unsafe fn decode<S: Simd>(&self, row: &mut Row<'_>) {
        let d = self.d.to_f32() * 0.5;
        let (qs, signs): ([u32; 16], [u32; 8]) = (words(self.qs), words(self.scales_and_signs));
        row.scales(|j| d * (0.5 + (signs[j] >> 28) as f32));
        row.signs(eight(|j| even_signs(signs[j])));
        // SAFETY: the caller's promise.
        unsafe { S::levels3(&IQ3_XXS, &indices(|j| widened(qs[j] as u64)), row.levels) }
    }
}

impl Decode for BlockIQ3_S {
    const HALVES: bool = false;
    const OFFSET: i32 = 64;
    const CODES: [u8; 16] = magnitudes([1, 3, 5, 7, 9, 11, 13, 15]);

    #[inline(always)]
    unsafe fn decode<S: Simd>(&self, row: &mut Row<'_>) {
        let d = self.d.to_f32();
        row.scales(|j| d * (1 + 2 * ((self.scales[j / 2] >> (4 * (j % 2))) & 15)) as f32);
        row.signs(words(self.signs));
        let qs: [u32; 16] = words(self.qs);
        let index = |j: usize| {
            // A bit for each index.
            let high = (self.qh[j / 2] >> (4 * (j % 2))) as u64;
            let high = (high | (high << 15) | (high << 30) | (high << 45)) & 0x0001_0001_0001_0001;
            widened(qs[j] as u64) | (high << 8)
        };
        // SAFETY: the caller's promise.
        unsafe { S::levels3(&IQ3_S, &indices(index), row.levels) }
    }
}

impl Decode for BlockIQ1_S {
    const HALVES: bool = false;
    const OFFSET: i32 = 16;
    const CODES: [u8; 16] = IQ1_CODES;

    #[inline(always)]
    unsafe fn decode<S: Simd>(&self, row: &mut Row<'_>) {
        let d = self.d.to_f32() * 0.125;
        row.scales(|j| d * (2 * ((self.qh[j] >> 12) & 7) + 1) as f32);
        row.signs(eight(|j| 0u32.wrapping_sub(self.qh[j] as u32 >> 15)));
        let qs: [u32; 8] = words(self.qs);
        let index = |j: usize| {
            // Three bits for each index.
            let high = (self.qh[j] & 0x0FFF) as u64;
            let high = (high | (high << 13) | (high << 26) | (high << 39)) & 0x0007_0007_0007_0007;
            widened(qs[j] as u64) | (high << 8)
        };
        // SAFETY: the caller's promise.
        unsafe { S::levels2(&IQ1, &indices(index), row.levels) }
    }
}

impl Decode for BlockIQ1_M {
    const HALVES: bool = true;
    const OFFSET: i32 = 16;
    const CODES: [u8; 16] = IQ1_CODES;

    #[inline(always)]
    unsafe fn decode<S: Simd>(&self, row: &mut Row<'_>) {
        let d = self.d().to_f32() * 0.125;
        let bits = u64::from_le_bytes(self.scales);
        row.half_scales(|j| d * (2 * ((bits >> (16 * (j / 4) + 3 * (j % 4))) & 7) + 1) as f32);
        let nibbles = |j: usize| self.qh[2 * j] as u32 | ((self.qh[2 * j + 1] as u32) << 8);
        row.signs(eight(|j| {
            // The top bit of each nibble, as the lowest of a byte.
            let bits = (nibbles(j) >> 3) & 0x1111;
            let bits = (bits & 0x0011) | ((bits & 0x1100) << 8);
            ((bits & 0x0001_0001) | ((bits & 0x0010_0010) << 4)) * 0xFF
        }));
        let qs: [u32; 8] = words(self.qs);
        let index = |j: usize| {
            let high = (nibbles(j) & 0x7777) as u64;
            let high = (high | (high << 12) | (high << 24) | (high << 36)) & 0x0007_0007_0007_0007;
            widened(qs[j] as u64) | (high << 8)
        };
        // SAFETY: the caller's promise.
        unsafe { S::levels2(&IQ1, &indices(index), row.levels) }
    }
}

impl Decode for BlockTQ1_0 {
    const HALVES: bool = false;
    const OFFSET: i32 = 1;
    const CODES: [u8; 16] = [0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    #[inline(always)]
    unsafe fn decode<S: Simd>(&self, row: &mut Row<'_>) {
        let d = self.d.to_f32();
        row.scales(|_| d);
        // Digit n of a byte is what the product with 3ⁿ⁺¹ carries, the digits before dropped: see the format's definition.
        let digit = |byte: u8, power: u8| ((byte.wrapping_mul(power) as u16 * 3) >> 8) as u8;
        for (n, power) in [1u8, 3, 9, 27, 81].into_iter().enumerate() {
            for l in 0..32 {
                row.levels[32 * n + l] = digit(self.qs[l], power);
            }
            for l in 0..16 {
                row.levels[160 + 16 * n + l] = digit(self.qs[32 + l], power);
            }
            if n < 4 {
                for l in 0..4 {
                    row.levels[240 + 4 * n + l] = digit(self.qh[l], power);
                }
            }
        }
    }
}
