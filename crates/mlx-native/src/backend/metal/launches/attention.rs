//! Attention, the cache, rotary embedding.

use super::args::{AttentionArgs, FlashArgs, RopeArgs, StoreArgs};
use super::{Access, Bound, Launch, Library, PipelineKey, Plan, Routing, u32_of};
use crate::device::Activations;
use crate::ops::{Attention, Rope, RopeStyle, StoreKv};
use crate::{DType, Result};

/// Values of a head for each lane that the attention kernel is made for.
pub(crate) const LANE_VALUES: [usize; 4] = [2, 4, 8, 16];
/// What `setBytes` takes, in pairs of floats.
const MAX_PAIRS: usize = 512;

fn launch(function: String, bindings: Vec<Bound>, grid: [u32; 3], threads: u32) -> Vec<Launch> {
    let pipeline = PipelineKey::new(Library::Attention, function);
    vec![Launch { pipeline, bindings, grid, group: [threads, 1, 1], threadgroup_bytes: 0 }]
}

fn store_args(op: &StoreKv) -> Result<StoreArgs> {
    Ok(StoreArgs {
        n_kv_heads: u32_of("n_kv_heads", op.shape.n_kv_heads)?,
        capacity: u32_of("capacity", op.shape.capacity)?,
        head_dim: u32_of("head_dim", op.shape.head_dim)?,
        start: u32_of("start", op.start)?,
        len: (op.n_tokens * op.shape.n_kv_heads * op.shape.head_dim) as u64,
    })
}

pub(super) fn store_kv(op: &StoreKv) -> Result<Vec<Launch>> {
    let args = store_args(op)?;
    let cache = Bound::View(op.cache.clone(), Access::ReadWrite);
    let bindings = vec![Bound::read(&op.input), cache, Bound::args(&args)];
    let function = format!("store_kv_{}", op.cache.dtype);
    Ok(launch(function, bindings, [u32_of("elements", (args.len as usize).div_ceil(1024))?, 1, 1], 256))
}

/// Matrices of eight values that a head is made of, at most, and the largest head_dim for each.
pub(crate) const FLASH_HEADS: [(usize, usize); 3] = [(8, 64), (16, 128), (32, 256)];

pub(super) fn attention(op: &Attention, routing: &Routing) -> Result<Plan> {
    match flash_matrices(op, routing) {
        Some(matrices) => flash(op, matrices),
        None => Ok(Plan { launches: by_token(op)?, scratch: Vec::new(), fault: None }),
    }
}

/// Whether the kernel with simdgroup matrices runs it, and with how many to a head: an f16 cache, whole matrices, operands in f16 allowed. Its
/// rows depend on which others share eight.
fn flash_matrices(op: &Attention, routing: &Routing) -> Option<usize> {
    let cache = &op.params.cache;
    let allowed = op.k_cache.dtype == DType::F16
        && routing.options.activations != Activations::Exact
        && !routing.options.batch_invariant
        && cache.head_dim.is_multiple_of(8)
        && cache.capacity >= 8;
    FLASH_HEADS.into_iter().find(|(_, largest)| allowed && cache.head_dim <= *largest).map(|(matrices, _)| matrices)
}

/// Parts that positions are dealt into: enough threadgroups for a GPU, and 256 positions or more to each.
fn flash_parts(positions: usize, threadgroups: usize) -> usize {
    positions.div_ceil(256).min(64usize.div_ceil(threadgroups)).max(1)
}

