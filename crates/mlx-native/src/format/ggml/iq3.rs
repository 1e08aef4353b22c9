//! IQ3_XXS and IQ3_S: four magnitudes by an index into a grid, with a sign each.

use std::sync::LazyLock;

use half::f16;

use super::block::{Block, Quantize, block};
use super::codebooks::{EVEN_SIGNS, IQ3_S_GRID, IQ3_XXS_GRID};
use super::grid_search::{Fit, Points, Signs};
use super::iq2::{scale_nibbles, signed, signs_and_scale};
use super::search::Weighted;

block! {
    /// 256 values `d/2 · (scale + 1/2) · ±point`, scale by 32 values.
    BlockIQ3_XXS: 98 bytes {
        /// Scale of the scales.
        d: f16,
        /// Index of each 4 values.
        qs: [u8; 64],
        /// For each 32 values a little-endian u32: four 7-bit sign codes (8 values each), and on top a 4-bit scale.
        scales_and_signs: [u8; 32],
    }
}

block! {
    /// 256 values `d · (2·scale + 1) · ±point`, scale by 32 values.
    BlockIQ3_S: 110 bytes {
        /// Scale of the scales.
        d: f16,
        /// Low eight bits of the index of each 4 values.
        qs: [u8; 64],
        /// Ninth bit of eight indices.
        qh: [u8; 8],
        /// The signs of each 8 values.
        signs: [u8; 32],
        /// A nibble for each 32 values, low nibble first.
        scales: [u8; 4],
    }
}

impl Block<256> for BlockIQ3_XXS {
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        let words = self.scales_and_signs.as_chunks::<4>().0;
        for (i, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let word = u32::from_le_bytes(words[i / 8]);
            let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
            let signs = EVEN_SIGNS[((word >> (7 * (i / 2 % 4))) & 127) as usize];
            *out = signed(scale, &IQ3_XXS_GRID[self.qs[i] as usize], signs >> (4 * (i % 2)));
        }
    }
}

impl Block<256> for BlockIQ3_S {
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (i, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let scale = (self.scales[i / 16] >> (4 * (i / 8 % 2))) & 15;
            let high = (self.qh[i / 8] >> (i % 8)) & 1;
            let index = self.qs[i] as usize | ((high as usize) << 8);
            let signs = self.signs[i / 2] >> (4 * (i % 2));
            *out = signed(d * (1 + 2 * scale) as f32, &IQ3_S_GRID[index], signs);
        }
    }
}

static XXS_POINTS: LazyLock<Points<4>> = LazyLock::new(|| Points::of_grid(&IQ3_XXS_GRID, Signs::Even));
static S_POINTS: LazyLock<Points<4>> = LazyLock::new(|| Points::of_grid(&IQ3_S_GRID, Signs::Free));
/// `d/2 · (scale + 1/2)` of IQ3_XXS is as many times `d` as this times `2 · scale + 1`; of IQ3_S it is once.
const XXS_UNIT: f32 = 0.25;
const LARGEST_SCALE: u8 = 15;

impl Quantize<256> for BlockIQ3_XXS {
    fn quantize(values: &[f32; 256], importance: Option<&[f32; 256]>) -> Self {
        let Fit { d, scales, points, signs, .. } =
            XXS_POINTS.fit::<8>(Weighted::new(values, importance), XXS_UNIT, LARGEST_SCALE);
        let mut scales_and_signs = [0; 32];
        for (j, word) in scales_and_signs.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *word = signs_and_scale(&signs[4 * j..], scales[j]).to_le_bytes();
        }
        BlockIQ3_XXS { d, qs: std::array::from_fn(|i| points[i] as u8), scales_and_signs }
    }
}

impl Quantize<256> for BlockIQ3_S {
    fn quantize(values: &[f32; 256], importance: Option<&[f32; 256]>) -> Self {
        let Fit { d, scales, points, signs, .. } =
            S_POINTS.fit::<8>(Weighted::new(values, importance), 1.0, LARGEST_SCALE);
        let qs = std::array::from_fn(|i| points[i] as u8);
        let qh =
            std::array::from_fn(|i| (0..8).fold(0, |high, part| high | ((points[8 * i + part] >> 8) as u8) << part));
        BlockIQ3_S { d, qs, qh, signs, scales: scale_nibbles(&scales) }
    }
}
