//! The integer kernel for many columns: weights are unpacked once into a panel of codes, and tiles of rows × columns run over it.
//!
//! Here a vector's places are 4·LANES weight rows, all at the same block of 32 values: a dword of codes for each row meets the same dword of x, which a load
//! broadcasts. That takes no shuffle of x, and a tile's sums stay in registers over a run of steps, block after block. To give the bits that
//! [`tiles`](super::tiles) gives, where a place belongs to a (lane, row) pair, batch-invariant products are summed up lane by lane instead, and the lanes'
//! sums are added at the end in the order of [`Simd::fold`]: four times as many sums, which come from and go to the second-level cache.
//!
//! The loop over a panel depends on a [`Kind`] of format alone, not on the format: a few versions of it serve all of them.

#![allow(clippy::needless_range_loop)] // An index of a row or a column names places in several arrays and in memory.

use std::marker::PhantomData;
use std::ops::Range;

use super::prepare::record_bytes;
use super::simd::{MAX_LANES, Simd, array, four};
use super::source::{Scales, Source};
use super::tiles::{aligned, column, neighbours, transposed};
use super::{Job, RowMap, YRows};

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

/// What the loop over a panel depends on besides the instruction set.
pub(crate) trait Kind {
    /// As [`Source::HALVES`].
    const HALVES: bool;
    /// What the records say about sums of codes, and how it enters.
    const SUMS: Entering;
    /// As [`Source::WIDE`].
    const WIDE: bool;
}

/// How sums of activations enter a result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entering {
    /// Not at all.
    None,
    /// Integer sums start with them: the codes have an offset.
    Start,
    /// Times minimums.
    Mins,
}

/// The kind of a source, where a loop is compiled for the source alone.
pub(super) struct OfSource<S: Simd, F: Source<S>>(PhantomData<(S, F)>);

impl<S: Simd, F: Source<S>> Kind for OfSource<S, F> {
    const HALVES: bool = F::HALVES;
    const SUMS: Entering = if F::MINS {
        Entering::Mins
    } else if F::OFFSET != 0 {
        Entering::Start
    } else {
        Entering::None
    };
    const WIDE: bool = F::WIDE;
}

/// The kinds: (halves, wide) × how sums enter.
pub(super) struct With<const HALVES: bool, const SUMS: u8, const WIDE: bool>;

impl<const HALVES: bool, const SUMS: u8, const WIDE: bool> Kind for With<HALVES, SUMS, WIDE> {
    const HALVES: bool = HALVES;
    const SUMS: Entering = match SUMS {
        0 => Entering::None,
        1 => Entering::Start,
        _ => Entering::Mins,
    };
    const WIDE: bool = WIDE;
}

/// R vectors of rows in a panel, block after block: codes by half and dword, then scales and minimums of both halves.
struct Panel<S: Simd, const R: usize> {
    base: *mut u8,
    set: PhantomData<S>,
}

impl<S: Simd, const R: usize> Panel<S, R> {
    /// A vector's bytes, of codes and of floats alike.
    const VECTOR: usize = 16 * S::LANES;
    const BLOCK_BYTES: usize = 12 * R * Self::VECTOR;

    /// Where the codes of dword `d` of half `half` of block `block` stand for vector r of rows.
    #[inline(always)]
    fn codes(&self, block: usize, half: usize, d: usize, r: usize) -> *mut u8 {
        self.base.wrapping_add(block * Self::BLOCK_BYTES + ((4 * half + d) * R + r) * Self::VECTOR)
    }

    /// Where the scales (0 and 1, for first and second halves) and minimums (2 and 3) stand.
    #[inline(always)]
    fn floats(&self, block: usize, which: usize, r: usize) -> *mut f32 {
        self.base.wrapping_add(block * Self::BLOCK_BYTES + ((8 + which) * R + r) * Self::VECTOR).cast()
    }

