//! Pre-tokenizers: how byte-level BPE cuts text into words before it merges inside each word.
//!
//! A pre-tokenizer is a list of rules that apply one after the other, each to the pieces that the one before it left. A rule is
//! a regular expression; its matches and the gaps between them become pieces.
//!
//! Published patterns end in `\s+(?!\S)|\s+`: a run of white space, less its last character where a word follows, because that
//! character belongs to the word. Here this is a second pattern `\s+` beside the main one, and the last character is given back
//! after the match. The patterns then need no lookahead and run as automata in linear time.

use std::ops::Range;

use regex_automata::Input;
use regex_automata::meta::Regex;

use super::TokenizerError;

/// One rule as the table below writes it.
struct RuleText {
    pattern: &'static str,
    /// Whether `\s+(?!\S)|\s+` follows the pattern.
    then_space: bool,
}

/// A pattern that stands alone.
const fn alone(pattern: &'static str) -> RuleText {
    RuleText { pattern, then_space: false }
}

/// A pattern with `\s+(?!\S)|\s+` behind it.
const fn then_space(pattern: &'static str) -> RuleText {
    RuleText { pattern, then_space: true }
}

/// A pre-tokenizer, and what else its name implies.
struct Entry {
    names: &'static [&'static str],
    rules: &'static [RuleText],
    /// A word that is a token stays whole, whatever the merges say.
    whole_words: bool,
    /// A prompt starts with `bos` unless the file says otherwise.
    add_bos: bool,
}

/// The words of GPT-2: contractions, letters, digits and other characters, each with the space before it.
const GPT2: RuleText = then_space(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");
/// One digit each.
const DIGIT: RuleText = alone(r"\p{N}");
/// Digits by threes, from the left.
const DIGITS_3: RuleText = alone(r"\p{N}{1,3}");
/// Chinese and Japanese, apart from everything else.
const CJK: RuleText = alone("[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+");
/// The words of GPT-4 with digits by threes.
const LLAMA3: RuleText = then_space(
    r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);
/// The words of GPT-4 with single digits.
const QWEN2: RuleText = then_space(
    r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);
/// Letters with their marks, punctuation with the letters behind it.
const DEEPSEEK3: RuleText = then_space(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"##,
);
/// Words of the o200k family: a capital starts a new word.
const TEKKEN: RuleText = then_space(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
);
/// The same with contractions kept on the word and digits by threes.
const GPT4O: RuleText = then_space(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?:'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL]))?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?:'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL]))?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
);
/// Anything but white space and the punctuation of several scripts, with the space before it.
const BLOOM: RuleText = alone(" ?[^(\\s|.,!?…。，、।۔،)]+");
/// What files without a named pre-tokenizer get.
const DEFAULT: &[RuleText] = &[alone(r"[\p{P}\$\+<=>\^~\|]+"), GPT2, alone(r"\p{N}+"), alone("[0-9][0-9][0-9]")];

/// An entry without further implications.
const fn entry(names: &'static [&'static str], rules: &'static [RuleText]) -> Entry {
    Entry { names, rules, whole_words: false, add_bos: false }
}

/// Every known name: the ones that GGUF converters write to `tokenizer.ggml.pre`, with the patterns of the models' own
/// `tokenizer.json` files.
const TABLE: &[Entry] = &[
    entry(&["default"], DEFAULT),
    entry(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        &[GPT2],
    ),
    entry(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[DIGIT, GPT2],
    ),
    Entry {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        rules: &[LLAMA3],
        whole_words: true,
        add_bos: true,
    },
    entry(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[LLAMA3]),
    Entry { names: &["glm4", "glm5"], rules: &[LLAMA3], whole_words: true, add_bos: false },
    entry(
        &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"],
        &[QWEN2],
    ),
    entry(
        &["qwen35"],
        &[then_space(
            r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+",
        )],
    ),
    entry(
        &["deepseek-coder"],
        &[
            alone(r"[\r\n]"),
            alone(r"\s?\p{L}+"),
            alone(r"\s?\p{P}+"),
            alone("[\u{4E00}-\u{9FA5}\u{0800}-\u{4E00}\u{AC00}-\u{D7FF}]+"),
            DIGIT,
        ],
    ),
    entry(&["deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"], &[DIGITS_3, CJK, DEEPSEEK3]),
    entry(&["falcon"], &[alone(r"[\p{P}\$\+<=>\^~\|`]+"), GPT2, alone("[0-9][0-9][0-9]")]),
    entry(&["poro-chat", "bloom", "gpt3-finnish"], &[BLOOM]),
    entry(&["viking"], &[BLOOM, DIGIT]),
    Entry { names: &["tekken"], rules: &[TEKKEN], whole_words: true, add_bos: true },
    entry(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    entry(
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        &[then_space(
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]",
        )],
    ),
    entry(
        &["seed-coder"],
        &[then_space(
            r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+",
        )],
    ),
];

