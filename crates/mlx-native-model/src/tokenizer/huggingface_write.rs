//! A tokenizer's data as the `tokenizer.json` and `tokenizer_config.json` of a model directory.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::huggingface::patterns_of;
use super::spm::SPACE;
use super::{TokenKind, TokenizerData, TokenizerError};

impl TokenizerData {
    /// The contents of `tokenizer.json` and `tokenizer_config.json`; the second gets the chat template too.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownPreTokenizer`] if no published patterns are known for the pre-tokenizer, [`TokenizerError::Metadata`] if a token is
    /// not UTF-8, [`TokenizerError::UnsupportedModel`].
    pub fn to_huggingface(&self, chat_template: Option<&str>) -> Result<(Value, Value), TokenizerError> {
        self.validate()?;
        let mut texts = Vec::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            let text = std::str::from_utf8(token);
            texts.push(
                text.map_err(|_| super::data::metadata("tokenizer.ggml.tokens", "UTF-8", format!("token {id}")))?,
            );
        }
        let kind = |id: usize| self.kinds.get(id).copied().unwrap_or_default();
        let is_added = |id: usize| matches!(kind(id), TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown);
        let added: Vec<Value> = (0..texts.len())
            .filter(|&id| is_added(id))
            .map(|id| {
                let special = kind(id) != TokenKind::UserDefined;
                json!({ "id": id, "content": texts[id], "single_word": false, "lstrip": false, "rstrip": false,
                        "normalized": false, "special": special })
            })
            .collect();
        let vocabulary: Map<String, Value> =
            texts.iter().enumerate().map(|(id, text)| ((*text).to_owned(), id.into())).collect();
        let text_of = |id: Option<u32>| id.and_then(|id| texts.get(id as usize).copied());
        let is_bpe = match self.model.as_str() {
            "gpt2" => true,
            "llama" => false,
            other => return Err(TokenizerError::UnsupportedModel(other.to_owned())),
        };
        let merges: Vec<String> = match is_bpe {
            true => self.merges.iter().map(|merge| String::from_utf8_lossy(merge).into_owned()).collect(),
            false => self.merges_by_score(&texts),
        };
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": text_of(self.unk).filter(|_| !is_bpe), "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": !is_bpe, "byte_fallback": !is_bpe, "ignore_merges": self.keeps_words(),
            "vocab": vocabulary, "merges": merges,
        });
        let adds_space = self.add_space_prefix.unwrap_or(true);
        let (normalizer, pre_tokenizer, decoder) = match is_bpe {
            true => (
                if self.composes { json!({ "type": "NFC" }) } else { Value::Null },
                self.pre_tokenizer()?,
                json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
            ),
            false => {
                let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
                let back = json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " });
                let prepend = json!({ "type": "Prepend", "prepend": SPACE });
                let strip = json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 });
                let (bytes, fuse) = (json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" }));
                let normalizers = if adds_space { vec![prepend, replace] } else { vec![replace] };
                let decoders = if adds_space { vec![back, bytes, fuse, strip] } else { vec![back, bytes, fuse] };
                (
                    json!({ "type": "Sequence", "normalizers": normalizers }),
                    Value::Null,
                    json!({ "type": "Sequence", "decoders": decoders }),
                )
            }
        };
        let adds_bos = self.add_bos.unwrap_or(!is_bpe || matches!(self.pre.as_deref(), Some("llama-bpe")));
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer, "post_processor": self.template(adds_bos, &text_of), "decoder": decoder, "model": model,
        });
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false,
            "model_max_length": 1_000_000_000, "add_bos_token": adds_bos, "add_eos_token": self.add_eos.unwrap_or(false),
        });
        for (key, id) in
            [("bos_token", self.bos), ("eos_token", self.eos), ("pad_token", self.pad), ("unk_token", self.unk)]
        {
            if let Some(text) = text_of(id) {
                config[key] = text.into();
            }
        }
        if let Some(template) = chat_template {
            config["chat_template"] = template.into();
        }
        Ok((tokenizer, config))
    }

    /// Whether words that are tokens stay whole.
    fn keeps_words(&self) -> bool {
        self.whole_words.unwrap_or(matches!(self.pre.as_deref(), Some("llama-bpe" | "llama3" | "llama-v3" | "tekken")))
    }

    fn pre_tokenizer(&self) -> Result<Value, TokenizerError> {
        let named = self.pre.as_deref().and_then(patterns_of).unwrap_or_default();
        let patterns: Vec<&str> = self.patterns.iter().map(String::as_str).chain(named.iter().copied()).collect();
        if patterns.is_empty() {
            let name = self.pre.clone().unwrap_or_else(|| "default".into());
            return Err(TokenizerError::UnknownPreTokenizer(name));
        }
        let mut parts: Vec<Value> = patterns
            .iter()
            .map(|pattern| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false }))
            .collect();
        parts.push(json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }));
        Ok(json!({ "type": "Sequence", "pretokenizers": parts }))
    }

    fn template<'a>(&self, adds_bos: bool, text_of: &impl Fn(Option<u32>) -> Option<&'a str>) -> Value {
        let bos = self.bos.filter(|_| adds_bos);
        let eos = self.eos.filter(|_| self.add_eos == Some(true));
        if bos.is_none() && eos.is_none() {
            return Value::Null;
        }
        let special = |id: Option<u32>, kind: u32| {
            text_of(id).map(|text| json!({ "SpecialToken": { "id": text, "type_id": kind } }))
        };
        let around = |sequence: &str, kind: u32| -> Vec<Value> {
            let text = json!({ "Sequence": { "id": sequence, "type_id": kind } });
            special(bos, kind).into_iter().chain([text]).chain(special(eos, kind)).collect()
        };
        let entry = |id: u32| {
            let text = text_of(Some(id)).unwrap_or_default();
            (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }))
        };
        let tokens: Map<String, Value> = [bos, eos].into_iter().flatten().map(entry).collect();
        let pair: Vec<Value> = around("A", 0).into_iter().chain(around("B", 1)).collect();
        json!({ "type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": tokens })
    }

    /// The merges of a SentencePiece vocabulary, which stores none: every way to put a token together from two others, that of the highest score first.
    fn merges_by_score(&self, texts: &[&str]) -> Vec<String> {
        let is_normal = |id: usize| self.kinds.get(id).copied().unwrap_or_default() == TokenKind::Normal;
        let ids: HashMap<&str, usize> =
            texts.iter().enumerate().filter(|(id, _)| is_normal(*id)).map(|(id, text)| (*text, id)).collect();
        let score = |id: usize| self.scores.get(id).copied().unwrap_or(0.0);
        let mut merges: Vec<(usize, &str, &str)> = Vec::new();
        for (&text, &id) in &ids {
            if score(id) == f32::NEG_INFINITY {
                continue;
            }
            for (at, _) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(at);
                if ids.contains_key(left) && ids.contains_key(right) {
                    merges.push((id, left, right));
                }
            }
        }
        let order = |(id, left, _): &(usize, &str, &str)| (*id, left.len());
        merges.sort_by(|a, b| score(b.0).total_cmp(&score(a.0)).then_with(|| order(a).cmp(&order(b))));
        merges.into_iter().map(|(_, left, right)| format!("{left} {right}")).collect()
    }
}
