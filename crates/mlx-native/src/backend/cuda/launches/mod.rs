//! From operations to launches, in plain Rust: what the GPU is asked to do is data, and is tested without one.

pub(crate) mod args;
pub(crate) mod attention;
mod choose;
pub(crate) mod elementwise;
pub(crate) mod fuse;
pub(crate) mod hopper;
pub(crate) mod matmul;
mod rows;
mod sample;
pub(crate) mod step;

use bytemuck::Pod;

pub(crate) use elementwise::type_name;

use super::driver::DeviceInfo;
use super::tensor_map::TensorMap;
use crate::backend::gpu::{Fault, WeightText};
use crate::buffer::View;
use crate::device::DeviceOptions;
use crate::ops::Op;
use crate::{DType, MlxError, Result};

/// The text that a kernel is instantiated in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Library {
    /// Casts, sums, activations.
    Elementwise,
    /// Norms, softmax.
    Rows,
    /// Rotary embedding.
    Rope,
    /// The cache, attention of few tokens.
    Attention,
    /// Attention of few tokens with common heads.
    Heads,
    /// Attention of many tokens.
    Flash,
    /// Argmax, routing to experts.
    Choose,
    /// Drawing a token.
    Sample,
    /// The lists of an expert-routed product.
    MapExperts,
    /// Input rows for the tile kernels.
    Stage,
    /// Moving operands to where kernels may read them.
    Realign,
    /// Products of few rows with weights of one format, and rows of them.
    MatVec(WeightText),
    /// Products of many rows.
    MatMat(WeightText),
    /// What benchmarks compare with.
    Limits,
    /// Products on sm_90; the kernel's name tells the format.
    Hopper,
}

/// A kernel, compiled: the device keeps one pipeline for each key, and the disk cache one file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PipelineKey {
    pub library: Library,
    /// The kernel as a C++ expression, the weight type written `W`: `mv<W, 1, 8>`.
    pub function: String,
}

impl PipelineKey {
    pub(crate) fn new(library: Library, function: impl Into<String>) -> PipelineKey {
        PipelineKey { library, function: function.into() }
    }
}

/// What a kernel's parameter is, in the order of its parameters.
#[derive(Clone, Debug)]
pub(crate) enum Bound {
    /// The address of a part of a storage.
    View(View),
    /// A value: an argument struct, a number.
    Value(Vec<u8>),
    /// The address of a value that differs between lists that are the same otherwise. It lies in device memory, so that a
    /// captured list can be replayed with another one.
    Live(Vec<u8>),
    /// The address of memory of this operation alone: an index into [`Plan::scratch`].
    Scratch(usize),
    /// The address of a word of 64 bits that starts as all ones and ends as the first faulty index, above the value found there; see [`Fault`].
    Fault,
    /// A tensor map over a view or scratch memory, for the bulk copy engine (sm_90).
    Tensor(TensorMap, Box<Bound>),
    /// A struct by value, of addresses of views and of values.
    Record(Vec<Bound>),
}

impl Bound {
    fn view(view: &View) -> Bound {
        Bound::View(view.clone())
    }

    pub(crate) fn value<T: Pod>(value: &T) -> Bound {
        Bound::Value(bytemuck::bytes_of(value).to_vec())
    }

    fn live<T: Pod>(value: &T) -> Bound {
        Bound::Live(bytemuck::bytes_of(value).to_vec())
    }
}

/// One launch. On Hopper it may be brought up before the one before it has ended: a kernel executes `griddepcontrol.wait` before it touches what
/// others write, and those that have nothing else to do first begin with `begin()` of prelude.cu.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub pipeline: PipelineKey,
    pub bindings: Vec<Bound>,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Blocks of a cluster along x, 1 for none.
    pub cluster: u32,
    /// Dynamic shared memory.
    pub shared_bytes: usize,
    /// Products that it computes, if its last parameter tells which weights come after them (see `hopper::look`).
    pub products: usize,
}

impl Launch {
    pub(crate) fn new(pipeline: PipelineKey, bindings: Vec<Bound>, grid: [u32; 3], threads: u32) -> Launch {
        Launch { pipeline, bindings, grid, threads, cluster: 1, shared_bytes: 0, products: 0 }
    }
}

/// Memory of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scratch {
    pub bytes: usize,
    /// Whether it is zeroed before the operation.
    pub zeroed: bool,
}

impl Scratch {
    fn new(bytes: usize) -> Scratch {
        Scratch { bytes, zeroed: false }
    }
}

