//! Few rows of x whose products are added up weight row by weight row, four bands of rows at once: see [`Rowwise`](super::super::rowwise::Rowwise).

use super::super::rowwise::{Rowwise, VALUES};
use super::super::simd::{ByRow, Simd, four};
use super::super::source::Source;
use super::super::{Job, Part};
use super::ahead;
use super::one::write;

/// Rows of x that a weight's blocks meet at once: their sums fill the registers.
const TOGETHER: usize = 4;

/// All rows of x, which have this layout.
#[inline(always)]
pub(super) unsafe fn rowwise<S: Simd, F: Source<S>>(job: &Job) {
    for first in (0..job.rows.len()).step_by(TOGETHER) {
        // SAFETY: the caller's promise, for rows that there are.
        unsafe {
            match job.rows.len() - first {
                1 => together::<S, F, 1>(job, first),
                2 => together::<S, F, 2>(job, first),
                3 => together::<S, F, 3>(job, first),
                _ => together::<S, F, TOGETHER>(job, first),
            }
        }
    }
}

/// M rows of x from the `first` on.
#[inline(always)]
unsafe fn together<S: Simd, F: Source<S>, const M: usize>(job: &Job, first: usize) {
    let count = job.n.len();
    let band = Part::turns_of(count);
    // The rows of x after the first ones find the weights near.
    let ahead = (first == 0).then(|| ahead(F::AHEAD_BYTES[0], F::STEP_BYTES).next_multiple_of(F::STEPS));
    let places: [(usize, usize); M] = std::array::from_fn(|i| job.rows.get(first + i));
    // SAFETY: the caller's promise: rows below n.end exist in the weight, blocks in the prepared x, places in y.
    unsafe {
        let source = F::new(job.weight, job.k);
        for t in job.turns.clone() {
            // The last band may be shorter: its row is then the last one once more.
            let rows = source.rows(four!(|r| job.n.start + (t + r * band).min(count - 1)));
            let present: [bool; 4] = four!(|r| t + r * band < count);
            let mut totals = [[S::splat(0.0); 4]; M];
            for block in 0..job.k / VALUES {
                if let Some(ahead) = ahead {
                    source.prefetch(&rows, block * F::STEPS + ahead);
                }
                let x = places.map(|(row, _)| job.prepared.add(row * job.layout.row_bytes() + block * Rowwise::BYTES));
                totals = source.add_block(&rows, block, x, totals);
            }
            for (totals, (_, y_row)) in totals.into_iter().zip(places) {
                let y = job.y.data.add(y_row * job.y.stride + job.n.start);
                let outputs = four!(|r| y.wrapping_add(t + r * band));
                write::<S>(S::ByRow::sum_each_float(totals), &outputs, &present, 0);
            }
        }
    }
}