/// A compiled rule: pattern 0 is the main one, pattern 1 is `\s+`.
struct Rule {
    regex: Regex,
}

/// The second pattern of a rule that ends in `\s+(?!\S)|\s+`.
const SPACE: usize = 1;

impl Rule {
    fn new(text: &RuleText) -> Result<Self, TokenizerError> {
        Self::compile(text.pattern, text.then_space)
    }

    /// A pattern as published `tokenizer.json` files write it.
    fn published(pattern: &str) -> Result<Self, TokenizerError> {
        let (main, then_space) = match pattern.strip_suffix(r"|\s+(?!\S)|\s+") {
            Some(main) => (main, true),
            None => (pattern, false),
        };
        // Without look-around, `(?i:` over contractions is all that asks for letters of either case, and they are ASCII.
        Self::compile(&main.replace("(?i:", "(?i-u:"), then_space)
    }

    fn compile(pattern: &str, then_space: bool) -> Result<Self, TokenizerError> {
        let patterns: &[&str] = if then_space { &[pattern, r"\s+"] } else { &[pattern] };
        let failed = |message: String| TokenizerError::Pattern { pattern: pattern.to_owned(), message };
        if ["(?=", "(?!", "(?<=", "(?<!"].iter().any(|look| pattern.contains(look)) {
            return Err(failed("look-around is not supported".into()));
        }
        let regex = Regex::new_many(patterns)
            .map_err(|e| failed(e.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ")))?;
        Ok(Rule { regex })
    }

    /// Appends the pieces of `text[piece]` to `out`. The piece is searched as if it were the whole text.
    fn apply(&self, text: &str, piece: Range<usize>, out: &mut Vec<Range<usize>>) {
        let part = &text[piece.clone()];
        let mut push = |from: usize, to: usize| {
            if from < to {
                out.push(piece.start + from..piece.start + to);
            }
        };
        let (mut done, mut at) = (0, 0);
        while let Some(found) = self.regex.find(Input::new(part).range(at..)) {
            let mut end = found.end();
            if found.pattern().as_usize() == SPACE && end < part.len() {
                let last = part[found.range()].chars().next_back().map_or(0, char::len_utf8);
                if last < found.len() {
                    end -= last;
                }
            }
            push(done, found.start());
            push(found.start(), end);
            (done, at) = (end, end);
        }
        push(done, part.len());
    }
}

/// Cuts text into words.
pub(super) struct PreTokenizer {
    rules: Vec<Rule>,
    /// A word that is a token stays whole, whatever the merges say.
    pub whole_words: bool,
    /// A prompt starts with `bos` unless the file says otherwise.
    pub add_bos: bool,
}

impl PreTokenizer {
    /// The pre-tokenizer of that name; `None` and the empty name give `default`.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownPreTokenizer`].
    pub fn named(name: Option<&str>) -> Result<Self, TokenizerError> {
        let name = name.filter(|name| !name.is_empty()).unwrap_or("default");
        let entry = TABLE
            .iter()
            .find(|entry| entry.names.contains(&name))
            .ok_or_else(|| TokenizerError::UnknownPreTokenizer(name.to_owned()))?;
        let rules = entry.rules.iter().map(Rule::new).collect::<Result<_, _>>()?;
        Ok(PreTokenizer { rules, whole_words: entry.whole_words, add_bos: entry.add_bos })
    }

    /// A pre-tokenizer without a name, by its published patterns.
    ///
    /// # Errors
    /// [`TokenizerError::Pattern`].
    pub fn from_patterns(patterns: &[String]) -> Result<Self, TokenizerError> {
        let rules = patterns.iter().map(|pattern| Rule::published(pattern)).collect::<Result<_, _>>()?;
        Ok(PreTokenizer { rules, whole_words: false, add_bos: false })
    }

    /// The words of `text`, in order; together they are the whole text.
    pub fn split(&self, text: &str) -> Vec<Range<usize>> {
        let mut pieces: Vec<Range<usize>> = std::iter::once(0..text.len()).collect();
        let mut next = Vec::new();
        for rule in &self.rules {
            next.clear();
            next.reserve(pieces.len().max(text.len() / 4));
            for piece in pieces.drain(..) {
                rule.apply(text, piece, &mut next);
            }
            std::mem::swap(&mut pieces, &mut next);
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        let pieces = PreTokenizer::named(Some(name)).unwrap().split(text);
        pieces.into_iter().map(|p| &text[p]).collect()
    }

    #[test]
    fn gpt2() {
        assert_eq!(
            words("gpt-2", "I'm  here's 12 !?\n\nx"),
            ["I", "'m", " ", " here", "'s", " 12", " !?", "\n", "\n", "x"]
        );
        assert_eq!(words("gpt-2", "tail   "), ["tail", "   "]);
        assert_eq!(words("gpt-2", ""), [""; 0]);
        assert_eq!(words("gpt-2", "\tx"), ["\t", "x"]);
    }

    #[test]
    fn smollm_takes_digits_one_by_one() {
        assert_eq!(words("smollm", "a 123b"), ["a", " ", "1", "2", "3", "b"]);
        assert_eq!(words("smollm", "9  9"), ["9", "  ", "9"]);
    }

    #[test]
    fn llama3() {
        assert_eq!(
            words("llama-bpe", "It'S 12345 a.b \n\n  x"),
            ["It", "'S", " ", "123", "45", " a", ".b", " \n\n", " ", " x"]
        );
        assert_eq!(words("llama-bpe", "  \n"), ["  \n"]);
        assert_eq!(words("qwen2", "x 12"), ["x", " ", "1", "2"]);
    }

    #[test]
    fn deepseek() {
        assert_eq!(words("deepseek-v3", "1234日本go, .x"), ["123", "4", "日本", "go", ",", " .", "x"]);
        assert_eq!(words("deepseek-coder", "a b\n12"), ["a", " b", "\n", "1", "2"]);
    }

    #[test]
    fn o200k_breaks_at_capitals() {
        assert_eq!(words("gpt-4o", "camelCase's HTTPServer"), ["camel", "Case's", " HTTPServer"]);
        assert_eq!(words("tekken", "1/\nx"), ["1", "/\n", "x"]);
    }

    #[test]
    fn every_entry_compiles_and_keeps_the_text() {
        let text = "Hello  wörld'll 123 4567\r\n\t\u{3000}日本語テスト 가나다 🙂👩\u{200D}💻 \u{1}\u{85}x…! ";
        for entry in TABLE {
            for name in entry.names {
                assert_eq!(words(name, text).concat(), text, "{name}");
            }
        }
    }

    #[test]
    fn published_patterns_cut_as_their_names_do() {
        let text = "It'S 12345 a.b \n\n  x don't CAN'T  9  9\t日本 é!? tail   ";
        for name in ["gpt-2", "smollm", "llama-bpe", "qwen2"] {
            let patterns = super::super::huggingface::patterns_of(name).unwrap();
            let patterns: Vec<String> = patterns.iter().map(|&p| p.to_owned()).collect();
            let pieces = PreTokenizer::from_patterns(&patterns).unwrap().split(text);
            let pieces: Vec<&str> = pieces.into_iter().map(|p| &text[p]).collect();
            assert_eq!(pieces, words(name, text), "{name}");
        }
        let unknown = PreTokenizer::from_patterns(&["(?<=a)b".to_owned()]);
        assert!(matches!(unknown, Err(TokenizerError::Pattern { .. })));
    }

    #[test]
    fn unknown_names_are_errors() {
        let error = PreTokenizer::named(Some("no-such")).err();
        assert!(matches!(error, Some(TokenizerError::UnknownPreTokenizer(name)) if name == "no-such"));
        assert!(PreTokenizer::named(None).is_ok());
    }
}
