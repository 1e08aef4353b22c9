//! Safetensors files, single or in shards, read in place.
//!
//! The layout: the length of a JSON header as u64, the header (`{"name": {"dtype", "shape", "data_offsets"}, "__metadata__": {…}}`), then the
//! data without gaps. A model in shards has an index, `model.safetensors.index.json`, whose `weight_map` says which file holds which tensor.

mod writer;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata};

pub use writer::SafetensorsWriter;

use super::FileMap;
use crate::{DType, MlxError, Result};

/// The length of the header, in front of it.
const LENGTH_BYTES: usize = 8;
/// Longest header that the format allows.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// An open safetensors file, or all shards of a model: the list of tensors, and their data as slices of the memory map.
///
/// See [`FileMap`] for what happens when a file is changed while it is open.
#[derive(Debug)]
pub struct SafetensorsFile {
    maps: Vec<FileMap>,
    /// Shard after shard, each by ascending offset.
    tensors: Vec<SafetensorsInfo>,
    by_name: HashMap<String, usize>,
    metadata: HashMap<String, String>,
}

/// A tensor of a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SafetensorsInfo {
    /// The name, unique in the model.
    pub name: String,
    /// Row-major, slowest dimension first; empty for a single value.
    pub shape: Vec<usize>,
    dtype: Dtype,
    /// The shard that holds the data, from 0.
    pub shard: usize,
    /// First byte of the data, from the start of that shard's file.
    pub offset: usize,
    /// Bytes of the data; 0 where a dimension is 0.
    pub byte_len: usize,
}

impl SafetensorsInfo {
    /// The element type; 8-bit floats are raw bytes, [`DType::U8`].
    ///
    /// # Errors
    /// [`MlxError::UnsupportedDtype`] with the tensor's name for types that no buffer holds (64-bit, signed 8- and 16-bit, complex, bool).
    pub fn dtype(&self) -> Result<DType> {
        match self.dtype {
            Dtype::F32 => Ok(DType::F32),
            Dtype::F16 => Ok(DType::F16),
            Dtype::BF16 => Ok(DType::BF16),
            Dtype::U8 | Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F8_E8M0 => Ok(DType::U8),
            Dtype::U16 => Ok(DType::U16),
            Dtype::U32 => Ok(DType::U32),
            Dtype::I32 => Ok(DType::I32),
            other => Err(MlxError::UnsupportedDtype(format!("tensor `{}` is {other:?}", self.name))),
        }
    }

    /// The element type's name in the file: `"BF16"`.
    pub fn dtype_name(&self) -> String {
        format!("{:?}", self.dtype)
    }

    /// Whether the data starts at a multiple of its element size; the format does not demand it, and a buffer over
    /// data that does not needs a copy.
    pub fn is_aligned(&self) -> bool {
        self.offset.is_multiple_of((self.dtype.bitsize() / 8).max(1))
    }
}

