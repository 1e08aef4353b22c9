//! Token ids of real vocabularies against llama.cpp's, recorded by `scripts/oracle/tokenize.py`.
//!
//! The models are looked for in the directory that `MLX_NATIVE_TEST_MODELS` names, else in the cache directory's
//! `mlx-native/models`; a test without its model says so and passes.

mod common;

use std::time::Instant;

use mlx_native::io::gguf::GgufFile;
use mlx_native_model::chat_template::{ChatTemplate, Message};
use mlx_native_model::tokenizer::{Detokenizer, EncodeOptions, SpecialText, Tokenizer, TokenizerData};

/// One line of the golden file.
#[derive(serde::Deserialize)]
struct Case {
    text: String,
    add_special: bool,
    parse_special: bool,
    /// For SmolLM2 and Gemma 3.
    ids: [Vec<u32>; 2],
}

fn cases() -> Vec<Case> {
    let golden = include_str!("tokenizer_golden.jsonl");
    let case = |line: &str| {
        let (text, add_special, parse_special, smollm2, gemma3) = serde_json::from_str(line).unwrap();
        Case { text, add_special, parse_special, ids: [smollm2, gemma3] }
    };
    golden.split_terminator('\n').map(case).collect()
}

/// The model's tokenizer, or `None` with a note where the file is absent.
fn tokenizer(file: &str) -> Option<Tokenizer> {
    let path = common::model(file)?;
    let start = Instant::now();
    let tokenizer = Tokenizer::from_gguf(&GgufFile::open(&path).unwrap()).unwrap();
    eprintln!("{file}: {} tokens read in {:?}", tokenizer.n_tokens(), start.elapsed());
    Some(tokenizer)
}

/// Compares all cases with the recorded ids of one model, and decodes them again.
fn check(file: &str, model: usize, drops_bytes: bool) {
    let Some(tokenizer) = tokenizer(file) else { return };
    let cases = cases();
    assert_eq!(cases.len(), 1000);
    let mut wrong = 0;
    for case in &cases {
        let options = EncodeOptions { add_special: case.add_special, parse_special: case.parse_special };
        let ids = tokenizer.encode(&case.text, options).unwrap();
        if ids != case.ids[model] {
            wrong += 1;
            eprintln!("{:?} {options:?}:\n  expected {:?}\n  found    {ids:?}", case.text, case.ids[model]);
        }

        let whole = tokenizer.decode(&ids, SpecialText::Show).unwrap();
        let mut detokenizer = Detokenizer::new(SpecialText::Show);
        let mut streamed: String = ids.iter().map(|&id| detokenizer.push(&tokenizer, id).unwrap()).collect();
        streamed += &detokenizer.finish();
        assert_eq!(streamed, whole);
        let without_bos = if case.add_special && tokenizer.adds_bos() { &ids[1..] } else { &ids };
        if !drops_bytes {
            // SentencePiece writes a space as `▁`, so that a `▁` in the text comes back as a space.
            let back = tokenizer.decode(without_bos, SpecialText::Show).unwrap();
            assert_eq!(back.replace('▁', " "), case.text.replace('▁', " "));
        }
    }
    assert_eq!(wrong, 0, "of {} cases", cases.len());
}

/// A model directory's tokenizer, written from the file's metadata, gives the same ids.
fn check_directory(file: &str, model: usize) {
    let Some(path) = common::model(file) else { return };
    let data = TokenizerData::from_gguf(&GgufFile::open(&path).unwrap()).unwrap();
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{file}.tokenizer"));
    std::fs::create_dir_all(&dir).unwrap();
    let (tokenizer, config) = data.to_huggingface(Some("{{ messages[0].content }}")).unwrap();
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    let start = Instant::now();
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    eprintln!("{file}: tokenizer.json of {} tokens read in {:?}", tokenizer.n_tokens(), start.elapsed());
    let original = Tokenizer::new(&data).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (original.bos(), original.eos()));
    assert_eq!(tokenizer.end_of_generation(), original.end_of_generation());
    let mut wrong = 0;
    for case in cases() {
        let options = EncodeOptions { add_special: case.add_special, parse_special: case.parse_special };
        let ids = tokenizer.encode(&case.text, options).unwrap();
        if ids != case.ids[model] {
            wrong += 1;
            eprintln!("{:?} {options:?}:\n  expected {:?}\n  found    {ids:?}", case.text, case.ids[model]);
        }
        let shown = |tokenizer: &Tokenizer| tokenizer.decode(&ids, SpecialText::Show).unwrap();
        assert_eq!(shown(&tokenizer), shown(&original));
    }
    assert_eq!(wrong, 0);
    let template = ChatTemplate::from_dir(&dir, &tokenizer).unwrap();
    assert_eq!(template.render(&[Message::new("user", "Hello")], true).unwrap(), "Hello");
}

#[test]
fn directories_have_the_same_tokens() {
    check_directory("smollm2.gguf", 0);
    check_directory("gemma3-270m.gguf", 1);
}

#[test]
fn smollm2_gives_the_ids_of_llama_cpp() {
    // The vocabulary lacks the tokens of some control characters, so not every text survives.
    check("smollm2.gguf", 0, true);
}

#[test]
fn gemma3_gives_the_ids_of_llama_cpp() {
    check("gemma3-270m.gguf", 1, false);
}

#[test]
fn generations_end_where_llama_cpp_ends_them() {
    for (file, expected) in [("smollm2.gguf", [0, 2, 4]), ("gemma3-270m.gguf", [1, 106, 212])] {
        let Some(tokenizer) = tokenizer(file) else { continue };
        assert_eq!(tokenizer.end_of_generation().iter().copied().collect::<Vec<_>>(), expected, "{file}");
    }
}

/// Time per byte must not grow with the text, whatever the text is.
#[test]
fn a_mebibyte_takes_linear_time() {
    let texts = cases();
    let mixed: String = texts.iter().map(|case| case.text.as_str()).cycle().take(12_000).collect();
    let kinds = [("mixed", mixed), ("one word", "ab".repeat(1 << 19)), ("newlines", "\n".repeat(1 << 20))];
    for file in ["smollm2.gguf", "gemma3-270m.gguf"] {
        let Some(tokenizer) = tokenizer(file) else { continue };
        for (kind, text) in &kinds {
            let text = &text[..text.floor_char_boundary(1 << 20)];
            let prompt = &text[..text.floor_char_boundary(1 << 14)];
            let options = EncodeOptions { add_special: false, parse_special: true };
            // The quickest of a few runs: other work on the machine only ever adds time.
            let measure = |text: &str, runs: usize| {
                let times = (0..runs).map(|_| {
                    let start = Instant::now();
                    let n = tokenizer.encode(text, options).unwrap().len();
                    (start.elapsed(), n)
                });
                times.min().unwrap()
            };
            let (short, n_short) = measure(prompt, 8);
            let (long, n_long) = measure(text, 2);
            eprintln!(
                "{file}, {kind}: {} bytes, {n_short} tokens in {short:?}; {} bytes, {n_long} tokens in {long:?}",
                prompt.len(),
                text.len()
            );
            // 64 times the text, and a factor of 20 for caches and other work; quadratic time would be a factor of 64.
            let factor = long.as_secs_f64() / short.as_secs_f64().max(2e-4) / (text.len() as f64 / prompt.len() as f64);
            assert!(factor < 20.0, "{file}, {kind}: {short:?}, then {long:?}");
        }
    }
}
