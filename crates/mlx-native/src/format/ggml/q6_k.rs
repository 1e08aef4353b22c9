//! Q6_K: 256 values of 6 bits; 16 sub-blocks with a signed 8-bit scale each.

use half::f16;

use super::block::{Block, Quantize, block};
use super::search::{Grid, Integers, Weighted, fit_sub_scales, inverse};

block! {
    /// 256 values `d · scale · (q − 32)`, scales by 16 values.
    BlockQ6_K: 210 bytes {
        /// Low four bits: value 128h + 32c + l in nibble c / 2 of byte 64h + 32·(c % 2) + l.
        ql: [u8; 128],
        /// High two bits: value 128h + 32c + l in pair c of byte 32h + l.
        qh: [u8; 64],
        /// Scale of each 16 values.
        scales: [i8; 16],
        /// Scale of the scales.
        d: f16,
    }
}

impl Block<256> for BlockQ6_K {
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (i, out) in out.iter_mut().enumerate() {
            let (half, pair, lane) = (i / 128, i / 32 % 4, i % 32);
            let low = (self.ql[64 * half + 32 * (pair % 2) + lane] >> (4 * (pair / 2))) & 15;
            let high = (self.qh[32 * half + lane] >> (2 * pair)) & 3;
            let q = (low | (high << 4)) as i8 - 32;
            *out = d * self.scales[i / 16] as f32 * q as f32;
        }
    }
}

impl Quantize<256> for BlockQ6_K {
    fn quantize(values: &[f32; 256], importance: Option<&[f32; 256]>) -> Self {
        let grid = Integers { lowest: -32.0, highest: 31.0 };
        let fit = fit_sub_scales::<16>(Weighted::new(values, importance), &grid, [-128, 127]);
        let mut block = BlockQ6_K { ql: [0; 128], qh: [0; 64], scales: fit.scales, d: fit.d };
        for (i, x) in values.iter().enumerate() {
            let (half, pair, lane) = (i / 128, i / 32 % 4, i % 32);
            let scale = fit.d.to_f32() * fit.scales[i / 16] as f32;
            let q = (grid.nearest(x * inverse(scale)) + 32.0) as u8;
            block.ql[64 * half + 32 * (pair % 2) + lane] |= (q & 15) << (4 * (pair / 2));
            block.qh[32 * half + lane] |= (q >> 4) << (2 * pair);
        }
        block
    }
}
