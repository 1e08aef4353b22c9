//! Memory between the phases of an operation.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;

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

    /// # Safety
    /// Value `i` or its end is inside.
    #[inline(always)]
    pub(super) unsafe fn at(&self, i: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { UnsafeCell::raw_get(self.0.as_ptr().add(i)).cast() }
    }
}
