//! The integer kernels: four weight rows and one step at a time, any number of columns.
//!
//! A vector's place is (lane, row): lane i of a step is a block of 32 values, and its four places are four weight rows (the other way round in [`few`] where
//! [`Simd::ROWS_IN_LANES`]), so a vector of floats accumulates 4·lanes partial sums of four outputs, which [`Simd::fold`] adds up at the end. Every kernel here performs the same f32
//! operations on a column: `sum = int · scale · x_scale + sum [+ Σx · min]`, step by step.
//!
//! - [`one`](one::one): one column. Weights are read once, so their codes stay in stored order (two dots a row and step), and the sums
//!   of four rows are merged into one vector. The four rows come from four far-apart bands, each a contiguous stream.
//! - [`rowwise`](rowwise::rowwise): few rows of x for some formats, whose blocks are added up for each weight row by itself.
//! - [`few`]: up to [`COLUMN_BLOCK`] columns. The codes of 4·T rows are transposed in registers so that a dot yields (lane, row) places at
//!   once, and all columns run over them.
//! - [`panels`]: more columns.

mod one;
mod rowwise;

use std::mem::MaybeUninit;

use super::panels::{Entering, Kind, OfSource, of_kind};
use super::prepare::Layout;
use super::simd::{BIAS, BIAS_BITS, ByRow, MAX_LANES, Simd, array, four, unrolled};
use super::source::{Scales, Source};
use super::vendor::is_intel;
use super::{Job, panels};
pub(super) use one::column_scratch;

/// Columns that share a pass over codes in the first-level cache.
pub(super) const COLUMN_BLOCK: usize = 16;
/// A thread's scratch memory for partial sums.
pub(super) const SCRATCH_BYTES: usize = COLUMN_BLOCK * MAX_GROUPS * 4 * MAX_LANES * size_of::<f32>() + 64;
/// The most groups of four rows that share a load of x.
pub(super) const MAX_GROUPS: usize = 2;

/// How far ahead of their use the weights of each row are asked for: the processor's own prefetching stops at every page, and four rows or more are many
/// streams for it. One column waits for memory alone; with several, the multiplications leave memory more time for each byte.
pub(super) const AHEAD_BYTES_ONE: usize = 2048;
const AHEAD_BYTES_FEW: usize = 512;
/// The same on Intel's processors, whose outer caches are further away.
const AHEAD_BYTES_FEW_INTEL: usize = 1024;

/// `AHEAD_BYTES` in steps.
#[inline(always)]
const fn ahead(ahead_bytes: usize, step_bytes: usize) -> usize {
    ahead_bytes.div_ceil(step_bytes)
}

/// Runs the job with the kernel for its number of columns. T: groups of four rows that share a load of x; R: vectors of rows of a panel.
#[inline(always)]
pub(super) unsafe fn run<S: Simd, F: Source<S>, const T: usize, const R: usize>(job: &Job) {
    // SAFETY: the caller's promise (that of `Plan::run`, and the instruction set) is the callees'.
    unsafe {
        let columns = job.rows.len() * job.layout.planes();
        if S::ByRow::THERE && F::ROWWISE.is_some() && matches!(job.layout, Layout::Rowwise { .. }) {
            rowwise::rowwise::<S, F>(job);
        } else if columns == 1 || !S::TILED {
            one::one::<S, F>(job);
        } else if columns <= COLUMN_BLOCK {
            few::<S, F, T>(job);
        } else {
            panels::many::<S, F, R>(job);
        }
    }
}

/// One half's (or both halves') sums as floats, times the weights' scales: `ints · scale + v`, where there is a `v` yet.
#[inline(always)]
unsafe fn scaled<S: Simd, K: Kind>(ints: S::Ints, scale: S::Floats, v: Option<S::Floats>) -> S::Floats {
    // SAFETY: the caller runs on S's instruction set.
    unsafe {
        // What undoes an offset is biased.
        let sums = if matches!(K::SUMS, Entering::Start) { S::unbiased(ints) } else { S::to_floats(ints) };
        match v {
            None => S::mul(sums, scale),
            Some(v) => S::mul_add(sums, scale, v),
        }
    }
}