/// What an operation asks of the device: its launches in order, each seeing what the ones before wrote.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub launches: Vec<Launch>,
    pub scratch: Vec<Scratch>,
    /// What the word of [`Bound::Fault`] says.
    pub fault: Option<Fault>,
    /// Of several operations that are planned together, the one whose live values these are.
    pub live_from: usize,
}

impl Plan {
    fn of(launches: Vec<Launch>) -> Plan {
        Plan { launches, ..Plan::default() }
    }

    /// Whether a replay needs new live values.
    pub(crate) fn is_live(&self) -> bool {
        self.launches.iter().flat_map(|launch| &launch.bindings).any(|bound| matches!(bound, Bound::Live(_)))
    }

    /// Adds scratch memory and gives its index.
    fn scratch(&mut self, bytes: usize) -> Bound {
        self.scratch.push(Scratch::new(bytes));
        Bound::Scratch(self.scratch.len() - 1)
    }
}

/// What planning depends on beside the operation.
pub(crate) struct Planner<'a> {
    pub info: &'a DeviceInfo,
    pub options: &'a DeviceOptions,
    /// The kernel that must run a product, by the name that `capability` gives it.
    pub forced: Option<&'a str>,
    /// Whether no other device of the process uses the GPU, so that all blocks of a launch may wait for each other.
    pub alone: bool,
}

/// Plans an operation.
pub(crate) fn plan(op: &Op, planner: &Planner<'_>) -> Result<Plan> {
    if let (Some(kernel), false) = (planner.forced, matches!(op, Op::Matmul(_) | Op::MatmulId(_))) {
        return Err(MlxError::KernelNotFound(format!(
            "{}: there is no choice of kernels, and none named `{kernel}`",
            op.name()
        )));
    }
    aligned(op)?;
    match op {
        Op::Matmul(op) => matmul::matmul(op, planner),
        Op::MatmulId(op) => matmul::matmul_id(op, planner),
        Op::Embedding(op) => matmul::embedding(op),
        Op::Cast(op) => elementwise::cast(op),
        Op::Binary(op) => elementwise::binary(op),
        Op::GatedActivation(op) => elementwise::gated_activation(op),
        Op::SoftCap(op) => elementwise::soft_cap(op),
        Op::RmsNorm(op) => rows::rms_norm(op),
        Op::Softmax(op) => rows::softmax(op),
        Op::Rope(op) => attention::rope(op),
        Op::StoreKv(op) => attention::store_kv(op),
        Op::Attention(op) => attention::attention(op, planner),
        Op::ExpertGate(op) => choose::expert_gate(op),
        Op::ExpertSum(op) => choose::expert_sum(op),
        Op::ArgMax(op) => choose::argmax(op),
        Op::Sample(op) => sample::sample(op),
    }
}

/// The live values of an operation's plan in order, at a fraction of the cost of planning it.
pub(crate) fn live_values(op: &Op, planner: &Planner<'_>) -> Result<Vec<Vec<u8>>> {
    match op {
        Op::StoreKv(op) => attention::store_live(op),
        Op::Attention(op) => attention::attention_live(op, planner),
        _ => {
            let plan = plan(op, planner)?;
            let bindings = plan.launches.into_iter().flat_map(|launch| launch.bindings);
            Ok(bindings.filter_map(|bound| if let Bound::Live(value) = bound { Some(value) } else { None }).collect())
        }
    }
}

/// A buffer of raw bytes may start anywhere in its storage, but a GPU cannot load a number across a multiple of its size. Weights are exempt: they are
/// moved where they have to be.
fn aligned(op: &Op) -> Result<()> {
    let weights: Vec<*const View> = match op {
        Op::Matmul(op) => op.weight.views().map(std::ptr::from_ref).collect(),
        Op::MatmulId(op) => op.weight.views().map(std::ptr::from_ref).collect(),
        Op::Embedding(op) => op.weight.views().map(std::ptr::from_ref).collect(),
        _ => Vec::new(),
    };
    for view in op.reads().into_iter().chain(op.writes()) {
        if view.dtype == DType::U8 && !view.offset.is_multiple_of(4) && !weights.contains(&std::ptr::from_ref(view)) {
            return Err(MlxError::CommandBufferError(format!(
                "{}: a buffer of bytes starts at byte {} of its storage; a GPU needs a multiple of 4",
                op.name(),
                view.offset
            )));
        }
    }
    Ok(())
}
