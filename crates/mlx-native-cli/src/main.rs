//! The program `mlxn`: pull, inspect and run quantized language models.

mod commands;
mod engine;
mod fetch;
mod interrupt;
mod numbers;
mod output;
mod store;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;

/// Quantized language models on this machine's processors.
#[derive(Parser)]
#[command(
    name = "mlxn",
    version,
    max_term_width = 110,
    after_help = "\
Examples:
  mlxn run smollm2 'Why is the sky blue?'    answer a question (fetches the model first)
  mlxn chat gemma3-270m                      talk with a model
  mlxn pull owner/repo/model-Q4_K_M.gguf     fetch a file from the Hugging Face hub
  mlxn info model.gguf                       what is in a file, and what runs it
  mlxn selftest                              whether this machine computes right

`mlxn help COMMAND` says more about each command."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Pull(commands::pull::Args),
    List(commands::list::Args),
    Rm(commands::rm::Args),
    Run(commands::run::Args),
    Chat(commands::chat::Args),
    Info(commands::info::Args),
    Quantize(commands::quantize::Args),
    Bench(commands::bench::Args),
    Selftest(commands::selftest::Args),
    Perplexity(commands::perplexity::Args),
    Tokenize(commands::tokenize::Args),
}

impl Command {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Command::Pull(args) => commands::pull::run(args),
            Command::List(args) => commands::list::run(args),
            Command::Rm(args) => commands::rm::run(args),
            Command::Run(args) => commands::run::run(args),
            Command::Chat(args) => commands::chat::run(args),
            Command::Info(args) => commands::info::run(args),
            Command::Quantize(args) => commands::quantize::run(args),
            Command::Bench(args) => commands::bench::run(args),
            Command::Selftest(args) => commands::selftest::run(args),
            Command::Perplexity(args) => commands::perplexity::run(args),
            Command::Tokenize(args) => commands::tokenize::run(args),
        }
    }
}

fn main() -> ExitCode {
    let matches = numbers::negative_values(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match interrupt::install().and_then(|()| cli.command.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note!("error: {}", output::chain(&error));
            ExitCode::FAILURE
        }
    }
}
