//! Q4_0 and Q4_1: 32 values of 4 bits with one scale.

use half::f16;

use super::block::{Block, Quantize, block};
use super::search::{Affine, Integers, Minimum, Weighted, fit_affine, fit_scale, inverse};

block! {
    /// 32 values `d · (q − 8)`.
    BlockQ4_0: 18 bytes {
        /// Scale.
        d: f16,
        /// Byte i holds q of value i in its low nibble and of value i + 16 in its high nibble.
        qs: [u8; 16],
    }
}

block! {
    /// 32 values `d · q + m`.
    BlockQ4_1: 20 bytes {
        /// Scale.
        d: f16,
        /// Offset.
        m: f16,
        /// As in [`BlockQ4_0`].
        qs: [u8; 16],
    }
}

impl Block<32> for BlockQ4_0 {
    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for (i, q) in self.qs.into_iter().enumerate() {
            out[i] = d * ((q & 15) as f32 - 8.0);
            out[i + 16] = d * ((q >> 4) as f32 - 8.0);
        }
    }
}

impl Block<32> for BlockQ4_1 {
    fn dequantize(&self, out: &mut [f32; 32]) {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        for (i, q) in self.qs.into_iter().enumerate() {
            out[i] = d * (q & 15) as f32 + m;
            out[i + 16] = d * (q >> 4) as f32 + m;
        }
    }
}

impl Quantize<32> for BlockQ4_0 {
    /// Without importance, the value of largest magnitude becomes −8 exactly (as in the `gguf` package); with it, the scale is searched.
    fn quantize(values: &[f32; 32], importance: Option<&[f32; 32]>) -> Self {
        let d = match importance {
            None => extreme(values) / -8.0,
            Some(_) => fit_scale(Weighted::new(values, importance), &Integers { lowest: -8.0, highest: 7.0 }),
        };
        let inverse = inverse(d);
        BlockQ4_0 { d: f16::from_f32(d), qs: nibbles(values.map(|x| ((x * inverse + 8.5) as u8).min(15))) }
    }
}

impl Quantize<32> for BlockQ4_1 {
    /// Without importance, least and greatest value become 0 and 15 (as in the `gguf` package); with it, scale and offset are searched.
    fn quantize(values: &[f32; 32], importance: Option<&[f32; 32]>) -> Self {
        let Affine { scale, min } = spread(values, importance, 15.0);
        let inverse = inverse(scale);
        let qs = nibbles(values.map(|x| (((x + min) * inverse + 0.5) as u8).min(15)));
        BlockQ4_1 { d: f16::from_f32(scale), m: f16::from_f32(-min), qs }
    }
}

/// Byte i holds value i in its low nibble and value i + 16 in its high nibble.
pub(super) fn nibbles(q: [u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| (q[i] & 15) | (q[i + 16] << 4))
}

/// The first value of largest magnitude.
pub(super) fn extreme(values: &[f32; 32]) -> f32 {
    values.iter().fold(0.0, |extreme: f32, &x| if x.abs() > extreme.abs() { x } else { extreme })
}

/// Scale and minimum of Q4_1 and Q5_1.
pub(super) fn spread(values: &[f32; 32], importance: Option<&[f32; 32]>, highest: f32) -> Affine {
    if importance.is_some() {
        return fit_affine(Weighted::new(values, importance), highest, Minimum::Free);
    }
    let (min, max) = values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), &x| (min.min(x), max.max(x)));
    Affine { scale: (max - min) / highest, min: -min }
}
