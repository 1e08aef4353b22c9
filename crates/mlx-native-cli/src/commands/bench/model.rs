//! `mlxn bench model`.

use anyhow::{Result, bail};
use mlx_native_model::sampler::SamplerConfig;
use mlx_native_model::{Decoder, Session};
use serde::Serialize;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::beside::{Beside, Medians};
use super::median;
use crate::engine::{DeviceArgs, Engine};
use crate::numbers::at_least;
use crate::output;

/// Measure a model's tokens per second: a prompt at once (prefill), and token by token (decode).
#[derive(clap::Args)]
#[command(after_help = "\
Each repetition starts with an empty context, or with --depth tokens in it, as llama.cpp's llama-bench does; a first \
one is not counted. A step of decode is what generation does: the model takes a token and the most probable one that \
follows is chosen, which the next step takes. Decode is shown beside what loads alone read from memory (weights, and the part of the cache that \
attention reads), prefill beside the peak of 8-bit multiply-adds (products only). Both limits are measured between \
the repetitions, with the same threads and instruction set.

Examples:
  mlxn bench model smollm2 -p 512 -n 64 --threads 2 --json
  mlxn bench model smollm2 -p 0 -n 64 --depth 4096")]
pub struct Args {
    /// An alias or OWNER/REPO (pulled when missing), a GGUF file, or a model directory
    model: OsString,
    /// Tokens of the prompt; 0 leaves prefill out
    #[arg(short, value_name = "TOKENS", default_value_t = 512, value_parser = at_least::<0>)]
    prompt: usize,
    /// Tokens that are generated; 0 leaves decode out
    #[arg(short = 'n', value_name = "TOKENS", default_value_t = 64, value_parser = at_least::<0>)]
    generate: usize,
    /// Tokens in context before either
    #[arg(short, long, value_name = "TOKENS", default_value_t = 0, value_parser = at_least::<0>)]
    depth: usize,
    /// Repetitions
    #[arg(short, value_name = "TIMES", default_value_t = 5, value_parser = at_least::<1>)]
    repetitions: usize,
    /// Print one object: medians as prefill_tokens_per_second and decode_tokens_per_second, shares, memory, and each
    /// repetition
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
    depth: usize,
    /// Median; none without a prompt.
    prefill_tokens_per_second: Option<f64>,
    /// Operations in products, two for each multiply-add, per second / 10⁹.
    prefill_gop_per_s: Option<f64>,
    prefill_share_of_peak: Option<f64>,
    /// Median; none where nothing is generated.
    decode_tokens_per_second: Option<f64>,
    /// Bytes of weights and of the cache that are read per second while decoding / 10⁹.
    decode_gb_per_s: Option<f64>,
    decode_share_of_read: Option<f64>,
    #[serde(flatten)]
    limits: Medians,
    /// From the start of the command to the logits after the prompt, once, loading the model included; none without a prompt or at a depth.
    first_token_seconds: Option<f64>,
    /// Bytes of weights that a token reads.
    weight_bytes: usize,
    file_bytes: u64,
    cache_bytes: usize,
    /// The most memory that the process had until the first repetition's end, the pages of the file that it touched included; none where the
    /// operating system does not say.
    peak_memory_bytes: Option<u64>,
    repetitions: Vec<Repetition>,
}

#[derive(Serialize)]
struct Repetition {
    prefill_tokens_per_second: Option<f64>,
    decode_tokens_per_second: Option<f64>,
}

/// What is measured again and again.
struct Bench<'m> {
    session: Session<'m>,
    tokens: Vec<u32>,
    depth: usize,
}

impl<'m> Bench<'m> {
    fn new(engine: &'m Engine, depth: usize, measured: usize) -> Result<Self> {
        let context = depth.saturating_add(measured);
        // Before the tokens, since no memory has room for so many of them where it has none for the cache.
        let session = engine.session(context)?;
        // Which tokens these are has no influence on speed, but no two in a row shall be the same.
        let vocabulary = engine.model.vocabulary() as u64;
        let tokens = (1..=context as u64).map(|i| (i * 2_654_435_761 % vocabulary) as u32).collect();
        Ok(Self { session, tokens, depth })
    }

    /// Fills the context up to the depth.
    fn fill(&mut self) -> Result<()> {
        if self.depth > 0 {
            self.session.forward(&self.tokens[..self.depth])?;
        }
        Ok(())
    }

    /// How long a prompt of `len` tokens takes from the depth on.
    fn prefill(&mut self, len: usize) -> Result<Duration> {
        self.session.truncate(self.depth);
        let start = Instant::now();
        if len > 0 {
            self.session.forward(&self.tokens[self.depth..self.depth + len])?;
        }
        Ok(start.elapsed())
    }

    /// How long `len` steps take from the depth on.
    fn decode(&mut self, len: usize) -> Result<Duration> {
        self.session.truncate(self.depth);
        let mut decoder = Decoder::new(&mut self.session, SamplerConfig::greedy(), len)?;
        let start = Instant::now();
        let mut token = decoder.first_token(&self.tokens[self.depth..=self.depth])?;
        while token.is_some() {
            token = decoder.next_token()?;
        }
        Ok(start.elapsed())
    }
}

/// Takes samples of the limits for a quarter of the time that the measurement took, at least three of them.
fn sample(beside: &mut Beside, measured: Duration) -> Result<()> {
    let start = Instant::now();
    let mut samples = 0;
    while samples < 3 || start.elapsed() < measured / 4 {
        beside.sample()?;
        samples += 1;
    }
    Ok(())
}

