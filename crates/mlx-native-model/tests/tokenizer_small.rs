//! Tokenizers over vocabularies small enough to follow by hand.

use mlx_native::io::gguf::{GgufFile, GgufWriter};
use mlx_native_model::tokenizer::{
    Detokenizer, EncodeOptions, SpecialText, TokenKind, Tokenizer, TokenizerData, TokenizerError,
};

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const PARSED: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };

/// `<s>` 0, `</s>` 1, a to e 2 to 6, space 7, é's bytes 8 and 9, then merges, then the user's own `ab`.
fn bpe_data() -> TokenizerData {
    let tokens = ["<s>", "</s>", "a", "b", "c", "d", "e", "Ġ", "Ã", "©", "bc", "abc", "Ġa", "Ã©", "[ab]"];
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    (kinds[0], kinds[1], kinds[14]) = (TokenKind::Control, TokenKind::Control, TokenKind::UserDefined);
    TokenizerData {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens: tokens.map(|t| t.as_bytes().to_vec()).to_vec(),
        kinds,
        merges: ["b c", "a bc", "Ġ a", "Ã ©", "d e"].map(|m| m.as_bytes().to_vec()).to_vec(),
        bos: Some(0),
        eos: Some(1),
        add_bos: Some(true),
        add_eos: Some(true),
        ..Default::default()
    }
}

/// `<unk>` 0, `<s>` 1, `</s>` 2, bytes 3 to 258, then ▁ 259, a 260, b 261, ▁a 262, ab 263, ▁ab 264, é 265.
fn spm_data() -> TokenizerData {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    tokens.extend(["▁", "a", "b", "▁a", "ab", "▁ab", "é"].map(String::from));
    let mut kinds = vec![TokenKind::Byte; tokens.len()];
    (kinds[0], kinds[1], kinds[2]) = (TokenKind::Unknown, TokenKind::Control, TokenKind::Control);
    kinds[259..].fill(TokenKind::Normal);
    let mut scores = vec![0.0; tokens.len()];
    scores[259..].copy_from_slice(&[-9.0, -8.0, -7.0, -2.0, -1.0, -3.0, -6.0]);
    TokenizerData {
        model: "llama".into(),
        tokens: tokens.into_iter().map(String::into_bytes).collect(),
        scores,
        kinds,
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..Default::default()
    }
}

#[test]
fn bpe_merges_by_rank_inside_words() {
    let tokenizer = Tokenizer::new(&bpe_data()).unwrap();
    assert_eq!(tokenizer.encode("abc", PLAIN).unwrap(), [11]);
    assert_eq!(tokenizer.encode("abcb abc", PLAIN).unwrap(), [11, 3, 7, 11]);
    assert_eq!(tokenizer.encode("é", PLAIN).unwrap(), [13]);
    assert_eq!(tokenizer.encode("", PARSED).unwrap(), [0, 1]);
    // `de` merges but is no token: its bytes stand alone. `z` has no token at all and is left out.
    assert_eq!(tokenizer.encode("dez", PLAIN).unwrap(), [5, 6]);
}

#[test]
fn control_tokens_are_text_unless_parsed_and_user_defined_ones_never() {
    let tokenizer = Tokenizer::new(&bpe_data()).unwrap();
    assert_eq!(tokenizer.encode("a</s>[ab]b", PLAIN).unwrap(), [2, 14, 3]);
    assert_eq!(tokenizer.encode("a</s>[ab]b", PARSED).unwrap(), [0, 2, 1, 14, 3, 1]);
    assert_eq!(tokenizer.decode(&[0, 2, 14, 1], SpecialText::Hide).unwrap(), "a[ab]");
    assert_eq!(tokenizer.decode(&[0, 2, 14, 1], SpecialText::Show).unwrap(), "<s>a[ab]</s>");
}

