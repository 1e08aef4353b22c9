//! `mlxn bench ops`.

use anyhow::{Result, bail};
use clap::ValueEnum;
use conformance::generate::{Scales, WeightData, normals, rng};
use mlx_native::{CapabilityQuery, DType, MlxBuffer, MlxDevice, OpKind, Weight, WeightFormat};
use serde::Serialize;
use std::io::Write;
use std::time::{Duration, Instant};

use super::median;
use crate::engine::DeviceArgs;
use crate::output;

/// Measure single operations on random data.
#[derive(clap::Args)]
#[command(after_help = "\
Dimensions may be lists; every combination is measured. Weights are larger than the caches: copies take turns.
GB/s counts weights, input and output once; for matmul_id the weights of the experts that are used.

Example: mlxn bench ops --format Q4_0,Q4_K -m 1,8,512 -n 4096 -k 14336 --threads 2 --json")]
pub struct Args {
    /// Operations
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["matmul"])]
    op: Vec<Operation>,
    /// Formats of the weight, as `mlxn info` names them [default: all]
    #[arg(long, value_delimiter = ',')]
    format: Vec<String>,
    /// Input rows
    #[arg(short, value_delimiter = ',', default_values = ["1", "8", "128"])]
    m: Vec<usize>,
    /// Output features
    #[arg(short, value_delimiter = ',', default_values = ["4096"])]
    n: Vec<usize>,
    /// Input features
    #[arg(short, value_delimiter = ',', default_values = ["4096"])]
    k: Vec<usize>,
    /// Experts of matmul_id
    #[arg(long, default_value_t = 32)]
    experts: usize,
    /// Experts that each row of matmul_id goes through
    #[arg(long, default_value_t = 4)]
    top: usize,
    /// Print an array of {op, format, m, n, k, device, kernel, seconds, gb_per_s, gflop_per_s}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, Serialize, ValueEnum)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
enum Operation {
    /// A dense product
    Matmul,
    /// A product with the experts that each row is routed to
    MatmulId,
}

#[derive(Serialize)]
struct Measured {
    op: Operation,
    format: String,
    m: usize,
    n: usize,
    k: usize,
    device: String,
    kernel: String,
    /// Median of one run.
    seconds: f64,
    gb_per_s: f64,
    gflop_per_s: f64,
}

/// Bytes of weights that take turns, so that none is still in a cache when its turn comes.
const ROTATED_BYTES: usize = 256 << 20;
/// How long each combination is measured at least.
const TIME: Duration = Duration::from_millis(400);
/// Runs at least, the first not counted.
const RUNS: usize = 6;

/// Measures every combination.
pub fn run(args: Args) -> Result<()> {
    let device = args.device.open()?;
    let formats = named_formats(&args.format)?;
    if args.top == 0 || args.top > args.experts {
        bail!("--top {}: expected 1 to --experts {}", args.top, args.experts);
    }
    let mut out = output::stdout();
    let mut all = Vec::new();
    for &op in &args.op {
        for &format in &formats {
            for (&n, &k) in args.n.iter().flat_map(|n| args.k.iter().map(move |k| (n, k))) {
                let bench = Bench { op, format, n, k, experts: args.experts, top: args.top, device: &device };
                let weights = bench.weights()?;
                for &m in &args.m {
                    let measured = bench.measure(&weights, m)?;
                    if !args.json {
                        let Measured { format, kernel, seconds, gb_per_s, gflop_per_s, .. } = &measured;
                        let name = op.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
                        writeln!(
                            out,
                            "{name} {format:8} m {m:>4}, n {n}, k {k}: {:>10.1} µs {gb_per_s:>7.1} GB/s \
                             {gflop_per_s:>8.1} GFLOP/s  {kernel}",
                            seconds * 1e6
                        )?;
                    }
                    all.push(measured);
                }
            }
        }
    }
    if args.json { output::json(&all) } else { Ok(()) }
}

