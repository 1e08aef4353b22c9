//! Writing GGUF files.

use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::encode::{ToMetadata, encode_string};
use super::part::{ALIGNMENT_KEY, ALIGNMENTS, DEFAULT_ALIGNMENT, MAGIC};
use super::split::{SPLIT_COUNT_KEY, SPLIT_NO_KEY, SPLIT_TENSORS_KEY, split_path};
use super::tensor::{MAX_DIMS, byte_len};
use super::value::MetadataType;
use super::{GgufFile, TensorInfo};
use crate::io::output::{PartialFile, Source, TensorData};
use crate::{GgmlType, MlxError, Result};

/// Longest key, in bytes, that the specification allows.
const MAX_KEY_BYTES: usize = (1 << 16) - 1;
/// Longest tensor name, in bytes, that the specification allows.
const MAX_TENSOR_NAME_BYTES: usize = 64;

/// Collects metadata and tensors, then writes a GGUF file, or several.
///
/// Tensor data is borrowed, or produced by a callback when its turn comes, so a model is never in memory twice.
///
/// ```
/// # fn main() -> mlx_native::Result<()> {
/// use mlx_native::GgmlType;
/// use mlx_native::io::gguf::{GgufFile, GgufWriter, TensorData};
///
/// let mut writer = GgufWriter::new();
/// writer.metadata("general.architecture", "llama")?;
/// writer.metadata("llama.block_count", 2_u32)?;
/// writer.tensor("a", &[2, 2], GgmlType::F16, [0_u8; 8].as_slice())?;
/// writer.tensor("b", &[1, 3], GgmlType::F32, TensorData::stream(|out| out.write_all(&[0; 12])))?;
/// let mut bytes = Vec::new();
/// writer.write_to(&mut bytes)?;
///
/// let file = GgufFile::parse(&bytes)?;
/// assert_eq!(file.u32("llama.block_count")?, 2);
/// assert_eq!(&*file.required_tensor("b")?.shape, [1, 3]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct GgufWriter<'a> {
    version: u32,
    alignment: u64,
    metadata: Vec<Entry>,
    tensors: Vec<Tensor<'a>>,
    /// Keys and tensor names so far; they do not share a namespace.
    keys: HashSet<String>,
    names: HashSet<String>,
}

#[derive(Debug)]
struct Entry {
    key: String,
    kind: MetadataType,
    value: Vec<u8>,
}

#[derive(Debug)]
struct Tensor<'a> {
    name: String,
    shape: Vec<u64>,
    ggml_type: GgmlType,
    byte_len: usize,
    data: TensorData<'a>,
}

