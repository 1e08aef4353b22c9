//! Attention, the cache, rotary embedding.

use super::args::{PartArgs, ROPE_PAIRS, RopeTable};
use super::elementwise::type_name;
use super::{Bound, Launch, Library, PipelineKey, Plan, Planner};
use crate::backend::gpu::args::{RopeArgs, StoreArgs};
use crate::backend::gpu::u32_of;
use crate::buffer::View;
use crate::device::Activations;
use crate::ops::{Attention, Rope, RopeStyle, StoreKv};
use crate::{DType, MlxError, Result};

/// Positions that a block attends to, and its threads; `PART` and `PART_THREADS` in attention.cu.
const PART: usize = 128;
const PART_THREADS: u32 = 128;
/// Scratch memory of the parts: more tokens than it has room for are computed in turns.
const PART_BYTES: usize = 256 << 20;
/// Tokens of a block of the kernel for many, `TOKENS` in flash.cu.
const FLASH_TOKENS: usize = 64;
/// Fewer tokens than these do not fill a tile of it.
const FLASH_FROM: usize = 9;

pub(super) fn store_kv(op: &StoreKv) -> Result<Plan> {
    let len = op.n_tokens * op.shape.n_kv_heads * op.shape.head_dim;
    let args = StoreArgs {
        n_kv_heads: u32_of("n_kv_heads", op.shape.n_kv_heads)?,
        capacity: u32_of("capacity", op.shape.capacity)?,
        head_dim: u32_of("head_dim", op.shape.head_dim)?,
        start: u32_of("start", op.start)?,
        len: len as u64,
    };
    let pipeline = PipelineKey::new(Library::Attention, format!("store_kv<{}>", type_name(op.cache.dtype)));
    let bindings = vec![Bound::view(&op.input), Bound::view(&op.cache), Bound::live(&args)];
    Ok(Plan::of(vec![Launch::new(pipeline, bindings, [u32_of("elements", len.div_ceil(256))?, 1, 1], 256)]))
}

/// Positions that a captured list may be replayed for: the length rounded up to a power of two, so that a growing context changes the grid
/// a few times only.
pub(crate) fn bucket(op: &Attention) -> usize {
    let len = op.params.start + op.params.n_tokens;
    len.next_power_of_two().max(PART).min(op.params.cache.capacity.max(len))
}

/// Whether the tensor cores attend.
fn is_flash(op: &Attention, planner: &Planner<'_>) -> bool {
    let head_dim = op.params.cache.head_dim;
    op.params.n_tokens >= FLASH_FROM
        && op.k_cache.dtype == DType::F16
        && head_dim.is_multiple_of(16)
        && head_dim <= 256
        && flash_bytes(head_dim) <= planner.info.shared_bytes
        && planner.options.activations != Activations::Exact
        && !planner.options.batch_invariant
        && [&op.k_cache, &op.v_cache].iter().all(|view| view.offset.is_multiple_of(16))
        && op.q.offset.is_multiple_of(8)
        && op.output.offset.is_multiple_of(8)
}

/// Positions of a step of the tensor cores: with wide heads fewer, so that the sums stay in registers.
fn flash_positions(head_dim: usize) -> usize {
    if head_dim <= 128 { 64 } else { 32 }
}

fn flash_bytes(head_dim: usize) -> usize {
    (FLASH_TOKENS + 4 * flash_positions(head_dim)) * (head_dim + 8) * 2
}

