//! GGUF files: read in place, and written.
//!
//! The layout, all little-endian: the magic `GGUF`; version u32; number of tensors u64; number of metadata entries u64; the metadata entries (key,
//! value type u32, value); the tensor entries (name, number of dimensions u32, dimensions u64 fastest first, type u32, offset u64); padding to
//! `general.alignment` (32 unless said otherwise); the data section, to whose start the offsets refer. Strings and arrays carry their length as u64.
//! Versions 2 and 3 are laid out alike. Source: the GGUF specification in the ggml repository (`docs/gguf.md`).
//!
//! ```no_run
//! # fn main() -> mlx_native::Result<()> {
//! use mlx_native::io::gguf::GgufFile;
//!
//! let file = GgufFile::open("model.gguf")?;
//! let layers = file.u32("llama.block_count")?;
//! let rope_base = file.optional::<f32>("llama.rope.freq_base")?.unwrap_or(10_000.0);
//! for token in file.array("tokenizer.ggml.tokens")?.strings().into_iter().flatten() {
//!     println!("{token}");
//! }
//! let q = file.required_tensor("blk.0.attn_q.weight")?;
//! println!("{layers} layers, rope base {rope_base}, {} {:?} of {} bytes", q.ggml_type, q.shape, file.tensor_data(&q)?.len());
//! # Ok(())
//! # }
//! ```

mod cursor;
mod encode;
mod part;
mod split;
mod tensor;
mod value;
mod writer;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub use encode::{MetadataElement, ToMetadata};
pub use split::{SPLIT_COUNT_KEY, SPLIT_NO_KEY, SPLIT_TENSORS_KEY, parse_split_path, split_path};
pub use tensor::{MAX_DIMS, TensorInfo, TensorShape};
pub use value::{FromMetadata, GgufStr, MetadataArray, MetadataArrayIter, MetadataType, MetadataValue};
pub use writer::GgufWriter;

use self::cursor::{Place, error_at};
use self::part::{Part, first_duplicate, in_file, sorted_positions};
use crate::io::FileMap;
pub use crate::io::TensorData;
use crate::{MlxError, Result};

/// An open GGUF file, or all parts of a split one: metadata, the list of tensors, and their data as slices of the memory map.
///
/// Opening walks and checks the header only, so a file of any size opens in milliseconds, and copies nothing: strings, arrays and
/// tensor data are views into the map. See [`FileMap`] for what happens when a file is changed while it is open.
#[derive(Debug)]
pub struct GgufFile {
    /// At least one.
    parts: Vec<Part>,
    /// Number of a tensor over all parts, by ascending name.
    tensors_by_name: Vec<u32>,
}

