//! From a conversation to the text that a model was trained to continue.
//!
//! A model file carries its format as a Jinja template. Templates are written for Python's jinja2 as Hugging Face's libraries
//! set it up, so they may call string and dictionary methods of Python, `raise_exception`, `strftime_now`, `tojson`, loop controls,
//! and they are read with `trim_blocks` and `lstrip_blocks`. All of that is here. What prints a truth value or `None` prints it as
//! Python does.
//!
//! A model without a template gets a plain format: each message is its role with a capital, a colon, a space and its text, and an
//! empty line follows. The answer starts behind `Assistant:`, and [`ChatTemplate::stop_strings`] names where it ends:
//!
//! ```text
//! System: Be brief.
//!
//! User: Hello!
//!
//! Assistant:
//! ```

use std::borrow::Cow;
use std::path::Path;

use minijinja::value::{Kwargs, Serde};
use minijinja::{AutoEscape, Environment, ErrorKind, State, UndefinedBehavior, Value, context, syntax::SyntaxConfig};
use mlx_native::MlxError;
use mlx_native::io::gguf::GgufFile;
use serde::{Deserialize, Serialize};

use crate::tokenizer::huggingface::read_json;
use crate::tokenizer::{EncodeOptions, SpecialText, Tokenizer, TokenizerError};

/// The name under which the template is kept, as error messages show it.
const NAME: &str = "chat_template";

/// Steps that a template may take: some thousand times what a long conversation needs, a moment's work for one that never ends.
const FUEL: u64 = 20_000_000;

/// The format of models without a template.
const PLAIN: &str = "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content | trim }}\n\n{% endfor %}\
                     {% if add_generation_prompt %}Assistant:{% endif %}";

/// One contribution to a conversation.
///
/// Templates that know more than this (tools, images) take any other type that serializes to what they expect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`; templates may know further roles.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// Why a conversation could not be rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatTemplateError {
    /// The model file could not be read.
    #[error(transparent)]
    File(#[from] MlxError),
    /// The rendered text could not be tokenized.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The template is malformed.
    #[error("chat template, line {line}: {message}")]
    Syntax {
        /// Counted from 1; 0 if unknown.
        line: usize,
        /// The report of the template engine.
        message: String,
    },
    /// The template refuses the conversation, in its own words.
    #[error("the chat template refuses this conversation: {0}")]
    Refused(String),
    /// The template failed on this conversation.
    #[error("chat template, line {line}: {message}")]
    Render {
        /// Counted from 1; 0 if unknown.
        line: usize,
        /// The report of the template engine.
        message: String,
    },
}

/// What `raise_exception` says, to be found again in the engine's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// A model's chat format.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    is_plain: bool,
}

impl ChatTemplate {
    /// The template `source`, or the plain format of the [module](self) without one. `bos` and `eos` are the texts of the tokens
    /// that begin and end a sequence.
    ///
    /// # Errors
    /// [`ChatTemplateError::Syntax`].
    pub fn new(source: Option<&str>, bos: &str, eos: &str) -> Result<Self, ChatTemplateError> {
        let mut environment = Environment::new();
        environment.set_syntax(syntax()?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", to_json);
        environment.add_filter("indent", indent);
        environment.add_filter("length", length);
        environment.add_filter("count", length);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
        });
        environment.add_function("strftime_now", |format: &str| {
            let now = jiff::Zoned::now();
            jiff::fmt::strtime::format(format, &now)
                .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))
        });
        let text = source.map_or(Cow::Borrowed(PLAIN), without_generation_marks);
        environment
            .add_template_owned(NAME, text.into_owned())
            .map_err(|e| ChatTemplateError::Syntax { line: e.line().unwrap_or(0), message: describe(&e) })?;
        Ok(ChatTemplate { environment, bos: bos.to_owned(), eos: eos.to_owned(), is_plain: source.is_none() })
    }

    /// The template of a GGUF model; the plain format if the file has none.
    ///
    /// # Errors
    /// [`ChatTemplateError::File`] if the template is no text, [`ChatTemplateError::Syntax`] if it is malformed.
    pub fn from_gguf(file: &GgufFile, tokenizer: &Tokenizer) -> Result<Self, ChatTemplateError> {
        Self::for_tokenizer(file.optional("tokenizer.chat_template")?, tokenizer)
    }

    /// The template of a model directory: `chat_template.jinja`, else the entry `chat_template` of `tokenizer_config.json` (of several the one called
    /// `default`), else of `chat_template.json`; the plain format if there is none.
    ///
    /// # Errors
    /// [`ChatTemplateError::Tokenizer`] if a file cannot be read or is malformed, [`ChatTemplateError::Syntax`] if the template is.
    pub fn from_dir(dir: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<Self, ChatTemplateError> {
        let dir = dir.as_ref();
        Self::for_tokenizer(template_in(dir)?.as_deref(), tokenizer)
    }

    fn for_tokenizer(source: Option<&str>, tokenizer: &Tokenizer) -> Result<Self, ChatTemplateError> {
        let text = |id: Option<u32>| match id {
            Some(id) => tokenizer.piece(id, SpecialText::Show).map(String::from_utf8_lossy),
            None => Ok(Cow::Borrowed("")),
        };
        Self::new(source, &text(tokenizer.bos())?, &text(tokenizer.eos())?)
    }

    /// Whether the model came without a template.
    pub fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// Text that ends an answer in addition to the model's own tokens: models that know no chat format go on with the next turn.
    pub fn stop_strings(&self) -> &'static [&'static str] {
        if self.is_plain { &["\n\nUser:", "\n\nSystem:", "\n\nAssistant:"] } else { &[] }
    }

    /// The conversation as text. With `add_generation_prompt` it ends where the answer begins.
    ///
    /// # Errors
    /// [`ChatTemplateError::Refused`] if the template rejects the conversation, for example its order of roles;
    /// [`ChatTemplateError::Render`] if it cannot handle it.
    pub fn render(
        &self,
        messages: &[impl Serialize],
        add_generation_prompt: bool,
    ) -> Result<String, ChatTemplateError> {
        self.render_with(messages, add_generation_prompt, std::collections::BTreeMap::<&str, ()>::new())
    }

    /// The same with further variables that the template may know, such as `tools` or `enable_thinking`.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_with(
        &self,
        messages: &[impl Serialize],
        add_generation_prompt: bool,
        variables: impl Serialize,
    ) -> Result<String, ChatTemplateError> {
        let variables = context! {
            messages => Serde(messages),
            add_generation_prompt => add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            ..Value::from(Serde(variables))
        };
        self.environment.get_template(NAME).and_then(|template| template.render(variables)).map_err(|error| {
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                if let Some(Raised(message)) = cause.downcast_ref() {
                    return ChatTemplateError::Refused(message.clone());
                }
                source = cause.source();
            }
            ChatTemplateError::Render { line: error.line().unwrap_or(0), message: describe(&error) }
        })
    }

    /// The ids of the conversation up to where the answer begins. The begin of the sequence is there once, whether the template
    /// writes it or the tokenizer adds it. The text of a control token counts as that token inside a message too, as it does in
    /// llama.cpp: templates give no way to tell the two apart.
    ///
    /// # Errors
    /// As [`Self::render`], and [`ChatTemplateError::Tokenizer`].
    pub fn prompt(&self, tokenizer: &Tokenizer, messages: &[impl Serialize]) -> Result<Vec<u32>, ChatTemplateError> {
        let text = self.render(messages, true)?;
        let mut ids = tokenizer.encode(&text, EncodeOptions { add_special: false, parse_special: true })?;
        if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.adds_bos())
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }
}

