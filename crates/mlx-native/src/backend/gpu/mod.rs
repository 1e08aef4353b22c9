//! What the GPU backends share: arguments of kernels, and what only the data can tell.

pub(crate) mod args;
pub(crate) mod fuse;

use crate::buffer::View;
use crate::format::{FpMode, WeightFormat};
use crate::{DType, GgmlType, MlxError, Result};

/// What the text of a product depends on: a format without the group size, which is an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum WeightText {
    Ggml(GgmlType),
    Affine { bits: u32, scales: DType },
    Fp(FpMode),
}

impl From<WeightFormat> for WeightText {
    fn from(format: WeightFormat) -> Self {
        match format {
            WeightFormat::Ggml(ty) => WeightText::Ggml(ty),
            WeightFormat::Affine(affine) => WeightText::Affine { bits: affine.bits, scales: affine.scale_dtype },
            WeightFormat::Fp(mode) => WeightText::Fp(mode),
        }
    }
}

/// What only the data can tell: an index in `ids` that is out of range, or a value that is no number.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// The ids, u32, or the values, f32.
    // A kernel of CUDA reports the bad id itself, and a build may have no other GPU.
    #[cfg_attr(not(any(feature = "metal-host", target_os = "macos")), allow(dead_code))]
    pub ids: View,
    /// Ids below this are good; none where NaN is bad.
    pub limit: Option<usize>,
    /// The operation, what an index counts, and what an id names.
    pub words: [&'static str; 3],
}

impl Fault {
    /// The error for the word that a kernel left and the id there.
    pub(crate) fn error(&self, index: u32, id: u32) -> MlxError {
        let [op, place, thing] = self.words;
        MlxError::CommandBufferError(match self.limit {
            Some(limit) => format!("{op}: {place} {index}: {thing} {id} of {limit}"),
            None => format!("{op}: {place} {index} is NaN"),
        })
    }
}

/// A dimension as a kernel takes it.
pub(crate) fn u32_of(what: &str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| MlxError::InvalidArgument(format!("{what}: {value} exceeds what a kernel takes")))
}
