//! Q8_0, and the activation-side Q8_1 and Q8_K: values of 8 bits with one scale.

use half::f16;

use super::block::{Block, Quantize, block};
use super::q4::extreme;
use super::search::inverse;

block! {
    /// 32 values `d · q`.
    BlockQ8_0: 34 bytes {
        /// Scale.
        d: f16,
        /// The values.
        qs: [i8; 32],
    }
}

block! {
    /// 32 values `d · q`, with their sum: what a product with an offset format (Q4_1, Q5_1) needs of its activations.
    BlockQ8_1: 36 bytes {
        /// Scale.
        d: f16,
        /// `d · Σ q`.
        s: f16,
        /// The values.
        qs: [i8; 32],
    }
}

block! {
    /// 256 values `d · q`, with the sums of every 16: what a product with a K-quant needs of its activations.
    BlockQ8_K: 292 bytes {
        /// Scale.
        d: f32,
        /// The values.
        qs: [i8; 256],
        /// Sums of 16 consecutive values.
        bsums: [i16; 16],
    }
}

impl Block<32> for BlockQ8_0 {
    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        *out = self.qs.map(|q| d * q as f32);
    }
}

impl Block<32> for BlockQ8_1 {
    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        *out = self.qs.map(|q| d * q as f32);
    }
}

impl Block<256> for BlockQ8_K {
    fn dequantize(&self, out: &mut [f32; 256]) {
        *out = self.qs.map(|q| self.d * q as f32);
    }
}

impl Quantize<32> for BlockQ8_0 {
    /// The value of largest magnitude becomes ±127.
    fn quantize(values: &[f32; 32], _: Option<&[f32; 32]>) -> Self {
        let d = extreme(values).abs() / 127.0;
        let inverse = inverse(d);
        BlockQ8_0 { d: f16::from_f32(d), qs: values.map(|x| (x * inverse).round() as i8) }
    }
}
