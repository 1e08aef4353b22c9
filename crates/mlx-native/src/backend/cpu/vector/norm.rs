//! RMS normalisation and softmax over rows.
// SAFETY of every unsafe block here: the rules of `vector`; a share has whole rows, and indices stay inside their row.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::elementwise::{load, store};
use super::simd::Simd;
use super::{GRAIN, Mem, Task, math};
use crate::Result;
use crate::backend::cpu::kernel::{Resolver, Share};
use crate::ops::{RmsNorm, RmsNormParams, Softmax};

/// Values that are summed in f32 before the sum goes on in f64.
const BLOCK: usize = 1024;

/// Mean squares in this range come from squares that neither overflowed nor lost what counts by being too small for an f32.
const SAFE_MEAN: std::ops::Range<f64> = 1e-20..1e30;

pub(super) struct RmsNormTask {
    input: Mem<f32>,
    residual: Option<Mem<f32>>,
    sum: Option<Mem<f32>>,
    weight: Mem<f32>,
    output: Mem<f32>,
    params: RmsNormParams,
}

impl RmsNormTask {
    pub(super) fn new(op: &RmsNorm, resolver: &mut Resolver) -> Result<RmsNormTask> {
        Ok(RmsNormTask {
            input: Mem::new(resolver, &op.input)?,
            residual: Mem::optional(resolver, &op.residual)?,
            sum: Mem::optional(resolver, &op.sum)?,
            weight: Mem::new(resolver, &op.weight)?,
            output: Mem::new(resolver, &op.output)?,
            params: op.params,
        })
    }

    /// `n` ≤ LANES values of input (+ residual) from element `i` on.
    #[inline(always)]
    unsafe fn value<S: Simd>(&self, s: S, i: usize, n: usize) -> S::F {
        unsafe {
            let v = load(s, self.input.at(i), n);
            match self.residual {
                None => v,
                Some(residual) => s.add(v, load(s, residual.at(i), n)),
            }
        }
    }

    /// Σ value² of the row that starts at element `first`.
    #[inline(always)]
    unsafe fn squares<S: Simd>(&self, s: S, first: usize) -> f64 {
        let dim = self.params.dim;
        let mut total = 0.0;
        let mut i = 0;
        while i < dim {
            let end = (i + BLOCK).min(dim);
            let mut sums = [s.splat(0.0); 4];
            while i + 4 * S::LANES <= end {
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let v = unsafe { self.value(s, first + i + lane * S::LANES, S::LANES) };
                    *sum = s.mul_add(v, v, *sum);
                }
                i += 4 * S::LANES;
            }
            while i < end {
                let n = (end - i).min(S::LANES);
                let v = unsafe { self.value(s, first + i, n) };
                sums[0] = s.mul_add(v, v, sums[0]);
                i += n;
            }
            total += f64::from(s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))));
        }
        total
    }

    /// The row by the formula in f64: for values whose squares are no f32.
    unsafe fn row_in_f64(&self, first: usize) {
        let RmsNormParams { dim, eps, .. } = self.params;
        unsafe {
            let value = |i: usize| self.input.get(i) + self.residual.map_or(0.0, |residual| residual.get(i));
            let squares: f64 = (first..first + dim).map(|i| f64::from(value(i)).powi(2)).sum();
            let root = (squares / dim as f64 + f64::from(eps)).sqrt();
            for i in 0..dim {
                let v = value(first + i);
                let normal = f64::from(v) / root * f64::from(self.weight.get(i));
                if let Some(sum) = self.sum {
                    sum.set(first + i, v);
                }
                self.output.set(first + i, normal as f32);
            }
        }
    }

    #[inline(always)]
    unsafe fn row<S: Simd>(&self, s: S, first: usize) {
        let RmsNormParams { dim, eps, .. } = self.params;
        let mean = unsafe { self.squares(s, first) } / dim as f64;
        if !SAFE_MEAN.contains(&mean) {
            return unsafe { self.row_in_f64(first) };
        }
        let scale = s.splat((1.0 / (mean + f64::from(eps)).sqrt()) as f32);
        let mut i = 0;
        while i < dim {
            let n = (dim - i).min(S::LANES);
            unsafe {
                let v = self.value(s, first + i, n);
                // All is read before anything is written: any of the outputs may be any of the inputs.
                let normal = s.mul(s.mul(v, scale), load(s, self.weight.at(i), n));
                if let Some(sum) = self.sum {
                    store(s, sum.at(first + i), v, n);
                }
                store(s, self.output.at(first + i), normal, n);
            }
            i += n;
        }
    }
}

