//! Q5_0 and Q5_1: 32 values of 5 bits with one scale.

use half::f16;

use super::block::{Block, Quantize, block};
use super::q4::{extreme, nibbles, spread};
use super::search::{Affine, Integers, Weighted, fit_scale, inverse};

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

/// The fields `qh` and `qs` of five-bit values.
fn pack(q: [u8; 32]) -> ([u8; 4], [u8; 16]) {
    let qh = (0..32).fold(0, |bits, i| bits | (((q[i] >> 4) as u32 & 1) << i));
    (qh.to_le_bytes(), nibbles(q))
}

impl Quantize<32> for BlockQ5_0 {
    /// Without importance, the value of largest magnitude becomes −16 exactly (as in the `gguf` package); with it, the scale is searched.
    fn quantize(values: &[f32; 32], importance: Option<&[f32; 32]>) -> Self {
        let d = match importance {
            None => extreme(values) / -16.0,
            Some(_) => fit_scale(Weighted::new(values, importance), &Integers { lowest: -16.0, highest: 15.0 }),
        };
        let inverse = inverse(d);
        let (qh, qs) = pack(values.map(|x| ((x * inverse + 16.5) as u8).min(31)));
        BlockQ5_0 { d: f16::from_f32(d), qh, qs }
    }
}

impl Quantize<32> for BlockQ5_1 {
    /// As Q4_1, with 31 in place of 15.
    fn quantize(values: &[f32; 32], importance: Option<&[f32; 32]>) -> Self {
        let Affine { scale, min } = spread(values, importance, 31.0);
        let inverse = inverse(scale);
        let (qh, qs) = pack(values.map(|x| (((x + min) * inverse + 0.5) as u8).min(31)));
        BlockQ5_1 { d: f16::from_f32(scale), m: f16::from_f32(-min), qh, qs }
    }
}
