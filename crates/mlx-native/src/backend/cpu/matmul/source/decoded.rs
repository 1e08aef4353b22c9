//! Formats of 256-value blocks whose codes come from tables: decoded to bytes on the stack, a block of four rows at a time.
#![allow(non_camel_case_types)]

use super::super::Weight;
use super::super::simd::{MAX_LANES, Simd, both_halves, four};
use super::blocks::Rows;
use super::{Scales, Source};
use crate::format::ggml::codebooks::{
    EVEN_SIGNS, IQ1_GRID, IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID, IQ3_S_GRID, IQ3_XXS_GRID,
};
use crate::format::ggml::{
    BlockIQ1_M, BlockIQ1_S, BlockIQ2_S, BlockIQ2_XS, BlockIQ2_XXS, BlockIQ3_S, BlockIQ3_XXS, BlockTQ1_0,
};

/// 256 decoded values: eight codes a word, lowest first, and a scale for each 16 values.
pub(in super::super) struct Decoded {
    codes: [u64; 32],
    scales: [f32; 16],
}

/// A block that decodes to 7-bit codes.
pub(in super::super) trait Decode: Copy {
    /// Scales belong to 16 values instead of 32.
    const HALVES: bool;
    /// What codes have more than the signed weights.
    const OFFSET: i32;
    /// Codes and scales of the block.
    fn decode(&self, out: &mut Decoded);
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
    type Stage = [Decoded; 4];

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
    unsafe fn stage<const FULL: bool>(&self, rows: &Self::Rows, step: usize) -> Self::Stage {
        // SAFETY: the block lies within the rows.
        unsafe { decode::<B>(rows, step / (8 / S::LANES)) }
    }
    #[inline(always)]
    unsafe fn scales(&self, stage: &Self::Stage, s: usize) -> Scales<S> {
        let mut scales = [[0.0; 4 * MAX_LANES]; 2];
        for i in 0..S::LANES {
            for (r, row) in stage.iter().enumerate() {
                let sub_block = 2 * (s * S::LANES + i);
                scales[0][4 * i + r] = row.scales[sub_block];
                scales[1][4 * i + r] = row.scales[sub_block + 1];
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
    unsafe fn codes(&self, stage: &Self::Stage, r: usize, s: usize) -> [S::Bytes; 2] {
        let p = stage[r].codes.as_ptr().cast::<u8>();
        // SAFETY: 32 bytes for each of eight sub-blocks; lanes from LANES on are not read.
        unsafe { both_halves!(|half| S::gather(four!(|i| p.add((s * S::LANES + i) % 8 * 32 + half)))) }
    }
}

/// Four rows' blocks. Table look-ups gain nothing from an instruction set: one function serves all of them.
#[inline(never)]
unsafe fn decode<B: Decode>(rows: &[*const u8; 4], block: usize) -> [Decoded; 4] {
    let mut decoded = [const { Decoded { codes: [0; 32], scales: [0.0; 16] } }; 4];
    for (row, decoded) in rows.iter().zip(&mut decoded) {
        // SAFETY: the caller's blocks exist, at any address.
        unsafe { row.cast::<B>().add(block).read_unaligned() }.decode(decoded);
    }
    decoded
}

const ONES: u64 = 0x0101_0101_0101_0101;

/// 64 ± magnitude for eight magnitudes below 64; bit i of `signs` set: value i is negative.
#[inline(always)]
fn signed(magnitudes: u64, signs: u8) -> u64 {
    // One bit of each byte, then all bits of the bytes that have one.
    let bits = (signs as u64 * ONES) & 0x8040_2010_0804_0201;
    let negative = (((bits + 0x7F * ONES) >> 7) & ONES) * 0xFF;
    let (plus, minus) = (64 * ONES + magnitudes, 64 * ONES - magnitudes);
    (plus & !negative) | (minus & negative)
}

/// Eight magnitudes as a word.
#[inline(always)]
fn word(point: &[i8; 8]) -> u64 {
    u64::from_le_bytes(bytemuck::cast(*point))
}

/// Two times four magnitudes as a word.
#[inline(always)]
fn pair(low: &[i8; 4], high: &[i8; 4]) -> u64 {
    let half = |point: &[i8; 4]| u32::from_le_bytes(bytemuck::cast(*point)) as u64;
    half(low) | (half(high) << 32)
}

impl Decode for BlockIQ2_XXS {
    const HALVES: bool = false;
    const OFFSET: i32 = 64;
    #[inline(always)]
    fn decode(&self, out: &mut Decoded) {
        let d = self.d.to_f32() * 0.25;
        for (j, words) in self.qs.as_chunks::<4>().0.iter().enumerate() {
            let indices = words[0] as u32 | ((words[1] as u32) << 16);
            let signs = words[2] as u32 | ((words[3] as u32) << 16);
            out.scales[2 * j] = d * (0.5 + (signs >> 28) as f32);
            for part in 0..4 {
                let point = &IQ2_XXS_GRID[(indices >> (8 * part)) as usize & 255];
                out.codes[4 * j + part] = signed(word(point), EVEN_SIGNS[(signs >> (7 * part)) as usize & 127]);
            }
        }
    }
}

/// Sixteen scales d·(nibble + 1/2).
#[inline(always)]
fn nibble_scales(d: f32, nibbles: &[u8; 8], scales: &mut [f32; 16]) {
    for (j, scale) in scales.iter_mut().enumerate() {
        *scale = d * (0.5 + ((nibbles[j / 2] >> (4 * (j % 2))) & 15) as f32);
    }
}

impl Decode for BlockIQ2_XS {
    const HALVES: bool = true;
    const OFFSET: i32 = 64;
    #[inline(always)]
    fn decode(&self, out: &mut Decoded) {
        nibble_scales(self.d.to_f32() * 0.25, &self.scales, &mut out.scales);
        for (codes, q) in out.codes.iter_mut().zip(self.qs) {
            *codes = signed(word(&IQ2_XS_GRID[q as usize & 511]), EVEN_SIGNS[(q >> 9) as usize]);
        }
    }
}

impl Decode for BlockIQ2_S {
    const HALVES: bool = true;
    const OFFSET: i32 = 64;
    #[inline(always)]
    fn decode(&self, out: &mut Decoded) {
        nibble_scales(self.d.to_f32() * 0.25, &self.scales, &mut out.scales);
        for (i, codes) in out.codes.iter_mut().enumerate() {
            let high = (self.qh[i / 4] >> (2 * (i % 4))) as usize & 3;
            *codes = signed(word(&IQ2_S_GRID[self.qs[i] as usize | (high << 8)]), self.signs[i]);
        }
    }
}

impl Decode for BlockIQ3_XXS {
    const HALVES: bool = false;
    const OFFSET: i32 = 64;
    #[inline(always)]
    fn decode(&self, out: &mut Decoded) {
        let d = self.d.to_f32() * 0.5;
        for (j, signs) in self.scales_and_signs.as_chunks::<4>().0.iter().enumerate() {
            let signs = u32::from_le_bytes(*signs);
            out.scales[2 * j] = d * (0.5 + (signs >> 28) as f32);
            for part in 0..4 {
                let point = |at: usize| &IQ3_XXS_GRID[self.qs[8 * j + 2 * part + at] as usize];
                let signs = EVEN_SIGNS[(signs >> (7 * part)) as usize & 127];
                out.codes[4 * j + part] = signed(pair(point(0), point(1)), signs);
            }
        }
    }
}

impl Decode for BlockIQ3_S {
    const HALVES: bool = false;
    const OFFSET: i32 = 64;
    #[inline(always)]
    fn decode(&self, out: &mut Decoded) {
        let d = self.d.to_f32();
        for (i, codes) in out.codes.iter_mut().enumerate() {
            let point = |at: usize| {
                let high = (self.qh[i / 4] >> (2 * (i % 4) + at)) as usize & 1;
                &IQ3_S_GRID[self.qs[2 * i + at] as usize | (high << 8)]
            };
            *codes = signed(pair(point(0), point(1)), self.signs[i]);
        }
        for j in 0..8 {
            let scale = (self.scales[j / 2] >> (4 * (j % 2))) & 15;
            out.scales[2 * j] = d * (1 + 2 * scale) as f32;
        }
    }
}

/// Eight codes 16 + 8·point ± 1: an eighth of the scale makes point ± 1/8 of them.
#[inline(always)]
fn shifted(point: &[i8; 8], down: bool) -> u64 {
    // Points are −1, 0, 1: flipping bit 7 and adding 129 gives 0, 1, 2 without carries into other bytes.
    let digits = ((word(point) ^ (0x80 * ONES)) - 0x7F * ONES) & (3 * ONES);
    8 * digits + (8 * ONES) + if down { 0 } else { 2 * ONES } - ONES
}

impl Decode for BlockIQ1_S {
    const HALVES: bool = false;
    const OFFSET: i32 = 16;
    #[inline(always)]
    fn decode(&self, out: &mut Decoded) {
        let d = self.d.to_f32() * 0.125;
        for (j, &qh) in self.qh.iter().enumerate() {
            out.scales[2 * j] = d * (2 * ((qh >> 12) & 7) + 1) as f32;
            for part in 0..4 {
                let high = (qh >> (3 * part)) as usize & 7;
                let point = &IQ1_GRID[self.qs[4 * j + part] as usize | (high << 8)];
                out.codes[4 * j + part] = shifted(point, qh >> 15 == 1);
            }
        }
    }
}

impl Decode for BlockIQ1_M {
    const HALVES: bool = true;
    const OFFSET: i32 = 16;
    #[inline(always)]
    fn decode(&self, out: &mut Decoded) {
        let d = self.d().to_f32() * 0.125;
        let words = u64::from_le_bytes(self.scales);
        for (j, scale) in out.scales.iter_mut().enumerate() {
            let bits = words >> (16 * (j / 4) + 3 * (j % 4));
            *scale = d * (2 * (bits & 7) + 1) as f32;
        }
        for (i, codes) in out.codes.iter_mut().enumerate() {
            let nibble = self.qh[i / 2] >> (4 * (i % 2));
            let point = &IQ1_GRID[self.qs[i] as usize | ((nibble as usize & 7) << 8)];
            *codes = shifted(point, nibble & 8 != 0);
        }
    }
}

impl Decode for BlockTQ1_0 {
    const HALVES: bool = false;
    const OFFSET: i32 = 1;
    #[inline(always)]
    fn decode(&self, out: &mut Decoded) {
        out.scales = [self.d.to_f32(); 16];
        // Digit n of a byte is what the product with 3ⁿ⁺¹ carries, the digits before dropped: see the format's definition.
        let digit = |byte: u8, power: u8| ((byte.wrapping_mul(power) as u16 * 3) >> 8) as u8;
        let mut bytes = [0u8; 256];
        for (n, power) in [1u8, 3, 9, 27, 81].into_iter().enumerate() {
            for l in 0..32 {
                bytes[32 * n + l] = digit(self.qs[l], power);
            }
            for l in 0..16 {
                bytes[160 + 16 * n + l] = digit(self.qs[32 + l], power);
            }
            if n < 4 {
                for l in 0..4 {
                    bytes[240 + 4 * n + l] = digit(self.qh[l], power);
                }
            }
        }
        for (codes, bytes) in out.codes.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *codes = u64::from_le_bytes(*bytes);
        }
    }
}
