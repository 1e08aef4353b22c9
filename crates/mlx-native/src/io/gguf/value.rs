//! Metadata values, as views into the file.

use std::borrow::Cow;
use std::fmt;

use super::cursor::{Cursor, Place};

/// The type of a metadata value; the discriminant is its id in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum MetadataType {
    /// 8-bit unsigned integer.
    U8 = 0,
    /// 8-bit signed integer.
    I8 = 1,
    /// 16-bit unsigned integer.
    U16 = 2,
    /// 16-bit signed integer.
    I16 = 3,
    /// 32-bit unsigned integer.
    U32 = 4,
    /// 32-bit signed integer.
    I32 = 5,
    /// IEEE 754 binary32.
    F32 = 6,
    /// One byte, 0 or 1.
    Bool = 7,
    /// Bytes, by convention UTF-8, with a length.
    String = 8,
    /// Elements of one type, with a length; arrays may hold arrays.
    Array = 9,
    /// 64-bit unsigned integer.
    U64 = 10,
    /// 64-bit signed integer.
    I64 = 11,
    /// IEEE 754 binary64.
    F64 = 12,
}

impl MetadataType {
    const ALL: [MetadataType; 13] = [
        MetadataType::U8,
        MetadataType::I8,
        MetadataType::U16,
        MetadataType::I16,
        MetadataType::U32,
        MetadataType::I32,
        MetadataType::F32,
        MetadataType::Bool,
        MetadataType::String,
        MetadataType::Array,
        MetadataType::U64,
        MetadataType::I64,
        MetadataType::F64,
    ];

    /// The type with this id.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// The id in the file.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The lower-case name: `"u32"`, `"string"`, …
    pub const fn name(self) -> &'static str {
        match self {
            MetadataType::U8 => "u8",
            MetadataType::I8 => "i8",
            MetadataType::U16 => "u16",
            MetadataType::I16 => "i16",
            MetadataType::U32 => "u32",
            MetadataType::I32 => "i32",
            MetadataType::F32 => "f32",
            MetadataType::Bool => "bool",
            MetadataType::String => "string",
            MetadataType::Array => "array",
            MetadataType::U64 => "u64",
            MetadataType::I64 => "i64",
            MetadataType::F64 => "f64",
        }
    }

    /// Bytes that a value occupies at least; exactly, unless it is a string or an array.
    pub(super) const fn min_bytes(self) -> usize {
        match self {
            MetadataType::U8 | MetadataType::I8 | MetadataType::Bool => 1,
            MetadataType::U16 | MetadataType::I16 => 2,
            MetadataType::U32 | MetadataType::I32 | MetadataType::F32 => 4,
            MetadataType::U64 | MetadataType::I64 | MetadataType::F64 => 8,
            MetadataType::String => 8,
            MetadataType::Array => 12,
        }
    }
}