impl GgufFile {
    /// Opens a file; of a split model any part may be named, and all parts beside it are opened.
    ///
    /// # Errors
    /// [`MlxError::IoError`] if a file cannot be mapped, [`MlxError::GgufParseError`] if one is malformed or the parts do not
    /// belong together; the message names file, key or tensor, and byte offset.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let open = |path: &Path, part| {
            let part = Part::parse(FileMap::open(path)?, part).map_err(|e| in_file(path, e))?;
            Ok::<Part, MlxError>(part)
        };
        let named = open(path, 0)?;
        let count = split_count(&named).map_err(|e| in_file(path, e))?;
        if count == 1 {
            return Self::from_checked(vec![named]).map_err(|e| in_file(path, e));
        }
        let (base, _, _) = parse_split_path(path).filter(|&(_, _, n)| n == count).ok_or_else(|| {
            let expected = split_path("NAME", 0, count);
            let problem =
                format_args!("is {count}, so the file must be named like {} to find the others", expected.display());
            in_file(path, error_at(Place::Key(SPLIT_COUNT_KEY), 0, problem))
        })?;
        let parts = (0..count).map(|i| open(&split_path(&base, i, count), i)).collect::<Result<Vec<_>>>()?;
        Self::from_checked(parts).map_err(|e| in_file(path, e))
    }

    /// Opens a file that is already in memory.
    ///
    /// # Errors
    /// [`MlxError::GgufParseError`] if it is malformed, or one part of several.
    pub fn from_bytes(bytes: impl Into<Arc<[u8]>>) -> Result<Self> {
        Self::from_maps([FileMap::from_bytes(bytes)])
    }

    /// Opens a copy of the bytes.
    ///
    /// # Errors
    /// As [`from_bytes`](Self::from_bytes).
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::from_bytes(bytes)
    }

    /// Opens the parts of a split file, or a single file, in order.
    ///
    /// # Errors
    /// [`MlxError::GgufParseError`] if one is malformed, or the parts do not belong together.
    pub fn from_maps(maps: impl IntoIterator<Item = FileMap>) -> Result<Self> {
        Self::from_checked(maps.into_iter().enumerate().map(|(i, map)| Part::parse(map, i)).collect::<Result<_>>()?)
    }

    fn from_checked(parts: Vec<Part>) -> Result<Self> {
        if parts.is_empty() {
            return Err(MlxError::GgufParseError("no files were given".to_string()));
        }
        let n_tensors: usize = parts.iter().map(Part::n_tensors).sum();
        if u32::try_from(n_tensors).is_err() {
            return Err(MlxError::GgufParseError(format!("{n_tensors} tensors are more than 2^32")));
        }
        check_split(&parts, n_tensors)?;
        let mut file = GgufFile { parts, tensors_by_name: Vec::new() };
        let name = |i| file.tensor_name(i);
        let sorted = sorted_positions(n_tensors, name);
        if let Some((first, second)) = first_duplicate(&sorted, name) {
            let at = |i| {
                let (part, index) = file.locate(i)?;
                Some((part, file.parts[part].tensor_entry_at(index)))
            };
            let (Some((part_a, at_a)), Some((part_b, at_b))) = (at(first), at(second)) else {
                return Err(MlxError::GgufParseError("duplicate tensor".to_string()));
            };
            let name = String::from_utf8_lossy(name(second));
            let problem = if part_a == part_b {
                format!("appears twice, first at byte {at_a}")
            } else {
                format!("appears twice, in part {part_b} and first at byte {at_a} of part {part_a}")
            };
            return Err(error_at(Place::Tensor(&name), at_b, problem));
        }
        file.tensors_by_name = sorted;
        Ok(file)
    }

    /// The version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.parts[0].version
    }

    /// The alignment of tensor data, in bytes.
    pub fn alignment(&self) -> u64 {
        self.parts[0].data.alignment
    }

    /// The mapped files: one, or all parts of a split file.
    pub fn maps(&self) -> impl ExactSizeIterator<Item = &FileMap> {
        self.parts.iter().map(|part| &part.map)
    }

    /// Number of metadata entries.
    pub fn n_metadata(&self) -> usize {
        self.parts[0].n_keys()
    }

    /// The metadata in file order; of a split file, that of its first part.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, MetadataValue<'_>)> {
        (0..self.n_metadata()).filter_map(|i| self.parts[0].entry(i).ok())
    }

    /// A metadata value, `None` if there is no such key.
    pub fn get(&self, key: &str) -> Option<MetadataValue<'_>> {
        Some(self.parts[0].get(key)?.1)
    }

    /// A metadata value as a Rust type, `None` if there is no such key.
    ///
    /// # Errors
    /// [`MlxError::GgufParseError`] with key, expected and found type if the value does not convert; see [`FromMetadata`].
    pub fn optional<'a, T: FromMetadata<'a>>(&'a self, key: &str) -> Result<Option<T>> {
        value_in(&self.parts[0], key)
    }

    /// A metadata value as a Rust type.
    ///
    /// # Errors
    /// As [`optional`](Self::optional), and if the key is missing.
    pub fn required<'a, T: FromMetadata<'a>>(&'a self, key: &str) -> Result<T> {
        self.optional(key)?.ok_or_else(|| {
            let place = Place::Key(key);
            MlxError::GgufParseError(format!("{place}: expected {}, found no such key", T::expected()))
        })
    }

    /// An integer value. Errors: as [`required`](Self::required).
    pub fn u32(&self, key: &str) -> Result<u32> {
        self.required(key)
    }

    /// An integer value. Errors: as [`required`](Self::required).
    pub fn u64(&self, key: &str) -> Result<u64> {
        self.required(key)
    }

    /// A float value. Errors: as [`required`](Self::required).
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.required(key)
    }

    /// A truth value. Errors: as [`required`](Self::required).
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.required(key)
    }

    /// A string value. Errors: as [`required`](Self::required).
    pub fn str(&self, key: &str) -> Result<&str> {
        self.required(key)
    }

    /// An array value, decoded as it is iterated. Errors: as [`required`](Self::required).
    pub fn array(&self, key: &str) -> Result<MetadataArray<'_>> {
        self.required(key)
    }

    /// Number of tensors, of all parts together.
    pub fn n_tensors(&self) -> usize {
        self.tensors_by_name.len()
    }

    /// The tensors in file order, part after part.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.parts
            .iter()
            .enumerate()
            .flat_map(|(i, part)| (0..part.n_tensors()).filter_map(move |t| part.tensor(t, i).ok()))
    }

    /// A tensor by name, `None` if there is no such tensor.
    pub fn tensor(&self, name: &str) -> Option<TensorInfo<'_>> {
        let by_name = |&i: &u32| self.tensor_name(i as usize).cmp(name.as_bytes());
        let found = self.tensors_by_name.binary_search_by(by_name).ok()?;
        let (part, index) = self.locate(self.tensors_by_name[found] as usize)?;
        self.parts[part].tensor(index, part).ok()
    }

    /// A tensor by name.
    ///
    /// # Errors
    /// [`MlxError::GgufParseError`] with the name if there is no such tensor.
    pub fn required_tensor(&self, name: &str) -> Result<TensorInfo<'_>> {
        self.tensor(name).ok_or_else(|| {
            MlxError::GgufParseError(format!("{}: no such tensor among {}", Place::Tensor(name), self.n_tensors()))
        })
    }

    /// The data of a tensor: a slice of the map.
    ///
    /// # Errors
    /// [`MlxError::GgufParseError`] if the range does not lie in this file, because `tensor` came from another one.
    pub fn tensor_data(&self, tensor: &TensorInfo<'_>) -> Result<&[u8]> {
        let (map, range) = self.range_of(tensor)?;
        Ok(&map[range])
    }

    /// The map that holds a tensor's data, and where: for buffers that keep the map alive on their own.
    ///
    /// # Errors
    /// As [`tensor_data`](Self::tensor_data).
    pub fn tensor_map(&self, tensor: &TensorInfo<'_>) -> Result<(FileMap, Range<usize>)> {
        self.range_of(tensor).map(|(map, range)| (map.clone(), range))
    }

    fn range_of(&self, tensor: &TensorInfo<'_>) -> Result<(&FileMap, Range<usize>)> {
        let range = || {
            let map = &self.parts.get(tensor.part)?.map;
            let end = tensor.offset.checked_add(tensor.byte_len).filter(|&end| end <= map.len())?;
            Some((map, tensor.offset..end))
        };
        range().ok_or_else(|| {
            let place = Place::Tensor(tensor.name);
            let problem = format_args!("{} bytes in part {} are not in this file", tensor.byte_len, tensor.part);
            error_at(place, tensor.offset, problem)
        })
    }

    /// Part, and position there, of a tensor numbered over all parts.
    fn locate(&self, mut index: usize) -> Option<(usize, usize)> {
        for (i, part) in self.parts.iter().enumerate() {
            if index < part.n_tensors() {
                return Some((i, index));
            }
            index -= part.n_tensors();
        }
        None
    }

    fn tensor_name(&self, index: usize) -> &[u8] {
        self.locate(index).map(|(part, index)| self.parts[part].tensor_name(index)).unwrap_or_default()
    }
}

