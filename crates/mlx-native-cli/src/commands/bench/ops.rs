//! `mlxn bench ops`.

use anyhow::{Context, Result, bail};
use mlx_native::{MlxDevice, WeightFormat};
use serde::Serialize;
use std::io::Write;
use std::time::{Duration, Instant};

use super::beside::{Arithmetic, Beside, Medians};
use super::cases::{self, Case, Operation, Shape, Weights};
use super::median;
use super::queued::{Lists, Queued, Runs};
use crate::engine::DeviceArgs;
use crate::numbers::at_least;
use crate::output;

/// Measure single operations on random data, beside what the processor can do at most.
#[derive(clap::Args)]
#[command(after_help = "\
Dimensions may be lists; every combination is measured. Weights and caches are larger than the processor's caches: \
copies take turns. GB/s counts everything that has to be read or written once; for matmul_id the weights of the \
experts that are used.

The first percentage is the share of what loads alone read from memory (more is possible where data comes from a \
cache), the second the share of the peak of 8-bit or f32 multiply-adds. Both limits are measured between the runs, \
with the same threads and instruction set. On a GPU only reading is measured.

On CUDA times are the GPU's own, between events in its queue, which is kept filled: the host's share is not in them. \
They are those of the whole operation: products with more than eight rows prepare their input first, and that is \
counted. --cublas queues lists of the operation and of cuBLAS's product with weights of halves in turn, each some \
--list-ms long, so that both have the clock that the power limit leaves; the ratio is the median over neighbours of \
cuBLAS's time divided by the operation's, above 1 where the operation is faster. A GPU takes seconds to settle: \
give --seconds, or measure something before.

With --one-input 16, sixteen products in turn, of weights and outputs of their own, read the same input, as those of \
queries, keys and values do. CUDA prepares an input of more than eight rows once for up to 32 products, or 16 with \
experts, whose lists are made once too: a sixteenth of that is left in a product's time. Up to three products of eight rows and \
fewer become one launch.

Examples:
  mlxn bench ops --format Q4_0,Q4_K -m 1,8,512 -n 4096 -k 14336 --threads 2 --json
  mlxn bench ops --op attention -m 1 --context 512,4096 --heads 9/3 --head-dim 64
  mlxn bench ops --op softmax,argmax,sample -m 1 -n 151936 --isa avx2
  mlxn bench ops --device cuda --cublas --format Q4_0,Q8_0 -m 128,512 -n 28672 -k 8192 --seconds 1
  mlxn bench ops --device cuda --op matmul_id --one-input 16 -m 512 --experts 128 --top 8 -n 768 -k 2048")]
pub struct Args {
    /// Operations
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["matmul"])]
    op: Vec<Operation>,
    /// Formats of the weight, as `mlxn info` names them [default: all]
    #[arg(long, value_delimiter = ',')]
    format: Vec<String>,
    /// Input rows
    #[arg(short, value_delimiter = ',', default_values = ["1", "8", "128"], value_parser = at_least::<1>)]
    m: Vec<usize>,
    /// Output features
    #[arg(short, value_delimiter = ',', default_values = ["4096"], value_parser = at_least::<1>)]
    n: Vec<usize>,
    /// Input features
    #[arg(short, value_delimiter = ',', default_values = ["4096"], value_parser = at_least::<1>)]
    k: Vec<usize>,
    /// Experts of matmul_id
    #[arg(long, default_value_t = 32, value_parser = at_least::<1>)]
    experts: usize,
    /// Experts that each row of matmul_id goes through
    #[arg(long, default_value_t = 4, value_parser = at_least::<1>)]
    top: usize,
    /// Positions that attention sees
    #[arg(long, value_delimiter = ',', default_values = ["512", "4096"], value_parser = at_least::<1>)]
    context: Vec<usize>,
    /// Heads of queries and of the cache
    #[arg(long, value_delimiter = ',', default_values = ["32/8"], value_name = "QUERY/CACHE")]
    heads: Vec<String>,
    /// Values of a head
    #[arg(long, default_value_t = 128, value_parser = at_least::<1>)]
    head_dim: usize,
    /// How long each combination is measured at least
    #[arg(long, default_value_t = 0.3)]
    seconds: f64,
    /// Operations of a few microseconds are recorded several times in a list, as they are in a model, so that a list
    /// takes about so many milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1.0)]
    list_ms: f64,
    /// So many products of a list, one after the other, read the same input
    #[arg(long, value_name = "PRODUCTS", default_value_t = 1, value_parser = at_least::<1>)]
    one_input: usize,
    /// Compare products with cuBLAS's of the same shape on weights of halves, in turn (CUDA)
    #[arg(long)]
    cublas: bool,
    /// Print an array of {op, format, m, n, k, context, heads, one_input, device, kernel, timed_by, runs, seconds,
    /// best_seconds, gb_per_s, gflop_per_s, read_gb_per_s, share_of_read, arithmetic, peak_gop_per_s, share_of_peak,
    /// cublas_seconds, times_cublas}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Serialize)]
