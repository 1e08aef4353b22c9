//! Byte-level byte-pair encoding, as GPT-2 introduced it.
//!
//! Text is cut into words by a [`PreTokenizer`]; inside a word, bytes merge to tokens by a list of pairs, the first pair of the
//! list first. Files write tokens and pairs in an alphabet where each byte is one printable character: bytes that are printable in
//! Latin-1 stand for themselves, the others are numbered from U+0100. Here everything is bytes.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::data::metadata;
use super::merge::{Merged, Merger};
use super::pre::PreTokenizer;
use super::texts::TextNumbers;
use super::{TokenizerData, TokenizerError};

/// The bytes that stand for themselves in the alphabet.
fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The characters of the alphabet: 188 bytes stand for themselves, 68 are numbered from U+0100.
const N_CHARS: usize = 0x100 + 68;

/// The byte that each character of the alphabet stands for.
pub(super) struct ByteAlphabet {
    bytes: [Option<u8>; N_CHARS],
}

impl ByteAlphabet {
    pub fn new() -> Self {
        let mut bytes = [None; N_CHARS];
        let mut numbered = 0x100;
        for byte in 0..=u8::MAX {
            let char = if is_plain(byte) { byte as usize } else { numbered };
            numbered += usize::from(!is_plain(byte));
            bytes[char] = Some(byte);
        }
        ByteAlphabet { bytes }
    }

    fn byte(&self, c: char) -> Option<u8> {
        self.bytes.get(c as usize).copied().flatten()
    }

    /// The bytes that `text` stands for; `None` if a character is not in the alphabet.
    pub fn decode(&self, text: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(text.len());
        for c in std::str::from_utf8(text).ok()?.chars() {
            out.push(self.byte(c)?);
        }
        Some(out)
    }

    /// The same, but characters outside the alphabet stand for themselves.
    pub fn decode_lossy(&self, text: &[u8]) -> Vec<u8> {
        let Ok(text) = std::str::from_utf8(text) else { return text.to_vec() };
        let mut out = Vec::with_capacity(text.len());
        for c in text.chars() {
            match self.byte(c) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        out
    }
}

/// The merges of one vocabulary.
pub(super) struct Bpe {
    pre: PreTokenizer,
    /// Ids from here on are no tokens: they name intermediate results of merges that the vocabulary does not hold.
    n_tokens: u32,
    /// The id of each byte.
    byte_ids: Vec<u32>,
    /// What a pair of ids merges to.
    merges: HashMap<(u32, u32), (u32, u32), RandomState>,
    /// The id of each token's bytes, kept where words that are tokens stay whole.
    words: Option<TextNumbers>,
}

impl Bpe {
    /// Reads tokens and merges; `data` is valid.
    pub fn new(data: &TokenizerData, alphabet: &ByteAlphabet) -> Result<Self, TokenizerError> {
        let mut pre = match data.patterns.as_slice() {
            [] => PreTokenizer::named(data.pre.as_deref())?,
            patterns => PreTokenizer::from_patterns(patterns)?,
        };
        pre.whole_words = data.whole_words.unwrap_or(pre.whole_words);
        if data.merges.is_empty() {
            return Err(TokenizerError::Missing { key: "tokenizer.ggml.merges" });
        }
        let mut ids = TextNumbers::with_capacity(data.tokens.len() + data.merges.len() / 8);
        for token in &data.tokens {
            match alphabet.decode(token) {
                Some(bytes) => ids.push(&bytes),
                None => ids.skip(),
            }
        }
        let n_tokens = data.tokens.len() as u32;
        let byte_ids = (0..=u8::MAX).map(|byte| ids.get_or_push(&[byte])).collect();
        let mut merges: HashMap<_, _, RandomState> = HashMap::default();
        merges.reserve(data.merges.len());
        for (rank, line) in data.merges.iter().enumerate() {
            let Some(space) = line.iter().skip(1).position(|&b| b == b' ').map(|p| p + 1) else {
                let found = format!("`{}` at index {rank}", String::from_utf8_lossy(line));
                return Err(metadata("tokenizer.ggml.merges", "two tokens with a space between them", found));
            };
            let (Some(mut left), Some(right)) = (alphabet.decode(&line[..space]), alphabet.decode(&line[space + 1..]))
            else {
                continue; // Bytes never become these characters: the pair cannot occur.
            };
            let pair = (ids.get_or_push(&left), ids.get_or_push(&right));
            left.extend_from_slice(&right);
            merges.entry(pair).or_insert((rank as u32, ids.get_or_push(&left)));
        }
        let words = pre.whole_words.then_some(ids);
        Ok(Bpe { pre, n_tokens, byte_ids, merges, words })
    }

    /// Whether a prompt starts with `bos` unless the file says otherwise.
    pub fn adds_bos(&self) -> bool {
        self.pre.add_bos
    }

    /// Appends the ids of `text`. Bytes that have no token are left out: vocabularies without all 256 bytes exist, and models
    /// have been trained on what this makes of their text.
    pub fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let mut merger = Merger::default();
        for word in self.pre.split(text) {
            let bytes = &text.as_bytes()[word];
            if let Some(id) = self.words.as_ref().and_then(|words| words.get(bytes)).filter(|&id| id < self.n_tokens) {
                out.push(id);
                continue;
            }
            merger.clear();
            for &b in bytes {
                merger.push(1, self.byte_ids[b as usize]);
            }
            let symbols = merger.run(|left, right| {
                let &(rank, id) = self.merges.get(&(left.id, right.id))?;
                Some(Merged { rank, id })
            });
            for symbol in symbols {
                if symbol.id < self.n_tokens {
                    out.push(symbol.id);
                } else {
                    let bytes = &bytes[symbol.start as usize..(symbol.start + symbol.len) as usize];
                    out.extend(bytes.iter().map(|&b| self.byte_ids[b as usize]).filter(|&id| id < self.n_tokens));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_a_bijection() {
        let alphabet = ByteAlphabet::new();
        let mut bytes: Vec<u8> = alphabet.bytes.iter().copied().flatten().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(alphabet.decode("Ġa".as_bytes()), Some(b" a".to_vec()));
        assert_eq!(alphabet.decode("ĊÃ©".as_bytes()), Some("\né".as_bytes().to_vec()));
        assert_eq!(alphabet.decode("日".as_bytes()), None);
        assert_eq!(alphabet.decode_lossy("Ġ日".as_bytes()), " 日".as_bytes());
    }
}
