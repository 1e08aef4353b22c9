//! Writing safetensors files, one or in shards with an index.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::LENGTH_BYTES;
use crate::io::output::{PartialFile, Source, TensorData};
use crate::{DType, MlxError, Result};

/// Collects tensors, then writes them in the order in which they came.
///
/// Data is borrowed, or produced by a callback when its turn comes, so a model is never in memory twice. Nothing stands between two tensors: who
/// wants each aligned to its type adds them so that the bytes before it are a multiple of its element size.
///
/// ```
/// # fn main() -> mlx_native::Result<()> {
/// use mlx_native::DType;
/// use mlx_native::io::safetensors::{SafetensorsFile, SafetensorsWriter};
///
/// let path = std::env::temp_dir().join(format!("doc-{}.safetensors", std::process::id()));
/// let mut writer = SafetensorsWriter::new();
/// writer.metadata("format", "mlx");
/// writer.tensor("a", DType::F16, &[2, 2], [0_u8; 8].as_slice())?;
/// writer.write(&path)?;
/// assert_eq!(SafetensorsFile::open(&path)?.required_tensor("a")?.shape, [2, 2]);
/// # let _ = std::fs::remove_file(&path);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct SafetensorsWriter<'a> {
    metadata: BTreeMap<String, String>,
    tensors: Vec<Tensor<'a>>,
    names: HashSet<String>,
}

#[derive(Debug)]
struct Tensor<'a> {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    byte_len: usize,
    data: TensorData<'a>,
}

impl<'a> SafetensorsWriter<'a> {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a string under `__metadata__`.
    pub fn metadata(&mut self, key: impl Into<String>, value: impl Into<String>) -> &mut Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Adds a tensor; `shape` is row-major, slowest dimension first.
    ///
    /// # Errors
    /// [`MlxError::InvalidArgument`] if there is one of that name already, its size overflows, or the data has another size.
    pub fn tensor(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[usize],
        data: impl Into<TensorData<'a>>,
    ) -> Result<&mut Self> {
        let invalid = |problem: String| MlxError::InvalidArgument(format!("tensor `{name}`: {problem}"));
        let byte_len = shape
            .iter()
            .try_fold(dtype.size_of(), |bytes, &dim| bytes.checked_mul(dim))
            .ok_or_else(|| invalid(format!("the bytes of {shape:?} {dtype} exceed the address space")))?;
        let data = data.into();
        let given = match &data.0 {
            Source::Borrowed(bytes) => bytes.len(),
            Source::Owned(bytes) => bytes.len(),
            Source::Stream(_) => byte_len,
        };
        if given != byte_len {
            return Err(invalid(format!("expected {byte_len} bytes for {shape:?} {dtype}, found {given}")));
        }
        if !self.names.insert(name.to_owned()) {
            return Err(invalid("it is already there".into()));
        }
        self.tensors.push(Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), byte_len, data });
        Ok(self)
    }

    /// Writes one file, under a temporary name that is changed to `path` when it is complete.
    ///
    /// # Errors
    /// [`MlxError::IoError`] if writing fails or a callback writes another number of bytes than its tensor has.
    pub fn write(self, path: impl AsRef<Path>) -> Result<()> {
        let partial = PartialFile::create(path.as_ref())?;
        write_shard(&self.metadata, self.tensors, &partial.file).map_err(|e| MlxError::io(path.as_ref(), e))?;
        partial.finish()
    }

    /// Writes `model.safetensors` into a directory, or shards of at most `max_bytes` of data each (a larger tensor gets one of its own) and
    /// their index `model.safetensors.index.json`; returns the paths. No file has its final name before all are complete.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_dir(self, dir: impl AsRef<Path>, max_bytes: u64) -> Result<Vec<PathBuf>> {
        let dir = dir.as_ref();
        let total: u64 = self.tensors.iter().map(|tensor| tensor.byte_len as u64).sum();
        let mut shards: Vec<Vec<Tensor<'a>>> = Vec::new();
        let mut used = 0;
        for tensor in self.tensors {
            let bytes = tensor.byte_len as u64;
            match shards.last_mut() {
                Some(shard) if used + bytes <= max_bytes => shard.push(tensor),
                _ => {
                    used = 0;
                    shards.push(vec![tensor]);
                }
            }
            used += bytes;
        }
        if shards.len() <= 1 {
            let path = dir.join("model.safetensors");
            let whole = SafetensorsWriter {
                metadata: self.metadata,
                tensors: shards.pop().unwrap_or_default(),
                names: HashSet::new(),
            };
            whole.write(&path)?;
            return Ok(vec![path]);
        }
        let count = shards.len();
        let (mut weight_map, mut written) = (serde_json::Map::new(), Vec::new());
        for (i, shard) in shards.into_iter().enumerate() {
            let name = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
            for tensor in &shard {
                weight_map.insert(tensor.name.clone(), name.clone().into());
            }
            let partial = PartialFile::create(&dir.join(&name))?;
            write_shard(&self.metadata, shard, &partial.file).map_err(|e| MlxError::io(&partial.path, e))?;
            written.push(partial);
        }
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        let partial = PartialFile::create(&dir.join("model.safetensors.index.json"))?;
        serde_json::to_writer_pretty(&partial.file, &index).map_err(|e| MlxError::io(&partial.path, e.into()))?;
        written.push(partial);
        let paths = written.iter().map(|partial| partial.path.clone()).collect();
        written.into_iter().try_for_each(PartialFile::finish)?;
        Ok(paths)
    }
}

