//! MLX floating-point groups: mxfp4, mxfp8 and nvfp4.

use std::fmt;

use super::weight_format::packed_row_bytes;
use crate::Result;

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

impl fmt::Display for FpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
