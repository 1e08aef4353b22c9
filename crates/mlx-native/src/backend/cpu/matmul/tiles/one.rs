//! One column at a time: weights are read once, four bands of rows at once.

use super::super::ahead::Distances;
use super::super::prepare::Layout;
use super::super::simd::{ByRow, MAX_LANES, Simd, four, unrolled};
use super::super::source::{ANY_SIDES, Scales, Source};
use super::super::{Job, Part, STREAMS};
use super::{OfSource, SPREAD, STORED, added, ahead, aligned, int_note, note, scaled};

/// What integer sums of a half (0 or 1) start with: minus the weight codes' offset times the sum of activations, biased.
#[inline(always)]
unsafe fn start<S: Simd, F: Source<S>, const HOW: u8>(record: *const u8, half: usize) -> S::Ints {
    // SAFETY: the caller's record; the sums follow the activation scales.
    unsafe {
        if F::OFFSET != 0 && (half == 0 || F::HALVES) { int_note::<S, HOW>(record, 1 + half) } else { S::zero_ints() }
    }
}

/// One column at a time.
#[inline(always)]
pub(super) unsafe fn one<S: Simd, F: Source<S>>(job: &Job) {
    // SAFETY: the caller's promise.
    unsafe {
        let source = F::new(job.weight, job.k);
        macro_rules! with_sides {
            ($sides:ident) => {
                if S::TILED && F::SPREAD {
                    bands::<S, F, $sides, SPREAD>(job, &source)
                } else {
                    bands::<S, F, $sides, STORED>(job, &source)
                }
            };
        }
        const FIRST: usize = 0;
        const SECOND: usize = 1;
        if !F::BY_SIDES {
            return with_sides!(ANY_SIDES);
        }
        match source.sides() {
            FIRST => with_sides!(FIRST),
            SECOND => with_sides!(SECOND),
            _ => with_sides!(ANY_SIDES),
        }
    }
}

/// Bytes of a record whose scale and sums stand in every place of their vectors, as the loop over one column needs them; `more` says that there is a vector
/// behind them, of a second half's sums or of what [`Source::arrange`] keeps there.
const fn spread_bytes(lanes: usize, more: bool) -> usize {
    (64 + 16 * more as usize) * lanes
}

/// Bytes of scratch memory for spread records of a column.
pub(in super::super) fn column_scratch(layout: Layout) -> usize {
    layout.steps() * spread_bytes(MAX_LANES, true) + 64
}

/// Groups of [`Source::TOGETHER`] steps that lie within k.
#[inline(always)]
fn grouped<S: Simd, F: Source<S>>(job: &Job) -> usize {
    (job.k / (32 * S::LANES)).checked_div(F::TOGETHER).unwrap_or(0)
}

/// Half a record's codes, block after block.
#[inline(always)]
unsafe fn stored<S: Simd>(job: &Job, codes: *const u8) -> S::Bytes {
    // SAFETY: half a record stands there; the caller runs on S's instruction set.
    unsafe {
        let codes = S::load(codes);
        if S::ROWS_IN_LANES && job.layout.by_dword() { S::turned(codes) } else { codes }
    }
}

/// Writes the records of row `x_row`, which has one column, to the scratch memory with codes block after block: a row of several that are multiplied with
/// different weights.
#[inline(always)]
unsafe fn straighten<S: Simd>(job: &Job, x_row: usize) {
    // SAFETY: the column has so many records, the scratch memory places for as many larger ones.
    unsafe {
        let bytes = job.layout.record_bytes();
        let mut record = job.prepared.add(x_row * job.layout.column_bytes());
        let mut to = aligned(job.scratch);
        for _ in 0..job.layout.steps() {
            for half in 0..2 {
                S::store(to.add(16 * half * S::LANES), stored::<S>(job, record.add(16 * half * S::LANES)));
            }
            let codes = 32 * S::LANES;
            to.add(codes).copy_from_nonoverlapping(record.add(codes), bytes - codes);
            record = record.add(bytes);
            to = to.add(bytes);
        }
    }
}

/// Writes the spread records of row `x_row`, which has one column, to the scratch memory.
#[inline(always)]
unsafe fn spread<S: Simd, F: Source<S>>(job: &Job, x_row: usize) {
    let (notes, stride) = (2 + F::HALVES as usize, spread_bytes(S::LANES, F::HALVES || F::TOGETHER > 0));
    // SAFETY: the column has so many records, the scratch memory places for as many.
    unsafe {
        let mut record = job.prepared.add(x_row * job.layout.column_bytes());
        let mut to = aligned(job.scratch);
        for _ in 0..job.layout.steps() {
            for half in 0..2 {
                S::store(to.add(16 * half * S::LANES), stored::<S>(job, record.add(16 * half * S::LANES)));
            }
            for place in 0..notes {
                let place_to = to.add((32 + 16 * place) * S::LANES);
                S::store_floats(place_to.cast(), note::<S, STORED>(record, place));
            }
            record = record.add(job.layout.record_bytes());
            to = to.add(stride);
        }
        for group in 0..grouped::<S, F>(job) {
            F::arrange(aligned(job.scratch).add(group * F::TOGETHER * stride), stride);
        }
    }
}