    /// Unpacks steps `k0..k1` of the rows from `first` on.
    #[inline(always)]
    unsafe fn fill<F: Source<S>>(&self, source: &F, job: &Job, first: usize, k0: usize, k1: usize) {
        let full = job.k / (32 * S::LANES) / F::STEPS * F::STEPS;
        // SAFETY: the rows (the last one repeated) and steps exist in the weight, and the panel has room for the steps.
        unsafe {
            for r in 0..R {
                let rows = four!(|g| source.rows(neighbours(job, first + 4 * (r * S::LANES + g % S::LANES))));
                for step in (k0..k1).step_by(F::STEPS) {
                    let stages = if !F::TAILS || step < full {
                        four!(|g| source.stage::<true>(&rows[g % S::LANES], step))
                    } else {
                        four!(|g| source.stage::<false>(&rows[g % S::LANES], step))
                    };
                    for s in 0..F::STEPS.min(k1 - step) {
                        self.write(source, &stages, r, s, (step + s - k0) * S::LANES);
                    }
                }
            }
        }
    }

    /// Writes the blocks of a staged step of LANES groups of four rows.
    #[inline(always)]
    unsafe fn write<F: Source<S>>(&self, source: &F, stages: &[F::Stage; 4], r: usize, s: usize, block: usize) {
        // SAFETY: as in `fill`.
        unsafe {
            let codes = four!(|g| transposed::<S, F>(source, &stages[g % S::LANES], s));
            for half in 0..2 {
                for d in 0..4 {
                    let by_lane = S::regroup(four!(|g| codes[g][half][d]));
                    for (i, v) in by_lane.into_iter().enumerate().take(S::LANES) {
                        S::store(self.codes(block + i, half, d, r), v);
                    }
                }
            }
            let scales: [Scales<S>; 4] = four!(|g| source.scales(&stages[g % S::LANES], s));
            for half in 0..1 + F::HALVES as usize {
                let by_lane = S::regroup_floats(four!(|g| scales[g].scale[half]));
                for (i, v) in by_lane.into_iter().enumerate().take(S::LANES) {
                    S::store_floats(self.floats(block + i, half, r), v);
                }
                if F::MINS {
                    let by_lane = S::regroup_floats(four!(|g| scales[g].min[half]));
                    for (i, v) in by_lane.into_iter().enumerate().take(S::LANES) {
                        S::store_floats(self.floats(block + i, 2 + half, r), v);
                    }
                }
            }
        }
    }
}

/// Rows and steps of the weight that make a panel.
#[derive(Clone, Copy)]
struct Span {
    /// The first row.
    first: usize,
    k0: usize,
    k1: usize,
}

/// Some columns over a panel.
pub(crate) struct Columns<'a> {
    panel: *mut u8,
    /// Blocks of 32 values.
    blocks: usize,
    /// From a column's first record to that of the panel's first step.
    offset: usize,
    /// The columns' first records; a multiple of the tile's columns, whose last may stand there more than once.
    records: &'a [*const u8],
    /// Which of the tiles are to be run.
    tiles: Range<usize>,
    /// Partial sums by column and vector of rows, and by lane where they are kept apart.
    sums: *mut f32,
    /// The panel is the first of its rows: there are no partial sums yet.
    first: bool,
    /// Each lane of the records' steps has sums of its own.
    apart: bool,
}

/// Runs the tiles of C columns. CHAINS: how many sums an output has, one or one for each lane.
#[inline(always)]
unsafe fn tiles<S: Simd, K: Kind, const R: usize, const C: usize, const CHAINS: usize>(job: &Columns) {
    let (groups, _) = job.records.as_chunks::<C>();
    for (i, records) in groups.iter().enumerate().take(job.tiles.end).skip(job.tiles.start) {
        // The next columns are fetched while these are computed.
        let next = groups.get(i + 1).unwrap_or(records);
        // SAFETY: the caller's promise.
        unsafe { tile::<S, K, R, C, CHAINS>(job, records, next, job.sums.add(i * C * R * CHAINS * 4 * S::LANES)) };
    }
}

