//! Attention with grouped heads over a key-value cache, and storing into the cache.
//!
//! A cache is `[n_kv_heads, capacity, head_dim]`, f16 or f32: the positions of one head lie together, so that a head's scores read
//! one contiguous run of memory.

use super::{Op, check};
use crate::buffer::View;
use crate::{CommandEncoder, DType, MlxBuffer, Result};

/// Shape of a cache of keys or of values, `[n_kv_heads, capacity, head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCacheParams {
    /// Heads.
    pub n_kv_heads: usize,
    /// Positions that fit.
    pub capacity: usize,
    /// Values of a head.
    pub head_dim: usize,
}

/// Parameters of [`CommandEncoder::attention`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionParams {
    /// Shape of both caches.
    pub cache: KvCacheParams,
    /// Query heads; a multiple of the cache's heads. Head h reads cache head h ÷ (n_heads ÷ n_kv_heads).
    pub n_heads: usize,
    /// Query tokens.
    pub n_tokens: usize,
    /// Position of the first query token; token i stands at `start + i` and sees positions `0 ..= start + i`.
    pub start: usize,
    /// Factor on the scores, usually 1/√head_dim.
    pub scale: f32,
    /// With a sliding window, token at position p sees only positions > p − window.
    pub window: Option<usize>,
    /// cap · tanh(score / cap) before the softmax.
    pub soft_cap: Option<f32>,
}

/// `cache[h][start + t]` = `input[t][h]`, for input f32 `[n_tokens, n_kv_heads, head_dim]`.
#[derive(Clone, Debug)]
pub(crate) struct StoreKv {
    pub input: View,
    pub cache: View,
    pub shape: KvCacheParams,
    pub n_tokens: usize,
    pub start: usize,
}

/// Checked attention: q and output f32 `[n_tokens, n_heads, head_dim]`, caches of one dtype, f16 or f32.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    pub q: View,
    pub k_cache: View,
    pub v_cache: View,
    pub output: View,
    pub params: AttentionParams,
}

fn cache_bytes(op: &str, shape: &KvCacheParams, dtype: DType) -> Result<usize> {
    let KvCacheParams { n_kv_heads, capacity, head_dim } = *shape;
    check::non_zero(op, &[("n_kv_heads", n_kv_heads), ("capacity", capacity), ("head_dim", head_dim)])?;
    check::bytes(op, &[n_kv_heads, capacity, head_dim], dtype)
}

fn positions_fit(op: &str, shape: &KvCacheParams, start: usize, n_tokens: usize) -> Result<()> {
    check::non_zero(op, &[("n_tokens", n_tokens)])?;
    match start.checked_add(n_tokens) {
        Some(end) if end <= shape.capacity => Ok(()),
        _ => check::invalid(format!(
            "{op}: positions {start} to {start} + {n_tokens} do not fit a cache of {} positions",
            shape.capacity
        )),
    }
}

impl CommandEncoder {
    /// Stores rows into a cache: `cache[h][start + t]` = `input[t][h]`, rounded to the cache's dtype. Input f32
    /// `[n_tokens, n_kv_heads, head_dim]`; cache f16 or f32.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) for wrong dtypes, zero or overflowing dimensions, positions beyond the capacity, or buffers that are too small.
    pub fn store_kv(
        &mut self,
        input: &MlxBuffer,
        cache: &mut MlxBuffer,
        shape: &KvCacheParams,
        start: usize,
        n_tokens: usize,
    ) -> Result<()> {
        check::dtype("store_kv", "input", input, DType::F32)?;
        check::dtype_in("store_kv", "cache", cache, &[DType::F16, DType::F32])?;
        let cache_bytes = cache_bytes("store_kv", shape, cache.dtype())?;
        positions_fit("store_kv", shape, start, n_tokens)?;
        let input_bytes = check::bytes("store_kv", &[n_tokens, shape.n_kv_heads, shape.head_dim], DType::F32)?;
        let device = self.device_id();
        self.record(Op::StoreKv(StoreKv {
            input: input.read(device, "input", input_bytes)?,
            cache: cache.write(device, "cache", cache_bytes)?,
            shape: *shape,
            n_tokens,
            start,
        }))
    }

    /// Causal attention: `output[t][h]` = Σ_p softmax_p(scale · `q[t][h]` · `k[g][p]`) · `v[g][p]` over the positions p that token t sees,
    /// g = h ÷ (n_heads ÷ n_kv_heads). q and output f32 `[n_tokens, n_heads, head_dim]`; both caches f16 or both f32, holding the
    /// positions up to `start + n_tokens`.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) for wrong dtypes, zero or overflowing dimensions, heads that do not group, a window of 0, a scale or cap out of range, or buffers that are too small.
    pub fn attention(
        &mut self,
        q: &MlxBuffer,
        k_cache: &MlxBuffer,
        v_cache: &MlxBuffer,
        output: &mut MlxBuffer,
        params: &AttentionParams,
    ) -> Result<()> {
        let AttentionParams { cache, n_heads, n_tokens, start, scale, window, soft_cap } = *params;
        check::dtype("attention", "q", q, DType::F32)?;
        check::dtype("attention", "output", output, DType::F32)?;
        check::dtype_in("attention", "k_cache", k_cache, &[DType::F16, DType::F32])?;
        check::dtype("attention", "v_cache", v_cache, k_cache.dtype())?;
        let cache_bytes = cache_bytes("attention", &cache, k_cache.dtype())?;
        positions_fit("attention", &cache, start, n_tokens)?;
        check::non_zero("attention", &[("n_heads", n_heads), ("window", window.unwrap_or(1))])?;
        if !n_heads.is_multiple_of(cache.n_kv_heads) {
            return check::invalid(format!(
                "attention: n_heads {n_heads} must be a multiple of n_kv_heads {}",
                cache.n_kv_heads
            ));
        }
        if !scale.is_finite() || soft_cap.is_some_and(|cap| !(cap > 0.0 && cap.is_finite())) {
            return check::invalid(format!("attention: scale {scale} or soft_cap {soft_cap:?} is out of range"));
        }
        let bytes = check::bytes("attention", &[n_tokens, n_heads, cache.head_dim], DType::F32)?;
        let device = self.device_id();
        self.record(Op::Attention(Attention {
            q: q.read(device, "q", bytes)?,
            k_cache: k_cache.read(device, "k_cache", cache_bytes)?,
            v_cache: v_cache.read(device, "v_cache", cache_bytes)?,
            output: output.write(device, "output", bytes)?,
            params: *params,
        }))
    }
}
