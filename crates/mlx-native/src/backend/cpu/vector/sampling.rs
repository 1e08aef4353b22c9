//! Choosing tokens.
// SAFETY of every unsafe block here: the rules of `vector`; indices are below the row's length.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering as Memory};

use super::elementwise::load;
use super::simd::Simd;
use super::{GRAIN, Mem, Task};
use crate::Result;
use crate::backend::cpu::kernel::{Resolver, Share};
use crate::ops::sampling::uniform;
use crate::ops::{ArgMax, Sample, SampleParams, fault};

/// Values whose largest is found before it is looked for: few enough to stay in the first-level cache.
const BLOCK: usize = 4096;

/// Index of the largest of `n` values at `p`, the smallest of equals, and the value; none where all are NaN.
///
/// # Safety
/// `p` is valid for `n` f32.
#[inline(always)]
unsafe fn largest<S: Simd>(s: S, p: *const f32, n: usize) -> Option<(usize, f32)> {
    let mut best = None;
    let mut first = 0;
    while first < n {
        let end = (first + BLOCK).min(n);
        let mut max = s.splat(f32::NEG_INFINITY);
        let mut i = first;
        while i < end {
            let lanes = (end - i).min(S::LANES);
            if lanes == S::LANES {
                max = s.max(unsafe { load(s, p.add(i), lanes) }, max);
                i += lanes;
            } else {
                max = s.max(s.splat(unsafe { p.add(i).read_unaligned() }), max);
                i += 1;
            }
        }
        let max = s.largest(max);
        if best.is_none_or(|(_, value)| max > value) {
            // −∞ may also stand for a block of NaN only.
            let found = (first..end).find(|&i| unsafe { p.add(i).read_unaligned() } == max);
            best = found.map(|i| (i, max)).or(best);
        }
        first = end;
    }
    best
}

/// A value and its index as a number that is larger for a larger value, and among equal values for a smaller index; never 0.
fn key(index: usize, value: f32) -> u64 {
    // Adding 0 makes −0 and 0 equal. Of negative floats the bits fall as the value rises.
    let bits = (value + 0.0).to_bits();
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(!(index as u32))
}

pub(super) struct ArgMaxTask {
    input: Mem<f32>,
    output: Mem<u32>,
    dim: usize,
    /// The largest key of each row that a share has found; 0 where none has.
    best: Vec<AtomicU64>,
}

impl ArgMaxTask {
    pub(super) fn new(op: &ArgMax, resolver: &mut Resolver) -> Result<ArgMaxTask> {
        let (input, output) = (Mem::new(resolver, &op.input)?, Mem::new(resolver, &op.output)?);
        Ok(ArgMaxTask { input, output, dim: op.dim, best: (0..op.rows).map(|_| AtomicU64::new(0)).collect() })
    }
}

impl Task for ArgMaxTask {
    fn phases(&self) -> usize {
        2
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S, phase: usize, share: &Share<'_>) {
        if phase == 1 {
            for row in share.range(self.best.len(), GRAIN) {
                let key = self.best[row].swap(0, Memory::Relaxed);
                unsafe { self.output.set(row, if key == 0 { 0 } else { !(key as u32) }) };
            }
            return;
        }
        let range = share.range(self.best.len() * self.dim, BLOCK);
        let mut i = range.start;
        while i < range.end {
            let (row, column) = (i / self.dim, i % self.dim);
            let n = (self.dim - column).min(range.end - i);
            if let Some((index, value)) = unsafe { largest(s, self.input.at(i), n) } {
                self.best[row].fetch_max(key(column + index, value), Memory::Relaxed);
            }
            i += n;
        }
    }
}

/// One draw, by one thread.
pub(super) struct SampleTask {
    logits: Mem<f32>,
    history: Option<Mem<u32>>,
    history_len: usize,
    output: Mem<u32>,
    dim: usize,
    params: SampleParams,
    index: usize,
}

/// Larger logits first, of equal ones the smaller id.
fn by_rank(a: &(f64, u32), b: &(f64, u32)) -> Ordering {
    b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1))
}

