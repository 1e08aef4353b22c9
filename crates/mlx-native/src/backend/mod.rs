//! What a device has to do, and asking what it can.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(any(feature = "cuda", feature = "metal-host", all(feature = "metal", target_os = "macos")))]
pub(crate) mod gpu;
#[cfg(any(feature = "metal-host", all(feature = "metal", target_os = "macos")))]
pub(crate) mod metal;
pub(crate) mod reference;

use std::sync::{Arc, LazyLock};

use crate::device::Pace;
use crate::device::{DeviceKind, DeviceOptions};
use crate::format::WeightFormat;
use crate::limits::Limits;
use crate::memory::{HostMemory, MappedMemory, Memory};
use crate::ops::Op;
use crate::{MlxError, Result};

/// A device as the encoder sees it. Operations arrive checked; a backend turns them into work.
pub(crate) trait Backend: Send + Sync {
    fn kind(&self) -> DeviceKind;
    fn name(&self) -> String;

    /// Zeroed memory.
    fn allocate(&self, bytes: usize) -> Result<Box<dyn Memory>> {
        Ok(Box::new(HostMemory::zeroed(bytes)?))
    }

    /// Memory that shows a part of a mapped file, read-only. A device with memory of its own begins to copy it there.
    fn map(&self, memory: MappedMemory) -> Result<Box<dyn Memory>> {
        Ok(Box::new(memory))
    }

    /// Runs the list, or starts to. The list keeps the host away from the storages until it is dropped.
    fn submit(&self, list: CommandList) -> Box<dyn Submission>;

    /// Runs the list and waits for it.
    fn run(&self, list: CommandList) -> Result<()> {
        self.submit(list).wait()
    }

    fn pace(&self) -> Pace {
        Pace::HOST
    }

    /// Answers a query whose shape and format have been checked.
    fn capability(&self, query: &CapabilityQuery) -> Capability;

    /// Memory larger than the caches that [`limits`](Self::limits) reads; none where nothing measures them.
    fn probed_memory(&self) -> Result<Option<Box<dyn Memory>>> {
        Ok(None)
    }

    /// A sample of what the hardware can do at most, reading all of `memory`, which [`probed_memory`](Self::probed_memory) made.
    fn limits(&self, _memory: &dyn Memory) -> Result<Limits> {
        Err(MlxError::CommandBufferError(format!("{} does not measure its limits", self.name())))
    }

    /// What times the device's work by its own clock; none where `submit` returns when the work has ended, or nothing tells the time.
    fn lap_timer(&self) -> Result<Option<Box<dyn LapTimer>>> {
        Ok(None)
    }

    /// The vendor's product of halves `[m, k] · [n, k]ᵀ`, with so many weights.
    fn vendor_product(&self, _shape: [usize; 3], _weights: usize) -> Result<Box<dyn QueuedProduct>> {
        Err(MlxError::DeviceNotFound(format!("{} has no library with products to compare with", self.name())))
    }
}

/// Marks in a device's queue.
pub(crate) trait LapTimer: Send {
    /// Marks the end of what is queued.
    fn mark(&mut self) -> Result<()>;
    /// Waits for the last mark, gives the seconds from each to the next and forgets them.
    fn seconds(&mut self) -> Result<Vec<f64>>;
}

/// A product that a device's queue can be given again and again.
pub(crate) trait QueuedProduct: Send {
    fn queue(&mut self) -> Result<()>;
}

/// Committed work.
pub(crate) trait Submission: Send {
    /// Blocks until the work has ended.
    fn wait(self: Box<Self>) -> Result<()>;
}

/// Work that had ended when it was submitted.
pub(crate) struct Completed(pub(crate) Result<()>);

impl Submission for Completed {
    fn wait(self: Box<Self>) -> Result<()> {
        self.0
    }
}

/// An operation in a list.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub op: Op,
    /// Whether everything since the last barrier must have ended before this starts.
    pub barrier: bool,
    /// The kernel that must run it.
    pub kernel: Option<Arc<str>>,
}

/// Recorded operations. While it lives, the storages that it touches are pending.
#[derive(Debug, Default)]
pub(crate) struct CommandList {
    ops: Vec<Recorded>,
}

impl CommandList {
    pub(crate) fn ops(&self) -> &[Recorded] {
        &self.ops
    }

