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
/// The same in heads.cu, whose kernel takes heads of these values.
const HEADS_PART: usize = 64;
pub(super) const HEADS_THREADS: u32 = 256;
const HEADS_DIMS: [usize; 3] = [64, 128, 256];
/// Parts that the last block puts together, as many as a launch has blocks for on a large GPU; groups of heads and tokens that it can count for.
const JOINED_PARTS: usize = 16;
pub(super) const MOST_GROUPS: usize = 4096;
/// Dynamic shared memory of which a processor has room for one block.
pub(super) const APART_BYTES: usize = 116 << 10;
/// Threads of `join_heads`, a warp for each of its stripes.
const JOIN_THREADS: u32 = 256;
/// Scratch memory of the parts: more tokens than it has room for are computed in turns.
const PART_BYTES: usize = 256 << 20;
/// Tokens of a block of the kernel for many, `TOKENS` in flash.cu.
const FLASH_TOKENS: usize = 64;
/// Tokens whose threads fill a large GPU though each has several heads.
const MANY_TOKENS: usize = 256;
/// Fewer tokens than these do not fill a tile of it.
const FLASH_FROM: usize = 9;

fn store_args(op: &StoreKv) -> Result<StoreArgs> {
    Ok(StoreArgs {
        n_kv_heads: u32_of("n_kv_heads", op.shape.n_kv_heads)?,
        capacity: u32_of("capacity", op.shape.capacity)?,
        head_dim: u32_of("head_dim", op.shape.head_dim)?,
        start: u32_of("start", op.start)?,
        len: (op.n_tokens * op.shape.n_kv_heads * op.shape.head_dim) as u64,
    })
}

/// The live values of `store_kv` and `rope_store`.
pub(super) fn store_live(op: &StoreKv) -> Result<Vec<Vec<u8>>> {
    Ok(vec![bytemuck::bytes_of(&store_args(op)?).to_vec()])
}

