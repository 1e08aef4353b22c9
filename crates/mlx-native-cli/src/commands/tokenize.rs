//! `mlxn tokenize`.

use anyhow::{Context, Result};
use mlx_native_model::ModelFile;
use mlx_native_model::tokenizer::{EncodeOptions, SpecialText};
use serde::Serialize;
use std::ffi::OsString;
use std::io::{Read, Write};

use crate::output;
use crate::store;

/// Print the tokens of the text on standard input.
#[derive(clap::Args)]
#[command(after_help = "\
Without --json, prints one token per line: its id and its text.

Examples:
  printf 'Hello world' | mlxn tokenize smollm2
  printf '<|im_start|>user' | mlxn tokenize smollm2 --json --no-bos")]
pub struct Args {
    /// An alias, a GGUF file, a folder with one, or a model directory
    model: OsString,
    /// Print {"ids": […]}
    #[arg(long)]
    json: bool,
    /// Do not add the tokens that begin and end a sequence
    #[arg(long)]
    no_bos: bool,
    /// Take the text of control tokens, such as <|im_start|>, for ordinary text
    #[arg(long)]
    no_parse_special: bool,
}

#[derive(Serialize)]
struct Ids {
    ids: Vec<u32>,
}

/// Tokenizes standard input, byte for byte.
pub fn run(args: Args) -> Result<()> {
    let tokenizer = ModelFile::open(store::resolve_model(&args.model)?)?.tokenizer()?;
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).context("cannot read standard input")?;
    let text = str::from_utf8(&text).context("standard input is not UTF-8")?;
    let options = EncodeOptions { add_special: !args.no_bos, parse_special: !args.no_parse_special };
    let ids = tokenizer.encode(text, options)?;
    let mut out = output::stdout();
    if args.json {
        serde_json::to_writer(&mut out, &Ids { ids })?;
        writeln!(out)?;
        return Ok(());
    }
    for id in ids {
        let piece = String::from_utf8_lossy(tokenizer.piece(id, SpecialText::Show)?).into_owned();
        writeln!(out, "{id:>7}  {piece:?}")?;
    }
    Ok(())
}
