//! Pairwise merging, the core of both kinds of tokenizer.
//!
//! A text starts as a chain of symbols. Again and again the adjacent pair with the lowest rank (the leftmost of equals)
//! becomes one symbol, until no pair can merge. Candidates wait in a heap and are checked when they come out, so a text of
//! `n` symbols costs `O(n log n)`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No neighbour.
const NONE: u32 = u32::MAX;

/// A stretch of the text that is one symbol.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol {
    /// Offset of the first byte.
    pub start: u32,
    /// Bytes; 0 once the left neighbour has swallowed this symbol.
    pub len: u32,
    /// What the vocabulary calls this symbol; the meaning is the caller's.
    pub id: u32,
    prev: u32,
    next: u32,
}

/// What a pair merges to.
pub(super) struct Merged {
    /// Pairs of lower rank merge first.
    pub rank: u32,
    /// The new symbol's id.
    pub id: u32,
}

/// A pair that may merge: ordered by rank, then by place. `len` is the pair's length when it was found: lengths only grow, so
/// the pair is still the same exactly when its length is.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: u32,
    len: u32,
    id: u32,
}

/// The working memory of [`Merger::run`], kept to save allocations from one word to the next.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    /// Removes all symbols.
    pub fn clear(&mut self) {
        self.symbols.clear();
        self.queue.clear();
    }

    /// Appends a symbol of `len` bytes behind the last one.
    pub fn push(&mut self, len: u32, id: u32) {
        let start = self.symbols.last().map_or(0, |s| s.start + s.len);
        self.symbols.push(Symbol { start, len, id, prev: NONE, next: NONE });
    }

    /// Merges until `pair` has nothing more to offer, and returns what is left, in order.
    pub fn run(&mut self, pair: impl Fn(&Symbol, &Symbol) -> Option<Merged>) -> impl Iterator<Item = Symbol> {
        let n = self.symbols.len();
        for i in 1..n {
            self.symbols[i].prev = (i - 1) as u32;
            self.symbols[i - 1].next = i as u32;
        }
        for i in 1..n {
            self.offer((i - 1) as u32, i as u32, &pair);
        }
        while let Some(Reverse(candidate)) = self.queue.pop() {
            let left = self.symbols[candidate.left as usize];
            if left.len == 0 || left.next == NONE {
                continue;
            }
            let right = self.symbols[left.next as usize];
            if left.len + right.len != candidate.len {
                continue;
            }
            self.symbols[left.next as usize].len = 0;
            let merged = &mut self.symbols[candidate.left as usize];
            merged.len = candidate.len;
            merged.id = candidate.id;
            merged.next = right.next;
            if right.next != NONE {
                self.symbols[right.next as usize].prev = candidate.left;
            }
            self.offer(left.prev, candidate.left, &pair);
            self.offer(candidate.left, right.next, &pair);
        }
        self.symbols.iter().filter(|s| s.len != 0).copied()
    }

    fn offer(&mut self, left: u32, right: u32, pair: &impl Fn(&Symbol, &Symbol) -> Option<Merged>) {
        if left == NONE || right == NONE {
            return;
        }
        let (l, r) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        if let Some(Merged { rank, id }) = pair(l, r) {
            let len = l.len + r.len;
            self.queue.push(Reverse(Candidate { rank, left, len, id }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Merges the letters of `text` by a table of pairs in order of priority.
    fn merge(text: &str, table: &[(&str, &str)]) -> Vec<String> {
        let mut merger = Merger::default();
        for _ in text.bytes() {
            merger.push(1, 0);
        }
        let slice = |s: &Symbol| &text[s.start as usize..(s.start + s.len) as usize];
        let symbols = merger.run(|l, r| {
            let rank = table.iter().position(|&(a, b)| (a, b) == (slice(l), slice(r)))?;
            Some(Merged { rank: rank as u32, id: 0 })
        });
        symbols.map(|s| slice(&s).to_owned()).collect()
    }

    #[test]
    fn lower_ranks_first_then_left_to_right() {
        assert_eq!(merge("aaa", &[("a", "a")]), ["aa", "a"]);
        assert_eq!(merge("aaaa", &[("a", "a"), ("aa", "aa")]), ["aaaa"]);
        assert_eq!(merge("abc", &[("b", "c"), ("a", "b")]), ["a", "bc"]);
        assert_eq!(merge("abc", &[("a", "b"), ("b", "c")]), ["ab", "c"]);
        assert_eq!(merge("abcab", &[("a", "b"), ("ab", "c"), ("abc", "ab")]), ["abcab"]);
        assert_eq!(merge("", &[("a", "b")]), [""; 0]);
    }
}
