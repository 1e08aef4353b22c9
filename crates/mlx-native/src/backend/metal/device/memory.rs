//! Buffers of a Metal device: shared storage, mapped files without a copy, and memory that submissions borrow.

use std::any::Any;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_metal::{
    MTLBuffer, MTLCommandQueue, MTLDevice, MTLResidencySet, MTLResidencySetDescriptor, MTLResourceOptions,
};

use super::Device;
use crate::io::FileMap;
use crate::memory::{MappedMemory, Memory};
use crate::{MlxError, Result};

/// A Metal buffer that may go from thread to thread.
#[derive(Clone)]
pub(super) struct Buffer(Retained<ProtocolObject<dyn MTLBuffer>>);

// SAFETY: Metal's devices, queues and resources may be used by any thread at a time (encoders may not); who reads or writes the bytes when is decided by
// Storage, as for other memory.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(super) fn get(&self) -> &ProtocolObject<dyn MTLBuffer> {
        &self.0
    }

    pub(super) fn len(&self) -> usize {
        self.0.length()
    }

    pub(super) fn contents(&self) -> *mut u8 {
        self.0.contents().as_ptr().cast()
    }
}

/// What allocations of a device share.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    device: Device,
    residency: Option<Residency>,
    /// Memories of earlier submissions, to be used again.
    free: Mutex<Vec<Buffer>>,
}

/// The set of buffers that stay mapped for the GPU, where the system has such sets. Without one, each command buffer makes its buffers resident.
struct Residency(Mutex<ResidencySet>);

struct ResidencySet {
    set: Retained<ProtocolObject<dyn MTLResidencySet>>,
    /// Bytes of the set's buffers, and the most that the GPU holds at once without loss of speed.
    bytes: u64,
    limit: u64,
    /// Whether there are changes that the set has not committed.
    changed: bool,
}

// SAFETY: the set is used by the thread that holds the lock alone.
unsafe impl Send for ResidencySet {}

impl Pool {
    pub(super) fn new(device: &Device, queue: &ProtocolObject<dyn MTLCommandQueue>) -> Pool {
        let residency = objc2::available!(macos = 15.0)
            .then(|| device.newResidencySetWithDescriptor_error(&MTLResidencySetDescriptor::new()).ok())
            .flatten();
        if let Some(set) = &residency {
            queue.addResidencySet(set);
        }
        let limit = device.recommendedMaxWorkingSetSize();
        let residency =
            residency.map(|set| Residency(Mutex::new(ResidencySet { set, bytes: 0, limit, changed: false })));
        Pool(Arc::new(Shared { device: device.clone(), residency, free: Mutex::default() }))
    }

    /// Memory of at least so many bytes for a submission; its content is undefined.
    pub(super) fn take(&self, bytes: usize) -> Result<Buffer> {
        const SMALLEST: usize = 1 << 16;
        let fits = {
            let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
            let best = free.iter().enumerate().filter(|(_, buffer)| buffer.len() >= bytes);
            let best = best.min_by_key(|(_, buffer)| buffer.len()).map(|(i, _)| i);
            best.map(|i| free.swap_remove(i))
        };
        match fits {
            Some(buffer) => Ok(buffer),
            None => self.buffer(bytes.max(SMALLEST).checked_next_power_of_two().unwrap_or(bytes)),
        }
    }

    /// Gives memory back that no command uses any more. A few are kept.
    pub(super) fn put_back(&self, buffer: Buffer) {
        const KEPT: usize = 8;
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(buffer);
        let surplus = if free.len() > KEPT { free.iter().map(Buffer::len).min() } else { None };
        let dropped = surplus.and_then(|len| free.iter().position(|buffer| buffer.len() == len));
        let dropped = dropped.map(|i| free.swap_remove(i));
        drop(free);
        if let Some(buffer) = dropped {
            self.forget(&buffer);
        }
    }

    /// Makes changes of the residency set count, before work is committed.
    pub(super) fn settle(&self) {
        self.with_residency(|residency| {
            if std::mem::take(&mut residency.changed) {
                residency.set.commit();
                residency.set.requestResidency();
            }
        });
    }

    fn buffer(&self, bytes: usize) -> Result<Buffer> {
        let failed = MlxError::BufferAllocationError { bytes };
        if bytes > self.0.device.maxBufferLength() {
            return Err(failed);
        }
        let options = MTLResourceOptions::StorageModeShared;
        let buffer = self.0.device.newBufferWithLength_options(bytes, options).ok_or(failed)?;
        Ok(self.remember(buffer))
    }

    fn remember(&self, buffer: Retained<ProtocolObject<dyn MTLBuffer>>) -> Buffer {
        // Beyond the limit a command buffer makes resident what it uses.
        self.with_residency(|residency| {
            let bytes = residency.bytes.saturating_add(buffer.length() as u64);
            if bytes <= residency.limit {
                residency.set.addAllocation(ProtocolObject::from_ref(&*buffer));
                (residency.bytes, residency.changed) = (bytes, true);
            }
        });
        Buffer(buffer)
    }

