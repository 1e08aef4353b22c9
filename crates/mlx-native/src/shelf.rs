//! Memory that is used again.

use std::sync::{Mutex, PoisonError};

/// As many as lists are on their way at once, and some more.
const MOST: usize = 8;

/// Emptied collections that keep their memory for the next list: lists of hundreds of operations come one after the other, and allocating and freeing what
/// each of them needs would take the host as long as recording them.
#[derive(Debug)]
pub(crate) struct Shelf<T>(Mutex<Vec<T>>);

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Shelf(Mutex::default())
    }
}

impl<T: Default> Shelf<T> {
    /// One that was put here, or a new one.
    pub(crate) fn take(&self) -> T {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Keeps one that has been emptied.
    pub(crate) fn put(&self, emptied: T) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MOST {
            kept.push(emptied);
        }
    }
}
