//! Attention of few query rows: every key and value is read once for up to four rows and used at once.
//!
//! What this has to keep up with is memory. A score is a dot product along the head, so that cached rows are used as they lie.

use std::ops::Range;

use super::super::math;
use super::super::simd::{MAX_LANES, Simd};
use super::scale;
use super::{AttentionTask, CHUNK, Cached, Partial, visible};

/// Positions whose values are read before the next part of the head is turned to: parts of rows far apart are no stream that a
/// processor reads ahead.
const STEP: usize = 32;

/// How far ahead of their use keys are asked for: a head's positions are a short stream, which ends before a processor reads ahead of it.
const AHEAD_BYTES: usize = 2048;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Scores of a chunk, then their exponentials; room for whole vectors.
type Scores = [f32; CHUNK + MAX_LANES];

/// The rows that are computed together, and what they see of the cache.
struct Rows<C> {
    /// First query row; the others follow, head_dim apart.
    q: *const f32,
    /// The first visible position's key and value.
    k: *const C,
    v: *const C,
    /// Visible positions.
    len: usize,
    head_dim: usize,
}

impl AttentionTask {
    /// The partial results of all query rows of a cache head for a chunk; without scratch, the results.
    #[inline(always)]
    pub(super) unsafe fn chunk_rows<S: Simd, C: Cached>(&self, s: S, head: usize, chunk: usize) {
        let params = &self.params;
        let head_dim = params.cache.head_dim;
        for token in 0..params.n_tokens {
            let sees = visible(params, token);
            let from = sees.start.max(chunk * self.chunk);
            let to = sees.end.min((chunk + 1) * self.chunk);
            if from >= to {
                continue;
            }
            let mut done = 0;
            while done < self.group {
                let row = token * params.n_heads + head * self.group + done;
                let at = (head * params.cache.capacity + from) * head_dim;
                let left = self.group - done;
                unsafe {
                    let rows = Rows::<C> {
                        q: self.q.at(row * head_dim),
                        k: self.k.0.cast::<C>().add(at),
                        v: self.v.0.cast::<C>().add(at),
                        len: to - from,
                        head_dim,
                    };
                    // Sums of four rows for four keys take half of 32 registers.
                    done += match (left, S::REGISTERS >= 32) {
                        (1, _) => self.rows::<S, C, 1, 8>(s, &rows, row, chunk),
                        (2, true) => self.rows::<S, C, 2, 8>(s, &rows, row, chunk),
                        (3, true) => self.rows::<S, C, 3, 4>(s, &rows, row, chunk),
                        (_, true) => self.rows::<S, C, 4, 4>(s, &rows, row, chunk),
                        (_, false) => self.rows::<S, C, 2, 4>(s, &rows, row, chunk),
                    };
                }
            }
        }
    }

    /// `R` rows, with `V` vectors of each row's values at a time. Gives R.
    #[inline(always)]
    unsafe fn rows<S: Simd, C: Cached, const R: usize, const V: usize>(
        &self,
        s: S,
        rows: &Rows<C>,
        first_row: usize,
        chunk: usize,
    ) -> usize {
        let mut scores = [[0.0; CHUNK + MAX_LANES]; R];
        unsafe { rows.scores::<S, R>(s, &mut scores) };
        let mut results = [Partial { values: std::ptr::null_mut(), head_dim: rows.head_dim }; R];
        let mut sums = [0.0; R];
        for r in 0..R {
            let (max, sum) = self.exponentials(s, &mut scores[r], rows.len);
            sums[r] = sum;
            unsafe {
                if self.split {
                    results[r] = self.partial(first_row + r, chunk);
                    results[r].set_max_and_sum(max, sum);
                } else {
                    results[r].values = self.output.at((first_row + r) * rows.head_dim);
                }
            }
        }
        unsafe {
            let mut from = 0;
            while from < rows.len {
                let to = (from + STEP).min(rows.len);
                let mut i = 0;
                while i + V * S::LANES <= rows.head_dim {
                    rows.values::<S, R, V>(s, &scores, &results, from..to, i, S::LANES);
                    i += V * S::LANES;
                }
                while i < rows.head_dim {
                    let n = (rows.head_dim - i).min(S::LANES);
                    rows.values::<S, R, 1>(s, &scores, &results, from..to, i, n);
                    i += n;
                }
                from = to;
            }
            if !self.split {
                for r in 0..R {
                    scale(s, results[r].values, rows.head_dim, 1.0 / sums[r]);
                }
            }
        }
        R
    }

