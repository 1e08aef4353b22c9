//! Q2_K: 256 values of 2 bits; 16 sub-blocks with a 4-bit scale and a 4-bit minimum each.

use half::f16;

use super::block::{Block, Quantize, block};
use super::search::{SubAffine, Weighted, fit_sub_affine, inverse, round_within};

block! {
    /// 256 values `d · (scales & 15) · q − dmin · (scales >> 4)`, scales by 16 values.
    BlockQ2_K: 84 bytes {
        /// Scale (low nibble) and minimum (high nibble) of each 16 values.
        scales: [u8; 16],
        /// q of value 128h + 32c + l is `qs[32h + l] >> 2c & 3`.
        qs: [u8; 64],
        /// Scale of the scales.
        d: f16,
        /// Scale of the minimums.
        dmin: f16,
    }
}

impl Block<256> for BlockQ2_K {
    fn dequantize(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (i, out) in out.iter_mut().enumerate() {
            let (half, pair, lane) = (i / 128, i / 32 % 4, i % 32);
            let q = (self.qs[32 * half + lane] >> (2 * pair)) & 3;
            let scale = self.scales[i / 16];
            *out = d * (scale & 15) as f32 * q as f32 - dmin * (scale >> 4) as f32;
        }
    }
}

impl Quantize<256> for BlockQ2_K {
    fn quantize(values: &[f32; 256], importance: Option<&[f32; 256]>) -> Self {
        let SubAffine { d, dmin, scales, mins } = fit_sub_affine::<16>(Weighted::new(values, importance), 3.0, 15);
        let mut qs = [0; 64];
        for (i, x) in values.iter().enumerate() {
            let (half, pair, lane) = (i / 128, i / 32 % 4, i % 32);
            let (scale, min) = (d.to_f32() * scales[i / 16] as f32, dmin.to_f32() * mins[i / 16] as f32);
            let q = round_within((x + min) * inverse(scale), 0.0, 3.0) as u8;
            qs[32 * half + lane] |= q << (2 * pair);
        }
        BlockQ2_K { scales: std::array::from_fn(|j| scales[j] | (mins[j] << 4)), qs, d, dmin }
    }
}
