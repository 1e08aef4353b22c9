//! MLX affine groups: `value = scale · q + bias`.

use std::fmt;

use half::{bf16, f16};

use super::weight_format::packed_row_bytes;
use crate::{DType, MlxError, Result};

/// An affine format of MLX: packed `bits`-bit integers, a scale and a bias for each `group_size` values of a row.
///
/// A row is one little-endian bit stream, value 0 in the lowest bits of the first byte. Scales and biases are
/// `[n, ⌈k / group_size⌉]` in `scale_dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffineFormat {
    /// Bits of a packed value: 1, 2, 3, 4, 5, 6 or 8.
    pub bits: u32,
    /// Values that share a scale and a bias, at least 1.
    pub group_size: u32,
    /// Element type of scales and biases: F32, F16 or BF16.
    pub scale_dtype: DType,
}

impl AffineFormat {
    /// A checked format.
    ///
    /// # Errors
    /// InvalidArgument for a width that does not exist (the message has the word `bits`), or a group size of 0;
    /// UnsupportedDtype for scales that are not F32, F16 or BF16.
    pub fn new(bits: u32, group_size: u32, scale_dtype: DType) -> Result<Self> {
        let format = AffineFormat { bits, group_size, scale_dtype };
        format.check()?;
        Ok(format)
    }

    /// Whether the fields are legal; the errors are those of [`new`](Self::new).
    pub fn check(&self) -> Result<()> {
        if !matches!(self.bits, 1 | 2 | 3 | 4 | 5 | 6 | 8) {
            return Err(MlxError::InvalidArgument(format!(
                "affine: bits must be 1, 2, 3, 4, 5, 6 or 8, got {}",
                self.bits
            )));
        }
        if self.group_size == 0 {
            return Err(MlxError::InvalidArgument("affine: group_size must be at least 1, got 0".into()));
        }
        if !matches!(self.scale_dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(MlxError::UnsupportedDtype(format!(
                "affine scales and biases are f32, f16 or bf16, got {}",
                self.scale_dtype
            )));
        }
        Ok(())
    }

    /// The name: `"affine4_g64_bf16"`.
    pub fn name(&self) -> String {
        format!("affine{}_g{}_{}", self.bits, self.group_size, self.scale_dtype)
    }

    /// Bytes of one packed row of `k` values: ⌈k·bits/32⌉·4 for 1, 2, 4 and 8 bits, ⌈k/4⌉·3 for 6 bits, k·bits/8 for 3 and 5.
    ///
    /// # Errors
    /// Those of [`new`](Self::new); InvalidArgument (with the word `bits`) when 3- or 5-bit rows are not a multiple
    /// of 8 values, or when the product overflows.
    pub fn row_bytes(&self, k: usize) -> Result<usize> {
        self.check()?;
        match self.bits {
            3 | 5 if !k.is_multiple_of(8) => Err(MlxError::InvalidArgument(format!(
                "{self}: k must be a multiple of 8 for {} bits, got {k}",
                self.bits
            ))),
            3 | 5 => packed_row_bytes(self, k, 8, self.bits as usize),
            6 => packed_row_bytes(self, k, 4, 3),
            bits => packed_row_bytes(self, k, 32 / bits as usize, 4),
        }
    }

    /// Scales (and biases) of one row of `k` values: ⌈k / group_size⌉.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn groups(&self, k: usize) -> Result<usize> {
        self.check()?;
        Ok(k.div_ceil(self.group_size as usize))
    }
}

/// A row's scales and biases, one of each a group, widened to f32.
#[derive(Clone, Copy, Debug)]
pub struct Groups<'a> {
    /// Scales `[⌈k / group_size⌉]`; they may be negative.
    pub scales: &'a [f32],
    /// Biases `[⌈k / group_size⌉]`.
    pub biases: &'a [f32],
}

