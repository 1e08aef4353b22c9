//! MLX affine groups: `value = scale · q + bias`.

use std::fmt;

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

impl fmt::Display for AffineFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}
