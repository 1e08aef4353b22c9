//! Products with weights, and rows of weights.

use super::weight::Rows;
use super::{faulted, operand};
use crate::ops::{Embedding, Input, InputLayout, Matmul, MatmulId, fault};
use crate::{DType, Result};

/// Row i of batch b of the logical input.
fn input_row(input: &Input, b: usize, i: usize, m: usize, k: usize) -> Result<Vec<f64>> {
    match input.layout {
        InputLayout::Rows { row_bytes, batch_bytes } => {
            operand::floats_at(&input.view, b * batch_bytes + i * row_bytes, input.dtype, k)
        }
        InputLayout::Heads { head_dim } => {
            let mut row = Vec::with_capacity(k);
            for head in 0..k / head_dim {
                let first = (head * m + i) * head_dim;
                row.extend(operand::floats_at(&input.view, first * input.dtype.size_of(), input.dtype, head_dim)?);
            }
            Ok(row)
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| sum + a * b)
}

/// output[b][i][j] = Σ_l weight[b'][j][l] · input[b][i][l]
pub(super) fn matmul(op: &Matmul) -> Result<()> {
    let Matmul { batch, weight_batch, m, n, k, .. } = *op;
    let weights = Rows::new(&op.weight, n, k);
    let group = batch / weight_batch;
    for matrix in 0..weight_batch {
        let weight = weights.matrix(matrix)?;
        for b in matrix * group..(matrix + 1) * group {
            for i in 0..m {
                let x = input_row(&op.input, b, i, m, k)?;
                let y: Vec<f64> = weight.iter().map(|row| dot(row, &x)).collect();
                operand::store_at(&op.output, (b * m + i) * n, op.output_dtype, &y)?;
            }
        }
    }
    Ok(())
}

/// output[slot] = weight[ids[slot]] · input[slot ÷ top_k]
pub(super) fn matmul_id(op: &MatmulId) -> Result<()> {
    let MatmulId { n_tokens, top_k, n_experts, n, k, .. } = *op;
    let ids = operand::u32s(&op.ids, n_tokens * top_k)?;
    let weights = Rows::new(&op.weight, n, k);
    // Expert by expert, so that each is decoded once.
    for expert in 0..n_experts {
        let slots: Vec<usize> = (0..ids.len()).filter(|&slot| ids[slot] as usize == expert).collect();
        let weight = if slots.is_empty() { Vec::new() } else { weights.matrix(expert)? };
        for slot in slots {
            let x = input_row(&op.input, 0, slot / top_k, n_tokens, k)?;
            let y: Vec<f64> = weight.iter().map(|row| dot(row, &x)).collect();
            operand::store_at(&op.output, slot * n, DType::F32, &y)?;
        }
    }
    let is_bad = |slot: &usize| ids[*slot] as usize >= n_experts;
    for slot in (0..ids.len()).filter(is_bad) {
        operand::store_at(&op.output, slot * n, DType::F32, &vec![f64::NAN; n])?;
    }
    let first = (0..ids.len()).find(is_bad);
    faulted(first.map(|slot| fault::bad_expert(slot, ids[slot], n_experts)))
}

/// output[t] = scale · weight[ids[t]]
pub(super) fn embedding(op: &Embedding) -> Result<()> {
    let ids = operand::u32s(&op.ids, op.params.n_tokens)?;
    let weights = Rows::new(&op.weight, op.n, op.k);
    let scale = f64::from(op.params.scale);
    for (t, &id) in ids.iter().enumerate() {
        let row = if (id as usize) < op.n { weights.row(0, id as usize)? } else { vec![f64::NAN; op.k] };
        let scaled: Vec<f64> = row.iter().map(|value| scale * value).collect();
        operand::store_at(&op.output, t * op.k, DType::F32, &scaled)?;
    }
    let first = ids.iter().position(|&id| id as usize >= op.n);
    faulted(first.map(|t| fault::bad_row(t, ids[t], op.n)))
}
