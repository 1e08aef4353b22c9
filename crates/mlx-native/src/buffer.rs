//! Buffers: typed, shaped handles on shared storage.
//!
//! A [`MlxBuffer`] is a handle; cloning it, viewing a part of it and reshaping it give further handles on the same
//! storage. Safe Rust stays sound although devices write through handles that the borrow checker cannot follow:
//!
//! * A storage knows whether recorded or running operations touch it: each list of them claims it. While one does, host access is an error.
//! * [`MlxBuffer::as_slice`] keeps the memory that it shows alive in its handle. An operation that is to write a storage whose
//!   memory some handle still shows moves the storage to a copy first, so that what was handed out never changes: the slice is
//!   a snapshot that costs nothing until somebody writes.
//! * Recording a write and [`MlxBuffer::as_mut_slice`] take `&mut self`, which proves that no slice of this very handle is
//!   alive; its hold on the memory is dropped, and with one handle nothing is ever copied.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;

use crate::device::DeviceId;
use crate::memory::Memory;
use crate::{DType, MlxError, Result};

/// Memory, and how many handles show it to the host.
pub(crate) struct SharedMemory {
    memory: Box<dyn Memory>,
    shown: AtomicUsize,
}

impl SharedMemory {
    fn new(memory: Box<dyn Memory>) -> Arc<SharedMemory> {
        Arc::new(SharedMemory { memory, shown: AtomicUsize::new(0) })
    }
}

impl std::ops::Deref for SharedMemory {
    type Target = dyn Memory;

    fn deref(&self) -> &Self::Target {
        &*self.memory
    }
}

/// A handle's hold on memory that a slice of it may show.
struct Shown(Arc<SharedMemory>);

impl Shown {
    fn new(memory: &Arc<SharedMemory>) -> Shown {
        memory.shown.fetch_add(1, Ordering::AcqRel);
        Shown(Arc::clone(memory))
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.shown.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What all handles on a buffer share.
pub(crate) struct Storage {
    device: DeviceId,
    read_only: bool,
    handles: AtomicUsize,
    state: Mutex<State>,
    /// See [`claimed`](Self::claimed).
    claimed: AtomicU64,
}

struct State {
    memory: Arc<SharedMemory>,
    /// Claims of lists that have not ended.
    pending: usize,
}

impl Storage {
    fn state(&self) -> MutexGuard<'_, State> {
        // The guarded values are consistent between any two statements, so a poisoned lock is as good as a clean one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the list that claimed the storage last has left here. It is no other list's, so a list that finds its own need not claim the storage again; one
    /// that does so, because another list came between, only claims it twice.
    pub(crate) fn claimed(&self) -> u64 {
        self.claimed.load(Ordering::Relaxed)
    }

    /// Leaves a list's mark.
    pub(crate) fn set_claimed(&self, mark: u64) {
        self.claimed.store(mark, Ordering::Relaxed);
    }

    /// Counts one more claim of a list that reads the storage.
    pub(crate) fn begin(&self) {
        self.state().pending += 1;
    }

    /// Counts one more claim of a list that writes the storage. When a handle shows the memory to the host, the storage
    /// moves to a copy: no write can be pending then, because showing is refused while one is, so the content is settled.
    pub(crate) fn begin_write(&self) -> Result<()> {
        let mut state = self.state();
        if state.memory.shown.load(Ordering::Acquire) > 0 {
            state.memory = SharedMemory::new(state.memory.duplicate()?);
        }
        state.pending += 1;
        Ok(())
    }

    /// Ends what `begin` or `begin_write` began.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.pending = state.pending.saturating_sub(1);
    }

    /// The memory as it is now; the caller has made sure by `begin` that the host keeps away from it.
    pub(crate) fn memory(&self) -> Arc<SharedMemory> {
        Arc::clone(&self.state().memory)
    }
}

/// A part of a storage that a recorded operation reads or writes.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) storage: Arc<Storage>,
    /// First byte.
    pub(crate) offset: usize,
    /// Bytes.
    pub(crate) len: usize,
    pub(crate) dtype: DType,
}