    /// Turns `len` products q·k into exponentials of scores, relative to the largest; gives that and their sum. The rest of the
    /// last vector becomes 0.
    #[inline(always)]
    fn exponentials<S: Simd>(&self, s: S, scores: &mut Scores, len: usize) -> (f32, f32) {
        let whole = len.next_multiple_of(S::LANES);
        let factor = s.splat(self.params.scale);
        let mut i = 0;
        while i < whole {
            // SAFETY: `whole` ≤ CHUNK rounded up to whole vectors, for which there is room.
            unsafe {
                let p = scores.as_mut_ptr().add(i);
                let mut v = s.mul(s.load(p), factor);
                if let Some(cap) = self.params.soft_cap {
                    v = s.mul(s.splat(cap), math::tanh(s, s.div(v, s.splat(cap))));
                }
                s.store(p, v);
            }
            i += S::LANES;
        }
        scores[len..whole].fill(f32::NEG_INFINITY);
        let mut max = s.splat(f32::NEG_INFINITY);
        let mut i = 0;
        while i < whole {
            // SAFETY: as above.
            max = s.max(unsafe { s.load(scores.as_ptr().add(i)) }, max);
            i += S::LANES;
        }
        // Finite, so that a score of −∞ minus it is −∞.
        let max = s.largest(max).max(f32::MIN);
        let mut sum = s.splat(0.0);
        let mut i = 0;
        while i < whole {
            // SAFETY: as above.
            unsafe {
                let p = scores.as_mut_ptr().add(i);
                let e = math::exp_negative(s, s.sub(s.load(p), s.splat(max)));
                s.store(p, e);
                sum = s.add(sum, e);
            }
            i += S::LANES;
        }
        (max, s.sum(sum))
    }
}

impl<C: Cached> Rows<C> {
    /// scores[r][p] = q[r] · k[p]
    #[inline(always)]
    unsafe fn scores<S: Simd, const R: usize>(&self, s: S, scores: &mut [Scores; R]) {
        let row_bytes = self.head_dim * size_of::<C>();
        let ask = |rows: *const C, from: usize, to: usize| {
            for at in (from..to).step_by(LINE) {
                s.prefetch(rows.cast::<u8>().wrapping_add(at));
            }
        };
        let end = self.len * row_bytes;
        ask(self.k, 0, AHEAD_BYTES.min(end));
        let mut p = 0;
        while p + 4 <= self.len {
            // The values are read next.
            let at = p * row_bytes;
            ask(self.k, (at + AHEAD_BYTES).min(end), (at + AHEAD_BYTES + 4 * row_bytes).min(end));
            ask(self.v, at, at + 4 * row_bytes);
            let products = unsafe { self.products::<S, R, 4>(s, p) };
            for r in 0..R {
                scores[r][p..p + 4].copy_from_slice(&s.sum4(products[r]));
            }
            p += 4;
        }
        while p < self.len {
            let products = unsafe { self.products::<S, R, 1>(s, p) };
            for r in 0..R {
                scores[r][p] = s.sum(products[r][0]);
            }
            p += 1;
        }
    }

    /// Vectors whose places add up to the products of R rows with `K` keys from position `p` on.
    #[inline(always)]
    unsafe fn products<S: Simd, const R: usize, const K: usize>(&self, s: S, p: usize) -> [[S::F; K]; R] {
        let mut sums = [[s.splat(0.0); K]; R];
        let mut i = 0;
        while i < self.head_dim {
            let n = (self.head_dim - i).min(S::LANES);
            let mut keys = [s.splat(0.0); K];
            for (j, key) in keys.iter_mut().enumerate() {
                *key = unsafe { C::load(s, self.k.add((p + j) * self.head_dim + i), n) };
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let q = unsafe { super::load(s, self.q.add(r * self.head_dim + i), n) };
                for j in 0..K {
                    sums[j] = s.mul_add(q, keys[j], sums[j]);
                }
            }
            i += n;
        }
        sums
    }

    /// results[r][i ..] += Σ_p weights[r][p] · v[p][i ..] over these positions, from 0 on at the first, for `V` vectors of `n` ≤ LANES values.
    #[inline(always)]
    unsafe fn values<S: Simd, const R: usize, const V: usize>(
        &self,
        s: S,
        weights: &[Scores; R],
        results: &[Partial; R],
        positions: Range<usize>,
        i: usize,
        n: usize,
    ) {
        let mut sums = [[s.splat(0.0); V]; R];
        if positions.start > 0 {
            for (sums, result) in sums.iter_mut().zip(results) {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = unsafe { super::load(s, result.values.add(i + j * S::LANES), n) };
                }
            }
        }
        for p in positions {
            let mut values = [s.splat(0.0); V];
            for (j, value) in values.iter_mut().enumerate() {
                *value = unsafe { C::load(s, self.v.add(p * self.head_dim + i + j * S::LANES), n) };
            }
            for (sums, weights) in sums.iter_mut().zip(weights) {
                let weight = s.splat(weights[p]);
                for j in 0..V {
                    sums[j] = s.mul_add(weight, values[j], sums[j]);
                }
            }
        }
        for (sums, result) in sums.iter().zip(results) {
            for (j, sum) in sums.iter().enumerate() {
                unsafe { super::store(s, result.values.add(i + j * S::LANES), *sum, n) };
            }
        }
    }
}