/// The text of a model directory's template.
pub(crate) fn template_in(dir: &Path) -> Result<Option<String>, TokenizerError> {
    let path = dir.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(text) => return Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(MlxError::io(&path, error).into()),
    }
    for file in ["tokenizer_config.json", "chat_template.json"] {
        let Some(config) = read_json(&dir.join(file))? else { continue };
        let template = match config.get("chat_template") {
            Some(serde_json::Value::Array(named)) => named
                .iter()
                .find(|entry| entry.get("name").and_then(|name| name.as_str()) == Some("default"))
                .and_then(|entry| entry.get("template")?.as_str()),
            Some(template) => template.as_str(),
            None => None,
        };
        if let Some(template) = template {
            return Ok(Some(template.to_owned()));
        }
    }
    Ok(None)
}

/// Jinja as Hugging Face's libraries set it up: a tag's own line leaves no trace.
fn syntax() -> Result<SyntaxConfig, ChatTemplateError> {
    SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(|e| ChatTemplateError::Syntax { line: 0, message: describe(&e) })
}

/// An engine's error in one line.
fn describe(error: &minijinja::Error) -> String {
    let detail = error.detail().unwrap_or_default();
    if detail.is_empty() { error.kind().to_string() } else { format!("{}: {detail}", error.kind()) }
}

/// The template with `{% generation %}` and `{% endgeneration %}`, which mark an answer's place for training, turned into a
/// condition that always holds.
fn without_generation_marks(source: &str) -> Cow<'_, str> {
    if !source.contains("endgeneration") {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else { break };
        let (tag, behind) = rest[start..].split_at(len);
        out.push_str(&rest[..start]);
        let word = tag.trim_start_matches("{%").trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = behind;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// `tojson` as Hugging Face's libraries define it: Python's `json.dumps` with `ensure_ascii=False`, without escapes for HTML.
fn to_json(_: &State, value: Value, indent: Option<Value>, kwargs: Kwargs) -> Result<String, minijinja::Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => kwargs.get::<Option<Value>>("indent")?,
    };
    let ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let invalid = |message: String| minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {message}"));
    let indent = match indent.filter(|indent| !indent.is_none()) {
        Some(indent) => Some(usize::try_from(indent).map_err(|e| invalid(e.to_string()))?),
        None => None,
    };
    let mut out = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(64));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonFormatter)),
    };
    written.map_err(|e| invalid(e.to_string()))?;
    let json = String::from_utf8(out).map_err(|e| invalid(e.to_string()))?;
    if !ascii || json.is_ascii() {
        return Ok(json);
    }
    // Other characters occur inside strings only.
    let mut escaped = String::with_capacity(json.len() * 2);
    for c in json.chars() {
        if c.is_ascii() {
            escaped.push(c);
        } else {
            escaped.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    Ok(escaped)
}

/// `indent` as jinja2 has it, which keeps a newline at the end.
fn indent(
    text: &str,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, minijinja::Error> {
    let width = width.or(kwargs.get("width")?);
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let margin = match &width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(margin) => margin.to_owned(),
            None => " ".repeat(usize::try_from(width.clone())?.min(1024)),
        },
    };
    let mut out = String::with_capacity(text.len());
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        let indented = if i == 0 { first } else { blank || !line.is_empty() };
        if indented {
            out.push_str(&margin);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// `length` as jinja2 has it: what is undefined has none.
fn length(value: &Value) -> Result<usize, minijinja::Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("a value of type {} has no length", value.kind()))
    })
}

/// Python's separators: a space behind each comma and colon.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
