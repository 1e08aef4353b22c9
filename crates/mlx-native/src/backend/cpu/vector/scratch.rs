//! Memory between the phases of an operation.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::Arc;

use crate::{MlxError, Result};

/// f32 values that the shares of a phase write, each its own.
pub(super) struct Scratch(Vec<UnsafeCell<MaybeUninit<f32>>>);
// SAFETY: shares write disjoint values, and read them after the phase.
unsafe impl Sync for Scratch {}

impl Scratch {
    /// `len` values that nobody has written yet.
    pub(super) fn new(len: usize) -> Result<Scratch> {
        let mut values = Vec::new();
        values.try_reserve_exact(len).map_err(|_| MlxError::BufferAllocationError { bytes: len.saturating_mul(4) })?;
        // SAFETY: the capacity is there, and MaybeUninit needs no value.
        unsafe { values.set_len(len) };
        Ok(Scratch(values))
    }

    /// How many values.
    fn len(&self) -> usize {
        self.0.len()
    }

    /// # Safety
    /// Value `i` or its end is inside.
    #[inline(always)]
    pub(super) unsafe fn at(&self, i: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { UnsafeCell::raw_get(self.0.as_ptr().add(i)).cast() }
    }
}

/// Values that scratch memory is made longer by: contexts grow step by step.
const GRAIN: usize = 16 << 10;
/// Values of the longest memory that waits for the next list.
const KEPT: usize = 1 << 20;

/// Scratch memory of a list's operations: those that a barrier separates use the same, which stays in the caches, and so does the next list.
#[derive(Default)]
pub(super) struct SharedScratch {
    /// Of operations before the last barrier.
    free: Vec<Arc<Scratch>>,
    /// Of those after it.
    used: Vec<Arc<Scratch>>,
}

impl SharedScratch {
    /// All operations so far end before what comes.
    pub(super) fn barrier(&mut self) {
        self.free.append(&mut self.used);
    }

    /// All operations have ended.
    pub(super) fn clear(&mut self) {
        self.barrier();
        self.free.retain(|scratch| scratch.len() <= KEPT);
    }

    /// At least `len` values that no operation uses beside this one, with anything in them.
    pub(super) fn get(&mut self, len: usize) -> Result<Arc<Scratch>> {
        let scratch = match self.free.pop() {
            Some(scratch) if scratch.len() >= len => scratch,
            _ => Arc::new(Scratch::new(len.div_ceil(GRAIN).saturating_mul(GRAIN))?),
        };
        self.used.push(Arc::clone(&scratch));
        Ok(scratch)
    }
}
