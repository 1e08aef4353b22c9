//! What can go wrong between text and token ids.

/// Why a tokenizer could not be built, or why ids could not become text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The model file could not be read.
    #[error(transparent)]
    File(#[from] mlx_native::MlxError),
    /// The model file lacks something that every tokenizer needs.
    #[error("tokenizer: `{key}` is missing from the model's metadata")]
    Missing {
        /// The metadata key.
        key: &'static str,
    },
    /// A metadata value has another type or length than the tokenizer needs.
    #[error("tokenizer: `{key}`: expected {expected}, found {found}")]
    Metadata {
        /// The metadata key.
        key: &'static str,
        /// What a valid file holds there.
        expected: String,
        /// What this file holds.
        found: String,
    },
    /// A file of a model directory is missing, malformed or describes a tokenizer that is not supported.
    #[error("{path}: {problem}")]
    Directory {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The kind of tokenizer is not one of `gpt2` (byte-level BPE) and `llama` (SentencePiece).
    #[error("tokenizer: model `{0}` is not supported: expected `gpt2` (byte-level BPE) or `llama` (SentencePiece)")]
    UnsupportedModel(String),
    /// No rule is known for the pre-tokenizer that the file names, and a wrong rule would
    /// silently give other ids than the model was trained with.
    #[error("tokenizer: pre-tokenizer `{0}` is not known")]
    UnknownPreTokenizer(String),
    /// A pre-tokenizer's pattern did not compile.
    #[error("tokenizer: pre-tokenizer pattern `{pattern}`: {message}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// The regular expression library's report.
        message: String,
    },
    /// The vocabulary cannot represent every text.
    #[error("tokenizer: byte 0x{0:02X} has no token and the vocabulary has no unknown token to take its place")]
    ByteWithoutToken(u8),
    /// Positions in a text are 32 bits wide.
    #[error("tokenizer: a text of {0} bytes is too long: expected fewer than 2^30")]
    TextTooLong(usize),
    /// An id is outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {n_tokens} tokens")]
    UnknownId {
        /// The id.
        id: u32,
        /// The size of the vocabulary.
        n_tokens: usize,
    },
}