fn value_in<'a, T: FromMetadata<'a>>(part: &'a Part, key: &str) -> Result<Option<T>> {
    let Some((at, value)) = part.get(key) else { return Ok(None) };
    T::from_metadata(value).map(Some).ok_or_else(|| {
        let problem = format_args!("expected {}, found {}", T::expected(), value.describe());
        error_at(Place::Key(key), at, problem)
    })
}

/// Number of parts that a file says it is one of.
fn split_count(part: &Part) -> Result<usize> {
    match value_in::<u16>(part, SPLIT_COUNT_KEY)? {
        None | Some(0 | 1) => Ok(1),
        Some(count) => Ok(count.into()),
    }
}

/// The parts belong together: each says its own number and the same count, and the tensors add up.
fn check_split(parts: &[Part], n_tensors: usize) -> Result<()> {
    let mismatch = |key, expected: usize, i: usize, found: Option<usize>| {
        let at = parts.get(i).and_then(|part| part.get(key)).map_or(0, |(at, _)| at);
        let found = found.map_or("no such key".to_string(), |n| n.to_string());
        let problem = format_args!("expected {expected} in part {i} of {}, found {found}", parts.len());
        error_at(Place::Key(key), at, problem)
    };
    for (i, part) in parts.iter().enumerate() {
        let count = split_count(part)?;
        if count != parts.len() {
            return Err(mismatch(SPLIT_COUNT_KEY, parts.len(), i, Some(count)));
        }
        let no = value_in::<usize>(part, SPLIT_NO_KEY)?;
        if parts.len() > 1 && no != Some(i) {
            return Err(mismatch(SPLIT_NO_KEY, i, i, no));
        }
    }
    if parts.len() > 1 {
        for (i, part) in parts.iter().enumerate() {
            let tensors = value_in::<usize>(part, SPLIT_TENSORS_KEY)?;
            if tensors != Some(n_tensors) {
                return Err(mismatch(SPLIT_TENSORS_KEY, n_tensors, i, tensors));
            }
        }
    }
    Ok(())
}
