//! `mlxn run`.

use anyhow::{Context, Result, bail};
use mlx_native_model::chat_template::Message;
use mlx_native_model::tokenizer::EncodeOptions;
use mlx_native_model::{SessionOptions, generate};
use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::ops::ControlFlow;

use crate::engine::{DeviceArgs, Engine, GenerationArgs};
use crate::output;

/// Answer one prompt.
#[derive(clap::Args)]
#[command(after_help = "\
The prompt is an argument or standard input. The answer goes to standard output as it is generated, statistics go to \
standard error.

Examples:
  mlxn run smollm2 'Why is the sky blue?'
  mlxn run model.gguf --raw 'Once upon a time' --max-tokens 100 --temperature 0
  git log -5 | mlxn run gemma3-270m --raw --ctx 4096")]
pub struct Args {
    /// An alias or OWNER/REPO (pulled when missing), a GGUF file, or a model directory
    model: OsString,
    /// The prompt
    #[arg(conflicts_with = "prompt_option")]
    prompt: Option<String>,
    /// The prompt, where it might look like an option
    #[arg(long = "prompt", value_name = "PROMPT", allow_hyphen_values = true)]
    prompt_option: Option<String>,
    /// What the model is told about its role
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Continue the prompt as it is, without the model's chat template
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Generates the answer.
pub fn run(args: Args) -> Result<()> {
    let prompt = match args.prompt.or(args.prompt_option) {
        Some(prompt) => prompt,
        None if std::io::stdin().is_terminal() => bail!("no prompt: pass one as an argument or on standard input"),
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
            String::from_utf8(bytes).context("the prompt on standard input is not UTF-8")?
        }
    };
    let engine = Engine::open(&args.model, &args.device)?;
    let (ids, stop) = if args.raw {
        (engine.tokenizer.encode(&prompt, EncodeOptions::default())?, &[][..])
    } else {
        let mut messages: Vec<Message> = args.system.map(|text| Message::new("system", text)).into_iter().collect();
        messages.push(Message::new("user", prompt));
        (engine.template.prompt(&engine.tokenizer, &messages)?, engine.template.stop_strings())
    };
    let options = args.generation.options(stop);
    // One answer needs no more positions than these, and the cache takes memory for each.
    let needed = ids.len().saturating_add(options.max_tokens).max(1);
    let context = engine.model.context(&SessionOptions { context: args.generation.ctx(), ..Default::default() });
    let mut session = engine.session(context.min(needed))?;

    let mut out = output::stdout();
    let mut failed = None;
    let generated = generate(&mut session, &engine.tokenizer, &ids, &options, |text| {
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    writeln!(out)?;
    args.generation.report(&engine, &generated, &options);
    Ok(())
}
