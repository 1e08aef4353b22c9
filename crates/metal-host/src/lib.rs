//! Runs Metal kernels on a Linux CPU, and checks every access that they make.
//!
//! The `.metal` text that a GPU would get is flattened, translated line by line to C++ (attributes become a table of
//! kernels, address spaces vanish) and compiled against headers that stand in for `metal_stdlib`, `metal_simdgroup`,
//! `metal_simdgroup_matrix`, `metal_tensor`, `metal_atomic` and MetalPerformancePrimitives. A dispatch runs the whole grid:
//! threads are fibers, so barriers, simdgroup functions, 8×8 matrices and `matmul2d` wait for each other as on a GPU, in
//! simdgroups of 32.
//!
//! ```no_run
//! use metal_host::{Binding, Buffer, CompileOptions, Dispatch, Grid, Library, Options};
//!
//! let source = "
//!     kernel void twice(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
//!                       uint i [[thread_position_in_grid]]) { y[i] = 2 * x[i]; }";
//! let pipeline = Library::compile(source, CompileOptions::named("twice.metal"))?.pipeline("twice", &[])?;
//! let x = Buffer::from_slice("x", &[1.0f32, 2.0, 3.0])?;
//! let y = Buffer::uninitialised("y", 12)?;
//! let report = pipeline.dispatch(&Dispatch {
//!     bindings: &[Binding::read(&x), Binding::overwrite(&y)],
//!     threadgroup_bytes: &[],
//!     grid: Grid::Threads([3, 1, 1]),
//!     group: [32, 1, 1],
//!     options: Options::seed(1),
//! })?;
//! assert!(report.is_clean(), "{report}");
//! assert_eq!(y.to_vec_of::<f32>(), [2.0, 4.0, 6.0]);
//! # Ok::<(), metal_host::Error>(())
//! ```
//!
//! # What is checked
//!
//! The shader is compiled with the compiler's thread and undefined-behaviour instrumentation, and its callbacks are this
//! crate's own. Each access to device or threadgroup memory is held against what is bound to the dispatch and against a
//! byte of state per byte of memory; where threads may conflict, also against who touched that byte before. The kinds of
//! finding are those of [`Kind`]; each names the kernel's line, the buffer, the position and the thread. Function
//! arguments that Metal's own validation refuses (sizes, ranges, limits) are [`Error::Dispatch`].
//!
//! - *Races* need no unlucky timing: two accesses of different threads conflict when no barrier of the right scope and for
//!   the right kind of memory lies between them, in whatever order they ran. Lanes of one simdgroup are threads as others
//!   are: a kernel that leans on lockstep is reported, unless [`Options::lockstep`] is set.
//! - *Uninitialised* holds for threadgroup memory, [`Buffer`]s, simdgroup matrices and cooperative tensors. Private
//!   variables are filled with a pattern, and the compiler's words on them are in [`Library::warnings`].
//! - *Order*: [`Options::seed`] shuffles threads, simdgroups and threadgroups, and the layout of cooperative tensors.
//! - Outputs bound with [`Access::Overwrite`] start as NaN and have to be written to the last byte.
//!
//! A write out of bounds, a misaligned vector or a divergent barrier ends the dispatch; other findings do not.
//!
//! # What it cannot see
//!
//! - What Apple's compiler refuses: mixed address spaces in one expression, missing conversions, extensions of C++ that
//!   MSL lacks. The headers are stricter than C++ where that is cheap (`min` of two types, float to `bfloat`).
//! - Fast-math, flushing of subnormals, and the last bits of `exp`, `rsqrt` and their like: arithmetic here is IEEE with
//!   every operation rounded, and nothing is contracted.
//! - The order in which hardware sums over a simdgroup or inside of a matrix product.
//! - Progress between threadgroups: they run one after another, so one that waits for another hangs.
//! - Speed, register pressure, occupancy.
//! - A union with a vector in it: it cannot be copied as a whole here.
//! - An access through one binding that lands inside of another one, and conflicts between dispatches.
//!
//! # The compiler
//!
//! g++ 12 or clang 16 and newer, named by `CXX` or found by their usual names; [`Error::NoCompiler`] where there is none.
//! Compiled shaders are kept by content in [`CompileOptions::cache_dir`].
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod abi;
mod arena;
mod buffer;
mod dispatch;
mod error;
mod headers;
mod library;
mod report;
mod toolchain;
mod translate;

pub use buffer::Buffer;
pub use dispatch::{Access, Binding, Dispatch, Grid, Options};
pub use error::{Error, Result, TranslateErrorBox};
pub use library::{CompileOptions, ConstantValue, FunctionConstant, Library, Pipeline};
pub use report::{Finding, Kind, Memory, Other, Report};
pub use translate::TranslateError;
