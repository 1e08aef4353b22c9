//! The expert router's selection and the weighted sum of the experts' outputs.
// SAFETY of every unsafe block here: the rules of `vector`; a share has whole tokens, or a range of the output's elements.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::elementwise::{load, store};
use super::norm::softmax_row;
use super::simd::Simd;
use super::{GRAIN, Mem, Task};
use crate::Result;
use crate::backend::cpu::kernel::{Resolver, Share};
use crate::ops::{ExpertGate, ExpertGateParams, ExpertSum};

pub(super) struct ExpertGateTask {
    logits: Mem<f32>,
    ids: Mem<u32>,
    weights: Mem<f32>,
    params: ExpertGateParams,
}

impl ExpertGateTask {
    pub(super) fn new(op: &ExpertGate, resolver: &mut Resolver) -> Result<ExpertGateTask> {
        Ok(ExpertGateTask {
            logits: Mem::new(resolver, &op.logits)?,
            ids: Mem::new(resolver, &op.ids)?,
            weights: Mem::new(resolver, &op.weights)?,
            params: op.params,
        })
    }

    /// The `top_k` largest logits of a token, descending, equal ones by ascending id, NaN as −∞: they have the largest probabilities.
    unsafe fn choose(&self, token: usize, chosen: &mut Vec<(f32, u32)>) {
        let ExpertGateParams { n_experts, top_k, .. } = self.params;
        chosen.clear();
        for expert in 0..n_experts {
            let logit = unsafe { self.logits.get(token * n_experts + expert) };
            let logit = if logit.is_nan() { f32::NEG_INFINITY } else { logit };
            if chosen.len() == top_k && chosen[top_k - 1].0 >= logit {
                continue;
            }
            chosen.truncate(top_k - 1);
            let place = chosen.partition_point(|&(other, _)| other >= logit);
            chosen.insert(place, (logit, expert as u32));
        }
    }
}

impl Task for ExpertGateTask {
    fn shares(&self, _phase: usize) -> usize {
        self.params.n_tokens.div_ceil((GRAIN / 4).div_ceil(self.params.n_experts))
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S, _phase: usize, share: &Share<'_>) {
        let ExpertGateParams { n_tokens, n_experts, top_k, normalize } = self.params;
        let range = share.range(n_tokens, (GRAIN / 4).div_ceil(n_experts));
        if range.is_empty() {
            return;
        }
        let mut probabilities = vec![0.0f32; n_experts];
        let mut chosen = Vec::with_capacity(top_k);
        for token in range {
            unsafe {
                softmax_row(s, self.logits.at(token * n_experts), probabilities.as_mut_ptr(), n_experts, 1.0);
                self.choose(token, &mut chosen);
            }
            let mut sum = 1.0;
            if normalize {
                sum = chosen.iter().map(|&(_, expert)| f64::from(probabilities[expert as usize])).sum();
            }
            for (slot, &(_, expert)) in chosen.iter().enumerate() {
                let weight = f64::from(probabilities[expert as usize]) / sum;
                unsafe {
                    self.ids.set(token * top_k + slot, expert);
                    self.weights.set(token * top_k + slot, weight as f32);
                }
            }
        }
    }
}

pub(super) struct ExpertSumTask {
    input: Mem<f32>,
    weights: Mem<f32>,
    output: Mem<f32>,
    n_tokens: usize,
    top_k: usize,
    n: usize,
}

impl ExpertSumTask {
    pub(super) fn new(op: &ExpertSum, resolver: &mut Resolver) -> Result<ExpertSumTask> {
        Ok(ExpertSumTask {
            input: Mem::new(resolver, &op.input)?,
            weights: Mem::new(resolver, &op.weights)?,
            output: Mem::new(resolver, &op.output)?,
            n_tokens: op.n_tokens,
            top_k: op.top_k,
            n: op.n,
        })
    }
}

impl Task for ExpertSumTask {
    fn shares(&self, _phase: usize) -> usize {
        (self.n_tokens * self.n).div_ceil(GRAIN / 2)
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S, _phase: usize, share: &Share<'_>) {
        let (n, top_k) = (self.n, self.top_k);
        let range = share.range(self.n_tokens * n, GRAIN / 2);
        let mut i = range.start;
        while i < range.end {
            let (token, column) = (i / n, i % n);
            let lanes = (n - column).min(range.end - i).min(S::LANES);
            let mut sum = s.splat(0.0);
            for slot in token * top_k..(token + 1) * top_k {
                unsafe {
                    let weight = s.splat(self.weights.get(slot));
                    sum = s.mul_add(weight, load(s, self.input.at(slot * n + column), lanes), sum);
                }
            }
            unsafe { store(s, self.output.at(i), sum, lanes) };
            i += lanes;
        }
    }
}