#[test]
fn spm_merges_by_score_over_words() {
    let tokenizer = Tokenizer::new(&spm_data()).unwrap();
    assert!(tokenizer.adds_bos());
    // ▁ab: `ab` (-1) merges before `▁a` (-2), then `▁ab`.
    assert_eq!(tokenizer.encode("ab", PLAIN).unwrap(), [264]);
    assert_eq!(tokenizer.encode("ab aa", PARSED).unwrap(), [1, 264, 262, 260]);
    // Every text behind a special token gets its own space.
    assert_eq!(tokenizer.encode("</s>ab", PARSED).unwrap(), [1, 2, 264]);
    // A character without a token becomes its bytes.
    assert_eq!(tokenizer.encode("é日", PLAIN).unwrap(), [259, 265, 3 + 0xE6, 3 + 0x97, 3 + 0xA5]);
    assert_eq!(tokenizer.decode(&[1, 264, 262, 260], SpecialText::Hide).unwrap(), "ab aa");
    for text in ["", "ab", "a b", " a", "日本 🙂\n", "é\u{0}"] {
        let ids = tokenizer.encode(text, PLAIN).unwrap();
        assert_eq!(tokenizer.decode(&ids, SpecialText::Hide).unwrap(), text);
    }
    let bare = TokenizerData { add_space_prefix: Some(false), ..spm_data() };
    assert_eq!(Tokenizer::new(&bare).unwrap().encode("ab", PLAIN).unwrap(), [263]);
}

#[test]
fn a_stream_never_cuts_a_character() {
    let tokenizer = Tokenizer::new(&spm_data()).unwrap();
    let mut detokenizer = Detokenizer::new(SpecialText::Hide);
    let mut push = |byte: u8| detokenizer.push(&tokenizer, 3 + u32::from(byte)).unwrap();
    assert_eq!(
        ["日", "🙂"].map(|text| text.bytes().map(&mut push).collect::<Vec<_>>()),
        [vec!["", "", "日"], vec!["", "", "", "🙂"]]
    );
    // A cut character followed by something else, a byte that begins nothing, and the end inside a character.
    assert_eq!([0xE6, b'x', 0xFF, 0xE6, 0x97].map(&mut push), ["", "\u{FFFD}x", "\u{FFFD}", "", ""]);
    assert_eq!(detokenizer.finish(), "\u{FFFD}");
    assert_eq!(detokenizer.finish(), "");
}

#[test]
fn ids_outside_the_vocabulary_are_errors() {
    let tokenizer = Tokenizer::new(&bpe_data()).unwrap();
    assert!(matches!(
        tokenizer.decode(&[2, 15], SpecialText::Hide),
        Err(TokenizerError::UnknownId { id: 15, n_tokens: 15 })
    ));
    let mut detokenizer = Detokenizer::new(SpecialText::Hide);
    assert!(matches!(detokenizer.push(&tokenizer, u32::MAX), Err(TokenizerError::UnknownId { .. })));
}

#[test]
fn a_damaged_description_is_an_error_that_names_the_key() {
    let error = |change: fn(&mut TokenizerData), mut data: TokenizerData| {
        change(&mut data);
        Tokenizer::new(&data).unwrap_err().to_string()
    };
    let cases = [
        (error(|d| d.tokens.clear(), bpe_data()), "`tokenizer.ggml.tokens` is missing"),
        (error(|d| d.merges.clear(), bpe_data()), "`tokenizer.ggml.merges` is missing"),
        (error(|d| d.merges[1] = b"abc".to_vec(), bpe_data()), "found `abc` at index 1"),
        (error(|d| d.bos = Some(15), bpe_data()), "`tokenizer.ggml.bos_token_id`: expected an id below 15, found 15"),
        (error(|d| d.kinds.truncate(3), bpe_data()), "expected one entry for each of 15 tokens, found 3 entries"),
        (error(|d| d.pre = Some("no-such".into()), bpe_data()), "pre-tokenizer `no-such` is not known"),
        (error(|d| d.model = "bert".into(), bpe_data()), "model `bert` is not supported"),
        (
            error(|d| d.scores[3] = f32::NAN, spm_data()),
            "`tokenizer.ggml.scores`: expected numbers, found NaN for token 3",
        ),
        (error(|d| (d.tokens[4], d.unk) = (b"x".to_vec(), None), spm_data()), "byte 0x01 has no token"),
    ];
    for (found, expected) in cases {
        assert!(found.contains(expected), "expected {expected:?}, found {found:?}");
    }
}

