//! Choosing tokens.
// SAFETY of every unsafe block here: the rules of `vector`; indices are below the row's length.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering as Memory};

use super::elementwise::load;
use super::simd::Simd;
use super::{GRAIN, Mem, Task, math};
use crate::Result;
use crate::backend::cpu::kernel::{Resolver, Share};
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

/// The index and the value of a [`key`].
fn unkey(key: u64) -> (usize, f32) {
    let ordered = (key >> 32) as u32;
    let bits = if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered };
    (!(key as u32) as usize, f32::from_bits(bits))
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

    fn shares(&self, phase: usize) -> usize {
        if phase == 1 { self.best.len().div_ceil(GRAIN) } else { usize::MAX }
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S, phase: usize, share: &Share<'_>) {
        if phase == 1 {
            for row in share.range(self.best.len(), GRAIN) {
                let key = self.best[row].swap(0, Memory::Relaxed);
                unsafe { self.output.set(row, if key == 0 { 0 } else { unkey(key).0 as u32 }) };
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

/// One draw, by one thread; where only the largest logit is asked for, all threads look for it.
pub(super) struct SampleTask {
    logits: Mem<f32>,
    history: Option<Mem<u32>>,
    history_len: usize,
    output: Mem<u32>,
    dim: usize,
    params: SampleParams,
    index: usize,
    /// The largest key that a share has found, and the first NaN; 0 and `usize::MAX` where none has.
    best: AtomicU64,
    nan: AtomicUsize,
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
            best: AtomicU64::new(0),
            nan: AtomicUsize::new(usize::MAX),
        })
    }

    /// Whether the largest logit is all that counts.
    fn takes_largest(&self) -> bool {
        let penalised = self.history.is_some() && self.params.repetition_penalty != 1.0;
        self.params.temperature == 0.0 && !penalised
    }

    /// Looks through a share of the logits, none of which counts for more or less.
    #[inline(always)]
    unsafe fn look<S: Simd>(&self, s: S, share: &Share<'_>) {
        let mut logits = [0.0f32; BLOCK];
        let range = share.range(self.dim, BLOCK);
        for first in range.clone().step_by(BLOCK) {
            let logits = &mut logits[..BLOCK.min(range.end - first)];
            unsafe {
                logits
                    .as_mut_ptr()
                    .cast::<u8>()
                    .copy_from_nonoverlapping(self.logits.at(first).cast(), 4 * logits.len())
            };
            if let Some(nan) = first_nan(logits) {
                self.nan.fetch_min(first + nan, Memory::Relaxed);
                return;
            }
            if let Some((index, value)) = unsafe { largest(s, logits.as_ptr(), logits.len()) } {
                self.best.fetch_max(key(first + index, value), Memory::Relaxed);
            }
        }
    }

    /// What all shares have found: the token, or the first logit that is NaN.
    fn found(&self) -> std::result::Result<u32, usize> {
        match self.nan.load(Memory::Relaxed) {
            usize::MAX => Ok(unkey(self.best.load(Memory::Relaxed)).0 as u32),
            nan => Err(nan),
        }
    }

    /// The logits, with those of the tokens in the history penalised; ids that are no index count for nothing.
    unsafe fn penalised(&self) -> Vec<f32> {
        let mut logits = vec![0.0f32; self.dim];
        unsafe { logits.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(self.logits.0.cast(), 4 * self.dim) };
        let penalty = self.params.repetition_penalty;
        if let Some(history) = self.history.filter(|_| penalty != 1.0) {
            let seen: BTreeSet<u32> = (0..self.history_len).map(|i| unsafe { history.get(i) }).collect();
            for id in seen {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                }
            }
        }
        logits
    }

    /// The token, or the first logit that is NaN.
    #[inline(always)]
    unsafe fn draw<S: Simd>(&self, s: S) -> std::result::Result<u32, usize> {
        let logits = unsafe { self.penalised() };
        if let Some(nan) = first_nan(&logits) {
            return Err(nan);
        }
        let (best, max) = unsafe { largest(s, logits.as_ptr(), logits.len()) }.unwrap_or((0, 0.0));
        if self.params.temperature == 0.0 || max.is_infinite() {
            return Ok(best as u32);
        }
        let limit = if self.params.top_k > 0 { self.params.top_k.min(self.dim) } else { self.dim };
        let temperature = if self.params.cuts() { 1.0 } else { self.params.temperature };
        let total = if limit < self.dim { 0.0 } else { sum_of_weights(s, &logits, max, temperature) };
        // Only the front of the ranking is needed, mostly a short one.
        let mut count = if limit < self.dim { limit } else { limit.min(256) };
        loop {
            let candidates = top(s, &logits, count);
            if let Some(token) = self.choose(&candidates, total, limit) {
                return Ok(token);
            }
            count = count.saturating_mul(16).min(limit);
        }
    }

    /// Draws among the front of a ranking, as keys, of `limit` tokens; none when it takes more of them. Their weights, relative to the first one's, add up to
    /// `total`, or to their sum when they are all there: the weights at temperature 1 where something is cut by them, otherwise those of the draw.
    fn choose(&self, candidates: &[u64], total: f64, limit: usize) -> Option<u32> {
        let SampleParams { temperature, top_p, min_p, .. } = self.params;
        let complete = candidates.len() == limit;
        let logit = |&key: &u64| f64::from(unkey(key).1);
        let max = candidates.first().map_or(0.0, logit);
        let weights = |temperature: f32| -> Vec<f64> {
            candidates.iter().map(|key| ((logit(key) - max) / f64::from(temperature)).exp()).collect()
        };
        let mut kept = limit;
        if self.params.cuts() {
            let weights = weights(1.0);
            let total = if complete { weights.iter().sum() } else { total };
            let (mut count, mut sum) = (0, 0.0);
            let enough = |sum: f64, weight: f64| sum >= f64::from(top_p) * total || weight < f64::from(min_p);
            while count < weights.len() && (count == 0 || !enough(sum, weights[count])) {
                sum += weights[count];
                count += 1;
            }
            if count == weights.len() && !complete {
                return None;
            }
            kept = count;
        }
        let weights = weights(temperature);
        let sum = if kept <= weights.len() { weights[..kept].iter().sum() } else { total };
        let target = f64::from(self.params.uniform()) * sum;
        let mut below = 0.0;
        for (weight, candidate) in weights.iter().zip(candidates).take(kept) {
            below += weight;
            if below > target {
                return Some(unkey(*candidate).0 as u32);
            }
        }
        candidates.get(kept - 1).map(|last| unkey(*last).0 as u32)
    }
}

