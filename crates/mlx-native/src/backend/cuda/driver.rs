//! CUDA's driver interface: every unsafe call of the backend but NVRTC's and that for tensor maps, each object freed when it is dropped.

use std::ffi::{CStr, CString, c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};

use crate::{MlxError, Result};

/// The oldest driver interface that has all that the backend calls: CUDA 12.0.
const DRIVER_VERSION: c_int = 12_000;

/// The oldest that has `cuEventElapsedTime_v2`: CUDA 12.8.
const TIMING_VERSION: c_int = 12_080;

/// The error for a call that failed. `bytes` is what an allocation asked for.
fn failure(what: &str, code: CUresult, bytes: usize) -> MlxError {
    if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return MlxError::BufferAllocationError { bytes };
    }
    let mut text = std::ptr::null();
    // SAFETY: the pointer is valid for a write; the driver's strings are static.
    let known = unsafe { sys::cuGetErrorString(code, &mut text) } == CUresult::CUDA_SUCCESS && !text.is_null();
    // SAFETY: a static string that ends with a zero, see above.
    let text = if known { unsafe { CStr::from_ptr(text) }.to_string_lossy() } else { "unknown error".into() };
    MlxError::CommandBufferError(format!("cuda: {what}: {text} ({code:?})"))
}

pub(super) fn check(what: &str, code: CUresult) -> Result<()> {
    if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(failure(what, code, 0)) }
}

/// A device and its context, which all threads share.
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// Whether the driver has all that times work.
    pub(super) times: bool,
    pub(super) info: DeviceInfo,
}

/// What planning has to know of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceInfo {
    pub name: String,
    /// Ten times the major plus the minor compute capability: 80, 90.
    pub arch: u32,
    /// Multiprocessors.
    pub processors: u32,
    /// Shared memory that a block may have, in bytes.
    pub shared_bytes: usize,
}

