//! NVIDIA GPUs from compute capability 8.0 on: kernels in CUDA C++, compiled by NVRTC when they are first needed.
//!
//! [`launches`] turns an `Op` into a [`launches::Plan`]: which kernels, bound to what, over which grid; plain data, planned without a GPU.
//! [`source`] assembles the text of a kernel from the rendered formats, the argument structs and the templates in `kernels/`. [`nvrtc`]
//! compiles it and keeps the machine code on disk. [`driver`] has the unsafe calls to the driver, [`tensor_map`] the one that makes tensor maps.
//! [`device`] runs command lists: launch by launch at first, and as a graph when a list of the same shape comes again. [`limits`] and [`cublas`] are what benchmarks
//! compare with.

mod claim;
mod cublas;
mod device;
pub(crate) mod driver;
mod fingerprint;
mod frame;
pub(crate) mod launches;
mod limits;
mod memory;
mod nvrtc;
mod params;
mod source;
pub(crate) mod tensor_map;
mod upload;

pub(crate) use device::CudaBackend;