impl View {
    /// Whether the two share a byte.
    pub(crate) fn overlaps(&self, other: &View) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
            && self.offset < other.offset + other.len
            && other.offset < self.offset + self.len
    }

    /// Whether the two start at the same byte.
    pub(crate) fn same_start(&self, other: &View) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage) && self.offset == other.offset
    }

    /// The same storage, `len` bytes from `offset` bytes further on. The caller has checked that they are inside.
    pub(crate) fn part(&self, offset: usize, len: usize) -> View {
        debug_assert!(offset + len <= self.len);
        View { storage: Arc::clone(&self.storage), offset: self.offset + offset, len, dtype: self.dtype }
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}..{}]", self.dtype, self.offset, self.offset + self.len)
    }
}

/// A typed, shaped handle on memory of a device.
///
/// `Clone`, [`slice_view`](Self::slice_view) and [`with_shape`](Self::with_shape) give further handles on the same storage. See
/// the module's text for what happens when host and device meet.
///
/// ```
/// use mlx_native::{DType, MlxDevice};
/// let device = MlxDevice::cpu()?;
/// let mut x = device.alloc_buffer(4 * 4, DType::F32, vec![2, 2])?;
/// x.as_mut_slice::<f32>()?.copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
/// assert_eq!(x.slice_view(8, 2).as_slice::<f32>()?, [3.0, 4.0]);
/// # Ok::<(), mlx_native::MlxError>(())
/// ```
pub struct MlxBuffer {
    storage: Arc<Storage>,
    offset: usize,
    len: usize,
    dtype: DType,
    shape: Vec<usize>,
    /// Memory that slices handed out by this handle may still show.
    shown: Mutex<Vec<Shown>>,
    /// Why every use of this handle is an error; set by an out-of-range `slice_view`.
    fault: Option<String>,
}

impl MlxBuffer {
    pub(crate) fn new(
        device: DeviceId,
        memory: Box<dyn Memory>,
        byte_len: usize,
        dtype: DType,
        shape: Vec<usize>,
    ) -> MlxBuffer {
        let storage = Storage {
            device,
            read_only: memory.read_only(),
            handles: AtomicUsize::new(1),
            state: Mutex::new(State { memory: SharedMemory::new(memory), pending: 0 }),
            claimed: AtomicU64::new(0),
        };
        MlxBuffer {
            storage: Arc::new(storage),
            offset: 0,
            len: byte_len,
            dtype,
            shape,
            shown: Mutex::default(),
            fault: None,
        }
    }

