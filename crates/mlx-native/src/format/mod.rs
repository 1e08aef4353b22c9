//! What the bytes of a weight mean: sizes, decoding and encoding, without any device.

pub mod affine;
pub mod fp;
pub mod ggml;
mod ggml_type;
pub mod render;
mod weight_format;

pub use affine::AffineFormat;
pub use fp::FpMode;
pub use ggml::{can_quantize, dequantize_row, quantize_row, quantize_row_weighted};
pub use ggml_type::GgmlType;
pub use render::{Language, render};
pub use weight_format::{WeightFormat, WeightRow};
