//! Model files: mapped, checked, and handed out as views.

pub mod gguf;
mod map;

pub use map::FileMap;