pub(super) fn attention(op: &Attention, planner: &Planner<'_>) -> Result<Plan> {
    let params = &op.params;
    let head_dim = params.cache.head_dim;
    let capacity = u32_of("capacity", params.cache.capacity)?;
    let window = params.window.map_or(params.cache.capacity, |window| window.min(params.cache.capacity));
    // From the part that the first token's window begins in to the last; that depends on the position only up to its bucket.
    let parts = (bucket(op).div_ceil(PART)).min((window + params.n_tokens - 1).div_ceil(PART) + 1);
    let vectors =
        head_dim.is_multiple_of(8) && [&op.k_cache, &op.v_cache].iter().all(|view| view.offset.is_multiple_of(16));
    let args = PartArgs {
        n_heads: u32_of("n_heads", params.n_heads)?,
        n_kv_heads: u32_of("n_kv_heads", params.cache.n_kv_heads)?,
        capacity,
        head_dim: u32_of("head_dim", head_dim)?,
        start: u32_of("start", params.start)?,
        window: window as u32,
        scale: params.scale,
        soft_cap: params.soft_cap.unwrap_or(0.0),
        parts: u32_of("parts", parts)?,
        vectors: u32::from(vectors),
    };
    let n_tokens = u32_of("n_tokens", params.n_tokens)?;
    let n_heads = args.n_heads;
    let operands =
        || vec![Bound::view(&op.q), Bound::view(&op.k_cache), Bound::view(&op.v_cache), Bound::view(&op.output)];
    if is_flash(op, planner) {
        let function = format!("flash_attention<{head_dim}, {}>", flash_positions(head_dim));
        let mut bindings = operands();
        bindings.extend([Bound::live(&args), Bound::value(&n_tokens)]);
        let grid = [args.n_heads, u32_of("tokens", params.n_tokens.div_ceil(FLASH_TOKENS))?, 1];
        let launch = Launch::new(PipelineKey::new(Library::Flash, function), bindings, grid, 128);
        return Ok(Plan::of(vec![Launch { shared_bytes: flash_bytes(head_dim), ..launch }]));
    }
    let sharing = params.n_heads / params.cache.n_kv_heads;
    let queries = [8, 4, 2].into_iter().find(|queries| sharing.is_multiple_of(*queries)).unwrap_or(1);
    let padded = head_dim.next_multiple_of(8);
    let groups = (PART_THREADS as usize / (padded / 8)).max(1);
    let shared_bytes = (queries * padded + queries * PART + groups * padded) * 4;
    if shared_bytes > planner.info.shared_bytes {
        return Err(MlxError::KernelNotFound(format!("attention: head_dim {head_dim} exceeds the shared memory")));
    }
    let mut plan = Plan::default();
    let token_rows = parts * params.n_heads;
    let turn = match parts {
        1 => params.n_tokens,
        _ => (PART_BYTES / (token_rows * head_dim * 4)).clamp(1, params.n_tokens),
    };
    let (partial, totals) = match parts {
        // Nobody writes what a single part does not need.
        1 => (plan.scratch(4), plan.scratch(turn * token_rows * 8)),
        _ => (plan.scratch(turn * token_rows * head_dim * 4), plan.scratch(turn * token_rows * 8)),
    };
    let row_bytes = params.n_heads * head_dim * 4;
    let function = format!("attention<{}, {queries}>", type_name(op.k_cache.dtype));
    for token in (0..params.n_tokens).step_by(turn) {
        let tokens = turn.min(params.n_tokens - token);
        let args = Bound::live(&PartArgs { start: args.start + token as u32, ..args });
        let rows = |view: &View| Bound::View(view.part(token * row_bytes, tokens * row_bytes));
        let (q, y) = (rows(&op.q), rows(&op.output));
        let mut bindings = vec![q, Bound::view(&op.k_cache), Bound::view(&op.v_cache), y.clone()];
        bindings.extend([partial.clone(), totals.clone(), args.clone()]);
        let grid = [n_heads / queries as u32, u32_of("parts", parts)?, tokens as u32];
        let pipeline = PipelineKey::new(Library::Attention, function.clone());
        let launch = Launch::new(pipeline, bindings, grid, PART_THREADS);
        plan.launches.push(Launch { shared_bytes, ..launch });
        if parts > 1 {
            let bindings = vec![partial.clone(), totals.clone(), y, args];
            let pipeline = PipelineKey::new(Library::Attention, "attention_combine<>");
            plan.launches.push(Launch::new(pipeline, bindings, [n_heads, tokens as u32, 1], 128));
        }
    }
    Ok(plan)
}

/// The turns that each pair makes in a position, as a float and what it leaves.
fn frequencies(op: &Rope) -> RopeTable {
    let params = &op.params;
    let mut table = RopeTable { turns: [[0.0; 2]; ROPE_PAIRS] };
    for (pair, split) in table.turns.iter_mut().take(params.n_rot / 2).enumerate() {
        let frequency = f64::from(params.base).powf(-((2 * pair) as f64) / params.n_rot as f64);
        let turns = frequency * f64::from(params.frequency_scale) / std::f64::consts::TAU;
        *split = [turns as f32, (turns - f64::from(turns as f32)) as f32];
    }
    table
}

pub(super) fn rope(op: &Rope) -> Result<Plan> {
    let params = &op.params;
    let pairs = params.n_rot / 2;
    if pairs > ROPE_PAIRS {
        let most = 2 * ROPE_PAIRS;
        return Err(MlxError::KernelNotFound(format!("rope: n_rot {} exceeds {most} on CUDA", params.n_rot)));
    }
    let len = params.n_tokens * params.n_heads * (params.head_dim - pairs);
    let args = RopeArgs {
        n_heads: u32_of("n_heads", params.n_heads)?,
        head_dim: u32_of("head_dim", params.head_dim)?,
        n_rot: params.n_rot as u32,
        positions_unsigned: u32::from(op.positions.dtype != DType::I32),
        has_factors: u32::from(op.frequency_factors.is_some()),
        interleaved: u32::from(params.style == RopeStyle::Interleaved),
        len: len as u64,
    };
    let bindings = vec![
        Bound::view(&op.input),
        Bound::view(&op.positions),
        Bound::view(&op.output),
        Bound::value(&args),
        Bound::value(&frequencies(op)),
        // Nobody reads it where there are no factors.
        Bound::view(op.frequency_factors.as_ref().unwrap_or(&op.positions)),
    ];
    let grid = [u32_of("elements", len.div_ceil(256))?, 1, 1];
    Ok(Plan::of(vec![Launch::new(PipelineKey::new(Library::Rope, "rope<>"), bindings, grid, 256)]))
}