    /// Bytes that this handle covers.
    pub fn byte_len(&self) -> usize {
        self.len
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Elements that this handle covers.
    pub fn element_count(&self) -> usize {
        self.len / self.dtype.size_of()
    }

    /// The contents as the host sees them, free of copies where memory is unified.
    ///
    /// A slice is a snapshot: what is written later through other handles goes elsewhere. The handle keeps each state that it has shown, until it
    /// is dropped, written through or given to [`as_mut_slice`](Self::as_mut_slice); so read results through the handle that operations write.
    ///
    /// # Errors
    ///
    /// [`MlxError::CommandBufferError`] while recorded work that touches the storage is unfinished; [`MlxError::InvalidArgument`]
    /// when the bytes are not whole, aligned elements of `T`.
    pub fn as_slice<T: Pod>(&self) -> Result<&[T]> {
        self.usable()?;
        let count = self.elements_of::<T>()?;
        let memory = {
            let state = self.storage.state();
            self.idle(&state)?;
            let memory = Arc::clone(&state.memory);
            let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
            if !shown.iter().any(|held| Arc::ptr_eq(&held.0, &memory)) {
                shown.push(Shown::new(&memory));
            }
            memory
        };
        let ptr = self.typed_ptr::<T>(memory.host_ptr()?)?;
        // SAFETY: the handle's range lies inside the memory (checked when it was made); the pointer is aligned for T (typed_ptr);
        // T is Pod. `shown` keeps the memory alive until this handle is dropped or borrowed mutably, which the returned
        // borrow of `self` forbids; and nothing writes memory that a handle shows (`Storage::begin_write` copies first).
        Ok(unsafe { std::slice::from_raw_parts(ptr, count) })
    }

    /// The contents for writing.
    ///
    /// # Errors
    ///
    /// As [`as_slice`](Self::as_slice), and [`MlxError::InvalidArgument`] while another handle shares the storage or when the buffer shows a mapped file.
    pub fn as_mut_slice<T: Pod>(&mut self) -> Result<&mut [T]> {
        self.usable()?;
        let count = self.elements_of::<T>()?;
        self.forget_shown();
        let memory = {
            let state = self.storage.state();
            self.idle(&state)?;
            let handles = self.storage.handles.load(Ordering::Acquire);
            if handles > 1 {
                return Err(MlxError::InvalidArgument(format!(
                    "as_mut_slice: {handles} handles share this storage; writing needs the only one"
                )));
            }
            if self.storage.read_only {
                return Err(MlxError::InvalidArgument("as_mut_slice: the buffer shows a read-only file".into()));
            }
            Arc::clone(&state.memory)
        };
        let ptr = self.typed_ptr::<T>(memory.host_ptr_mut()?)?;
        // SAFETY: inside the memory, aligned and Pod as in `as_slice`. This is the only handle (another one can be made from
        // this one alone, which is mutably borrowed), no operation is pending, and no slice is alive: exclusive access.
        Ok(unsafe { std::slice::from_raw_parts_mut(ptr, count) })
    }

    /// A handle on `n_elements` elements from `byte_offset` bytes into this one, of the same dtype and shape `[n_elements]`.
    ///
    /// Out of range it is an empty view whose every use is [`MlxError::InvalidArgument`]; see [`try_slice_view`](Self::try_slice_view).
    pub fn slice_view(&self, byte_offset: u64, n_elements: usize) -> MlxBuffer {
        self.try_slice_view(byte_offset, n_elements).unwrap_or_else(|error| {
            let mut view = self.handle(self.offset, 0, vec![0]);
            view.fault = Some(match error {
                MlxError::InvalidArgument(message) => message,
                other => other.to_string(),
            });
            view
        })
    }

    /// [`slice_view`](Self::slice_view) that reports a range outside this handle at once.
    ///
    /// # Errors
    ///
    /// [`MlxError::InvalidArgument`] with the range and the size.
    pub fn try_slice_view(&self, byte_offset: u64, n_elements: usize) -> Result<MlxBuffer> {
        self.usable()?;
        let range = usize::try_from(byte_offset).ok().and_then(|start| {
            let len = n_elements.checked_mul(self.dtype.size_of())?;
            Some((start, len, start.checked_add(len)?))
        });
        match range {
            Some((start, len, end)) if end <= self.len && len > 0 => {
                Ok(self.handle(self.offset + start, len, vec![n_elements]))
            }
            _ => Err(MlxError::InvalidArgument(format!(
                "slice_view: {n_elements} {} elements from byte {byte_offset} are not inside a buffer of {} bytes",
                self.dtype, self.len
            ))),
        }
    }

    /// A handle on the same bytes with other dimensions.
    ///
    /// # Errors
    ///
    /// [`MlxError::InvalidArgument`] when the dimensions' product is not the element count.
    pub fn with_shape(&self, shape: Vec<usize>) -> Result<MlxBuffer> {
        self.usable()?;
        let count = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        if count != Some(self.element_count()) {
            return Err(MlxError::InvalidArgument(format!(
                "with_shape: {shape:?} does not hold the buffer's {} elements",
                self.element_count()
            )));
        }
        Ok(self.handle(self.offset, self.len, shape))
    }

    /// Whether the buffer shows memory that must not be written: a mapped file.
    pub fn is_read_only(&self) -> bool {
        self.storage.read_only
    }

    fn handle(&self, offset: usize, len: usize, shape: Vec<usize>) -> MlxBuffer {
        self.storage.handles.fetch_add(1, Ordering::AcqRel);
        MlxBuffer {
            storage: Arc::clone(&self.storage),
            offset,
            len,
            dtype: self.dtype,
            shape,
            shown: Mutex::default(),
            fault: self.fault.clone(),
        }
    }

    fn usable(&self) -> Result<()> {
        match &self.fault {
            None => Ok(()),
            Some(message) => Err(MlxError::InvalidArgument(message.clone())),
        }
    }

    fn idle(&self, state: &State) -> Result<()> {
        if state.pending == 0 {
            return Ok(());
        }
        Err(MlxError::CommandBufferError(
            "the buffer is used by recorded operations that have not finished: commit the encoder and wait first"
                .into(),
        ))
    }

    fn elements_of<T: Pod>(&self) -> Result<usize> {
        let size = size_of::<T>();
        if size == 0 || !self.len.is_multiple_of(size) {
            return Err(MlxError::InvalidArgument(format!(
                "a buffer of {} bytes is not a whole number of elements of {size} bytes",
                self.len
            )));
        }
        Ok(self.len / size)
    }

    /// The handle's first element, given the first byte of its memory.
    fn typed_ptr<T: Pod>(&self, base: *mut u8) -> Result<*mut T> {
        // SAFETY: offset ≤ byte_len of the memory (checked when the handle was made).
        let ptr = unsafe { base.add(self.offset) };
        if !ptr.addr().is_multiple_of(align_of::<T>()) {
            return Err(MlxError::InvalidArgument(format!(
                "the view starts at byte {}, which is not aligned to {} bytes as the element type asks",
                self.offset,
                align_of::<T>()
            )));
        }
        Ok(ptr.cast())
    }

    fn forget_shown(&mut self) {
        self.shown.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The first `bytes` bytes as an operand that an operation reads; `name` is the operand's in error messages.
    pub(crate) fn read(&self, device: DeviceId, name: &str, bytes: usize) -> Result<View> {
        self.operand(device, name, bytes)?;
        Ok(View { storage: Arc::clone(&self.storage), offset: self.offset, len: bytes, dtype: self.dtype })
    }

    /// The first `bytes` bytes as an operand that an operation writes. `&mut self` proves that no slice of this handle is alive.
    pub(crate) fn write(&mut self, device: DeviceId, name: &str, bytes: usize) -> Result<View> {
        self.operand(device, name, bytes)?;
        self.forget_shown();
        if self.is_read_only() {
            return Err(MlxError::InvalidArgument(format!("{name}: the buffer shows a read-only file")));
        }
        Ok(View { storage: Arc::clone(&self.storage), offset: self.offset, len: bytes, dtype: self.dtype })
    }

    fn operand(&self, device: DeviceId, name: &str, bytes: usize) -> Result<()> {
        if let Some(message) = &self.fault {
            return Err(MlxError::InvalidArgument(format!("{name}: {message}")));
        }
        if self.storage.device != device {
            return Err(MlxError::InvalidArgument(format!(
                "{name}: the buffer belongs to another device than the encoder"
            )));
        }
        if !self.offset.is_multiple_of(self.dtype.size_of()) {
            return Err(MlxError::InvalidArgument(format!(
                "{name}: the view starts at byte {} of its buffer, which is not aligned to {}",
                self.offset, self.dtype
            )));
        }
        if self.len < bytes {
            return Err(MlxError::InvalidArgument(format!(
                "{name}: expected at least {bytes} bytes, got {}",
                self.len
            )));
        }
        Ok(())
    }
}

impl Clone for MlxBuffer {
    fn clone(&self) -> Self {
        self.handle(self.offset, self.len, self.shape.clone())
    }
}

impl Drop for MlxBuffer {
    fn drop(&mut self) {
        self.storage.handles.fetch_sub(1, Ordering::AcqRel);
    }
}

impl fmt::Debug for MlxBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MlxBuffer")
            .field("dtype", &self.dtype)
            .field("shape", &self.shape)
            .field("byte_len", &self.len)
            .field("byte_offset", &self.offset)
            .finish()
    }
}

