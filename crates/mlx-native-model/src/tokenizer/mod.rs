//! Text to token ids and back, from the vocabulary that a model file carries.
//!
//! The vocabulary comes from a GGUF file's metadata or from a `tokenizer.json`. Two kinds of tokenizer are known, by GGUF's names: `gpt2`, byte-level byte-pair encoding with a pre-tokenizer that cuts
//! text into words, and `llama`, SentencePiece's byte-pair encoding over whole texts. Ids are those that llama.cpp gives.
//!
//! Text passes through these stages:
//!
//! 1. `special`: tokens that are recognised by their text are cut out. User-defined tokens always are; control tokens such as
//!    `<|im_end|>` only with [`EncodeOptions::parse_special`], so that what a user types cannot pretend to be structure.
//! 2. What is left between them goes to `bpe` or `spm`, which share the merging in `merge`.
//! 3. Begin and end of sequence are added as the file demands, with [`EncodeOptions::add_special`].
//!
//! [`Tokenizer::decode`] goes the way back at once, [`Detokenizer`] token by token, and [`StopMatcher`] ends a generation.

mod bpe;
mod data;
mod detokenizer;
mod error;
mod gguf;
pub(crate) mod huggingface;
mod huggingface_write;
mod merge;
mod pre;
mod roles;
mod special;
mod spm;
mod stop;
mod texts;

use std::borrow::Cow;
use std::collections::BTreeSet;

pub use data::{TokenKind, TokenizerData};
pub use detokenizer::Detokenizer;
pub use error::TokenizerError;
pub use stop::{StopMatcher, Stopped};

use bpe::{Bpe, ByteAlphabet};
use roles::Roles;
use special::{Fragment, Special, SpecialSplitter};
use spm::Spm;
use texts::Texts;
use unicode_normalization::{UnicodeNormalization, is_nfc};

/// What [`Tokenizer::encode`] does beside tokenizing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Add begin and end of sequence where the model file says so.
    pub add_special: bool,
    /// Take the text of a control token for that token. Right for a rendered chat template, wrong for a user's own text.
    pub parse_special: bool,
}

impl Default for EncodeOptions {
    /// A user's text at the start of a sequence.
    fn default() -> Self {
        EncodeOptions { add_special: true, parse_special: false }
    }
}

/// Whether control tokens show in decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpecialText {
    /// They decode to nothing.
    #[default]
    Hide,
    /// They decode to their text.
    Show,
}

/// What a model file's tokenizer does with text.
enum Algorithm {
    Bpe(Bpe),
    Spm(Spm),
}

