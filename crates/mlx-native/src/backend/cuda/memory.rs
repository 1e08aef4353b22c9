//! Device memory with a copy on the host that is made when the host looks, and what is mapped from files.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::driver::{DeviceAllocation, PinnedAllocation, Stream};
use super::upload::{Transfer, Uploader};
use crate::memory::{HostMemory, MappedMemory, Memory};
use crate::{MlxError, Result};

/// Host copies up to this size are page-locked: fast to copy, slow to allocate. Larger ones go through staging memory.
const PINNED_BYTES: usize = 4 << 20;

/// Where the current content is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Current {
    Device,
    Host,
    Both,
}

/// The host's copy. It stays where it is until the memory is dropped.
enum Mirror {
    Pinned(PinnedAllocation),
    Pageable(HostMemory),
}

impl Mirror {
    fn ptr(&self) -> Result<*mut u8> {
        match self {
            Mirror::Pinned(memory) => Ok(memory.as_ptr()),
            Mirror::Pageable(memory) => memory.host_ptr(),
        }
    }
}

struct State {
    mirror: Option<Mirror>,
    current: Current,
    /// Whether the device's content is the zeros that it began with, which a new mirror has too.
    is_zero: bool,
}

/// Memory of the device.
pub(super) struct CudaMemory {
    allocation: DeviceAllocation,
    stream: Arc<Stream>,
    fetches: Arc<Stream>,
    uploader: Arc<Uploader>,
    state: Mutex<State>,
}

impl CudaMemory {
    /// Zeroed memory.
    pub(super) fn zeroed(
        stream: &Arc<Stream>,
        fetches: &Arc<Stream>,
        uploader: &Arc<Uploader>,
        bytes: usize,
    ) -> Result<CudaMemory> {
        let memory = CudaMemory::uninitialised(stream, fetches, uploader, bytes)?;
        // SAFETY: just allocated with this size; freeing it waits for work that uses it.
        unsafe { stream.fill(memory.allocation.address, 0, bytes)? };
        memory.state().is_zero = true;
        Ok(memory)
    }

    fn uninitialised(
        stream: &Arc<Stream>,
        fetches: &Arc<Stream>,
        uploader: &Arc<Uploader>,
        bytes: usize,
    ) -> Result<CudaMemory> {
        Ok(CudaMemory {
            allocation: DeviceAllocation::new(stream.context(), bytes)?,
            stream: Arc::clone(stream),
            fetches: Arc::clone(fetches),
            uploader: Arc::clone(uploader),
            state: Mutex::new(State { mirror: None, current: Current::Device, is_zero: false }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address, for work on the stream that reads it, and writes it when `writes`: what the host wrote is sent first.
    pub(super) fn device_address(&self, writes: bool) -> Result<u64> {
        let mut state = self.state();
        if state.current == Current::Host
            && let Some(mirror) = &state.mirror
        {
            let source = mirror.ptr()?;
            match mirror {
                // SAFETY: the mirror has the allocation's size and lives as long as `self`, which the list keeps until the work has
                // ended; the host may not write before that.
                Mirror::Pinned(_) => unsafe {
                    self.stream.upload(self.allocation.address, source, self.allocation.bytes)?;
                },
                Mirror::Pageable(_) => {
                    // SAFETY: the mirror's bytes, which nobody writes while `state` is locked.
                    let bytes = unsafe { std::slice::from_raw_parts(source, self.allocation.bytes) };
                    // It has a stream of its own.
                    self.stream.synchronise()?;
                    self.uploader.copy(self.allocation.address, bytes)?;
                }
            }
            state.current = Current::Both;
        }
        if writes {
            state.current = Current::Device;
            state.is_zero = false;
        }
        Ok(self.allocation.address)
    }

    /// The host's copy, up to date. The host looks only once all operations that touch the memory have ended, and with them the copies to the device
    /// that came before them; so nothing waits for work on other memory.
    fn mirror(&self, writes: bool) -> Result<*mut u8> {
        let mut state = self.state();
        let bytes = self.allocation.bytes;
        if state.mirror.is_none() {
            state.mirror = Some(if bytes <= PINNED_BYTES {
                Mirror::Pinned(PinnedAllocation::new(self.stream.context(), bytes)?)
            } else {
                Mirror::Pageable(HostMemory::zeroed(bytes)?)
            });
        }
        let Some(mirror) = &state.mirror else { return Err(MlxError::BufferAllocationError { bytes }) };
        let ptr = mirror.ptr()?;
        if state.current == Current::Device && state.is_zero {
            state.current = Current::Both;
        }
        if state.current == Current::Device {
            // SAFETY: the mirror has the allocation's size; the copy has ended before anybody looks.
            unsafe { self.fetches.download(ptr, self.allocation.address, bytes)? };
            self.fetches.synchronise()?;
            state.current = Current::Both;
        }
        if writes {
            state.current = Current::Host;
        }
        Ok(ptr)
    }
}

// SAFETY: the mirror has `byte_len()` bytes, is aligned as host allocations and page-locked memory are (64 bytes at least), stays where it
// is and lives as long as `self`.
unsafe impl Memory for CudaMemory {
    fn byte_len(&self) -> usize {
        self.allocation.bytes
    }

    fn host_ptr(&self) -> Result<*mut u8> {
        self.mirror(false)
    }

    fn host_ptr_mut(&self) -> Result<*mut u8> {
        self.mirror(true)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn duplicate(&self) -> Result<Box<dyn Memory>> {
        let source = self.device_address(false)?;
        let copy = CudaMemory::uninitialised(&self.stream, &self.fetches, &self.uploader, self.allocation.bytes)?;
        // SAFETY: both have this size; freeing either waits for the copy.
        unsafe { self.stream.copy(copy.allocation.address, source, self.allocation.bytes)? };
        // No operation stands for these copies, so nobody else waits for them.
        self.stream.synchronise()?;
        Ok(Box::new(copy))
    }
}

/// A part of a mapped file with its copy on the device, which is being made from the moment that the buffer exists.
pub(super) struct CudaMapped {
    memory: MappedMemory,
    transfer: Arc<Transfer>,
}

impl CudaMapped {
    pub(super) fn new(stream: &Arc<Stream>, uploader: &Arc<Uploader>, memory: MappedMemory) -> Result<CudaMapped> {
        let allocation = DeviceAllocation::new(stream.context(), memory.range.len())?;
        let transfer = uploader.begin(memory.map.clone(), memory.range.clone(), allocation);
        Ok(CudaMapped { memory, transfer })
    }

    /// The address, once the copy is there.
    pub(super) fn device_address(&self) -> Result<u64> {
        self.transfer.wait()
    }
}

// SAFETY: the map keeps the bytes alive and in place, and nobody writes through the pointer.
unsafe impl Memory for CudaMapped {
    fn byte_len(&self) -> usize {
        self.memory.byte_len()
    }

    fn host_ptr(&self) -> Result<*mut u8> {
        self.memory.host_ptr()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read_only(&self) -> bool {
        true
    }

    fn duplicate(&self) -> Result<Box<dyn Memory>> {
        self.memory.duplicate()
    }
}
