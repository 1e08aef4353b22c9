//! `mlxn selftest`.

use anyhow::{Context, Result, bail};
use conformance::{Reference, Selection, Verdict, cases};
use mlx_native::{Activations, DeviceOptions, MlxDevice};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use crate::output;

/// Check that this machine's devices compute right.
#[derive(clap::Args)]
#[command(after_help = "\
Every operation on every format is compared with a slow computation in double precision; on the CPU with each \
instruction set that this machine has, with exact and 8-bit activations, and with batch-invariant rows. Without --full, \
a sample is taken that touches every kernel.

Examples:
  mlxn selftest
  mlxn selftest --device cpu --filter matmul/Q4_K
  mlxn selftest --device metal --full
  mlxn selftest --device metal --full --shard 1/2 --record part1.tsv")]
pub struct Args {
    /// cpu, metal, cuda or cuda:NUMBER [default: all that are here]
    #[arg(long)]
    device: Option<String>,
    /// Run the whole table
    #[arg(long)]
    full: bool,
    /// Chooses the sample and the data
    #[arg(long, default_value_t = 1, conflicts_with = "full")]
    seed: u64,
    /// Run the cases whose name contains this text, or one of several
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Run one of several parts, such as 1/2 and, in another process, 2/2
    #[arg(long, value_name = "PART/PARTS", value_parser = shard)]
    shard: Option<(usize, usize)>,
    /// Write how many cases of each operation and format passed
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Print each case's kernel and error too
    #[arg(short, long)]
    verbose: bool,
}

/// Runs the conformance table.
pub fn run(args: Args) -> Result<()> {
    let devices = devices(args.device.as_deref())?;
    let mut out = output::stdout();
    for device in &devices {
        writeln!(out, "{}", conformance::label(device))?;
    }
    let selection = if args.full { Selection::Full } else { Selection::Sample { seed: args.seed } };
    let wanted = |name: &str| args.filter.is_empty() || args.filter.iter().any(|filter| name.contains(filter.as_str()));
    let (part, parts) = args.shard.unwrap_or((1, 1));
    if !cases(selection).any(|case| wanted(&case.name())) {
        bail!("no case's name contains `{}`", args.filter.join("` or `"));
    }
    let cases = conformance::part(cases(selection).filter(|case| wanted(&case.name())), part - 1, parts);
    if cases.is_empty() {
        bail!("--shard {part}/{parts}: there are fewer cases than parts");
    }
    // The whole table takes hours: a record that has no place shall not be found out at its end.
    if let Some(path) = &args.record {
        let file = OpenOptions::new().append(true).create(true).open(path);
        file.with_context(|| format!("cannot write {}", path.display()))?;
    }
    let bar = output::bar("cases", (cases.len() * devices.len()) as u64);
    let report = conformance::run(&devices, &Reference::new()?, cases.into_iter(), |outcome| {
        // The whole table takes long enough to be stopped: what is wrong is said at once.
        if let (true, Verdict::Failed(message)) = (args.full, &outcome.verdict) {
            bar.suspend(|| output::note!("{} on {} ({}): {message}", outcome.case, outcome.device, outcome.kernel));
        }
        bar.inc(1);
    });
    bar.finish_and_clear();
    if args.verbose {
        write!(out, "{}", report.worst_lines())?;
    }
    writeln!(out, "{report}")?;
    if let Some(path) = &args.record {
        std::fs::write(path, report.tally.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !report.is_ok() {
        bail!("this machine computes wrong results");
    }
    Ok(())
}

/// `i/n` with i from 1 to n.
fn shard(text: &str) -> std::result::Result<(usize, usize), String> {
    let numbers = text.split_once('/').and_then(|(part, parts)| Some((part.parse().ok()?, parts.parse().ok()?)));
    numbers.filter(|(part, parts)| (1..=*parts).contains(part)).ok_or_else(|| "expected i/n with 1 ≤ i ≤ n".into())
}

/// The devices of that name, in each way in which they can compute.
fn devices(name: Option<&str>) -> Result<Vec<MlxDevice>> {
    let on_gpu = |name: &str| -> mlx_native::Result<Vec<MlxDevice>> {
        let options = |batch_invariant| DeviceOptions { batch_invariant, ..DeviceOptions::default() };
        let exact = DeviceOptions { activations: Activations::Exact, ..DeviceOptions::default() };
        [options(false), options(true), exact].map(|options| MlxDevice::by_name(name, options)).into_iter().collect()
    };
    match name {
        Some("cpu") => Ok(conformance::cpu_devices()?),
        Some(name) => Ok(on_gpu(name)?),
        None => {
            let mut all = conformance::cpu_devices()?;
            all.extend(["metal", "cuda"].into_iter().filter_map(|name| on_gpu(name).ok()).flatten());
            Ok(all)
        }
    }
}