/// The first NaN.
#[inline(always)]
fn first_nan(values: &[f32]) -> Option<usize> {
    let mut first = 0;
    for block in values.chunks(BLOCK) {
        let mut nans = 0u32;
        for value in block {
            nans += u32::from(value.is_nan());
        }
        if nans > 0 {
            return block.iter().position(|value| value.is_nan()).map(|i| first + i);
        }
        first += block.len();
    }
    None
}

/// Σ e^((logit − max) / temperature)
#[inline(always)]
fn sum_of_weights<S: Simd>(s: S, logits: &[f32], max: f32, temperature: f32) -> f64 {
    let (max, factor) = (s.splat(max), s.splat(1.0 / temperature));
    let mut total = 0.0;
    for block in logits.chunks(BLOCK / 4) {
        let mut sum = s.splat(0.0);
        let mut i = 0;
        while i < block.len() {
            let n = (block.len() - i).min(S::LANES);
            // SAFETY: n values are left in the block.
            let v = unsafe { load(s, block.as_ptr().add(i), n) };
            let e = math::exp_negative(s, s.mul(s.sub(v, max), factor));
            if n < S::LANES {
                let places = s.to_array(e);
                for place in &places[..n] {
                    total += f64::from(*place);
                }
            } else {
                sum = s.add(sum, e);
            }
            i += n;
        }
        total += f64::from(s.sum(sum));
    }
    total
}

/// The keys of the `count` ≥ 1 largest logits, of equal ones of the smaller ids, falling.
#[inline(always)]
fn top<S: Simd>(s: S, logits: &[f32], count: usize) -> Vec<u64> {
    const STEP: usize = 256;
    let room = count.saturating_add(count.max(1024)).min(logits.len() + STEP);
    let mut keys: Vec<u64> = Vec::with_capacity(room);
    // What is smaller cannot be among the first: so many larger ones are known.
    let mut least = f32::NEG_INFINITY;
    for (step, block) in logits.chunks(STEP).enumerate() {
        if keys.len() >= count && block.len() == STEP {
            let mut max = s.splat(f32::NEG_INFINITY);
            for i in (0..STEP).step_by(S::LANES) {
                // SAFETY: the block has STEP values, whole vectors.
                max = s.max(unsafe { s.load(block.as_ptr().add(i)) }, max);
            }
            if s.largest(max) < least {
                continue;
            }
        }
        for (i, &logit) in block.iter().enumerate() {
            if logit >= least {
                keys.push(key(step * STEP + i, logit));
            }
        }
        if keys.len() + STEP > room && keys.len() > count {
            keep_largest(&mut keys, count);
            least = keys.last().map_or(least, |&key| unkey(key).1);
        }
    }
    if keys.len() > count {
        keep_largest(&mut keys, count);
    }
    keys.sort_unstable();
    keys.reverse();
    keys
}

/// Keeps the `count` ≥ 1 largest of more numbers, the smallest of them last.
fn keep_largest(keys: &mut Vec<u64>, count: usize) {
    let from = keys.len() - count;
    keys.select_nth_unstable(from);
    // The smallest that stays is at `from`, larger ones follow.
    keys.drain(..from);
    let last = keys.len() - 1;
    keys.swap(0, last);
}

impl Task for SampleTask {
    fn phases(&self) -> usize {
        1 + usize::from(self.takes_largest())
    }

    fn shares(&self, phase: usize) -> usize {
        if phase + 1 < self.phases() { usize::MAX } else { 1 }
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S, phase: usize, share: &Share<'_>) {
        if phase + 1 < self.phases() {
            return unsafe { self.look(s, share) };
        }
        if share.part != 0 {
            return;
        }
        let drawn = if self.takes_largest() { self.found() } else { unsafe { self.draw(s) } };
        let id = drawn.unwrap_or_else(|nan| {
            share.faults.report(self.index, nan, || fault::nan_logit(nan));
            0
        });
        unsafe { self.output.set(0, id) };
    }
}
