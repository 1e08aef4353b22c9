//! Compiles Metal Shading Language as C++ and runs whole dispatches on a CPU.
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