impl Default for GgufWriter<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> GgufWriter<'a> {
    /// An empty file of version 3.
    pub fn new() -> Self {
        GgufWriter {
            version: 3,
            alignment: DEFAULT_ALIGNMENT,
            metadata: Vec::new(),
            tensors: Vec::new(),
            keys: HashSet::new(),
            names: HashSet::new(),
        }
    }

    /// The metadata of an open file and its version, without tensors; the keys that tie split parts together are left out.
    ///
    /// # Errors
    /// [`MlxError::InvalidArgument`] if the file has keys that may not be written.
    pub fn with_metadata_of(file: &GgufFile) -> Result<Self> {
        let mut writer = GgufWriter { version: file.version(), ..Self::new() };
        for (key, value) in file.metadata() {
            if ![SPLIT_NO_KEY, SPLIT_COUNT_KEY, SPLIT_TENSORS_KEY].contains(&key) {
                writer.metadata(key, value)?;
            }
        }
        Ok(writer)
    }

    /// Everything in an open file: writing it again gives the same bytes if the tensors' data is in the order of their entries.
    ///
    /// # Errors
    /// [`MlxError::InvalidArgument`] if the file has keys or names that may not be written.
    pub fn copy_of(file: &'a GgufFile) -> Result<Self> {
        let mut writer = Self::with_metadata_of(file)?;
        for tensor in file.tensors() {
            writer.copy_tensor(file, &tensor)?;
        }
        Ok(writer)
    }

    /// Adds a metadata entry. [`general.alignment`](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) also takes effect.
    ///
    /// # Errors
    /// [`MlxError::InvalidArgument`] if the key is empty, too long or already there, or the alignment is not a legal u32.
    pub fn metadata(&mut self, key: &str, value: impl ToMetadata) -> Result<&mut Self> {
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            let len = key.len();
            return Err(invalid(format_args!("GGUF key: expected 1 to {MAX_KEY_BYTES} bytes, found {len}")));
        }
        let kind = value.metadata_type();
        let mut bytes = Vec::new();
        value.encode_metadata(&mut bytes);
        if key == ALIGNMENT_KEY {
            let alignment = match (kind, <[u8; 4]>::try_from(bytes.as_slice())) {
                (MetadataType::U32, Ok(le)) => Some(u64::from(u32::from_le_bytes(le))),
                _ => None,
            };
            self.alignment = alignment.filter(|a| a.is_power_of_two() && ALIGNMENTS.contains(a)).ok_or_else(|| {
                invalid(format_args!("{ALIGNMENT_KEY}: expected a u32 power of two in {ALIGNMENTS:?}"))
            })?;
        }
        if !self.keys.insert(key.to_string()) {
            return Err(invalid(format_args!("GGUF key `{key}` is already there")));
        }
        self.metadata.push(Entry { key: key.to_string(), kind, value: bytes });
        Ok(self)
    }

    /// Adds a tensor; `shape` is row-major, slowest dimension first.
    ///
    /// # Errors
    /// [`MlxError::InvalidArgument`] if the name is empty, longer than 64 bytes or already there, the shape is not legal for the
    /// type, or the data has another size.
    pub fn tensor(
        &mut self,
        name: &str,
        shape: &[u64],
        ggml_type: GgmlType,
        data: impl Into<TensorData<'a>>,
    ) -> Result<&mut Self> {
        if name.is_empty() || name.len() > MAX_TENSOR_NAME_BYTES {
            let len = name.len();
            return Err(invalid(format_args!(
                "tensor name `{name}`: expected 1 to {MAX_TENSOR_NAME_BYTES} bytes, found {len}"
            )));
        }
        if shape.is_empty() || shape.len() > MAX_DIMS || shape.contains(&0) {
            let problem =
                format_args!("tensor `{name}`: expected 1 to {MAX_DIMS} dimensions of at least 1, found {shape:?}");
            return Err(invalid(problem));
        }
        let byte_len = byte_len(shape, ggml_type).map_err(|e| invalid(format_args!("tensor `{name}`: {e}")))?;
        let data = data.into();
        let given = match &data.0 {
            Source::Borrowed(bytes) => bytes.len(),
            Source::Owned(bytes) => bytes.len(),
            Source::Stream(_) => byte_len,
        };
        if given != byte_len {
            let problem =
                format_args!("tensor `{name}`: expected {byte_len} bytes for {shape:?} {ggml_type}, found {given}");
            return Err(invalid(problem));
        }
        if !self.names.insert(name.to_string()) {
            return Err(invalid(format_args!("tensor `{name}` is already there")));
        }
        self.tensors.push(Tensor { name: name.to_string(), shape: shape.to_vec(), ggml_type, byte_len, data });
        Ok(self)
    }

    /// Adds a tensor of an open file as it is.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), and if `tensor` is not of that file.
    pub fn copy_tensor(&mut self, file: &'a GgufFile, tensor: &TensorInfo<'_>) -> Result<&mut Self> {
        self.tensor(tensor.name, &tensor.shape, tensor.ggml_type, file.tensor_data(tensor)?)
    }

    /// Writes the file; no seeking, since all sizes are known beforehand.
    ///
    /// # Errors
    /// [`MlxError::IoError`] if writing fails or a callback writes another number of bytes than its tensor has.
    pub fn write_to(self, out: impl Write) -> Result<()> {
        let layout = Layout { version: self.version, alignment: self.alignment };
        layout.write(&self.metadata, self.tensors, out).map_err(|e| MlxError::io("GGUF output", e))
    }

    /// Writes to a temporary file beside `path` and renames it when it is complete, so that no half-written file ever has that name,
    /// and maps of an old file of that name stay valid.
    ///
    /// # Errors
    /// As [`write_to`](Self::write_to); the temporary file is then removed.
    pub fn write(self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let partial = PartialFile::create(path)?;
        let layout = Layout { version: self.version, alignment: self.alignment };
        layout.write(&self.metadata, self.tensors, &partial.file).map_err(|e| MlxError::io(path, e))?;
        partial.finish()
    }

    /// Writes parts of at most `max_bytes` of tensor data each (a larger tensor gets a part of its own), named by
    /// [`split_path`]; returns their paths. If all fits in one part, that is a plain file named `base`.
    ///
    /// The first part has all metadata. No part has its final name before all are complete.
    ///
    /// # Errors
    /// As [`write`](Self::write), and [`MlxError::InvalidArgument`] for more than 65,535 parts.
    pub fn write_split(mut self, base: impl AsRef<Path>, max_bytes: u64) -> Result<Vec<PathBuf>> {
        let base = base.as_ref();
        let sizes: Vec<u64> = self.tensors.iter().map(|t| t.byte_len as u64).collect();
        let ranges = split_ranges(&sizes, self.alignment, max_bytes);
        if ranges.len() <= 1 {
            self.write(base)?;
            return Ok(vec![base.to_path_buf()]);
        }
        let (Ok(count), Ok(total)) = (u16::try_from(ranges.len()), i32::try_from(sizes.len())) else {
            let problem = format_args!("{} parts of {} tensors are too many to split", ranges.len(), sizes.len());
            return Err(invalid(problem));
        };
        let layout = Layout { version: self.version, alignment: self.alignment };
        let mut tensors = std::mem::take(&mut self.tensors).into_iter();
        let mut written = Vec::new();
        for (i, range) in (0..count).zip(ranges) {
            let mut keys = if i == 0 { std::mem::take(&mut self) } else { GgufWriter::new() };
            if i > 0 && layout.alignment != DEFAULT_ALIGNMENT {
                // Legal alignments fit in 22 bits.
                keys.metadata(ALIGNMENT_KEY, layout.alignment as u32)?;
            }
            keys.metadata(SPLIT_NO_KEY, i)?.metadata(SPLIT_COUNT_KEY, count)?.metadata(SPLIT_TENSORS_KEY, total)?;
            let partial = PartialFile::create(&split_path(base, i.into(), count.into()))?;
            layout
                .write(&keys.metadata, tensors.by_ref().take(range.len()).collect(), &partial.file)
                .map_err(|e| MlxError::io(&partial.path, e))?;
            written.push(partial);
        }
        let paths = written.iter().map(|partial| partial.path.clone()).collect();
        written.into_iter().try_for_each(PartialFile::finish)?;
        Ok(paths)
    }
}

