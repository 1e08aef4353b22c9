//! Bounds-checked reading of the header, with errors that say where.

use std::fmt;

use super::value::{MetadataArray, MetadataType, MetadataValue};
use crate::{MlxError, Result};

/// Arrays may hold arrays; deeper than this no writer goes, and the reader recurses once per level.
pub(super) const MAX_ARRAY_DEPTH: u32 = 8;

/// What is being read, for error messages.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    Header(&'static str),
    /// A metadata entry whose key is not yet read, by its position.
    Entry(usize),
    Key(&'a str),
    /// A tensor whose name is not yet read, by its position.
    TensorNo(usize),
    Tensor(&'a str),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Place::Header(field) => write!(f, "header, {field}"),
            Place::Entry(index) => write!(f, "key of metadata entry {index}"),
            Place::Key(key) => write!(f, "key `{}`", Short(key)),
            Place::TensorNo(index) => write!(f, "name of tensor {index}"),
            Place::Tensor(name) => write!(f, "tensor `{}`", Short(name)),
        }
    }
}

/// A name from the file, escaped, and cut where a malicious one would flood the message.
pub(super) struct Short<'a>(pub &'a str);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LIMIT: usize = 80;
        let mut chars = self.0.chars();
        for c in chars.by_ref().take(LIMIT) {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        if chars.next().is_some() { f.write_str("…") } else { Ok(()) }
    }
}

/// An error at a byte of the file.
pub(super) fn error_at(place: Place<'_>, offset: usize, problem: impl fmt::Display) -> MlxError {
    MlxError::GgufParseError(format!("{place}: {problem} (at byte {offset})"))
}

/// A position in the header.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8], pos: usize) -> Self {
        Cursor { bytes, pos: pos.min(bytes.len()) }
    }

    pub fn pos(&self) -> usize {
        self.pos
    }

    /// Bytes from here to the end of the file: what any count or length is held against before it is believed.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.pos
    }

    pub fn take(&mut self, len: usize, place: Place<'_>) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.pos..];
        match rest.get(..len) {
            Some(taken) => {
                self.pos += len;
                Ok(taken)
            }
            None => Err(error_at(
                place,
                self.pos,
                format_args!("expected {len} bytes, found the end of the file after {}", rest.len()),
            )),
        }
    }

    fn array<const N: usize>(&mut self, place: Place<'_>) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, place)?);
        Ok(out)
    }

    pub fn u32(&mut self, place: Place<'_>) -> Result<u32> {
        self.array(place).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, place: Place<'_>) -> Result<u64> {
        self.array(place).map(u64::from_le_bytes)
    }

    /// A number of items of at least `min_bytes` each, which the rest of the file can hold.
    pub fn count(&mut self, min_bytes: usize, items: &str, place: Place<'_>) -> Result<usize> {
        let at = self.pos;
        let count = self.u64(place)?;
        let most = self.remaining() / min_bytes;
        match usize::try_from(count) {
            Ok(n) if n <= most => Ok(n),
            _ => Err(error_at(
                place,
                at,
                format_args!("{count} {items} of at least {min_bytes} bytes, in {} bytes left", self.remaining()),
            )),
        }
    }

    /// A string: its length as u64, then its bytes.
    pub fn string(&mut self, place: Place<'_>) -> Result<&'a [u8]> {
        let len = self.count(1, "string bytes", place)?;
        self.take(len, place)
    }

    /// A string that names something: UTF-8 and not empty.
    pub fn name(&mut self, place: Place<'_>) -> Result<&'a str> {
        let at = self.pos;
        let bytes = self.string(place)?;
        match std::str::from_utf8(bytes) {
            Ok("") => Err(error_at(place, at, "expected a name, found an empty string")),
            Ok(name) => Ok(name),
            Err(e) => Err(error_at(place, at + 8 + e.valid_up_to(), "expected UTF-8, found other bytes")),
        }
    }

    pub fn value_type(&mut self, place: Place<'_>) -> Result<MetadataType> {
        let at = self.pos;
        let id = self.u32(place)?;
        MetadataType::from_id(id)
            .ok_or_else(|| error_at(place, at, format_args!("expected a value type 0..=12, found {id}")))
    }

    /// A value and all that it contains, each part checked; the cursor then stands behind it.
    pub fn value(&mut self, kind: MetadataType, depth: u32, place: Place<'_>) -> Result<MetadataValue<'a>> {
        if kind != MetadataType::Array {
            return self.shallow_value(kind, depth, place);
        }
        let array = self.array_head(depth, place)?;
        match array.element_type() {
            MetadataType::String => {
                for _ in 0..array.len() {
                    self.string(place)?;
                }
            }
            nested @ (MetadataType::Array | MetadataType::Bool) => {
                for _ in 0..array.len() {
                    self.value(nested, depth + 1, place)?;
                }
            }
            // `array_head` has checked that so many bytes are there.
            plain => self.pos += array.len() * plain.min_bytes(),
        }
        Ok(MetadataValue::Array(array))
    }

    /// A value; of an array only type and length are read, and the cursor is left at the first element.
    pub fn shallow_value(&mut self, kind: MetadataType, depth: u32, place: Place<'_>) -> Result<MetadataValue<'a>> {
        use MetadataValue as V;
        Ok(match kind {
            MetadataType::U8 => V::U8(u8::from_le_bytes(self.array(place)?)),
            MetadataType::I8 => V::I8(i8::from_le_bytes(self.array(place)?)),
            MetadataType::U16 => V::U16(u16::from_le_bytes(self.array(place)?)),
            MetadataType::I16 => V::I16(i16::from_le_bytes(self.array(place)?)),
            MetadataType::U32 => V::U32(u32::from_le_bytes(self.array(place)?)),
            MetadataType::I32 => V::I32(i32::from_le_bytes(self.array(place)?)),
            MetadataType::U64 => V::U64(u64::from_le_bytes(self.array(place)?)),
            MetadataType::I64 => V::I64(i64::from_le_bytes(self.array(place)?)),
            MetadataType::F32 => V::F32(f32::from_le_bytes(self.array(place)?)),
            MetadataType::F64 => V::F64(f64::from_le_bytes(self.array(place)?)),
            MetadataType::Bool => match self.array(place)? {
                [0] => V::Bool(false),
                [1] => V::Bool(true),
                [other] => {
                    return Err(error_at(place, self.pos - 1, format_args!("expected a bool 0 or 1, found {other}")));
                }
            },
            MetadataType::String => V::String(self.string(place)?.into()),
            MetadataType::Array => V::Array(self.array_head(depth, place)?),
        })
    }

    /// Element type and length of an array, the length checked against the bytes left.
    fn array_head(&mut self, depth: u32, place: Place<'_>) -> Result<MetadataArray<'a>> {
        if depth >= MAX_ARRAY_DEPTH {
            let problem = format_args!("arrays nested deeper than {MAX_ARRAY_DEPTH}");
            return Err(error_at(place, self.pos, problem));
        }
        let element = self.value_type(place)?;
        let len = self.count(element.min_bytes(), "array elements", place)?;
        Ok(MetadataArray::new(element, len, depth, *self))
    }
}
