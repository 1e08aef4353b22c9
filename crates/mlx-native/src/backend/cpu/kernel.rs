//! What the executor asks of every CPU kernel.

use std::sync::{Arc, Mutex, PoisonError};

use crate::buffer::{SharedMemory, Storage, View};
use crate::{MlxError, Result};

/// An operation with its memory resolved to pointers, ready to run on a team of threads.
///
/// The executor runs the phases in order, each after all shares of the one before, and every phase as `parts` shares that may run at the same time.
pub(crate) trait Kernel: Send + Sync {
    /// Phases; at least 1.
    fn phases(&self) -> usize {
        1
    }

    /// The most shares of a phase that have work. A phase with one is left to one thread, which runs such phases one after the other.
    fn shares(&self, _phase: usize) -> usize {
        usize::MAX
    }

    /// Runs one share of one phase. Results must not depend on `parts`.
    fn run(&self, phase: usize, share: &Share<'_>);

    /// The memory that a share begins with, where it is worth asking for ahead.
    fn streams(&self, _share: &Share<'_>) -> Option<Streams> {
        None
    }
}

/// Memory that is read from its beginnings on, side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streams {
    /// Where each stream begins.
    pub starts: [*const u8; 4],
    /// Bytes of each.
    pub bytes: usize,
}

/// One thread's share of a phase.
pub(crate) struct Share<'a> {
    /// Number of the share, below `parts`.
    pub part: usize,
    /// Shares of the phase: the team's threads.
    pub parts: usize,
    /// Where a kernel reports what only the data can tell, such as an id out of range.
    pub faults: &'a Faults,
}

impl Share<'_> {
    /// This share of `0..len` in contiguous pieces that are multiples of `granule` (except at the end).
    pub(crate) fn range(&self, len: usize, granule: usize) -> std::ops::Range<usize> {
        let granules = len.div_ceil(granule);
        let bound = |part: usize| (granules * part / self.parts * granule).min(len);
        bound(self.part)..bound(self.part + 1)
    }
}

/// The first fault of a list of operations: the one of the earliest operation, and within it of the lowest index, whatever thread found it.
#[derive(Default)]
pub(crate) struct Faults {
    first: Mutex<Option<((usize, usize), String)>>,
}

impl Faults {
    /// Reports a fault at element `index` of operation number `op` of the list.
    pub(crate) fn report(&self, op: usize, index: usize, message: impl FnOnce() -> String) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|(at, _)| *at > (op, index)) {
            *first = Some(((op, index), message()));
        }
    }

    /// The first fault as the error of the list, which is told once.
    pub(crate) fn result(&self) -> Result<()> {
        match self.first.lock().unwrap_or_else(PoisonError::into_inner).take() {
            None => Ok(()),
            Some((_, message)) => Err(MlxError::CommandBufferError(message)),
        }
    }
}

/// Storages that a resolver remembers.
const REMEMBERED: usize = 64;

/// Turns views into pointers, and keeps the memory behind them alive.
pub(crate) struct Resolver {
    memory: Vec<Arc<SharedMemory>>,
    /// Storages that views have pointed to, and where their memory begins. A list uses its activations again and again.
    known: [(*const Storage, *mut u8); REMEMBERED],
}

// SAFETY: the pointers are to storages, which are only compared, and to memory that anyone may have a pointer to.
unsafe impl Send for Resolver {}
// SAFETY: as above.
unsafe impl Sync for Resolver {}

impl Default for Resolver {
    fn default() -> Self {
        Resolver { memory: Vec::new(), known: [(std::ptr::null(), std::ptr::null_mut()); REMEMBERED] }
    }
}

impl Resolver {
    /// The view's first byte. Valid for `view.len` bytes while the resolver lives, and no one else writes them while the list that holds the view is
    /// running, except its own operations. All views are of one list, which keeps their storages.
    pub(crate) fn ptr(&mut self, view: &View) -> Result<*mut u8> {
        let storage = Arc::as_ptr(&view.storage);
        // Storages are more than a cache line apart.
        let known = &mut self.known[(storage.addr() >> 6) % REMEMBERED];
        if known.0 != storage {
            let memory = view.storage.memory();
            *known = (storage, memory.host_ptr()?);
            self.memory.push(memory);
        }
        let base = known.1;
        // SAFETY: a view lies inside its memory, as ops/ has checked.
        Ok(unsafe { base.add(view.offset) })
    }
}
