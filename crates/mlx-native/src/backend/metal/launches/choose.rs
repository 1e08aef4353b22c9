//! Argmax, routing to experts, the sum of what they give.

use super::args::{ExpertArgs, RowArgs};
use super::{Bound, Launch, Library, PipelineKey, u32_of};
use crate::Result;
use crate::ops::{ArgMax, ExpertGate, ExpertSum};

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
