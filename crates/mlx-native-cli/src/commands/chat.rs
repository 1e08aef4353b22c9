//! `mlxn chat`.

use anyhow::{Context, Result};
use mlx_native_model::chat_template::Message;
use mlx_native_model::{ModelError, Session, SessionOptions, generate};
use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::ControlFlow;

use crate::engine::{DeviceArgs, Engine, GenerationArgs};
use crate::{interrupt, output};

/// Talk with a model, line by line.
#[derive(clap::Args)]
#[command(after_help = "\
/reset starts the conversation anew, /quit or Ctrl-D ends it, Ctrl-C ends the answer.
When the context is full, the oldest exchanges are forgotten.

Examples:
  mlxn chat smollm2
  mlxn chat gemma3-270m --system 'Answer in one sentence.' --temperature 0.3")]
pub struct Args {
    /// An alias or OWNER/REPO (pulled when missing), a GGUF file, or a model directory
    model: OsString,
    /// What the model is told about its role
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Reads questions and prints answers until the input ends.
pub fn run(args: Args) -> Result<()> {
    let engine = Engine::open(&args.model, &args.device)?;
    let context = engine.model.context(&SessionOptions { context: args.generation.ctx(), ..Default::default() });
    let mut session = engine.session(context)?;
    let mut chat = Chat { engine: &engine, messages: Vec::new(), cached: Vec::new() };
    chat.reset(args.system.as_deref());
    let is_terminal = io::stdin().is_terminal();
    let mut lines = io::stdin().lock().lines();
    let mut out = output::stdout();
    loop {
        if is_terminal {
            write!(out, "> ")?;
            out.flush()?;
        }
        let Some(line) = lines.next() else { break };
        let line = match line {
            // The line is read; a conversation goes on after one that cannot be understood.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                output::note!("error: this line is not UTF-8");
                continue;
            }
            line => line.context("cannot read standard input")?,
        };
        match line.trim() {
            "" => continue,
            "/quit" => return Ok(()),
            "/reset" => {
                chat.reset(args.system.as_deref());
                continue;
            }
            question => chat.answer(question, &mut session, &args.generation, &mut out)?,
        }
    }
    if is_terminal {
        writeln!(out)?;
    }
    Ok(())
}

/// A conversation and what of it the session holds.
struct Chat<'e> {
    engine: &'e Engine,
    messages: Vec<Message>,
    /// The tokens in the session's context.
    cached: Vec<u32>,
}

impl Chat<'_> {
    fn reset(&mut self, system: Option<&str>) {
        self.messages = system.map(|text| Message::new("system", text)).into_iter().collect();
    }

    /// Answers a question; on failure the question is forgotten.
    fn answer(
        &mut self,
        question: &str,
        session: &mut Session,
        generation: &GenerationArgs,
        out: &mut output::Stdout,
    ) -> Result<()> {
        let Engine { tokenizer, template, .. } = self.engine;
        let options = generation.options(template.stop_strings());
        self.messages.push(Message::new("user", question));
        let ids = self.fitting_prompt(session.context(), options.max_tokens)?;

        // Only what the context does not hold yet is computed, at least one token, since that gives the logits.
        let shared = self.cached.iter().zip(&ids).take_while(|(cached, id)| cached == id).count();
        let shared = shared.min(ids.len().saturating_sub(1));
        session.truncate(shared);
        self.cached.truncate(shared);
        let mut answer = String::new();
        let mut failed = None;
        let (generated, interrupted) = interrupt::catch(|interrupted| {
            let generated = generate(session, tokenizer, &ids[shared..], &options, |text| {
                answer.push_str(text);
                if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                    failed = Some(error);
                }
                if failed.is_some() || interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            (generated, interrupted())
        });
        let generated = match generated {
            Ok(generated) => generated,
            Err(error @ ModelError::ContextFull { .. }) => {
                self.messages.pop();
                output::note!("error: {error}");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(error) = failed {
            return Err(error.into());
        }
        self.cached.extend_from_slice(&ids[shared..]);
        self.cached.extend_from_slice(&generated.tokens);
        self.cached.truncate(session.position());
        writeln!(out, "{}", if interrupted { " …" } else { "" })?;
        interrupt::end_if_terminated();
        generation.report(self.engine, &generated, &options);
        self.messages.push(Message::new("assistant", answer));
        Ok(())
    }

    /// The conversation's tokens, after forgetting the oldest exchanges where question and answer would not fit.
    fn fitting_prompt(&mut self, context: usize, max_tokens: usize) -> Result<Vec<u32>> {
        // An answer as long as half the context has room at any rate; a longer one may end early.
        let room = context - max_tokens.min(context / 2);
        loop {
            let ids = self.engine.template.prompt(&self.engine.tokenizer, &self.messages)?;
            let oldest = usize::from(self.messages.first().is_some_and(|message| message.role == "system"));
            if ids.len() <= room || self.messages.len() < oldest + 3 {
                return Ok(ids);
            }
            self.messages.drain(oldest..oldest + 2);
            output::note!("[the context of {context} is full: the oldest exchange was forgotten]");
        }
    }
}
