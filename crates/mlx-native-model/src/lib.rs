//! Text generation with GGUF files and MLX model directories on the compute library `mlx-native`.
//!
//! [`Model`] puts a file's or a directory's weights on a device, a [`Session`] is one context with its key-value cache, and [`tokenizer`] turns text into tokens and back.

mod activations;
pub mod chat_template;
mod config;
pub mod convert;
mod decoder;
mod error;
pub mod generation;
mod kv_cache;
mod model;
mod model_file;
pub mod names;
pub mod sampler;
mod session;
mod source;
pub mod tokenizer;
mod weights;

pub use config::{ARCHITECTURES, Experts, ModelConfig, QkNorm, Rope, SlidingWindow};
pub use decoder::Decoder;
pub use error::{ModelError, Result};
pub use generation::{Finish, Generated, GenerationOptions, generate};
pub use model::{Model, SessionOptions};
pub use model_file::ModelFile;
pub use session::Session;