struct Measured {
    op: Operation,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<String>,
    #[serde(flatten)]
    shape: Shape,
    /// Products in a row that read the same input, where they are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    one_input: Option<usize>,
    device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<String>,
    timed_by: Clock,
    /// Timed runs.
    runs: usize,
    /// Median of a run.
    seconds: f64,
    /// The fastest run.
    best_seconds: f64,
    gb_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gflop_per_s: Option<f64>,
    /// What loads alone read meanwhile.
    read_gb_per_s: Option<f64>,
    share_of_read: Option<f64>,
    /// Which peak.
    arithmetic: Arithmetic,
    peak_gop_per_s: Option<f64>,
    share_of_peak: Option<f64>,
    /// Median of cuBLAS's product in turn with the operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    cublas_seconds: Option<f64>,
    /// Median of its time divided by the operation's beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    times_cublas: Option<f64>,
}

/// Whose clock a time is by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Clock {
    Host,
    Device,
}

/// Timed runs at least.
pub(super) const RUNS: usize = 7;

/// Measures every combination.
pub fn run(args: Args) -> Result<()> {
    let device = args.device.open()?;
    let formats = named_formats(&args.format)?;
    if args.top > args.experts {
        bail!("--top {}: expected 1 to --experts {}", args.top, args.experts);
    }
    let heads = args.heads.iter().map(|text| parse_heads(text, args.head_dim)).collect::<Result<Vec<_>>>()?;
    if args.cublas && args.op != [Operation::Matmul] {
        bail!("--cublas compares --op matmul alone");
    }
    let seconds = |what: &str, seconds: f64| {
        Duration::try_from_secs_f64(seconds).with_context(|| format!("{what} {seconds}: expected a duration"))
    };
    let mut bench = Bench {
        device: &device,
        beside: Beside::new(&device)?,
        least: seconds("--seconds", args.seconds)?,
        list: seconds("--list-ms", args.list_ms / 1e3)?,
        cublas: args.cublas,
        json: args.json,
        all: Vec::new(),
    };
    for &op in &args.op {
        match op {
            Operation::Matmul | Operation::MatmulId => {
                let (experts, top) = match op {
                    Operation::Matmul => (1, None),
                    _ => (args.experts, Some(args.top)),
                };
                for (format, (n, k)) in pairs(&formats, &pairs(&args.n, &args.k)) {
                    let weights = Weights::new(&device, format, experts, n, k)?;
                    for &m in &args.m {
                        bench.measure(cases::product(&device, &weights, m, top, args.one_input)?)?;
                    }
                }
            }
            Operation::Attention => {
                for (heads, (context, m)) in pairs(&heads, &pairs(&args.context, &args.m)) {
                    bench.measure(cases::attention(&device, m, context, heads)?)?;
                }
            }
            Operation::Rope => {
                for (heads, m) in pairs(&heads, &args.m) {
                    bench.measure(cases::rowwise(&device, op, m, 0, heads)?)?;
                }
            }
            _ => {
                let widths = if op == Operation::RmsNorm { &args.k } else { &args.n };
                for (width, m) in pairs(widths, &args.m) {
                    bench.measure(cases::rowwise(&device, op, m, width, heads[0])?)?;
                }
            }
        }
    }
    if args.json { output::json(&bench.all) } else { Ok(()) }
}

/// Every combination, the second varying fastest.
fn pairs<A: Copy, B: Copy>(a: &[A], b: &[B]) -> Vec<(A, B)> {
    a.iter().flat_map(|&a| b.iter().map(move |&b| (a, b))).collect()
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

/// `32/8` and the values of a head.
fn parse_heads(text: &str, head_dim: usize) -> Result<[usize; 3]> {
    let parsed = text.split_once('/').and_then(|(q, kv)| Some((q.parse().ok()?, kv.parse().ok()?)));
    let (q, kv): (usize, usize) = parsed.with_context(|| format!("--heads {text}: expected two numbers as in 32/8"))?;
    if kv == 0 || q == 0 || !q.is_multiple_of(kv) {
        bail!("--heads {text}: expected a multiple of the cache's heads");
    }
    Ok([q, kv, head_dim])
}

struct Bench<'d> {
    device: &'d MlxDevice,
    beside: Beside,
    /// How long each combination is measured at least, and a list takes about.
    least: Duration,
    list: Duration,
    cublas: bool,
    json: bool,
    all: Vec<Measured>,
}

