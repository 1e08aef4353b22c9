//! One GGUF file: the header walked once, every field checked.

use super::cursor::{Cursor, Place, Short, error_at};
use super::tensor::{DataSection, MIN_ENTRY_BYTES, TensorEntry, TensorInfo};
use super::value::{MetadataType, MetadataValue};
use crate::io::FileMap;
use crate::{MlxError, Result};

/// The first four bytes of every file.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// The alignment of tensor data in files that do not say.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;
/// The key that says.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
/// Legal alignments are the powers of two from the specification's 8 up to a huge page.
pub(super) const ALIGNMENTS: std::ops::RangeInclusive<u64> = 8..=2 << 20;

/// Smallest metadata entry: key length and one byte, type, a one-byte value.
const MIN_METADATA_BYTES: usize = 8 + 1 + 4 + 1;

/// A mapped file and the positions of its entries.
///
/// Entries are decoded from the map at each access. So an open file costs 12 bytes of memory for each key and for each tensor, less than
/// the entries themselves occupy in the file: no count in a header can make the reader allocate more than the file's size.
#[derive(Debug)]
pub(super) struct Part {
    pub map: FileMap,
    pub version: u32,
    pub data: DataSection,
    /// Where each metadata entry starts, in file order.
    keys: Vec<usize>,
    /// Positions in `keys`, by ascending key.
    keys_by_name: Vec<u32>,
    /// Where each tensor's entry starts, in file order.
    tensors: Vec<usize>,
}

impl Part {
    /// Walks the header of part number `part` and checks all of it.
    pub fn parse(map: FileMap, part: usize) -> Result<Part> {
        let mut cursor = Cursor::new(&map, 0);
        let version = read_version(&mut cursor)?;
        let tensors_at = Place::Header("tensor count");
        let n_tensors = cursor.count(MIN_ENTRY_BYTES, "tensors", tensors_at)?;
        let n_keys = cursor.count(MIN_METADATA_BYTES, "metadata entries", Place::Header("metadata count"))?;
        for (n, what) in [(n_tensors, "tensors"), (n_keys, "metadata entries")] {
            if u32::try_from(n).is_err() {
                return Err(error_at(tensors_at, 8, format_args!("{n} {what} are more than 2^32")));
            }
        }

        let mut keys = Vec::with_capacity(n_keys);
        for index in 0..n_keys {
            keys.push(cursor.pos());
            let key = cursor.name(Place::Entry(index))?;
            let kind = cursor.value_type(Place::Key(key))?;
            cursor.value(kind, 0, Place::Key(key))?;
        }
        let keys_by_name = sorted_positions(keys.len(), |i| key_bytes(&map, keys[i]));
        if let Some((first, second)) = first_duplicate(&keys_by_name, |i| key_bytes(&map, keys[i])) {
            let name = String::from_utf8_lossy(key_bytes(&map, keys[second]));
            let problem = format_args!("appears twice, first at byte {}", keys[first]);
            return Err(error_at(Place::Key(&name), keys[second], problem));
        }

        // The count was held against the bytes behind it, metadata included; now against what is really left.
        if n_tensors > cursor.remaining() / MIN_ENTRY_BYTES {
            let problem = format_args!(
                "{n_tensors} tensors of at least {MIN_ENTRY_BYTES} bytes, in {} bytes left behind the metadata",
                cursor.remaining()
            );
            return Err(error_at(tensors_at, 8, problem));
        }
        let mut tensors = Vec::with_capacity(n_tensors);
        for index in 0..n_tensors {
            tensors.push(cursor.pos());
            TensorEntry::read(&mut cursor, index)?;
        }
        let header_end = cursor.pos();

        let data = DataSection { start: 0, end: map.len(), alignment: DEFAULT_ALIGNMENT };
        let mut part_ = Part { map, version, data, keys, keys_by_name, tensors };
        part_.data.alignment = part_.alignment()?;
        part_.data.start = align_up(header_end, part_.data.alignment).unwrap_or(usize::MAX);
        part_.check_data(part)?;
        Ok(part_)
    }

