//! Argmax, routing to experts, the sum of what they give.

use super::{Bound, Launch, Library, PipelineKey, Plan};
use crate::Result;
use crate::backend::gpu::args::{ExpertArgs, RowArgs};
use crate::backend::gpu::u32_of;
use crate::ops::{ArgMax, ExpertGate, ExpertSum};

fn launch(function: &str, bindings: Vec<Bound>, blocks: usize, threads: u32) -> Result<Plan> {
    let grid = [u32_of("blocks", blocks)?, 1, 1];
    Ok(Plan::of(vec![Launch::new(PipelineKey::new(Library::Choose, function), bindings, grid, threads)]))
}

pub(super) fn argmax(op: &ArgMax) -> Result<Plan> {
    let args = RowArgs { dim: op.dim as u64, eps: 0.0, scale: 1.0 };
    // Many values a row: as many threads as a block may have.
    let threads = (op.dim.div_ceil(4).div_ceil(32) * 32).min(1024) as u32;
    launch("argmax<>", vec![Bound::view(&op.input), Bound::view(&op.output), Bound::value(&args)], op.rows, threads)
}

pub(super) fn expert_gate(op: &ExpertGate) -> Result<Plan> {
    let args = ExpertArgs {
        len: 0,
        n_experts: u32_of("n_experts", op.params.n_experts)?,
        top_k: u32_of("top_k", op.params.top_k)?,
        normalize: u32::from(op.params.normalize),
        n: 0,
    };
    let bindings = vec![Bound::view(&op.logits), Bound::view(&op.ids), Bound::view(&op.weights), Bound::value(&args)];
    launch("expert_gate<>", bindings, op.params.n_tokens, 32)
}

pub(super) fn expert_sum(op: &ExpertSum) -> Result<Plan> {
    let len = op.n_tokens * op.n;
    let args = ExpertArgs {
        len: len as u64,
        n_experts: 0,
        top_k: u32_of("top_k", op.top_k)?,
        normalize: 0,
        n: u32_of("n", op.n)?,
    };
    let bindings = vec![Bound::view(&op.input), Bound::view(&op.weights), Bound::view(&op.output), Bound::value(&args)];
    launch("expert_sum<>", bindings, len.div_ceil(256), 256)
}
