//! Recording operations and running them.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::backend::{CommandList, Recorded, Submission};
use crate::buffer::View;
use crate::device::{DeviceId, MlxDevice};
use crate::ops::Op;
use crate::ops::check::invalid;
use crate::{KernelRegistry, Result};

/// Records operations in order; nothing runs before a commit, and an operation always sees the results of those recorded before it.
///
/// After a commit it can be recorded into again. Dropped uncommitted, it discards what it recorded.
///
/// ```
/// use mlx_native::{Binary, DType, MlxDevice};
/// let device = MlxDevice::cpu()?;
/// let x = device.buffer_from_slice(&[1.0f32, 2.0], DType::F32, vec![2])?;
/// let mut y = device.alloc_buffer(8, DType::F32, vec![2])?;
/// let mut encoder = device.command_encoder()?;
/// encoder.binary(Binary::Add, &x, &x, &mut y)?;
/// encoder.commit_and_wait()?;
/// assert_eq!(y.as_slice::<f32>()?, [2.0, 4.0]);
/// # Ok::<(), mlx_native::MlxError>(())
/// ```
pub struct CommandEncoder {
    device: MlxDevice,
    list: CommandList,
    /// Operations from the last barrier on: those that a new one must be compared with.
    since_barrier: usize,
    forced: Option<Arc<str>>,
    submitted: VecDeque<Box<dyn Submission>>,
}

impl CommandEncoder {
    pub(crate) fn new(device: MlxDevice) -> CommandEncoder {
        let (list, submitted) = (CommandList::new(device.lists()), VecDeque::new());
        CommandEncoder { device, list, since_barrier: 0, forced: None, submitted }
    }

    /// The device that runs what is recorded.
    pub fn device(&self) -> &MlxDevice {
        &self.device
    }

    pub(crate) fn device_id(&self) -> DeviceId {
        self.device.id()
    }

    /// The next recorded operation uses the kernel that `registry` forces.
    pub(crate) fn force(&mut self, registry: &KernelRegistry) {
        self.forced = registry.forced().cloned();
    }

    /// Operations recorded since the last commit.
    pub fn len(&self) -> usize {
        self.list.ops().len()
    }

    /// Whether nothing has been recorded since the last commit.
    pub fn is_empty(&self) -> bool {
        self.list.ops().is_empty()
    }

    /// What has been recorded since the last commit, with its barriers.
    #[cfg(all(test, any(feature = "metal-host", feature = "cuda")))]
    pub(crate) fn list(&self) -> &CommandList {
        &self.list
    }

    /// What has been recorded since the last commit.
    #[cfg(test)]
    pub(crate) fn ops(&self) -> impl Iterator<Item = &Op> {
        self.list.ops().iter().map(|recorded| &recorded.op)
    }

    /// Accepted and never required: the encoder places barriers itself, from the buffers that operations read and write.
    pub fn memory_barrier(&mut self) {}

    /// Appends a checked operation; operands that overlap in a way it does not define are InvalidArgument.
    pub(crate) fn record(&mut self, op: Op) -> Result<()> {
        let kernel = self.forced.take();
        let (reads, writes) = (op.reads(), op.writes());
        check_aliasing(&op, &reads, &writes)?;
        let pending = &self.list.ops()[self.since_barrier..];
        let barrier = pending.iter().any(|earlier| conflict(&earlier.op, &reads, &writes));
        if barrier {
            self.since_barrier = self.list.ops().len();
        }
        drop((reads, writes));
        self.list.push(Recorded { op, barrier, kernel })
    }

    /// What has been recorded, whose place an empty list takes; none where that is nothing.
    fn take_list(&mut self) -> Option<CommandList> {
        self.since_barrier = 0;
        let next = || CommandList::new(self.device.lists());
        (!self.list.ops().is_empty()).then(|| std::mem::replace(&mut self.list, next()))
    }

    /// Hands what has been recorded to the device. Errors come back from [`wait_until_completed`](Self::wait_until_completed).
    pub fn commit(&mut self) {
        if let Some(list) = self.take_list() {
            self.submitted.push_back(self.device.backend().submit(list));
        }
    }

    /// Waits for everything that has been committed.
    ///
    /// # Errors
    ///
    /// The first error of the committed work: [`CommandBufferError`](crate::MlxError::CommandBufferError) for a bad id or a lost device, [`BufferAllocationError`](crate::MlxError::BufferAllocationError) when memory ran out.
    pub fn wait_until_completed(&mut self) -> Result<()> {
        self.wait_until_left(0)
    }

    /// Commits that handed something to the device and have not been waited for.
    pub fn in_flight(&self) -> usize {
        self.submitted.len()
    }

    /// Waits for what has been committed, but for the last `left` commits: the host reads what earlier ones wrote and later ones do not touch.
    ///
    /// # Errors
    ///
    /// As [`wait_until_completed`](Self::wait_until_completed), of the work that it waits for.
    pub fn wait_until_left(&mut self, left: usize) -> Result<()> {
        let ended = self.submitted.len().saturating_sub(left);
        let results: Vec<Result<()>> = self.submitted.drain(..ended).map(|submission| submission.wait()).collect();
        results.into_iter().collect()
    }

    /// [`commit`](Self::commit), then [`wait_until_completed`](Self::wait_until_completed).
    ///
    /// # Errors
    ///
    /// Those of the wait.
    pub fn commit_and_wait(&mut self) -> Result<()> {
        let last = self.take_list().map_or(Ok(()), |list| self.device.backend().run(list));
        self.wait_until_completed().and(last)
    }
}

impl Drop for CommandEncoder {
    fn drop(&mut self) {
        // Work in flight reads and writes storages that others may free or look at: it has to end first. Its errors have no receiver.
        for submission in self.submitted.drain(..) {
            let _ = submission.wait();
        }
    }
}

/// Whether a later operation must wait for `earlier`: one writes what the other touches.
fn conflict(earlier: &Op, later_reads: &[&View], later_writes: &[&View]) -> bool {
    let (earlier_reads, earlier_writes) = (earlier.reads(), earlier.writes());
    earlier_writes.iter().any(|w| later_reads.iter().chain(later_writes).any(|v| w.overlaps(v)))
        || later_writes.iter().any(|w| earlier_reads.iter().any(|v| w.overlaps(v)))
}

/// An output may be the very bytes of an input where the operation works in place; otherwise nothing may overlap an output.
fn check_aliasing(op: &Op, reads: &[&View], writes: &[&View]) -> Result<()> {
    for (i, write) in writes.iter().enumerate() {
        if writes[..i].iter().any(|other| other.overlaps(write)) {
            return invalid(format!("{}: two outputs overlap", op.name()));
        }
        for read in reads {
            let same = op.in_place(read) && read.same_start(write) && read.len == write.len;
            if read.overlaps(write) && !same {
                return invalid(format!("{}: an output overlaps an input", op.name()));
            }
        }
    }
    Ok(())
}

impl std::fmt::Debug for CommandEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommandEncoder").field("device", &self.device).field("recorded", &self.list.ops()).finish()
    }
}

// Recording happens on one thread at a time, but an encoder may move between threads.
const _: fn() = || {
    fn send<T: Send>() {}
    send::<CommandEncoder>();
};
