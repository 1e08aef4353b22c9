//! What a model file says about its tokenizer, as plain data.

use super::TokenizerError;

/// The role of one token. The discriminants are GGUF's `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TokenKind {
    /// Ordinary text.
    #[default]
    Normal = 1,
    /// Stands for text that the vocabulary cannot express.
    Unknown = 2,
    /// Structure, not text: begin and end of a sequence, of a turn. Recognised in text only on request.
    Control = 3,
    /// Added by hand after training; recognised in text before everything else.
    UserDefined = 4,
    /// In the vocabulary but without a use.
    Unused = 5,
    /// One byte, written `<0xHH>`: what is left when no other token fits.
    Byte = 6,
}

impl TokenKind {
    /// The kind for a value of GGUF's `tokenizer.ggml.token_type`; values outside the enumeration are [`TokenKind::Unused`].
    pub fn from_gguf(value: i32) -> Self {
        match value {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            6 => TokenKind::Byte,
            _ => TokenKind::Unused,
        }
    }
}

/// Everything that [`Tokenizer::new`](super::Tokenizer::new) needs, whatever file it came from.
///
/// `None` and empty vectors mean that the file does not say; the defaults of the kind of tokenizer then apply.
#[derive(Debug, Clone, Default)]
pub struct TokenizerData {
    /// The algorithm: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// The pre-tokenizer's name (`gpt2` only). A file that names none gets the rules called `default`, which cut some texts in other
    /// places than the model was trained with; a name that is not known is an error.
    pub pre: Option<String>,
    /// The pre-tokenizer's patterns, where it has no name (`gpt2` only): regular expressions that apply one after the other, each to the pieces that
    /// the one before it left. `\s+(?!\S)|\s+` at the end is the only look-around that is known.
    pub patterns: Vec<String>,
    /// Whether a word that is a token stays whole, whatever the merges say (`gpt2` only); `None` leaves it to the pre-tokenizer's name.
    pub whole_words: Option<bool>,
    /// Whether text is composed to Unicode's normal form C first.
    pub composes: bool,
    /// Each token's text as the file stores it: with GGUF's byte alphabet for `gpt2`, with `▁` for spaces for `llama`.
    pub tokens: Vec<Vec<u8>>,
    /// Each token's score (`llama` only): of all possible merges, the one with the highest score happens first, and one of −∞ never.
    pub scores: Vec<f32>,
    /// Each token's role; empty means that all are normal.
    pub kinds: Vec<TokenKind>,
    /// Pairs to merge, the first one first (`gpt2` only), each `left right`.
    pub merges: Vec<Vec<u8>>,
    /// Begin of sequence.
    pub bos: Option<u32>,
    /// End of sequence.
    pub eos: Option<u32>,
    /// Tokens that end a generation beside those that are known by their text.
    pub ends: Vec<u32>,
    /// End of turn.
    pub eot: Option<u32>,
    /// End of message.
    pub eom: Option<u32>,
    /// Stands for text that the vocabulary cannot express.
    pub unk: Option<u32>,
    /// Fills up a batch.
    pub pad: Option<u32>,
    /// Whether a prompt starts with `bos`.
    pub add_bos: Option<bool>,
    /// Whether a text ends with `eos`.
    pub add_eos: Option<bool>,
    /// Whether a text is tokenized as if a space came before it (`llama` only).
    pub add_space_prefix: Option<bool>,
    /// The model's name, for models whose special tokens swallow the space behind them.
    pub model_name: Option<String>,
}

impl TokenizerData {
    /// Checks that the per-token lists have one entry per token and that every special id is in the vocabulary.
    ///
    /// # Errors
    /// [`TokenizerError::Missing`] or [`TokenizerError::Metadata`], naming the key.
    pub(super) fn validate(&self) -> Result<(), TokenizerError> {
        let n_tokens = self.tokens.len();
        if n_tokens == 0 {
            return Err(TokenizerError::Missing { key: "tokenizer.ggml.tokens" });
        }
        if u32::try_from(n_tokens).is_err() {
            return Err(metadata("tokenizer.ggml.tokens", "fewer than 2^32 tokens", n_tokens));
        }
        for (key, len) in
            [("tokenizer.ggml.scores", self.scores.len()), ("tokenizer.ggml.token_type", self.kinds.len())]
        {
            if len != 0 && len != n_tokens {
                return Err(metadata(
                    key,
                    format!("one entry for each of {n_tokens} tokens"),
                    format!("{len} entries"),
                ));
            }
        }
        for (key, id) in [
            ("tokenizer.ggml.bos_token_id", self.bos),
            ("tokenizer.ggml.eos_token_id", self.eos),
            ("tokenizer.ggml.eot_token_id", self.eot),
            ("tokenizer.ggml.eom_token_id", self.eom),
            ("tokenizer.ggml.unknown_token_id", self.unk),
            ("tokenizer.ggml.padding_token_id", self.pad),
        ] {
            if let Some(id) = id.filter(|&id| id as usize >= n_tokens) {
                return Err(metadata(key, format!("an id below {n_tokens}"), id));
            }
        }
        Ok(())
    }
}

/// A [`TokenizerError::Metadata`].
pub(super) fn metadata(key: &'static str, expected: impl ToString, found: impl ToString) -> TokenizerError {
    TokenizerError::Metadata { key, expected: expected.to_string(), found: found.to_string() }
}
