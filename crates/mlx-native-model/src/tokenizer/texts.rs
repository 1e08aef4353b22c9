//! Many short texts and their numbers, in a few large allocations: a vocabulary has some hundred thousand.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

/// Texts by number.
#[derive(Default)]
pub(super) struct Texts {
    bytes: Vec<u8>,
    /// Where each text ends; it starts where the one before it ends.
    ends: Vec<usize>,
}

impl Texts {
    /// Room for `n` texts.
    pub fn with_capacity(n: usize) -> Self {
        Texts { bytes: Vec::with_capacity(n.saturating_mul(8)), ends: Vec::with_capacity(n) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Appends a text, whose number is the former length.
    pub fn push(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len());
    }

    /// The text of that number.
    pub fn get(&self, number: u32) -> Option<&[u8]> {
        let number = number as usize;
        let &end = self.ends.get(number)?;
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.bytes[start..end])
    }
}

/// Numbers by text. Of equal texts the first one's number counts.
pub(super) struct TextNumbers {
    texts: Texts,
    numbers: HashTable<u32>,
    hasher: RandomState,
}

impl TextNumbers {
    /// Room for `n` texts.
    pub fn with_capacity(n: usize) -> Self {
        TextNumbers {
            texts: Texts::with_capacity(n),
            numbers: HashTable::with_capacity(n),
            hasher: RandomState::default(),
        }
    }

    /// Takes up the next number with a text that cannot be found.
    pub fn skip(&mut self) {
        self.texts.push(&[]);
    }

    /// Takes up the next number; the text is found by it unless it has one already.
    pub fn push(&mut self, text: &[u8]) {
        let number = self.texts.len() as u32;
        let hash = self.hasher.hash_one(text);
        if self.numbers.find(hash, |&n| self.texts.get(n) == Some(text)).is_none() {
            let (texts, hasher) = (&self.texts, &self.hasher);
            self.numbers.insert_unique(hash, number, |&n| hasher.hash_one(texts.get(n).unwrap_or_default()));
        }
        self.texts.push(text);
    }

    /// The number of a text.
    pub fn get(&self, text: &[u8]) -> Option<u32> {
        self.numbers.find(self.hasher.hash_one(text), |&n| self.texts.get(n) == Some(text)).copied()
    }

    /// The number of a text, the next one if it has none.
    pub fn get_or_push(&mut self, text: &[u8]) -> u32 {
        self.get(text).unwrap_or_else(|| {
            self.push(text);
            (self.texts.len() - 1) as u32
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_texts_counts() {
        let mut numbers = TextNumbers::with_capacity(0);
        for text in ["a", "bc", "a", ""] {
            numbers.push(text.as_bytes());
        }
        numbers.skip();
        assert_eq!(["a", "bc", "", "b"].map(|text| numbers.get(text.as_bytes())), [Some(0), Some(1), Some(3), None]);
        assert_eq!([5, 5, 1], ["d", "d", "bc"].map(|text| numbers.get_or_push(text.as_bytes())));
        assert_eq!(
            [0, 1, 2, 4, 5, 6].map(|n| numbers.texts.get(n)),
            [Some(&b"a"[..]), Some(b"bc"), Some(b"a"), Some(b""), Some(b"d"), None]
        );
        for i in 0..2000 {
            assert_eq!(numbers.get_or_push(format!("text {i}").as_bytes()), 6 + i);
        }
        assert_eq!(numbers.get(b"text 1234"), Some(1240));
    }
}
