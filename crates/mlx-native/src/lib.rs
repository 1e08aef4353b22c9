//! Quantized matrix multiplication for inference.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod dtype;
mod error;
pub mod format;
pub mod io;

pub use dtype::DType;
pub use error::{MlxError, Result};
pub use format::GgmlType;
