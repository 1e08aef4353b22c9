//! IQ4_NL and IQ4_XS: 4-bit indices into a codebook of sixteen values that are denser around zero.

use half::f16;

use super::block::{Block, Quantize, block};
use super::codebooks::IQ4_VALUES;
use super::q4::nibbles;
use super::search::{Codebook, Weighted, fit_scale, fit_sub_scales, inverse};

block! {
    /// 32 values `d · K[q]`.
    BlockIQ4_NL: 18 bytes {
        /// Scale.
        d: f16,
        /// Byte i holds q of value i in its low nibble and of value i + 16 in its high nibble.
        qs: [u8; 16],
    }
}

block! {
    /// 256 values `d · (scale − 32) · K[q]`, scale by 32 values.
    BlockIQ4_XS: 136 bytes {
        /// Scale of the scales.
        d: f16,
        /// High two bits of the eight 6-bit scales.
        scales_h: u16,
        /// Low four bits of the scales, low nibble first.
        scales_l: [u8; 4],
        /// As in [`BlockIQ4_NL`], for each 32 values.
        qs: [u8; 128],
    }
}

impl BlockIQ4_XS {
    /// Scale of the 32 values from 32·`j`, −32 ..= 31.
    pub fn scale(&self, j: usize) -> i8 {
        let low = (self.scales_l[j / 2] >> (4 * (j % 2))) & 15;
        let high = ((self.scales_h >> (2 * j)) & 3) as u8;
        (low | (high << 4)) as i8 - 32
    }
}

/// 32 values `scale · K[q]`.
fn decode(scale: f32, qs: &[u8], out: &mut [f32; 32]) {
    let (low, high) = out.split_at_mut(16);
    for ((&q, low), high) in qs.iter().zip(low).zip(high) {
        *low = scale * IQ4_VALUES[(q & 15) as usize] as f32;
        *high = scale * IQ4_VALUES[(q >> 4) as usize] as f32;
    }
}

impl Block<32> for BlockIQ4_NL {
    fn dequantize(&self, out: &mut [f32; 32]) {
        decode(self.d.to_f32(), &self.qs, out);
    }
}

impl Block<256> for BlockIQ4_XS {
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            decode(d * self.scale(j) as f32, &self.qs[16 * j..][..16], out);
        }
    }
}

/// Indices of the codebook values nearest to `values / scale`, packed as in [`BlockIQ4_NL`].
fn encode(scale: f32, values: &[f32; 32]) -> [u8; 16] {
    let inverse = inverse(scale);
    nibbles(values.map(|x| Codebook(&IQ4_VALUES).index(x * inverse) as u8))
}

impl Quantize<32> for BlockIQ4_NL {
    fn quantize(values: &[f32; 32], importance: Option<&[f32; 32]>) -> Self {
        let d = f16::from_f32(fit_scale(Weighted::new(values, importance), &Codebook(&IQ4_VALUES)));
        BlockIQ4_NL { d, qs: encode(d.to_f32(), values) }
    }
}

impl Quantize<256> for BlockIQ4_XS {
    fn quantize(values: &[f32; 256], importance: Option<&[f32; 256]>) -> Self {
        let fit = fit_sub_scales::<8>(Weighted::new(values, importance), &Codebook(&IQ4_VALUES), [-32, 31]);
        let mut block = BlockIQ4_XS { d: fit.d, scales_h: 0, scales_l: [0; 4], qs: [0; 128] };
        for (j, values) in values.as_chunks::<32>().0.iter().enumerate() {
            let stored = (fit.scales[j] + 32) as u8;
            block.scales_l[j / 2] |= (stored & 15) << (4 * (j % 2));
            block.scales_h |= ((stored >> 4) as u16) << (2 * j);
            block.qs[16 * j..][..16].copy_from_slice(&encode(fit.d.to_f32() * fit.scales[j] as f32, values));
        }
        block
    }
}
