//! The address space that stands for the GPU's memory.
//!
//! All buffers lie in one reserved stretch of addresses, with unused addresses between them, so that a shader's access
//! maps to its state by one subtraction. Two parallel stretches hold that state: one byte per byte (written or not) and
//! one race cell per byte. Pages exist only once they are touched.

use std::sync::{Mutex, OnceLock, PoisonError};

use memmap2::{MmapMut, MmapOptions};

use crate::abi::{BUFFER_SLOTS, CELL_BYTES, MAX_THREADS, STACK_BYTES};
use crate::error::{Error, Result};

const PAGE: usize = 4096;
/// Unused addresses after each allocation: an index that is off by a row still lands in them.
const GAP: usize = 256 << 10;
/// Where the pointers of unbound buffers lead, per buffer index.
const UNBOUND: usize = 64 << 10;
/// Sizes to try, largest first; a limit on address space may refuse the first ones.
const SIZES: [usize; 4] = [64 << 30, 16 << 30, 4 << 30, 1 << 30];
/// Threadgroup memory of one dispatch, with gaps; a threadgroup has 32 KiB on Metal.
const GROUP_MEMORY: usize = 1 << 20;

pub(crate) struct Arena {
    data: Region,
    init: Region,
    cells: Region,
    free: Mutex<Vec<(usize, usize)>>,
}

/// A mapping that is used through its address only.
struct Region {
    base: *mut u8,
    map: MmapMut,
}

// SAFETY: the mapping is plain memory; who may touch which part of it when is decided by the allocator and by the lock
// that every buffer carries.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn reserve(bytes: usize) -> Result<Self> {
        let mut map = MmapOptions::new()
            .len(bytes)
            .no_reserve_swap()
            .map_anon()
            .map_err(|e| Error::Memory(format!("{bytes} bytes of address space: {e}")))?;
        // State is touched in small spots far apart; huge pages would make it dense.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::NoHugePage);
        Ok(Region { base: map.as_mut_ptr(), map })
    }

    fn release(&self, offset: usize, len: usize) {
        // SAFETY: the range belongs to an allocation that no one holds any more; its content becomes zero, which is the
        // state of fresh memory.
        #[cfg(target_os = "linux")]
        let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, len) };
        // Elsewhere the advice may leave the content as it is.
        // SAFETY: as above; the range lies inside of the map.
        #[cfg(not(target_os = "linux"))]
        unsafe {
            self.base.add(offset).write_bytes(0, len)
        };
    }
}

impl Arena {
    pub fn get() -> Result<&'static Arena> {
        static ARENA: OnceLock<std::result::Result<Arena, String>> = OnceLock::new();
        ARENA.get_or_init(|| Arena::reserve().map_err(|e| e.to_string())).as_ref().map_err(|e| Error::Memory(e.clone()))
    }

    fn reserve() -> Result<Arena> {
        let mut last = Error::Memory("no size was tried".into());
        for size in SIZES {
            match (Region::reserve(size), Region::reserve(size), Region::reserve(size * CELL_BYTES)) {
                (Ok(data), Ok(init), Ok(cells)) => {
                    let start = PAGE + BUFFER_SLOTS * UNBOUND + GAP;
                    return Ok(Arena { data, init, cells, free: Mutex::new(vec![(start, size - start)]) });
                }
                (Err(e), ..) | (_, Err(e), _) | (.., Err(e)) => last = e,
            }
        }
        Err(last)
    }

    pub fn base(&self) -> *mut u8 {
        self.data.base
    }

    pub fn init(&self) -> *mut u8 {
        self.init.base
    }

    pub fn cells(&self) -> *mut u8 {
        self.cells.base
    }

    pub fn len(&self) -> usize {
        self.data.map.len()
    }

    /// Position that an unbound buffer's pointer has, with `UNBOUND` readable bytes behind it.
    pub fn unbound(index: usize) -> (usize, usize) {
        let at = PAGE + index * UNBOUND;
        (at, at + UNBOUND)
    }

    /// Reserves `len` bytes at a page boundary; the memory reads as zero and counts as not written.
    pub fn allocate(&'static self, len: usize) -> Result<Allocation> {
        let full = || Error::Memory(format!("{len} bytes do not fit: the arena has {} bytes", self.len()));
        let span = len.checked_next_multiple_of(PAGE).and_then(|n| n.checked_add(GAP)).ok_or_else(full)?;
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = free.iter_mut().find(|(_, room)| *room >= span).ok_or_else(full)?;
        let begin = slot.0;
        slot.0 += span;
        slot.1 -= span;
        Ok(Allocation { arena: self, begin, len, span })
    }

    fn free(&self, begin: usize, span: usize) {
        self.data.release(begin, span);
        self.init.release(begin, span);
        self.cells.release(begin * CELL_BYTES, span * CELL_BYTES);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let at = free.partition_point(|(b, _)| *b < begin);
        free.insert(at, (begin, span));
        free.dedup_by(|next, kept| {
            let touch = kept.0 + kept.1 == next.0;
            if touch {
                kept.1 += next.1;
            }
            touch
        });
    }
}

/// A stretch of the arena that goes back when dropped.
pub(crate) struct Allocation {
    arena: &'static Arena,
    pub begin: usize,
    pub len: usize,
    span: usize,
}

impl Allocation {
    pub fn ptr(&self) -> *mut u8 {
        // SAFETY: the allocation lies inside of the mapping.
        unsafe { self.arena.base().add(self.begin) }
    }

    pub fn init_ptr(&self) -> *mut u8 {
        // SAFETY: the state is as long as the data.
        unsafe { self.arena.init().add(self.begin) }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.arena.free(self.begin, self.span);
    }
}

/// Stacks and threadgroup memory of one running dispatch. Kept for the next one: the pages of a stack are worth having.
pub(crate) struct Scratch {
    stacks: Region,
    pub group_memory: Allocation,
}

static SCRATCH: Mutex<Vec<Scratch>> = Mutex::new(Vec::new());

impl Scratch {
    pub fn take() -> Result<Scratch> {
        let kept = SCRATCH.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match kept {
            Some(s) => Ok(s),
            None => Ok(Scratch {
                stacks: Region::reserve(MAX_THREADS * STACK_BYTES)?,
                group_memory: Arena::get()?.allocate(GROUP_MEMORY)?,
            }),
        }
    }

    pub fn stacks(&self) -> *mut u8 {
        self.stacks.base
    }

    pub fn put_back(self) {
        SCRATCH.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }
}
