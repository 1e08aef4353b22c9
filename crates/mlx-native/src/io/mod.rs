//! Model files: mapped, checked, and handed out as views.

pub mod gguf;
mod map;
pub mod mlx_dir;
mod output;
pub mod safetensors;

pub use map::FileMap;
pub use output::TensorData;
