//! What a weight matrix is made of: one name for GGML blocks, MLX affine groups and MLX floating-point groups.

use std::borrow::Cow;
use std::fmt;

use super::GgmlType;
use half::{bf16, f16};

use super::affine::{AffineFormat, Groups};
use super::fp::FpMode;
use crate::{DType, MlxError, Result};

/// The format of a weight matrix `[n, k]`: `n` output features, each a row of `k` values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// Blocks of a GGUF file; everything a row needs lies in the row. The plain types F32, F16 and BF16 are here too.
    Ggml(GgmlType),
    /// MLX affine groups: packed integers, with scales and biases in buffers of their own.
    Affine(AffineFormat),
    /// MLX floating-point groups: packed floats, with scales in a buffer of their own.
    Fp(FpMode),
}

impl WeightFormat {
    /// The name: `"Q4_K"`, `"affine4_g64_bf16"`, `"mxfp4"`.
    pub fn name(&self) -> Cow<'static, str> {
        match self {
            WeightFormat::Ggml(ty) => ty.name().into(),
            WeightFormat::Affine(affine) => affine.name().into(),
            WeightFormat::Fp(mode) => mode.name().into(),
        }
    }

    /// Bytes of one row of `k` values in the weight buffer (scales and biases of MLX formats not counted).
    ///
    /// # Errors
    /// InvalidArgument when `k` is not a whole number of the format's blocks, or the product overflows.
    pub fn row_bytes(&self, k: usize) -> Result<usize> {
        match self {
            WeightFormat::Ggml(ty) => ty.row_bytes(k),
            WeightFormat::Affine(affine) => affine.row_bytes(k),
            WeightFormat::Fp(mode) => mode.row_bytes(k),
        }
    }

    /// Bytes of a matrix `[n, k]` in the weight buffer (scales and biases of MLX formats not counted).
    ///
    /// # Errors
    /// Those of [`row_bytes`](Self::row_bytes), and InvalidArgument when the product overflows.
    pub fn matrix_bytes(&self, n: usize, k: usize) -> Result<usize> {
        self.row_bytes(k)?.checked_mul(n).ok_or_else(|| {
            MlxError::InvalidArgument(format!("{self}: the bytes of a [{n}, {k}] matrix exceed the address space"))
        })
    }

    /// Whether a matrix product with such a weight has a meaning: [`GgmlType::is_matmul_weight`], and every MLX format.
    pub fn is_matmul_weight(&self) -> bool {
        match self {
            WeightFormat::Ggml(ty) => ty.is_matmul_weight(),
            WeightFormat::Affine(_) | WeightFormat::Fp(_) => true,
        }
    }
}

impl From<GgmlType> for WeightFormat {
    fn from(ty: GgmlType) -> Self {
        WeightFormat::Ggml(ty)
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// `⌈values · bits / unit_bits⌉ · unit_bytes`, checked: the pitch of a row of a packed bit stream.
pub(super) fn packed_row_bytes(
    format: &dyn fmt::Display,
    k: usize,
    values_per_unit: usize,
    unit_bytes: usize,
) -> Result<usize> {
    k.div_ceil(values_per_unit).checked_mul(unit_bytes).ok_or_else(|| {
        MlxError::InvalidArgument(format!("{format}: the bytes of a row of {k} values exceed the address space"))
    })
}

/// The bytes of one row of a weight matrix; scales and biases are empty where the format has none.
#[derive(Clone, Copy, Debug)]
pub struct WeightRow<'a> {
    /// Blocks or packed values.
    pub data: &'a [u8],
    /// Scales of the MLX formats.
    pub scales: &'a [u8],
    /// Biases of the affine format.
    pub biases: &'a [u8],
}

impl WeightFormat {
    /// Decodes a row of `out.len()` values.
    ///
    /// # Errors
    /// InvalidArgument when the bytes are not those of a row of this length, or the format holds no values.
    pub fn dequantize_row(&self, row: WeightRow<'_>, out: &mut [f32]) -> Result<()> {
        match self {
            WeightFormat::Ggml(ty) => super::dequantize_row(*ty, row.data, out),
            WeightFormat::Fp(mode) => mode.dequantize_row(row.data, row.scales, out),
            WeightFormat::Affine(affine) => {
                let scales = widen(row.scales, affine.scale_dtype)?;
                let biases = widen(row.biases, affine.scale_dtype)?;
                affine.dequantize_row(row.data, Groups { scales: &scales, biases: &biases }, out)
            }
        }
    }
}

/// Little-endian floats as f32.
fn widen(bytes: &[u8], dtype: DType) -> Result<Vec<f32>> {
    let halves = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        DType::F16 => Ok(halves.map(|bits| f16::from_bits(bits).to_f32()).collect()),
        DType::BF16 => Ok(halves.map(|bits| bf16::from_bits(bits).to_f32()).collect()),
        DType::F32 => Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
        other => Err(MlxError::UnsupportedDtype(format!("affine scales of {other}"))),
    }
}