/// The formats of these names; all of them for none.
fn named_formats(names: &[String]) -> Result<Vec<WeightFormat>> {
    let all: Vec<WeightFormat> = conformance::formats().collect();
    if names.is_empty() {
        return Ok(all);
    }
    let mut formats = Vec::new();
    for name in names {
        match all.iter().find(|format| format.name().eq_ignore_ascii_case(name)) {
            Some(&format) => formats.push(format),
            None => bail!(
                "no weight format is called {name}; there are {}",
                all.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ")
            ),
        }
    }
    Ok(formats)
}

/// An operation with everything but its rows.
struct Bench<'d> {
    op: Operation,
    format: WeightFormat,
    n: usize,
    k: usize,
    experts: usize,
    top: usize,
    device: &'d MlxDevice,
}

impl Bench<'_> {
    /// Copies of a random weight that are together larger than the caches.
    fn weights(&self) -> Result<Vec<Weight>> {
        let matrices = match self.op {
            Operation::Matmul => 1,
            Operation::MatmulId => self.experts,
        };
        let random = &mut rng(1, "bench");
        let data = WeightData::random(self.format, matrices, self.n, self.k, Scales::Ordinary, random)?;
        let copies = ROTATED_BYTES / (self.format.matrix_bytes(self.n, self.k)? * matrices).max(1) + 1;
        (0..copies).map(|_| Ok(data.upload(self.device)?)).collect()
    }

    fn measure(&self, weights: &[Weight], m: usize) -> Result<Measured> {
        let Self { op, format, n, k, .. } = *self;
        let (kind, per_row) = match op {
            Operation::Matmul => (OpKind::Matmul, 1),
            Operation::MatmulId => (OpKind::MatmulId, self.top),
        };
        let capability = self.device.capability(&CapabilityQuery { op: kind, format, m, n, k });
        if let Some(why) = capability.why_not {
            bail!("{}, m {m}, n {n}, k {k} on {}: {why}", format.name(), self.device.name());
        }
        let random = &mut rng(2, "bench");
        let input = self.device.buffer_from_slice(&normals(random, m * k, 1.0), DType::F32, vec![m, k])?;
        // Rows take the experts in turn, so that as many as possible are used.
        let ids: Vec<u32> = (0..m * per_row).map(|slot| (slot % self.experts) as u32).collect();
        let ids = self.device.buffer_from_slice(&ids, DType::U32, vec![m, per_row])?;
        let rows = m * per_row;
        let mut output = self.device.alloc_buffer(rows * n * size_of::<f32>(), DType::F32, vec![rows, n])?;

        let mut times = Vec::new();
        let start = Instant::now();
        while times.len() < RUNS || start.elapsed() < TIME {
            let weight = &weights[times.len() % weights.len()];
            let before = Instant::now();
            self.once(weight, &input, &ids, &mut output)?;
            times.push(before.elapsed().as_secs_f64());
        }
        let seconds = median(&times[1..]);
        let used = match op {
            Operation::Matmul => 1,
            Operation::MatmulId => rows.min(self.experts),
        };
        let weight_bytes = weights.first().map_or(0, |weight| weight.byte_len() / weight.n_experts() * used);
        let bytes = weight_bytes + input.byte_len() + output.byte_len();
        Ok(Measured {
            op,
            format: format.name().into_owned(),
            m,
            n,
            k,
            device: self.device.name(),
            kernel: capability.kernel,
            seconds,
            gb_per_s: bytes as f64 / seconds / 1e9,
            gflop_per_s: 2.0 * rows as f64 * n as f64 * k as f64 / seconds / 1e9,
        })
    }

    fn once(&self, weight: &Weight, input: &MlxBuffer, ids: &MlxBuffer, output: &mut MlxBuffer) -> Result<()> {
        let mut encoder = self.device.command_encoder()?;
        match self.op {
            Operation::Matmul => encoder.matmul(input, weight, output)?,
            Operation::MatmulId => encoder.matmul_id(input, weight, ids, output, None)?,
        }
        Ok(encoder.commit_and_wait()?)
    }
}
