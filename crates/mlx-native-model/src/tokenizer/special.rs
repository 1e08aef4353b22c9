//! Special tokens in the midst of text.
//!
//! A special token is found by its text before anything else looks at that text. Longer tokens go first: all occurrences of the
//! longest ones are cut out of the text, then those of the next length in what is left. Only tokens that are valid UTF-8 take
//! part, so that a cut never falls inside a character.

use std::collections::BTreeMap;
use std::ops::Range;

use aho_corasick::AhoCorasick;

use super::TokenizerError;

/// A piece of the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fragment {
    /// Text (bytes of the input) that still has to be tokenized.
    Text(Range<usize>),
    /// A special token.
    Token(u32),
}

/// A special token: its id, and how it treats its surroundings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Special {
    pub id: u32,
    /// Recognised even where special tokens are taken for plain text.
    pub always: bool,
    /// The white space behind the token belongs to it.
    pub strips_right: bool,
}

/// All special tokens of one length.
struct Level {
    /// Every token of that length.
    all: Matcher,
    /// Those that are recognised always.
    always: Option<Matcher>,
}

struct Matcher {
    automaton: AhoCorasick,
    specials: Vec<Special>,
}

impl Matcher {
    fn new(entries: &[(&[u8], Special)]) -> Result<Self, TokenizerError> {
        let automaton = AhoCorasick::new(entries.iter().map(|(text, _)| text))
            .map_err(|e| TokenizerError::Pattern { pattern: "special tokens".to_owned(), message: e.to_string() })?;
        Ok(Matcher { automaton, specials: entries.iter().map(|&(_, special)| special).collect() })
    }
}

/// Splits text at special tokens.
pub(super) struct SpecialSplitter {
    /// Longest first.
    levels: Vec<Level>,
}

impl SpecialSplitter {
    /// A splitter for these texts; empty texts and broken characters are never found.
    pub fn new<'a>(specials: impl Iterator<Item = (&'a [u8], Special)>) -> Result<Self, TokenizerError> {
        let mut by_length: BTreeMap<usize, Vec<(&[u8], Special)>> = BTreeMap::new();
        for (text, special) in specials {
            if !text.is_empty() && std::str::from_utf8(text).is_ok() {
                by_length.entry(text.len()).or_default().push((text, special));
            }
        }
        let levels = by_length.into_values().rev().map(|entries| {
            let always: Vec<_> = entries.iter().copied().filter(|(_, special)| special.always).collect();
            let always = if always.is_empty() { None } else { Some(Matcher::new(&always)?) };
            Ok(Level { all: Matcher::new(&entries)?, always })
        });
        Ok(SpecialSplitter { levels: levels.collect::<Result<_, TokenizerError>>()? })
    }

    /// The fragments of `text`, in order; none for an empty text. Without `parse_special` only the tokens that are recognised
    /// always are cut out.
    pub fn split(&self, text: &str, parse_special: bool) -> Vec<Fragment> {
        let mut fragments = Vec::new();
        if text.is_empty() {
            return fragments;
        }
        fragments.push(Fragment::Text(0..text.len()));
        for level in &self.levels {
            let Some(matcher) = (if parse_special { Some(&level.all) } else { level.always.as_ref() }) else {
                continue;
            };
            if fragments.iter().any(|f| matches!(f, Fragment::Text(r) if matcher.automaton.is_match(&text[r.clone()])))
            {
                fragments = cut(text, &fragments, matcher);
            }
        }
        fragments
    }
}

/// Cuts the matcher's tokens out of every text fragment.
fn cut(text: &str, fragments: &[Fragment], matcher: &Matcher) -> Vec<Fragment> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(fragments.len() + 2);
    for fragment in fragments {
        let Fragment::Text(range) = fragment else {
            out.push(fragment.clone());
            continue;
        };
        let mut from = range.start;
        while let Some(found) = matcher.automaton.find(&bytes[from..range.end]) {
            let special = matcher.specials[found.pattern().as_usize()];
            if found.start() > 0 {
                out.push(Fragment::Text(from..from + found.start()));
            }
            out.push(Fragment::Token(special.id));
            from += found.end();
            if special.strips_right {
                from += bytes[from..range.end].iter().take_while(|&&b| is_space(b)).count();
            }
        }
        if from < range.end {
            out.push(Fragment::Text(from..range.end));
        }
    }
    out
}

/// White space as C's `isspace` has it: one byte more (vertical tab) than Rust's ASCII white space.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0B
}

#[cfg(test)]
mod tests {
    use super::*;

    fn splitter(strips_right: bool) -> SpecialSplitter {
        let tokens: [(&[u8], bool); 5] =
            [(b"<a>", false), (b"ab", true), (b"bcd", true), (b"\n\n", true), (b"\n", true)];
        let specials = tokens
            .iter()
            .enumerate()
            .map(|(id, &(text, always))| (text, Special { id: id as u32, always, strips_right }));
        SpecialSplitter::new(specials).unwrap()
    }

    fn show(text: &str, parse_special: bool, strips_right: bool) -> Vec<String> {
        let fragments = splitter(strips_right).split(text, parse_special);
        fragments
            .into_iter()
            .map(|f| match f {
                Fragment::Text(r) => format!("'{}'", &text[r]),
                Fragment::Token(id) => id.to_string(),
            })
            .collect()
    }

    #[test]
    fn longest_first_over_the_whole_text() {
        assert_eq!(show("abcd", true, false), ["'a'", "2"]);
        assert_eq!(show("abc", true, false), ["1", "'c'"]);
        assert_eq!(show("\n\n\n\n\n", true, false), ["3", "3", "4"]);
        assert_eq!(show("", true, false), [""; 0]);
    }

    #[test]
    fn control_tokens_only_on_request() {
        assert_eq!(show("x<a>ab", true, false), ["'x'", "0", "1"]);
        assert_eq!(show("x<a>ab", false, false), ["'x<a>'", "1"]);
    }

    #[test]
    fn stripping_swallows_white_space_behind_the_token() {
        assert_eq!(show("<a> \t\x0Bx <a>", true, true), ["0", "'x '", "0"]);
    }
}
