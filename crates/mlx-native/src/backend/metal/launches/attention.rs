//! Attention, the cache, rotary embedding.

use super::args::{AttentionArgs, RopeArgs, StoreArgs};
use super::{Access, Bound, Launch, Library, PipelineKey, u32_of};
use crate::ops::{Attention, Rope, RopeStyle, StoreKv};
use crate::{DType, MlxError, Result};

/// Values of a head for each lane that the attention kernel is made for.
pub(crate) const LANE_VALUES: [usize; 4] = [2, 4, 8, 16];
/// What `setBytes` takes, in pairs of floats.
const MAX_PAIRS: usize = 512;

fn launch(function: String, bindings: Vec<Bound>, grid: [u32; 3], threads: u32) -> Vec<Launch> {
    let pipeline = PipelineKey::new(Library::Attention, function);
    vec![Launch { pipeline, bindings, grid, group: [threads, 1, 1], threadgroup_bytes: 0 }]
}

pub(super) fn store_kv(op: &StoreKv) -> Result<Vec<Launch>> {
    let len = op.n_tokens * op.shape.n_kv_heads * op.shape.head_dim;
    let args = StoreArgs {
        n_kv_heads: u32_of("n_kv_heads", op.shape.n_kv_heads)?,
        capacity: u32_of("capacity", op.shape.capacity)?,
        head_dim: u32_of("head_dim", op.shape.head_dim)?,
        start: u32_of("start", op.start)?,
        len: len as u64,
    };
    let cache = Bound::View(op.cache.clone(), Access::ReadWrite);
    let bindings = vec![Bound::read(&op.input), cache, Bound::args(&args)];
    let function = format!("store_kv_{}", op.cache.dtype);
    Ok(launch(function, bindings, [u32_of("elements", len.div_ceil(1024))?, 1, 1], 256))
}

pub(super) fn attention(op: &Attention) -> Result<Vec<Launch>> {
    let params = &op.params;
    let head_dim = params.cache.head_dim;
    let Some(values) = LANE_VALUES.into_iter().find(|values| head_dim <= 32 * values) else {
        return Err(MlxError::KernelNotFound(format!("attention: head_dim {head_dim} exceeds 512 on Metal")));
    };
    let capacity = u32_of("capacity", params.cache.capacity)?;
    let args = AttentionArgs {
        n_heads: u32_of("n_heads", params.n_heads)?,
        n_kv_heads: u32_of("n_kv_heads", params.cache.n_kv_heads)?,
        capacity,
        head_dim: head_dim as u32,
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
    let grid = [args.n_heads, u32_of("n_tokens", params.n_tokens)?, 1];
    Ok(launch(format!("attention_{}_v{values}", op.k_cache.dtype), bindings, grid, 128))
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

pub(super) fn rope(op: &Rope) -> Result<Vec<Launch>> {
    let params = &op.params;
    let pairs = params.n_rot / 2;
    if pairs > MAX_PAIRS {
        return Err(MlxError::KernelNotFound(format!(
            "rope: n_rot {} exceeds {} on Metal",
            params.n_rot,
            2 * MAX_PAIRS
        )));
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
    let mut frequencies = frequencies(op);
    // A binding of no bytes is none.
    frequencies.push([0.0; 2]);
    frequencies.truncate(MAX_PAIRS.min(pairs.max(1)));
    let bindings = vec![
        Bound::read(&op.input),
        Bound::read(&op.positions),
        Bound::overwrite(&op.output),
        Bound::args(&args),
        Bound::Bytes(bytemuck::cast_slice(&frequencies).to_vec()),
        // Nobody reads it where there are no factors.
        Bound::read(op.frequency_factors.as_ref().unwrap_or(&op.positions)),
    ];
    Ok(launch("rope".into(), bindings, [u32_of("elements", len.div_ceil(256))?, 1, 1], 256))
}

/// The element types of a cache: name and MSL.
pub(crate) const CACHE_TYPES: [(DType, &str); 2] = [(DType::F16, "half"), (DType::F32, "float")];