impl fmt::Display for MetadataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A metadata value; strings and arrays are views into the file.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // the variants are those of `MetadataType`
pub enum MetadataValue<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(GgufStr<'a>),
    Array(MetadataArray<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> MetadataValue<'a> {
    /// The value's type.
    pub fn kind(&self) -> MetadataType {
        match self {
            MetadataValue::U8(_) => MetadataType::U8,
            MetadataValue::I8(_) => MetadataType::I8,
            MetadataValue::U16(_) => MetadataType::U16,
            MetadataValue::I16(_) => MetadataType::I16,
            MetadataValue::U32(_) => MetadataType::U32,
            MetadataValue::I32(_) => MetadataType::I32,
            MetadataValue::F32(_) => MetadataType::F32,
            MetadataValue::Bool(_) => MetadataType::Bool,
            MetadataValue::String(_) => MetadataType::String,
            MetadataValue::Array(_) => MetadataType::Array,
            MetadataValue::U64(_) => MetadataType::U64,
            MetadataValue::I64(_) => MetadataType::I64,
            MetadataValue::F64(_) => MetadataType::F64,
        }
    }

    /// The value of any integer type.
    pub fn as_integer(&self) -> Option<i128> {
        match *self {
            MetadataValue::U8(v) => Some(v.into()),
            MetadataValue::I8(v) => Some(v.into()),
            MetadataValue::U16(v) => Some(v.into()),
            MetadataValue::I16(v) => Some(v.into()),
            MetadataValue::U32(v) => Some(v.into()),
            MetadataValue::I32(v) => Some(v.into()),
            MetadataValue::U64(v) => Some(v.into()),
            MetadataValue::I64(v) => Some(v.into()),
            _ => None,
        }
    }

    /// Type and value for an error message, without the contents of strings and arrays.
    pub(super) fn describe(&self) -> String {
        match self {
            MetadataValue::String(s) if s.to_str().is_none() => "a string that is not UTF-8".to_string(),
            MetadataValue::String(_) => "string".to_string(),
            MetadataValue::Array(a) => format!("array of {} {}", a.len(), a.element_type()),
            scalar => format!("{} {scalar}", scalar.kind()),
        }
    }
}

impl fmt::Display for MetadataValue<'_> {
    /// The value as text: strings with U+FFFD for bytes that are not UTF-8, arrays as `[a, b, …]` in full.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetadataValue::U8(v) => v.fmt(f),
            MetadataValue::I8(v) => v.fmt(f),
            MetadataValue::U16(v) => v.fmt(f),
            MetadataValue::I16(v) => v.fmt(f),
            MetadataValue::U32(v) => v.fmt(f),
            MetadataValue::I32(v) => v.fmt(f),
            MetadataValue::F32(v) => v.fmt(f),
            MetadataValue::Bool(v) => v.fmt(f),
            MetadataValue::String(v) => v.fmt(f),
            MetadataValue::Array(v) => {
                f.write_str("[")?;
                for (i, element) in v.iter().enumerate() {
                    if i > 0 {
                        f.write_str(", ")?;
                    }
                    element.fmt(f)?;
                }
                f.write_str("]")
            }
            MetadataValue::U64(v) => v.fmt(f),
            MetadataValue::I64(v) => v.fmt(f),
            MetadataValue::F64(v) => v.fmt(f),
        }
    }
}

/// A string of the file: UTF-8 by convention, but a byte-level vocabulary may hold tokens that are not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct GgufStr<'a>(&'a [u8]);

impl<'a> GgufStr<'a> {
    /// The bytes as they are.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The text, `None` if the bytes are not UTF-8.
    pub fn to_str(self) -> Option<&'a str> {
        std::str::from_utf8(self.0).ok()
    }

    /// The text, with U+FFFD in place of bytes that are not UTF-8.
    pub fn to_string_lossy(self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.0)
    }
}

impl<'a> From<&'a [u8]> for GgufStr<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        GgufStr(bytes)
    }
}

impl<'a> From<&'a str> for GgufStr<'a> {
    fn from(text: &'a str) -> Self {
        GgufStr(text.as_bytes())
    }
}

impl fmt::Display for GgufStr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_string_lossy().fmt(f)
    }
}

impl fmt::Debug for GgufStr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// An array of the file; elements are decoded as they are iterated.
///
/// A vocabulary of 262,144 strings costs nothing until it is read.
#[derive(Clone, Copy)]
pub struct MetadataArray<'a> {
    element: MetadataType,
    len: usize,
    depth: u32,
    /// At the first element.
    start: Cursor<'a>,
}

impl<'a> MetadataArray<'a> {
    pub(super) fn new(element: MetadataType, len: usize, depth: u32, start: Cursor<'a>) -> Self {
        MetadataArray { element, len, depth, start }
    }

    /// The type of every element.
    pub fn element_type(&self) -> MetadataType {
        self.element
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in order.
    pub fn iter(&self) -> MetadataArrayIter<'a> {
        MetadataArrayIter { element: self.element, remaining: self.len, depth: self.depth, cursor: self.start }
    }

    /// The elements in order, if they are strings.
    pub fn strings(&self) -> Option<impl Iterator<Item = GgufStr<'a>> + use<'a>> {
        (self.element == MetadataType::String).then(|| {
            self.iter().filter_map(|value| match value {
                MetadataValue::String(s) => Some(s),
                _ => None,
            })
        })
    }
}

impl<'a> IntoIterator for MetadataArray<'a> {
    type Item = MetadataValue<'a>;
    type IntoIter = MetadataArrayIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl PartialEq for MetadataArray<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.element == other.element && self.len == other.len && self.iter().eq(other.iter())
    }
}