/// One column at a time, four bands of rows at once.
///
/// Several rows of a band may be [one](super::super::Plan::features_in_one): its steps go on across the ends of the rows in it, and those in which one row ends and
/// the next begins belong to both. A row's sums are then in other lanes, in the same order.
#[inline(always)]
unsafe fn bands<S: Simd, F: Source<S>, const SIDES: usize, const HOW: u8>(job: &Job, source: &F) {
    let steps = job.layout.steps();
    let record_bytes = match HOW {
        SPREAD => spread_bytes(S::LANES, F::HALVES || F::TOGETHER > 0),
        _ => job.layout.record_bytes(),
    };
    let (planes, column_bytes) = (job.layout.planes(), job.layout.column_bytes());
    let count = job.n.len();
    let band = Part::turns_of(count);
    let full = job.k / (32 * S::LANES) / F::STEPS * F::STEPS;
    let times = if S::LANES == 1 { 1 } else { job.layout.times() };
    // Of one row in it.
    let blocks = job.k / 32 / times;
    let grouped = if HOW == SPREAD { grouped::<S, F>(job) * F::TOGETHER } else { 0 };
    let by_dword = S::ROWS_IN_LANES && job.layout.by_dword();
    let distances = F::AHEAD_BYTES.map(|bytes| ahead(bytes, F::STEP_BYTES).next_multiple_of(F::STEPS));
    let mut choice = Distances::new(job.turns.len(), STREAMS * full * F::STEP_BYTES);
    // SAFETY: the caller's promise: rows below n.end exist in the weight, records in the prepared x, places in y.
    unsafe {
        for i in 0..job.rows.len() {
            let (x_row, y_row) = job.rows.get(i);
            let y = job.y.data.add(y_row * job.y.stride + job.n.start * times);
            if job.again && job.rows.len() == 1 {
                // The scratch memory has them.
            } else if HOW == SPREAD {
                spread::<S, F>(job, x_row);
            } else if by_dword {
                straighten::<S>(job, x_row);
            }
            for t in job.turns.clone() {
                let ahead = if distances[0] == distances[1] { distances[0] } else { distances[choice.next()] };
                // The last band may be shorter: its row is then the last one once more.
                let rows = source.rows(four!(|r| job.n.start + (t + r * band).min(count - 1)));
                // The row of each band that is there, and the places of its features.
                let present: [bool; 4] = four!(|r| t + r * band < count);
                let outputs = four!(|r| y.wrapping_add((t + r * band) * times));
                let mut sum = S::splat(0.0);
                for plane in (0..planes).rev() {
                    let mut record = if HOW == SPREAD || by_dword {
                        aligned(job.scratch).cast_const()
                    } else {
                        job.prepared.add((x_row * planes + plane) * column_bytes)
                    };
                    let mut total = S::splat(0.0);
                    let by_rows = if F::by_rows::<SIDES>() && !job.batch_invariant { grouped } else { 0 };
                    if by_rows > 0 {
                        let mut totals = [total; 4];
                        for step in (0..by_rows).step_by(4) {
                            source.prefetch_four(&rows, step + ahead.next_multiple_of(4));
                            totals = source.add_together::<SIDES>(&rows, step, record, record_bytes, totals);
                            record = record.add(4 * record_bytes);
                        }
                        total = S::ByRow::sum_each_float(totals);
                    }
                    let mut from = by_rows;
                    for time in 0..times {
                        let to = if times == 1 { full } else { (time + 1) * blocks / S::LANES };
                        let grouped = grouped.clamp(from, to);
                        for step in (from..grouped).step_by(4) {
                            source.prefetch_four(&rows, step + ahead.next_multiple_of(4));
                            let scales = source.four_scales::<SIDES>(&rows, step);
                            let sums = source.sums(&rows, step, record, record_bytes);
                            unrolled!(4, |s| {
                                total = accumulated::<S, F, HOW>(sums[s], &scales[s], record, total);
                                record = record.add(record_bytes);
                            });
                        }
                        let together = if SIDES == ANY_SIDES { grouped } else { grouped + (to - grouped) / 4 * 4 };
                        for step in (grouped..together).step_by(4) {
                            let scales = source.four_scales::<SIDES>(&rows, step);
                            unrolled!(4, |s| {
                                source.prefetch_quarter::<SIDES>(&rows, step + ahead, s);
                                let stage = source.stage::<true>(&rows, step + s);
                                total = dot_step::<S, F, HOW>(source, &stage, 0, &scales[s], record, total);
                                record = record.add(record_bytes);
                            });
                        }
                        for step in (together..to).step_by(F::STEPS) {
                            // Behind the end of a row lies the next one of its band.
                            source.prefetch(&rows, step + ahead);
                            let stage = source.stage::<true>(&rows, step);
                            unrolled!(F::STEPS, |s| {
                                total =
                                    dot_step::<S, F, HOW>(source, &stage, s, &source.scales(&stage, s), record, total);
                                record = record.add(record_bytes);
                            });
                        }
                        from = to;
                        if times == 1 {
                            break;
                        }
                        let lanes = (time + 1) * blocks % S::LANES;
                        if F::TAILS && lanes > 0 {
                            source.prefetch(&rows, to + ahead);
                            let stage = source.stage::<true>(&rows, to);
                            let scales = source.scales(&stage, 0);
                            let sums = step_sums::<S, F, HOW>(source, &stage, 0, record);
                            let ended = accumulated::<S, F, HOW>(sums, &scales, record, total);
                            let begun = accumulated::<S, F, HOW>(sums, &scales, record, S::splat(0.0));
                            write::<S>(S::lanes_of(lanes, ended, total), &outputs, &present, time);
                            total = S::lanes_of(lanes, S::splat(0.0), begun);
                            record = record.add(record_bytes);
                            from += 1;
                        } else if time + 1 < times {
                            write::<S>(total, &outputs, &present, time);
                            total = S::splat(0.0);
                        }
                    }
                    if F::TAILS && full < steps {
                        let stage = source.stage::<false>(&rows, full);
                        total = dot_step::<S, F, HOW>(source, &stage, 0, &source.scales(&stage, 0), record, total);
                    }
                    // The smallest plane first; adding to nothing would turn −0 into 0.
                    sum = if plane + 1 == planes { total } else { S::add(sum, total) };
                }
                write::<S>(sum, &outputs, &present, times - 1);
            }
        }
    }
}

