//! Text generation with GGUF files and MLX model directories on the compute library `mlx-native`.
//!
//! [`Model`] puts a file's or a directory's weights on a device, a [`Session`] is one context with its key-value cache, and [`tokenizer`] turns text into tokens and back.
//!
//! ```no_run
//! use mlx_native::MlxDevice;
//! use mlx_native_model::tokenizer::EncodeOptions;
//! use mlx_native_model::{GenerationOptions, ModelFile, SessionOptions, generate};
//! use std::ops::ControlFlow;
//!
//! let file = ModelFile::open("model.gguf")?; // or a model directory
//! let tokenizer = file.tokenizer()?;
//! let model = file.model(&MlxDevice::new()?)?;
//! let mut session = model.session(SessionOptions::default())?;
//! let prompt = tokenizer.encode("Once upon a time", EncodeOptions::default())?;
//! generate(&mut session, &tokenizer, &prompt, &GenerationOptions::default(), |text| {
//!     print!("{text}");
//!     ControlFlow::Continue(())
//! })?;
//! # Ok::<(), mlx_native_model::ModelError>(())
//! ```

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
