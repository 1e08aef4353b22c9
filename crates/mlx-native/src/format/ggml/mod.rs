//! GGML block formats: one table of descriptions, from which sizes, support, conversion and rendering derive.
//!
//! A block's struct has the bytes of the file, so a little-endian host is required. Layouts: the `gguf` Python package 0.19.0.

#[cfg(target_endian = "big")]
compile_error!("block structs are the bytes of little-endian files");

mod block;
pub mod codebooks;
pub mod fp4;

mod grid_search;
pub(crate) mod grids;
pub mod iq1;
pub mod iq2;
pub mod iq3;
pub mod iq4;
pub mod plain;
pub mod q2_k;
pub mod q3_k;
pub mod q4;
pub mod q4_k;
pub mod q5;
pub mod q6_k;
pub mod q8;
mod search;
pub mod ternary;

pub use block::{Block, BlockFormat, DequantizeRow, Field, Quantize, QuantizeRow, Scalar};
pub use fp4::{BlockMXFP4, BlockNVFP4};
pub use iq1::{BlockIQ1_M, BlockIQ1_S};
pub use iq2::{BlockIQ2_S, BlockIQ2_XS, BlockIQ2_XXS};
pub use iq3::{BlockIQ3_S, BlockIQ3_XXS};
pub use iq4::{BlockIQ4_NL, BlockIQ4_XS};
pub use plain::{BlockBF16, BlockF16, BlockF32, BlockF64, BlockI8, BlockI16, BlockI32, BlockI64};
pub use q2_k::BlockQ2_K;
pub use q3_k::BlockQ3_K;
pub use q4::{BlockQ4_0, BlockQ4_1};
pub use q4_k::{BlockQ4_K, BlockQ5_K};
pub use q5::{BlockQ5_0, BlockQ5_1};
pub use q6_k::BlockQ6_K;
pub use q8::{BlockQ8_0, BlockQ8_1, BlockQ8_K};
pub use ternary::{BlockQ1_0, BlockTQ1_0, BlockTQ2_0};

use super::affine::check_len;
use crate::{GgmlType, MlxError, Result};

/// One row of [`FORMATS`]: type, block struct, values of a block, what the library does with it, codebooks.
macro_rules! row {
    ($ty:ident, $block:ident, $values:literal, $ability:ident $(, $codebook:literal)*) => {
        BlockFormat {
            name: stringify!($ty),
            ggml_type: GgmlType::$ty,
            values: $values,
            bytes: size_of::<$block>() as u32,
            struct_name: stringify!($block),
            fields: $block::FIELDS,
            codebooks: &[$($codebook),*],
            dequantize: row!(@dequantize $ability, $block, $values),
            quantize: row!(@quantize $ability, $block, $values),
        }
    };
    (@dequantize copied, $block:ident, $values:literal) => { None };
    (@dequantize $ability:ident, $block:ident, $values:literal) => { Some(<$block as Block<$values>>::dequantize_row) };
    (@quantize read_write, $block:ident, $values:literal) => { Some(<$block as Quantize<$values>>::quantize_row) };
    (@quantize $ability:ident, $block:ident, $values:literal) => { None };
}

/// Every block format, by ascending id.
pub static FORMATS: [BlockFormat; 34] = [
    row!(F32, BlockF32, 1, read_write),
    row!(F16, BlockF16, 1, read_write),
    row!(Q4_0, BlockQ4_0, 32, read_write),
    row!(Q4_1, BlockQ4_1, 32, read_write),
    row!(Q5_0, BlockQ5_0, 32, read_write),
    row!(Q5_1, BlockQ5_1, 32, read_write),
    row!(Q8_0, BlockQ8_0, 32, read_write),
    row!(Q8_1, BlockQ8_1, 32, read),
    row!(Q2_K, BlockQ2_K, 256, read_write),
    row!(Q3_K, BlockQ3_K, 256, read_write),
    row!(Q4_K, BlockQ4_K, 256, read_write),
    row!(Q5_K, BlockQ5_K, 256, read_write),
    row!(Q6_K, BlockQ6_K, 256, read_write),
    row!(Q8_K, BlockQ8_K, 256, read),
    row!(IQ2_XXS, BlockIQ2_XXS, 256, read_write, "IQ2_XXS_GRID", "EVEN_SIGNS"),
    row!(IQ2_XS, BlockIQ2_XS, 256, read_write, "IQ2_XS_GRID", "EVEN_SIGNS"),
    row!(IQ3_XXS, BlockIQ3_XXS, 256, read_write, "IQ3_XXS_GRID", "EVEN_SIGNS"),
    row!(IQ1_S, BlockIQ1_S, 256, read_write, "IQ1_GRID", "IQ1_DELTA"),
    row!(IQ4_NL, BlockIQ4_NL, 32, read_write, "IQ4_VALUES"),
    row!(IQ3_S, BlockIQ3_S, 256, read_write, "IQ3_S_GRID"),
    row!(IQ2_S, BlockIQ2_S, 256, read_write, "IQ2_S_GRID"),
    row!(IQ4_XS, BlockIQ4_XS, 256, read_write, "IQ4_VALUES"),
    row!(I8, BlockI8, 1, copied),
    row!(I16, BlockI16, 1, copied),
    row!(I32, BlockI32, 1, copied),
    row!(I64, BlockI64, 1, copied),
    row!(F64, BlockF64, 1, copied),
    row!(IQ1_M, BlockIQ1_M, 256, read_write, "IQ1_GRID", "IQ1_DELTA"),
    row!(BF16, BlockBF16, 1, read_write),
    row!(TQ1_0, BlockTQ1_0, 256, read_write),
    row!(TQ2_0, BlockTQ2_0, 256, read_write),
    row!(MXFP4, BlockMXFP4, 32, read_write, "E2M1_DOUBLED"),
    row!(NVFP4, BlockNVFP4, 64, read_write, "E2M1_DOUBLED"),
    row!(Q1_0, BlockQ1_0, 128, read_write),
];

