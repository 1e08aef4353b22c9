//! The tensor types of GGUF files: ids, names and block sizes.

use std::fmt;

use crate::{MlxError, Result};

/// A tensor type of a GGUF file; the discriminant is its id there.
///
/// Values come in blocks: [`block_values`](Self::block_values) consecutive values of a row lie in
/// [`block_bytes`](Self::block_bytes) bytes.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum GgmlType {
    /// `F32`: 1 value in 4 bytes.
    F32 = 0,
    /// `F16`: 1 value in 2 bytes.
    F16 = 1,
    /// `Q4_0`: 32 values in 18 bytes.
    Q4_0 = 2,
    /// `Q4_1`: 32 values in 20 bytes.
    Q4_1 = 3,
    /// `Q5_0`: 32 values in 22 bytes.
    Q5_0 = 6,
    /// `Q5_1`: 32 values in 24 bytes.
    Q5_1 = 7,
    /// `Q8_0`: 32 values in 34 bytes.
    Q8_0 = 8,
    /// `Q8_1`: 32 values in 36 bytes.
    Q8_1 = 9,
    /// `Q2_K`: 256 values in 84 bytes.
    Q2_K = 10,
    /// `Q3_K`: 256 values in 110 bytes.
    Q3_K = 11,
    /// `Q4_K`: 256 values in 144 bytes.
    Q4_K = 12,
    /// `Q5_K`: 256 values in 176 bytes.
    Q5_K = 13,
    /// `Q6_K`: 256 values in 210 bytes.
    Q6_K = 14,
    /// `Q8_K`: 256 values in 292 bytes.
    Q8_K = 15,
    /// `IQ2_XXS`: 256 values in 66 bytes.
    IQ2_XXS = 16,
    /// `IQ2_XS`: 256 values in 74 bytes.
    IQ2_XS = 17,
    /// `IQ3_XXS`: 256 values in 98 bytes.
    IQ3_XXS = 18,
    /// `IQ1_S`: 256 values in 50 bytes.
    IQ1_S = 19,
    /// `IQ4_NL`: 32 values in 18 bytes.
    IQ4_NL = 20,
    /// `IQ3_S`: 256 values in 110 bytes.
    IQ3_S = 21,
    /// `IQ2_S`: 256 values in 82 bytes.
    IQ2_S = 22,
    /// `IQ4_XS`: 256 values in 136 bytes.
    IQ4_XS = 23,
    /// `I8`: 1 value in 1 byte.
    I8 = 24,
    /// `I16`: 1 value in 2 bytes.
    I16 = 25,
    /// `I32`: 1 value in 4 bytes.
    I32 = 26,
    /// `I64`: 1 value in 8 bytes.
    I64 = 27,
    /// `F64`: 1 value in 8 bytes.
    F64 = 28,
    /// `IQ1_M`: 256 values in 56 bytes.
    IQ1_M = 29,
    /// `BF16`: 1 value in 2 bytes.
    BF16 = 30,
    /// `TQ1_0`: 256 values in 54 bytes.
    TQ1_0 = 34,
    /// `TQ2_0`: 256 values in 66 bytes.
    TQ2_0 = 35,
    /// `MXFP4`: 32 values in 17 bytes.
    MXFP4 = 39,
    /// `NVFP4`: 64 values in 36 bytes.
    NVFP4 = 40,
    /// `Q1_0`: 128 values in 18 bytes.
    Q1_0 = 41,
}

use GgmlType::*;

/// (type, name, values of a block, bytes of a block)
const TYPES: [(GgmlType, &str, u32, u32); 34] = [
    (F32, "F32", 1, 4),
    (F16, "F16", 1, 2),
    (Q4_0, "Q4_0", 32, 18),
    (Q4_1, "Q4_1", 32, 20),
    (Q5_0, "Q5_0", 32, 22),
    (Q5_1, "Q5_1", 32, 24),
    (Q8_0, "Q8_0", 32, 34),
    (Q8_1, "Q8_1", 32, 36),
    (Q2_K, "Q2_K", 256, 84),
    (Q3_K, "Q3_K", 256, 110),
    (Q4_K, "Q4_K", 256, 144),
    (Q5_K, "Q5_K", 256, 176),
    (Q6_K, "Q6_K", 256, 210),
    (Q8_K, "Q8_K", 256, 292),
    (IQ2_XXS, "IQ2_XXS", 256, 66),
    (IQ2_XS, "IQ2_XS", 256, 74),
    (IQ3_XXS, "IQ3_XXS", 256, 98),
    (IQ1_S, "IQ1_S", 256, 50),
    (IQ4_NL, "IQ4_NL", 32, 18),
    (IQ3_S, "IQ3_S", 256, 110),
    (IQ2_S, "IQ2_S", 256, 82),
    (IQ4_XS, "IQ4_XS", 256, 136),
    (I8, "I8", 1, 1),
    (I16, "I16", 1, 2),
    (I32, "I32", 1, 4),
    (I64, "I64", 1, 8),
    (F64, "F64", 1, 8),
    (IQ1_M, "IQ1_M", 256, 56),
    (BF16, "BF16", 1, 2),
    (TQ1_0, "TQ1_0", 256, 54),
    (TQ2_0, "TQ2_0", 256, 66),
    (MXFP4, "MXFP4", 32, 17),
    (NVFP4, "NVFP4", 64, 36),
    (Q1_0, "Q1_0", 128, 18),
];

impl GgmlType {
    /// Every type, by ascending id.
    pub fn all() -> impl Iterator<Item = GgmlType> {
        TYPES.iter().map(|row| row.0)
    }

    /// The type with this id, `None` for ids that GGUF does not assign (or has withdrawn).
    pub fn from_id(id: u32) -> Option<GgmlType> {
        GgmlType::all().find(|t| t.id() == id)
    }

    /// The type of this name, whatever the case: `"Q4_K"`, `"q4_k"`.
    pub fn from_name(name: &str) -> Option<GgmlType> {
        GgmlType::all().find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// The id in the file.
    pub const fn id(self) -> u32 {
        self as u32
    }

    fn row(self) -> &'static (GgmlType, &'static str, u32, u32) {
        // TYPES has one row per variant (a test checks it), so the fallback is never taken.
        TYPES.iter().find(|row| row.0 == self).unwrap_or(&TYPES[0])
    }

    /// The name: `"Q4_K"`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Values of one block.
    pub fn block_values(self) -> u32 {
        self.row().2
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> u32 {
        self.row().3
    }

    /// Whether the type holds real-valued weights that a matrix product can read: everything but the plain integers,
    /// F64 (header and copy only) and the activation-side Q8_1 and Q8_K.
    pub const fn is_matmul_weight(self) -> bool {
        !matches!(self, I8 | I16 | I32 | I64 | F64 | Q8_1 | Q8_K)
    }

    /// Bytes of one row of `k` values.
    ///
    /// # Errors
    /// InvalidArgument when `k` is not a whole number of blocks, or the product overflows.
    pub fn row_bytes(self, k: usize) -> Result<usize> {
        let block_values = self.block_values() as usize;
        if !k.is_multiple_of(block_values) {
            return Err(MlxError::InvalidArgument(format!(
                "{self}: k must be a multiple of the block's {block_values} values, got {k}"
            )));
        }
        (k / block_values).checked_mul(self.block_bytes() as usize).ok_or_else(|| {
            MlxError::InvalidArgument(format!("{self}: the bytes of a row of {k} values exceed the address space"))
        })
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
