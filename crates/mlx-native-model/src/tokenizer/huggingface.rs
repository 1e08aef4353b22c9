//! A tokenizer from a directory in Hugging Face's layout: `tokenizer.json`, and `tokenizer_config.json` beside it.
//!
//! The file describes a pipeline of general parts. The pipelines of published models come down to the two kinds that this module's parent has, so it is
//! read into the same data as a GGUF file's metadata; a part that has no counterpart is an error, because leaving it out would silently give other ids.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::{TokenKind, Tokenizer, TokenizerData, TokenizerError};

/// Patterns of published `tokenizer.json` files whose pre-tokenizer has a name in GGUF files.
const NAMED: &[(&str, &[&str])] = &[
    ("gpt-2", &[GPT2]),
    ("smollm", &[r"\p{N}", GPT2]),
    (
        "llama-bpe",
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
    (
        "qwen2",
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    ),
];

/// What the part `ByteLevel` cuts text with.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The published patterns of a pre-tokenizer that has a name in GGUF files.
pub(super) fn patterns_of(name: &str) -> Option<&'static [&'static str]> {
    NAMED.iter().find(|(named, _)| *named == name).map(|(_, patterns)| *patterns)
}

impl Tokenizer {
    /// The tokenizer of a model directory.
    ///
    /// # Errors
    /// As [`TokenizerData::from_dir`], and those of [`Tokenizer::new`].
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        Self::new(&TokenizerData::from_dir(dir)?)
    }
}

impl TokenizerData {
    /// Reads `tokenizer.json` and, where they exist, `tokenizer_config.json`, `generation_config.json` and `config.json`, which name the tokens that
    /// begin and end a text.
    ///
    /// # Errors
    /// [`TokenizerError::Directory`] that names the file and what is missing, malformed or not supported.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let dir = dir.as_ref();
        let path = dir.join("tokenizer.json");
        let json = read_json(&path)?.ok_or_else(|| {
            let has_model = dir.join("tokenizer.model").exists();
            let hint = if has_model { "; a tokenizer.model alone is not supported" } else { "" };
            error(&path, format!("the tokenizer is missing{hint}"))
        })?;
        let config = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let ids = [read_json(&dir.join("generation_config.json"))?, read_json(&dir.join("config.json"))?];
        let mut data = Pipeline { json: &json, config: &config }.data().map_err(|problem| error(&path, problem))?;
        let id_of = |key: &str| ids.iter().flatten().find_map(|config| config.get(key).filter(|id| !id.is_null()));
        let in_vocabulary = |id: &u32| (*id as usize) < data.tokens.len();
        let ends: Vec<u32> = id_of("eos_token_id").map(numbers).unwrap_or_default();
        let ends: Vec<u32> = ends.into_iter().filter(in_vocabulary).collect();
        data.bos = data.bos.or_else(|| id_of("bos_token_id").map(numbers)?.first().copied().filter(in_vocabulary));
        data.eos = data.eos.or(ends.first().copied());
        data.ends = ends;
        Ok(data)
    }
}

/// A JSON file; `None` where there is none.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>, TokenizerError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(error(path, e)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| error(path, e))
}

fn error(path: &Path, problem: impl ToString) -> TokenizerError {
    TokenizerError::Directory { path: path.display().to_string(), problem: problem.to_string() }
}

/// An id, or a list of them.
fn numbers(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        one_value => one(one_value).into_iter().collect(),
    }
}

/// The text of a token that is written as text or as an object with it.
fn token_text(value: Option<&Value>) -> Option<&str> {
    let value = value?;
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The parts of a part that may be a sequence of them.
fn parts<'a>(part: Option<&'a Value>, key: &str) -> Vec<&'a Value> {
    match part {
        None | Some(Value::Null) => Vec::new(),
        Some(part) if kind(part) == "Sequence" => {
            let inner = part.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            inner.iter().flat_map(|part| parts(Some(part), key)).collect()
        }
        Some(part) => vec![part],
    }
}

fn kind(part: &Value) -> &str {
    part.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn flag(part: &Value, key: &str) -> bool {
    part.get(key).and_then(Value::as_bool).unwrap_or(false)
}

struct Pipeline<'a> {
    json: &'a Value,
    config: &'a Value,
}