/// R vectors of rows × C columns over all blocks of the panel.
#[inline(always)]
unsafe fn tile<S: Simd, K: Kind, const R: usize, const C: usize, const CHAINS: usize>(
    job: &Columns,
    records: &[*const u8; C],
    next: &[*const u8; C],
    sums: *mut f32,
) {
    let panel = Panel::<S, R> { base: job.panel, set: PhantomData };
    let record_bytes = record_bytes(S::LANES, K::HALVES);
    // SAFETY: the panel has that many blocks, each column a record for each LANES of them, and `sums` a vector for each chain.
    unsafe {
        for chain in 0..CHAINS {
            let place = |c: usize, r: usize| sums.add(((c * R + r) * CHAINS + chain) * 4 * S::LANES);
            let mut total: [[S::Floats; R]; C] = [[S::splat(0.0); R]; C];
            if !job.first {
                total = array!(C, |c| array!(R, |r| S::load_floats(place(c, r))));
            }
            // Of a panel that ends within a step, the last lanes have a block less.
            for block in (chain..job.blocks).step_by(CHAINS) {
                let (step, lane) = (block / S::LANES, block % S::LANES);
                let offset = job.offset + step * record_bytes;
                // A lane's share of the lines of the next columns: all at once they would hold up the loads that are needed now.
                if 64 * lane < record_bytes {
                    for next in next {
                        S::prefetch(next.wrapping_add(offset + 64 * lane));
                    }
                }
                let codes: [*const u8; C] = array!(C, |c| records[c].add(offset + 16 * lane));
                // Behind the codes stand the lanes' activation scales, then what sums there are.
                let floats: [*const f32; C] = array!(C, |c| records[c].add(offset + 32 * S::LANES + 4 * lane).cast());
                let ints = half::<S, K, R, C>(&panel, &codes, &floats, block, 0);
                let mut v: [[S::Floats; R]; C] = array!(C, |c| array!(R, |r| S::mul(
                    S::to_floats(ints[c][r]),
                    S::load_floats(panel.floats(block, 0, r))
                )));
                if K::HALVES {
                    let ints = half::<S, K, R, C>(&panel, &codes, &floats, block, 1);
                    v = array!(C, |c| array!(R, |r| S::mul_add(
                        S::to_floats(ints[c][r]),
                        S::load_floats(panel.floats(block, 1, r)),
                        v[c][r]
                    )));
                }
                for c in 0..C {
                    let x_scale = S::splat(floats[c].read_unaligned());
                    for r in 0..R {
                        let mut v = v[c][r];
                        if matches!(K::SUMS, Entering::Mins) {
                            let sum = S::splat(floats[c].add(S::LANES).read_unaligned());
                            v = S::mul_add(sum, S::load_floats(panel.floats(block, 2, r)), v);
                            if K::HALVES {
                                let sum = S::splat(floats[c].add(2 * S::LANES).read_unaligned());
                                v = S::mul_add(sum, S::load_floats(panel.floats(block, 3, r)), v);
                            }
                        }
                        total[c][r] = S::mul_add(v, x_scale, total[c][r]);
                    }
                }
            }
            for c in 0..C {
                for r in 0..R {
                    S::store_floats(place(c, r), total[c][r]);
                }
            }
        }
    }
}

/// Integer sums of a half (0 or 1) of a block, or of the whole block where halves have no scales of their own.
#[inline(always)]
unsafe fn half<S: Simd, K: Kind, const R: usize, const C: usize>(
    panel: &Panel<S, R>,
    codes: &[*const u8; C],
    floats: &[*const f32; C],
    block: usize,
    half: usize,
) -> [[S::Ints; R]; C] {
    // SAFETY: `codes` and `floats` are at the block's lane of whole records; the block lies in the panel.
    unsafe {
        let mut ints = array!(C, |c| {
            let start = if matches!(K::SUMS, Entering::Start) {
                S::splat_int(floats[c].add((1 + half) * S::LANES).cast::<i32>().read_unaligned())
            } else {
                S::zero_ints()
            };
            [start; R]
        });
        for h in if K::HALVES { half..half + 1 } else { 0..2 } {
            for d in 0..4 {
                let w: [S::Bytes; R] = array!(R, |r| S::load(panel.codes(block, h, d, r)));
                for c in 0..C {
                    let x = S::broadcast(codes[c].add(16 * h * S::LANES + 4 * d));
                    for r in 0..R {
                        ints[c][r] = S::dot(K::WIDE, ints[c][r], w[r], x);
                    }
                }
            }
        }
        ints
    }
}

/// [`tiles`] compiled for each instruction set, with as many vectors of rows and as many columns as its registers hold.
pub(super) mod isa {
    use super::{Columns, Kind, tiles};
    use crate::backend::cpu::matmul::simd::{Simd, every_set};