/// A vocabulary, and the algorithm that cuts text into it.
pub struct Tokenizer {
    algorithm: Algorithm,
    special: SpecialSplitter,
    /// What each token decodes to.
    pieces: Texts,
    kinds: Vec<TokenKind>,
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    pad: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: bool,
    composes: bool,
    end_of_generation: BTreeSet<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let model = match self.algorithm {
            Algorithm::Bpe(_) => "gpt2",
            Algorithm::Spm(_) => "llama",
        };
        f.debug_struct("Tokenizer").field("model", &model).field("n_tokens", &self.pieces.len()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds the tokenizer that `data` describes.
    ///
    /// # Errors
    /// A [`TokenizerError`] that names the metadata key which is missing, malformed or unknown.
    pub fn new(data: &TokenizerData) -> Result<Self, TokenizerError> {
        data.validate()?;
        let alphabet = ByteAlphabet::new();
        let (algorithm, adds_bos) = match data.model.as_str() {
            "gpt2" => {
                let bpe = Bpe::new(data, &alphabet)?;
                let adds_bos = bpe.adds_bos();
                (Algorithm::Bpe(bpe), adds_bos)
            }
            "llama" => (Algorithm::Spm(Spm::new(data)?), true),
            other => return Err(TokenizerError::UnsupportedModel(other.to_owned())),
        };
        let is_spm = matches!(algorithm, Algorithm::Spm(_));
        let roles = Roles::new(data);

        // The only known models whose special tokens swallow the white space behind them.
        let name = data.model_name.as_deref().unwrap_or_default().to_lowercase();
        let strips_right = name.contains("phi-3") || name.contains("phi3");
        let special =
            SpecialSplitter::new(data.tokens.iter().zip(&roles.kinds).enumerate().filter_map(|(id, (text, kind))| {
                let always = match kind {
                    TokenKind::UserDefined => true,
                    TokenKind::Control | TokenKind::Unknown => false,
                    TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => return None,
                };
                let keeps_space = matches!(&text[..], b"<unk>" | b"<s>" | b"<|endoftext|>");
                Some((&text[..], Special { id: id as u32, always, strips_right: strips_right && !keeps_space }))
            }))?;

        let mut pieces = Texts::with_capacity(data.tokens.len());
        for (text, kind) in data.tokens.iter().zip(&roles.kinds) {
            match kind {
                TokenKind::Normal if is_spm => pieces.push(&text_of_spm(text)),
                TokenKind::Normal => pieces.push(&alphabet.decode_lossy(text)),
                TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined => pieces.push(text),
                TokenKind::Byte => pieces.push(spm::byte_named(text).as_slice()),
                TokenKind::Unused => pieces.push(&[]),
            }
        }

        Ok(Tokenizer {
            algorithm,
            special,
            pieces,
            kinds: roles.kinds,
            bos: data.bos,
            eos: data.eos,
            eot: roles.eot,
            pad: data.pad,
            add_bos: data.add_bos.unwrap_or(adds_bos),
            add_eos: data.add_eos.unwrap_or(false),
            add_space_prefix: is_spm && data.add_space_prefix.unwrap_or(true),
            composes: data.composes,
            end_of_generation: roles.end_of_generation,
        })
    }

    /// The ids of `text`.
    ///
    /// # Errors
    /// [`TokenizerError::TextTooLong`] from 2^30 bytes on.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        if text.len() >= 1 << 30 {
            return Err(TokenizerError::TextTooLong(text.len()));
        }
        let composed: Cow<'_, str> = if self.composes && !is_nfc(text) { text.nfc().collect() } else { text.into() };
        let text = &*composed;
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        if options.add_special && self.add_bos {
            out.extend(self.bos);
        }
        let mut after_special = true;
        for fragment in self.special.split(text, options.parse_special) {
            match fragment {
                Fragment::Token(id) => out.push(id),
                Fragment::Text(ref range) => {
                    let text = &text[range.clone()];
                    match &self.algorithm {
                        Algorithm::Bpe(bpe) => bpe.encode(text, &mut out),
                        Algorithm::Spm(spm) => {
                            let prefix = if self.add_space_prefix && after_special { spm::SPACE } else { "" };
                            spm.encode(&(prefix.to_owned() + &text.replace(' ', spm::SPACE)), &mut out);
                        }
                    }
                }
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
        if options.add_special && self.add_eos {
            out.extend(self.eos);
        }
        Ok(out)
    }

    /// The bytes of a token: a character's bytes can be spread over several tokens.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`].
    pub fn piece(&self, id: u32, special: SpecialText) -> Result<&[u8], TokenizerError> {
        let unknown = || TokenizerError::UnknownId { id, n_tokens: self.pieces.len() };
        let bytes = self.pieces.get(id).ok_or_else(unknown)?;
        let hidden = matches!(self.kind(id), Some(TokenKind::Control | TokenKind::Unknown));
        Ok(if hidden && special == SpecialText::Hide { &[] } else { bytes })
    }

    /// The bytes of a whole text. Where the tokenizer puts a space before every text, that space is taken away again.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`].
    pub fn decode_bytes(&self, ids: &[u32], special: SpecialText) -> Result<Vec<u8>, TokenizerError> {
        let mut out = Vec::with_capacity(ids.len() * 4);
        let mut at_start = self.add_space_prefix;
        for &id in ids {
            let piece = self.piece(id, special)?;
            if self.is_special(id) {
                at_start = self.add_space_prefix;
                out.extend_from_slice(piece);
            } else {
                out.extend_from_slice(piece.strip_prefix(b" ").filter(|_| at_start).unwrap_or(piece));
                at_start = false;
            }
        }
        Ok(out)
    }

    /// The text of a whole text's ids; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`].
    pub fn decode(&self, ids: &[u32], special: SpecialText) -> Result<String, TokenizerError> {
        let bytes = self.decode_bytes(ids, special)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// Tokens in the vocabulary.
    pub fn n_tokens(&self) -> usize {
        self.pieces.len()
    }

    /// The role of a token; `None` outside the vocabulary.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// Begin of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// End of turn.
    pub fn eot(&self) -> Option<u32> {
        self.eot
    }

    /// Padding.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// Whether [`EncodeOptions::add_special`] puts `bos` before a text. A chat template that writes `bos` itself must then be
    /// encoded without `add_special`.
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// The tokens that end a generation.
    pub fn end_of_generation(&self) -> &BTreeSet<u32> {
        &self.end_of_generation
    }

    /// Whether the token ends a generation.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_of_generation.contains(&id)
    }

    /// Whether text starts anew behind this token.
    fn is_special(&self, id: u32) -> bool {
        matches!(self.kind(id), Some(TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined))
    }
}

/// The text of an ordinary SentencePiece token: `▁` is a space.
fn text_of_spm(text: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(text) {
        Ok(text) => text.replace(spm::SPACE, " ").into_bytes(),
        Err(_) => text.to_vec(),
    }
}
