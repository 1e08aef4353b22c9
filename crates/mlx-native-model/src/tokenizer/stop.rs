//! Where a generation ends.

use std::collections::BTreeSet;

use super::Tokenizer;

/// What [`StopMatcher::push`] says about a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// Text that is certain to be output.
    pub text: String,
    /// Whether a stop string follows that text; the stop string itself is never output.
    pub stop: bool,
}

/// Watches generated tokens for stop tokens and generated text for stop strings.
///
/// Text that may be the beginning of a stop string is held back until it is certain. Of several stop strings the one that is
/// complete first ends the text (of those complete at the same place, the longest), however the text is cut into pieces.
///
/// ```
/// # use mlx_native_model::tokenizer::StopMatcher;
/// let mut stop = StopMatcher::new(["\nUser:"], [2]);
/// assert_eq!(stop.push("Hello\nUs").text, "Hello");
/// assert_eq!(stop.push("ually").text, "\nUsually");
/// let end = stop.push(".\nUser: more");
/// assert_eq!((end.text.as_str(), end.stop), (".", true));
/// assert!(stop.is_stop_token(2));
/// ```
#[derive(Debug, Clone)]
pub struct StopMatcher {
    strings: Vec<String>,
    tokens: BTreeSet<u32>,
    /// Text that is not output yet: the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// A matcher for these strings (empty ones are ignored) and token ids.
    pub fn new(strings: impl IntoIterator<Item = impl Into<String>>, tokens: impl IntoIterator<Item = u32>) -> Self {
        let strings = strings.into_iter().map(Into::into).filter(|s: &String| !s.is_empty()).collect();
        StopMatcher { strings, tokens: tokens.into_iter().collect(), held: String::new(), stopped: false }
    }

    /// A matcher for these strings and the tokens that end a generation in the tokenizer's vocabulary.
    pub fn for_tokenizer(tokenizer: &Tokenizer, strings: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::new(strings, tokenizer.end_of_generation().iter().copied())
    }

    /// Whether the token ends the generation. Its text is not output.
    pub fn is_stop_token(&self, id: u32) -> bool {
        self.tokens.contains(&id)
    }

    /// Whether a stop string was found.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Takes generated text and gives back what may be output. After a stop, nothing more comes out.
    pub fn push(&mut self, text: &str) -> Stopped {
        if self.stopped {
            return Stopped { text: String::new(), stop: true };
        }
        self.held.push_str(text);
        let found = self.strings.iter().filter_map(|s| self.held.find(s.as_str()).map(|at| (at + s.len(), at)));
        if let Some((_, at)) = found.min() {
            self.stopped = true;
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return Stopped { text, stop: true };
        }
        let keep_from = self.held.len() - self.longest_beginning();
        let kept = self.held.split_off(keep_from);
        Stopped { text: std::mem::replace(&mut self.held, kept), stop: false }
    }

    /// What is held back, once no more text will come.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the held text that are the beginning of a stop string.
    fn longest_beginning(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = |s: &String| {
            let most = held.len().min(s.len() - 1);
            (1..=most).rev().find(|&n| held.ends_with(&s.as_bytes()[..n])).unwrap_or(0)
        };
        // The bytes kept start a string, so they start a character: cutting before them is sound.
        self.strings.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the pieces and returns the whole output and whether it stopped.
    fn feed(strings: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut stop = StopMatcher::new(strings.iter().copied(), []);
        let mut out = String::new();
        for piece in pieces {
            let stopped = stop.push(piece);
            out.push_str(&stopped.text);
            if stopped.stop {
                return (out, true);
            }
        }
        out.push_str(&stop.finish());
        (out, false)
    }

    #[test]
    fn every_cut_gives_the_same_text() {
        let cases: [(&[&str], &str, &str, bool); 7] = [
            (&["aab"], "aaab", "a", true),
            (&["abc", "bx"], "abx", "a", true),
            (&["abcd", "bc"], "abcd", "a", true),
            (&["bc", "abc"], "aabc", "a", true),
            (&["日本"], "日日本語", "日", true),
            (&["##"], "a#b#", "a#b#", false),
            (&[""], "abc", "abc", false),
        ];
        for (strings, text, expected, stops) in cases {
            let chars: Vec<String> = text.chars().map(String::from).collect();
            for cuts in 0..1u32 << (chars.len() - 1) {
                let mut pieces = vec![String::new()];
                for (i, c) in chars.iter().enumerate() {
                    if i > 0 && cuts >> (i - 1) & 1 == 1 {
                        pieces.push(String::new());
                    }
                    pieces.last_mut().unwrap().push_str(c);
                }
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                assert_eq!(feed(strings, &pieces), (expected.to_owned(), stops), "{strings:?} {pieces:?}");
            }
        }
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut stop = StopMatcher::new(["<end>"], []);
        assert_eq!(stop.push("a < b <e").text, "a < b ");
        assert_eq!(stop.push("x").text, "<ex");
        assert_eq!(stop.push("<end").text, "");
        assert_eq!(stop.finish(), "<end");
    }

    #[test]
    fn nothing_comes_after_a_stop() {
        let mut stop = StopMatcher::new(["."], [7]);
        assert_eq!(stop.push("a.b"), Stopped { text: "a".into(), stop: true });
        assert_eq!(stop.push("c"), Stopped { text: String::new(), stop: true });
        assert!(stop.stopped());
        assert_eq!(stop.finish(), "");
        assert!(stop.is_stop_token(7) && !stop.is_stop_token(8));
    }
}
