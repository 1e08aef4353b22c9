//! What the commands that run a model share: opening it, and the options that they have in common.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use mlx_native::{Activations, DeviceOptions, MlxDevice};
use mlx_native_model::chat_template::ChatTemplate;
use mlx_native_model::sampler::SamplerConfig;
use mlx_native_model::tokenizer::{SpecialText, Tokenizer};
use mlx_native_model::{Finish, Generated, GenerationOptions, Model, ModelFile, Session, SessionOptions};
use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;

use crate::numbers::at_least;
use crate::output;
use crate::store;

/// On which device, and how, a model is computed.
#[derive(clap::Args)]
pub struct DeviceArgs {
    /// cpu, metal, cuda or cuda:NUMBER [default: the best one here]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Threads on the CPU, at most 1024 [default: one per processor]
    #[arg(long, value_name = "N", value_parser = at_least::<1>)]
    threads: Option<usize>,
    /// Precision of activations in products: rounded to 8 bits, which is fast, or exact
    #[arg(long, value_enum, default_value_t = ActivationsArg::Q8)]
    activations: ActivationsArg,
    /// Instruction set of the CPU's kernels: avx512, avx2, neon or portable [default: the best one here]
    #[arg(long, value_name = "SET", hide_short_help = true)]
    isa: Option<String>,
    /// Results of a token do not depend, to the bit, on what is computed beside it
    #[arg(long, hide_short_help = true)]
    batch_invariant: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum ActivationsArg {
    Q8,
    Exact,
}

impl DeviceArgs {
    /// Opens the device.
    pub fn open(&self) -> Result<MlxDevice> {
        let activations = match self.activations {
            ActivationsArg::Q8 => Activations::Q8,
            ActivationsArg::Exact => Activations::Exact,
        };
        let options =
            DeviceOptions { activations, threads: self.threads.unwrap_or(0), batch_invariant: self.batch_invariant };
        Ok(match (&self.device, &self.isa) {
            (None, Some(isa)) => MlxDevice::cpu_with_instruction_set(isa, options)?,
            (Some(name), Some(isa)) if name == "cpu" => MlxDevice::cpu_with_instruction_set(isa, options)?,
            (Some(name), Some(_)) => bail!("--isa chooses among the CPU's instruction sets; the device is {name}"),
            (Some(name), None) => MlxDevice::by_name(name, options)?,
            (None, None) => MlxDevice::with_options(options)?,
        })
    }
}

/// How text is generated.
#[derive(clap::Args)]
pub struct GenerationArgs {
    /// Most tokens of an answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 512, value_parser = at_least::<0>)]
    max_tokens: usize,
    /// 0 takes the most probable token always
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    temperature: f32,
    /// Choose among the K most probable tokens; 0 sets no limit
    #[arg(long, value_name = "K", default_value_t = 40, value_parser = at_least::<0>)]
    top_k: usize,
    /// Choose among the most probable tokens that reach the probability P together
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,
    /// Choose among tokens at least P times as probable as the most probable one
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    min_p: f32,
    /// Make tokens that were there before less probable; 1 has no effect
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repeat_penalty: f32,
    /// Where the random numbers start [default: a new place each time]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Positions of the context [default: the model's own, at most 8192]
    #[arg(long, value_name = "N", value_parser = at_least::<1>)]
    ctx: Option<usize>,
    /// Print no statistics
    #[arg(short, long)]
    pub quiet: bool,
}

impl GenerationArgs {
    /// The options for the library; `stop` is added to the texts that end an answer.
    pub fn options(&self, stop: &[&str]) -> GenerationOptions {
        // The standard library's hasher is the one source of randomness that needs no dependency.
        let seed = self.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        GenerationOptions {
            max_tokens: self.max_tokens,
            sampler: SamplerConfig {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                repetition_penalty: self.repeat_penalty,
                seed,
                ..SamplerConfig::default()
            },
            stop: self.stop.iter().map(String::as_str).chain(stop.iter().copied()).map(str::to_owned).collect(),
            special: SpecialText::Hide,
        }
    }

    /// The context that was asked for; 0 leaves it to the model.
    pub fn ctx(&self) -> usize {
        self.ctx.unwrap_or(0)
    }

    /// Says on standard error how fast it went.
    pub fn report(&self, engine: &Engine, generated: &Generated, options: &GenerationOptions) {
        if self.quiet {
            return;
        }
        let Generated { prompt_tokens, tokens, finish, .. } = generated;
        let ended = match finish {
            Finish::StopToken => "the model ended it".to_owned(),
            Finish::StopText => "a stop text came up".to_owned(),
            Finish::Length => format!("--max-tokens {} reached", options.max_tokens),
            Finish::Context => "the context is full (--ctx)".to_owned(),
            Finish::Interrupted => "interrupted".to_owned(),
        };
        let rate = |rate: Option<f64>| rate.map(|rate| format!(", {rate:.1} tokens/s")).unwrap_or_default();
        output::note!(
            "[prompt {prompt_tokens} tokens{}; answer {} tokens{}; {ended}; seed {}; {}]",
            rate(generated.prefill_tokens_per_second()),
            tokens.len(),
            rate(generated.decode_tokens_per_second()),
            options.sampler.seed,
            engine.model.device().name(),
        );
    }
}

/// A model, ready to run.
pub struct Engine {
    /// The file or directory.
    pub path: PathBuf,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Conversations to text.
    pub template: ChatTemplate,
    /// The weights on their device.
    pub model: Model,
}

impl Engine {
    /// Opens what `name` means (see [`store::resolve_or_pull`]) on a device.
    pub fn open(name: &OsStr, device: &DeviceArgs) -> Result<Self> {
        let device = device.open()?;
        let path = store::resolve_or_pull(name)?;
        let failed = || format!("cannot load {}", path.display());
        let file = ModelFile::open(&path)?;
        let tokenizer = file.tokenizer().with_context(failed)?;
        let template = file.chat_template(&tokenizer).with_context(failed)?;
        let model = file.model(&device).with_context(failed)?;
        Ok(Self { path, tokenizer, template, model })
    }

    /// An empty context of so many positions.
    pub fn session(&self, context: usize) -> Result<Session<'_>> {
        let options = SessionOptions { context, ..SessionOptions::default() };
        self.model.session(options).with_context(|| format!("cannot hold a context of {context} tokens"))
    }
}
