//! Opening a device, and what it hands out.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::Pod;

use crate::backend::{self, Backend, Capability, CapabilityQuery, ListContents};
use crate::buffer::MlxBuffer;
use crate::io::FileMap;
use crate::memory::MappedMemory;
use crate::ops::check::invalid;
use crate::shelf::Shelf;
use crate::{CommandEncoder, DType, Laps, LimitsProbe, MlxError, Result, VendorProduct};

/// Tells the buffers of one device from those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceId(u64);

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// The host's processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// An Apple GPU.
    Metal,
    /// The f64 oracle that every other device is compared with.
    Reference,
}

impl DeviceKind {
    /// The lower-case name: `"cpu"`.
    pub const fn name(self) -> &'static str {
        match self {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Cuda => "cuda",
            DeviceKind::Metal => "metal",
            DeviceKind::Reference => "reference",
        }
    }
}

/// How a device is best given the work of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pace {
    /// Rows of activations (tokens of a prompt) of one list of operations that fill the device.
    pub batch: usize,
    /// Whether it runs a list that was committed while the host records the next one, so that a long sequence of operations had better be several lists.
    pub runs_ahead: bool,
    /// Whether it would idle while the host takes a step's logits, chooses a token and records the next step: where the device can choose the token, a
    /// generation had better queue the next step before the host has seen it.
    pub steps_ahead: bool,
}

impl Pace {
    /// A device that has no queue of its own, or is filled soon.
    pub(crate) const HOST: Pace = Pace { batch: 512, runs_ahead: false, steps_ahead: false };
}

/// In which precision activations enter a product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activations {
    /// The device's default: [`Exact`](Self::Exact) on a CPU, f16 operands where the accuracy table allows them on a GPU.
    #[default]
    Auto,
    /// As f32: NMSE ≤ 1e-10 at every m.
    Exact,
    /// Rounded to 8 bits in groups: NMSE ≤ 1e-4, and several times faster on a CPU.
    Q8,
}

/// How a device computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// In which precision activations enter a product.
    pub activations: Activations,
    /// A row's result does not depend on how many other rows the operation has, nor on their values: bit-identical.
    ///
    /// On CUDA every number of rows may then have f16 operands (NMSE ≤ 1e-6), as otherwise more than four have; with [`Activations::Exact`] none has.
    pub batch_invariant: bool,
    /// Threads of a CPU device; 0 takes one for each processor that the process may use.
    pub threads: usize,
}

/// A device: allocates buffers and hands out encoders. A clone is the same device.
#[derive(Clone)]
pub struct MlxDevice {
    inner: Arc<Inner>,
}

struct Inner {
    id: DeviceId,
    backend: Box<dyn Backend>,
    options: DeviceOptions,
    lists: Arc<Shelf<ListContents>>,
}

impl MlxDevice {
    /// Opens the best device present: Metal, then CUDA, then the CPU. `MLX_NATIVE_DEVICE=cpu|cuda[:i]|metal` overrides.
    ///
    /// # Errors
    ///
    /// [`DeviceNotFound`](MlxError::DeviceNotFound) when the variable names a device that is not there, or is no device's name.
    pub fn new() -> Result<MlxDevice> {
        MlxDevice::with_options(DeviceOptions::default())
    }