    fn alignment(&self) -> Result<u64> {
        let Some((at, value)) = self.get(ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT) };
        match value {
            MetadataValue::U32(a) if a.is_power_of_two() && ALIGNMENTS.contains(&u64::from(a)) => Ok(a.into()),
            other => {
                let problem = format_args!(
                    "expected a u32 power of two in {}..={}, found {}",
                    ALIGNMENTS.start(),
                    ALIGNMENTS.end(),
                    other.describe()
                );
                Err(error_at(Place::Key(ALIGNMENT_KEY), at, problem))
            }
        }
    }

    /// Each tensor inside the data section, no two on the same bytes.
    fn check_data(&self, part: usize) -> Result<()> {
        let mut starts = Vec::with_capacity(self.n_tensors());
        for index in 0..self.n_tensors() {
            starts.push((self.tensor(index, part)?.offset, index));
        }
        starts.sort_unstable();
        for pair in starts.windows(2) {
            let (lower, upper) = (self.tensor(pair[0].1, part)?, self.tensor(pair[1].1, part)?);
            if upper.offset - lower.offset < lower.byte_len {
                let problem = format_args!(
                    "its data at bytes {}..{} overlaps that of tensor `{}` at {}..{}",
                    upper.offset,
                    upper.offset + upper.byte_len,
                    Short(lower.name),
                    lower.offset,
                    lower.offset + lower.byte_len,
                );
                return Err(error_at(Place::Tensor(upper.name), self.tensors[pair[1].1], problem));
            }
        }
        Ok(())
    }

    pub fn n_keys(&self) -> usize {
        self.keys.len()
    }

    pub fn n_tensors(&self) -> usize {
        self.tensors.len()
    }

    /// Key and value of a metadata entry, in file order.
    pub fn entry(&self, index: usize) -> Result<(&str, MetadataValue<'_>)> {
        let place = Place::Entry(index);
        let Some(&pos) = self.keys.get(index) else { return Err(error_at(place, 0, "does not exist")) };
        let mut cursor = Cursor::new(&self.map, pos);
        let key = cursor.name(place)?;
        let kind: MetadataType = cursor.value_type(Place::Key(key))?;
        Ok((key, cursor.shallow_value(kind, 0, Place::Key(key))?))
    }

    /// A value by its key, and where its entry starts.
    pub fn get(&self, key: &str) -> Option<(usize, MetadataValue<'_>)> {
        let name = |&i: &u32| key_bytes(&self.map, self.keys[i as usize]);
        let found = self.keys_by_name.binary_search_by(|i| name(i).cmp(key.as_bytes())).ok()?;
        let index = self.keys_by_name[found] as usize;
        Some((self.keys[index], self.entry(index).ok()?.1))
    }

    /// A tensor, in file order, checked anew: a file overwritten since it was opened gives an error, not a wild range.
    pub fn tensor(&self, index: usize, part: usize) -> Result<TensorInfo<'_>> {
        let Some(&pos) = self.tensors.get(index) else {
            return Err(error_at(Place::TensorNo(index), 0, "does not exist"));
        };
        TensorEntry::read(&mut Cursor::new(&self.map, pos), index)?.locate(part, self.data)
    }

    /// The bytes of a tensor's name.
    pub fn tensor_name(&self, index: usize) -> &[u8] {
        key_bytes(&self.map, self.tensors[index])
    }

    /// Where a tensor's entry starts.
    pub fn tensor_entry_at(&self, index: usize) -> usize {
        self.tensors[index]
    }
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32> {
    let magic = cursor.take(4, Place::Header("magic"))?;
    if magic != MAGIC {
        let found = magic.escape_ascii();
        return Err(error_at(Place::Header("magic"), 0, format_args!("expected \"GGUF\", found \"{found}\"")));
    }
    let version = cursor.u32(Place::Header("version"))?;
    match version {
        2 | 3 => Ok(version),
        // A big-endian file differs first in the order of these bytes.
        _ if (1..=255).contains(&version.swap_bytes()) => Err(error_at(
            Place::Header("version"),
            4,
            format_args!(
                "the file is big-endian (version {}); only little-endian files can be read",
                version.swap_bytes()
            ),
        )),
        _ => Err(error_at(Place::Header("version"), 4, format_args!("expected version 2 or 3, found {version}"))),
    }
}

/// The bytes of the string at a position; empty if the file no longer holds one there.
fn key_bytes(bytes: &[u8], pos: usize) -> &[u8] {
    Cursor::new(bytes, pos).string(Place::Header("name")).unwrap_or_default()
}

/// The positions `0..len` (of which there are less than 2^32) by ascending name.
///
/// A sorted list rather than a hash table: a third of the memory, and no input makes it slow.
pub(super) fn sorted_positions<'a>(len: usize, name: impl Fn(usize) -> &'a [u8]) -> Vec<u32> {
    let mut positions: Vec<u32> = (0..len as u32).collect();
    positions.sort_unstable_by(|&a, &b| name(a as usize).cmp(name(b as usize)).then(a.cmp(&b)));
    positions
}

/// The first two positions with the same name, in a sorted list.
pub(super) fn first_duplicate<'a>(sorted: &[u32], name: impl Fn(usize) -> &'a [u8]) -> Option<(usize, usize)> {
    sorted.windows(2).map(|w| (w[0] as usize, w[1] as usize)).find(|&(a, b)| name(a) == name(b))
}

/// The next multiple of an alignment.
pub(super) fn align_up(offset: usize, alignment: u64) -> Option<usize> {
    offset.checked_next_multiple_of(usize::try_from(alignment).ok()?)
}

/// The error of a file, with its path in front.
pub(super) fn in_file(path: &std::path::Path, error: MlxError) -> MlxError {
    match error {
        MlxError::GgufParseError(message) => MlxError::GgufParseError(format!("{}: {message}", path.display())),
        other => other,
    }
}