impl fmt::Debug for MetadataArray<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Iterates over the elements of a [`MetadataArray`].
#[derive(Clone)]
pub struct MetadataArrayIter<'a> {
    element: MetadataType,
    remaining: usize,
    depth: u32,
    cursor: Cursor<'a>,
}

impl fmt::Debug for MetadataArrayIter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone()).finish()
    }
}

impl<'a> Iterator for MetadataArrayIter<'a> {
    type Item = MetadataValue<'a>;

    fn next(&mut self) -> Option<MetadataValue<'a>> {
        self.remaining = self.remaining.checked_sub(1)?;
        // Opening the file has checked every element; only a file that was overwritten since fails here, and ends the array.
        let value = self.cursor.value(self.element, self.depth + 1, Place::Header("array element")).ok();
        if value.is_none() {
            self.remaining = 0;
        }
        value
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.remaining, Some(self.remaining))
    }
}

/// A Rust type that a metadata value can be read as.
///
/// Integer types accept every integer type of the file whose value fits (writers disagree about widths), `f32` and `f64` accept both
/// float types, `&str` needs UTF-8, [`GgufStr`] takes any string, `Vec<T>` an array whose elements all convert.
pub trait FromMetadata<'a>: Sized {
    /// What is expected, for the error message: `"u32"`, `"array of f32"`.
    fn expected() -> String;

    /// The value, `None` if it has another type or does not fit.
    fn from_metadata(value: MetadataValue<'a>) -> Option<Self>;
}

macro_rules! from_integer {
    ($($t:ty),*) => {$(
        impl<'a> FromMetadata<'a> for $t {
            fn expected() -> String {
                stringify!($t).to_string()
            }

            fn from_metadata(value: MetadataValue<'a>) -> Option<Self> {
                value.as_integer()?.try_into().ok()
            }
        }
    )*};
}

from_integer!(u8, i8, u16, i16, u32, i32, u64, i64, usize);

impl<'a> FromMetadata<'a> for f32 {
    fn expected() -> String {
        "f32".to_string()
    }

    fn from_metadata(value: MetadataValue<'a>) -> Option<Self> {
        match value {
            MetadataValue::F32(v) => Some(v),
            MetadataValue::F64(v) => Some(v as f32),
            _ => None,
        }
    }
}

impl<'a> FromMetadata<'a> for f64 {
    fn expected() -> String {
        "f64".to_string()
    }

    fn from_metadata(value: MetadataValue<'a>) -> Option<Self> {
        match value {
            MetadataValue::F32(v) => Some(v.into()),
            MetadataValue::F64(v) => Some(v),
            _ => None,
        }
    }
}

impl<'a> FromMetadata<'a> for bool {
    fn expected() -> String {
        "bool".to_string()
    }

    fn from_metadata(value: MetadataValue<'a>) -> Option<Self> {
        if let MetadataValue::Bool(v) = value { Some(v) } else { None }
    }
}

impl<'a> FromMetadata<'a> for GgufStr<'a> {
    fn expected() -> String {
        "string".to_string()
    }

    fn from_metadata(value: MetadataValue<'a>) -> Option<Self> {
        if let MetadataValue::String(s) = value { Some(s) } else { None }
    }
}

impl<'a> FromMetadata<'a> for &'a str {
    fn expected() -> String {
        "UTF-8 string".to_string()
    }

    fn from_metadata(value: MetadataValue<'a>) -> Option<Self> {
        GgufStr::from_metadata(value)?.to_str()
    }
}

impl<'a> FromMetadata<'a> for String {
    fn expected() -> String {
        <&str>::expected()
    }

    fn from_metadata(value: MetadataValue<'a>) -> Option<Self> {
        <&str>::from_metadata(value).map(str::to_string)
    }
}

impl<'a> FromMetadata<'a> for MetadataArray<'a> {
    fn expected() -> String {
        "array".to_string()
    }

    fn from_metadata(value: MetadataValue<'a>) -> Option<Self> {
        if let MetadataValue::Array(a) = value { Some(a) } else { None }
    }
}

impl<'a, T: FromMetadata<'a>> FromMetadata<'a> for Vec<T> {
    fn expected() -> String {
        format!("array of {}", T::expected())
    }

    fn from_metadata(value: MetadataValue<'a>) -> Option<Self> {
        MetadataArray::from_metadata(value)?.iter().map(T::from_metadata).collect()
    }
}