#[cfg(test)]
impl DeviceInfo {
    /// An H100, which tests plan for.
    pub(crate) fn hopper() -> DeviceInfo {
        DeviceInfo { name: String::new(), arch: 90, processors: 132, shared_bytes: 227 << 10 }
    }
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Context {}
// SAFETY: as above; the driver synchronises.
unsafe impl Sync for Context {}

impl Context {
    /// Opens device `index`; what is missing is [`MlxError::DeviceNotFound`].
    pub(super) fn open(index: usize) -> Result<Arc<Context>> {
        let missing = |why: String| MlxError::DeviceNotFound(format!("cuda:{index}: {why}"));
        // SAFETY: loading NVIDIA's driver library runs its initialisers, which have no preconditions.
        if !unsafe { sys::is_culib_present() } {
            return Err(missing("the NVIDIA driver's library libcuda.so.1 is not installed".into()));
        }
        let call = |what: &str, code| check(what, code).map_err(|error| missing(error.to_string()));
        let (mut version, mut count) = (0, 0);
        // SAFETY: initialises the driver and writes to the locals it is given.
        unsafe {
            call("cuInit", sys::cuInit(0))?;
            call("cuDriverGetVersion", sys::cuDriverGetVersion(&mut version))?;
            call("cuDeviceGetCount", sys::cuDeviceGetCount(&mut count))?;
        }
        if version < DRIVER_VERSION {
            return Err(missing(format!("the NVIDIA driver supports CUDA {}, 12.0 is needed", version / 1000)));
        }
        let ordinal = c_int::try_from(index).ok().filter(|&ordinal| ordinal < count);
        let Some(ordinal) = ordinal else { return Err(missing(format!("there are {count} NVIDIA GPUs"))) };
        let (mut device, mut context) = (0, std::ptr::null_mut());
        let mut name = [0u8; 128];
        // SAFETY: the ordinal is below the count; every pointer is to a local of the size that is given.
        unsafe {
            call("cuDeviceGet", sys::cuDeviceGet(&mut device, ordinal))?;
            call("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, device))?;
        }
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: writes to the local.
            call("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
            Ok(value as u32)
        };
        let arch = 10 * attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let info = DeviceInfo {
            name: CStr::from_bytes_until_nul(&name)
                .map_or_else(|_| String::new(), |name| name.to_string_lossy().into()),
            arch,
            processors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        };
        if arch < 80 {
            return Err(missing(format!(
                "{} has compute capability {}.{}; 8.0 is needed",
                info.name,
                arch / 10,
                arch % 10
            )));
        }
        // SAFETY: the device exists; the context is released when the value is dropped.
        call("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) })?;
        Ok(Arc::new(Context { device, context, times: version >= TIMING_VERSION, info }))
    }

    /// Makes the context this thread's, which every other call needs.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained as long as `self` lives.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`, released once here; everything made in it holds the Arc.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// Bytes of the device's memory that nobody has.
pub(super) fn free_bytes(context: &Context) -> Result<usize> {
    context.enter()?;
    let (mut free, mut total) = (0, 0);
    // SAFETY: writes to the locals.
    check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
    Ok(free)
}

/// Memory of the device, zeroed or not as it was asked for.
pub(super) struct DeviceAllocation {
    context: Arc<Context>,
    pub(super) address: u64,
    pub(super) bytes: usize,
}

/// Readable bytes behind every allocation, so that a kernel may read whole words at an end.
const SLACK: usize = 32;

impl DeviceAllocation {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<DeviceAllocation> {
        context.enter()?;
        let mut address = 0;
        let size = bytes.checked_add(SLACK).ok_or(MlxError::BufferAllocationError { bytes })?;
        // SAFETY: writes to the local; the memory is freed when the value is dropped.
        match unsafe { sys::cuMemAlloc_v2(&mut address, size) } {
            CUresult::CUDA_SUCCESS => Ok(DeviceAllocation { context: Arc::clone(context), address, bytes }),
            code => Err(failure("cuMemAlloc", code, bytes)),
        }
    }
}

impl Drop for DeviceAllocation {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: allocated in `new`, freed once. The driver waits for work that uses it.
            unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// Page-locked memory of the host, which the device copies from and to without a detour.
pub(super) struct PinnedAllocation {
    context: Arc<Context>,
    ptr: *mut u8,
    pub(super) bytes: usize,
}

// SAFETY: the allocation belongs to the value; who reads or writes it when is decided by its owners.
unsafe impl Send for PinnedAllocation {}
// SAFETY: as above.
unsafe impl Sync for PinnedAllocation {}

impl PinnedAllocation {
    /// Zeroed.
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<PinnedAllocation> {
        context.enter()?;
        let mut ptr: *mut c_void = std::ptr::null_mut();
        // SAFETY: writes to the local; the memory is freed when the value is dropped.
        let code = unsafe { sys::cuMemHostAlloc(&mut ptr, bytes.max(1), 0) };
        if code != CUresult::CUDA_SUCCESS {
            return Err(failure("cuMemHostAlloc", code, bytes));
        }
        // SAFETY: just allocated with this size.
        unsafe { ptr.cast::<u8>().write_bytes(0, bytes.max(1)) };
        Ok(PinnedAllocation { context: Arc::clone(context), ptr: ptr.cast(), bytes })
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }
}

impl Drop for PinnedAllocation {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: allocated in `new`, freed once.
            unsafe { sys::cuMemFreeHost(self.ptr.cast()) };
        }
    }
}

/// A compiled kernel; its module stays loaded as long as it lives.
pub(super) struct Kernel {
    context: Arc<Context>,
    module: sys::CUmodule,
    function: sys::CUfunction,
    /// Dynamic shared memory that launches may have.
    shared_bytes: AtomicUsize,
}

/// Dynamic shared memory that a launch may have without asking.
const SHARED_BYTES: usize = 48 << 10;

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Loads the function `name` of a cubin.
    pub(super) fn load(context: &Arc<Context>, cubin: &[u8], name: &str) -> Result<Kernel> {
        context.enter()?;
        let symbol = CString::new(name).map_err(|_| MlxError::KernelNotFound(name.into()))?;
        let mut kernel = Kernel {
            context: Arc::clone(context),
            module: std::ptr::null_mut(),
            function: std::ptr::null_mut(),
            shared_bytes: AtomicUsize::new(SHARED_BYTES),
        };
        // SAFETY: the driver checks the image, which NVRTC made; the name ends with a zero.
        unsafe {
            check("cuModuleLoadData", sys::cuModuleLoadData(&mut kernel.module, cubin.as_ptr().cast()))?;
            check(
                "cuModuleGetFunction",
                sys::cuModuleGetFunction(&mut kernel.function, kernel.module, symbol.as_ptr()),
            )?;
        }
        Ok(kernel)
    }

    /// Lets launches have so much dynamic shared memory.
    fn allow_shared(&self, bytes: usize) -> Result<()> {
        if bytes > self.shared_bytes.load(Ordering::Relaxed) {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded as long as `self` lives.
            let code = unsafe { sys::cuFuncSetAttribute(self.function, attribute, bytes as c_int) };
            check("cuFuncSetAttribute", code)?;
            self.shared_bytes.store(bytes, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if !self.module.is_null() && self.context.enter().is_ok() {
            // SAFETY: loaded in `load`, unloaded once.
            unsafe { sys::cuModuleUnload(self.module) };
        }
    }
}

/// The shape of a launch.
pub(super) struct Geometry {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Blocks of a cluster along x, 1 for none.
    pub cluster: u32,
    pub shared_bytes: usize,
    /// Whether the kernel may start before the one before it has ended; it waits itself (`griddepcontrol.wait`).
    pub overlap: bool,
}

/// A queue of work.
pub(super) struct Stream {
    context: Arc<Context>,
    stream: sys::CUstream,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Stream> {
        context.enter()?;
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as c_uint;
        // SAFETY: writes to the local; destroyed when the value is dropped.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
        Ok(Stream { context: Arc::clone(context), stream })
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The driver's handle, for libraries that queue work themselves.
    pub(super) fn raw(&self) -> *mut c_void {
        self.stream.cast()
    }

    /// Queues a copy to the device.
    ///
    /// # Safety
    /// `source` is valid for `bytes` bytes, and `target`, device memory, too, until the copy has ended.
    pub(super) unsafe fn upload(&self, target: u64, source: *const u8, bytes: usize) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the caller's promise.
        check("copy to the device", unsafe { sys::cuMemcpyHtoDAsync_v2(target, source.cast(), bytes, self.stream) })
    }

    /// Queues a copy to the host.
    ///
    /// # Safety
    /// As [`upload`](Self::upload), with the roles exchanged.
    pub(super) unsafe fn download(&self, target: *mut u8, source: u64, bytes: usize) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the caller's promise.
        check("copy to the host", unsafe { sys::cuMemcpyDtoHAsync_v2(target.cast(), source, bytes, self.stream) })
    }

    /// Queues a copy on the device.
    ///
    /// # Safety
    /// Both are device memory of `bytes` bytes that stays until the copy has ended.
    pub(super) unsafe fn copy(&self, target: u64, source: u64, bytes: usize) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the caller's promise.
        check("copy on the device", unsafe { sys::cuMemcpyDtoDAsync_v2(target, source, bytes, self.stream) })
    }

    /// Queues a fill with one byte.
    ///
    /// # Safety
    /// `target` is device memory of `bytes` bytes that stays until the fill has ended.
    pub(super) unsafe fn fill(&self, target: u64, byte: u8, bytes: usize) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the caller's promise.
        check("fill", unsafe { sys::cuMemsetD8Async(target, byte, bytes, self.stream) })
    }

