//! A tokenizer from a GGUF file's metadata.

use mlx_native::io::gguf::{FromMetadata, GgufFile, GgufStr, MetadataArray};

use super::data::metadata;
use super::{TokenKind, Tokenizer, TokenizerData, TokenizerError};

impl Tokenizer {
    /// The tokenizer of a GGUF model.
    ///
    /// # Errors
    /// A [`TokenizerError`] that names the metadata key which is missing, malformed or unknown.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, TokenizerError> {
        Self::new(&TokenizerData::from_gguf(file)?)
    }
}

impl TokenizerData {
    /// The keys `tokenizer.ggml.*` of a GGUF file.
    ///
    /// # Errors
    /// [`TokenizerError::Missing`] without a tokenizer or a vocabulary; an error that names the key where a value has another
    /// type.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, TokenizerError> {
        let model = optional::<String>(file, "tokenizer.ggml.model")?
            .ok_or(TokenizerError::Missing { key: "tokenizer.ggml.model" })?;
        let tokens =
            strings(file, "tokenizer.ggml.tokens")?.ok_or(TokenizerError::Missing { key: "tokenizer.ggml.tokens" })?;
        let kinds = optional::<Vec<i32>>(file, "tokenizer.ggml.token_type")?.unwrap_or_default();
        // What SentencePiece's own files leave unsaid.
        let default = |id: u32| Some(id).filter(|&id| model == "llama" && (id as usize) < tokens.len());
        Ok(TokenizerData {
            pre: optional(file, "tokenizer.ggml.pre")?,
            patterns: Vec::new(),
            whole_words: None,
            composes: false,
            ends: Vec::new(),
            scores: optional(file, "tokenizer.ggml.scores")?.unwrap_or_default(),
            kinds: kinds.into_iter().map(TokenKind::from_gguf).collect(),
            merges: strings(file, "tokenizer.ggml.merges")?.unwrap_or_default(),
            bos: optional(file, "tokenizer.ggml.bos_token_id")?.or(default(1)),
            eos: optional(file, "tokenizer.ggml.eos_token_id")?.or(default(2)),
            unk: optional(file, "tokenizer.ggml.unknown_token_id")?.or(default(0)),
            eot: optional(file, "tokenizer.ggml.eot_token_id")?,
            eom: optional(file, "tokenizer.ggml.eom_token_id")?,
            pad: optional(file, "tokenizer.ggml.padding_token_id")?,
            add_bos: optional(file, "tokenizer.ggml.add_bos_token")?,
            add_eos: optional(file, "tokenizer.ggml.add_eos_token")?,
            add_space_prefix: optional(file, "tokenizer.ggml.add_space_prefix")?,
            model_name: optional(file, "general.name")?,
            tokens,
            model,
        })
    }
}

/// The value of a key, if the file has it.
fn optional<'a, T: FromMetadata<'a>>(file: &'a GgufFile, key: &str) -> Result<Option<T>, TokenizerError> {
    Ok(file.optional(key)?)
}

/// An array of strings, which need not be UTF-8.
fn strings(file: &GgufFile, key: &'static str) -> Result<Option<Vec<Vec<u8>>>, TokenizerError> {
    let Some(array) = optional::<MetadataArray<'_>>(file, key)? else { return Ok(None) };
    let strings = array.strings().ok_or_else(|| metadata(key, "an array of strings", array.element_type()))?;
    Ok(Some(strings.map(GgufStr::as_bytes).map(<[u8]>::to_vec).collect()))
}
