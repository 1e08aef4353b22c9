//! The tensor types of GGUF files: ids, names and block sizes.

use std::fmt;

use super::ggml::{BlockFormat, FORMATS};
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

/// Row of [`FORMATS`] of each id. Ids without a type stand at row 0; [`GgmlType`] has none of them.
const ROW_OF_ID: [u8; 42] = {
    let mut rows = [0; 42];
    let mut row = 0;
    while row < FORMATS.len() {
        rows[FORMATS[row].ggml_type as usize] = row as u8;
        row += 1;
    }
    rows
};

impl GgmlType {
    /// Every type, by ascending id.
    pub fn all() -> impl Iterator<Item = GgmlType> {
        FORMATS.iter().map(|format| format.ggml_type)
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

    /// The description of the type's blocks.
    pub fn block_format(self) -> &'static BlockFormat {
        &FORMATS[ROW_OF_ID[self as usize] as usize]
    }

    /// The name: `"Q4_K"`.
    pub fn name(self) -> &'static str {
        self.block_format().name
    }

    /// Values of one block.
    pub fn block_values(self) -> u32 {
        self.block_format().values
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> u32 {
        self.block_format().bytes
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_own_row() {
        for ty in GgmlType::all() {
            assert_eq!(ty.block_format().ggml_type, ty);
            assert_eq!(GgmlType::from_id(ty.id()), Some(ty));
            assert_eq!(GgmlType::from_name(&ty.name().to_lowercase()), Some(ty));
        }
        assert_eq!(GgmlType::from_id(4), None);
        assert_eq!(GgmlType::from_id(42), None);
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(GgmlType::Q4_K.row_bytes(512).unwrap(), 288);
        assert_eq!(GgmlType::Q4_K.row_bytes(0).unwrap(), 0);
        let message = GgmlType::Q4_K.row_bytes(300).unwrap_err().to_string();
        assert!(message.contains("Q4_K") && message.contains("256") && message.contains("300"), "{message}");
        assert!(GgmlType::F32.row_bytes(usize::MAX / 2).is_err());
    }
}