pub(super) fn store_kv(op: &StoreKv) -> Result<Plan> {
    let args = store_args(op)?;
    let pipeline = PipelineKey::new(Library::Attention, format!("store_kv<{}>", type_name(op.cache.dtype)));
    let bindings = vec![Bound::view(&op.input), Bound::view(&op.cache), Bound::live(&args)];
    let grid = [u32_of("elements", (args.len as usize).div_ceil(256))?, 1, 1];
    Ok(Plan::of(vec![Launch::new(pipeline, bindings, grid, 256)]))
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

pub(super) fn part_args(op: &Attention) -> Result<PartArgs> {
    let params = &op.params;
    let head_dim = params.cache.head_dim;
    let capacity = u32_of("capacity", params.cache.capacity)?;
    let window = params.window.map_or(params.cache.capacity, |window| window.min(params.cache.capacity));
    // From the part that the first token's window begins in to the last; that depends on the position only up to its bucket.
    let part = if suits_heads(op) { HEADS_PART } else { PART };
    let parts = (bucket(op).div_ceil(part)).min((window + params.n_tokens - 1).div_ceil(part) + 1);
    let vectors =
        head_dim.is_multiple_of(8) && [&op.k_cache, &op.v_cache].iter().all(|view| view.offset.is_multiple_of(16));
    Ok(PartArgs {
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
    })
}

/// Tokens of a launch of `attention`: as many as scratch memory holds the parts of.
fn turn_of(op: &Attention, args: &PartArgs) -> usize {
    let token_rows = args.parts as usize * op.params.n_heads;
    match args.parts {
        1 => op.params.n_tokens,
        _ => (PART_BYTES / (token_rows * op.params.cache.head_dim * 4)).clamp(1, op.params.n_tokens),
    }
}

/// The live values of `attention`.
pub(super) fn attention_live(op: &Attention, planner: &Planner<'_>) -> Result<Vec<Vec<u8>>> {
    let args = part_args(op)?;
    if is_flash(op, planner) {
        return Ok(vec![bytemuck::bytes_of(&args).to_vec()]);
    }
    let launches = launches_of(op, &args, planner)?;
    let starts = (0..op.params.n_tokens).step_by(turn_of(op, &args)).map(|token| args.start + token as u32);
    let values = starts.map(|start| bytemuck::bytes_of(&PartArgs { start, ..args }).to_vec());
    Ok(values.flat_map(|value| vec![value; if launches.joins_apart() { 2 } else { 1 }]).collect())
}

pub(super) fn attention(op: &Attention, planner: &Planner<'_>) -> Result<Plan> {
    let args = part_args(op)?;
    let (params, head_dim) = (&op.params, op.params.cache.head_dim);
    let n_tokens = u32_of("n_tokens", params.n_tokens)?;
    if is_flash(op, planner) {
        let function = format!("flash_attention<{head_dim}, {}>", flash_positions(head_dim));
        let mut bindings: Vec<Bound> = [&op.q, &op.k_cache, &op.v_cache, &op.output].map(Bound::view).to_vec();
        bindings.extend([Bound::live(&args), Bound::value(&n_tokens)]);
        let grid = [args.n_heads, u32_of("tokens", params.n_tokens.div_ceil(FLASH_TOKENS))?, 1];
        let launch = Launch::new(PipelineKey::new(Library::Flash, function), bindings, grid, 128);
        return Ok(Plan::of(vec![Launch { shared_bytes: flash_bytes(head_dim), ..launch }]));
    }
    parts_attention(op, planner, args)
}

/// What the kernel for few tokens needs to be the one for halves and common heads.
pub(super) fn suits_heads(op: &Attention) -> bool {
    let aligned = |view: &View| view.offset.is_multiple_of(16);
    HEADS_DIMS.contains(&op.params.cache.head_dim)
        && op.k_cache.dtype == DType::F16
        && [&op.q, &op.k_cache, &op.v_cache, &op.output].into_iter().all(aligned)
}

/// How attention by parts of the positions is launched.
pub(super) struct PartLaunches {
    /// Whether the kernel is the one of heads.cu.
    pub heads: bool,
    /// Query heads of a block.
    pub queries: usize,
    pub parts: usize,
    /// Whether the last block puts the parts together.
    pub joins: bool,
}

impl PartLaunches {
    /// Whether a launch of its own puts the parts together.
    fn joins_apart(&self) -> bool {
        self.parts > 1 && !self.joins
    }
}

pub(super) fn launches_of(op: &Attention, args: &PartArgs, planner: &Planner<'_>) -> Result<PartLaunches> {
    let params = &op.params;
    let sharing = params.n_heads / params.cache.n_kv_heads;
    let heads = suits_heads(op);
    let groups: &[usize] = if heads { &[4, 3, 2] } else { &[8, 4, 2] };
    let queries = groups.iter().copied().find(|&queries| sharing.is_multiple_of(queries)).unwrap_or(1);
    let head_dim = params.cache.head_dim;
    if !heads && part_bytes(head_dim, queries) > planner.info.shared_bytes {
        return Err(MlxError::KernelNotFound(format!("attention: head_dim {head_dim} exceeds the shared memory")));
    }
    let parts = args.parts as usize;
    let joins = heads && parts <= JOINED_PARTS && turn_of(op, args) * (params.n_heads / queries) <= MOST_GROUPS;
    Ok(PartLaunches { heads, queries, parts, joins })
}

/// Attention by parts of the positions, in turns of tokens.
pub(super) fn parts_attention(op: &Attention, planner: &Planner<'_>, args: PartArgs) -> Result<Plan> {
    let (params, head_dim) = (&op.params, op.params.cache.head_dim);
    let launches = launches_of(op, &args, planner)?;
    let PartLaunches { heads, queries, parts, joins } = launches;
    let mut plan = Plan::default();
    let token_rows = parts * params.n_heads;
    let turn = turn_of(op, &args);
    let (partial, totals) = match parts {
        // Nobody writes what a single part does not need.
        1 => (plan.scratch(4), plan.scratch(turn * token_rows * 8)),
        _ => (plan.scratch(turn * token_rows * head_dim * 4), plan.scratch(turn * token_rows * 8)),
    };
    // Brought up while few processors are free, blocks would crowd on those: memory that nobody uses keeps them apart, if all have a place.
    let blocks = params.n_heads / queries * parts * turn.min(params.n_tokens);
    let apart = planner.info.arch >= 90 && blocks <= planner.info.processors as usize;
    let (library, threads, shared_bytes, function) = if heads {
        (
            Library::Heads,
            HEADS_THREADS,
            if apart { APART_BYTES } else { 0 },
            format!("attention_heads<{queries}, {head_dim}, {joins}>"),
        )
    } else {
        let function = format!("attention<{}, {queries}>", type_name(op.k_cache.dtype));
        (Library::Attention, PART_THREADS, part_bytes(head_dim, queries), function)
    };
    let row_bytes = params.n_heads * head_dim * 4;
    for token in (0..params.n_tokens).step_by(turn) {
        let tokens = turn.min(params.n_tokens - token);
        let live = Bound::live(&PartArgs { start: args.start + token as u32, ..args });
        let rows = |view: &View| Bound::View(view.part(token * row_bytes, tokens * row_bytes));
        let (q, y) = (rows(&op.q), rows(&op.output));
        let mut bindings = vec![q, Bound::view(&op.k_cache), Bound::view(&op.v_cache), y.clone()];
        bindings.extend([partial.clone(), totals.clone(), live.clone()]);
        let grid = [u32_of("heads", params.n_heads / queries)?, args.parts, tokens as u32];
        let launch = Launch::new(PipelineKey::new(library, function.clone()), bindings, grid, threads);
        plan.launches.push(Launch { shared_bytes, ..launch });
        if launches.joins_apart() {
            let bindings = vec![partial.clone(), totals.clone(), y, live];
            let (function, threads) = match heads {
                true => (format!("join_heads<{head_dim}>"), JOIN_THREADS),
                false => ("attention_combine<>".into(), PART_THREADS),
            };
            let pipeline = PipelineKey::new(library, function);
            plan.launches.push(Launch::new(pipeline, bindings, [args.n_heads, tokens as u32, 1], threads));
        }
    }
    Ok(plan)
}

/// Dynamic shared memory of `attention`.
fn part_bytes(head_dim: usize, queries: usize) -> usize {
    let padded = head_dim.next_multiple_of(8);
    let groups = (PART_THREADS as usize / (padded / 8)).max(1);
    (queries * padded + queries * PART + groups * padded) * 4
}

/// The turns that each pair makes in a position, as a float and what it leaves.
pub(super) fn frequencies(op: &Rope) -> RopeTable {
    let params = &op.params;
    let mut table = RopeTable { turns: [[0.0; 2]; ROPE_PAIRS] };
    for (pair, split) in table.turns.iter_mut().take(params.n_rot / 2).enumerate() {
        let frequency = f64::from(params.base).powf(-((2 * pair) as f64) / params.n_rot as f64);
        let turns = frequency * f64::from(params.frequency_scale) / std::f64::consts::TAU;
        *split = [turns as f32, (turns - f64::from(turns as f32)) as f32];
    }
    table
}

/// Whether a table of frequencies holds all pairs.
pub(super) fn turns_fit(op: &Rope) -> bool {
    op.params.n_rot / 2 <= ROPE_PAIRS
}

pub(super) fn rope_args(op: &Rope) -> Result<RopeArgs> {
    let params = &op.params;
    if !turns_fit(op) {
        let most = 2 * ROPE_PAIRS;
        return Err(MlxError::KernelNotFound(format!("rope: n_rot {} exceeds {most} on CUDA", params.n_rot)));
    }
    Ok(RopeArgs {
        n_heads: u32_of("n_heads", params.n_heads)?,
        head_dim: u32_of("head_dim", params.head_dim)?,
        n_rot: params.n_rot as u32,
        positions_unsigned: u32::from(op.positions.dtype != DType::I32),
        has_factors: u32::from(op.frequency_factors.is_some()),
        interleaved: u32::from(params.style == RopeStyle::Interleaved),
        len: (params.n_tokens * params.n_heads * (params.head_dim - params.n_rot / 2)) as u64,
    })
}

/// Heads that a thread turns by the angle that it computes: several where there are many tokens.
fn heads_of_a_thread(n_tokens: usize, n_heads: &[usize]) -> usize {
    let divides = |heads: &usize| n_heads.iter().all(|n| n.is_multiple_of(*heads));
    [8, 4, 2].into_iter().filter(|_| n_tokens >= MANY_TOKENS).find(divides).unwrap_or(1)
}

pub(super) fn rope(op: &Rope) -> Result<Plan> {
    let args = rope_args(op)?;
    let bindings = vec![
        Bound::view(&op.input),
        Bound::view(&op.positions),
        Bound::view(&op.output),
        Bound::value(&args),
        Bound::value(&frequencies(op)),
        // Nobody reads it where there are no factors.
        Bound::view(op.frequency_factors.as_ref().unwrap_or(&op.positions)),
    ];
    let heads = heads_of_a_thread(op.params.n_tokens, &[op.params.n_heads]);
    let grid = [u32_of("elements", (args.len as usize / heads).div_ceil(256))?, 1, 1];
    let pipeline = PipelineKey::new(Library::Rope, format!("rope<{heads}>"));
    Ok(Plan::of(vec![Launch::new(pipeline, bindings, grid, 256)]))
}

/// Both rotations and both stores as one launch, for operations that belong together.
pub(super) fn rope_store(q: &Rope, k: &Rope, k_store: &StoreKv, v_store: &StoreKv) -> Result<Plan> {
    let (q_args, k_args, store) = (rope_args(q)?, rope_args(k)?, store_args(k_store)?);
    let bindings = vec![
        Bound::view(&q.input),
        Bound::view(&q.output),
        Bound::view(&k.input),
        Bound::view(&k.output),
        Bound::view(&v_store.input),
        Bound::view(&k_store.cache),
        Bound::view(&v_store.cache),
        Bound::view(&q.positions),
        Bound::value(&q_args),
        Bound::value(&k_args),
        Bound::live(&store),
        Bound::value(&frequencies(q)),
        Bound::view(q.frequency_factors.as_ref().unwrap_or(&q.positions)),
    ];
    // A block has threads for queries, keys or values alone.
    let heads = heads_of_a_thread(q.params.n_tokens, &[q.params.n_heads, k.params.n_heads]);
    let threads = [q_args.len as usize / heads, k_args.len as usize / heads, store.len as usize];
    let blocks = threads.map(|threads| threads.div_ceil(256));
    let grid = [u32_of("elements", blocks.iter().sum())?, 1, 1];
    let function = format!("rope_store<{}, {heads}>", type_name(k_store.cache.dtype));
    let launch = Launch::new(PipelineKey::new(Library::Rope, function), bindings, grid, 256);
    // The first store's, which comes third.
    Ok(Plan { live_from: 2, ..Plan::of(vec![launch]) })
}
