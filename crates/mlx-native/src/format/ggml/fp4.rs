//! MXFP4 and NVFP4: E2M1 values with an 8-bit floating-point scale.

use super::block::{Block, Quantize, block};
use super::codebooks::E2M1_DOUBLED;
use super::q4::{extreme, nibbles};
use super::search::Weighted;
use crate::format::fp::e4m3_from_f32;

block! {
    /// 32 values `E2M1 · 2^(e − 127)`.
    BlockMXFP4: 17 bytes {
        /// E8M0 scale.
        e: u8,
        /// Byte i holds the code of value i in its low nibble and of value i + 16 in its high nibble.
        qs: [u8; 16],
    }
}

block! {
    /// 64 values `E2M1 · scale`, scale by 16 values.
    BlockNVFP4: 36 bytes {
        /// UE4M3 scale of each 16 values.
        d: [u8; 4],
        /// For each 16 values eight bytes: byte i holds the code of value i in its low nibble and of value i + 8 in its high nibble.
        qs: [u8; 32],
    }
}

/// `2^(e − 128)`: half an E8M0 scale, the factor of [`E2M1_DOUBLED`]. GGML gives e = 255 no special meaning.
pub fn e8m0_half(e: u8) -> f32 {
    // 2^-128 and 2^-127 are subnormal.
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e as u32 - 1) << 23 })
}

/// Half a UE4M3 scale (E4M3 whose sign bit is ignored), the factor of [`E2M1_DOUBLED`]. GGML reads 0x7F as 0.
pub fn ue4m3_half(x: u8) -> f32 {
    if x == 0x7f {
        return 0.0;
    }
    let (exponent, mantissa) = ((x >> 3) & 15, (x & 7) as f32);
    let value = match exponent {
        0 => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((exponent as u32 + 120) << 23),
    };
    0.5 * value
}

const E2M1_LARGEST: f32 = 6.0;
/// The largest magnitude that NVFP4 has: that of E2M1 times that of E4M3.
pub(super) const NVFP4_LARGEST: f32 = E2M1_LARGEST * 448.0;

/// The code of the E2M1 value nearest to `x / (2 · half_scale)`, of two the first in the codebook.
fn nearest(x: f32, half_scale: f32) -> u8 {
    let distance = |code: u8| (half_scale * E2M1_DOUBLED[code as usize] as f32 - x).abs();
    (1..16).fold(0, |best, code| if distance(code) < distance(best) { code } else { best })
}

/// The scale with the least weighted squared error, from half of `first` to somewhat more than it.
fn fit_ue4m3(values: Weighted<'_>, first: u8) -> u8 {
    let error = |scale: u8| {
        let half = ue4m3_half(scale);
        let squared = |x: f32| (half * E2M1_DOUBLED[nearest(x, half) as usize] as f32 - x).powi(2);
        values.x.iter().zip(values.w).map(|(&x, w)| w * squared(x)).sum::<f32>()
    };
    let candidates = first.saturating_sub(8)..=(first + 2).min(0x7e);
    candidates.min_by(|a, b| error(*a).total_cmp(&error(*b))).unwrap_or(first)
}

impl Block<32> for BlockMXFP4 {
    fn dequantize(&self, out: &mut [f32; 32]) {
        let d = e8m0_half(self.e);
        for (i, q) in self.qs.into_iter().enumerate() {
            out[i] = d * E2M1_DOUBLED[(q & 15) as usize] as f32;
            out[i + 16] = d * E2M1_DOUBLED[(q >> 4) as usize] as f32;
        }
    }
}

impl Block<64> for BlockNVFP4 {
    fn dequantize(&self, out: &mut [f32; 64]) {
        for (j, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let d = ue4m3_half(self.d[j]);
            for (i, &q) in self.qs[8 * j..][..8].iter().enumerate() {
                out[i] = d * E2M1_DOUBLED[(q & 15) as usize] as f32;
                out[i + 8] = d * E2M1_DOUBLED[(q >> 4) as usize] as f32;
            }
        }
    }
}

impl Quantize<32> for BlockMXFP4 {
    /// The scale puts the largest magnitude in [4, 8), as in the OCP specification; of two values at the same distance the
    /// first of the codebook counts, as in the `gguf` package.
    fn quantize(values: &[f32; 32], _: Option<&[f32; 32]>) -> Self {
        let largest = extreme(values).abs();
        // Exponent field − 2, the exponent of the largest E2M1 value; subnormals have the field 0.
        let e = ((largest.to_bits() >> 23) as u8).saturating_sub(2);
        let d = e8m0_half(e);
        BlockMXFP4 { e, qs: nibbles(values.map(|x| nearest(x, d))) }
    }
}

impl Quantize<64> for BlockNVFP4 {
    /// The scale of 16 values brings their largest magnitude nearest to 6; with importance, those somewhat below and above it are tried too.
    /// Bytes are llama.cpp's but for the smallest and largest scales, which it makes 0 and 448.
    fn quantize(values: &[f32; 64], importance: Option<&[f32; 64]>) -> Self {
        let (mut d, mut qs) = ([0; 4], [0; 32]);
        let parts = values.as_chunks::<16>().0.iter().zip(&mut d).zip(qs.as_chunks_mut::<8>().0).enumerate();
        for (j, ((values, d), qs)) in parts {
            let largest = values.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
            *d = e4m3_from_f32(largest / E2M1_LARGEST).max(u8::from(largest > 0.0));
            if let Some(importance) = importance {
                let weighted = Weighted::new(values, Some(&importance.as_chunks::<16>().0[j]));
                *d = fit_ue4m3(weighted, *d);
            }
            let half = ue4m3_half(*d);
            let codes = values.map(|x| nearest(x, half));
            *qs = std::array::from_fn(|i| codes[i] | codes[i + 8] << 4);
        }
        BlockNVFP4 { d, qs }
    }
}
