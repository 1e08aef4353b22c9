//! Operations that look at a whole row, head or token at a time.

use super::operand::{f32s, store_f32s, u32s};
use crate::ops::{RmsNorm, Rope, RopeStyle, Softmax};
use crate::{DType, Result};

/// s = input (+ residual); output = s / √(mean(s²) + eps) · weight
pub(super) fn rms_norm(op: &RmsNorm) -> Result<()> {
    let (rows, dim) = (op.params.rows, op.params.dim);
    let mut s = f32s(&op.input, rows * dim)?;
    if let Some(residual) = &op.residual {
        s.iter_mut().zip(f32s(residual, rows * dim)?).for_each(|(s, residual)| *s += residual);
    }
    let weight = f32s(&op.weight, dim)?;
    let mut output = Vec::with_capacity(rows * dim);
    for row in s.chunks(dim) {
        let mean_square = row.iter().map(|x| x * x).sum::<f64>() / dim as f64;
        let rms = (mean_square + f64::from(op.params.eps)).sqrt();
        output.extend(row.iter().zip(&weight).map(|(x, weight)| x / rms * weight));
    }
    if let Some(sum) = &op.sum {
        store_f32s(sum, &s)?;
    }
    store_f32s(&op.output, &output)
}

/// Pair i of a head turns by position · frequency_scale · base^(−2i/n_rot) / factor[i].
pub(super) fn rope(op: &Rope) -> Result<()> {
    let params = &op.params;
    let (head_dim, n_rot) = (params.head_dim, params.n_rot);
    let mut values = f32s(&op.input, params.n_tokens * params.n_heads * head_dim)?;
    let positions = u32s(&op.positions, params.n_tokens)?;
    let factors = match &op.frequency_factors {
        None => vec![1.0; n_rot / 2],
        Some(factors) => f32s(factors, n_rot / 2)?,
    };
    for (token, position) in values.chunks_mut(params.n_heads * head_dim).zip(positions) {
        let position = match op.positions.dtype {
            DType::I32 => f64::from(position as i32),
            _ => f64::from(position),
        };
        for head in token.chunks_mut(head_dim) {
            for (i, factor) in factors.iter().enumerate() {
                let frequency = f64::from(params.base).powf(-2.0 * i as f64 / n_rot as f64) / factor;
                let (sin, cos) = (position * f64::from(params.frequency_scale) * frequency).sin_cos();
                let (first, second) = match params.style {
                    RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                    RopeStyle::NeoX => (i, i + n_rot / 2),
                };
                let (x, y) = (head[first], head[second]);
                head[first] = x * cos - y * sin;
                head[second] = x * sin + y * cos;
            }
        }
    }
    store_f32s(&op.output, &values)
}

/// e^(x − max) / Σ, a row that sums to 1; NaN anywhere makes all of it NaN.
pub(super) fn softmax_row(row: &[f64]) -> Vec<f64> {
    let max = row.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(x));
    let exps: Vec<f64> = row.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|exp| exp / sum).collect()
}

/// output[r] = softmax(scale · input[r])
pub(super) fn softmax(op: &Softmax) -> Result<()> {
    let mut values = f32s(&op.input, op.rows * op.dim)?;
    values.iter_mut().for_each(|x| *x *= f64::from(op.scale));
    store_f32s(&op.output, &values.chunks(op.dim).flat_map(softmax_row).collect::<Vec<f64>>())
}
