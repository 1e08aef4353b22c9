//! What the bytes of a weight mean.

mod ggml_type;

pub use ggml_type::GgmlType;