impl Pipeline<'_> {
    fn data(&self) -> Result<TokenizerData, String> {
        let model = self.json.get("model").ok_or("`model` is missing")?;
        match kind(model) {
            "BPE" => {}
            // Files of the first version name no type.
            "" if model.get("merges").is_some() => {}
            other => return Err(format!("`model.type`: expected BPE, found `{other}`")),
        }
        let mut data = TokenizerData::default();
        let pre = parts(self.json.get("pre_tokenizer"), "pretokenizers");
        let is_byte_level = pre.iter().any(|part| kind(part) == "ByteLevel");
        let unk = model.get("unk_token").and_then(Value::as_str);
        self.vocabulary(model, unk, is_byte_level, &mut data)?;
        let merges = merges(model)?;
        self.normalizer(is_byte_level, &mut data)?;
        if is_byte_level {
            data.model = "gpt2".into();
            data.whole_words = Some(flag(model, "ignore_merges"));
            data.merges = merges.into_iter().map(|(left, right)| format!("{left} {right}").into_bytes()).collect();
            let patterns = pre.into_iter().map(pattern).collect::<Result<Vec<_>, _>>()?;
            let patterns: Vec<String> = patterns.into_iter().flatten().collect();
            match NAMED.iter().find(|(_, named)| patterns.iter().eq(named.iter())) {
                Some((name, _)) => data.pre = Some((*name).into()),
                None => data.patterns = patterns,
            }
        } else if flag(model, "byte_fallback") {
            data.model = "llama".into();
            data.scores = scores(&data.tokens, &merges);
            for part in pre {
                match kind(part) {
                    "Metaspace" => {
                        let scheme = part.get("prepend_scheme").and_then(Value::as_str).unwrap_or("always");
                        data.add_space_prefix = Some(scheme != "never");
                    }
                    // Spaces are `▁` by then, so that nothing is cut.
                    "Split" if part.pointer("/pattern/String").and_then(Value::as_str) == Some(" ") => {}
                    other => return Err(format!("`pre_tokenizer`: `{other}` is not supported without bytes")),
                }
            }
        } else {
            return Err(
                "expected a tokenizer of bytes (pre-tokenizer `ByteLevel`) or one that falls back to them".into()
            );
        }
        let id_of = |name: &str| {
            let text = token_text(self.config.get(name))?;
            data.tokens.iter().position(|token| token == text.as_bytes()).map(|id| id as u32)
        };
        (data.bos, data.eos, data.pad) = (id_of("bos_token"), id_of("eos_token"), id_of("pad_token"));
        self.template(&mut data);
        Ok(data)
    }

    /// Tokens and their kinds.
    fn vocabulary(
        &self,
        model: &Value,
        unk: Option<&str>,
        is_byte_level: bool,
        data: &mut TokenizerData,
    ) -> Result<(), String> {
        let vocabulary =
            model.get("vocab").and_then(Value::as_object).ok_or("`model.vocab` is missing or no object")?;
        let added = self.json.get("added_tokens").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut tokens: Vec<(u32, &str, TokenKind)> = Vec::with_capacity(vocabulary.len() + added.len());
        let id = |text: &str, id: Option<&Value>| {
            let found = id.and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
            found.ok_or_else(|| format!("token `{text}` has no id"))
        };
        for (text, value) in vocabulary {
            let is_byte = !is_byte_level && super::spm::byte_named(text.as_bytes()).is_some();
            let kind = match is_byte {
                true => TokenKind::Byte,
                false if !is_byte_level && unk == Some(text) => TokenKind::Unknown,
                false => TokenKind::Normal,
            };
            tokens.push((id(text, Some(value))?, text, kind));
        }
        for token in added {
            let text = token_text(Some(token)).ok_or("an entry of `added_tokens` has no `content`")?;
            let kind = match flag(token, "special") {
                true if unk == Some(text) && !is_byte_level => TokenKind::Unknown,
                true => TokenKind::Control,
                false => TokenKind::UserDefined,
            };
            tokens.push((id(text, token.get("id"))?, text, kind));
        }
        let count = tokens.iter().map(|(id, ..)| *id as usize + 1).max().unwrap_or(0);
        // Ids are dense but for a few holes: a file that names a huge one is damaged.
        if count > 2 * tokens.len() + 65_536 {
            return Err(format!("token id {} among {} tokens", count - 1, tokens.len()));
        }
        data.tokens = (0..count).map(|id| format!("[unused {id}]").into_bytes()).collect();
        data.kinds = vec![TokenKind::Unused; count];
        for (id, text, kind) in tokens {
            data.tokens[id as usize] = text.as_bytes().to_vec();
            data.kinds[id as usize] = kind;
        }
        data.unk = unk.and_then(|unk| data.tokens.iter().position(|token| token == unk.as_bytes())).map(|id| id as u32);
        Ok(())
    }

    fn normalizer(&self, is_byte_level: bool, data: &mut TokenizerData) -> Result<(), String> {
        if !is_byte_level {
            data.add_space_prefix = Some(false);
        }
        for part in parts(self.json.get("normalizer"), "normalizers") {
            match kind(part) {
                "NFC" => data.composes = true,
                "Prepend"
                    if !is_byte_level && part.get("prepend").and_then(Value::as_str) == Some(super::spm::SPACE) =>
                {
                    data.add_space_prefix = Some(true);
                }
                "Replace"
                    if !is_byte_level
                        && part.pointer("/pattern/String").and_then(Value::as_str) == Some(" ")
                        && part.get("content").and_then(Value::as_str) == Some(super::spm::SPACE) => {}
                other => return Err(format!("`normalizer`: `{other}` is not supported")),
            }
        }
        Ok(())
    }

    /// Whether a text begins with `bos` and ends with `eos`.
    fn template(&self, data: &mut TokenizerData) {
        let templates = parts(self.json.get("post_processor"), "processors");
        let template = templates.into_iter().find(|part| kind(part) == "TemplateProcessing");
        let Some(pieces) = template.and_then(|template| template.get("single")?.as_array()) else {
            data.add_bos = Some(flag(self.config, "add_bos_token"));
            data.add_eos = Some(flag(self.config, "add_eos_token"));
            return;
        };
        let special = |piece: Option<&Value>, id: Option<u32>| {
            let text = piece.and_then(|piece| piece.pointer("/SpecialToken/id")?.as_str());
            text.zip(id.and_then(|id| data.tokens.get(id as usize)))
                .is_some_and(|(text, token)| token == text.as_bytes())
        };
        let (first, last) = (special(pieces.first(), data.bos), special(pieces.last(), data.eos));
        (data.add_bos, data.add_eos) = (Some(first), Some(last));
    }
}