/// How a record's notes get to the places of a vector.
const STORED: u8 = 0;
/// The record is one whose notes stand in every place of their vectors.
const SPREAD: u8 = 1;
/// Several columns share codes, see [`Simd::ROWS_IN_LANES`].
const SHARED: u8 = 2;

/// A float a lane of a record, or the bits of an integer, which comes `place` LANES behind the codes.
#[inline(always)]
unsafe fn note<S: Simd, const HOW: u8>(record: *const u8, place: usize) -> S::Floats {
    // SAFETY: `record` is a whole record, or a spread one.
    unsafe {
        let notes = record.add(32 * S::LANES).cast::<f32>();
        match HOW {
            SPREAD => S::load_floats(notes.add(4 * place * S::LANES)),
            SHARED if S::ROWS_IN_LANES => S::repeat_floats(notes.add(place * S::LANES)),
            _ => S::spread_floats(notes.add(place * S::LANES)),
        }
    }
}

/// [`note`] of integers.
#[inline(always)]
unsafe fn int_note<S: Simd, const HOW: u8>(record: *const u8, place: usize) -> S::Ints {
    // SAFETY: `record` is a whole record, or a spread one.
    unsafe {
        let notes = record.add(32 * S::LANES).cast::<i32>();
        match HOW {
            SPREAD => S::load_ints(notes.add(4 * place * S::LANES)),
            SHARED if S::ROWS_IN_LANES => S::repeat_ints(notes.add(place * S::LANES)),
            _ => S::spread_ints(notes.add(place * S::LANES)),
        }
    }
}

/// `v · x_scale + total`, and minimums times sums of activations.
#[inline(always)]
unsafe fn added<S: Simd, K: Kind, const HOW: u8>(
    v: S::Floats,
    scales: &Scales<S>,
    record: *const u8,
    x_scale: S::Floats,
    total: S::Floats,
) -> S::Floats {
    // SAFETY: the caller runs on S's instruction set.
    let mut v = unsafe { S::mul_add(v, x_scale, total) };
    if matches!(K::SUMS, Entering::Mins) {
        // SAFETY: the caller's record.
        unsafe {
            v = S::mul_add(note::<S, HOW>(record, 1), scales.min[0], v);
            if K::HALVES {
                v = S::mul_add(note::<S, HOW>(record, 2), scales.min[1], v);
            }
        }
    }
    v
}

/// The transposed codes of one step of four rows: dword s of the first half, then of the second.
type Codes<S> = [[<S as Simd>::Bytes; 4]; 2];

/// One step of 4·T rows, and the columns that it is multiplied with.
pub(crate) struct Step<'a, S: Simd, const T: usize> {
    codes: &'a [Codes<S>; T],
    scales: &'a [Scales<S>; T],
    /// The columns' records of step 0.
    columns: &'a [*const u8],
    /// Bytes from there to this step's records.
    offset: usize,
    /// `[column][t]` of 4·lanes f32.
    sums: *mut f32,
    /// Where columns share codes: sums begin with [`BIAS_BITS`], and scaling them takes the bias off.
    fused: bool,
}

/// Adds one step to the partial sums of all columns.
#[inline(always)]
unsafe fn step<S: Simd, K: Kind, const T: usize>(step: &Step<S, T>) {
    let sums = |column: usize| step.sums.wrapping_add(column * T * 4 * S::LANES);
    let mut done = 0;
    // SAFETY: the caller's promise, for some of the columns.
    unsafe {
        let mut rest = step.columns;
        // Eight columns' sums fill the registers of the sets that have lanes for rows, unless a half's floats are kept besides.
        if S::ROWS_IN_LANES && !K::HALVES {
            let (eights, fewer) = rest.as_chunks::<8>();
            for eight in eights {
                some_columns::<S, K, T, 8>(step, eight, sums(done));
                done += 8;
            }
            rest = fewer;
        }
        let (fours, rest) = rest.as_chunks::<4>();
        for four in fours {
            some_columns::<S, K, T, 4>(step, four, sums(done));
            done += 4;
        }
        let (pairs, rest) = rest.as_chunks::<2>();
        for pair in pairs {
            some_columns::<S, K, T, 2>(step, pair, sums(done));
        }
        if let [last] = rest {
            some_columns::<S, K, T, 1>(step, &[*last], sums(step.columns.len() - 1));
        }
    }
}

