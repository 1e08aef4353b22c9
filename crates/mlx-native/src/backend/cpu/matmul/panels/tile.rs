//! The loops over a panel: tiles of rows × columns whose sums stay in registers.

#![allow(clippy::needless_range_loop)] // An index of a row or a column names places in several arrays and in memory.

use std::marker::PhantomData;
use std::ops::Range;

use super::kind::{Entering, Kind};
use super::unpack::Panel;
use crate::backend::cpu::matmul::prepare::record_bytes;
use crate::backend::cpu::matmul::simd::{BIAS_BITS, Simd, array};
use crate::backend::cpu::matmul::source::FOLDED_START;

/// Some columns over a panel.
pub(crate) struct Columns<'a> {
    pub(super) panel: *mut u8,
    /// Blocks of 32 values.
    pub(super) blocks: usize,
    /// From a column's first record to that of the panel's first step.
    pub(super) offset: usize,
    /// The columns' first records, whole tiles of them, whose last may stand there more than once.
    pub(super) records: &'a [*const u8],
    /// How the columns are cut into tiles.
    pub(super) cut: Cut,
    /// Which of the tiles are to be run.
    pub(super) tiles: Range<usize>,
    /// Partial sums by column and vector of rows, and by lane where they are kept apart.
    pub(super) sums: *mut f32,
    /// The panel is the first of its rows: there are no partial sums yet.
    pub(super) first: bool,
    /// Each lane of the records' steps has sums of its own.
    pub(super) apart: bool,
    /// As [`Source::spans`](crate::backend::cpu::matmul::source::Source::spans).
    pub(super) spans: bool,
    /// The panel has what undoes a bias, and sums begin with it.
    pub(super) fused: bool,
}

/// Columns in tiles: first those that fill the registers, then as many of [`REST_COLUMNS`] as leave over least.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    /// Columns of a tile.
    of_tile: usize,
    /// Tiles of so many.
    pub(super) tiles: usize,
    /// Tiles of REST_COLUMNS.
    rest: usize,
}

/// Columns of the tiles that make up the rest.
pub(crate) const REST_COLUMNS: usize = 4;

impl Cut {
    /// `columns` columns, in tiles of `of_tile`.
    pub(super) fn new(columns: usize, of_tile: usize) -> Cut {
        let whole = columns / of_tile;
        let (tiles, rest) = if of_tile <= REST_COLUMNS {
            (columns.div_ceil(of_tile), 0)
        } else {
            match columns % of_tile {
                0 => (whole, 0),
                // Two of four instead of one of six.
                over if whole > 0 && over + of_tile <= 2 * REST_COLUMNS => (whole - 1, 2),
                over if over <= REST_COLUMNS => (whole, 1),
                _ => (whole + 1, 0),
            }
        };
        Cut { of_tile, tiles, rest }
    }

    /// All tiles.
    pub(super) fn all(&self) -> usize {
        self.tiles + self.rest
    }

    /// All tiles' columns.
    pub(super) fn columns(&self) -> usize {
        self.tiles * self.of_tile + self.rest * REST_COLUMNS
    }
}

/// How a tile scales sums of codes.
mod scaling {
    /// As floats, block by block.
    pub(super) const PLAIN: u8 = 0;
    /// Block by block from biased sums, see [`FUSED`](super::Simd::FUSED).
    pub(super) const FUSED: u8 = 1;
    /// Several blocks at once.
    pub(super) const SPANS: u8 = 2;
}

/// Runs the tiles of C columns. CHAINS: how many sums an output has, one or one for each lane.
#[inline(always)]
unsafe fn tiles<S: Simd, K: Kind, const R: usize, const C: usize, const CHAINS: usize, const SCALING: u8>(
    job: &Columns,
) {
    // Tiles before these, and their columns.
    let (before, columns) =
        if C == job.cut.of_tile { (0, 0) } else { (job.cut.tiles, job.cut.tiles * job.cut.of_tile) };
    let count = if C == job.cut.of_tile { job.cut.tiles } else { job.cut.rest };
    let range = job.tiles.start.saturating_sub(before)..job.tiles.end.saturating_sub(before).min(count);
    let (groups, _) = job.records[columns..].as_chunks::<C>();
    for (i, records) in groups.iter().enumerate().take(range.end).skip(range.start) {
        // The next columns are fetched while these are computed.
        let next = groups.get(i + 1).unwrap_or(records);
        // SAFETY: the caller's promise.
        unsafe {
            let sums = job.sums.add((columns + i * C) * R * CHAINS * 4 * S::LANES);
            match SCALING {
                scaling::SPANS => spans::<S, K, R, C>(job, records, next, sums),
                scaling::FUSED => tile::<S, K, R, C, CHAINS, true>(job, records, next, sums),
                _ => tile::<S, K, R, C, CHAINS, false>(job, records, next, sums),
            }
        }
    }
}

