//! What a GGUF file holds.

use anyhow::Result;
use mlx_native::io::gguf::{GgufFile, MetadataValue};
use serde::{Serialize, Serializer};
use std::path::PathBuf;

use super::{Info, Tensor};

/// Arrays up to this length are printed in full.
const SHORT_ARRAY: usize = 8;

/// Metadata and tensors; what is the same for all kinds of model is left empty.
pub fn info(file: &GgufFile, full: bool) -> Result<Info<'_>> {
    Ok(Info {
        path: PathBuf::new(),
        kind: format!("GGUF {}", file.version()),
        files: file.maps().len(),
        bytes: file.maps().map(|map| map.len() as u64).sum(),
        version: Some(file.version()),
        alignment: Some(file.alignment()),
        parameters: 0,
        architecture: file.optional("general.architecture")?,
        runs: false,
        metadata: file.metadata().map(|(key, value)| (key, super::Metadata::Gguf(Metadata { value, full }))).collect(),
        formats: Vec::new(),
        devices: Vec::new(),
        tensors: file
            .tensors()
            .map(|tensor| Tensor {
                name: tensor.name,
                shape: tensor.shape.to_vec(),
                format: tensor.ggml_type.name().to_owned(),
                bytes: tensor.byte_len,
                part: tensor.part,
                offset: tensor.offset,
                weight: Some(tensor.ggml_type.into()),
            })
            .collect(),
    })
}

/// A metadata value; long arrays are shortened unless it is to be shown in full.
pub struct Metadata<'a> {
    value: MetadataValue<'a>,
    full: bool,
}

#[derive(Serialize)]
struct Shortened<'a> {
    array_of: &'a str,
    length: usize,
    first: Vec<Metadata<'a>>,
}

impl Serialize for Metadata<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let full = self.full;
        match self.value {
            MetadataValue::U8(value) => to.serialize_u8(value),
            MetadataValue::I8(value) => to.serialize_i8(value),
            MetadataValue::U16(value) => to.serialize_u16(value),
            MetadataValue::I16(value) => to.serialize_i16(value),
            MetadataValue::U32(value) => to.serialize_u32(value),
            MetadataValue::I32(value) => to.serialize_i32(value),
            MetadataValue::U64(value) => to.serialize_u64(value),
            MetadataValue::I64(value) => to.serialize_i64(value),
            MetadataValue::F32(value) => to.serialize_f32(value),
            MetadataValue::F64(value) => to.serialize_f64(value),
            MetadataValue::Bool(value) => to.serialize_bool(value),
            MetadataValue::String(value) => to.serialize_str(&value.to_string_lossy()),
            MetadataValue::Array(array) if full || array.len() <= SHORT_ARRAY => {
                to.collect_seq(array.iter().map(|value| Metadata { value, full }))
            }
            MetadataValue::Array(array) => Shortened {
                array_of: array.element_type().name(),
                length: array.len(),
                first: array.iter().take(SHORT_ARRAY).map(|value| Metadata { value, full }).collect(),
            }
            .serialize(to),
        }
    }
}

impl Metadata<'_> {
    /// The value in one line.
    pub fn text(&self) -> String {
        const LONGEST: usize = 100;
        let text = match self.value {
            MetadataValue::Array(array) if !self.full && array.len() > SHORT_ARRAY => {
                format!("{} × {}", array.len(), array.element_type().name())
            }
            value => value.to_string().replace('\n', "\\n"),
        };
        match text.char_indices().nth(LONGEST) {
            Some((end, _)) if !self.full => format!("{}…", &text[..end]),
            _ => text,
        }
    }
}