// Small enough for Miri: `cargo +nightly miri test -p mlx-native --lib buffer`.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::FileMap;
    use crate::{Binary, MlxDevice};

    fn device() -> MlxDevice {
        MlxDevice::reference().unwrap()
    }

    fn add_one(device: &MlxDevice, x: &MlxBuffer, y: &mut MlxBuffer) {
        let one = device.buffer_from_slice(&[1.0f32], DType::F32, vec![1]).unwrap();
        let mut encoder = device.command_encoder().unwrap();
        encoder.binary(Binary::Add, x, &one, y).unwrap();
        encoder.commit_and_wait().unwrap();
    }

    fn shown(buffer: &MlxBuffer) -> usize {
        buffer.storage.state().memory.shown.load(Ordering::Acquire)
    }

    #[test]
    fn a_slice_outlives_writes_through_other_handles() {
        let device = device();
        let reader = device.buffer_from_slice(&[1.0f32, 2.0], DType::F32, vec![2]).unwrap();
        let mut writer = reader.clone();
        let first = reader.as_slice::<f32>().unwrap();
        add_one(&device, &reader, &mut writer);
        let second = reader.as_slice::<f32>().unwrap();
        add_one(&device, &reader, &mut writer);
        assert_eq!((first, second), (&[1.0f32, 2.0][..], &[2.0f32, 3.0][..]));
        assert_eq!(writer.as_slice::<f32>().unwrap(), [3.0, 4.0]);
    }

    #[test]
    fn one_handle_copies_nothing() {
        let device = device();
        let mut x = device.buffer_from_slice(&[1.0f32, 2.0], DType::F32, vec![2]).unwrap();
        let place = x.as_slice::<f32>().unwrap().as_ptr();
        for _ in 0..3 {
            let input = x.as_slice::<f32>().unwrap().to_vec();
            let input = device.buffer_from_slice(&input, DType::F32, vec![2]).unwrap();
            add_one(&device, &input, &mut x);
            assert_eq!(x.as_slice::<f32>().unwrap().as_ptr(), place);
        }
        assert_eq!(x.as_mut_slice::<f32>().unwrap(), [4.0, 5.0]);
        assert_eq!(x.as_slice::<f32>().unwrap().as_ptr(), place);
    }

    #[test]
    fn a_handle_that_is_dropped_or_written_through_shows_nothing() {
        let device = device();
        let mut x = device.alloc_buffer(8, DType::F32, vec![2]).unwrap();
        let view = x.slice_view(4, 1);
        let _ = (view.as_slice::<f32>().unwrap(), x.as_slice::<u8>().unwrap(), x.as_slice::<f32>().unwrap());
        assert_eq!(shown(&x), 2);
        drop(view);
        assert_eq!(shown(&x), 1);
        x.as_mut_slice::<f32>().unwrap()[1] = 7.0;
        assert_eq!(shown(&x), 0);
        assert_eq!(x.as_slice::<f32>().unwrap(), [0.0, 7.0]);
        // The memory outlives its storage's other handles, not a handle's own slices.
        let clone = x.clone();
        let slice = clone.as_slice::<f32>().unwrap();
        drop(x);
        assert_eq!(slice, [0.0, 7.0]);
    }

    #[test]
    fn parts_of_one_storage_are_written_apart() {
        let device = device();
        let x = device.alloc_buffer(16, DType::F32, vec![4]).unwrap();
        let (mut low, mut high) = (x.slice_view(0, 2), x.slice_view(8, 2));
        let (low_in, high_in) = (low.clone(), high.clone());
        std::thread::scope(|scope| {
            scope.spawn(|| (0..3).for_each(|_| add_one(&device, &low_in, &mut low)));
            scope.spawn(|| (0..4).for_each(|_| add_one(&device, &high_in, &mut high)));
        });
        assert_eq!(x.as_slice::<f32>().unwrap(), [3.0, 3.0, 4.0, 4.0]);
    }

    #[test]
    fn readers_on_other_threads_see_whole_states() {
        let device = device();
        let x = device.alloc_buffer(8, DType::F32, vec![2]).unwrap();
        let mut writer = x.clone();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let reader = x.clone();
                scope.spawn(move || {
                    for _ in 0..10 {
                        // An error while a write is pending, otherwise two equal numbers.
                        if let Ok(values) = reader.as_slice::<f32>() {
                            assert_eq!(values[0], values[1]);
                        }
                    }
                });
            }
            (0..5).for_each(|_| add_one(&device, &x, &mut writer));
        });
        assert_eq!(x.as_slice::<f32>().unwrap(), [5.0, 5.0]);
    }

    #[test]
    fn read_only_memory_is_never_written() {
        let device = device();
        let map = FileMap::from_bytes([1u8, 0, 0, 0]);
        let mut x = device.buffer_from_map(&map, 0..4, DType::F32, vec![1]).unwrap();
        assert!(x.as_mut_slice::<u8>().is_err());
        let y = device.alloc_buffer(4, DType::F32, vec![1]).unwrap();
        let mut encoder = device.command_encoder().unwrap();
        assert!(encoder.soft_cap(&y, &mut x, 1.0).is_err());
        assert_eq!(x.as_slice::<u8>().unwrap(), [1, 0, 0, 0]);
        drop(map);
        assert_eq!(x.as_slice::<u8>().unwrap(), [1, 0, 0, 0]);
    }
}
