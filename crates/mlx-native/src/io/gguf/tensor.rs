//! What the header says about a tensor.

use std::fmt;
use std::ops::Deref;

use super::cursor::{Cursor, Place, error_at};
use crate::GgmlType;

/// Most dimensions that a tensor of a GGUF file has.
pub const MAX_DIMS: usize = 4;

/// A tensor of the file: name, shape, type, and where its data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo<'a> {
    /// The name, unique in the file: `"blk.0.attn_q.weight"`.
    pub name: &'a str,
    /// Row-major, slowest dimension first: a weight matrix is `[n, k]`. (The file stores the reverse order.)
    pub shape: TensorShape,
    /// How the values are stored.
    pub ggml_type: GgmlType,
    /// The part of a split file that holds the data, from 0.
    pub part: usize,
    /// First byte of the data, from the start of that part's file.
    pub offset: usize,
    /// Bytes of the data.
    pub byte_len: usize,
}

/// The dimensions of a tensor, slowest first; a `[u64]` of length 1 to 4.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TensorShape {
    dims: [u64; MAX_DIMS],
    len: usize,
}

impl Deref for TensorShape {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        &self.dims[..self.len]
    }
}

impl fmt::Debug for TensorShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Bytes of a tensor with at least one dimension, or why it can have none.
pub(super) fn byte_len(shape: &[u64], ggml_type: GgmlType) -> Result<usize, String> {
    let block = u64::from(ggml_type.block_values());
    let (&row, outer) = shape.split_last().ok_or("no dimensions")?;
    if !row.is_multiple_of(block) {
        return Err(format!("rows of {row} values are not whole {ggml_type} blocks of {block}"));
    }
    outer
        .iter()
        .try_fold(row / block, |blocks, &dim| blocks.checked_mul(dim))
        .and_then(|blocks| blocks.checked_mul(u64::from(ggml_type.block_bytes())))
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| format!("the size of {shape:?} {ggml_type} overflows"))
}

/// Smallest entry: name length and one byte, number of dimensions, one dimension, type, offset.
pub(super) const MIN_ENTRY_BYTES: usize = 8 + 1 + 4 + 8 + 4 + 8;

/// An entry of the tensor list, its offset not yet held against the data section.
pub(super) struct TensorEntry<'a> {
    pub name: &'a str,
    shape: TensorShape,
    ggml_type: GgmlType,
    byte_len: usize,
    /// From the start of the data section.
    relative: u64,
    /// Where the header stores `relative`.
    relative_at: usize,
}

/// Where a file's tensor data may lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct DataSection {
    pub start: usize,
    pub end: usize,
    pub alignment: u64,
}

impl<'a> TensorEntry<'a> {
    /// Reads the entry at the cursor; `index` is its position in the list.
    pub fn read(cursor: &mut Cursor<'a>, index: usize) -> crate::Result<Self> {
        let name = cursor.name(Place::TensorNo(index))?;
        let place = Place::Tensor(name);

        let at = cursor.pos();
        let n_dims = cursor.u32(place)?;
        let len = match usize::try_from(n_dims) {
            Ok(len @ 1..=MAX_DIMS) => len,
            _ => return Err(error_at(place, at, format_args!("expected 1 to {MAX_DIMS} dimensions, found {n_dims}"))),
        };
        let dims_at = cursor.pos();
        let mut dims = [0; MAX_DIMS];
        for dim in dims[..len].iter_mut().rev() {
            let at = cursor.pos();
            *dim = cursor.u64(place)?;
            if *dim == 0 {
                return Err(error_at(place, at, "expected a dimension of at least 1, found 0"));
            }
        }
        let shape = TensorShape { dims, len };

        let at = cursor.pos();
        let id = cursor.u32(place)?;
        let ggml_type =
            GgmlType::from_id(id).ok_or_else(|| error_at(place, at, format_args!("tensor type {id} is not known")))?;

        let byte_len = byte_len(&shape, ggml_type).map_err(|problem| error_at(place, dims_at, problem))?;

        let relative_at = cursor.pos();
        let relative = cursor.u64(place)?;
        Ok(TensorEntry { name, shape, ggml_type, byte_len, relative, relative_at })
    }

    /// The tensor, its data checked to lie aligned and inside the data section.
    pub fn locate(&self, part: usize, data: DataSection) -> crate::Result<TensorInfo<'a>> {
        let TensorEntry { name, shape, ggml_type, byte_len, relative, relative_at } = *self;
        if !relative.is_multiple_of(data.alignment) {
            let problem = format_args!("data offset {relative} is not a multiple of the alignment {}", data.alignment);
            return Err(error_at(Place::Tensor(name), relative_at, problem));
        }
        let offset = usize::try_from(relative)
            .ok()
            .and_then(|relative| data.start.checked_add(relative))
            .filter(|offset| offset.checked_add(byte_len).is_some_and(|end| end <= data.end))
            .ok_or_else(|| {
                let available = data.end.saturating_sub(data.start);
                let problem = format_args!(
                    "{byte_len} bytes of data at offset {relative} do not fit in the {available} bytes of the data section"
                );
                error_at(Place::Tensor(name), relative_at, problem)
            })?;
        Ok(TensorInfo { name, shape, ggml_type, part, offset, byte_len })
    }
}
