//! Q1_0, TQ1_0 and TQ2_0: values of one bit or one ternary digit with one scale.

use half::f16;

use super::block::{Block, Quantize, block};
use super::search::{Integers, Weighted, fit_scale, inverse};

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

impl Quantize<128> for BlockQ1_0 {
    /// The scale is the mean magnitude, weighted by importance: with the values' signs it has the least squared error.
    fn quantize(values: &[f32; 128], importance: Option<&[f32; 128]>) -> Self {
        let Weighted { x, w } = Weighted::new(values, importance);
        // In order, as llama.cpp adds up.
        let (sum, weight) = x.iter().zip(w).fold((0.0, 0.0), |(sum, weight), (x, w)| (sum + w * x.abs(), weight + w));
        let qs = std::array::from_fn(|byte| {
            (0..8).fold(0, |bits, bit| bits | u8::from(values[8 * byte + bit] >= 0.0) << bit)
        });
        BlockQ1_0 { d: f16::from_f32(sum / weight), qs }
    }
}

/// Scale and digits, 0 to 2. Without importance the largest magnitude becomes ±1 (as in the `gguf` package), which suits models trained with
/// such weights; with it, the scale is searched.
fn ternary(values: &[f32; 256], importance: Option<&[f32; 256]>) -> (f16, [u8; 256]) {
    let d = match importance {
        None => values.iter().fold(0.0, |largest: f32, x| largest.max(x.abs())),
        Some(_) => fit_scale(Weighted::new(values, importance), &Integers { lowest: -1.0, highest: 1.0 }),
    };
    let inverse = inverse(d);
    (f16::from_f32(d), values.map(|x| ((x * inverse).round().clamp(-1.0, 1.0) + 1.0) as u8))
}

/// The byte that holds digits as a fraction in base 3, the first one first, rounded up so that [`digit`] finds them.
fn fraction(digits: impl Iterator<Item = u8>) -> u8 {
    const DIGITS: u32 = 5;
    let (value, count) = digits.fold((0, 0), |(value, count), digit| (3 * value + u16::from(digit), count + 1));
    (value * 3u16.pow(DIGITS - count) * 256).div_ceil(3u16.pow(DIGITS)) as u8
}

impl Quantize<256> for BlockTQ1_0 {
    fn quantize(values: &[f32; 256], importance: Option<&[f32; 256]>) -> Self {
        let (d, digits) = ternary(values, importance);
        let byte = |first: usize, stride: usize, count: usize| fraction((0..count).map(|n| digits[first + stride * n]));
        let qs = std::array::from_fn(|l| if l < 32 { byte(l, 32, 5) } else { byte(160 + (l - 32), 16, 5) });
        BlockTQ1_0 { qs, qh: std::array::from_fn(|l| byte(240 + l, 4, 4)), d }
    }
}

impl Quantize<256> for BlockTQ2_0 {
    fn quantize(values: &[f32; 256], importance: Option<&[f32; 256]>) -> Self {
        let (d, q) = ternary(values, importance);
        let byte = |first: usize| (0..4).fold(0, |byte, c| byte | q[first + 32 * c] << (2 * c));
        BlockTQ2_0 { qs: std::array::from_fn(|i| byte(i / 32 * 128 + i % 32)), d }
    }
}