impl Bench<'_> {
    fn measure(&mut self, mut case: Case<'_>) -> Result<()> {
        let mut lists = Lists { encoder: self.device.command_encoder()?, turn: 0 };
        // The first run faults pages in and takes to the device what the host wrote; the second says how long one takes.
        let turns = case.turns;
        lists.run(&mut case, turns)?;
        let before = Instant::now();
        lists.run(&mut case, 1)?;
        let once = before.elapsed().as_secs_f64();
        let times = (self.list.as_secs_f64() / once).clamp(1.0, 256.0).round() as usize;
        // Products that read one input are all in one list.
        let times = times.next_multiple_of(case.together);
        lists.turn = 0;
        let (timed_by, runs) = match self.device.laps()? {
            Some(laps) => {
                let mut queued = Queued { laps, vendor: None, least: self.least };
                if let (true, Some(n), Some(k)) = (self.cublas, case.shape.n, case.shape.k) {
                    let product = self.device.vendor_product([case.shape.m, n, k], cases::copies(2 * n * k))?;
                    queued.vendor = Some(product);
                }
                (Clock::Device, queued.time(&mut self.beside, &mut case, &mut lists, times)?)
            }
            None if self.cublas => bail!("--cublas: {} has no cuBLAS; expected --device cuda", self.device.name()),
            None => {
                let run = || lists.run(&mut case, times);
                (Clock::Host, Runs { seconds: self.beside.time(RUNS, self.least, run)?, vendor: Vec::new() })
            }
        };
        let limits = self.beside.take();
        let measured = Measured::new(self.device.name(), &case, timed_by, &runs, times, &limits);
        if !self.json {
            writeln!(output::stdout(), "{}", measured.line())?;
        }
        self.all.push(measured);
        Ok(())
    }
}

impl Measured {
    fn new(device: String, case: &Case<'_>, timed_by: Clock, runs: &Runs, times: usize, limits: &Medians) -> Self {
        let each = |lists: &[f64]| median(lists) / times as f64;
        let seconds = each(&runs.seconds);
        let ratios: Vec<f64> = runs.vendor.iter().zip(&runs.seconds).map(|(vendor, ours)| vendor / ours).collect();
        let gb_per_s = case.bytes as f64 / seconds / 1e9;
        let gflop_per_s = case.operations.map(|operations| operations / seconds / 1e9);
        let peak_gop_per_s = limits.peak(case.arithmetic);
        Measured {
            op: case.op,
            format: case.format.map(|format| format.name().into_owned()),
            shape: case.shape,
            one_input: (case.together > 1).then_some(case.together),
            device,
            kernel: case.kernel.clone(),
            timed_by,
            runs: runs.seconds.len(),
            seconds,
            best_seconds: runs.seconds.iter().copied().fold(f64::INFINITY, f64::min) / times as f64,
            gb_per_s,
            gflop_per_s,
            read_gb_per_s: limits.read_gb_per_s,
            share_of_read: limits.read_gb_per_s.map(|limit| gb_per_s / limit),
            arithmetic: case.arithmetic,
            peak_gop_per_s,
            share_of_peak: peak_gop_per_s.zip(gflop_per_s).map(|(peak, rate)| rate / peak),
            cublas_seconds: (!ratios.is_empty()).then(|| each(&runs.vendor)),
            times_cublas: (!ratios.is_empty()).then(|| median(&ratios)),
        }
    }

    /// One line for people.
    fn line(&self) -> String {
        let Shape { m, n, k, context, heads } = self.shape;
        let mut what = self.op.name();
        if let Some(format) = &self.format {
            what += &format!(" {format:8}");
        }
        what += &format!(" m {m:>4}");
        for (name, value) in [("n", n), ("k", k), ("context", context)] {
            what += &value.map(|value| format!(", {name} {value}")).unwrap_or_default();
        }
        if let Some([q, kv, dim]) = heads {
            what += &format!(", {q}/{kv} heads of {dim}");
        }
        let percent = |share: Option<f64>| share.map(|share| format!(" ({:.0} %)", 100.0 * share)).unwrap_or_default();
        let mut line = format!("{what}: {:>9.1} µs {:>7.1} GB/s", self.seconds * 1e6, self.gb_per_s);
        line += &percent(self.share_of_read);
        if let Some(rate) = self.gflop_per_s {
            line += &format!(" {rate:>8.1} GFLOP/s{}", percent(self.share_of_peak));
        }
        if let Some(kernel) = &self.kernel {
            line += &format!("  {kernel}");
        }
        if let (Some(seconds), Some(ratio)) = (self.cublas_seconds, self.times_cublas) {
            line += &format!("  cuBLAS {:.1} µs ({ratio:.3} ×)", seconds * 1e6);
        }
        match (self.read_gb_per_s, self.peak_gop_per_s) {
            (Some(read), Some(peak)) => line += &format!("  [read {read:.1} GB/s, peak {peak:.0} Gop/s]"),
            (Some(read), None) => line += &format!("  [read {read:.1} GB/s]"),
            _ => (),
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::parse_heads;

    #[test]
    fn heads() {
        assert_eq!(parse_heads("9/3", 64).unwrap(), [9, 3, 64]);
        for wrong in ["9", "9/0", "9/2", "0/1", "a/b"] {
            assert!(parse_heads(wrong, 64).unwrap_err().to_string().contains(wrong));
        }
    }
}
