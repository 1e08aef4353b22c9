//! Choosing experts and summing what they give.

use super::operand::{f32s, store_f32s, store_u32s};
use super::rows::softmax_row;
use crate::Result;
use crate::ops::{ExpertGate, ExpertGateParams, ExpertSum};

/// Indices by descending value, equal ones by ascending index, NaN last.
pub(super) fn descending(values: &[f64]) -> Vec<usize> {
    let key = |i: usize| if values[i].is_nan() { f64::NEG_INFINITY } else { values[i] };
    let mut order: Vec<usize> = (0..values.len()).collect();
    // The sort is stable, and no key is NaN.
    order.sort_by(|&a, &b| key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal));
    order
}

/// The top_k largest of softmax(logits[t])
pub(super) fn expert_gate(op: &ExpertGate) -> Result<()> {
    let ExpertGateParams { n_tokens, n_experts, top_k, normalize } = op.params;
    let logits = f32s(&op.logits, n_tokens * n_experts)?;
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    for row in logits.chunks(n_experts) {
        let probabilities = softmax_row(row);
        let chosen = &descending(row)[..top_k];
        let sum: f64 = if normalize { chosen.iter().map(|&e| probabilities[e]).sum() } else { 1.0 };
        ids.extend(chosen.iter().map(|&e| e as u32));
        weights.extend(chosen.iter().map(|&e| probabilities[e] / sum));
    }
    store_u32s(&op.ids, &ids)?;
    store_f32s(&op.weights, &weights)
}

/// output[t][j] = Σ_s weights[t][s] · input[t·top_k + s][j]
pub(super) fn expert_sum(op: &ExpertSum) -> Result<()> {
    let ExpertSum { n_tokens, top_k, n, .. } = *op;
    let input = f32s(&op.input, n_tokens * top_k * n)?;
    let weights = f32s(&op.weights, n_tokens * top_k)?;
    let mut output = vec![0.0; n_tokens * n];
    for (slot, (row, weight)) in input.chunks(n).zip(weights).enumerate() {
        let token = slot / top_k;
        output[token * n..(token + 1) * n].iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
    }
    store_f32s(&op.output, &output)
}
