//! Rust values as metadata bytes.

use super::value::{GgufStr, MetadataArray, MetadataType, MetadataValue};

/// A type whose values can be metadata, and elements of metadata arrays.
pub trait MetadataElement {
    /// The type in the file.
    const KIND: MetadataType;

    /// Appends the value's bytes.
    fn encode(&self, out: &mut Vec<u8>);
}

/// Anything that can be written as a metadata value: every [`MetadataElement`], and values read from another file.
pub trait ToMetadata {
    /// The type in the file.
    fn metadata_type(&self) -> MetadataType;

    /// Appends the value's bytes.
    fn encode_metadata(&self, out: &mut Vec<u8>);
}

impl<T: MetadataElement + ?Sized> ToMetadata for T {
    fn metadata_type(&self) -> MetadataType {
        T::KIND
    }

    fn encode_metadata(&self, out: &mut Vec<u8>) {
        self.encode(out);
    }
}

macro_rules! numbers {
    ($($t:ty => $kind:ident),*) => {$(
        impl MetadataElement for $t {
            const KIND: MetadataType = MetadataType::$kind;

            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

numbers!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64, f32 => F32, f64 => F64);

impl MetadataElement for bool {
    const KIND: MetadataType = MetadataType::Bool;

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl MetadataElement for GgufStr<'_> {
    const KIND: MetadataType = MetadataType::String;

    fn encode(&self, out: &mut Vec<u8>) {
        encode_string(self.as_bytes(), out);
    }
}

impl MetadataElement for str {
    const KIND: MetadataType = MetadataType::String;

    fn encode(&self, out: &mut Vec<u8>) {
        encode_string(self.as_bytes(), out);
    }
}

impl MetadataElement for String {
    const KIND: MetadataType = MetadataType::String;

    fn encode(&self, out: &mut Vec<u8>) {
        encode_string(self.as_bytes(), out);
    }
}

impl<T: MetadataElement> MetadataElement for [T] {
    const KIND: MetadataType = MetadataType::Array;

    fn encode(&self, out: &mut Vec<u8>) {
        encode_array_head(T::KIND, self.len(), out);
        for element in self {
            element.encode(out);
        }
    }
}

impl<T: MetadataElement, const N: usize> MetadataElement for [T; N] {
    const KIND: MetadataType = MetadataType::Array;

    fn encode(&self, out: &mut Vec<u8>) {
        self.as_slice().encode(out);
    }
}

impl<T: MetadataElement> MetadataElement for Vec<T> {
    const KIND: MetadataType = MetadataType::Array;

    fn encode(&self, out: &mut Vec<u8>) {
        self.as_slice().encode(out);
    }
}

impl<T: MetadataElement + ?Sized> MetadataElement for &T {
    const KIND: MetadataType = T::KIND;

    fn encode(&self, out: &mut Vec<u8>) {
        T::encode(self, out);
    }
}

impl MetadataElement for MetadataArray<'_> {
    const KIND: MetadataType = MetadataType::Array;

    fn encode(&self, out: &mut Vec<u8>) {
        encode_array_head(self.element_type(), self.len(), out);
        for element in self.iter() {
            element.encode_metadata(out);
        }
    }
}

impl ToMetadata for MetadataValue<'_> {
    fn metadata_type(&self) -> MetadataType {
        self.kind()
    }

    fn encode_metadata(&self, out: &mut Vec<u8>) {
        match self {
            MetadataValue::U8(v) => v.encode(out),
            MetadataValue::I8(v) => v.encode(out),
            MetadataValue::U16(v) => v.encode(out),
            MetadataValue::I16(v) => v.encode(out),
            MetadataValue::U32(v) => v.encode(out),
            MetadataValue::I32(v) => v.encode(out),
            MetadataValue::F32(v) => v.encode(out),
            MetadataValue::Bool(v) => v.encode(out),
            MetadataValue::String(v) => v.encode(out),
            MetadataValue::Array(v) => v.encode(out),
            MetadataValue::U64(v) => v.encode(out),
            MetadataValue::I64(v) => v.encode(out),
            MetadataValue::F64(v) => v.encode(out),
        }
    }
}

pub(super) fn encode_string(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn encode_array_head(element: MetadataType, len: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&element.id().to_le_bytes());
    out.extend_from_slice(&(len as u64).to_le_bytes());
}