    /// Appends an operation and marks its storages pending.
    pub(crate) fn push(&mut self, recorded: Recorded) -> Result<()> {
        let writes = recorded.op.writes();
        for (i, view) in writes.iter().enumerate() {
            if let Err(error) = view.storage.begin_write() {
                writes[..i].iter().for_each(|begun| begun.storage.end());
                return Err(error);
            }
        }
        for view in recorded.op.reads() {
            view.storage.begin();
        }
        drop(writes);
        self.ops.push(recorded);
        Ok(())
    }
}

impl Drop for CommandList {
    fn drop(&mut self) {
        for recorded in &self.ops {
            for view in recorded.op.reads().into_iter().chain(recorded.op.writes()) {
                view.storage.end();
            }
        }
    }
}

/// Whether `MLX_NATIVE_LOG` asks for routing decisions.
pub(crate) fn log_kernels() -> bool {
    static ENABLED: LazyLock<bool> =
        LazyLock::new(|| std::env::var("MLX_NATIVE_LOG").is_ok_and(|value| value.split(',').any(|v| v == "kernels")));
    *ENABLED
}

/// Prints a routing decision. Where standard error cannot be written, it is lost and nothing else.
pub(crate) fn log(decision: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "mlx-native: {decision}");
}

/// Which product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OpKind {
    /// Dense.
    Matmul,
    /// Dense, with attention's permuted bf16 input.
    MatmulPerm021,
    /// Expert-routed.
    MatmulId,
    /// Rows of the weight by id.
    Embedding,
}

/// A question for [`MlxDevice::capability`](crate::MlxDevice::capability): an operation, a weight format and the shape `[m, k] · [n, k]ᵀ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapabilityQuery {
    /// Which product.
    pub op: OpKind,
    /// The weight's format.
    pub format: WeightFormat,
    /// Input rows.
    pub m: usize,
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
}

/// The answer of [`capability`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Whether the device runs the operation.
    pub supported: bool,
    /// The kernel that would run; empty when none does.
    pub kernel: String,
    /// Device memory that the operation takes beside its operands.
    pub scratch_bytes: usize,
    /// Why it is not supported.
    pub why_not: Option<String>,
}

impl Capability {
    pub(crate) fn no(why: impl Into<String>) -> Capability {
        Capability { supported: false, kernel: String::new(), scratch_bytes: 0, why_not: Some(why.into()) }
    }
}

/// The dimensions of a product `[m, k] · [n, k]ᵀ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatmulShape {
    /// Input rows.
    pub m: usize,
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
}

/// Whether and by which kernel the default device runs a product, without opening it or loading anything. [`MlxDevice::capability`](crate::MlxDevice::capability)
/// asks a device that is open.
///
/// ```
/// use mlx_native::{GgmlType, MatmulShape, OpKind, capability};
/// let shape = MatmulShape { m: 1, n: 4096, k: 4096 };
/// assert!(capability(OpKind::Matmul, GgmlType::Q4_K, shape).supported);
/// let why_not = capability(OpKind::Matmul, GgmlType::Q4_K, MatmulShape { k: 100, ..shape }).why_not;
/// assert!(why_not.is_some_and(|why| why.contains("256")));
/// ```
pub fn capability(op: OpKind, format: impl Into<WeightFormat>, shape: MatmulShape) -> Capability {
    let MatmulShape { m, n, k } = shape;
    let query = CapabilityQuery { op, format: format.into(), m, n, k };
    let options = DeviceOptions::default();
    #[cfg(all(feature = "metal", target_os = "macos", target_arch = "aarch64"))]
    return checked_capability(&query, |query| {
        metal::capability(query, &metal::Routing { options, tensor_ops: false })
    });
    #[cfg(not(all(feature = "metal", target_os = "macos", target_arch = "aarch64")))]
    checked_capability(&query, |query| cpu::capability(query, &options, cpu::Isa::best()))
}

/// Answers what follows from the contract alone, and asks `backend` for the rest.
pub(crate) fn checked_capability(
    query: &CapabilityQuery,
    backend: impl FnOnce(&CapabilityQuery) -> Capability,
) -> Capability {
    let CapabilityQuery { format, m, n, k, .. } = *query;
    let check = || -> Result<()> {
        crate::ops::check::non_zero("capability", &[("m", m), ("n", n), ("k", k)])?;
        crate::ops::check::product("capability", &[m, n, k])?;
        if !format.is_matmul_weight() {
            return Err(MlxError::InvalidArgument(format!("{format} weights have no matmul")));
        }
        format.matrix_bytes(n, k).map(|_| ())
    };
    match check() {
        Ok(()) => backend(query),
        Err(MlxError::InvalidArgument(why)) => Capability::no(why),
        Err(error) => Capability::no(error.to_string()),
    }
}
