//! Q3_K: 256 values of 3 bits; 16 sub-blocks with a signed 6-bit scale each.

use half::f16;

use super::block::{Block, block};

block! {
    /// 256 values `d · (scale − 32) · (q − 4)`, scales by 16 values.
    BlockQ3_K: 110 bytes {
        /// Bit 4h + c of byte l is the third bit of value 128h + 32c + l.
        hmask: [u8; 32],
        /// The low two bits of value 128h + 32c + l are `qs[32h + l] >> 2c & 3`.
        qs: [u8; 64],
        /// Sixteen 6-bit scales: low four bits of scale j in nibble j / 8 of byte j % 8, high two bits in pair j / 4 of byte 8 + j % 4.
        scales: [u8; 12],
        /// Scale of the scales.
        d: f16,
    }
}

impl BlockQ3_K {
    /// Scale of the 16 values from 16·`j`, −32 ..= 31.
    pub fn scale(&self, j: usize) -> i8 {
        let low = (self.scales[j % 8] >> (4 * (j / 8))) & 15;
        let high = (self.scales[8 + j % 4] >> (2 * (j / 4))) & 3;
        (low | (high << 4)) as i8 - 32
    }
}

impl Block<256> for BlockQ3_K {
    fn dequantize(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        for (i, out) in out.iter_mut().enumerate() {
            let (half, pair, lane) = (i / 128, i / 32 % 4, i % 32);
            let low = (self.qs[32 * half + lane] >> (2 * pair)) & 3;
            let high = (self.hmask[lane] >> (4 * half + pair)) & 1;
            let q = (low | (high << 2)) as i8 - 4;
            *out = d * self.scale(i / 16) as f32 * q as f32;
        }
    }
}