/// R vectors of rows × C columns over all blocks of the panel.
#[inline(always)]
unsafe fn tile<S: Simd, K: Kind, const R: usize, const C: usize, const CHAINS: usize, const FUSED: bool>(
    job: &Columns,
    records: &[*const u8; C],
    next: &[*const u8; C],
    sums: *mut f32,
) {
    let panel = Panel::<S, R> { base: job.panel, set: PhantomData };
    let record_bytes = record_bytes(S::LANES, K::HALVES || K::FOLDED);
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
                let codes: [*const u8; C] = array!(C, |c| records[c].add(offset + code_places::<S>().0 * lane));
                // Behind the codes stand the lanes' activation scales, then what sums there are.
                let floats: [*const f32; C] = array!(C, |c| records[c].add(offset + 32 * S::LANES + 4 * lane).cast());
                let ints = half::<S, K, R, C, FUSED>(&panel, &codes, &floats, block, 0);
                let mut v: [[S::Floats; R]; C] = array!(C, |c| array!(R, |r| {
                    let scale = S::load_floats(panel.floats(block, 0, r));
                    if FUSED {
                        let unbias = S::load_floats(panel.floats(block, Panel::<S, R>::UNBIAS, r));
                        S::mul_add(S::as_floats(ints[c][r]), scale, unbias)
                    } else {
                        S::mul(to_floats::<S, K>(ints[c][r]), scale)
                    }
                }));
                if K::HALVES {
                    let ints = half::<S, K, R, C, FUSED>(&panel, &codes, &floats, block, 1);
                    v = array!(C, |c| array!(R, |r| {
                        let sums = if FUSED { S::as_floats(ints[c][r]) } else { to_floats::<S, K>(ints[c][r]) };
                        S::mul_add(sums, S::load_floats(panel.floats(block, 1, r)), v[c][r])
                    }));
                }
                for c in 0..C {
                    let x_scale = S::splat(floats[c].read_unaligned());
                    for r in 0..R {
                        total[c][r] = S::mul_add(v[c][r], x_scale, total[c][r]);
                        if matches!(K::SUMS, Entering::Mins) {
                            for half in 0..1 + K::HALVES as usize {
                                let sum = S::splat(floats[c].add((1 + half) * S::LANES).read_unaligned());
                                let min = S::load_floats(panel.floats(block, 2 + half, r));
                                total[c][r] = S::mul_add(sum, min, total[c][r]);
                            }
                        }
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

/// [`tile`] where spans of blocks share a scale: what is left to be done for each block is the scale of x. Totals stay in the first-level cache, which leaves
/// the registers to a span's sums.
#[inline(always)]
unsafe fn spans<S: Simd, K: Kind, const R: usize, const C: usize>(
    job: &Columns,
    records: &[*const u8; C],
    next: &[*const u8; C],
    sums: *mut f32,
) {
    let panel = Panel::<S, R> { base: job.panel, set: PhantomData };
    let record_bytes = record_bytes(S::LANES, K::HALVES || K::FOLDED);
    let at = |block: usize| (job.offset + block / S::LANES * record_bytes, block % S::LANES);
    // What a record says besides codes, as in `tile`.
    let floats = |c: usize, (offset, lane): (usize, usize)| -> *const f32 {
        records[c].wrapping_add(offset + 32 * S::LANES + 4 * lane).cast()
    };
    let total = |c: usize, r: usize| sums.wrapping_add((c * R + r) * 4 * S::LANES);
    let span = K::SPAN;
    // SAFETY: the panel has that many blocks, each column a record for each LANES of them, and `sums` a vector for each row vector and column.
    unsafe {
        if job.first {
            for c in 0..C {
                for r in 0..R {
                    S::store_floats(total(c, r), S::splat(0.0));
                }
            }
        }
        let mut sum: [[S::Floats; R]; C] = [[S::splat(0.0); R]; C];
        for block in 0..job.blocks {
            let (offset, lane) = at(block);
            if 64 * lane < record_bytes {
                for next in next {
                    S::prefetch(next.wrapping_add(offset + 64 * lane));
                }
            }
            let codes: [*const u8; C] = array!(C, |c| records[c].add(offset + code_places::<S>().0 * lane));
            let notes: [*const f32; C] = array!(C, |c| floats(c, (offset, lane)));
            let ints = half::<S, K, R, C, false>(&panel, &codes, &notes, block, 0);
            for c in 0..C {
                let x_scale = S::splat(notes[c].read_unaligned());
                for r in 0..R {
                    sum[c][r] = S::mul_add(to_floats::<S, K>(ints[c][r]), x_scale, sum[c][r]);
                }
            }
            keep_in_memory();
            if !(block + 1).is_multiple_of(span) && block + 1 != job.blocks {
                continue;
            }
            let first = block / span * span;
            let scales: [S::Floats; R] = array!(R, |r| S::load_floats(panel.floats(block, 0, r)));
            for c in 0..C {
                for r in 0..R {
                    sum[c][r] = S::mul_add(sum[c][r], scales[r], S::load_floats(total(c, r)));
                }
            }
            if matches!(K::SUMS, Entering::Mins) && K::FOLDED {
                for block in first..=block {
                    for half in 0..2 {
                        let mins: [S::Floats; R] = array!(R, |r| S::load_floats(panel.floats(block, 2 + half, r)));
                        for c in 0..C {
                            let x_sum = S::splat(floats(c, at(block)).add((1 + half) * S::LANES).read_unaligned());
                            for r in 0..R {
                                sum[c][r] = S::mul_add(x_sum, mins[r], sum[c][r]);
                            }
                        }
                    }
                }
            } else if matches!(K::SUMS, Entering::Mins) {
                let mins: [S::Floats; R] = array!(R, |r| S::load_floats(panel.floats(block, 2, r)));
                for c in 0..C {
                    // Two blocks, or one at the end of k.
                    let mut x_sum = notes[c].add(S::LANES).read_unaligned();
                    if first != block {
                        x_sum += floats(c, at(first)).add(S::LANES).read_unaligned();
                    }
                    let x_sum = S::splat(x_sum);
                    for r in 0..R {
                        sum[c][r] = S::mul_add(x_sum, mins[r], sum[c][r]);
                    }
                }
            }
            for c in 0..C {
                for r in 0..R {
                    S::store_floats(total(c, r), sum[c][r]);
                    sum[c][r] = S::splat(0.0);
                }
            }
            keep_in_memory();
        }
    }
}

/// Keeps the compiler from holding in registers, and so spilling from them, what it would otherwise carry over from one block to the next.
#[inline(always)]
fn keep_in_memory() {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("", options(nostack, preserves_flags)) }
}

/// Bytes from a block's codes to those of the next lane, and from one dword to the next.
#[inline(always)]
const fn code_places<S: Simd>() -> (usize, usize) {
    if S::ROWS_IN_LANES { (4, 16) } else { (16, 4) }
}

/// What [`half`] has summed up without a bias of its own.
#[inline(always)]
unsafe fn to_floats<S: Simd, K: Kind>(ints: S::Ints) -> S::Floats {
    // SAFETY: the caller runs on S's instruction set.
    unsafe {
        // Records are biased.
        if matches!(K::SUMS, Entering::Start) && !K::FOLDED { S::unbiased(ints) } else { S::to_floats(ints) }
    }
}

/// Integer sums of a half (0 or 1) of a block, or of the whole block where halves have no scales of their own; with a bias, or with one if records have it.
#[inline(always)]
unsafe fn half<S: Simd, K: Kind, const R: usize, const C: usize, const BIASED: bool>(
    panel: &Panel<S, R>,
    codes: &[*const u8; C],
    floats: &[*const f32; C],
    block: usize,
    half: usize,
) -> [[S::Ints; R]; C] {
    // SAFETY: `codes` and `floats` are at the block's lane of whole records; the block lies in the panel.
    unsafe {
        let mut ints = array!(C, |c| {
            let note = |half: usize| floats[c].add((1 + half) * S::LANES).cast::<i32>().read_unaligned();
            let start = if matches!(K::SUMS, Entering::Start) && K::FOLDED {
                // Without the bias of both.
                S::splat_int(note(0).wrapping_add(note(1)).wrapping_sub(BIAS_BITS.wrapping_mul(2)) << FOLDED_START)
            } else if matches!(K::SUMS, Entering::Start) {
                S::splat_int(note(half))
            } else if BIASED {
                S::splat_int(BIAS_BITS)
            } else {
                S::zero_ints()
            };
            [start; R]
        });
        for h in if K::HALVES { half..half + 1 } else { 0..2 } {
            for d in 0..4 {
                let w: [S::Bytes; R] = array!(R, |r| S::load(panel.codes(block, h, d, r)));
                for c in 0..C {
                    let x = S::broadcast(codes[c].add(16 * h * S::LANES + code_places::<S>().1 * d));
                    for r in 0..R {
                        ints[c][r] = S::dot(K::WIDE, ints[c][r], w[r], x);
                    }
                }
            }
        }
        ints
    }
}

/// [`tiles`] compiled for each instruction set, with as many vectors of rows and as many columns as its registers hold, or with REST_COLUMNS: apart, as the
/// compiler spills registers where both are one function.
pub(in super::super) mod isa {
    use super::{Columns, Kind, REST_COLUMNS, scaling, tiles};
    use crate::backend::cpu::matmul::simd::{Simd, every_set};

    macro_rules! compiled {
        ($(#[$attribute:meta])* $name:ident, $set:ty) => {
            $(#[$attribute])*
            #[inline(never)]
            pub(in super::super::super) unsafe fn $name<K: Kind, const REST: bool>(job: &Columns) {
                const ROWS: usize = <$set as Simd>::ROW_VECTORS;
                const COLUMNS: [usize; 2] = <$set as Simd>::TILE_COLUMNS;
                const LANES: usize = <$set as Simd>::LANES;
                // SAFETY: the caller's promise is the same.
                unsafe {
                    macro_rules! run {
                        ($columns:literal, $chains:expr, $scaling:ident) => {
                            if REST {
                                if COLUMNS[$columns] > REST_COLUMNS {
                                    tiles::<$set, K, ROWS, REST_COLUMNS, $chains, { scaling::$scaling }>(job)
                                }
                            } else {
                                tiles::<$set, K, ROWS, { COLUMNS[$columns] }, $chains, { scaling::$scaling }>(job)
                            }
                        };
                    }
                    match (K::HALVES, job.apart, job.spans) {
                        (false, false, true) => run!(0, 1, SPANS),
                        (false, false, false) if <$set as Simd>::FUSED && job.fused => run!(0, 1, FUSED),
                        (false, false, false) => run!(0, 1, PLAIN),
                        (false, true, _) => run!(0, LANES, PLAIN),
                        (true, false, _) if <$set as Simd>::FUSED && job.fused => run!(1, 1, FUSED),
                        (true, false, _) => run!(1, 1, PLAIN),
                        (true, true, _) => run!(1, LANES, PLAIN),
                    }
                }
            }
        };
    }
    every_set!(compiled);
}

#[cfg(test)]
mod tests {
    use super::{Cut, REST_COLUMNS};

    #[test]
    fn tiles_have_all_columns_and_hardly_more() {
        for of_tile in [3, 4, 6] {
            for columns in 1..=264 {
                let cut = Cut::new(columns, of_tile);
                let most =
                    if of_tile > REST_COLUMNS && columns > REST_COLUMNS { 1 } else { of_tile.max(REST_COLUMNS) - 1 };
                assert!((columns..=columns + most).contains(&cut.columns()), "{columns} in tiles of {of_tile}");
                assert!(cut.columns() <= 264 && cut.all() > 0);
            }
        }
        assert_eq!((Cut::new(32, 6).tiles, Cut::new(32, 6).rest), (4, 2));
    }
}
