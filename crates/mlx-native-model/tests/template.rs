//! Chat templates against what jinja2 renders, recorded by `scripts/oracle/tokenize_templates.py`.

use std::collections::HashMap;

use minijinja::Value;
use mlx_native::io::gguf::{GgufFile, GgufWriter};
use mlx_native_model::chat_template::{ChatTemplate, ChatTemplateError, Message};
use mlx_native_model::tokenizer::{TokenKind, Tokenizer, TokenizerData};

#[derive(serde::Deserialize)]
struct Case {
    template: String,
    bos: String,
    eos: String,
    // The engine's own values keep the order of an object's keys.
    messages: Vec<Value>,
    add_generation_prompt: bool,
    variables: Value,
    text: Option<String>,
    refused: Option<String>,
}

#[test]
fn templates_render_as_in_python() {
    let sources = HashMap::from([
        ("smollm2", include_str!("template_smollm2.jinja")),
        ("gemma3", include_str!("template_gemma3.jinja")),
        ("features", include_str!("template_features.jinja")),
    ]);
    let cases: Vec<Case> = serde_json::from_str(include_str!("template_golden.json")).unwrap();
    assert!(cases.len() > 40);
    for case in cases {
        let template = ChatTemplate::new(Some(sources[case.template.as_str()]), &case.bos, &case.eos).unwrap();
        let rendered = template.render_with(&case.messages, case.add_generation_prompt, case.variables);
        match (rendered, case.refused) {
            (Ok(text), _) => assert_eq!(Some(text), case.text, "{}", case.template),
            (Err(ChatTemplateError::Refused(message)), Some(refused)) => assert_eq!(message, refused),
            (Err(error), refused) => {
                panic!("{}: expected {:?} or {refused:?}, found {error}", case.template, case.text)
            }
        }
    }
}

fn conversation() -> [Message; 3] {
    [Message::new("system", "Be brief."), Message::new("user", " Hello! "), Message::new("assistant", "Hi.")]
}

#[test]
fn a_model_without_a_template_gets_the_plain_format() {
    let template = ChatTemplate::new(None, "<s>", "</s>").unwrap();
    assert!(template.is_plain());
    assert_eq!(
        template.render(&conversation(), true).unwrap(),
        "System: Be brief.\n\nUser: Hello!\n\nAssistant: Hi.\n\nAssistant:"
    );
    assert_eq!(template.render(&conversation()[1..2], false).unwrap(), "User: Hello!\n\n");
    assert!(template.stop_strings().contains(&"\n\nUser:"));
    assert!(ChatTemplate::new(Some(""), "", "").unwrap().stop_strings().is_empty());
}

#[test]
fn the_date_is_today() {
    let template = ChatTemplate::new(Some("{{ strftime_now('%Y') }} {{ strftime_now('%d %b %Y') }}"), "", "").unwrap();
    let text = template.render(&conversation(), true).unwrap();
    let year: i32 = text[..4].parse().unwrap();
    assert!(year >= 2024 && text.ends_with(&year.to_string()), "{text}");
}

#[test]
fn bad_templates_are_errors_that_name_the_line() {
    let error = ChatTemplate::new(Some("a\n{% for %}"), "", "").unwrap_err();
    assert!(matches!(error, ChatTemplateError::Syntax { line: 2, .. }), "{error}");

    let render =
        |source: &str| ChatTemplate::new(Some(source), "", "").unwrap().render(&conversation(), true).unwrap_err();
    let error = render("a\n\n{{ messages.no_such_method() }}");
    assert!(matches!(error, ChatTemplateError::Render { line: 3, .. }), "{error}");
    let error = render("{% for message in messages %}{{ raise_exception('No ' + message.role) }}{% endfor %}");
    assert_eq!(error.to_string(), "the chat template refuses this conversation: No system");
    assert!(matches!(render("{{ strftime_now('%!') }}"), ChatTemplateError::Render { .. }));
    assert!(matches!(render("{{ 1 | length }}"), ChatTemplateError::Render { .. }));
    assert!(matches!(render("{{ messages | tojson(no_such=1) }}"), ChatTemplateError::Render { .. }));
}

#[test]
fn a_template_cannot_run_for_ever() {
    let range = "{% for i in range(9999) %}";
    let source = format!("{range}{range}{range}x{{% endfor %}}{{% endfor %}}{{% endfor %}}");
    let error = ChatTemplate::new(Some(&source), "", "").unwrap().render(&conversation(), true).unwrap_err();
    assert!(matches!(error, ChatTemplateError::Render { .. }), "{error}");
    let error = ChatTemplate::new(Some("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "", "").unwrap();
    assert!(matches!(error.render(&conversation(), true), Err(ChatTemplateError::Render { .. })));
}

/// `<s>` 0, `</s>` 1, then the letters of the tests' texts.
fn tokenizer() -> Tokenizer {
    let mut tokens = vec![b"<s>".to_vec(), b"</s>".to_vec(), b"<unk>".to_vec()];
    tokens.extend((b'a'..=b'z').map(|letter| vec![letter]));
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    kinds[..3].copy_from_slice(&[TokenKind::Control, TokenKind::Control, TokenKind::Unknown]);
    let data = TokenizerData {
        model: "llama".into(),
        tokens,
        kinds,
        bos: Some(0),
        eos: Some(1),
        unk: Some(2),
        add_space_prefix: Some(false),
        ..Default::default()
    };
    Tokenizer::new(&data).unwrap()
}

#[test]
fn a_prompt_begins_with_bos_once() {
    let messages = [Message::new("user", "ab")];
    for source in ["{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "{{ messages[0].content }}</s>"] {
        let template = ChatTemplate::new(Some(source), "<s>", "</s>").unwrap();
        assert_eq!(template.prompt(&tokenizer(), &messages).unwrap(), [0, 3, 4, 1]);
    }
}

#[test]
fn a_gguf_file_brings_its_template() {
    let tokenizer = tokenizer();
    let file = |template: Option<&str>| {
        let mut writer = GgufWriter::new();
        if let Some(template) = template {
            writer.metadata("tokenizer.chat_template", template).unwrap();
        }
        let mut bytes = Vec::new();
        writer.write_to(&mut bytes).unwrap();
        GgufFile::from_bytes(bytes).unwrap()
    };
    let template = ChatTemplate::from_gguf(&file(Some("{{ bos_token }}{{ eos_token }}")), &tokenizer).unwrap();
    assert_eq!(template.render(&conversation(), true).unwrap(), "<s></s>");
    assert!(!template.is_plain());
    assert!(ChatTemplate::from_gguf(&file(None), &tokenizer).unwrap().is_plain());
}
