//! Text out of a stream of tokens.

use super::{SpecialText, Tokenizer, TokenizerError};

/// Turns token ids into text one by one, and never cuts a character: bytes wait until the character that they begin is whole.
///
/// ```
/// # use mlx_native_model::tokenizer::{Detokenizer, SpecialText, Tokenizer, TokenizerError};
/// fn print(tokenizer: &Tokenizer, ids: &[u32]) -> Result<(), TokenizerError> {
///     let mut detokenizer = Detokenizer::new(SpecialText::Hide);
///     for &id in ids {
///         print!("{}", detokenizer.push(tokenizer, id)?);
///     }
///     print!("{}", detokenizer.finish());
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Detokenizer {
    special: SpecialText,
    /// At most three bytes: the beginning of a character.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// A detokenizer at the start of a text.
    pub fn new(special: SpecialText) -> Self {
        Detokenizer { special, pending: Vec::new() }
    }

    /// The text that this token completes; empty while a character is still cut. Bytes that can be no part of any character
    /// become U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`]; the detokenizer is unchanged.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, TokenizerError> {
        self.pending.extend_from_slice(tokenizer.piece(id, self.special)?);
        let mut out = String::new();
        let mut rest = &self.pending[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, broken) = rest.split_at(error.valid_up_to());
                    out.push_str(&String::from_utf8_lossy(valid));
                    rest = broken;
                    let Some(len) = error.error_len() else { break };
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[len..];
                }
            }
        }
        self.pending = rest.to_vec();
        Ok(out)
    }

    /// What is left at the end: U+FFFD if the last character is cut, else nothing. The detokenizer is then at the start of a text.
    pub fn finish(&mut self) -> String {
        let out = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        out
    }
}
