//! IQ1_S and IQ1_M: eight values by an 11-bit index into one grid of ternary points, shifted by ±1/8.

use std::sync::LazyLock;

use half::f16;

use super::block::{Block, Quantize, block};
use super::codebooks::{IQ1_DELTA, IQ1_GRID};
use super::grid_search::{Fit, Points, Signs};
use super::search::Weighted;

block! {
    /// 256 values `d · (2·scale + 1) · (point ± 1/8)`, scale and shift by 32 values.
    BlockIQ1_S: 50 bytes {
        /// Scale of the scales.
        d: f16,
        /// Low eight bits of the index of each 8 values.
        qs: [u8; 32],
        /// For each 32 values: four times the high three bits of an index, the 3-bit scale, and on top the shift's sign.
        qh: [u16; 8],
    }
}

block! {
    /// 256 values `d · (2·scale + 1) · (point ± 1/8)`, scale by 16 values, shift by 8.
    BlockIQ1_M: 56 bytes {
        /// Low eight bits of the index of each 8 values.
        qs: [u8; 32],
        /// For each 8 values a nibble: the high three bits of the index, and on top the shift's sign.
        qh: [u8; 16],
        /// Four little-endian u16: each four 3-bit scales, and on top four bits of the f16 `d`.
        scales: [u8; 8],
    }
}

/// Eight values: `scale · (point ± 1/8)`.
fn octet(scale: f32, index: usize, shift_down: bool, out: &mut [f32; 8]) {
    let delta = if shift_down { -IQ1_DELTA } else { IQ1_DELTA };
    *out = IQ1_GRID[index].map(|x| scale * (x as f32 + delta));
}

impl Block<256> for BlockIQ1_S {
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let qh = self.qh[i / 4] as usize;
            let scale = d * (2 * ((qh >> 12) & 7) + 1) as f32;
            let high = (qh >> (3 * (i % 4))) & 7;
            octet(scale, self.qs[i] as usize | (high << 8), qh >> 15 == 1, out);
        }
    }
}

impl BlockIQ1_M {
    fn words(&self) -> [u16; 4] {
        std::array::from_fn(|i| u16::from_le_bytes([self.scales[2 * i], self.scales[2 * i + 1]]))
    }

    /// Scale of the scales: the top nibbles of the four words, lowest first.
    pub fn d(&self) -> f16 {
        let words = self.words();
        f16::from_bits((0..4).fold(0, |bits, i| bits | ((words[i] >> 12) << (4 * i))))
    }
}

impl Block<256> for BlockIQ1_M {
    fn dequantize(&self, out: &mut [f32; 256]) {
        let (d, words) = (self.d().to_f32(), self.words());
        for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let sub_block = i / 2;
            let scale = d * (2 * ((words[sub_block / 4] >> (3 * (sub_block % 4))) & 7) + 1) as f32;
            let nibble = (self.qh[i / 2] >> (4 * (i % 2))) & 15;
            octet(scale, self.qs[i] as usize | ((nibble as usize & 7) << 8), nibble >> 3 == 1, out);
        }
    }
}

/// The points shifted up, then those shifted down.
fn shifted(runs: usize) -> Points<8> {
    let points = [IQ1_DELTA, -IQ1_DELTA]
        .into_iter()
        .flat_map(|delta| IQ1_GRID.iter().map(move |point| point.map(|x| x as f32 + delta)));
    Points::new(points, Signs::OfPoints, runs)
}
static S_POINTS: LazyLock<Points<8>> = LazyLock::new(|| shifted(2));
static M_POINTS: LazyLock<Points<8>> = LazyLock::new(|| shifted(1));
const LARGEST_SCALE: u8 = 7;

impl Quantize<256> for BlockIQ1_S {
    fn quantize(values: &[f32; 256], importance: Option<&[f32; 256]>) -> Self {
        let Fit { d, scales, runs, points, .. } =
            S_POINTS.fit::<8>(Weighted::new(values, importance), 1.0, LARGEST_SCALE);
        let qh = std::array::from_fn(|j| {
            let high = (0..4).fold(0, |high, i| high | (points[4 * j + i] >> 8) << (3 * i));
            high as u16 | u16::from(scales[j]) << 12 | (runs[j] as u16) << 15
        });
        BlockIQ1_S { d, qs: std::array::from_fn(|i| points[i] as u8), qh }
    }
}

impl Quantize<256> for BlockIQ1_M {
    fn quantize(values: &[f32; 256], importance: Option<&[f32; 256]>) -> Self {
        let Fit { d, scales, points, .. } = M_POINTS.fit::<16>(Weighted::new(values, importance), 1.0, LARGEST_SCALE);
        // The twelfth bit of a point says which way it is shifted.
        let high = |i: usize| (points[i] >> 8) as u8;
        let words: [u16; 4] = std::array::from_fn(|j| {
            let scales = (0..4).fold(0, |word, i| word | u16::from(scales[4 * j + i]) << (3 * i));
            scales | (d.to_bits() >> (4 * j) & 15) << 12
        });
        BlockIQ1_M {
            qs: std::array::from_fn(|i| points[i] as u8),
            qh: std::array::from_fn(|i| high(2 * i) | high(2 * i + 1) << 4),
            scales: std::array::from_fn(|i| words[i / 2].to_le_bytes()[i % 2]),
        }
    }
}