    /// [`new`](Self::new) with options.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_options(options: DeviceOptions) -> Result<MlxDevice> {
        const VARIABLE: &str = "MLX_NATIVE_DEVICE";
        match std::env::var_os(VARIABLE) {
            Some(name) => MlxDevice::by_name(&name.to_string_lossy(), options).map_err(|error| match error {
                MlxError::DeviceNotFound(what) => MlxError::DeviceNotFound(format!("{what} (asked for by {VARIABLE})")),
                error => error,
            }),
            None => MlxDevice::metal_with(options)
                .or_else(|_| MlxDevice::cuda_with(0, options))
                .or_else(|_| MlxDevice::cpu_with(options)),
        }
    }

    /// Opens the device of this name: `cpu`, `cuda`, `cuda:1`, `metal`, `reference`; with the feature of that
    /// name `metal-host`, and `metal-host:tensor`, which has Metal's tensor operations.
    ///
    /// # Errors
    ///
    /// [`DeviceNotFound`](MlxError::DeviceNotFound) that says what is missing, or which names there are.
    pub fn by_name(name: &str, options: DeviceOptions) -> Result<MlxDevice> {
        match name.split_once(':').unwrap_or((name, "0")) {
            ("cpu", "0") => MlxDevice::cpu_with(options),
            ("metal", "0") => MlxDevice::metal_with(options),
            #[cfg(feature = "metal-host")]
            ("metal-host", "0") => MlxDevice::metal_host_with(options, false),
            #[cfg(feature = "metal-host")]
            ("metal-host", "tensor") => MlxDevice::metal_host_with(options, true),
            ("reference", "0") => MlxDevice::reference(),
            ("cuda", index) => match index.parse() {
                Ok(index) => MlxDevice::cuda_with(index, options),
                Err(_) => Err(MlxError::DeviceNotFound(format!("`{name}`: `{index}` is no device number"))),
            },
            _ => {
                Err(MlxError::DeviceNotFound(format!("`{name}` is none of cpu, cuda, cuda:<number>, metal, reference")))
            }
        }
    }

    /// The host's processor, with all of its threads and exact activations.
    ///
    /// # Errors
    ///
    /// [`DeviceNotFound`](MlxError::DeviceNotFound) when the operating system refuses threads.
    pub fn cpu() -> Result<MlxDevice> {
        MlxDevice::cpu_with(DeviceOptions::default())
    }

    /// [`cpu`](Self::cpu) with options.
    ///
    /// # Errors
    ///
    /// As [`cpu`](Self::cpu).
    pub fn cpu_with(options: DeviceOptions) -> Result<MlxDevice> {
        Ok(MlxDevice::open(Box::new(backend::cpu::CpuBackend::new(options, None)?), options))
    }

    /// [`cpu_with`](Self::cpu_with) limited to one instruction set, for tests and benchmarks: one of [`cpu_instruction_sets`](Self::cpu_instruction_sets).
    ///
    /// # Errors
    ///
    /// [`DeviceNotFound`](MlxError::DeviceNotFound) when this machine lacks it.
    pub fn cpu_with_instruction_set(name: &str, options: DeviceOptions) -> Result<MlxDevice> {
        Ok(MlxDevice::open(Box::new(backend::cpu::CpuBackend::new(options, Some(name))?), options))
    }

    /// The instruction sets that this machine's processor can run, the best first: `avx512`, `avx2`, `neon`, `portable`.
    pub fn cpu_instruction_sets() -> Vec<&'static str> {
        backend::cpu::Isa::available().map(backend::cpu::Isa::name).collect()
    }

    /// NVIDIA GPU number `index`.
    ///
    /// # Errors
    ///
    /// [`DeviceNotFound`](MlxError::DeviceNotFound) that says what is missing.
    pub fn cuda(index: usize) -> Result<MlxDevice> {
        MlxDevice::cuda_with(index, DeviceOptions::default())
    }

    /// [`cuda`](Self::cuda) with options.
    ///
    /// # Errors
    ///
    /// As [`cuda`](Self::cuda).
    #[cfg(feature = "cuda")]
    pub fn cuda_with(index: usize, options: DeviceOptions) -> Result<MlxDevice> {
        Ok(MlxDevice::open(Box::new(backend::cuda::CudaBackend::new(index, options)?), options))
    }

    /// [`cuda`](Self::cuda) with options.
    ///
    /// # Errors
    ///
    /// As [`cuda`](Self::cuda): always, as this build lacks the feature `cuda`.
    #[cfg(not(feature = "cuda"))]
    pub fn cuda_with(index: usize, _options: DeviceOptions) -> Result<MlxDevice> {
        Err(MlxError::DeviceNotFound(format!(
            "cuda:{index}: this build of mlx-native has no CUDA backend; its feature `cuda` adds it"
        )))
    }

    /// The Apple GPU.
    ///
    /// # Errors
    ///
    /// [`DeviceNotFound`](MlxError::DeviceNotFound) that says what is missing.
    pub fn metal() -> Result<MlxDevice> {
        MlxDevice::metal_with(DeviceOptions::default())
    }

    /// [`metal`](Self::metal) with options.
    ///
    /// # Errors
    ///
    /// As [`metal`](Self::metal).
    pub fn metal_with(options: DeviceOptions) -> Result<MlxDevice> {
        #[cfg(all(feature = "metal", target_os = "macos"))]
        return Ok(MlxDevice::open(Box::new(backend::metal::device::MetalBackend::new(options)?), options));
        #[cfg(not(all(feature = "metal", target_os = "macos")))]
        {
            let _ = options;
            let why = if cfg!(target_os = "macos") { "this build lacks the feature `metal`" } else { "needs macOS" };
            Err(MlxError::DeviceNotFound(format!("metal: {why}")))
        }
    }

    /// The Metal backend without a GPU: its kernels run on the CPU by the `metal-host` crate, and any access that a GPU would not forgive is an
    /// error of the wait. `tensor_ops` says whether it has Metal's tensor operations. For tests.
    ///
    /// # Errors
    ///
    /// [`DeviceNotFound`](MlxError::DeviceNotFound) when there is no C++ compiler to compile kernels with.
    #[cfg(feature = "metal-host")]
    pub fn metal_host_with(options: DeviceOptions, tensor_ops: bool) -> Result<MlxDevice> {
        Ok(MlxDevice::open(Box::new(backend::metal::host::MetalHost::new(options, tensor_ops)?), options))
    }

    /// The f64 oracle: every operation by its formula, slow and obvious.
    ///
    /// # Errors
    ///
    /// None at present; the signature is that of every device.
    pub fn reference() -> Result<MlxDevice> {
        Ok(MlxDevice::open(Box::new(backend::reference::ReferenceBackend::default()), DeviceOptions::default()))
    }

    fn open(backend: Box<dyn Backend>, options: DeviceOptions) -> MlxDevice {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = DeviceId(NEXT.fetch_add(1, Ordering::Relaxed));
        MlxDevice { inner: Arc::new(Inner { id, backend, options, lists: Arc::default() }) }
    }

    /// What it is, for people: the processor's instruction set and threads, the GPU's name.
    pub fn name(&self) -> String {
        self.inner.backend.name()
    }

    /// What it is.
    pub fn kind(&self) -> DeviceKind {
        self.inner.backend.kind()
    }

    /// How it is best given the work of a model.
    pub fn pace(&self) -> Pace {
        self.inner.backend.pace()
    }

    /// How it computes.
    pub fn options(&self) -> DeviceOptions {
        self.inner.options
    }

    pub(crate) fn id(&self) -> DeviceId {
        self.inner.id
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.inner.backend
    }

    /// Memory for lists of operations.
    pub(crate) fn lists(&self) -> &Arc<Shelf<ListContents>> {
        &self.inner.lists
    }

    /// A zeroed buffer of `byte_len` bytes. The shape describes the content to the caller; operations take dimensions from their parameters.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](MlxError::InvalidArgument) for 0 bytes, [`BufferAllocationError`](MlxError::BufferAllocationError) when there is no memory.
    pub fn alloc_buffer(&self, byte_len: usize, dtype: DType, shape: Vec<usize>) -> Result<MlxBuffer> {
        if byte_len == 0 {
            return invalid("alloc_buffer: byte_len must not be 0");
        }
        let memory = self.inner.backend.allocate(byte_len)?;
        Ok(MlxBuffer::new(self.inner.id, memory, byte_len, dtype, shape))
    }

    /// A buffer that holds a copy of `values`.
    ///
    /// # Errors
    ///
    /// As [`alloc_buffer`](Self::alloc_buffer).
    pub fn buffer_from_slice<T: Pod>(&self, values: &[T], dtype: DType, shape: Vec<usize>) -> Result<MlxBuffer> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let mut buffer = self.alloc_buffer(bytes.len(), dtype, shape)?;
        buffer.as_mut_slice::<u8>()?.copy_from_slice(bytes);
        Ok(buffer)
    }

    /// A read-only buffer over `range` of a mapped file, such as a tensor; nothing is copied where the device shares the host's memory.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](MlxError::InvalidArgument) when the range is empty, not inside the file or not aligned to the dtype;
    /// [`BufferAllocationError`](MlxError::BufferAllocationError) when the device cannot take that much.
    pub fn buffer_from_map(
        &self,
        map: &FileMap,
        range: Range<usize>,
        dtype: DType,
        shape: Vec<usize>,
    ) -> Result<MlxBuffer> {
        if range.is_empty() || range.end > map.len() {
            return invalid(format!("buffer_from_map: bytes {range:?} are not inside a file of {} bytes", map.len()));
        }
        if !map[range.start..].as_ptr().addr().is_multiple_of(dtype.size_of()) {
            return invalid(format!("buffer_from_map: byte {} of the file is not aligned to {dtype}", range.start));
        }
        let len = range.len();
        let memory = self.inner.backend.map(MappedMemory { map: map.clone(), range })?;
        Ok(MlxBuffer::new(self.inner.id, memory, len, dtype, shape))
    }

    /// An empty encoder.
    ///
    /// # Errors
    ///
    /// [`CommandBufferError`](MlxError::CommandBufferError) when the device gives none.
    pub fn command_encoder(&self) -> Result<CommandEncoder> {
        Ok(CommandEncoder::new(self.clone()))
    }

    /// Whether and by which kernel this device runs a product, before anything is loaded.
    pub fn capability(&self, query: &CapabilityQuery) -> Capability {
        backend::checked_capability(query, |query| self.inner.backend.capability(query))
    }

    /// What measures this device's hardware, for benchmarks.
    ///
    /// # Errors
    ///
    /// [`BufferAllocationError`](MlxError::BufferAllocationError) when there is no memory to read.
    pub fn limits_probe(&self) -> Result<LimitsProbe> {
        LimitsProbe::new(self.clone())
    }

    /// What times this device's work by its own clock, for benchmarks; none where the host waits for the work and may as well look at its own.
    ///
    /// # Errors
    ///
    /// [`CommandBufferError`](MlxError::CommandBufferError) when the device fails.
    pub fn laps(&self) -> Result<Option<Laps>> {
        Laps::new(self.clone())
    }

    /// The vendor's own product `[m, k] · [n, k]ᵀ` of halves with so many weights in turn, for benchmarks: cuBLAS on CUDA.
    ///
    /// # Errors
    ///
    /// [`DeviceNotFound`](MlxError::DeviceNotFound) where the device has none or its library is not installed, and says what is missing.
    pub fn vendor_product(&self, [m, n, k]: [usize; 3], weights: usize) -> Result<VendorProduct> {
        VendorProduct::new(self.clone(), [m, n, k], weights)
    }
}

impl fmt::Debug for MlxDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MlxDevice").field("name", &self.name()).field("options", &self.inner.options).finish()
    }
}