impl AffineFormat {
    /// Decodes a row: `out.len()` values `scale · q + bias`, rounded after the product and after the sum.
    ///
    /// # Errors
    /// Those of [`row_bytes`](Self::row_bytes); InvalidArgument when `packed`, scales or biases have another size than the row's.
    pub fn dequantize_row(&self, packed: &[u8], groups: Groups<'_>, out: &mut [f32]) -> Result<()> {
        let k = out.len();
        check_len(self, "packed bytes", packed.len(), self.row_bytes(k)?)?;
        check_len(self, "scales", groups.scales.len(), self.groups(k)?)?;
        check_len(self, "biases", groups.biases.len(), self.groups(k)?)?;
        let group_size = self.group_size as usize;
        for_each_octet(self.bits, packed, out, |first, codes, out| {
            let (group, last) = (first / group_size, (first + out.len() - 1) / group_size);
            if group == last {
                let (scale, bias) = (groups.scales[group], groups.biases[group]);
                for (out, code) in out.iter_mut().zip(codes) {
                    *out = scale * code as f32 + bias;
                }
            } else {
                for ((i, out), code) in (first..).zip(out).zip(codes) {
                    *out = groups.scales[i / group_size] * code as f32 + groups.biases[i / group_size];
                }
            }
        });
        Ok(())
    }

    /// Encodes a row as `mx.quantize` 0.32.4 does: bit for bit, for values that `scale_dtype` represents.
    ///
    /// A group keeps the edge of its range that is farther from zero exactly, and zero as well as it can. Scales and
    /// biases come out rounded to `scale_dtype`, the packed values are chosen before that rounding.
    ///
    /// ```
    /// use mlx_native::format::AffineFormat;
    /// use mlx_native::format::affine::Groups;
    ///
    /// let format = AffineFormat::new(4, 64, mlx_native::DType::BF16)?;
    /// let values: Vec<f32> = (0..128).map(|i| i as f32 / 16.0).collect();
    /// let mut packed = vec![0; format.row_bytes(128)?];
    /// let (mut scales, mut biases) = (vec![0.0; format.groups(128)?], vec![0.0; format.groups(128)?]);
    /// format.quantize_row(&values, &mut packed, &mut scales, &mut biases)?;
    /// let mut back = vec![0.0; 128];
    /// format.dequantize_row(&packed, Groups { scales: &scales, biases: &biases }, &mut back)?;
    /// assert!(values.iter().zip(&back).all(|(x, y)| (x - y).abs() <= 4.0 / 15.0));
    /// # Ok::<(), mlx_native::MlxError>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`row_bytes`](Self::row_bytes); InvalidArgument when an output has another size than the row's.
    pub fn quantize_row(
        &self,
        values: &[f32],
        packed: &mut [u8],
        scales: &mut [f32],
        biases: &mut [f32],
    ) -> Result<()> {
        let k = values.len();
        check_len(self, "packed bytes", packed.len(), self.row_bytes(k)?)?;
        check_len(self, "scales", scales.len(), self.groups(k)?)?;
        check_len(self, "biases", biases.len(), self.groups(k)?)?;
        packed.fill(0);
        let largest = ((1u32 << self.bits) - 1) as f32;
        for (group, values) in values.chunks(self.group_size as usize).enumerate() {
            let (scale, bias) = self.scale_and_bias(values);
            let first = group * self.group_size as usize;
            for (i, value) in values.iter().enumerate() {
                let q = ((value - bias) / scale).round_ties_even().clamp(0.0, largest);
                set_bits_at(self.bits, packed, first + i, q as u8);
            }
            scales[group] = round_to(self.scale_dtype, scale);
            biases[group] = round_to(self.scale_dtype, bias);
        }
        Ok(())
    }

    /// MLX's choice for one group, before rounding to the scales' type.
    fn scale_and_bias(&self, values: &[f32]) -> (f32, f32) {
        const SMALLEST_SCALE: f32 = 1e-7;
        let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
        for &value in values {
            // Not f32::min: of zeros with both signs the first counts.
            if value < min {
                min = value;
            }
            if value > max {
                max = value;
            }
        }
        if self.bits == 1 {
            return ((max - min).max(SMALLEST_SCALE), min);
        }
        let steps = ((1u32 << self.bits) - 1) as f32;
        let step = ((max - min) / steps).max(SMALLEST_SCALE);
        let (scale, edge) = if min.abs() > max.abs() { (step, min) } else { (-step, max) };
        let steps_to_zero = (edge / scale).round_ties_even();
        if steps_to_zero == 0.0 { (scale, 0.0) } else { (edge / steps_to_zero, edge) }
    }
}