/// Writes the sums of the rows that are present, so many places behind their outputs.
#[inline(always)]
pub(super) unsafe fn write<S: Simd>(sums: S::Floats, outputs: &[*mut f32; 4], present: &[bool; 4], place: usize) {
    // SAFETY: present rows have the places; the caller runs on S's instruction set.
    unsafe {
        for (r, v) in S::fold(sums).into_iter().enumerate() {
            if present[r] {
                *outputs[r].add(place) = v;
            }
        }
    }
}

/// Adds the sums of a step's halves, or the first of them for both, to `total`.
#[inline(always)]
unsafe fn accumulated<S: Simd, F: Source<S>, const HOW: u8>(
    sums: [S::Ints; 2],
    scales: &Scales<S>,
    record: *const u8,
    total: S::Floats,
) -> S::Floats {
    // SAFETY: the caller's record; the caller runs on S's instruction set.
    unsafe {
        let mut v = scaled::<S, OfSource<S, F>>(sums[0], scales.scale[0], None);
        if F::HALVES {
            v = scaled::<S, OfSource<S, F>>(sums[1], scales.scale[1], Some(v));
        }
        added::<S, OfSource<S, F>, HOW>(v, scales, record, note::<S, HOW>(record, 0), total)
    }
}

/// Adds one step of four rows times one column to `total`.
#[inline(always)]
unsafe fn dot_step<S: Simd, F: Source<S>, const HOW: u8>(
    source: &F,
    stage: &F::Stage,
    s: usize,
    scales: &Scales<S>,
    record: *const u8,
    total: S::Floats,
) -> S::Floats {
    // SAFETY: the caller's promise.
    unsafe {
        let sums = step_sums::<S, F, HOW>(source, stage, s, record);
        accumulated::<S, F, HOW>(sums, scales, record, total)
    }
}

/// The sums of a step's halves, or the first of them for both.
#[inline(always)]
unsafe fn step_sums<S: Simd, F: Source<S>, const HOW: u8>(
    source: &F,
    stage: &F::Stage,
    s: usize,
    record: *const u8,
) -> [S::Ints; 2] {
    // SAFETY: `record` is a whole record; the rest is the caller's promise.
    unsafe {
        let (x_lo, x_hi) = (S::load(record), S::load(record.add(16 * S::LANES)));
        let mut lo = [S::zero_ints(); 4];
        let mut hi = [S::zero_ints(); 4];
        for r in 0..4 {
            let codes = source.multiples(stage, r, s);
            lo[r] = S::dot(F::WIDE, lo[r], codes[0], x_lo);
            if F::HALVES {
                hi[r] = S::dot(F::WIDE, hi[r], codes[1], x_hi);
            } else {
                lo[r] = S::dot(F::WIDE, lo[r], codes[1], x_hi);
            }
        }
        let mut sums = [S::zero_ints(); 2];
        sums[0] = S::add_ints(F::of_multiples(S::sum_each(lo), s), start::<S, F, HOW>(record, 0));
        if F::HALVES {
            sums[1] = S::add_ints(F::of_multiples(S::sum_each(hi), s), start::<S, F, HOW>(record, 1));
        }
        sums
    }
}