    fn forget(&self, buffer: &Buffer) {
        self.with_residency(|residency| {
            let allocation = ProtocolObject::from_ref(buffer.get());
            if residency.set.containsAllocation(allocation) {
                residency.set.removeAllocation(allocation);
                residency.bytes = residency.bytes.saturating_sub(buffer.len() as u64);
                residency.changed = true;
            }
        });
    }

    fn with_residency(&self, change: impl FnOnce(&mut ResidencySet)) {
        if let Some(residency) = &self.0.residency {
            change(&mut residency.0.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// Memory of a Metal device.
pub(super) struct MetalMemory {
    buffer: Buffer,
    /// First byte in the Metal buffer: a mapped file's buffer begins at a page.
    offset: usize,
    len: usize,
    /// Keeps the pages of a file mapped that the buffer shows.
    map: Option<FileMap>,
    read_only: bool,
    pool: Pool,
}

impl MetalMemory {
    /// `bytes` zeroed bytes.
    pub(super) fn zeroed(pool: &Pool, bytes: usize) -> Result<MetalMemory> {
        autoreleasepool(|_| {
            let buffer = pool.buffer(bytes)?;
            // SAFETY: the buffer is shared storage of this many bytes, and nobody else knows it yet.
            unsafe { buffer.contents().write_bytes(0, bytes) };
            Ok(MetalMemory { buffer, offset: 0, len: bytes, map: None, read_only: false, pool: pool.clone() })
        })
    }

    /// A part of a file, read-only: the pages that it lies in, without a copy where they are a map, and its own copy where the bytes are ordinary
    /// memory.
    pub(super) fn mapped(pool: &Pool, memory: MappedMemory) -> Result<MetalMemory> {
        let bytes = memory.range.len();
        let failed = || MlxError::BufferAllocationError { bytes };
        let content = memory.map.get(memory.range.clone()).ok_or_else(failed)?;
        if !memory.map.is_mapped() {
            let mut copy = MetalMemory::zeroed(pool, bytes)?;
            // SAFETY: both are this long, and the new one is known here alone.
            unsafe { content.as_ptr().copy_to_nonoverlapping(copy.buffer.contents(), bytes) };
            copy.read_only = true;
            return Ok(copy);
        }
        let page = page_bytes();
        let offset = content.as_ptr().addr() % page;
        // The system maps whole pages, so the last one is there to its end.
        let span = offset.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(page)).ok_or_else(failed)?;
        if span > pool.0.device.maxBufferLength() {
            return Err(failed());
        }
        let first = content.as_ptr().wrapping_sub(offset).cast_mut().cast::<c_void>();
        let first = NonNull::new(first).ok_or_else(failed)?;
        let options = MTLResourceOptions::StorageModeShared;
        autoreleasepool(|_| {
            // SAFETY: whole pages of the file's map, which `map` keeps in place for longer than the buffer lives (fields drop in their order, and
            // submissions hold the storage's memory until they end). Nothing writes them: read-only storages refuse, and kernels get them
            // bound as inputs.
            let buffer = unsafe {
                pool.0.device.newBufferWithBytesNoCopy_length_options_deallocator(first, span, options, None)
            };
            let buffer = pool.remember(buffer.ok_or_else(failed)?);
            Ok(MetalMemory { buffer, offset, len: bytes, map: Some(memory.map), read_only: true, pool: pool.clone() })
        })
    }

    /// The Metal buffer and this memory's first byte there.
    pub(super) fn location(&self) -> (&Buffer, usize) {
        (&self.buffer, self.offset)
    }
}

impl Drop for MetalMemory {
    fn drop(&mut self) {
        self.pool.forget(&self.buffer);
        if self.map.is_some() {
            // The set must let go of the pages before the file is unmapped.
            self.pool.settle();
        }
    }
}

// SAFETY: `contents` is where the shared storage lies for the buffer's whole life, offset + len bytes of it; a new buffer begins at a page. A mapped
// file is read-only.
unsafe impl Memory for MetalMemory {
    fn byte_len(&self) -> usize {
        self.len
    }

    fn host_ptr(&self) -> Result<*mut u8> {
        Ok(self.buffer.contents().wrapping_add(self.offset))
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn duplicate(&self) -> Result<Box<dyn Memory>> {
        if self.read_only {
            return Err(MlxError::InvalidArgument("a read-only buffer cannot be written".into()));
        }
        let copy = MetalMemory::zeroed(&self.pool, self.len)?;
        // SAFETY: both are this long and distinct; no write to this one is pending (`Storage::begin_write`).
        unsafe { self.buffer.contents().copy_to_nonoverlapping(copy.buffer.contents(), self.len) };
        Ok(Box::new(copy))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Bytes of a page: 16 KiB on Apple silicon, 4 KiB in a translated process.
fn page_bytes() -> usize {
    unsafe extern "C" {
        fn getpagesize() -> i32;
    }
    // SAFETY: takes nothing and only answers.
    usize::try_from(unsafe { getpagesize() }).unwrap_or(1 << 14)
}
