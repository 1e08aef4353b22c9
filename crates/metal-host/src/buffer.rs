//! Device buffers.

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::{AnyBitPattern, NoUninit};

use crate::arena::{Allocation, Arena};
use crate::error::{Error, Result};

/// Memory that kernels can be given. It starts at a page boundary, keeps track of which of its bytes were ever written,
/// and lives until it is dropped.
///
/// The state of a byte outlives a dispatch: reading what neither the host nor any kernel wrote is reported.
pub struct Buffer {
    name: CString,
    memory: Allocation,
    read_only: bool,
    /// Some byte may not have been written yet.
    partly_written: AtomicBool,
    lock: Mutex<()>,
}

impl Buffer {
    /// A buffer with the given content.
    ///
    /// # Errors
    /// [`Error::Memory`] when the address space is full.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Buffer> {
        let buffer = Self::uninitialised(name, bytes.len())?;
        buffer.write(0, bytes)?;
        buffer.partly_written.store(false, Ordering::Relaxed);
        Ok(buffer)
    }

    /// A buffer with the given values.
    ///
    /// # Errors
    /// [`Error::Memory`] when the address space is full.
    pub fn from_slice<T: NoUninit>(name: &str, values: &[T]) -> Result<Buffer> {
        Self::from_bytes(name, bytemuck::cast_slice(values))
    }

    /// A buffer of zeros, which count as written.
    ///
    /// # Errors
    /// [`Error::Memory`] when the address space is full.
    pub fn zeroed(name: &str, len: usize) -> Result<Buffer> {
        let buffer = Self::uninitialised(name, len)?;
        // SAFETY: the allocation has `len` bytes of data and of state.
        unsafe {
            buffer.memory.ptr().write_bytes(0, len);
            buffer.memory.init_ptr().write_bytes(1, len);
        }
        buffer.partly_written.store(false, Ordering::Relaxed);
        Ok(buffer)
    }

    /// A buffer that no one has written to. Its bytes are 0xff, a NaN in every floating-point type, and a kernel that
    /// reads one before it is written is reported.
    ///
    /// # Errors
    /// [`Error::Memory`] when the address space is full.
    pub fn uninitialised(name: &str, len: usize) -> Result<Buffer> {
        let memory = Arena::get()?.allocate(len)?;
        // SAFETY: the allocation has `len` bytes, and no one else knows it yet.
        unsafe { memory.ptr().write_bytes(0xff, len) };
        Ok(Buffer {
            name: CString::new(name.replace('\0', "")).unwrap_or_default(),
            memory,
            read_only: false,
            partly_written: AtomicBool::new(true),
            lock: Mutex::new(()),
        })
    }

    /// Marks the buffer: a kernel that writes to it is reported, whatever its binding says.
    #[must_use]
    pub fn read_only(mut self) -> Buffer {
        self.read_only = true;
        self
    }

    /// The name in reports.
    pub fn name(&self) -> &str {
        self.name.to_str().unwrap_or_default()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.memory.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.memory.len == 0
    }

    /// The start of the memory, page-aligned. What the host writes through it has to be announced with
    /// [`mark_written`](Self::mark_written), and not while a dispatch uses the buffer.
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.ptr()
    }

    /// Counts bytes as written, for a host that writes through [`as_ptr`](Self::as_ptr).
    ///
    /// # Errors
    /// [`Error::Range`] beyond the end.
    pub fn mark_written(&self, offset: usize, len: usize) -> Result<()> {
        self.range(offset, len)?;
        let _guard = self.guard();
        // SAFETY: the range was checked, and the guard keeps dispatches away.
        unsafe { self.memory.init_ptr().add(offset).write_bytes(1, len) };
        Ok(())
    }

    /// Makes the buffer what [`uninitialised`](Self::uninitialised) returns.
    pub fn forget(&self) {
        let _guard = self.guard();
        // SAFETY: the whole allocation; the guard keeps dispatches away.
        unsafe {
            self.memory.ptr().write_bytes(0xff, self.len());
            self.memory.init_ptr().write_bytes(0, self.len());
        }
        self.partly_written.store(true, Ordering::Relaxed);
    }

    /// Writes bytes from the host.
    ///
    /// # Errors
    /// [`Error::Range`] beyond the end.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.range(offset, bytes.len())?;
        let _guard = self.guard();
        // SAFETY: the range was checked, the guard keeps dispatches away, and `bytes` cannot lie in this buffer while
        // it is borrowed: the buffer gives out no slices.
        unsafe {
            self.memory.ptr().add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            self.memory.init_ptr().add(offset).write_bytes(1, bytes.len());
        }
        Ok(())
    }

    /// A copy of some bytes.
    ///
    /// # Errors
    /// [`Error::Range`] beyond the end.
    pub fn read(&self, offset: usize, len: usize) -> Result<Vec<u8>> {
        self.range(offset, len)?;
        let _guard = self.guard();
        // SAFETY: the range was checked, every byte was set at creation, and the guard keeps dispatches away.
        Ok(unsafe { std::slice::from_raw_parts(self.memory.ptr().add(offset), len) }.to_vec())
    }

    /// A copy of the content.
    pub fn to_vec(&self) -> Vec<u8> {
        self.read(0, self.len()).unwrap_or_default()
    }

    /// A copy of the content as values; bytes that do not fill a value are left out.
    pub fn to_vec_of<T: AnyBitPattern>(&self) -> Vec<T> {
        match std::mem::size_of::<T>() {
            0 => Vec::new(),
            size => self.to_vec().chunks_exact(size).map(bytemuck::pod_read_unaligned).collect(),
        }
    }

    /// How many bytes neither the host nor a kernel has written.
    pub fn unwritten_bytes(&self) -> usize {
        let _guard = self.guard();
        // SAFETY: the state has as many bytes as the data.
        let state = unsafe { std::slice::from_raw_parts(self.memory.init_ptr(), self.len()) };
        state.iter().filter(|&&b| b == 0).count()
    }

    fn range(&self, offset: usize, len: usize) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            end => Err(Error::Range {
                buffer: self.name().into(),
                offset,
                end: end.unwrap_or(usize::MAX),
                len: self.len(),
            }),
        }
    }

    /// Held by a dispatch for as long as it runs.
    pub(crate) fn guard(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn position(&self) -> usize {
        self.memory.begin
    }

    pub(crate) fn c_name(&self) -> &std::ffi::CStr {
        &self.name
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn is_partly_written(&self) -> bool {
        self.partly_written.load(Ordering::Relaxed)
    }

    /// First byte of `[offset, offset + len)` that was not written, and how many were not. The caller holds the guard.
    pub(crate) fn unwritten_in(&self, offset: usize, len: usize) -> Option<(usize, usize)> {
        // SAFETY: the caller's range lies within the buffer; state is as long as data.
        let state = unsafe { std::slice::from_raw_parts(self.memory.init_ptr().add(offset), len) };
        let first = state.iter().position(|&b| b == 0)?;
        Some((first, state.iter().filter(|&&b| b == 0).count()))
    }

    /// Makes `[offset, offset + len)` undefined. The caller holds the guard.
    pub(crate) fn poison(&self, offset: usize, len: usize) {
        self.partly_written.store(true, Ordering::Relaxed);
        // SAFETY: the caller's range lies within the buffer, and it holds the guard.
        unsafe {
            self.memory.ptr().add(offset).write_bytes(0xff, len);
            self.memory.init_ptr().add(offset).write_bytes(0, len);
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("name", &self.name()).field("len", &self.len()).finish_non_exhaustive()
    }
}