    /// Queues a launch.
    ///
    /// # Safety
    /// `params` points to a value for each parameter of the kernel, and what those point to stays until the kernel has ended.
    pub(super) unsafe fn launch(&self, kernel: &Kernel, geometry: &Geometry, params: &mut [*mut c_void]) -> Result<()> {
        self.context.enter()?;
        kernel.allow_shared(geometry.shared_bytes)?;
        // SAFETY: attributes are plain data; zeros are values of every member.
        let mut attributes: [sys::CUlaunchAttribute; 2] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        if geometry.cluster > 1 {
            attributes[count].id = sys::CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            attributes[count].value.clusterDim.x = geometry.cluster;
            attributes[count].value.clusterDim.y = 1;
            attributes[count].value.clusterDim.z = 1;
            count += 1;
        }
        if geometry.overlap {
            attributes[count].id = sys::CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes[count].value.programmaticStreamSerializationAllowed = 1;
            count += 1;
        }
        let config = sys::CUlaunchConfig {
            gridDimX: geometry.grid[0],
            gridDimY: geometry.grid[1],
            gridDimZ: geometry.grid[2],
            blockDimX: geometry.block[0],
            blockDimY: geometry.block[1],
            blockDimZ: geometry.block[2],
            sharedMemBytes: geometry.shared_bytes as c_uint,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: count as c_uint,
        };
        // SAFETY: the caller's promise; the configuration lives until the call returns.
        let code =
            unsafe { sys::cuLaunchKernelEx(&config, kernel.function, params.as_mut_ptr(), std::ptr::null_mut()) };
        check("launch", code)
    }

