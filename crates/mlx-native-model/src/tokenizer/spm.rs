//! SentencePiece's byte-pair encoding: the characters of the whole text merge, the pair first whose token has the highest score.
//!
//! Spaces are written `▁` (U+2581). A character without a token becomes one token per byte.

use super::data::metadata;
use super::merge::{Merged, Merger};
use super::texts::TextNumbers;
use super::{TokenizerData, TokenizerError};

/// What stands for a space in the vocabulary.
pub(super) const SPACE: &str = "\u{2581}";

/// Not a token.
const NO_TOKEN: u32 = u32::MAX;

/// The rank of tokens that are not made by merging.
const NEVER: u32 = u32::MAX;

/// The byte that a token's text `<0xHH>` names.
pub(super) fn byte_named(text: &[u8]) -> Option<u8> {
    let hex = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let [high, low] = hex else { return None };
    let digit = |d: u8| char::from(d).to_digit(16);
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

/// The vocabulary by text.
pub(super) struct Spm {
    /// Each token's id.
    ids: TextNumbers,
    /// Each token's place in the order of falling scores; equal scores share a place.
    ranks: Vec<u32>,
    /// The token of each byte, for characters without one.
    byte_ids: Vec<u32>,
    /// The longest token, in bytes: no longer pair can merge.
    max_len: usize,
}

impl Spm {
    /// Reads tokens and scores; `data` is valid.
    pub fn new(data: &TokenizerData) -> Result<Self, TokenizerError> {
        let mut ids = TextNumbers::with_capacity(data.tokens.len());
        data.tokens.iter().for_each(|token| ids.push(token));
        let byte_ids = (0..=u8::MAX).map(|byte| {
            let named = ids.get(format!("<0x{byte:02X}>").as_bytes()).or_else(|| ids.get(&[byte]));
            named.or(data.unk).ok_or(TokenizerError::ByteWithoutToken(byte))
        });
        let byte_ids = byte_ids.collect::<Result<_, _>>()?;
        let max_len = data.tokens.iter().map(Vec::len).max().unwrap_or(0);
        Ok(Spm { ids, ranks: ranks(data)?, byte_ids, max_len })
    }

    /// Appends the ids of `text`, in which spaces are already `▁`.
    pub fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let bytes = text.as_bytes();
        let mut merger = Merger::default();
        for (start, c) in text.char_indices() {
            let len = c.len_utf8();
            let id = self.ids.get(&bytes[start..start + len]).unwrap_or(NO_TOKEN);
            merger.push(len as u32, id);
        }
        let symbols = merger.run(|left, right| {
            let len = (left.len + right.len) as usize;
            if len > self.max_len {
                return None;
            }
            let start = left.start as usize;
            let id = self.ids.get(&bytes[start..start + len])?;
            Some(Merged { rank: self.ranks[id as usize], id }).filter(|merged| merged.rank != NEVER)
        });
        for symbol in symbols {
            if symbol.id != NO_TOKEN {
                out.push(symbol.id);
            } else {
                let bytes = &bytes[symbol.start as usize..(symbol.start + symbol.len) as usize];
                out.extend(bytes.iter().map(|&b| self.byte_ids[b as usize]));
            }
        }
    }
}

/// Each token's place in the order of falling scores. Without scores all are equal.
fn ranks(data: &TokenizerData) -> Result<Vec<u32>, TokenizerError> {
    if data.scores.is_empty() {
        return Ok(vec![0; data.tokens.len()]);
    }
    if let Some(id) = data.scores.iter().position(|score| score.is_nan()) {
        return Err(metadata("tokenizer.ggml.scores", "numbers", format!("NaN for token {id}")));
    }
    // Adding zero makes -0 and 0 the same score for `total_cmp` too.
    let mut falling: Vec<f32> = data.scores.iter().map(|score| score + 0.0).collect();
    falling.sort_unstable_by(|a, b| b.total_cmp(a));
    falling.dedup();
    let rank = |score: &f32| match *score {
        f32::NEG_INFINITY => NEVER,
        _ => falling.partition_point(|other| other > score) as u32,
    };
    Ok(data.scores.iter().map(rank).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_names() {
        assert_eq!(byte_named(b"<0x0A>"), Some(10));
        assert_eq!(byte_named(b"<0xff>"), Some(255));
        assert_eq!(byte_named(b"<0xF>"), None);
        assert_eq!(byte_named(b"<0x+1>"), None);
        assert_eq!(byte_named(b"x"), None);
    }

    #[test]
    fn ranks_follow_falling_scores() {
        let tokens = vec![vec![b'a'], vec![b'b'], vec![b'c'], vec![b'd']];
        let mut data = TokenizerData { tokens, scores: vec![-1.0, 0.0, -3.0, -0.0], ..Default::default() };
        assert_eq!(ranks(&data).unwrap(), [1, 0, 2, 0]);
        data.scores[0] = f32::NEG_INFINITY;
        assert_eq!(ranks(&data).unwrap(), [NEVER, 0, 1, 0]);
        data.scores[1] = f32::NAN;
        assert!(matches!(ranks(&data), Err(TokenizerError::Metadata { key: "tokenizer.ggml.scores", .. })));
    }
}