/// `value` as the element type holds it. Types that are not floats leave it as it is.
pub(super) fn round_to(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// Packed value `index` of a row, `None` past the row's end or for a width that does not exist.
pub fn value_at(bits: u32, row: &[u8], index: usize) -> Option<u8> {
    let end = index.checked_add(1)?.checked_mul(bits as usize)?;
    ((1..=8).contains(&bits) && end <= row.len().checked_mul(8)?).then(|| bits_at(bits, row, index))
}

/// Packs values into one little-endian bit stream, value 0 in the lowest bits of the first byte; bits past the last value are 0.
///
/// # Errors
/// InvalidArgument for a width outside 1..=8, when a value does not fit the width, or `out` is too short.
pub fn pack(bits: u32, values: &[u8], out: &mut [u8]) -> Result<()> {
    check_stream(bits, values.len(), out.len())?;
    if let Some(i) = values.iter().position(|&value| (value as u32) >> bits != 0) {
        return Err(MlxError::InvalidArgument(format!("pack: value {i} is {}, more than {bits} bits hold", values[i])));
    }
    out.fill(0);
    for (i, &value) in values.iter().enumerate() {
        set_bits_at(bits, out, i, value);
    }
    Ok(())
}

/// The first `out.len()` values of a bit stream made by [`pack`].
///
/// # Errors
/// InvalidArgument for a width outside 1..=8, or when `row` is too short.
pub fn unpack(bits: u32, row: &[u8], out: &mut [u8]) -> Result<()> {
    check_stream(bits, out.len(), row.len())?;
    for_each_octet(bits, row, out, |_, codes, out| {
        out.copy_from_slice(&codes[..out.len()]);
    });
    Ok(())
}

/// Whether `values` values of `bits` bits fit in `bytes` bytes.
fn check_stream(bits: u32, values: usize, bytes: usize) -> Result<()> {
    if !(1..=8).contains(&bits) {
        return Err(MlxError::InvalidArgument(format!("packed values have 1 to 8 bits, got {bits}")));
    }
    match values.checked_mul(bits as usize).map(|bits| bits.div_ceil(8)) {
        Some(needed) if needed <= bytes => Ok(()),
        _ => Err(MlxError::InvalidArgument(format!("{values} values of {bits} bits do not fit in {bytes} bytes"))),
    }
}

/// Calls `each(first, codes, out)` for every eight values of a bit stream that holds `out.len()` of them: `out` is their
/// part of the output, shorter than eight at its end.
pub(super) fn for_each_octet<T>(bits: u32, row: &[u8], out: &mut [T], each: impl FnMut(usize, [u8; 8], &mut [T])) {
    // The width as a constant makes the shifts constants; eight values begin at a byte at every width.
    fn run<const BITS: usize, T>(row: &[u8], out: &mut [T], mut each: impl FnMut(usize, [u8; 8], &mut [T])) {
        let octet = |word: [u8; 8]| {
            let word = u64::from_le_bytes(word);
            std::array::from_fn(|lane| (word >> (BITS * lane)) as u8 & (0xff >> (8 - BITS)))
        };
        let (octets, tail) = out.as_chunks_mut::<8>();
        for ((i, out), bytes) in octets.iter_mut().enumerate().zip(row.as_chunks::<BITS>().0) {
            let mut word = [0; 8];
            word[..BITS].copy_from_slice(bytes);
            each(8 * i, octet(word), out);
        }
        if !tail.is_empty() {
            let mut word = [0; 8];
            let used = octets.len() * BITS;
            word.iter_mut().zip(&row[used..]).for_each(|(byte, &stored)| *byte = stored);
            each(8 * octets.len(), octet(word), tail);
        }
    }
    match bits {
        1 => run::<1, T>(row, out, each),
        2 => run::<2, T>(row, out, each),
        3 => run::<3, T>(row, out, each),
        4 => run::<4, T>(row, out, each),
        5 => run::<5, T>(row, out, each),
        6 => run::<6, T>(row, out, each),
        7 => run::<7, T>(row, out, each),
        _ => run::<8, T>(row, out, each),
    }
}

/// Value `index`, which lies in `row` (1 ≤ `bits` ≤ 8): it takes bits of at most two bytes.
fn bits_at(bits: u32, row: &[u8], index: usize) -> u8 {
    let bit = index * bits as usize;
    let next = row.get(bit / 8 + 1).copied().unwrap_or(0);
    let window = u16::from_le_bytes([row[bit / 8], next]);
    (window >> (bit % 8)) as u8 & (0xff >> (8 - bits))
}

/// Adds value `index`, whose place in `row` is zero; the value fits `bits`.
pub(super) fn set_bits_at(bits: u32, row: &mut [u8], index: usize, value: u8) {
    let bit = index * bits as usize;
    let [low, high] = ((value as u16) << (bit % 8)).to_le_bytes();
    row[bit / 8] |= low;
    if let Some(next) = row.get_mut(bit / 8 + 1) {
        *next |= high;
    }
}

/// An error that names the format when a slice has another length than the row needs.
pub(super) fn check_len(format: &dyn fmt::Display, what: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(MlxError::InvalidArgument(format!("{format} row: expected {expected} {what}, got {found}")))
}

impl fmt::Display for AffineFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_pitch() {
        let pitch = |bits, k| AffineFormat::new(bits, 64, DType::F32).unwrap().row_bytes(k);
        assert_eq!(pitch(4, 100).unwrap(), 52);
        assert_eq!(pitch(1, 33).unwrap(), 8);
        assert_eq!(pitch(6, 33).unwrap(), 27);
        assert_eq!(pitch(3, 64).unwrap(), 24);
        assert_eq!(pitch(5, 8).unwrap(), 5);
        assert!(pitch(3, 33).unwrap_err().to_string().contains("bits"));
        assert!(pitch(8, usize::MAX).is_err());
        assert!(AffineFormat::new(7, 64, DType::F32).unwrap_err().to_string().contains("bits"));
        assert!(AffineFormat::new(4, 0, DType::F32).is_err());
        assert!(AffineFormat::new(4, 64, DType::U8).is_err());
    }

    #[test]
    fn packing_round_trips_at_every_width_and_length() {
        for bits in 1..=8 {
            for len in 0..=70 {
                let values: Vec<u8> = (0..len).map(|i| ((i * 37 + 11) % 256) as u8 & (0xff >> (8 - bits))).collect();
                let mut row = vec![0xaa; (len * bits as usize).div_ceil(8)];
                pack(bits, &values, &mut row).unwrap();
                let mut back = vec![0xff; len];
                unpack(bits, &row, &mut back).unwrap();
                assert_eq!(back, values, "{bits} bits");
                assert!((0..len).all(|i| value_at(bits, &row, i) == Some(values[i])));
                assert_eq!(value_at(bits, &row, 8 * row.len() / bits as usize), None);
                if len > 0 {
                    let short = row.len() - 1;
                    assert!(unpack(bits, &row[..short], &mut back).is_err());
                    assert!(pack(bits, &values, &mut row[..short]).is_err());
                }
            }
        }
        assert!(pack(3, &[8], &mut [0]).is_err());
        assert!(pack(9, &[8], &mut [0; 2]).is_err());
        assert!(unpack(0, &[0], &mut [0]).is_err());
    }

    #[test]
    fn groups_of_any_size_bound_the_error_by_half_a_step() {
        for bits in [1, 2, 3, 4, 5, 6, 8] {
            for (group_size, k) in [(1, 8), (7, 40), (48, 104), (1000, 64)] {
                let format = AffineFormat::new(bits, group_size, DType::F32).unwrap();
                let values: Vec<f32> = (0..k).map(|i| ((i * 29 % 31) as f32 - 11.0) / 7.0).collect();
                let mut packed = vec![0; format.row_bytes(k).unwrap()];
                let groups = format.groups(k).unwrap();
                let (mut scales, mut biases) = (vec![0.0; groups], vec![0.0; groups]);
                format.quantize_row(&values, &mut packed, &mut scales, &mut biases).unwrap();
                let mut back = vec![0.0; k];
                format.dequantize_row(&packed, Groups { scales: &scales, biases: &biases }, &mut back).unwrap();
                for i in 0..k {
                    // Moving the edge onto a multiple of the scale costs up to another half step at the far end.
                    let step = scales[i / group_size as usize].abs();
                    assert!((back[i] - values[i]).abs() <= 1.01 * step, "{bits} bits, {i}: {} {}", back[i], values[i]);
                }
                let short = Groups { scales: &scales[1..], biases: &biases };
                assert!(format.dequantize_row(&packed, short, &mut back).is_err());
                assert!(format.quantize_row(&values, &mut packed[1..], &mut scales, &mut biases).is_err());
            }
        }
    }
}