/// Decodes a row: `out.len()` values from exactly their blocks' bytes, which may lie at any address.
///
/// # Errors
/// InvalidArgument when the type has no real values (the plain integers, F64), `out` is not whole blocks, or `bytes` has another size.
pub fn dequantize_row(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    let Some(dequantize) = ty.block_format().dequantize else {
        return Err(MlxError::InvalidArgument(format!("{ty} is only copied, it cannot be dequantized")));
    };
    check_len(&ty, "bytes", bytes.len(), ty.row_bytes(out.len())?)?;
    dequantize(bytes, out);
    Ok(())
}

/// Whether [`quantize_row`] can write the type.
pub fn can_quantize(ty: GgmlType) -> bool {
    ty.block_format().quantize.is_some()
}

/// Encodes a row: `values` into exactly their blocks' bytes.
///
/// ```
/// use mlx_native::GgmlType;
/// use mlx_native::format::{dequantize_row, quantize_row};
///
/// let values: Vec<f32> = (0..64).map(|i| (i - 32) as f32 / 4.0).collect();
/// let mut bytes = vec![0; GgmlType::Q8_0.row_bytes(64)?];
/// quantize_row(GgmlType::Q8_0, &values, &mut bytes)?;
/// let mut back = vec![0.0; 64];
/// dequantize_row(GgmlType::Q8_0, &bytes, &mut back)?;
/// assert!(values.iter().zip(&back).all(|(x, y)| (x - y).abs() <= 8.0 / 127.0 / 2.0 + 1e-3));
/// # Ok::<(), mlx_native::MlxError>(())
/// ```
///
/// # Errors
/// InvalidArgument when the library cannot write the type ([`can_quantize`]), `values` is not whole blocks, `out` has another
/// size, or the type is none of the plain ones and a value is NaN or too large for the block's scale.
pub fn quantize_row(ty: GgmlType, values: &[f32], out: &mut [u8]) -> Result<()> {
    quantize_row_weighted(ty, values, None, out)
}

/// [`quantize_row`] with an importance for each value: how much its squared error counts (for a weight, the mean square of
/// the activations that it multiplies; finite and not negative). Q8_0, MXFP4 and the plain types, which have nothing to search, ignore it.
/// In IQ1, IQ2 and IQ3 errors of large values count more besides.
///
/// # Errors
/// Those of [`quantize_row`], and InvalidArgument when `importance` has another length than `values`.
pub fn quantize_row_weighted(ty: GgmlType, values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<()> {
    let Some(quantize) = ty.block_format().quantize else {
        return Err(MlxError::InvalidArgument(format!("quantizing to {ty} is not supported")));
    };
    check_len(&ty, "bytes", out.len(), ty.row_bytes(values.len())?)?;
    if let Some(importance) = importance {
        check_len(&ty, "importances", importance.len(), values.len())?;
    }
    let limit = ty.block_format().largest_input();
    if let Some(i) = values.iter().position(|value| value.is_nan() && limit < f32::INFINITY || value.abs() > limit) {
        return Err(MlxError::InvalidArgument(format!("{ty} row: value {i} is {}, outside ±{limit}", values[i])));
    }
    quantize(values, importance, out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_fill_their_block_and_codebooks_exist() {
        for format in &FORMATS {
            let mut offset = 0;
            for field in format.fields {
                assert_eq!(field.offset, offset, "{} {}", format.name, field.name);
                offset += field.bytes();
            }
            assert_eq!(offset, format.bytes as usize, "{}", format.name);
            for name in format.codebooks {
                assert!(codebooks::TABLES.iter().any(|table| table.name == *name), "{} {name}", format.name);
            }
        }
    }

    #[test]
    fn wrong_sizes_are_errors() {
        for ty in GgmlType::all() {
            let (values, bytes) = (ty.block_values() as usize, ty.block_bytes() as usize);
            let mut out = vec![0.0; 2 * values];
            assert_eq!(
                dequantize_row(ty, &vec![0; 2 * bytes], &mut out).is_ok(),
                ty.block_format().dequantize.is_some()
            );
            assert!(dequantize_row(ty, &vec![0; 2 * bytes - 1], &mut out).is_err());
            assert!(dequantize_row(ty, &vec![0; 2 * bytes + 1], &mut out).is_err());
            assert!(quantize_row(ty, &out, &mut vec![0; 2 * bytes - 1]).is_err());
            assert_eq!(quantize_row(ty, &out, &mut vec![0; 2 * bytes]).is_ok(), can_quantize(ty));
            assert!(quantize_row_weighted(ty, &out, Some(&out[1..]), &mut vec![0; 2 * bytes]).is_err());
            if values > 1 {
                assert!(dequantize_row(ty, &vec![0; 2 * bytes], &mut out[1..]).is_err());
                assert!(quantize_row(ty, &out[1..], &mut vec![0; 2 * bytes]).is_err());
            }
        }
    }
}
