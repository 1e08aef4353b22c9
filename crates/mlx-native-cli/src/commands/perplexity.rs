//! `mlxn perplexity`.

use anyhow::{Context, Result, bail};
use mlx_native_model::tokenizer::EncodeOptions;
use serde::Serialize;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Instant;

use crate::engine::{DeviceArgs, Engine};
use crate::numbers::at_least;
use crate::output;

/// Measure how well a model predicts a text.
#[derive(clap::Args)]
#[command(after_help = "\
The text is cut into pieces of --ctx tokens, each computed on its own; the tokens of a piece's second half are scored, \
as llama.cpp's llama-perplexity does. A text shorter than one piece is one piece.

Example: mlxn perplexity smollm2 book.txt --json")]
pub struct Args {
    /// An alias or OWNER/REPO (pulled when missing), a GGUF file, or a model directory
    model: OsString,
    /// A text file; - for standard input
    text: PathBuf,
    /// Tokens of a piece
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least::<MIN_PIECE>)]
    ctx: usize,
    /// Stop after this many pieces
    #[arg(long, value_name = "N", value_parser = at_least::<1>)]
    chunks: Option<usize>,
    /// Print one object: {perplexity, standard_error, tokens, scored_tokens, chunks, ctx, seconds}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Serialize)]
struct Measured {
    perplexity: f64,
    /// Of the perplexity.
    standard_error: f64,
    tokens: usize,
    scored_tokens: usize,
    chunks: usize,
    ctx: usize,
    seconds: f64,
}

/// Tokens of a piece at least, so that one of its second half follows another.
const MIN_PIECE: usize = 4;
/// Rows of logits that are computed together; a row has a value for each token of the vocabulary.
const LOGIT_ROWS: usize = 64;

/// Scores a text.
pub fn run(args: Args) -> Result<()> {
    let (text, name) = match args.text.as_os_str() == "-" {
        true => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            (text, "standard input".to_owned())
        }
        false => {
            let name = args.text.display().to_string();
            (std::fs::read_to_string(&args.text).with_context(|| format!("cannot read {name}"))?, name)
        }
    };
    let engine = Engine::open(&args.model, &args.device)?;
    let ids = engine.tokenizer.encode(&text, EncodeOptions::default())?;
    let ctx = args.ctx.min(ids.len());
    if ctx < MIN_PIECE {
        bail!("{name}: the text is too short: expected at least {MIN_PIECE} tokens, found {ctx}");
    }
    let mut session = engine.session(ctx)?;
    let bos = engine.tokenizer.bos().filter(|_| engine.tokenizer.adds_bos());
    let chunks: Vec<&[u32]> = ids.chunks_exact(ctx).take(args.chunks.unwrap_or(usize::MAX)).collect();
    let bar = output::bar("pieces", chunks.len() as u64);
    let start = Instant::now();
    let mut score = Score::default();
    for chunk in &chunks {
        let mut chunk = chunk.to_vec();
        if let Some(bos) = bos {
            chunk[0] = bos;
        }
        session.truncate(0);
        let unscored = ctx / 2;
        session.forward(&chunk[..unscored])?;
        let mut at = unscored;
        while at < ctx - 1 {
            let end = (at + LOGIT_ROWS).min(ctx - 1);
            let logits = session.forward_all(&chunk[at..end])?;
            for (logits, &next) in logits.chunks_exact(engine.model.vocabulary()).zip(&chunk[at + 1..]) {
                score.add(logits, next)?;
            }
            at = end;
        }
        bar.inc(1);
        bar.set_message(format!("perplexity {:.4}", score.perplexity().0));
    }
    bar.finish_and_clear();
    let (perplexity, standard_error) = score.perplexity();
    let measured = Measured {
        perplexity,
        standard_error,
        tokens: ids.len(),
        scored_tokens: score.count,
        chunks: chunks.len(),
        ctx,
        seconds: start.elapsed().as_secs_f64(),
    };
    if args.json {
        return output::json(&measured);
    }
    let Measured { tokens, scored_tokens, chunks, seconds, .. } = measured;
    writeln!(
        output::stdout(),
        "perplexity {perplexity:.4} ± {standard_error:.4}: {scored_tokens} of {tokens} tokens scored, {chunks} pieces of \
         {ctx}, {seconds:.1} s on {}",
        engine.model.device().name()
    )?;
    Ok(())
}

/// Sums over scored tokens.
#[derive(Default)]
struct Score {
    count: usize,
    /// Negative logarithms of the probabilities, and their squares.
    sum: f64,
    squares: f64,
}

impl Score {
    /// Adds the token that followed, given the logits.
    fn add(&mut self, logits: &[f32], next: u32) -> Result<()> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        let next = logits.get(next as usize).with_context(|| format!("token {next} has no logit"))?;
        let surprise = total.ln() - f64::from(next - max);
        if !surprise.is_finite() {
            bail!("the model's logits are not numbers");
        }
        self.count += 1;
        self.sum += surprise;
        self.squares += surprise * surprise;
        Ok(())
    }

    /// The perplexity and its standard error.
    fn perplexity(&self) -> (f64, f64) {
        let count = self.count as f64;
        let mean = self.sum / count;
        let variance = (self.squares / count - mean * mean).max(0.0);
        (mean.exp(), mean.exp() * (variance / (count - 1.0)).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::Score;

    #[test]
    fn equally_probable_tokens() {
        let mut score = Score::default();
        for next in 0..8 {
            score.add(&[-3.5; 8], next).expect("finite");
        }
        let (perplexity, error) = score.perplexity();
        assert!((perplexity - 8.0).abs() < 1e-12 && error < 1e-6, "{perplexity} ± {error}");
        assert!(score.add(&[f32::NAN; 8], 0).is_err() && score.add(&[0.0; 8], 8).is_err());
    }
}