    macro_rules! compiled {
        ($(#[$attribute:meta])* $name:ident, $set:ty) => {
            $(#[$attribute])*
            #[inline(never)]
            pub(in super::super) unsafe fn $name<K: Kind>(job: &Columns) {
                const ROWS: usize = <$set as Simd>::ROW_VECTORS;
                const COLUMNS: [usize; 2] = <$set as Simd>::TILE_COLUMNS;
                const LANES: usize = <$set as Simd>::LANES;
                // SAFETY: the caller's promise is the same.
                unsafe {
                    match (K::HALVES, job.apart) {
                        (false, false) => tiles::<$set, K, ROWS, { COLUMNS[0] }, 1>(job),
                        (false, true) => tiles::<$set, K, ROWS, { COLUMNS[0] }, LANES>(job),
                        (true, false) => tiles::<$set, K, ROWS, { COLUMNS[1] }, 1>(job),
                        (true, true) => tiles::<$set, K, ROWS, { COLUMNS[1] }, LANES>(job),
                    }
                }
            }
        };
    }
    every_set!(compiled);
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

/// Expands `$run!(kind)` with the kind of source F, one of few that loops are compiled for.
macro_rules! of_kind {
    ($set:ident, $source:ident, $run:ident) => {{
        use $crate::backend::cpu::matmul::panels::With;
        let sums = if <$source as Source<$set>>::MINS { 2 } else { (<$source as Source<$set>>::OFFSET != 0) as u8 };
        match (<$source as Source<$set>>::HALVES, sums, <$source as Source<$set>>::WIDE) {
            (false, 0, false) => $run!(With<false, 0, false>),
            (false, 1, false) => $run!(With<false, 1, false>),
            (false, _, false) => $run!(With<false, 2, false>),
            (false, 0, true) => $run!(With<false, 0, true>),
            (false, 1, true) => $run!(With<false, 1, true>),
            (false, _, true) => $run!(With<false, 2, true>),
            (true, 0, false) => $run!(With<true, 0, false>),
            (true, 1, false) => $run!(With<true, 1, false>),
            (true, _, false) => $run!(With<true, 2, false>),
            (true, 0, true) => $run!(With<true, 0, true>),
            (true, 1, true) => $run!(With<true, 1, true>),
            (true, _, true) => $run!(With<true, 2, true>),
        }
    }};
}
pub(super) use of_kind;

/// The loop over a panel of the source's kind.
#[inline(always)]
unsafe fn run<S: Simd, F: Source<S>>(job: &Columns) {
    macro_rules! run {
        ($kind:ty) => {
            S::columns::<$kind>(job)
        };
    }
    // SAFETY: the caller's promise is the same.
    unsafe { of_kind!(S, F, run) }
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
            let rows = source.rows(neighbours(job, next.first + piece / stages * 4));
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
        let scratch = aligned(job.scratch);
        let panel = Panel::<S, R> { base: scratch, set: PhantomData };
        let sums = scratch.add(PANEL_BYTES).cast::<f32>();
        for first in job.n.clone().step_by(ROWS) {
            let groups = (job.n.end - first).min(ROWS).div_ceil(tile_rows);
            for c0 in (0..count).step_by(width) {
                let columns = (count - c0).min(width);
                // Columns behind the last one repeat it, and their sums are not used.
                let padded = columns.next_multiple_of(S::TILE_COLUMNS[F::HALVES as usize]);
                let group_sums = padded * tile_rows * chains;
                let mut records = [std::ptr::null(); COLUMNS];
                for (c, place) in records[..padded].iter_mut().enumerate() {
                    *place = column(job, c0 + c.min(columns - 1));
                }
                for k0 in (0..steps).step_by(block) {
                    let k1 = (k0 + block).min(steps);
                    for g in 0..groups {
                        panel.fill(&source, job, first + g * tile_rows, k0, k1);
                        let columns = Columns {
                            panel: panel.base,
                            blocks: (job.k.div_ceil(32) - k0 * S::LANES).min((k1 - k0) * S::LANES),
                            offset: k0 * job.layout.record_bytes(),
                            records: &records[..padded],
                            tiles: 0..padded / S::TILE_COLUMNS[F::HALVES as usize],
                            sums: sums.add(g * group_sums),
                            first: k0 == 0,
                            apart: job.batch_invariant,
                        };
                        let next = if g + 1 < groups {
                            Some(Span { first: first + (g + 1) * tile_rows, k0, k1 })
                        } else if k1 < steps {
                            Some(Span { first, k0: k1, k1: (k1 + block).min(steps) })
                        } else {
                            None
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