/// The format's name of an element type.
fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::U8 => "U8",
        DType::U16 => "U16",
        DType::U32 => "U32",
        DType::I32 => "I32",
    }
}

fn write_shard(metadata: &BTreeMap<String, String>, tensors: Vec<Tensor<'_>>, out: impl Write) -> io::Result<()> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut offset = 0_u64;
    for tensor in &tensors {
        let end = offset + tensor.byte_len as u64;
        let entry = json!({ "dtype": dtype_name(tensor.dtype), "shape": tensor.shape, "data_offsets": [offset, end] });
        header.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    // Spaces behind the header are legal, and let the data start at a multiple of 8.
    header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
    let mut out = BufWriter::with_capacity(1 << 20, out);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for tensor in tensors {
        let mut counted = Counted { inner: &mut out, written: 0 };
        match tensor.data.0 {
            Source::Borrowed(bytes) => counted.write_all(bytes)?,
            Source::Owned(bytes) => counted.write_all(&bytes)?,
            Source::Stream(write) => write(&mut counted)?,
        }
        if counted.written != tensor.byte_len {
            let (name, expected, found) = (&tensor.name, tensor.byte_len, counted.written);
            let problem = format!("tensor `{name}`: expected {expected} bytes, the callback wrote {found}");
            return Err(io::Error::other(problem));
        }
    }
    out.flush()
}

/// Counts what passes.
struct Counted<W> {
    inner: W,
    written: usize,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.written += n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::safetensors::SafetensorsFile;

    #[test]
    fn shards_and_their_index() {
        let dir = std::env::temp_dir().join(format!("mlx-native-shards-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut writer = SafetensorsWriter::new();
        writer.metadata("format", "mlx");
        for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
            let data = TensorData::stream(move |out| out.write_all(&[i as u8; 24]));
            writer.tensor(name, DType::F32, &[2, 3], data).unwrap();
        }
        let paths = writer.write_dir(&dir, 50).unwrap();
        assert_eq!(paths.len(), 3, "{paths:?}");
        let file = SafetensorsFile::open_dir(&dir).unwrap();
        for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
            let tensor = file.required_tensor(name).unwrap();
            assert_eq!(tensor.shard, i / 2);
            assert!(tensor.is_aligned());
            assert_eq!(file.tensor_data(tensor).unwrap(), [i as u8; 24]);
        }
        assert_eq!(file.metadata()["format"], "mlx");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let mut writer = SafetensorsWriter::new();
        writer.tensor("a", DType::U8, &[2], vec![0, 0]).unwrap();
        assert!(writer.tensor("a", DType::U8, &[2], vec![0, 0]).is_err());
        assert!(writer.tensor("b", DType::F32, &[2], vec![0, 0]).is_err());
        assert!(writer.tensor("c", DType::F32, &[usize::MAX, 2], vec![0, 0]).is_err());
        writer.tensor("d", DType::U8, &[2], TensorData::stream(|out| out.write_all(&[1]))).unwrap();
        let path = std::env::temp_dir().join(format!("mlx-native-short-{}", std::process::id()));
        assert!(writer.write(&path).unwrap_err().to_string().contains("tensor `d`: expected 2 bytes"));
        assert!(!path.exists());
    }
}
