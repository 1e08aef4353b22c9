//! Q4_0 and Q4_1: 32 values of 4 bits with one scale.

use half::f16;

use super::block::{Block, block};

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
