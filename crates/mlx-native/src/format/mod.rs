//! What the bytes of a weight mean.

pub mod affine;
pub mod fp;
mod ggml_type;
mod weight_format;

pub use affine::AffineFormat;
pub use fp::FpMode;
pub use ggml_type::GgmlType;
pub use weight_format::WeightFormat;
