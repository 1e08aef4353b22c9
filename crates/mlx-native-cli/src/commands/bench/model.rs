//! `mlxn bench model`.

use anyhow::{Result, bail};
use mlx_native_model::SessionOptions;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use super::median;
use crate::engine::{DeviceArgs, Engine};
use crate::output;

/// Measure a model's tokens per second: a prompt at once (prefill), and token by token (decode).
#[derive(clap::Args)]
#[command(after_help = "\
Each repetition starts with an empty context, as llama.cpp's llama-bench does; a first one is not counted.

Example: mlxn bench model smollm2 -p 512 -n 64 --threads 2 --json")]
pub struct Args {
    /// An alias or OWNER/REPO (pulled when missing), a GGUF file, or a model directory
    model: String,
    /// Tokens of the prompt; 0 leaves prefill out
    #[arg(short, value_name = "TOKENS", default_value_t = 512)]
    prompt: usize,
    /// Tokens that are generated; 0 leaves decode out
    #[arg(short = 'n', value_name = "TOKENS", default_value_t = 64)]
    generate: usize,
    /// Repetitions
    #[arg(short, value_name = "TIMES", default_value_t = 5)]
    repetitions: usize,
    /// Print one object: medians as prefill_tokens_per_second and decode_tokens_per_second, and each repetition
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Serialize)]
struct Measured {
    model: PathBuf,
    architecture: String,
    device: String,
    prompt_tokens: usize,
    generated_tokens: usize,
    /// Median; none without a prompt.
    prefill_tokens_per_second: Option<f64>,
    /// Median; none where nothing is generated.
    decode_tokens_per_second: Option<f64>,
    /// Bytes of weights read per second while decoding / 10⁹.
    decode_gb_per_s: Option<f64>,
    repetitions: Vec<Repetition>,
}

#[derive(Serialize)]
struct Repetition {
    prefill_tokens_per_second: Option<f64>,
    decode_tokens_per_second: Option<f64>,
}

/// Measures a model.
pub fn run(args: Args) -> Result<()> {
    let Args { prompt, generate, repetitions, .. } = args;
    if repetitions == 0 || prompt + generate == 0 {
        bail!("nothing to measure: -r must be at least 1, and -p or -n too");
    }
    let engine = Engine::open(&args.model, &args.device)?;
    let model = &engine.model;
    let mut session = model.session(SessionOptions { context: prompt.max(generate), ..SessionOptions::default() })?;
    // Which tokens these are has no influence on speed, but no two in a row shall be the same.
    let vocabulary = model.vocabulary() as u64;
    let tokens: Vec<u32> = (1..=prompt.max(generate) as u64).map(|i| (i * 2_654_435_761 % vocabulary) as u32).collect();
    let bar = output::bar("repetitions", repetitions as u64 + 1);
    let mut measured = Vec::new();
    for repetition in 0..=repetitions {
        let mut rate = |tokens: &[u32], at_once: usize| -> Result<Option<f64>> {
            session.truncate(0);
            let start = Instant::now();
            for tokens in tokens.chunks(at_once.max(1)) {
                session.forward(tokens)?;
            }
            Ok((!tokens.is_empty()).then(|| tokens.len() as f64 / start.elapsed().as_secs_f64()))
        };
        let done = Repetition {
            prefill_tokens_per_second: rate(&tokens[..prompt], prompt)?,
            decode_tokens_per_second: rate(&tokens[..generate], 1)?,
        };
        if repetition > 0 {
            measured.push(done);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let medians = |rates: Vec<Option<f64>>| -> Option<f64> {
        rates.into_iter().collect::<Option<Vec<_>>>().map(|rates| median(&rates))
    };
    let prefill = medians(measured.iter().map(|repetition| repetition.prefill_tokens_per_second).collect());
    let decode = medians(measured.iter().map(|repetition| repetition.decode_tokens_per_second).collect());
    let measured = Measured {
        architecture: model.config().architecture.clone(),
        device: model.device().name(),
        prompt_tokens: prompt,
        generated_tokens: generate,
        prefill_tokens_per_second: prefill,
        decode_tokens_per_second: decode,
        decode_gb_per_s: decode.map(|rate| rate * model.bytes_per_token() as f64 / 1e9),
        repetitions: measured,
        model: engine.path,
    };
    if args.json {
        return output::json(&measured);
    }
    let mut out = output::stdout();
    writeln!(out, "{} on {}", measured.model.display(), measured.device)?;
    if let Some(rate) = measured.prefill_tokens_per_second {
        writeln!(out, "prefill of {prompt} tokens: {rate:.1} tokens/s")?;
    }
    if let (Some(rate), Some(gb)) = (measured.decode_tokens_per_second, measured.decode_gb_per_s) {
        writeln!(out, "decode of {generate} tokens: {rate:.1} tokens/s ({gb:.1} GB/s of weights)")?;
    }
    Ok(())
}
