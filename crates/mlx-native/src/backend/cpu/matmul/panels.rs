//! The integer kernel for many columns: weights are unpacked once into a panel of codes, and tiles of rows × columns run over it.
//!
//! Here a vector's places are 4·LANES weight rows, all at the same block of 32 values: a dword of codes for each row meets the same dword of x, which a load
//! broadcasts. That takes no shuffle of x, and a tile's sums stay in registers over a run of steps, block after block. To give the bits that
//! [`tiles`](super::tiles) gives, where a place belongs to a (lane, row) pair, batch-invariant products are summed up lane by lane instead, and the lanes'
//! sums are added at the end in the order of [`Simd::fold`]: four times as many sums, which come from and go to the second-level cache.
//!
//! The loop over a panel depends on a [`Kind`] of format alone, not on the format: a few versions of it serve all of them. Where several blocks share a
//! scale, or can be made to by multiplying small integer scales into the codes while unpacking, only the scale of x is left to be applied for each block.
//! Elsewhere integer sums begin with [`BIAS_BITS`](super::simd::BIAS_BITS), and scaling them takes the bias off: they are never converted.

mod kind;
mod tile;
mod unpack;

use std::marker::PhantomData;
use std::ops::Range;

use super::simd::{MAX_LANES, Simd, four};
use super::source::Source;
use super::tiles::{aligned, column};
use super::{Job, RowMap, YRows};
use kind::Folded;
pub(crate) use kind::{Entering, Kind};
pub(super) use kind::{OfSource, With, of_kind};
pub(crate) use tile::Columns;
use tile::Cut;
pub(super) use tile::isa;
use unpack::Panel;

/// The most weight rows that share a pass over some values of k of x: as much of x as this takes comes from far away once for all of them.
const ROWS: usize = 128;
/// Weight rows of a panel on the set that has most.
const PANEL_ROWS: usize = 32;
/// Values of k of a panel, at most: two vectors of rows of them leave room for the columns of a tile in a first-level cache of 48 KiB.
const K_BLOCK: usize = 640;
/// The same where one panel does not hold all of k: a multiple of every [`Source::STEPS`].
const K_PART: usize = 512;
/// The most columns that share an unpacking of the weights.
const COLUMNS: usize = 264;
/// What their number is a multiple of, for tiles of 6, 4 and 3 columns.
const COLUMN_UNIT: usize = 12;

/// Bytes of codes and scales: a byte a value, and up to four f32 for each 32 values.
const PANEL_BYTES: usize = PANEL_ROWS * K_BLOCK + PANEL_ROWS * (K_BLOCK / 32) * 4 * size_of::<f32>();
/// Bytes of partial sums: an f32 of each lane for each row and column.
const SUM_BYTES: usize = ROWS * COLUMNS * MAX_LANES * size_of::<f32>();
/// A thread's scratch memory.
pub(super) const SCRATCH_BYTES: usize = PANEL_BYTES + SUM_BYTES + 64;

/// Rows and steps of the weight that make a panel.
#[derive(Clone, Copy)]
struct Span {
    /// The first row.
    first: usize,
    k0: usize,
    k1: usize,
}

/// [`outputs`] compiled for each instruction set.
pub(super) mod finish {
    use super::{Outputs, outputs};
    use crate::backend::cpu::matmul::simd::{Simd, every_set};