fn flash(op: &Attention, matrices: usize) -> Result<Plan> {
    let params = &op.params;
    let cache = &params.cache;
    let rows = params.n_tokens * (params.n_heads / cache.n_kv_heads);
    // Up to 32 rows the four simdgroups of a threadgroup share eight rows, beyond that they have eight each.
    let split = rows <= 32;
    let row_groups = rows.div_ceil(if split { 8 } else { 32 });
    let positions = (params.start + params.n_tokens).min(params.window.unwrap_or(usize::MAX));
    let parts = if split { flash_parts(positions, cache.n_kv_heads * row_groups) } else { 1 };
    let capacity = u32_of("capacity", cache.capacity)?;
    let args = FlashArgs {
        n_tokens: u32_of("n_tokens", params.n_tokens)?,
        n_heads: u32_of("n_heads", params.n_heads)?,
        n_kv_heads: u32_of("n_kv_heads", cache.n_kv_heads)?,
        capacity,
        head_dim: cache.head_dim as u32,
        start: u32_of("start", params.start)?,
        window: params.window.map_or(capacity, |window| window.min(cache.capacity) as u32),
        parts: parts as u32,
        scale: params.scale,
        soft_cap: params.soft_cap.unwrap_or(0.0),
    };
    let output = |access| Bound::View(op.output.clone(), access);
    let found = |access| Bound::Scratch(0, access);
    let several = parts > 1;
    let mut launches = vec![Launch {
        pipeline: PipelineKey::new(
            Library::Flash,
            format!("{}_{matrices}", if split { "flash_split" } else { "flash" }),
        ),
        bindings: vec![
            Bound::read(&op.q),
            Bound::read(&op.k_cache),
            Bound::read(&op.v_cache),
            // The one of these two that nobody writes is bound to something that is there.
            if several { Bound::read(&op.q) } else { output(Access::Overwrite) },
            Bound::args(&args),
            if several { found(Access::Overwrite) } else { Bound::read(&op.q) },
        ],
        grid: [u32_of("rows", row_groups)?, args.n_kv_heads, args.parts],
        group: [128, 1, 1],
        threadgroup_bytes: 0,
    }];
    let mut scratch = Vec::new();
    if several {
        let all_rows = cache.n_kv_heads * rows;
        launches.push(Launch {
            pipeline: PipelineKey::new(Library::Flash, "flash_combine"),
            bindings: vec![found(Access::Read), output(Access::Overwrite), Bound::args(&args)],
            grid: [u32_of("rows", all_rows)?, 1, 1],
            group: [128, 1, 1],
            threadgroup_bytes: 0,
        });
        scratch.push(all_rows * parts * (cache.head_dim + 2) * 4);
    }
    Ok(Plan { launches, scratch, fault: None })
}

/// A threadgroup for each head of each token, in f32 throughout.
fn by_token(op: &Attention) -> Result<Vec<Launch>> {
    let params = &op.params;
    let head_dim = params.cache.head_dim;
    let (function, slices) = match LANE_VALUES.into_iter().find(|values| head_dim <= 32 * values) {
        Some(values) => (format!("attention_{}_v{values}", op.k_cache.dtype), 1),
        // Threadgroups for every 512 values of a head.
        None => (format!("attention_{}_wide", op.k_cache.dtype), u32_of("head_dim", head_dim.div_ceil(512))?),
    };
    let capacity = u32_of("capacity", params.cache.capacity)?;
    let args = AttentionArgs {
        n_heads: u32_of("n_heads", params.n_heads)?,
        n_kv_heads: u32_of("n_kv_heads", params.cache.n_kv_heads)?,
        capacity,
        head_dim: u32_of("head_dim", head_dim)?,
        start: u32_of("start", params.start)?,
        window: params.window.map_or(capacity, |window| window.min(params.cache.capacity) as u32),
        scale: params.scale,
        soft_cap: params.soft_cap.unwrap_or(0.0),
    };
    let bindings = vec![
        Bound::read(&op.q),
        Bound::read(&op.k_cache),
        Bound::read(&op.v_cache),
        Bound::overwrite(&op.output),
        Bound::args(&args),
    ];
    Ok(launch(function, bindings, [args.n_heads, u32_of("n_tokens", params.n_tokens)?, slices], 128))
}

/// The turns that each pair makes in a position, as a float and what it leaves.
fn frequencies(op: &Rope) -> Vec<[f32; 2]> {
    let params = &op.params;
    let turns = |pair: usize| {
        let frequency = f64::from(params.base).powf(-((2 * pair) as f64) / params.n_rot as f64);
        frequency * f64::from(params.frequency_scale) / std::f64::consts::TAU
    };
    let split = |turns: f64| [turns as f32, (turns - f64::from(turns as f32)) as f32];
    (0..params.n_rot / 2).map(|pair| split(turns(pair))).collect()
}

