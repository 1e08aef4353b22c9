//! From a prompt to streamed text.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::sampler::SamplerConfig;
use crate::tokenizer::{Detokenizer, SpecialText, StopMatcher, Tokenizer};
use crate::{Decoder, Result, Session};

/// How text is generated.
#[derive(Clone, Debug)]
pub struct GenerationOptions {
    /// Most tokens that are generated.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampler: SamplerConfig,
    /// Texts that end the generation; they are not output.
    pub stop: Vec<String>,
    /// Whether control tokens show in the text.
    pub special: SpecialText,
}

impl Default for GenerationOptions {
    /// 256 tokens by the sampler's defaults.
    fn default() -> Self {
        let sampler = SamplerConfig::default();
        GenerationOptions { max_tokens: 256, sampler, stop: Vec::new(), special: SpecialText::Hide }
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its turn.
    StopToken,
    /// A stop text came up.
    StopText,
    /// As many tokens as were asked for.
    Length,
    /// The context is full.
    Context,
    /// The receiver of the text asked for it.
    Interrupted,
}

/// What a generation did.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// The tokens chosen, the one that ended the turn included.
    pub tokens: Vec<u32>,
    /// Time until the first token was chosen.
    pub prefill: Duration,
    /// Time for all further tokens.
    pub decode: Duration,
    /// Why it ended.
    pub finish: Finish,
}

impl Generated {
    /// Tokens of the prompt per second; `None` where no token was chosen, for which nothing was computed.
    pub fn prefill_tokens_per_second(&self) -> Option<f64> {
        (!self.tokens.is_empty()).then(|| self.prompt_tokens as f64 / self.prefill.as_secs_f64())
    }

    /// Tokens after the first per second; `None` where there are none.
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        let tokens = self.tokens.len().checked_sub(1).filter(|&tokens| tokens > 0)?;
        Some(tokens as f64 / self.decode.as_secs_f64())
    }
}

/// Appends `prompt` to the session and generates; `on_text` receives the text in pieces that never split a character and says whether to go on.
///
/// The tokens chosen stay in the session's context, except the last one, so that a further call goes on with a conversation whose prompt holds it.
///
/// # Errors
///
/// A prompt that is empty or does not fit the context, a sampler setting out of range, or an error of the device.
pub fn generate(
    session: &mut Session<'_>,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &GenerationOptions,
    on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated> {
    let decoder = Decoder::new(session, options.sampler.clone(), options.max_tokens)?;
    generate_by(decoder, tokenizer, prompt, options, on_text)
}

/// [`generate`] by a decoder for as many tokens as the options say.
pub(crate) fn generate_by(
    mut decoder: Decoder<'_, '_>,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &GenerationOptions,
    mut on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated> {
    let mut detokenizer = Detokenizer::new(options.special);
    let mut stop = StopMatcher::for_tokenizer(tokenizer, options.stop.iter().map(String::as_str));
    let mut tokens = Vec::new();
    let start = Instant::now();
    let mut prefill = Duration::ZERO;
    let finish = loop {
        let next = if tokens.is_empty() { decoder.first_token(prompt)? } else { decoder.next_token()? };
        let Some(id) = next else {
            break if tokens.len() == options.max_tokens { Finish::Length } else { Finish::Context };
        };
        if tokens.is_empty() {
            prefill = start.elapsed();
        }
        tokens.push(id);
        if stop.is_stop_token(id) {
            break Finish::StopToken;
        }
        let stopped = stop.push(&detokenizer.push(tokenizer, id)?);
        if !stopped.text.is_empty() && on_text(&stopped.text).is_break() {
            break Finish::Interrupted;
        }
        if stopped.stop {
            break Finish::StopText;
        }
    };
    if !matches!(finish, Finish::Interrupted | Finish::StopText) {
        let rest = stop.push(&detokenizer.finish());
        let rest = rest.text + &stop.finish();
        if !rest.is_empty() {
            let _ = on_text(&rest);
        }
    }
    Ok(Generated {
        prompt_tokens: prompt.len(),
        tokens,
        prefill,
        decode: start.elapsed().saturating_sub(prefill),
        finish,
    })
}