/// Which tensors go into which part.
fn split_ranges(sizes: &[u64], alignment: u64, max_bytes: u64) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut used) = (0, 0_u64);
    for (i, &size) in sizes.iter().enumerate() {
        let padded = size.saturating_add(padding(size, alignment));
        if i > start && used.saturating_add(padded) > max_bytes {
            ranges.push(start..i);
            (start, used) = (i, 0);
        }
        used = used.saturating_add(padded);
    }
    if start < sizes.len() {
        ranges.push(start..sizes.len());
    }
    ranges
}

/// Bytes from `offset` to the next multiple of `alignment`.
fn padding(offset: u64, alignment: u64) -> u64 {
    offset.wrapping_neg() % alignment
}

fn invalid(problem: impl std::fmt::Display) -> MlxError {
    MlxError::InvalidArgument(problem.to_string())
}

#[derive(Clone, Copy)]
struct Layout {
    version: u32,
    alignment: u64,
}

impl Layout {
    fn write(self, metadata: &[Entry], tensors: Vec<Tensor<'_>>, out: impl Write) -> io::Result<()> {
        let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, "the data section is larger than 2^64 bytes");
        let mut header = Vec::new();
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&self.version.to_le_bytes());
        header.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
        header.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
        for Entry { key, kind, value } in metadata {
            encode_string(key.as_bytes(), &mut header);
            header.extend_from_slice(&kind.id().to_le_bytes());
            header.extend_from_slice(value);
        }
        let mut offset = 0_u64;
        for tensor in &tensors {
            encode_string(tensor.name.as_bytes(), &mut header);
            header.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
            for dim in tensor.shape.iter().rev() {
                header.extend_from_slice(&dim.to_le_bytes());
            }
            header.extend_from_slice(&tensor.ggml_type.id().to_le_bytes());
            header.extend_from_slice(&offset.to_le_bytes());
            let size = tensor.byte_len as u64;
            offset = size
                .checked_add(padding(size, self.alignment))
                .and_then(|padded| offset.checked_add(padded))
                .ok_or_else(too_large)?;
        }

        let mut out = Counted { inner: BufWriter::with_capacity(1 << 20, out), written: 0 };
        out.write_all(&header)?;
        out.pad(self.alignment)?;
        for tensor in tensors {
            let start = out.written;
            match tensor.data.0 {
                Source::Borrowed(bytes) => out.write_all(bytes)?,
                Source::Owned(bytes) => out.write_all(&bytes)?,
                Source::Stream(write) => write(&mut out)?,
            }
            if out.written - start != tensor.byte_len as u64 {
                let (name, expected, found) = (&tensor.name, tensor.byte_len, out.written - start);
                return Err(io::Error::other(format!(
                    "tensor `{name}`: expected {expected} bytes, the callback wrote {found}"
                )));
            }
            out.pad(self.alignment)?;
        }
        out.inner.flush()
    }
}

struct Counted<W: Write> {
    inner: BufWriter<W>,
    written: u64,
}

impl<W: Write> Counted<W> {
    fn pad(&mut self, alignment: u64) -> io::Result<()> {
        const ZEROS: [u8; 256] = [0; 256];
        let mut left = padding(self.written, alignment) as usize;
        while left > 0 {
            let n = left.min(ZEROS.len());
            self.write_all(&ZEROS[..n])?;
            left -= n;
        }
        Ok(())
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