fn rope_args(op: &Rope, len: usize) -> Result<RopeArgs> {
    let params = &op.params;
    Ok(RopeArgs {
        n_heads: u32_of("n_heads", params.n_heads)?,
        head_dim: u32_of("head_dim", params.head_dim)?,
        n_rot: u32_of("n_rot", params.n_rot)?,
        positions_unsigned: u32::from(op.positions.dtype != DType::I32),
        has_factors: u32::from(op.frequency_factors.is_some()),
        interleaved: u32::from(params.style == RopeStyle::Interleaved),
        len: len as u64,
    })
}

pub(super) fn rope(op: &Rope) -> Result<Vec<Launch>> {
    let params = &op.params;
    let turn = |(chunk, frequencies): (usize, &[[f32; 2]])| {
        let still = if chunk == 0 { params.head_dim - params.n_rot } else { 0 };
        let len = params.n_tokens * params.n_heads * (frequencies.len() + still);
        let written = if params.n_rot / 2 > MAX_PAIRS { Access::ReadWrite } else { Access::Overwrite };
        let bindings = vec![
            Bound::read(&op.input),
            Bound::read(&op.positions),
            Bound::View(op.output.clone(), written),
            Bound::args(&rope_args(op, len)?),
            Bound::Bytes(bytemuck::cast_slice(frequencies).to_vec()),
            // Nobody reads it where there are no factors.
            Bound::read(op.frequency_factors.as_ref().unwrap_or(&op.positions)),
            Bound::args(&[u32_of("n_rot", chunk * MAX_PAIRS)?, u32_of("n_rot", frequencies.len())?]),
        ];
        let pipeline = PipelineKey::new(Library::Attention, "rope");
        let grid = [u32_of("elements", len.div_ceil(256))?, 1, 1];
        Ok(Launch { pipeline, bindings, grid, group: [256, 1, 1], threadgroup_bytes: 0 })
    };
    frequencies(op).chunks(MAX_PAIRS).enumerate().map(turn).collect()
}

/// Both rotations and both stores as one launch, for operations that belong together; none where the turns do not fit.
pub(super) fn rope_store(q: &Rope, k: &Rope, k_store: &StoreKv, v_store: &StoreKv) -> Option<Result<Launch>> {
    (q.params.n_rot / 2 <= MAX_PAIRS).then(|| rope_store_launch(q, k, k_store, v_store))
}

fn rope_store_launch(q: &Rope, k: &Rope, k_store: &StoreKv, v_store: &StoreKv) -> Result<Launch> {
    let threads = |op: &Rope| op.params.n_tokens * op.params.n_heads * (op.params.head_dim - op.params.n_rot / 2);
    let stored = k_store.n_tokens * k_store.shape.n_kv_heads * k_store.shape.head_dim;
    let cache = |op: &StoreKv| Bound::View(op.cache.clone(), Access::ReadWrite);
    let bindings = vec![
        Bound::read(&q.input),
        Bound::overwrite(&q.output),
        Bound::read(&k.input),
        // What is stored is read back.
        Bound::View(k.output.clone(), Access::ReadWrite),
        Bound::read(&v_store.input),
        cache(k_store),
        cache(v_store),
        Bound::read(&q.positions),
        Bound::args(&rope_args(q, threads(q))?),
        Bound::args(&rope_args(k, threads(k))?),
        Bound::args(&store_args(k_store)?),
        Bound::Bytes(bytemuck::cast_slice(&frequencies(q)).to_vec()),
        Bound::read(q.frequency_factors.as_ref().unwrap_or(&q.positions)),
    ];
    Ok(Launch {
        pipeline: PipelineKey::new(Library::Attention, format!("rope_store_{}", k_store.cache.dtype)),
        bindings,
        grid: [u32_of("elements", (threads(q) + threads(k) + stored).div_ceil(256))?, 1, 1],
        group: [256, 1, 1],
        threadgroup_bytes: 0,
    })
}

/// The element types of a cache: name and MSL.
pub(crate) const CACHE_TYPES: [(DType, &str); 2] = [(DType::F16, "half"), (DType::F32, "float")];
