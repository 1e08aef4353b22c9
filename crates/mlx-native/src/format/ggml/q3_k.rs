//! Q3_K: 256 values of 3 bits; 16 sub-blocks with a signed 6-bit scale each.

use half::f16;

use super::block::{Block, Quantize, block};
use super::search::{Grid, Integers, Weighted, fit_sub_scales, inverse};

block! {
    /// 256 values `d · (scale − 32) · (q − 4)`, scales by 16 values.
    BlockQ3_K: 110 bytes {
        /// Bit 4h + c of byte l is the third bit of value 128h + 32c + l.
        hmask: [u8; 32],
        /// The low two bits of value 128h + 32c + l are `qs[32h + l] >> 2c & 3`.
        qs: [u8; 64],
        /// Sixteen 6-bit scales: low four bits of scale j in nibble j / 8 of byte j % 8, high two bits in pair j / 4 of byte 8 + j % 4.
        scales: [u8; 12],
        /// Scale of the scales.
        d: f16,
    }
}

impl BlockQ3_K {
    /// Scale of the 16 values from 16·`j`, −32 ..= 31.
    pub fn scale(&self, j: usize) -> i8 {
        let low = (self.scales[j % 8] >> (4 * (j / 8))) & 15;
        let high = (self.scales[8 + j % 4] >> (2 * (j / 4))) & 3;
        (low | (high << 4)) as i8 - 32
    }
}

impl Block<256> for BlockQ3_K {
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (i, out) in out.iter_mut().enumerate() {
            let (half, pair, lane) = (i / 128, i / 32 % 4, i % 32);
            let low = (self.qs[32 * half + lane] >> (2 * pair)) & 3;
            let high = (self.hmask[lane] >> (4 * half + pair)) & 1;
            let q = (low | (high << 2)) as i8 - 4;
            *out = d * self.scale(i / 16) as f32 * q as f32;
        }
    }
}

impl Quantize<256> for BlockQ3_K {
    fn quantize(values: &[f32; 256], importance: Option<&[f32; 256]>) -> Self {
        let grid = Integers { lowest: -4.0, highest: 3.0 };
        let fit = fit_sub_scales::<16>(Weighted::new(values, importance), &grid, [-32, 31]);
        let mut block = BlockQ3_K { hmask: [0; 32], qs: [0; 64], scales: [0; 12], d: fit.d };
        for (j, scale) in fit.scales.into_iter().enumerate() {
            let stored = (scale + 32) as u8;
            block.scales[j % 8] |= (stored & 15) << (4 * (j / 8));
            block.scales[8 + j % 4] |= (stored >> 4) << (2 * (j / 4));
        }
        for (i, x) in values.iter().enumerate() {
            let (half, pair, lane) = (i / 128, i / 32 % 4, i % 32);
            let scale = fit.d.to_f32() * fit.scales[i / 16] as f32;
            let q = (grid.nearest(x * inverse(scale)) + 4.0) as u8;
            block.qs[32 * half + lane] |= (q & 3) << (2 * pair);
            block.hmask[lane] |= (q >> 2) << (4 * half + pair);
        }
        block
    }
}
