//! Choosing tokens.

use std::collections::BTreeSet;

use super::experts::descending;
use super::operand::{f32s, store_u32s, u32s};
use super::{faulted, rows};
use crate::Result;
use crate::ops::{ArgMax, Sample, SampleParams, fault};

/// The smallest index of the largest value
pub(super) fn argmax(op: &ArgMax) -> Result<()> {
    let input = f32s(&op.input, op.rows * op.dim)?;
    let best: Vec<u32> = input.chunks(op.dim).map(|row| largest(row) as u32).collect();
    store_u32s(&op.output, &best)
}

/// NaN never wins unless all are NaN, then 0.
fn largest(row: &[f64]) -> usize {
    let wins = |i: usize, best: usize| row[i] > row[best] || (row[best].is_nan() && !row[i].is_nan());
    (1..row.len()).fold(0, |best, i| if wins(i, best) { i } else { best })
}

/// The stages of [`SampleParams`], one after the other.
pub(super) fn sample(op: &Sample) -> Result<()> {
    let SampleParams { temperature, top_k, top_p, min_p, repetition_penalty, .. } = op.params;
    let mut logits = f32s(&op.logits, op.dim)?;
    if let Some(i) = logits.iter().position(|logit| logit.is_nan()) {
        return faulted(Some(fault::nan_logit(i)));
    }
    if let Some(history) = &op.history {
        let seen: BTreeSet<usize> = u32s(history, history.len / 4)?.into_iter().map(|id| id as usize).collect();
        let penalty = f64::from(repetition_penalty);
        for id in seen.into_iter().filter(|&id| id < op.dim) {
            logits[id] = if logits[id] > 0.0 { logits[id] / penalty } else { logits[id] * penalty };
        }
    }
    let best = largest(&logits);
    if temperature == 0.0 || logits[best].is_infinite() {
        return store_u32s(&op.output, &[best as u32]);
    }

    let mut ids = descending(&logits);
    if top_k > 0 {
        ids.truncate(top_k);
    }
    let kept_logits: Vec<f64> = ids.iter().map(|&id| logits[id]).collect();
    let probabilities = rows::softmax_row(&kept_logits);

    let (mut kept, mut sum) = (0, 0.0);
    for &probability in &probabilities {
        // The tokens stand by falling probability, so both cuts keep a front part, and always the first token.
        let enough = sum >= f64::from(top_p) || probability < f64::from(min_p) * probabilities[0];
        if kept > 0 && enough {
            break;
        }
        kept += 1;
        sum += probability;
    }

    let weights = kept_logits[..kept].iter().map(|logit| ((logit - kept_logits[0]) / f64::from(temperature)).exp());
    let target = f64::from(op.params.uniform()) * weights.clone().sum::<f64>();
    let mut below = 0.0;
    for (id, weight) in ids.iter().zip(weights) {
        below += weight;
        if below > target {
            return store_u32s(&op.output, &[*id as u32]);
        }
    }
    store_u32s(&op.output, &[ids[kept - 1] as u32])
}
