//! One row of x whose products are added up weight row by weight row, four bands of rows at once: see [`Rowwise`](super::super::rowwise::Rowwise).

use super::super::rowwise::{Rowwise, VALUES};
use super::super::simd::{ByRow, Simd, four};
use super::super::source::Source;
use super::super::{Job, Part};
use super::ahead;
use super::one::write;

/// The only row of x, which has this layout.
#[inline(always)]
pub(super) unsafe fn rowwise<S: Simd, F: Source<S>>(job: &Job) {
    let count = job.n.len();
    let band = Part::turns_of(count);
    let ahead = ahead(F::AHEAD_BYTES[0], F::STEP_BYTES).next_multiple_of(F::STEPS);
    // SAFETY: the caller's promise: rows below n.end exist in the weight, blocks in the prepared x, places in y.
    unsafe {
        let source = F::new(job.weight, job.k);
        let (_, y_row) = job.rows.get(0);
        let y = job.y.data.add(y_row * job.y.stride + job.n.start);
        for t in job.turns.clone() {
            // The last band may be shorter: its row is then the last one once more.
            let rows = source.rows(four!(|r| job.n.start + (t + r * band).min(count - 1)));
            let present: [bool; 4] = four!(|r| t + r * band < count);
            let outputs = four!(|r| y.wrapping_add(t + r * band));
            let mut totals = [S::splat(0.0); 4];
            for block in 0..job.k / VALUES {
                source.prefetch(&rows, block * F::STEPS + ahead);
                let x = job.prepared.add(block * Rowwise::BYTES);
                totals = source.add_block(&rows, block, x, totals);
            }
            write::<S>(S::ByRow::sum_each_float(totals), &outputs, &present, 0);
        }
    }
}
