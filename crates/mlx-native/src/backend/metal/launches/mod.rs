//! From operations to launches, in plain Rust: what a GPU is asked to do is data, and is tested without one.

pub(crate) mod attention;
mod choose;
mod elementwise;
pub(crate) mod fuse;
mod matmul;
pub(crate) mod route;
mod rows;

use bytemuck::Pod;

pub(crate) use crate::backend::gpu::{Fault, WeightText, args, u32_of};
use crate::buffer::View;
use crate::ops::Op;
use crate::{MlxError, Result};

pub(crate) use route::Routing;

/// The text that a kernel is compiled in: one library serves several kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Library {
    /// Casts, sums, activations.
    Elementwise,
    /// Norms, softmax.
    Rows,
    /// Attention, the cache, rotary embedding.
    Attention,
    /// Attention by simdgroup matrices.
    Flash,
    /// Argmax, routing to experts.
    Choose,
    /// Drawing a token.
    Sample,
    /// The lists of an expert-routed product.
    MapExperts,
    /// Products with weights of one format, and rows of them.
    Weight(WeightText),
    /// Products with weights of one format by tensor operations.
    Tensor(WeightText),
    /// The gated pair of products of a feed-forward layer, with weights of one format.
    Gated(WeightText),
}

/// A kernel, compiled: the device keeps one pipeline for each key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PipelineKey {
    pub library: Library,
    /// The function's name in the library.
    pub function: String,
    /// Values of function constants by index.
    pub constants: Vec<(u32, u32)>,
}

impl PipelineKey {
    fn new(library: Library, function: impl Into<String>) -> PipelineKey {
        PipelineKey { library, function: function.into(), constants: Vec::new() }
    }
}

/// What a kernel does to a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    ReadWrite,
    /// Every byte is written, and none is read before.
    Overwrite,
}

/// What is bound to a buffer index.
#[derive(Clone, Debug)]
pub(crate) enum Bound {
    /// A part of a storage.
    View(View, Access),
    /// A copy of a few bytes: arguments, small tables.
    Bytes(Vec<u8>),
    /// Memory of this operation alone: an index into [`Plan::scratch`].
    Scratch(usize, Access),
    /// A word that starts as u32::MAX and ends as the first faulty index, see [`Fault`].
    Fault,
}

impl Bound {
    fn read(view: &View) -> Bound {
        Bound::View(view.clone(), Access::Read)
    }

    fn overwrite(view: &View) -> Bound {
        Bound::View(view.clone(), Access::Overwrite)
    }

    fn args<T: Pod>(args: &T) -> Bound {
        Bound::Bytes(bytemuck::bytes_of(args).to_vec())
    }
}

/// One dispatch.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub pipeline: PipelineKey,
    /// By buffer index.
    pub bindings: Vec<Bound>,
    /// Threadgroups.
    pub grid: [u32; 3],
    /// Threads of a threadgroup.
    pub group: [u32; 3],
    /// Bytes of threadgroup memory that the launch sets, a multiple of 16.
    pub threadgroup_bytes: usize,
}

/// What an operation asks of the device: its launches in order, each seeing what the ones before wrote.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub launches: Vec<Launch>,
    /// Bytes of each scratch memory.
    pub scratch: Vec<usize>,
    /// What the word of [`Bound::Fault`] counts.
    pub fault: Option<Fault>,
}

/// Plans an operation, with the kernel of that name when there is one.
pub(crate) fn plan(op: &Op, kernel: Option<&str>, routing: &Routing) -> Result<Plan> {
    let launches = match op {
        Op::MatmulId(op) => return matmul::matmul_id(op, kernel, routing),
        Op::Matmul(op) => return matmul::matmul(op, kernel, routing),
        _ if kernel.is_some() => Err(MlxError::KernelNotFound(format!(
            "{}: {} has one kernel, which cannot be asked for by name",
            kernel.unwrap_or_default(),
            op.name()
        ))),
        Op::Embedding(op) => return matmul::embedding(op),
        Op::Attention(op) => return attention::attention(op, routing),
        Op::Sample(op) => return choose::sample(op),
        Op::Cast(op) => elementwise::cast(op),
        Op::Binary(op) => elementwise::binary(op),
        Op::GatedActivation(op) => elementwise::gated_activation(op),
        Op::SoftCap(op) => elementwise::soft_cap(op),
        Op::RmsNorm(op) => rows::rms_norm(op),
        Op::Softmax(op) => rows::softmax(op),
        Op::Rope(op) => attention::rope(op),
        Op::StoreKv(op) => attention::store_kv(op),
        Op::ExpertGate(op) => choose::expert_gate(op),
        Op::ExpertSum(op) => choose::expert_sum(op),
        Op::ArgMax(op) => choose::argmax(op),
    }?;
    Ok(Plan { launches, scratch: Vec::new(), fault: None })
}
