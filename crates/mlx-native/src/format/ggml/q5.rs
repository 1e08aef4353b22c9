//! Q5_0 and Q5_1: 32 values of 5 bits with one scale.

use half::f16;

use super::block::{Block, block};

block! {
    /// 32 values `d · (q − 16)`.
    BlockQ5_0: 22 bytes {
        /// Scale.
        d: f16,
        /// A little-endian u32 (at a 2-byte boundary, hence bytes): bit i is the fifth bit of value i.
        qh: [u8; 4],
        /// Byte i holds the low four bits of value i in its low nibble and of value i + 16 in its high nibble.
        qs: [u8; 16],
    }
}

block! {
    /// 32 values `d · q + m`.
    BlockQ5_1: 24 bytes {
        /// Scale.
        d: f16,
        /// Offset.
        m: f16,
        /// As in [`BlockQ5_0`].
        qh: [u8; 4],
        /// As in [`BlockQ5_0`].
        qs: [u8; 16],
    }
}

/// The five bits of each value.
fn unpack(qh: [u8; 4], qs: &[u8; 16]) -> [u8; 32] {
    let qh = u32::from_le_bytes(qh);
    std::array::from_fn(|i| {
        let low = (qs[i % 16] >> (4 * (i / 16))) & 15;
        low | ((((qh >> i) & 1) as u8) << 4)
    })
}

impl Block<32> for BlockQ5_0 {
    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        *out = unpack(self.qh, &self.qs).map(|q| d * (q as f32 - 16.0));
    }
}

impl Block<32> for BlockQ5_1 {
    fn dequantize(&self, out: &mut [f32; 32]) {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        *out = unpack(self.qh, &self.qs).map(|q| d * q as f32 + m);
    }
}
