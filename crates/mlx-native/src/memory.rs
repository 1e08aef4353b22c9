//! Memory that buffers lie in: what a backend allocates, and parts of mapped files.

use std::any::Any;
use std::ops::Range;

use crate::io::FileMap;
use crate::{MlxError, Result};

/// Memory that a device can compute on and that the host can reach.
///
/// # Safety
///
/// `host_ptr` and `host_ptr_mut` must return a pointer to `byte_len()` readable bytes that stay valid, at that address, as long as the value
/// lives; writable as well unless `read_only()`. It is aligned to [`ALIGNMENT`] unless `read_only()`.
pub(crate) unsafe trait Memory: Send + Sync {
    /// Bytes in this memory.
    fn byte_len(&self) -> usize;
    /// The bytes as the host sees them, after any transfer that is due.
    fn host_ptr(&self) -> Result<*mut u8>;
    /// The same pointer when the host is about to write through it.
    fn host_ptr_mut(&self) -> Result<*mut u8> {
        self.host_ptr()
    }
    /// Whether writing through the pointer is forbidden (a mapped file).
    fn read_only(&self) -> bool {
        false
    }
    /// New memory of the same kind with the same content.
    fn duplicate(&self) -> Result<Box<dyn Memory>>;
    /// The concrete type, for the backend that made it.
    #[allow(dead_code)] // Only backends with memory of their own ask, and a build may have none.
    fn as_any(&self) -> &dyn Any;
}

/// Alignment of allocations, in bytes: a cache line, and the widest vector register of any CPU that is supported.
pub(crate) const ALIGNMENT: usize = 64;

/// Zeroed host memory.
pub(crate) struct HostMemory {
    ptr: std::ptr::NonNull<u8>,
    layout: std::alloc::Layout,
}

// SAFETY: HostMemory owns its allocation; who may read or write it when is decided by Storage.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// `bytes` zeroed bytes; a size that the system cannot give is [`MlxError::BufferAllocationError`].
    pub(crate) fn zeroed(bytes: usize) -> Result<HostMemory> {
        let failed = MlxError::BufferAllocationError { bytes };
        let Ok(layout) = std::alloc::Layout::from_size_align(bytes.max(1), ALIGNMENT) else { return Err(failed) };
        // SAFETY: the layout's size is at least 1.
        let ptr = unsafe { std::alloc::alloc_zeroed(layout) };
        match std::ptr::NonNull::new(ptr) {
            Some(ptr) => Ok(HostMemory { ptr, layout }),
            None => Err(failed),
        }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout and freed only here.
        unsafe { std::alloc::dealloc(self.ptr.as_ptr(), self.layout) }
    }
}

// SAFETY: the allocation has `layout.size() >= byte_len()` bytes, is aligned to ALIGNMENT and lives as long as `self`.
unsafe impl Memory for HostMemory {
    fn byte_len(&self) -> usize {
        self.layout.size()
    }

    fn host_ptr(&self) -> Result<*mut u8> {
        Ok(self.ptr.as_ptr())
    }

    fn duplicate(&self) -> Result<Box<dyn Memory>> {
        let copy = HostMemory::zeroed(self.layout.size())?;
        // SAFETY: both allocations have this size and are distinct.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr.as_ptr(), copy.ptr.as_ptr(), self.layout.size()) };
        Ok(Box::new(copy))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A part of a mapped file, read-only.
pub(crate) struct MappedMemory {
    pub map: FileMap,
    pub range: Range<usize>,
}

// SAFETY: the map keeps the bytes alive and in place, and nobody writes through the pointer.
unsafe impl Memory for MappedMemory {
    fn byte_len(&self) -> usize {
        self.range.len()
    }

    fn host_ptr(&self) -> Result<*mut u8> {
        Ok(self.map[self.range.clone()].as_ptr().cast_mut())
    }

    fn read_only(&self) -> bool {
        true
    }

    fn duplicate(&self) -> Result<Box<dyn Memory>> {
        Err(MlxError::InvalidArgument("a read-only buffer cannot be written".into()))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