/// [`step`] for C columns, whose dots are interleaved: a dot waits for the one before it in its sum.
#[inline(always)]
unsafe fn some_columns<S: Simd, K: Kind, const T: usize, const C: usize>(
    step: &Step<S, T>,
    columns: &[*const u8; C],
    sums: *mut f32,
) {
    let scales = step.scales;
    // SAFETY: each column has a record at the step's offset, and partial sums; the rest is the caller's promise.
    unsafe {
        let records = array!(C, |c| columns[c].add(step.offset));
        let fused = S::ROWS_IN_LANES && matches!(K::SUMS, Entering::Mins) && step.fused;
        // Codes with an offset start with what undoes it.
        let start = |c: usize, half: usize| {
            if matches!(K::SUMS, Entering::Start) && (half == 0 || K::HALVES) {
                int_note::<S, SHARED>(records[c], 1 + half)
            } else if fused {
                S::splat_int(BIAS_BITS)
            } else {
                S::zero_ints()
            }
        };
        let mut ints = array!(C, |c| [start(c, 0); T]);
        dots::<S, K, T, C>(&mut ints, step.codes, &records, 0);
        let mut v: [[S::Floats; T]; C];
        if K::HALVES {
            v = array!(C, |c| array!(T, |t| scaled::<S, K>(ints[c][t], scales[t].scale[0], None)));
            ints = array!(C, |c| [start(c, 1); T]);
            dots::<S, K, T, C>(&mut ints, step.codes, &records, 1);
            v = array!(C, |c| array!(T, |t| scaled::<S, K>(ints[c][t], scales[t].scale[1], Some(v[c][t]))));
        } else {
            dots::<S, K, T, C>(&mut ints, step.codes, &records, 1);
            v = if fused {
                let unbias = array!(T, |t| S::mul(scales[t].scale[0], S::splat(-BIAS)));
                array!(C, |c| array!(T, |t| S::mul_add(S::as_floats(ints[c][t]), scales[t].scale[0], unbias[t])))
            } else {
                array!(C, |c| array!(T, |t| scaled::<S, K>(ints[c][t], scales[t].scale[0], None)))
            };
        }
        for c in 0..C {
            let x_scale = note::<S, SHARED>(records[c], 0);
            for t in 0..T {
                let sum = sums.add((c * T + t) * 4 * S::LANES);
                let v = added::<S, K, SHARED>(v[c][t], &scales[t], records[c], x_scale, S::load_floats(sum));
                S::store_floats(sum, v);
            }
        }
    }
}

/// Adds the products of one half (0 or 1) of the blocks.
#[inline(always)]
unsafe fn dots<S: Simd, K: Kind, const T: usize, const C: usize>(
    ints: &mut [[S::Ints; T]; C],
    codes: &[Codes<S>; T],
    records: &[*const u8; C],
    half: usize,
) {
    // SAFETY: the records are whole; the caller runs on S's instruction set.
    unsafe {
        if S::ROWS_IN_LANES {
            unrolled!(4, |s| {
                let x: [S::Bytes; C] = array!(C, |c| S::repeat(records[c].add(16 * half * S::LANES + 16 * s)));
                for (ints, x) in ints.iter_mut().zip(x) {
                    for (sum, codes) in ints.iter_mut().zip(codes) {
                        *sum = S::dot(K::WIDE, *sum, codes[half][s], x);
                    }
                }
            });
            return;
        }
        let x: [S::Bytes; C] = array!(C, |c| S::load(records[c].add(16 * half * S::LANES)));
        // Unrolled: which dword is taken has to be known to the compiler.
        unrolled!(4, |s| {
            for (ints, x) in ints.iter_mut().zip(x) {
                for (sum, codes) in ints.iter_mut().zip(codes) {
                    *sum = S::dot_dword(K::WIDE, *sum, codes[half][s], x, s);
                }
            }
        });
    }
}

