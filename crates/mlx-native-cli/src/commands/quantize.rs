//! `mlxn quantize`.

use anyhow::{Context, Result};
use mlx_native_model::ModelFile;
use mlx_native_model::convert::{Progress, Target, quantize};
use std::ffi::OsString;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::interrupt;
use crate::output;
use crate::store;

/// Write a model in another format.
#[derive(clap::Args)]
#[command(after_help = "\
The source is a GGUF file or a model directory (config.json and safetensors), best in f32, f16 or bf16. A GGUF format gives a GGUF file,
a format of MLX (affineBITS[:GROUP], mxfp4, mxfp8, nvfp4) a model directory that mlx-lm reads too.

Matrices take the format. Norms, biases and the routers of experts stay floats; in GGUF files the last matrix has at least 6 bits.
Rows that are not whole blocks get the next format that fits, and the program says so. The result appears when it is whole.

Examples:
  mlxn quantize Qwen3-4B Qwen3-4B-4bit --format affine4
  mlxn quantize Qwen3-4B qwen3-4b-q4_k.gguf --format q4_k
  mlxn quantize model-f16.gguf model-mxfp4 --format mxfp4")]
pub struct Args {
    /// A GGUF file, a model directory, an alias, or the name of a pulled model
    input: OsString,
    /// What to write: a file for GGUF formats, a directory for MLX's
    output: PathBuf,
    /// q4_0, q8_0, q4_k, q6_k, …, bf16, affine4, affine4:32, mxfp4, mxfp8, nvfp4
    #[arg(long, value_name = "FORMAT", value_parser = Target::parse)]
    format: Target,
}

/// Quantizes, with a bar that counts values.
pub fn run(args: Args) -> Result<()> {
    let path = store::resolve_model(&args.input)?;
    let input = ModelFile::open(&path)?;
    let failed = || format!("cannot quantize {}", path.display());
    let (result, interrupted) = interrupt::catch(|interrupted| {
        let mut bar = output::bar("values", 0);
        let result = quantize(&input, &args.output, args.format, &mut |progress| {
            match progress {
                Progress::Total { values } => bar = output::bar("values", values),
                Progress::Tensor { name, values } => {
                    bar.set_message(name);
                    bar.inc(values);
                }
                Progress::Note(text) => bar.suspend(|| output::note!("note: {text}")),
                _ => {}
            }
            if interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        bar.finish_and_clear();
        (result, interrupted())
    });
    if interrupted && result.is_err() {
        interrupt::end("interrupted: nothing was written");
    }
    result.with_context(failed)?;
    writeln!(output::stdout(), "{}", args.output.display())?;
    Ok(())
}
