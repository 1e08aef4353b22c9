//! A panel: codes and scales of some weight rows, unpacked.

#![allow(clippy::needless_range_loop)] // An index of a row or a half names places in several arrays and in memory.

use std::marker::PhantomData;

use super::Span;
use crate::backend::cpu::matmul::Job;
use crate::backend::cpu::matmul::simd::{BIAS, Simd, four};
use crate::backend::cpu::matmul::source::{Scales, Source};
use crate::backend::cpu::matmul::tiles::neighbours;

/// R vectors of rows in a panel, block after block: codes by half and dword, then scales and minimums of both halves.
pub(super) struct Panel<S: Simd, const R: usize> {
    pub(super) base: *mut u8,
    pub(super) set: PhantomData<S>,
}

impl<S: Simd, const R: usize> Panel<S, R> {
    /// A vector's bytes, of codes and of floats alike.
    const VECTOR: usize = 16 * S::LANES;
    const BLOCK_BYTES: usize = 12 * R * Self::VECTOR;
    /// Minus the scales, added up, times the bias: where there is no second minimum.
    pub(super) const UNBIAS: usize = 3;

    /// Where the codes of dword `d` of half `half` of block `block` stand for vector r of rows.
    #[inline(always)]
    pub(super) fn codes(&self, block: usize, half: usize, d: usize, r: usize) -> *mut u8 {
        self.base.wrapping_add(block * Self::BLOCK_BYTES + ((4 * half + d) * R + r) * Self::VECTOR)
    }

    /// Where the scales (0 and 1, for first and second halves) and minimums (2 and 3) stand, or what undoes a bias ([`UNBIAS`](Self::UNBIAS)).
    #[inline(always)]
    pub(super) fn floats(&self, block: usize, which: usize, r: usize) -> *mut f32 {
        self.base.wrapping_add(block * Self::BLOCK_BYTES + ((8 + which) * R + r) * Self::VECTOR).cast()
    }

    /// Unpacks steps `k0..k1` of the rows from `first` on.
    #[inline(always)]
    pub(super) unsafe fn fill<F: Source<S>, const FOLDED: bool>(
        &self,
        source: &F,
        job: &Job,
        Span { first, k0, k1 }: Span,
        fused: bool,
    ) {
        let full = job.k / (32 * S::LANES) / F::STEPS * F::STEPS;
        // SAFETY: the rows (the last one repeated) and steps exist in the weight, and the panel has room for the steps.
        unsafe {
            for r in 0..R {
                let rows = four!(|g| source.rows(neighbours(job, first + 4 * (r * S::LANES + g % S::LANES))));
                for step in (k0..k1).step_by(F::STEPS) {
                    let stages = if !F::TAILS || step < full {
                        four!(|g| source.stage::<true>(&rows[g % S::LANES], step))
                    } else {
                        four!(|g| source.stage_over(&rows[g % S::LANES], step))
                    };
                    for s in 0..F::STEPS.min(k1 - step) {
                        self.write::<F, FOLDED>(source, &stages, (r, s), (step + s - k0) * S::LANES, fused);
                    }
                }
            }
        }
    }

    /// Writes the blocks of the s-th staged step of LANES groups of four rows, which are vector r.
    #[inline(always)]
    unsafe fn write<F: Source<S>, const FOLDED: bool>(
        &self,
        source: &F,
        stages: &[F::Stage; 4],
        (r, s): (usize, usize),
        block: usize,
        fused: bool,
    ) {
        // SAFETY: as in `fill`.
        unsafe {
            if F::SPLIT {
                // Half as many vectors to be brought to their places.
                let both = four!(|g| S::transpose(four!(|r| source.stored(&stages[g % S::LANES], r))));
                for d in 0..4 {
                    let by_lane = S::regroup(four!(|g| both[g][d]));
                    for (i, v) in by_lane.into_iter().enumerate().take(S::LANES) {
                        for (half, v) in F::split(v).into_iter().enumerate() {
                            S::store(self.codes(block + i, half, d, r), v);
                        }
                    }
                }
            } else {
                let codes = four!(|g| {
                    let stage = &stages[g % S::LANES];
                    let rows = four!(|r| if FOLDED { source.folded(stage, r, s) } else { source.codes(stage, r, s) });
                    [S::transpose(four!(|r| rows[r][0])), S::transpose(four!(|r| rows[r][1]))]
                });
                for half in 0..2 {
                    for d in 0..4 {
                        let by_lane = S::regroup(four!(|g| codes[g][half][d]));
                        for (i, v) in by_lane.into_iter().enumerate().take(S::LANES) {
                            S::store(self.codes(block + i, half, d, r), v);
                        }
                    }
                }
            }
            let scales: [Scales<S>; 4] = four!(|g| source.scales(&stages[g % S::LANES], s));
            if FOLDED {
                self.write_floats((block, 0, r), four!(|g| source.span_scale(&stages[g % S::LANES])));
            }
            for half in 0..1 + F::HALVES as usize {
                if !FOLDED {
                    self.write_floats((block, half, r), four!(|g| scales[g].scale[half]));
                }
                if F::MINS {
                    self.write_floats((block, 2 + half, r), four!(|g| scales[g].min[half]));
                }
            }
            if F::FUSED && fused {
                let unbias = four!(|g| {
                    let [first, second] = scales[g].scale;
                    S::mul(if F::HALVES { S::add(first, second) } else { first }, S::splat(-BIAS))
                });
                self.write_floats((block, Self::UNBIAS, r), unbias);
            }
        }
    }
    /// Writes floats of a step's blocks from `block` on.
    #[inline(always)]
    unsafe fn write_floats(&self, (block, which, r): (usize, usize, usize), floats: [S::Floats; 4]) {
        // SAFETY: as in `fill`.
        unsafe {
            for (i, v) in S::regroup_floats(floats).into_iter().enumerate().take(S::LANES) {
                S::store_floats(self.floats(block + i, which, r), v);
            }
        }
    }
}