impl SafetensorsFile {
    /// Opens a `.safetensors` file, or all shards that an `….index.json` names.
    ///
    /// # Errors
    /// [`MlxError::IoError`] if a file cannot be mapped, [`MlxError::SafetensorsError`] if one is malformed; the message
    /// names the file, and the tensor where there is one.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.extension().is_some_and(|extension| extension == "json") {
            return Self::open_index(path);
        }
        let mut file = Self::empty();
        file.add_shard(FileMap::open(path)?, path)?;
        Ok(file)
    }

    /// Opens the safetensors of a model directory: `model.safetensors.index.json` if there is one, else `model.safetensors`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let index = dir.as_ref().join("model.safetensors.index.json");
        if index.exists() { Self::open(index) } else { Self::open(dir.as_ref().join("model.safetensors")) }
    }

    /// Opens a file that is already in memory.
    ///
    /// # Errors
    /// [`MlxError::SafetensorsError`] if it is malformed.
    pub fn from_map(map: FileMap) -> Result<Self> {
        let mut file = Self::empty();
        file.add_shard(map, Path::new("memory"))?;
        Ok(file)
    }

    fn empty() -> Self {
        SafetensorsFile { maps: Vec::new(), tensors: Vec::new(), by_name: HashMap::new(), metadata: HashMap::new() }
    }

    fn open_index(path: &Path) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: HashMap<String, PathBuf>,
        }
        let map = FileMap::open(path)?;
        let index: Index = serde_json::from_slice(&map).map_err(|e| malformed(path, e))?;
        let mut names: Vec<&PathBuf> = index.weight_map.values().collect();
        names.sort_unstable();
        names.dedup();
        let mut file = Self::empty();
        for name in &names {
            // The index may come from anywhere; it has no business outside its directory.
            let mut components = name.components();
            if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
                return Err(malformed(
                    path,
                    format_args!("shard {name:?}: expected the name of a file beside the index"),
                ));
            }
            let shard = path.with_file_name(name);
            file.add_shard(FileMap::open(&shard)?, &shard)?;
        }
        for (tensor, shard) in &index.weight_map {
            let found = file.tensor(tensor).map(|info| names[info.shard]);
            if found != Some(shard) {
                return Err(malformed(path, format_args!("tensor `{tensor}` is not in {}", shard.display())));
            }
        }
        Ok(file)
    }

    fn add_shard(&mut self, map: FileMap, path: &Path) -> Result<()> {
        let (header, start) = header(&map).map_err(|problem| malformed(path, problem))?;
        let metadata: Metadata = serde_json::from_slice(header).map_err(|e| malformed(path, e))?;
        let data_len = map.len() - start;
        // `Metadata` has checked that the tensors follow each other without gaps, and that each has the size of its shape.
        if metadata.data_len() != data_len {
            let expected = metadata.data_len();
            return Err(malformed(path, format_args!("expected {expected} bytes of data, found {data_len}")));
        }
        let shard = self.maps.len();
        for name in metadata.offset_keys() {
            let Some(info) = metadata.info(&name) else { continue };
            let (from, to) = info.data_offsets;
            let (dtype, offset, byte_len) = (info.dtype, start + from, to - from);
            if let Some(&earlier) = self.by_name.get(&name) {
                let earlier = self.tensors[earlier].shard;
                return Err(malformed(path, format_args!("tensor `{name}` is also in shard {earlier}")));
            }
            self.by_name.insert(name.clone(), self.tensors.len());
            self.tensors.push(SafetensorsInfo { name, shape: info.shape.clone(), dtype, shard, offset, byte_len });
        }
        for (key, value) in metadata.metadata().iter().flatten() {
            self.metadata.entry(key.clone()).or_insert_with(|| value.clone());
        }
        self.maps.push(map);
        Ok(())
    }

    /// The mapped files: one, or all shards.
    pub fn maps(&self) -> &[FileMap] {
        &self.maps
    }

    /// The free-form strings under `__metadata__`; of several shards the first that has a key.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// The tensors, shard after shard, each in file order.
    pub fn tensors(&self) -> &[SafetensorsInfo] {
        &self.tensors
    }

    /// A tensor by name, `None` if there is no such tensor.
    pub fn tensor(&self, name: &str) -> Option<&SafetensorsInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// A tensor by name.
    ///
    /// # Errors
    /// [`MlxError::SafetensorsError`] with the name if there is no such tensor.
    pub fn required_tensor(&self, name: &str) -> Result<&SafetensorsInfo> {
        self.tensor(name).ok_or_else(|| {
            MlxError::SafetensorsError(format!("tensor `{name}`: no such tensor among {}", self.tensors.len()))
        })
    }

    /// The data of a tensor: a slice of the map.
    ///
    /// # Errors
    /// [`MlxError::SafetensorsError`] if the range does not lie in this file, because `tensor` came from another one.
    pub fn tensor_data(&self, tensor: &SafetensorsInfo) -> Result<&[u8]> {
        let (map, range) = self.range_of(tensor)?;
        Ok(&map[range])
    }

    /// The map that holds a tensor's data, and where: for buffers that keep the map alive on their own.
    ///
    /// # Errors
    /// As [`tensor_data`](Self::tensor_data).
    pub fn tensor_map(&self, tensor: &SafetensorsInfo) -> Result<(FileMap, Range<usize>)> {
        self.range_of(tensor).map(|(map, range)| (map.clone(), range))
    }

    fn range_of(&self, tensor: &SafetensorsInfo) -> Result<(&FileMap, Range<usize>)> {
        let range = || {
            let map = self.maps.get(tensor.shard)?;
            let end = tensor.offset.checked_add(tensor.byte_len).filter(|&end| end <= map.len())?;
            Some((map, tensor.offset..end))
        };
        range().ok_or_else(|| {
            let SafetensorsInfo { name, shard, offset, byte_len, .. } = tensor;
            let problem =
                format!("tensor `{name}`: {byte_len} bytes at {offset} of shard {shard} are not in this file");
            MlxError::SafetensorsError(problem)
        })
    }
}

/// The JSON header, and where the data starts.
fn header(bytes: &[u8]) -> std::result::Result<(&[u8], usize), String> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(format!("expected {LENGTH_BYTES} bytes of header length, found {} bytes", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    usize::try_from(length)
        .ok()
        .filter(|&n| n <= MAX_HEADER_BYTES)
        .and_then(|n| Some((rest.get(..n)?, n + LENGTH_BYTES)))
        .ok_or_else(|| format!("a header of {length} bytes does not fit in the {} bytes behind its length", rest.len()))
}

fn malformed(path: &Path, problem: impl std::fmt::Display) -> MlxError {
    MlxError::SafetensorsError(format!("{}: {problem}", path.display()))
}
