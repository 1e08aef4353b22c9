//! MLX floating-point groups: mxfp4, mxfp8 and nvfp4.

use std::fmt;

use super::affine::{check_len, for_each_octet, round_to, set_bits_at};
use super::weight_format::packed_row_bytes;
use crate::{DType, MlxError, Result};

/// A floating-point format of MLX: packed 4- or 8-bit floats with one 8-bit scale a group.
///
/// Values lie in a row as in [`affine`](super::affine), value 0 in the lowest bits of the first byte; scales `u8 [n, k / group_size]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FpMode {
    /// E2M1 values, an E8M0 scale for each 32 (OCP Microscaling Formats 1.0).
    Mxfp4,
    /// E4M3 values, an E8M0 scale for each 32.
    Mxfp8,
    /// E2M1 values, an E4M3 scale for each 16.
    Nvfp4,
}

impl FpMode {
    /// Every mode.
    pub const ALL: [FpMode; 3] = [FpMode::Mxfp4, FpMode::Mxfp8, FpMode::Nvfp4];

    /// Bits of a packed value.
    pub const fn bits(self) -> u32 {
        match self {
            FpMode::Mxfp4 | FpMode::Nvfp4 => 4,
            FpMode::Mxfp8 => 8,
        }
    }

    /// Values that share a scale.
    pub const fn group_size(self) -> u32 {
        match self {
            FpMode::Mxfp4 | FpMode::Mxfp8 => 32,
            FpMode::Nvfp4 => 16,
        }
    }

    /// MLX's name of the mode: `"mxfp4"`, `"mxfp8"`, `"nvfp4"`.
    pub const fn name(self) -> &'static str {
        match self {
            FpMode::Mxfp4 => "mxfp4",
            FpMode::Mxfp8 => "mxfp8",
            FpMode::Nvfp4 => "nvfp4",
        }
    }

    /// The mode of this name.
    pub fn from_name(name: &str) -> Option<FpMode> {
        FpMode::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// Bytes of one packed row of `k` values, a multiple of 4.
    ///
    /// # Errors
    /// InvalidArgument when the product overflows.
    pub fn row_bytes(self, k: usize) -> Result<usize> {
        packed_row_bytes(&self, k, 32 / self.bits() as usize, 4)
    }

    /// Scales of one row of `k` values.
    pub const fn groups(self, k: usize) -> usize {
        k.div_ceil(self.group_size() as usize)
    }
}

impl FpMode {
    /// A scale byte's value. E8M0 255 is infinity; E4M3 has a sign and a NaN, as MLX reads them.
    pub fn scale(self, byte: u8) -> f32 {
        match self {
            FpMode::Mxfp4 | FpMode::Mxfp8 => e8m0_to_f32(byte),
            FpMode::Nvfp4 => e4m3_to_f32(byte),
        }
    }

    /// A packed code's value, before the scale.
    pub fn code(self, code: u8) -> f32 {
        match self {
            FpMode::Mxfp4 | FpMode::Nvfp4 => E2M1[(code & 15) as usize],
            FpMode::Mxfp8 => e4m3_to_f32(code),
        }
    }

    /// Decodes a row: `out.len()` values `scale · code` in f32.
    ///
    /// # Errors
    /// InvalidArgument when `packed` or `scales` has another size than the row's.
    pub fn dequantize_row(self, packed: &[u8], scales: &[u8], out: &mut [f32]) -> Result<()> {
        let k = out.len();
        check_len(&self, "packed bytes", packed.len(), self.row_bytes(k)?)?;
        check_len(&self, "scales", scales.len(), self.groups(k))?;
        for_each_octet(self.bits(), packed, out, |first, codes, out| {
            // A group is a multiple of eight values.
            let scale = self.scale(scales[first / self.group_size() as usize]);
            for (out, code) in out.iter_mut().zip(codes) {
                *out = scale * self.code(code);
            }
        });
        Ok(())
    }

    /// Encodes a row as `mx.quantize` 0.32.4 does with an array of `dtype`, whose values `values` are.
    ///
    /// The scale is the smallest that keeps the group's largest magnitude in the code's range: a power of two
    /// (mxfp4, mxfp8), or the nearest E4M3 (nvfp4). Where that power is below E8M0's range it is 2^-127; MLX's wraps around.
    ///
    /// # Errors
    /// UnsupportedDtype when `dtype` is not F32, F16 or BF16; InvalidArgument when an output has another size than the row's.
    pub fn quantize_row(self, values: &[f32], dtype: DType, packed: &mut [u8], scales: &mut [u8]) -> Result<()> {
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(MlxError::UnsupportedDtype(format!("{self} quantizes f32, f16 or bf16, got {dtype}")));
        }
        let k = values.len();
        check_len(&self, "packed bytes", packed.len(), self.row_bytes(k)?)?;
        check_len(&self, "scales", scales.len(), self.groups(k))?;
        packed.fill(0);
        let group_size = self.group_size() as usize;
        for (group, values) in values.chunks(group_size).enumerate() {
            let largest = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
            // The quotient is rounded to the array's type, which matters where it is subnormal there.
            let wanted = round_to(dtype, largest / self.largest_code());
            scales[group] = match self {
                FpMode::Mxfp4 | FpMode::Mxfp8 => e8m0_at_least(wanted),
                FpMode::Nvfp4 => e4m3_from_f32(wanted),
            };
            let scale = self.scale(scales[group]);
            for (i, &value) in values.iter().enumerate() {
                let code = if scale == 0.0 { 0 } else { self.nearest_code(value / scale) };
                set_bits_at(self.bits(), packed, group * group_size + i, code);
            }
        }
        Ok(())
    }

    const fn largest_code(self) -> f32 {
        match self {
            FpMode::Mxfp4 | FpMode::Nvfp4 => 6.0,
            FpMode::Mxfp8 => 448.0,
        }
    }

    fn nearest_code(self, x: f32) -> u8 {
        match self {
            FpMode::Mxfp4 | FpMode::Nvfp4 => e2m1_from_f32(x),
            FpMode::Mxfp8 => e4m3_from_f32(x),
        }
    }
}

