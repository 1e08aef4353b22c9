//! Q4_K and Q5_K: 256 values of 4 or 5 bits; 8 sub-blocks with a 6-bit scale and a 6-bit minimum each.

use half::f16;

use super::block::{Block, Quantize, block};
use super::search::{SubAffine, Weighted, fit_sub_affine, inverse, round_within};

block! {
    /// 256 values `d · scale · q − dmin · min`, scales and minimums by 32 values.
    BlockQ4_K: 144 bytes {
        /// Scale of the scales.
        d: f16,
        /// Scale of the minimums.
        dmin: f16,
        /// Eight 6-bit scales and eight 6-bit minimums, see [`scale_min`].
        scales: [u8; 12],
        /// Byte 32g + l holds value 64g + l in its low nibble and value 64g + 32 + l in its high nibble.
        qs: [u8; 128],
    }
}

block! {
    /// As [`BlockQ4_K`], with a fifth bit.
    BlockQ5_K: 176 bytes {
        /// Scale of the scales.
        d: f16,
        /// Scale of the minimums.
        dmin: f16,
        /// As in [`BlockQ4_K`].
        scales: [u8; 12],
        /// Bit j of byte l is the fifth bit of value 32j + l.
        qh: [u8; 32],
        /// The low four bits, as in [`BlockQ4_K`].
        qs: [u8; 128],
    }
}

/// The 6-bit scale and minimum of sub-block `j` (32 values), for both formats.
///
/// The first four of each are the low six bits of bytes j and j + 4; of the last four, the low halves share byte
/// j + 4 and the high two bits ride on top of bytes j − 4 and j.
pub fn scale_min(scales: &[u8; 12], j: usize) -> (u8, u8) {
    if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        let low = scales[j + 4];
        ((low & 15) | ((scales[j - 4] >> 6) << 4), (low >> 4) | ((scales[j] >> 6) << 4))
    }
}

impl Block<256> for BlockQ4_K {
    fn dequantize(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scale_min(&self.scales, j);
            let (scale, min) = (d * scale as f32, dmin * min as f32);
            for (l, out) in out.iter_mut().enumerate() {
                let q = (self.qs[32 * (j / 2) + l] >> (4 * (j % 2))) & 15;
                *out = scale * q as f32 - min;
            }
        }
    }
}

impl Block<256> for BlockQ5_K {
    fn dequantize(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scale_min(&self.scales, j);
            let (scale, min) = (d * scale as f32, dmin * min as f32);
            for (l, out) in out.iter_mut().enumerate() {
                let low = (self.qs[32 * (j / 2) + l] >> (4 * (j % 2))) & 15;
                let high = (self.qh[l] >> j) & 1;
                *out = scale * (low | (high << 4)) as f32 - min;
            }
        }
    }
}

/// The inverse of [`scale_min`] for all sub-blocks.
fn pack_scales_mins(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for j in 0..4 {
        packed[j] = scales[j] | ((scales[j + 4] >> 4) << 6);
        packed[j + 4] = mins[j] | ((mins[j + 4] >> 4) << 6);
        packed[j + 8] = (scales[j + 4] & 15) | ((mins[j + 4] & 15) << 4);
    }
    packed
}

/// The integers of 256 values, 0 ..= `highest`.
fn integers(values: &[f32; 256], fit: &SubAffine<8>, highest: f32) -> [u8; 256] {
    std::array::from_fn(|i| {
        let (scale, min) = (fit.d.to_f32() * fit.scales[i / 32] as f32, fit.dmin.to_f32() * fit.mins[i / 32] as f32);
        round_within((values[i] + min) * inverse(scale), 0.0, highest) as u8
    })
}

/// The low four bits of 256 values.
fn low_nibbles(q: &[u8; 256]) -> [u8; 128] {
    std::array::from_fn(|i| {
        let first = 64 * (i / 32) + i % 32;
        (q[first] & 15) | (q[first + 32] << 4)
    })
}

impl Quantize<256> for BlockQ4_K {
    fn quantize(values: &[f32; 256], importance: Option<&[f32; 256]>) -> Self {
        let fit = fit_sub_affine::<8>(Weighted::new(values, importance), 15.0, 63);
        let q = integers(values, &fit, 15.0);
        let scales = pack_scales_mins(&fit.scales, &fit.mins);
        BlockQ4_K { d: fit.d, dmin: fit.dmin, scales, qs: low_nibbles(&q) }
    }
}

impl Quantize<256> for BlockQ5_K {
    fn quantize(values: &[f32; 256], importance: Option<&[f32; 256]>) -> Self {
        let fit = fit_sub_affine::<8>(Weighted::new(values, importance), 31.0, 63);
        let q = integers(values, &fit, 31.0);
        let scales = pack_scales_mins(&fit.scales, &fit.mins);
        let qh = std::array::from_fn(|l| (0..8).fold(0, |bits, j| bits | ((q[32 * j + l] >> 4) << j)));
        BlockQ5_K { d: fit.d, dmin: fit.dmin, scales, qh, qs: low_nibbles(&q) }
    }
}