    /// Begins to record what this thread queues instead of running it.
    pub(super) fn begin_capture(&self) -> Result<()> {
        self.context.enter()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) })
    }

    /// Ends what `begin_capture` began and makes a graph of it.
    pub(super) fn end_capture(&self) -> Result<Graph> {
        let mut graph = std::ptr::null_mut();
        let mut executable = std::ptr::null_mut();
        // SAFETY: a capture is under way; the graph is only needed to instantiate it.
        unsafe {
            check("cuStreamEndCapture", sys::cuStreamEndCapture(self.stream, &mut graph))?;
            let code = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            sys::cuGraphDestroy(graph);
            check("cuGraphInstantiate", code)?;
        }
        Ok(Graph { context: Arc::clone(&self.context), executable })
    }

    /// Queues a graph.
    ///
    /// # Safety
    /// Everything that its launches point to is valid until they have ended.
    pub(super) unsafe fn launch_graph(&self, graph: &Graph) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the caller's promise.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.executable, self.stream) })
    }

    /// Blocks until all that was queued has ended.
    pub(super) fn synchronise(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: created in `new`, destroyed once, with nothing left to run.
            unsafe {
                sys::cuStreamSynchronize(self.stream);
                sys::cuStreamDestroy_v2(self.stream);
            }
        }
    }
}

/// A mark in a stream.
pub(super) struct Event {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(super) fn new(context: &Arc<Context>) -> Result<Event> {
        Event::with(context, sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING)
    }

    /// One that knows when it was passed.
    pub(super) fn timed(context: &Arc<Context>) -> Result<Event> {
        Event::with(context, sys::CUevent_flags_enum::CU_EVENT_DEFAULT)
    }

    fn with(context: &Arc<Context>, flags: sys::CUevent_flags_enum) -> Result<Event> {
        context.enter()?;
        let mut event = std::ptr::null_mut();
        // SAFETY: writes to the local; destroyed when the value is dropped.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags as c_uint) })?;
        Ok(Event { context: Arc::clone(context), event })
    }

    /// Seconds from one mark to this, both timed and passed.
    pub(super) fn seconds_since(&self, earlier: &Event) -> Result<f64> {
        self.context.enter()?;
        let mut milliseconds = 0f32;
        // SAFETY: writes to the local; both events are alive.
        let code = unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, earlier.event, self.event) };
        check("cuEventElapsedTime", code)?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    /// Moves the mark to the end of what is queued.
    pub(super) fn record(&self, stream: &Stream) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both are alive.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.event, stream.stream) })
    }

    /// Blocks until the stream has passed the mark.
    pub(super) fn synchronise(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the event is alive.
        check("wait", unsafe { sys::cuEventSynchronize(self.event) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: created in `new`, destroyed once.
            unsafe { sys::cuEventDestroy_v2(self.event) };
        }
    }
}

/// Recorded work that can be queued again and again.
pub(super) struct Graph {
    context: Arc<Context>,
    executable: sys::CUgraphExec,
}

// SAFETY: the driver's handles may be used from any thread, one at a time, which the device's lock sees to.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: instantiated in `end_capture`, destroyed once.
            unsafe { sys::cuGraphExecDestroy(self.executable) };
        }
    }
}