impl Task for RmsNormTask {
    fn shares(&self, _phase: usize) -> usize {
        self.params.rows.div_ceil(GRAIN.div_ceil(self.params.dim))
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S, _phase: usize, share: &Share<'_>) {
        let RmsNormParams { rows, dim, .. } = self.params;
        let range = share.range(rows, GRAIN.div_ceil(dim));
        if !range.is_empty() {
            // It is read last, and often from memory.
            for i in (0..dim).step_by(16) {
                s.prefetch(unsafe { self.weight.at(i) }.cast());
            }
        }
        for row in range {
            unsafe { self.row(s, row * dim) };
        }
    }
}

pub(super) struct SoftmaxTask {
    input: Mem<f32>,
    output: Mem<f32>,
    rows: usize,
    dim: usize,
    scale: f32,
}

impl SoftmaxTask {
    pub(super) fn new(op: &Softmax, resolver: &mut Resolver) -> Result<SoftmaxTask> {
        let (input, output) = (Mem::new(resolver, &op.input)?, Mem::new(resolver, &op.output)?);
        Ok(SoftmaxTask { input, output, rows: op.rows, dim: op.dim, scale: op.scale })
    }
}

/// output = softmax(scale · input) over `dim` values; the two are the same memory or disjoint.
///
/// # Safety
/// Both are valid for `dim` f32.
#[inline(always)]
pub(super) unsafe fn softmax_row<S: Simd>(s: S, input: *const f32, output: *mut f32, dim: usize, scale: f32) {
    // Differences are taken before the scale is applied: close to the largest value, where the result counts, they are nearly exact.
    let sign = s.splat(1f32.copysign(scale));
    let scale = s.splat(scale.abs());
    let mut largest = s.splat(f32::NEG_INFINITY);
    let mut i = 0;
    while i + S::LANES <= dim {
        largest = s.max(s.mul(sign, unsafe { s.load(input.add(i)) }), largest);
        i += S::LANES;
    }
    let mut max = s.largest(largest);
    while i < dim {
        let v = s.mul(sign, s.splat(unsafe { input.add(i).read_unaligned() }));
        max = s.largest(s.max(v, s.splat(max)));
        i += 1;
    }
    let max = s.splat(max);
    let mut total = 0.0;
    let mut i = 0;
    while i < dim {
        let end = (i + BLOCK).min(dim);
        let mut sum = s.splat(0.0);
        while i + S::LANES <= end {
            unsafe {
                let v = s.mul(scale, s.sub(s.mul(sign, s.load(input.add(i))), max));
                let e = math::exp_negative(s, v);
                s.store(output.add(i), e);
                sum = s.add(sum, e);
            }
            i += S::LANES;
        }
        total += f64::from(s.sum(sum));
        if i < end {
            let n = end - i;
            unsafe {
                let v = s.mul(scale, s.sub(s.mul(sign, s.load_n(input.add(i), n)), max));
                let e = math::exp_negative(s, v);
                s.store_n(output.add(i), e, n);
                total += s.to_array(e)[..n].iter().map(|&e| f64::from(e)).sum::<f64>();
            }
            i = end;
        }
    }
    let factor = s.splat((1.0 / total) as f32);
    let mut i = 0;
    while i < dim {
        let n = (dim - i).min(S::LANES);
        unsafe { store(s, output.add(i), s.mul(load(s, output.add(i), n), factor), n) };
        i += n;
    }
}

impl Task for SoftmaxTask {
    fn shares(&self, _phase: usize) -> usize {
        self.rows.div_ceil(GRAIN.div_ceil(self.dim))
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S, _phase: usize, share: &Share<'_>) {
        for row in share.range(self.rows, GRAIN.div_ceil(self.dim)) {
            let first = row * self.dim;
            unsafe { softmax_row(s, self.input.at(first), self.output.at(first), self.dim, self.scale) };
        }
    }
}