/// The values of the sixteen E2M1 codes; bit 3 is the sign.
pub const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// `2^(e − 127)`; 255 is infinity.
pub const fn e8m0_to_f32(e: u8) -> f32 {
    // 2^-127 is subnormal; exponent field 255 is infinity.
    f32::from_bits(if e == 0 { 1 << 22 } else { (e as u32) << 23 })
}

/// An E4M3 number (OCP 8-bit floating point, the variant without infinities): bias 7, 0x7F and 0xFF are NaN.
pub const fn e4m3_to_f32(x: u8) -> f32 {
    let (exponent, mantissa) = ((x >> 3) & 15, (x & 7) as f32);
    let magnitude = match (exponent, x & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((exponent as u32 + 120) << 23),
    };
    if x >> 7 == 1 { -magnitude } else { magnitude }
}

/// The E8M0 code of the smallest power of two that is at least `x`, of 2^-127 below its range, of 1 for 0 (as in MLX).
fn e8m0_at_least(x: f32) -> u8 {
    if x == 0.0 {
        return 127;
    }
    let bits = x.to_bits();
    let exponent = bits >> 23;
    // An exponent field of 0 is a number below 2^-126.
    let round_up = if exponent == 0 { bits > 1 << 22 } else { bits & 0x7f_ffff != 0 };
    (exponent + round_up as u32).min(254) as u8
}

/// The nearest E4M3 number, ties to even, saturating at ±448.
pub(super) fn e4m3_from_f32(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    if x.is_nan() {
        return sign | 0x7f;
    }
    let magnitude = x.abs().min(448.0);
    // Numbers below 2^-6 share the spacing 2^-9 of the subnormals.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let spacing = f32::from_bits(((exponent - 3 + 127) as u32) << 23);
    // In units of the spacing: below 8 subnormal, 8..16 normal; 16 carries into the exponent by itself.
    let steps = (magnitude / spacing).round_ties_even() as u8;
    sign | (((exponent + 6) as u8) << 3).wrapping_add(steps)
}

/// The code of the nearest E2M1 value; of two at the same distance the first, so that ties go towards zero and zero is positive.
fn e2m1_from_f32(x: f32) -> u8 {
    let distance = |code: u8| (x - E2M1[code as usize]).abs();
    (1..16).fold(0, |best, code| if distance(code) < distance(best) { code } else { best })
}

impl fmt::Display for FpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_round_trips() {
        for code in 0..=255u8 {
            if code & 0x7f != 0x7f {
                assert_eq!(e4m3_from_f32(e4m3_to_f32(code)), code);
            }
        }
        assert_eq!(e4m3_from_f32(1e9), 0x7e);
        assert_eq!(e4m3_from_f32(f32::NEG_INFINITY), 0xfe);
    }

    #[test]
    fn powers_of_two_round_up() {
        assert_eq!([1.0, 1.0001, 0.0, 1e-45, 3e38, f32::INFINITY].map(e8m0_at_least), [127, 128, 127, 0, 254, 254]);
        for e in 0..=254 {
            assert_eq!(e8m0_at_least(e8m0_to_f32(e)), e);
        }
    }

    #[test]
    fn groups_need_not_divide_the_row() {
        for mode in FpMode::ALL {
            let values: Vec<f32> = (0..37).map(|i| i as f32 - 18.0).collect();
            let (mut packed, mut scales) = (vec![0xff; mode.row_bytes(37).unwrap()], vec![0; mode.groups(37)]);
            mode.quantize_row(&values, DType::F32, &mut packed, &mut scales).unwrap();
            let mut back = vec![0.0; 37];
            mode.dequantize_row(&packed, &scales, &mut back).unwrap();
            assert!(values.iter().zip(&back).all(|(x, y)| (x - y).abs() <= x.abs() / 4.0 + 1.0), "{mode}: {back:?}");
            assert!(mode.dequantize_row(&packed, &scales[1..], &mut back).is_err());
            assert!(mode.quantize_row(&values, DType::F32, &mut packed[1..], &mut scales).is_err());
            assert!(mode.quantize_row(&values, DType::U8, &mut packed, &mut scales).is_err());
        }
    }
}
