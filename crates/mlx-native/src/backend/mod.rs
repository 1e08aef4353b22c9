//! What a device has to do, and asking what it can.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(any(feature = "cuda", feature = "metal-host", all(feature = "metal", target_os = "macos")))]
pub(crate) mod gpu;
#[cfg(any(feature = "metal-host", all(feature = "metal", target_os = "macos")))]
pub(crate) mod metal;
pub(crate) mod reference;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use crate::buffer::Storage;
use crate::device::Pace;
use crate::device::{DeviceKind, DeviceOptions};
use crate::format::WeightFormat;
use crate::limits::Limits;
use crate::memory::{HostMemory, MappedMemory, Memory};
use crate::ops::Op;
use crate::shelf::Shelf;
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
pub(crate) struct CommandList {
    contents: ListContents,
    /// A number that no other list has, times two.
    mark: u64,
    shelf: Arc<Shelf<ListContents>>,
}

/// What a list leaves the memory of to later ones.
#[derive(Default)]
pub(crate) struct ListContents {
    ops: Vec<Recorded>,
    /// Storages that the list has claimed, some of them twice.
    claims: Vec<Arc<Storage>>,
}

impl CommandList {
    /// A list in memory from the shelf, which has it back in the end.
    pub(crate) fn new(shelf: &Arc<Shelf<ListContents>>) -> CommandList {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mark = 2 * NEXT.fetch_add(1, Ordering::Relaxed);
        CommandList { contents: shelf.take(), mark, shelf: Arc::clone(shelf) }
    }

    pub(crate) fn ops(&self) -> &[Recorded] {
        &self.contents.ops
    }

    /// Appends an operation and marks its storages pending.
    #[inline(always)] // So that the operation is moved once.
    pub(crate) fn push(&mut self, recorded: Recorded) -> Result<()> {
        let before = self.contents.claims.len();
        for view in recorded.op.writes() {
            if let Err(error) = self.claim(&view.storage, true) {
                self.release(before);
                return Err(error);
            }
        }
        for view in recorded.op.reads() {
            self.claim(&view.storage, false)?;
        }
        self.contents.ops.push(recorded);
        Ok(())
    }

    /// Makes a storage pending, once for all operations that read it and once for all that write it.
    fn claim(&mut self, storage: &Arc<Storage>, writes: bool) -> Result<()> {
        let mark = self.mark + u64::from(writes);
        let claimed = storage.claimed();
        if claimed == mark || claimed == self.mark + 1 {
            return Ok(());
        }
        if writes {
            storage.begin_write()?;
        } else {
            storage.begin();
        }
        storage.set_claimed(mark);
        self.contents.claims.push(Arc::clone(storage));
        Ok(())
    }

    /// Takes all claims but the first `kept` back.
    fn release(&mut self, kept: usize) {
        for storage in self.contents.claims.drain(kept..) {
            storage.set_claimed(0);
            storage.end();
        }
    }
}

impl Drop for CommandList {
    fn drop(&mut self) {
        self.release(0);
        self.contents.ops.clear();
        self.shelf.put(std::mem::take(&mut self.contents));
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

// Small enough for Miri: `cargo +nightly miri test -p mlx-native --lib backend::tests`.
#[cfg(test)]
mod tests {
    use crate::{Binary, DType, MlxBuffer, MlxDevice};

    fn numbers(device: &MlxDevice, numbers: [f32; 2]) -> MlxBuffer {
        device.buffer_from_slice(&numbers, DType::F32, vec![2]).unwrap()
    }

    #[test]
    fn lists_that_take_turns_hold_a_storage_each() {
        let device = MlxDevice::reference().unwrap();
        let x = numbers(&device, [1.0, 2.0]);
        let mut outputs = [(); 2].map(|()| numbers(&device, [0.0; 2]));
        let [mut first, mut second] = [(); 2].map(|()| device.command_encoder().unwrap());
        for _ in 0..3 {
            first.binary(Binary::Add, &x, &x, &mut outputs[0]).unwrap();
            second.binary(Binary::Mul, &x, &x, &mut outputs[1]).unwrap();
        }
        assert!(x.as_slice::<f32>().is_err());
        first.commit_and_wait().unwrap();
        assert!(x.as_slice::<f32>().is_err());
        assert_eq!(outputs[0].as_slice::<f32>().unwrap(), [2.0, 4.0]);
        assert!(outputs[1].as_slice::<f32>().is_err());
        drop(second);
        assert_eq!(x.as_slice::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(outputs[1].as_slice::<f32>().unwrap(), [0.0; 2]);
    }

    #[test]
    fn what_is_shown_stays_although_a_list_reads_it_before_it_writes() {
        let device = MlxDevice::reference().unwrap();
        let x = numbers(&device, [1.0, 2.0]);
        let mut written = x.clone();
        let mut y = numbers(&device, [0.0; 2]);
        let shown = x.as_slice::<f32>().unwrap();
        let mut encoder = device.command_encoder().unwrap();
        for _ in 0..2 {
            encoder.binary(Binary::Add, &x, &x, &mut y).unwrap();
            encoder.binary(Binary::Add, &y, &x, &mut written).unwrap();
        }
        encoder.commit_and_wait().unwrap();
        assert_eq!((shown, written.as_slice::<f32>().unwrap()), (&[1.0, 2.0][..], &[9.0, 18.0][..]));
    }
}
