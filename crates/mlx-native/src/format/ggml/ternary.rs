//! Q1_0, TQ1_0 and TQ2_0: values of one bit or one ternary digit with one scale.

use half::f16;

use super::block::{Block, block};

block! {
    /// 128 values `±d`.
    BlockQ1_0: 18 bytes {
        /// Scale.
        d: f16,
        /// Bit i % 8 of byte i / 8 is value i: set for `d`, clear for `−d`.
        qs: [u8; 16],
    }
}

block! {
    /// 256 values `d · (digit − 1)`, five ternary digits a byte.
    BlockTQ1_0: 54 bytes {
        /// Digit n of byte l is value 32n + l for l < 32, and value 160 + 16n + (l − 32) for the sixteen bytes after.
        qs: [u8; 48],
        /// Digit n < 4 of byte l is value 240 + 4n + l.
        qh: [u8; 4],
        /// Scale.
        d: f16,
    }
}

block! {
    /// 256 values `d · (q − 1)`, two bits each.
    BlockTQ2_0: 66 bytes {
        /// q of value 128h + 32c + l is `qs[32h + l] >> 2c & 3`.
        qs: [u8; 64],
        /// Scale.
        d: f16,
    }
}

impl Block<128> for BlockQ1_0 {
    fn dequantize(&self, out: &mut [f32; 128]) {
        let d = self.d.to_f32();
        for (i, out) in out.iter_mut().enumerate() {
            *out = if (self.qs[i / 8] >> (i % 8)) & 1 == 1 { d } else { -d };
        }
    }
}

/// Ternary digit `n` of a byte that holds the fraction `0.d₀d₁d₂d₃d₄` (base 3) in units of 1/256: multiplied by 3ⁿ,
/// whose overflow drops the digits before, the product with 3 carries the digit into the ninth bit and beyond.
fn digit(byte: u8, n: u32) -> u8 {
    let fraction = byte.wrapping_mul(3u8.pow(n));
    ((fraction as u16 * 3) >> 8) as u8
}

impl Block<256> for BlockTQ1_0 {
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        let (wide, narrow) = self.qs.split_at(32);
        let mut out = out.iter_mut();
        for (bytes, digits) in [(wide, 5), (narrow, 5), (self.qh.as_slice(), 4)] {
            for n in 0..digits {
                for (&byte, out) in bytes.iter().zip(out.by_ref()) {
                    *out = d * (digit(byte, n) as f32 - 1.0);
                }
            }
        }
    }
}

impl Block<256> for BlockTQ2_0 {
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (i, out) in out.iter_mut().enumerate() {
            let (half, pair, lane) = (i / 128, i / 32 % 4, i % 32);
            let q = (self.qs[32 * half + lane] >> (2 * pair)) & 3;
            *out = d * (q as f32 - 1.0);
        }
    }
}