#[test]
fn special_tokens_of_phi_3_swallow_the_space_behind_them() {
    let mut data = bpe_data();
    data.model_name = Some("Phi-3 mini".into());
    let tokenizer = Tokenizer::new(&data).unwrap();
    let ids = tokenizer.encode("</s> \n a<s> a", EncodeOptions { add_special: false, parse_special: true }).unwrap();
    assert_eq!(ids, [1, 2, 0, 12]);
}

#[test]
fn gguf_metadata_describes_a_tokenizer() {
    let data = bpe_data();
    let strings = |list: &[Vec<u8>]| list.iter().map(|s| String::from_utf8(s.clone()).unwrap()).collect::<Vec<_>>();
    let mut writer = GgufWriter::new();
    writer.metadata("tokenizer.ggml.model", "gpt2").unwrap();
    writer.metadata("tokenizer.ggml.pre", "gpt-2").unwrap();
    writer.metadata("tokenizer.ggml.tokens", strings(&data.tokens)).unwrap();
    writer.metadata("tokenizer.ggml.merges", strings(&data.merges)).unwrap();
    writer.metadata("tokenizer.ggml.token_type", data.kinds.iter().map(|&k| k as i32).collect::<Vec<_>>()).unwrap();
    writer.metadata("tokenizer.ggml.bos_token_id", 0u32).unwrap();
    writer.metadata("tokenizer.ggml.add_bos_token", true).unwrap();
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).unwrap();
    let tokenizer = Tokenizer::from_gguf(&GgufFile::from_bytes(bytes).unwrap()).unwrap();
    assert_eq!(tokenizer.encode("abc</s>", PARSED).unwrap(), [0, 11, 1]);
    assert_eq!(tokenizer.eos(), None);

    let mut bytes = Vec::new();
    GgufWriter::new().write_to(&mut bytes).unwrap();
    let error = Tokenizer::from_gguf(&GgufFile::from_bytes(bytes).unwrap()).unwrap_err();
    assert!(matches!(error, TokenizerError::Missing { key: "tokenizer.ggml.model" }), "{error}");
}

/// Vocabularies of random bytes, with broken characters, duplicates and empty tokens: ids stay in range and texts that byte tokens
/// cover come back whole.
#[test]
fn no_vocabulary_breaks_the_tokenizer() {
    let mut state = 7u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let alphabet = ["a", "b", "Ġ", "é", "▁", " ", "\n", "<", "日", "🙂", "\u{E6}", "1"];
    let kinds = [1, 1, 1, 1, 2, 3, 4, 5, 6, 9].map(TokenKind::from_gguf);
    for round in 0..300 {
        let mut data = if round % 2 == 0 { spm_data() } else { bpe_data() };
        let reversible = data.model == "llama";
        for _ in 0..below(40) {
            let mut text: Vec<u8> = (0..below(4)).flat_map(|_| alphabet[below(alphabet.len())].bytes()).collect();
            if below(8) == 0 {
                text.push(0x80 + below(0x80) as u8);
            }
            if !text.is_empty() {
                data.merges.push([&text[..], b" a"].concat());
            }
            data.tokens.push(text);
            data.kinds.push(kinds[below(kinds.len())]);
            data.scores.push(below(9) as f32);
        }
        if !reversible {
            data.scores.clear();
        }
        let plain = data.kinds[259.min(data.kinds.len())..].iter().all(|kind| matches!(kind, TokenKind::Normal));
        let tokenizer = Tokenizer::new(&data).unwrap();
        for options in [PLAIN, PARSED] {
            let text: String = (0..below(30)).map(|_| alphabet[below(alphabet.len())]).collect();
            let ids = tokenizer.encode(&text, options).unwrap();
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.n_tokens()));
            let back = tokenizer.decode(&ids, SpecialText::Show).unwrap();
            if reversible && plain && options == PLAIN {
                assert_eq!(back, text.replace('▁', " "));
            }
            let mut detokenizer = Detokenizer::new(SpecialText::Show);
            for &id in &ids {
                detokenizer.push(&tokenizer, id).unwrap();
            }
        }
    }
}