    macro_rules! compiled {
        ($(#[$attribute:meta])* $name:ident, $set:ty) => {
            $(#[$attribute])*
            #[inline(never)]
            pub(in super::super) unsafe fn $name(job: &Outputs) {
                const ROWS: usize = <$set as Simd>::ROW_VECTORS;
                // SAFETY: the caller's promise is the same.
                unsafe {
                    match job.planes {
                        1 => outputs::<$set, ROWS, 1>(job),
                        2 => outputs::<$set, ROWS, 2>(job),
                        _ => outputs::<$set, ROWS, 3>(job),
                    }
                }
            }
        };
    }
    every_set!(compiled);
}

/// The loop over a panel of the source's kind, in tiles of as many columns as fill the registers, or of fewer.
#[inline(always)]
unsafe fn tiles<S: Simd, F: Source<S>, const REST: bool>(job: &Columns) {
    macro_rules! run {
        ($kind:ty) => {
            S::columns::<$kind, REST>(job)
        };
    }
    // SAFETY: the caller's promise is the same.
    unsafe {
        match (F::FOLDED && !job.apart, F::MINS) {
            (true, true) => run!(Folded<true>),
            (true, false) => run!(Folded<false>),
            _ => of_kind!(S, F, run),
        }
    }
}

/// Runs tiles of either kind.
#[inline(always)]
unsafe fn run<S: Simd, F: Source<S>>(job: &Columns) {
    // SAFETY: the caller's promise is the same.
    unsafe {
        if job.tiles.start < job.cut.tiles {
            tiles::<S, F, false>(job);
        }
        if job.tiles.end > job.cut.tiles {
            tiles::<S, F, true>(job);
        }
    }
}

/// Runs all columns over a panel, and meanwhile asks for the weights of the next one, a few lines after each tile: a panel takes a few hundred bytes of each
/// of many rows, which no prefetching of the processor's own foresees.
#[inline(always)]
unsafe fn run_and_ask<S: Simd, F: Source<S>, const R: usize>(source: &F, job: &Job, all: &Columns, next: Option<Span>) {
    let tiles = all.tiles.len();
    let Some(next) = next else {
        // SAFETY: the caller's promise.
        return unsafe { run::<S, F>(all) };
    };
    let stages = (next.k1 - next.k0).div_ceil(F::STEPS);
    let pieces = R * S::LANES * stages;
    // SAFETY: the caller's promise, for some of the columns; any address may be prefetched.
    unsafe {
        for piece in 0..pieces {
            let tiles = tiles * piece / pieces..tiles * (piece + 1) / pieces;
            if !tiles.is_empty() {
                run::<S, F>(&Columns { tiles, ..*all });
            }
            let first = next.first + piece / stages * 4;
            let rows = source.rows(four!(|r| (first + r).min(job.n_all - 1)));
            source.prefetch(&rows, next.k0 + piece % stages * F::STEPS);
        }
    }
}

/// How many weight rows of `n` a task of one of `threads` threads takes.
pub(super) fn task_rows(n: usize, threads: usize) -> usize {
    // Whole panels; of the sizes that keep the busiest thread's rows fewest, the largest.
    let busiest = |rows: usize| n.div_ceil(rows).div_ceil(threads.max(1)) * rows;
    (1..=ROWS / PANEL_ROWS).rev().map(|panels| panels * PANEL_ROWS).min_by_key(|rows| busiest(*rows)).unwrap_or(ROWS)
}

/// Any number of columns, best more than some.
#[inline(always)]
pub(super) unsafe fn many<S: Simd, F: Source<S>, const R: usize>(job: &Job) {
    let (planes, count) = (job.layout.planes(), job.rows.len() * job.layout.planes());
    let steps = job.layout.steps();
    // Folded codes have fewer scales in a tile.
    let columns_of_tile = S::TILE_COLUMNS[(F::HALVES && (job.batch_invariant || !F::FOLDED)) as usize];
    let fits = steps * 32 * S::LANES <= K_BLOCK && F::STEPS == 1;
    let block = if fits { steps } else { K_PART / (32 * S::LANES) };
    let tile_rows = R * 4 * S::LANES;
    let chains = if job.batch_invariant { S::LANES } else { 1 };
    // Unpacking is shared evenly: 512 columns are 264 and 248 of them, not 264 and 264 and a rest.
    let width = count.div_ceil(count.div_ceil(COLUMNS)).next_multiple_of(COLUMN_UNIT);
    // SAFETY: the caller's promise: rows below n.end exist in the weight, columns in the prepared x; the panel and the sums have the sizes that SCRATCH_BYTES
    // counts.
    unsafe {
        let source = F::new(job.weight, job.k);
        // The first half's sums are rounded with the second half's bias in them, which exact products cannot afford.
        let exact = job.batch_invariant || F::HALVES && planes > 1;
        let fused = S::FUSED && F::FUSED && !exact && !source.spans();
        let scratch = aligned(job.scratch);
        let panel = Panel::<S, R> { base: scratch, set: PhantomData };
        let sums = scratch.add(PANEL_BYTES).cast::<f32>();
        for first in job.n.clone().step_by(ROWS) {
            let groups = (job.n.end - first).min(ROWS).div_ceil(tile_rows);
            for c0 in (0..count).step_by(width) {
                let columns = (count - c0).min(width);
                // Columns behind the last one repeat it, and their sums are not used.
                let cut = Cut::new(columns, columns_of_tile);
                let padded = cut.columns();
                let group_sums = padded * tile_rows * chains;
                let mut records = [std::ptr::null(); COLUMNS];
                for (c, place) in records[..padded].iter_mut().enumerate() {
                    *place = column(job, c0 + c.min(columns - 1));
                }
                for k0 in (0..steps).step_by(block) {
                    let k1 = (k0 + block).min(steps);
                    for g in 0..groups {
                        let span = Span { first: first + g * tile_rows, k0, k1 };
                        if F::FOLDED && !job.batch_invariant {
                            panel.fill::<F, true>(&source, job, span, false);
                        } else {
                            panel.fill::<F, false>(&source, job, span, fused);
                        }
                        let columns = Columns {
                            panel: panel.base,
                            blocks: (job.k.div_ceil(32) - k0 * S::LANES).min((k1 - k0) * S::LANES),
                            offset: k0 * job.layout.record_bytes(),
                            records: &records[..padded],
                            cut,
                            tiles: 0..cut.all(),
                            sums: sums.add(g * group_sums),
                            first: k0 == 0,
                            apart: job.batch_invariant,
                            spans: source.spans(),
                            fused,
                        };
                        let next = if g + 1 < groups {
                            Some(Span { first: first + (g + 1) * tile_rows, k0, k1 })
                        } else if k1 < steps {
                            Some(Span { first, k0: k1, k1: (k1 + block).min(steps) })
                        } else {
                            // The same rows for the next columns, or the next rows, which may be another task's.
                            let first = if c0 + width < count { first } else { (first + ROWS).min(job.n.end) };
                            (first < job.n_all).then_some(Span { first, k0: 0, k1: block.min(steps) })
                        };
                        run_and_ask::<S, F, R>(&source, job, &columns, next);
                    }
                }
                for g in 0..groups {
                    S::outputs(&Outputs {
                        rows: job.rows,
                        x_rows: c0 / planes..(c0 + columns) / planes,
                        planes,
                        y: job.y,
                        features: first + g * tile_rows..job.n.end,
                        sums: sums.add(g * group_sums),
                        apart: job.batch_invariant,
                    });
                }
            }
        }
    }
}

/// Partial sums to be added up and written.
pub(crate) struct Outputs<'a> {
    rows: RowMap<'a>,
    /// Which of the job's rows of x.
    x_rows: Range<usize>,
    /// Columns of a row of x.
    planes: usize,
    y: YRows,
    /// The first weight row, and where the job ends.
    features: Range<usize>,
    /// By column and vector of rows, and by lane where they are kept apart.
    sums: *const f32,
    /// See [`Columns`].
    apart: bool,
}

/// Adds up partial sums of R vectors of weight rows and writes the outputs.
#[inline(always)]
unsafe fn outputs<S: Simd, const R: usize, const PLANES: usize>(job: &Outputs) {
    let vector = 4 * S::LANES;
    let chains = if job.apart { S::LANES } else { 1 };
    for (i, x_row) in job.x_rows.clone().enumerate() {
        let (_, y_row) = job.rows.get(x_row);
        for r in 0..R {
            let feature = job.features.start + r * vector;
            if feature >= job.features.end {
                break;
            }
            // SAFETY: partial sums exist for all columns; the output row has places up to the last feature.
            unsafe {
                let sums = job.sums.add((i * PLANES * R + r) * chains * vector);
                let by_chain = four!(|g| {
                    let at = |plane: usize| S::load_floats(sums.add((plane * R * chains + g % chains) * vector));
                    // The smallest plane first.
                    let mut sum = at(PLANES - 1);
                    for plane in (0..PLANES - 1).rev() {
                        sum = S::add(sum, at(plane));
                    }
                    sum
                });
                let values = if job.apart { S::fold_lanes(by_chain) } else { by_chain[0] };
                let y = job.y.data.add(y_row * job.y.stride + feature);
                if feature + vector <= job.features.end {
                    S::store_floats(y, values);
                } else {
                    let mut all = [0f32; 4 * MAX_LANES];
                    S::store_floats(all.as_mut_ptr(), values);
                    y.copy_from_nonoverlapping(all.as_ptr(), job.features.end - feature);
                }
            }
        }
    }
}