/// Measures a model.
pub fn run(args: Args) -> Result<()> {
    let started = Instant::now();
    let Args { prompt, generate, depth, repetitions, .. } = args;
    if prompt == 0 && generate == 0 {
        bail!("nothing to measure: -p and -n are both 0");
    }
    let engine = Engine::open(&args.model, &args.device)?;
    let model = &engine.model;
    let bar = output::bar("repetitions", repetitions as u64 + 1);
    let mut bench = Bench::new(&engine, depth, prompt.max(generate))?;
    bench.fill()?;
    bench.prefill(prompt)?;
    let first_token_seconds = (prompt > 0 && depth == 0).then(|| started.elapsed().as_secs_f64());
    bench.decode(generate)?;
    let peak_memory_bytes = peak_memory();
    bar.inc(1);
    let mut beside = Beside::new(model.device())?;
    let mut measured = Vec::new();
    for _ in 0..repetitions {
        let mut rate = |len: usize, took: Duration| -> Result<Option<f64>> {
            if len == 0 {
                return Ok(None);
            }
            sample(&mut beside, took)?;
            Ok(Some(len as f64 / took.as_secs_f64()))
        };
        measured.push(Repetition {
            prefill_tokens_per_second: rate(prompt, bench.prefill(prompt)?)?,
            decode_tokens_per_second: rate(generate, bench.decode(generate)?)?,
        });
        bar.inc(1);
    }
    bar.finish_and_clear();
    let medians = |rate: fn(&Repetition) -> Option<f64>| -> Option<f64> {
        measured.iter().map(rate).collect::<Option<Vec<_>>>().map(|rates| median(&rates))
    };
    let prefill = medians(|repetition| repetition.prefill_tokens_per_second);
    let decode = medians(|repetition| repetition.decode_tokens_per_second);
    let limits = beside.take();
    let weight_bytes = model.bytes_per_token();
    let bytes_per_token = weight_bytes + bench.session.cache_bytes_at(depth + generate / 2);
    let prefill_gop_per_s = prefill.map(|rate| rate * 2.0 * model.multiply_adds_per_prompt_token() as f64 / 1e9);
    let decode_gb_per_s = decode.map(|rate| rate * bytes_per_token as f64 / 1e9);
    let measured = Measured {
        architecture: model.config().architecture.clone(),
        device: model.device().name(),
        prompt_tokens: prompt,
        generated_tokens: generate,
        depth,
        prefill_tokens_per_second: prefill,
        prefill_gop_per_s,
        prefill_share_of_peak: prefill_gop_per_s.zip(limits.int8_peak_gop_per_s).map(|(rate, peak)| rate / peak),
        decode_tokens_per_second: decode,
        decode_gb_per_s,
        decode_share_of_read: decode_gb_per_s.zip(limits.read_gb_per_s).map(|(rate, read)| rate / read),
        limits,
        first_token_seconds,
        weight_bytes,
        file_bytes: size(&engine.path)?,
        cache_bytes: bench.session.cache_bytes(),
        peak_memory_bytes,
        repetitions: measured,
        model: engine.path.clone(),
    };
    if args.json { output::json(&measured) } else { measured.print() }
}

impl Measured {
    /// For people.
    fn print(&self) -> Result<()> {
        let mut out = output::stdout();
        let at = if self.depth > 0 { format!(" after {} in context", self.depth) } else { String::new() };
        let percent = |share: Option<f64>| share.map_or(String::new(), |share| format!("{:.0} % of ", 100.0 * share));
        writeln!(out, "{} on {}", self.model.display(), self.device)?;
        if let (Some(rate), Some(gop)) = (self.prefill_tokens_per_second, self.prefill_gop_per_s) {
            write!(out, "prefill of {} tokens{at}: {rate:.1} tokens/s ({gop:.0} Gop/s", self.prompt_tokens)?;
            match self.limits.int8_peak_gop_per_s {
                Some(peak) => writeln!(out, ", {}the 8-bit peak of {peak:.0})", percent(self.prefill_share_of_peak))?,
                None => writeln!(out, ")")?,
            }
        }
        if let (Some(rate), Some(gb)) = (self.decode_tokens_per_second, self.decode_gb_per_s) {
            write!(out, "decode of {} tokens{at}: {rate:.1} tokens/s ({gb:.1} GB/s", self.generated_tokens)?;
            match self.limits.read_gb_per_s {
                Some(read) => writeln!(out, ", {}reading at {read:.1})", percent(self.decode_share_of_read))?,
                None => writeln!(out, ")")?,
            }
        }
        if let Some(seconds) = self.first_token_seconds {
            writeln!(out, "first token after {:.0} ms, loading included", seconds * 1e3)?;
        }
        if let Some(peak) = self.peak_memory_bytes {
            let mib = |bytes: u64| bytes >> 20;
            let (file, cache) = (self.file_bytes, self.cache_bytes as u64);
            writeln!(out, "memory {} MiB (file {}, cache {})", mib(peak), mib(file), mib(cache))?;
        }
        Ok(())
    }
}

/// Bytes of a file, or of the files in a folder.
fn size(path: &Path) -> std::io::Result<u64> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    std::fs::read_dir(path)?.try_fold(0, |sum, entry| Ok(sum + std::fs::metadata(entry?.path())?.len()))
}

/// The most resident memory that this process has had, as Linux counts it.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
