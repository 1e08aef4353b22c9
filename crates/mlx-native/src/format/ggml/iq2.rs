//! IQ2_XXS, IQ2_XS and IQ2_S: eight magnitudes by an index into a grid, with eight signs.

use std::sync::LazyLock;

use half::f16;

use super::block::{Block, Quantize, block};
use super::codebooks::{EVEN_SIGNS, IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID};
use super::grid_search::{Fit, Points, Signs};
use super::search::Weighted;

block! {
    /// 256 values `d/4 · (scale + 1/2) · ±point`, scale by 32 values.
    BlockIQ2_XXS: 66 bytes {
        /// Scale of the scales.
        d: f16,
        /// For each 32 values eight bytes: four 8-bit indices; then a little-endian u32 of four 7-bit sign codes and a 4-bit scale.
        qs: [u16; 32],
    }
}

block! {
    /// 256 values `d/4 · (scale + 1/2) · ±point`, scale by 16 values.
    BlockIQ2_XS: 74 bytes {
        /// Scale of the scales.
        d: f16,
        /// For each 8 values: a 9-bit index, and on top a 7-bit sign code.
        qs: [u16; 32],
        /// A nibble for each 16 values, low nibble first.
        scales: [u8; 8],
    }
}

block! {
    /// 256 values `d/4 · (scale + 1/2) · ±point`, scale by 16 values.
    BlockIQ2_S: 82 bytes {
        /// Scale of the scales.
        d: f16,
        /// Low eight bits of the index of each 8 values.
        qs: [u8; 32],
        /// The signs of each 8 values.
        signs: [u8; 32],
        /// High two bits of four indices.
        qh: [u8; 8],
        /// A nibble for each 16 values, low nibble first.
        scales: [u8; 8],
    }
}

/// `(d · (scale + 1/2)) / 4`: the order of rounding is part of the definition.
fn sub_scale(d: f16, scale: u8) -> f32 {
    d.to_f32() * (0.5 + scale as f32) * 0.25
}

/// `scale · ±point`, bit i of `signs` set: value i is negative.
pub(super) fn signed<const N: usize>(scale: f32, point: &[i8; N], signs: u8) -> [f32; N] {
    std::array::from_fn(|i| {
        let magnitude = scale * point[i] as f32;
        if (signs >> i) & 1 == 1 { -magnitude } else { magnitude }
    })
}

impl Block<256> for BlockIQ2_XXS {
    fn dequantize(&self, out: &mut [f32; 256]) {
        for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let words = &self.qs[4 * (i / 4)..][..4];
            let part = i % 4;
            let index = (words[part / 2] >> (8 * (part % 2))) & 255;
            let signs_and_scale = words[2] as u32 | ((words[3] as u32) << 16);
            let signs = EVEN_SIGNS[((signs_and_scale >> (7 * part)) & 127) as usize];
            let scale = sub_scale(self.d, (signs_and_scale >> 28) as u8);
            *out = signed(scale, &IQ2_XXS_GRID[index as usize], signs);
        }
    }
}

impl Block<256> for BlockIQ2_XS {
    fn dequantize(&self, out: &mut [f32; 256]) {
        for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let scale = (self.scales[i / 4] >> (4 * (i / 2 % 2))) & 15;
            let (index, signs) = (self.qs[i] & 511, self.qs[i] >> 9);
            *out = signed(sub_scale(self.d, scale), &IQ2_XS_GRID[index as usize], EVEN_SIGNS[signs as usize]);
        }
    }
}

impl Block<256> for BlockIQ2_S {
    fn dequantize(&self, out: &mut [f32; 256]) {
        for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let scale = (self.scales[i / 4] >> (4 * (i / 2 % 2))) & 15;
            let high = (self.qh[i / 4] >> (2 * (i % 4))) & 3;
            let index = self.qs[i] as usize | ((high as usize) << 8);
            *out = signed(sub_scale(self.d, scale), &IQ2_S_GRID[index], self.signs[i]);
        }
    }
}

static XXS_POINTS: LazyLock<Points<8>> = LazyLock::new(|| Points::of_grid(&IQ2_XXS_GRID, Signs::Even));
static XS_POINTS: LazyLock<Points<8>> = LazyLock::new(|| Points::of_grid(&IQ2_XS_GRID, Signs::Even));
static S_POINTS: LazyLock<Points<8>> = LazyLock::new(|| Points::of_grid(&IQ2_S_GRID, Signs::Free));
/// `d/4 · (scale + 1/2)` is as many times `d` as this times `2 · scale + 1`.
const UNIT: f32 = 0.125;
const LARGEST_SCALE: u8 = 15;

/// Scales of four bits, low nibble first.
pub(super) fn scale_nibbles<const BYTES: usize>(scales: &[u8]) -> [u8; BYTES] {
    std::array::from_fn(|i| scales[2 * i] | scales[2 * i + 1] << 4)
}

/// Four sign codes of seven bits, whose eighth signs follow, and a scale of four on top.
pub(super) fn signs_and_scale(signs: &[u8], scale: u8) -> u32 {
    (0..4).fold(u32::from(scale) << 28, |word, i| word | u32::from(signs[i] & 127) << (7 * i))
}

impl Quantize<256> for BlockIQ2_XXS {
    fn quantize(values: &[f32; 256], importance: Option<&[f32; 256]>) -> Self {
        let Fit { d, scales, points, signs, .. } =
            XXS_POINTS.fit::<8>(Weighted::new(values, importance), UNIT, LARGEST_SCALE);
        let mut qs = [0; 32];
        for (j, words) in qs.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let signs_and_scale = signs_and_scale(&signs[4 * j..], scales[j]);
            let index = |i: usize| points[4 * j + i] as u16;
            *words = [
                index(0) | index(1) << 8,
                index(2) | index(3) << 8,
                signs_and_scale as u16,
                (signs_and_scale >> 16) as u16,
            ];
        }
        BlockIQ2_XXS { d, qs }
    }
}

impl Quantize<256> for BlockIQ2_XS {
    fn quantize(values: &[f32; 256], importance: Option<&[f32; 256]>) -> Self {
        let Fit { d, scales, points, signs, .. } =
            XS_POINTS.fit::<16>(Weighted::new(values, importance), UNIT, LARGEST_SCALE);
        let qs = std::array::from_fn(|i| points[i] as u16 | u16::from(signs[i] & 127) << 9);
        BlockIQ2_XS { d, qs, scales: scale_nibbles(&scales) }
    }
}

impl Quantize<256> for BlockIQ2_S {
    fn quantize(values: &[f32; 256], importance: Option<&[f32; 256]>) -> Self {
        let Fit { d, scales, points, signs, .. } =
            S_POINTS.fit::<16>(Weighted::new(values, importance), UNIT, LARGEST_SCALE);
        let qs = std::array::from_fn(|i| points[i] as u8);
        let qh = std::array::from_fn(|i| {
            (0..4).fold(0, |high, part| high | ((points[4 * i + part] >> 8) as u8) << (2 * part))
        });
        BlockIQ2_S { d, qs, signs, qh, scales: scale_nibbles(&scales) }
    }
}