impl SampleTask {
    pub(super) fn new(op: &Sample, index: usize, resolver: &mut Resolver) -> Result<SampleTask> {
        Ok(SampleTask {
            logits: Mem::new(resolver, &op.logits)?,
            history: Mem::optional(resolver, &op.history)?,
            history_len: op.history.as_ref().map_or(0, |history| history.len / 4),
            output: Mem::new(resolver, &op.output)?,
            dim: op.dim,
            params: op.params,
            index,
        })
    }

    /// The logits after the penalty of those tokens in the history that are in the vocabulary, by id.
    unsafe fn penalised(&self) -> BTreeMap<u32, f64> {
        let penalty = f64::from(self.params.repetition_penalty);
        let mut changed = BTreeMap::new();
        let Some(history) = self.history else { return changed };
        for i in 0..self.history_len {
            let id = unsafe { history.get(i) };
            if (id as usize) < self.dim {
                let logit = f64::from(unsafe { self.logits.get(id as usize) });
                changed.insert(id, if logit > 0.0 { logit / penalty } else { logit * penalty });
            }
        }
        changed
    }

    /// The token, or the first logit that is NaN.
    unsafe fn draw(&self) -> std::result::Result<u32, usize> {
        let SampleParams { temperature, top_k, .. } = self.params;
        let mut candidates = Vec::with_capacity(self.dim);
        for id in 0..self.dim {
            let logit = unsafe { self.logits.get(id) };
            if logit.is_nan() {
                return Err(id);
            }
            candidates.push((f64::from(logit), id as u32));
        }
        for (id, logit) in unsafe { self.penalised() } {
            candidates[id as usize].0 = logit;
        }
        let best = candidates.iter().copied().min_by(by_rank).unwrap_or((f64::NEG_INFINITY, 0));
        if temperature == 0.0 || best.0.is_infinite() {
            return Ok(best.1);
        }
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, by_rank);
            candidates.truncate(top_k);
        }
        let temperature = f64::from(temperature);
        for candidate in &mut candidates {
            candidate.0 = (candidate.0 / temperature - best.0 / temperature).exp();
        }
        Ok(self.choose(candidates))
    }

    /// Draws from unnormalised probabilities, of which the largest is 1.
    fn choose(&self, mut weights: Vec<(f64, u32)>) -> u32 {
        let SampleParams { top_p, min_p, seed, step, .. } = self.params;
        let total: f64 = weights.iter().map(|weight| weight.0).sum();
        // Only the front of the ranking is needed, mostly a short one: sort as much as it takes.
        let mut sorted = 0;
        let mut sort_more = |weights: &mut Vec<(f64, u32)>, upto: usize| {
            while sorted <= upto && sorted < weights.len() {
                let n = (sorted * 4).max(256).min(weights.len() - sorted);
                let rest = &mut weights[sorted..];
                if n < rest.len() {
                    rest.select_nth_unstable_by(n, by_rank);
                }
                rest[..n].sort_unstable_by(by_rank);
                sorted += n;
            }
        };
        let everything = top_p == 1.0 && min_p == 0.0;
        let (mut kept, mut sum) = (weights.len(), total);
        if !everything {
            (kept, sum) = (0, 0.0);
            while kept < weights.len() {
                sort_more(&mut weights, kept);
                let weight = weights[kept].0;
                if kept > 0 && (sum >= f64::from(top_p) * total || weight < f64::from(min_p)) {
                    break;
                }
                kept += 1;
                sum += weight;
            }
        }
        let target = f64::from(uniform(seed, step)) * sum;
        let mut below = 0.0;
        for i in 0..kept {
            sort_more(&mut weights, i);
            below += weights[i].0;
            if below > target {
                return weights[i].1;
            }
        }
        weights[kept.saturating_sub(1)].1
    }
}

impl Task for SampleTask {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, _s: S, _phase: usize, share: &Share<'_>) {
        if share.part != 0 {
            return;
        }
        let id = unsafe { self.draw() }.unwrap_or_else(|nan| {
            share.faults.report(self.index, nan, || fault::nan_logit(nan));
            0
        });
        unsafe { self.output.set(0, id) };
    }
}
