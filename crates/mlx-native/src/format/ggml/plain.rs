//! The types whose blocks are single values.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::block::{Block, Quantize, block};

block! {
    /// One value of F32.
    BlockF32: 4 bytes { /// The value.
        x: f32, }
}
block! {
    /// One value of F16.
    BlockF16: 2 bytes { /// The value.
        x: f16, }
}
block! {
    /// One value of BF16.
    BlockBF16: 2 bytes { /// The value.
        x: bf16, }
}
block! {
    /// One value of F64.
    BlockF64: 8 bytes { /// The value.
        x: f64, }
}
block! {
    /// One value of I8.
    BlockI8: 1 bytes { /// The value.
        x: i8, }
}
block! {
    /// One value of I16.
    BlockI16: 2 bytes { /// The value.
        x: i16, }
}
block! {
    /// One value of I32.
    BlockI32: 4 bytes { /// The value.
        x: i32, }
}
block! {
    /// One value of I64.
    BlockI64: 8 bytes { /// The value.
        x: i64, }
}

impl Block<1> for BlockF32 {
    fn dequantize(&self, out: &mut [f32; 1]) {
        *out = [self.x];
    }
}

impl Quantize<1> for BlockF32 {
    fn quantize(&[x]: &[f32; 1], _: Option<&[f32; 1]>) -> Self {
        BlockF32 { x }
    }
}

impl Block<1> for BlockF16 {
    fn dequantize(&self, out: &mut [f32; 1]) {
        *out = [self.x.to_f32()];
    }

    fn dequantize_row(blocks: &[u8], out: &mut [f32]) {
        match bytemuck::try_cast_slice::<u8, f16>(blocks) {
            // Uses the processor's conversion where it has one.
            Ok(halves) => halves.convert_to_f32_slice(out),
            Err(_) => blocks.as_chunks().0.iter().zip(out).for_each(|(x, out)| *out = f16::from_le_bytes(*x).to_f32()),
        }
    }
}

impl Quantize<1> for BlockF16 {
    fn quantize(&[x]: &[f32; 1], _: Option<&[f32; 1]>) -> Self {
        BlockF16 { x: f16::from_f32(x) }
    }
}

impl Block<1> for BlockBF16 {
    fn dequantize(&self, out: &mut [f32; 1]) {
        *out = [self.x.to_f32()];
    }
}

impl Quantize<1> for BlockBF16 {
    fn quantize(&[x]: &[f32; 1], _: Option<&[f32; 1]>) -> Self {
        BlockBF16 { x: bf16::from_f32(x) }
    }
}
