//! How a block format is described: its fields as data, its two conversions as functions.

use bytemuck::Pod;
use half::{bf16, f16};

use super::fp4::NVFP4_LARGEST;
use crate::GgmlType;

/// A format of GGML blocks: everything that the rest of the library derives from.
#[derive(Debug)]
pub struct BlockFormat {
    /// The name: `"Q4_K"`.
    pub name: &'static str,
    /// The type whose bytes this describes.
    pub ggml_type: GgmlType,
    /// Values of a block.
    pub values: u32,
    /// Bytes of a block.
    pub bytes: u32,
    /// The name of the block's struct, in Rust and in rendered source: `"BlockQ4_K"`.
    pub struct_name: &'static str,
    /// The struct's fields, in byte order, without padding.
    pub fields: &'static [Field],
    /// Names of the codebooks that decoding reads, as in [`TABLES`](super::codebooks::TABLES).
    pub codebooks: &'static [&'static str],
    /// Decodes a row: as many whole blocks as the output has room for. `None` for the types that are only copied.
    pub dequantize: Option<DequantizeRow>,
    /// Encodes a row, `None` for the types that the library does not write.
    pub quantize: Option<QuantizeRow>,
}

impl BlockFormat {
    /// The largest magnitude that a block can be made from. Plain types take everything, blocks no value that would make
    /// their scale infinite or is beyond its reach.
    pub fn largest_input(&self) -> f32 {
        match self.values {
            1 => f32::INFINITY,
            // IQ1_M's scale is an f16 too, in four places.
            _ if self.fields.iter().any(|field| field.scalar == Scalar::F16) || self.ggml_type == GgmlType::IQ1_M => {
                f16::MAX.to_f32()
            }
            _ if self.ggml_type == GgmlType::NVFP4 => NVFP4_LARGEST,
            _ => f32::MAX,
        }
    }
}

/// Decodes whole blocks; the lengths agree.
pub type DequantizeRow = fn(blocks: &[u8], out: &mut [f32]);

/// Encodes whole blocks; the lengths agree, those of the importance too.
pub type QuantizeRow = fn(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]);

/// A field of a block's struct: a scalar, or an array of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The name.
    pub name: &'static str,
    /// The element.
    pub scalar: Scalar,
    /// `None` for a scalar, else the array's length.
    pub len: Option<usize>,
    /// Bytes before the field.
    pub offset: usize,
}

impl Field {
    /// Bytes of the field.
    pub const fn bytes(&self) -> usize {
        let count = match self.len {
            Some(len) => len,
            None => 1,
        };
        self.scalar.bytes() * count
    }
}

/// The element type of a [`Field`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Scalar {
    F64,
    F32,
    F16,
    BF16,
    U16,
    U8,
    I64,
    I32,
    I16,
    I8,
}

impl Scalar {
    /// Bytes of one element, which is its alignment too.
    pub const fn bytes(self) -> usize {
        match self {
            Scalar::F64 | Scalar::I64 => 8,
            Scalar::F32 | Scalar::I32 => 4,
            Scalar::F16 | Scalar::BF16 | Scalar::U16 | Scalar::I16 => 2,
            Scalar::U8 | Scalar::I8 => 1,
        }
    }
}

/// A Rust type that may stand in a block's struct.
pub trait FieldType {
    /// The element.
    const SCALAR: Scalar;
    /// As [`Field::len`].
    const LEN: Option<usize> = None;
}

impl<T: FieldType, const N: usize> FieldType for [T; N] {
    const SCALAR: Scalar = T::SCALAR;
    const LEN: Option<usize> = Some(N);
}

macro_rules! field_types {
    ($($ty:ty: $scalar:ident),*) => { $(impl FieldType for $ty { const SCALAR: Scalar = Scalar::$scalar; })* };
}
field_types!(f64: F64, f32: F32, f16: F16, bf16: BF16, u16: U16, u8: U8, i64: I64, i32: I32, i16: I16, i8: I8);

/// A block of `N` values that can be decoded.
pub trait Block<const N: usize>: Pod {
    /// Decodes the block: the definition of what its bytes mean.
    fn dequantize(&self, out: &mut [f32; N]);

    /// [`DequantizeRow`]: block after block, whose bytes may lie at any address.
    fn dequantize_row(blocks: &[u8], out: &mut [f32]) {
        for (bytes, out) in blocks.chunks_exact(size_of::<Self>()).zip(out.as_chunks_mut::<N>().0) {
            bytemuck::pod_read_unaligned::<Self>(bytes).dequantize(out);
        }
    }
}

/// A block of `N` values that can be made from values.
pub trait Quantize<const N: usize>: Block<N> {
    /// The block that is close to `values`, by squared error weighted with `importance` where the format's search can use it.
    fn quantize(values: &[f32; N], importance: Option<&[f32; N]>) -> Self;

    /// [`QuantizeRow`]: block after block, whose bytes may lie at any address.
    fn quantize_row(values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        let mut importance = importance.map(|weights| weights.as_chunks::<N>().0.iter());
        for (values, bytes) in values.as_chunks::<N>().0.iter().zip(out.chunks_exact_mut(size_of::<Self>())) {
            let importance = importance.as_mut().and_then(Iterator::next);
            bytes.copy_from_slice(bytemuck::bytes_of(&Self::quantize(values, importance)));
        }
    }
}

/// Declares a block's struct, checks its size and describes its fields.
macro_rules! block {
    ($(#[$doc:meta])* $name:ident: $bytes:literal bytes { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        #[allow(non_camel_case_types)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $ty,)*
        }

        const _: () = assert!(size_of::<$name>() == $bytes);

        impl $name {
            pub(super) const FIELDS: &'static [$crate::format::ggml::Field] = &[$($crate::format::ggml::Field {
                name: stringify!($field),
                scalar: <$ty as $crate::format::ggml::block::FieldType>::SCALAR,
                len: <$ty as $crate::format::ggml::block::FieldType>::LEN,
                offset: std::mem::offset_of!($name, $field),
            },)*];
        }
    };
}
pub(super) use block;
