//! cuBLAS, for benchmarks that compare with it: loaded when one asks, by nothing else.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use libloading::Library;

use super::driver::Stream;
use super::nvrtc::library_directories;
use crate::{MlxError, Result};

/// A handle of the library.
type Handle = *mut c_void;
/// What its functions return; 0 is success.
type Status = c_int;
type Create = unsafe extern "C" fn(*mut Handle) -> Status;
type Destroy = unsafe extern "C" fn(Handle) -> Status;
type SetStream = unsafe extern "C" fn(Handle, *mut c_void) -> Status;
/// Two operations, m, n, k, a factor, three matrices with type and rows apart (and a factor before the last), type of the sums, algorithm.
type GemmEx = unsafe extern "C" fn(
    Handle,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const c_void,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
) -> Status;

/// `CUBLAS_OP_N` and `CUBLAS_OP_T`.
const AS_IT_IS: c_int = 0;
const TRANSPOSED: c_int = 1;
/// `CUDA_R_16F`, `CUBLAS_COMPUTE_32F`, `CUBLAS_GEMM_DEFAULT`.
const HALVES: c_int = 2;
const SUMS_IN_F32: c_int = 68;
const ITS_CHOICE: c_int = -1;

/// The library with a handle whose work goes to one stream.
pub(super) struct Cublas {
    handle: Handle,
    gemm: GemmEx,
    destroy: Destroy,
    stream: Arc<Stream>,
}

// SAFETY: a handle may be used from any thread, one at a time, which `&mut self` of its owners sees to.
unsafe impl Send for Cublas {}

fn check(what: &str, status: Status) -> Result<()> {
    if status == 0 { Ok(()) } else { Err(MlxError::CommandBufferError(format!("cuda: {what}: status {status}"))) }
}

impl Cublas {
    /// Loads the library; [`MlxError::DeviceNotFound`] says where it was looked for.
    pub(super) fn open(stream: &Arc<Stream>) -> Result<Cublas> {
        let names = ["libcublas.so.13", "libcublas.so.12", "libcublas.so"];
        let in_toolkits = library_directories().into_iter().flat_map(|dir| names.map(|name| dir.join(name)));
        let mut paths = names.into_iter().map(Into::into).chain(in_toolkits);
        // SAFETY: loading NVIDIA's library runs its initialisers, which have no preconditions.
        let library = paths.find_map(|path| unsafe { Library::new(path) }.ok()).ok_or_else(|| {
            MlxError::DeviceNotFound(
                "cuda: cuBLAS is not installed: libcublas.so of CUDA 12 or 13 was found neither by the loader (LD_LIBRARY_PATH) nor under \
                 CUDA_HOME, CUDA_PATH or /usr/local/cuda"
                    .into(),
            )
        })?;
        let missing = |error: libloading::Error| MlxError::DeviceNotFound(format!("cuda: cuBLAS: {error}"));
        // SAFETY: these are the functions' types in cublas_api.h of CUDA 12 and 13.
        let (create, destroy, set_stream, gemm) = unsafe {
            (
                *library.get::<Create>(b"cublasCreate_v2").map_err(missing)?,
                *library.get::<Destroy>(b"cublasDestroy_v2").map_err(missing)?,
                *library.get::<SetStream>(b"cublasSetStream_v2").map_err(missing)?,
                *library.get::<GemmEx>(b"cublasGemmEx").map_err(missing)?,
            )
        };
        // It stays loaded: what it has registered with the driver cannot be taken back.
        std::mem::forget(library);
        stream.context().enter()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes to the local; destroyed when the value is dropped.
        check("cublasCreate", unsafe { create(&mut handle) })?;
        let cublas = Cublas { handle, gemm, destroy, stream: Arc::clone(stream) };
        // SAFETY: the handle exists, and the stream as long as `cublas`.
        check("cublasSetStream", unsafe { set_stream(handle, cublas.stream.raw()) })?;
        Ok(cublas)
    }

    /// Queues `[m, k] · [n, k]ᵀ` of halves, summed in f32, with a result of halves.
    ///
    /// # Safety
    /// The addresses are of device memory with these shapes that stays until the product has ended.
    pub(super) unsafe fn product(&self, [m, n, k]: [usize; 3], weight: u64, input: u64, output: u64) -> Result<()> {
        let int = |value: usize| {
            c_int::try_from(value).map_err(|_| MlxError::InvalidArgument(format!("cuBLAS takes no {value} rows")))
        };
        let (m, n, k) = (int(m)?, int(n)?, int(k)?);
        let (one, zero) = (1f32, 0f32);
        let factor = |value: &f32| std::ptr::from_ref(value).cast::<c_void>();
        let matrix = |address: u64| address as usize as *mut c_void;
        self.stream.context().enter()?;
        // SAFETY: the caller's promise. Columns are the library's rows, so the output's transpose is asked for: weight · inputᵀ.
        let status = unsafe {
            (self.gemm)(
                self.handle,
                TRANSPOSED,
                AS_IT_IS,
                n,
                m,
                k,
                factor(&one),
                matrix(weight),
                HALVES,
                k,
                matrix(input),
                HALVES,
                k,
                factor(&zero),
                matrix(output),
                HALVES,
                n,
                SUMS_IN_F32,
                ITS_CHOICE,
            )
        };
        check("cublasGemmEx", status)
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // What it queued ends first. An error was reported where it came up.
        let _ = self.stream.synchronise();
        // SAFETY: created in `open`, destroyed once.
        unsafe { (self.destroy)(self.handle) };
    }
}
