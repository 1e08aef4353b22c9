//! Attention over a key-value cache.

use super::operand::{f32s, floats, store_at, store_f32s};
use super::rows::softmax_row;
use crate::Result;
use crate::ops::{Attention, AttentionParams, StoreKv};

/// cache[h][start + t] = input[t][h]
pub(super) fn store_kv(op: &StoreKv) -> Result<()> {
    let (heads, head_dim) = (op.shape.n_kv_heads, op.shape.head_dim);
    let input = f32s(&op.input, op.n_tokens * heads * head_dim)?;
    for (i, row) in input.chunks(head_dim).enumerate() {
        let (t, h) = (i / heads, i % heads);
        store_at(&op.cache, (h * op.shape.capacity + op.start + t) * head_dim, op.cache.dtype, row)?;
    }
    Ok(())
}

/// output[t][h] = Σ_p softmax_p(scale · q[t][h] · k[g][p]) · v[g][p] over the positions p that token t sees
pub(super) fn attention(op: &Attention) -> Result<()> {
    let AttentionParams { cache, n_heads, n_tokens, start, scale, window, soft_cap } = op.params;
    let head_dim = cache.head_dim;
    let cached = cache.n_kv_heads * cache.capacity * head_dim;
    let q = f32s(&op.q, n_tokens * n_heads * head_dim)?;
    let keys = floats(&op.k_cache, op.k_cache.dtype, cached)?;
    let values = floats(&op.v_cache, op.v_cache.dtype, cached)?;

    let mut output = Vec::with_capacity(q.len());
    for (i, q) in q.chunks(head_dim).enumerate() {
        let (t, h) = (i / n_heads, i % n_heads);
        let group = h / (n_heads / cache.n_kv_heads);
        let row = |p: usize| (group * cache.capacity + p) * head_dim..(group * cache.capacity + p + 1) * head_dim;

        let last = start + t;
        let first = window.map_or(0, |window| (last + 1).saturating_sub(window));
        let score = |p: usize| {
            let dot: f64 = q.iter().zip(&keys[row(p)]).map(|(q, k)| q * k).sum();
            let score = f64::from(scale) * dot;
            soft_cap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh())
        };
        let weights = softmax_row(&(first..=last).map(score).collect::<Vec<f64>>());

        let mut sum = vec![0.0; head_dim];
        for (p, weight) in (first..=last).zip(weights) {
            sum.iter_mut().zip(&values[row(p)]).for_each(|(sum, v)| *sum += weight * v);
        }
        output.extend(sum);
    }
    store_f32s(&op.output, &output)
}
