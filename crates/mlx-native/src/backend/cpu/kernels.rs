//! The kernels of a list, in memory that one list after another uses.

use std::ptr::NonNull;

use super::kernel::Kernel;
use crate::Result;
use crate::memory::{ALIGNMENT, HostMemory, Memory};

/// Bytes of a piece of memory; a kernel lies in one of them.
const PIECE_BYTES: usize = 64 << 10;

/// Kernels in order. A step has hundreds, and to allocate each of them would take longer than to make it.
#[derive(Default)]
pub(crate) struct Kernels {
    pieces: Vec<HostMemory>,
    /// Bytes in use, with what is left over in full pieces.
    used: usize,
    kernels: Vec<NonNull<dyn Kernel>>,
}

// SAFETY: kernels are Send, and these are owned.
unsafe impl Send for Kernels {}
// SAFETY: kernels are Sync.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Appends a kernel.
    #[inline(always)] // So that it is made where it stays.
    pub(crate) fn push<K: Kernel + 'static>(&mut self, kernel: K) -> Result<()> {
        const { assert!(size_of::<K>() <= PIECE_BYTES && align_of::<K>() <= ALIGNMENT) };
        let mut at = self.used.next_multiple_of(align_of::<K>());
        if at % PIECE_BYTES + size_of::<K>() > PIECE_BYTES {
            at = at.next_multiple_of(PIECE_BYTES);
        }
        if at / PIECE_BYTES == self.pieces.len() {
            self.pieces.push(HostMemory::zeroed(PIECE_BYTES)?);
        }
        // SAFETY: the kernel ends inside the piece, as has been seen to.
        let place = unsafe { self.pieces[at / PIECE_BYTES].host_ptr()?.add(at % PIECE_BYTES) }.cast::<K>();
        let Some(place) = NonNull::new(place) else { unreachable!("allocated memory") };
        // SAFETY: pieces are aligned to ALIGNMENT, and no other kernel lies there: all others end at `used`.
        unsafe { place.write(kernel) };
        self.kernels.push(place);
        self.used = at + size_of::<K>();
        Ok(())
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.kernels.len()
    }

    /// One of them.
    pub(crate) fn get(&self, index: usize) -> &dyn Kernel {
        // SAFETY: written in `push`, and dropped in `clear` only, which takes it from the list.
        unsafe { self.kernels[index].as_ref() }
    }

    /// Drops the kernels, and keeps their memory.
    pub(crate) fn clear(&mut self) {
        for kernel in self.kernels.drain(..) {
            // SAFETY: as in `get`; nobody has a reference, and it is not in the list any more.
            unsafe { kernel.drop_in_place() };
        }
        self.used = 0;
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        self.clear();
    }
}

// Small enough for Miri: `cargo +nightly miri test -p mlx-native --lib backend::cpu::kernels`.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::kernel::Share;
    use std::sync::Arc;

    /// A kernel of many bytes that answers with its number.
    struct Numbered<const BYTES: usize> {
        number: Arc<usize>,
        _content: [u8; BYTES],
    }

    impl<const BYTES: usize> Kernel for Numbered<BYTES> {
        fn shares(&self, _phase: usize) -> usize {
            *self.number
        }

        fn run(&self, _phase: usize, _share: &Share<'_>) {}
    }

    #[test]
    fn memory_is_used_again_and_kernels_are_dropped() {
        let numbers: Vec<_> = (0..40).map(Arc::new).collect();
        let mut kernels = Kernels::default();
        for round in 0..3 {
            for number in &numbers {
                let number = Arc::clone(number);
                if *number % 3 == round {
                    kernels.push(Numbered { number, _content: [1; 20_001] }).unwrap();
                } else {
                    kernels.push(Numbered { number, _content: [2; 3] }).unwrap();
                }
            }
            assert_eq!(kernels.len(), 40);
            assert!((0..40).all(|i| kernels.get(i).shares(0) == i));
            assert!(kernels.pieces.len() <= 5);
            kernels.clear();
            assert_eq!(kernels.len(), 0);
            assert!(numbers.iter().all(|number| Arc::strong_count(number) == 1));
        }
        kernels.push(Numbered { number: Arc::clone(&numbers[0]), _content: [3; 1] }).unwrap();
        drop(kernels);
        assert_eq!(Arc::strong_count(&numbers[0]), 1);
    }
}