/// [`step`] of the source's kind.
#[inline(always)]
unsafe fn run_step<S: Simd, F: Source<S>, const T: usize>(step: &Step<S, T>) {
    macro_rules! run {
        ($kind:ty) => {
            S::step::<$kind, T>(step)
        };
    }
    // SAFETY: the caller's promise is the same.
    unsafe { of_kind!(S, F, run) }
}

/// [`step`] compiled for each instruction set.
pub(super) mod isa {
    use super::{Kind, Step, step};
    use crate::backend::cpu::matmul::simd::every_set;

    macro_rules! compiled {
        ($(#[$attribute:meta])* $name:ident, $set:ty) => {
            $(#[$attribute])*
            #[inline(never)]
            pub(in super::super) unsafe fn $name<K: Kind, const T: usize>(job: &Step<$set, T>) {
                // SAFETY: the caller's promise is the same.
                unsafe { step::<$set, K, T>(job) }
            }
        };
    }

    every_set!(compiled);
}

/// Scales where columns share codes.
#[inline(always)]
unsafe fn placed<S: Simd, F: Source<S>>(mut scales: Scales<S>) -> Scales<S> {
    if S::ROWS_IN_LANES {
        for half in 0..1 + F::HALVES as usize {
            // SAFETY: the caller runs on S's instruction set.
            unsafe {
                scales.scale[half] = S::turned_floats(scales.scale[half]);
                if F::MINS {
                    scales.min[half] = S::turned_floats(scales.min[half]);
                }
            }
        }
    }
    scales
}

/// The transposed codes of four rows.
#[inline(always)]
unsafe fn transposed<S: Simd, F: Source<S>>(source: &F, stage: &F::Stage, s: usize) -> Codes<S> {
    // SAFETY: the caller's promise.
    unsafe {
        if S::ROWS_IN_LANES && F::SPLIT {
            // Half as many vectors to be brought to their places.
            let both = S::rows_in_lanes(four!(|r| source.stored(stage, r)));
            let codes = four!(|s| F::split(both[s]));
            return [four!(|s| codes[s][0]), four!(|s| codes[s][1])];
        }
        let rows = four!(|r| source.codes(stage, r, s));
        if S::ROWS_IN_LANES {
            [S::rows_in_lanes(four!(|r| rows[r][0])), S::rows_in_lanes(four!(|r| rows[r][1]))]
        } else {
            [S::transpose(four!(|r| rows[r][0])), S::transpose(four!(|r| rows[r][1]))]
        }
    }
}

/// The record of step 0 of column `c` of the job.
#[inline(always)]
pub(super) unsafe fn column(job: &Job, c: usize) -> *const u8 {
    let planes = job.layout.planes();
    let (row, _) = job.rows.get(c / planes);
    // SAFETY: the row is prepared, so the column lies in the prepared buffer.
    unsafe { job.prepared.add((row * planes + c % planes) * job.layout.column_bytes()) }
}

/// Weight rows `first..first + 4` within the job, the last one repeated past the end.
#[inline(always)]
pub(super) fn neighbours(job: &Job, first: usize) -> [usize; 4] {
    four!(|r| (first + r).min(job.n.end - 1))
}

/// Folds the partial sums of columns `c..` of the job, 4·T weight rows from `first` on, and writes the outputs.
#[inline(always)]
unsafe fn finish<S: Simd, const T: usize>(job: &Job, first: usize, c: usize, columns: usize, sums: *const f32) {
    let planes = job.layout.planes();
    let at = |c: usize, t: usize| (c * T + t) * 4 * S::LANES;
    for i in 0..columns / planes {
        let (_, y_row) = job.rows.get(c / planes + i);
        for t in 0..T {
            // SAFETY: partial sums exist for all columns; the output row has places up to n.end.
            unsafe {
                // The smallest plane first.
                let mut sum = S::load_floats(sums.add(at(i * planes + planes - 1, t)));
                for plane in (0..planes - 1).rev() {
                    sum = S::add(sum, S::load_floats(sums.add(at(i * planes + plane, t))));
                }
                let feature = first + 4 * t;
                let y = job.y.data.add(y_row * job.y.stride + feature);
                let values = S::fold(if S::ROWS_IN_LANES { S::turned_floats(sum) } else { sum });
                if feature + 4 <= job.n.end {
                    y.cast::<[f32; 4]>().write_unaligned(values);
                } else {
                    for (r, value) in values.into_iter().take(job.n.end.saturating_sub(feature)).enumerate() {
                        *y.add(r) = value;
                    }
                }
            }
        }
    }
}

/// Adds the s-th step of stages to the partial sums of all columns.
#[inline(always)]
unsafe fn staged_step<S: Simd, F: Source<S>, const T: usize>(
    source: &F,
    stages: &[F::Stage; T],
    s: usize,
    columns: &[*const u8],
    offset: usize,
    sums: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        // Written in place: they are too large to be handed around.
        let mut codes = [const { MaybeUninit::<Codes<S>>::uninit() }; T];
        let mut scales = [const { MaybeUninit::<Scales<S>>::uninit() }; T];
        unrolled!(T, |t| {
            codes[t].write(transposed::<S, F>(source, &stages[t], s));
            scales[t].write(placed::<S, F>(source.scales(&stages[t], s)));
        });
        let (codes, scales) = (&*codes.as_ptr().cast(), &*scales.as_ptr().cast());
        // Only with minimums is this faster than to convert.
        let fused = S::FUSED && F::FUSED && F::MINS && !F::HALVES;
        run_step::<S, F, T>(&Step { codes, scales, columns, offset, sums, fused });
    }
}

/// Up to [`COLUMN_BLOCK`] columns.
#[inline(always)]
unsafe fn few<S: Simd, F: Source<S>, const T: usize>(job: &Job) {
    let count = job.rows.len() * job.layout.planes();
    let steps = job.layout.steps();
    let record_bytes = job.layout.record_bytes();
    // SAFETY: the caller's promise: rows below n.end exist in the weight, columns in the prepared x, scratch memory for the sums.
    unsafe {
        let source = F::new(job.weight, job.k);
        let mut columns = [std::ptr::null(); COLUMN_BLOCK];
        for (c, place) in columns[..count].iter_mut().enumerate() {
            *place = column(job, c);
        }
        let columns = &columns[..count];
        let sums = aligned(job.scratch).cast::<f32>();
        let full = job.k / (32 * S::LANES) / F::STEPS * F::STEPS;
        let ahead_bytes = if is_intel() { AHEAD_BYTES_FEW_INTEL } else { AHEAD_BYTES_FEW };
        let ahead = ahead(ahead_bytes, F::STEP_BYTES).next_multiple_of(F::STEPS);
        for first in job.n.clone().step_by(4 * T) {
            for place in 0..count * T {
                S::store_floats(sums.add(place * 4 * S::LANES), S::splat(0.0));
            }
            let rows: [F::Rows; T] = array!(T, |t| source.rows(neighbours(job, first + 4 * t)));
            let next: [F::Rows; T] = array!(T, |t| source.rows(neighbours(job, first + 4 * T + 4 * t)));
            for step in (0..full).step_by(F::STEPS) {
                for t in 0..T {
                    if step + ahead < steps {
                        source.prefetch(&rows[t], step + ahead);
                    } else {
                        source.prefetch(&next[t], step + ahead - steps);
                    }
                }
                let stages: [F::Stage; T] = array!(T, |t| source.stage::<true>(&rows[t], step));
                unrolled!(F::STEPS, |s| {
                    staged_step::<S, F, T>(&source, &stages, s, columns, (step + s) * record_bytes, sums);
                });
            }
            if F::TAILS && full < steps {
                let stages: [F::Stage; T] = array!(T, |t| source.stage::<false>(&rows[t], full));
                staged_step::<S, F, T>(&source, &stages, 0, columns, full * record_bytes, sums);
            }
            finish::<S, T>(job, first, 0, count, sums);
        }
    }
}

/// `scratch`, moved up to the next cache line.
#[inline(always)]
pub(super) unsafe fn aligned(scratch: *mut u8) -> *mut u8 {
    // SAFETY: a scratch buffer is 64 bytes longer than what is used of it.
    unsafe { scratch.add(scratch.align_offset(64)) }
}