/// The pattern of a part of the pre-tokenizer; `None` where it cuts nothing.
fn pattern(part: &Value) -> Result<Option<String>, String> {
    match kind(part) {
        "ByteLevel" if flag(part, "add_prefix_space") => {
            Err("`pre_tokenizer`: `add_prefix_space` is not supported".into())
        }
        // Whether the pattern is used has to be said: it is where nothing is.
        "ByteLevel" => Ok(part.get("use_regex").and_then(Value::as_bool).unwrap_or(true).then(|| GPT2.to_owned())),
        "Digits" => Ok(Some(if flag(part, "individual_digits") { r"\p{N}" } else { r"\p{N}+" }.to_owned())),
        "Split" => {
            let regex = part.pointer("/pattern/Regex").and_then(Value::as_str);
            let isolated = part.get("behavior").and_then(Value::as_str) == Some("Isolated") && !flag(part, "invert");
            let inverted = part.get("behavior").and_then(Value::as_str) == Some("Removed") && flag(part, "invert");
            match regex {
                // Keeping what matches is the same as cutting there, for patterns that match everything.
                Some(regex) if isolated || inverted => Ok(Some(regex.to_owned())),
                _ => Err(format!("`pre_tokenizer`: this `Split` is not supported: {part}")),
            }
        }
        other => Err(format!("`pre_tokenizer`: `{other}` is not supported")),
    }
}

/// The pairs to merge, first one first: `"left right"`, or in newer files `["left", "right"]`.
fn merges(model: &Value) -> Result<Vec<(&str, &str)>, String> {
    let list = model.get("merges").and_then(Value::as_array).ok_or("`model.merges` is missing or no list")?;
    list.iter()
        .enumerate()
        .map(|(rank, merge)| {
            let pair = match merge {
                Value::String(text) => text.split_once(' '),
                Value::Array(pair) => match pair.as_slice() {
                    [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
                    _ => None,
                },
                _ => None,
            };
            pair.ok_or_else(|| format!("`model.merges`: expected two tokens at index {rank}, found {merge}"))
        })
        .collect()
}

/// Scores under which SentencePiece's algorithm merges in the order of the list: a token's is the lower the later the first pair that makes it. What no pair makes
/// is never merged.
fn scores(tokens: &[Vec<u8>], merges: &[(&str, &str)]) -> Vec<f32> {
    let mut ranks: HashMap<Vec<u8>, usize> = HashMap::with_capacity(merges.len());
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry([left.as_bytes(), right.as_bytes()].concat()).or_insert(rank);
    }
    tokens.iter().map(|token| ranks.get(token).map_or(f32::NEG_INFINITY, |&rank| -(rank as f32))).collect()
}
