//! What can go wrong between a file and its text.

use mlx_native::MlxError;

use crate::sampler::SamplerError;
use crate::tokenizer::TokenizerError;

/// The result of every fallible call of this crate that is not the tokenizer's own.
pub type Result<T> = std::result::Result<T, ModelError>;

/// What went wrong: each message says what, where, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file, the device or an operation.
    #[error(transparent)]
    Mlx(#[from] MlxError),
    /// Text and token ids.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Choosing a token.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The file's architecture is not one that this crate runs.
    #[error("architecture `{found}` is not supported; supported are {}", crate::config::ARCHITECTURES.join(", "))]
    UnsupportedArchitecture {
        /// `general.architecture` of the file.
        found: String,
    },
    /// The file's metadata describe no model that this crate can build.
    #[error("model configuration: {0}")]
    Config(String),
    /// A model cannot be written in another format or layout.
    #[error("{0}")]
    Quantize(String),
    /// A tensor has other dimensions than the metadata imply.
    #[error("tensor `{name}`: expected shape {expected:?}, got {found:?}")]
    TensorShape {
        /// The tensor.
        name: String,
        /// Slowest dimension first.
        expected: Vec<usize>,
        /// Slowest dimension first.
        found: Vec<usize>,
    },
    /// The tokens do not fit the context.
    #[error("{tokens} tokens do not fit a context of {context}: shorten the prompt or ask for a larger context")]
    ContextFull {
        /// Tokens that were to be in the context together.
        tokens: usize,
        /// Positions of the context.
        context: usize,
    },
    /// A token id is not in the vocabulary.
    #[error("token id {id} is not in the vocabulary of {vocabulary}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// There is nothing to compute on.
    #[error("no tokens: the prompt is empty")]
    EmptyPrompt,
}
