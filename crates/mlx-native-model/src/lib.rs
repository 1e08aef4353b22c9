//! Text generation with GGUF models on the compute library `mlx-native`.
//!
//! [`Model`] puts a file's weights on a device, a [`Session`] is one context with its key-value cache, and [`tokenizer`] turns text into tokens and back.

pub mod chat_template;
mod config;
mod error;
pub mod generation;
mod kv_cache;
mod model;
pub mod sampler;
mod session;
pub mod tokenizer;
mod weights;

pub use config::{ARCHITECTURES, ModelConfig, Rope, SlidingWindow};
pub use error::{ModelError, Result};
pub use generation::{Finish, Generated, GenerationOptions, generate};
pub use model::{Model, SessionOptions};
pub use session::Session;
