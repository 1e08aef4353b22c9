//! Argmax, sampling, routing to experts, the sum of what they give.

use super::args::{ExpertArgs, RowArgs, SampleArgs};
use super::{Access, Bound, Fault, Launch, Library, PipelineKey, Plan, u32_of};
use crate::Result;
use crate::ops::{ArgMax, ExpertGate, ExpertSum, Sample};

fn launch(function: &str, bindings: Vec<Bound>, groups: usize, threads: u32) -> Result<Vec<Launch>> {
    let pipeline = PipelineKey::new(Library::Choose, function);
    let grid = [u32_of("threadgroups", groups)?, 1, 1];
    Ok(vec![Launch { pipeline, bindings, grid, group: [threads, 1, 1], threadgroup_bytes: 0 }])
}

pub(super) fn argmax(op: &ArgMax) -> Result<Vec<Launch>> {
    let args = RowArgs { dim: op.dim as u64, eps: 0.0, scale: 1.0 };
    // Many values a row: as many threads as a threadgroup may have.
    let threads = (op.dim.div_ceil(4).div_ceil(32) * 32).min(1024) as u32;
    launch("argmax", vec![Bound::read(&op.input), Bound::overwrite(&op.output), Bound::args(&args)], op.rows, threads)
}

/// Bits of each of the three parts of a weight's fraction: sums of so many parts fit into 32 bits.
fn part_bits(dim: u32) -> u32 {
    (dim - 1).leading_zeros().saturating_sub(1).clamp(1, 12)
}

pub(super) fn sample(op: &Sample) -> Result<Plan> {
    const THREADS: u32 = 256;
    let params = &op.params;
    let dim = u32_of("logits", op.dim)?;
    let history = op.history.as_ref().filter(|_| params.repetition_penalty != 1.0);
    let bits = part_bits(dim);
    let args = SampleArgs {
        top_p: ((f64::from(params.top_p) * (1u64 << 32) as f64) as u64).max(1),
        dim,
        history: u32_of("history", history.map_or(0, |history| history.len / 4))?,
        // More than there are keeps all.
        top_k: u32::try_from(params.top_k).unwrap_or(0),
        has_top_p: u32::from(params.top_p < 1.0),
        greedy: u32::from(params.temperature == 0.0),
        draw: (params.uniform() * (1 << 24) as f32) as u32,
        bits,
        one: (1u64 << (3 * bits)) as f32,
        temperature: params.temperature,
        penalty: params.repetition_penalty,
        min_p: params.min_p,
        pad: 0,
    };
    let launch = |function: &str, bindings: Vec<Bound>, len: u32, threads: u32| Launch {
        pipeline: PipelineKey::new(Library::Sample, function),
        bindings,
        grid: [len.div_ceil(threads), 1, 1],
        group: [threads, 1, 1],
        threadgroup_bytes: 0,
    };
    let mut launches = Vec::new();
    let mut logits = Bound::read(&op.logits);
    if let Some(history) = history.filter(|_| args.history > 0) {
        let copy = |access| Bound::Scratch(0, access);
        let source = || Bound::read(&op.logits);
        launches.push(launch("copy_logits", vec![source(), copy(Access::Overwrite), Bound::args(&args)], dim, THREADS));
        let bindings = vec![source(), copy(Access::ReadWrite), Bound::args(&args), Bound::read(history)];
        launches.push(launch("penalise", bindings, args.history, THREADS));
        logits = copy(Access::Read);
    }
    // One threadgroup, as many threads as it may have.
    let bindings = vec![logits, Bound::overwrite(&op.output), Bound::args(&args), Bound::Fault];
    launches.push(launch("sample", bindings, 1, 1024));
    let scratch = if launches.len() > 1 { vec![op.dim * 4] } else { Vec::new() };
    let fault = Some(Fault { ids: op.logits.clone(), limit: None, words: ["sample", "logit", "value"] });
    Ok(Plan { launches, scratch, fault })
}

pub(super) fn expert_gate(op: &ExpertGate) -> Result<Vec<Launch>> {
    let args = ExpertArgs {
        len: 0,
        n_experts: u32_of("n_experts", op.params.n_experts)?,
        top_k: u32_of("top_k", op.params.top_k)?,
        normalize: u32::from(op.params.normalize),
        n: 0,
    };
    let bindings =
        vec![Bound::read(&op.logits), Bound::overwrite(&op.ids), Bound::overwrite(&op.weights), Bound::args(&args)];
    launch("expert_gate", bindings, op.params.n_tokens, 32)
}

pub(super) fn expert_sum(op: &ExpertSum) -> Result<Vec<Launch>> {
    let len = op.n_tokens * op.n;
    let args = ExpertArgs {
        len: len as u64,
        n_experts: 0,
        top_k: u32_of("top_k", op.top_k)?,
        normalize: 0,
        n: u32_of("n", op.n)?,
    };
    let bindings =
        vec![Bound::read(&op.input), Bound::read(&op.weights), Bound::overwrite(&op.output), Bound::args(&args)];
    launch("expert_sum", bindings, len.div_ceil(256), 256)
}
