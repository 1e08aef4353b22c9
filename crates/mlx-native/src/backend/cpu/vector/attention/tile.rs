//! Attention of many query rows: a tile of rows against blocks of keys, as two matrix products.
//!
//! Rows lie along the vectors' lanes: queries are transposed once a tile, scores are `[key][row]` and sums `[value][row]`. So both
//! products multiply a vector of rows with one cached number, the cache is used as it lies, and the softmax never has to look across
//! a vector. A row's numbers stay in its lane: they do not depend on the rows beside it.

use super::super::math;
use super::super::simd::Simd;
use super::{AttentionTask, CHUNK, Cached, visible};
use crate::backend::cpu::isa::Isa;
use std::ops::Range;

/// Positions of a block; a chunk is whole blocks. A block of values of usual heads fits the first-level cache.
const BLOCK: usize = 64;

/// Memory of a thread for its tiles.
#[derive(Default)]
pub(super) struct Buffers(Vec<f32>);

/// Vectors of rows in a full tile.
const fn tile_vectors(registers: usize) -> usize {
    match registers {
        32.. => 3,
        16.. => 2,
        _ => 1,
    }
}

/// Rows of a full tile.
pub(super) fn rows(isa: Isa) -> usize {
    fn of<S: Simd>() -> usize {
        S::LANES * tile_vectors(S::REGISTERS)
    }
    match isa {
        Isa::Portable => of::<super::super::simd::Portable>(),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => of::<super::super::simd::Avx2>(),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => of::<super::super::simd::Avx512>(),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => of::<super::super::simd::Neon>(),
    }
}

/// A tile at work: where its parts are. `width` stands for the tile's places for rows.
struct Tile {
    /// Scaled queries `[head_dim][width]`
    q: *mut f32,
    /// Scores of a block, then their exponentials, `[BLOCK][width]`
    scores: *mut f32,
    /// Sums of a chunk `[head_dim][width]`, its largest scores and sums of exponentials `[width]`
    chunk: State,
    /// The same of all chunks so far
    all: State,
    /// Factors on what has been summed before a block `[width]`
    factors: *mut f32,
    /// The positions that each row sees `[width]`, from the current block's first on
    from: *mut f32,
    to: *mut f32,
    /// A block of keys or values widened to f32, `[BLOCK][head_dim]`
    block: *mut f32,
    head_dim: usize,
}

struct State {
    values: *mut f32,
    max: *mut f32,
    sum: *mut f32,
}

impl Tile {
    unsafe fn new(buffers: &mut Buffers, head_dim: usize, width: usize) -> Tile {
        let len = 3 * head_dim * width + (BLOCK + 7) * width + BLOCK * head_dim;
        buffers.0.resize(len, 0.0);
        let mut next = buffers.0.as_mut_ptr();
        let mut take = |len: usize| {
            let taken = next;
            // SAFETY: the parts add up to `len`.
            next = unsafe { next.add(len) };
            taken
        };
        Tile {
            q: take(head_dim * width),
            scores: take(BLOCK * width),
            chunk: State { values: take(head_dim * width), max: take(width), sum: take(width) },
            all: State { values: take(head_dim * width), max: take(width), sum: take(width) },
            factors: take(width),
            from: take(width),
            to: take(width),
            block: take(BLOCK * head_dim),
            head_dim,
        }
    }
}

/// What a product does with the sums that are there.
enum Sums {
    /// Replaces them.
    New,
    /// Multiplies each lane by a factor and adds to it.
    Scaled(*const f32),
}

/// The left side of a product: element (i, l) is at `p + i·row + l·column`.
#[derive(Clone, Copy)]
struct Left {
    p: *const f32,
    row: usize,
    column: usize,
}

/// c[i] = sums + Σ_l left(i, l) · b[l] for `M` rows of `V` vectors, summed in the order of l.
#[inline(always)]
unsafe fn product<S: Simd, const M: usize, const V: usize>(
    s: S,
    left: Left,
    b: *const f32,
    c: *mut f32,
    len: usize,
    old: &Sums,
) {
    let width = V * S::LANES;
    let mut sums = [[s.splat(0.0); V]; M];
    unsafe {
        if let Sums::Scaled(factors) = *old {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (j, sum) in sums.iter_mut().enumerate() {
                    let at = j * S::LANES;
                    *sum = s.mul(s.load(c.add(i * width + at)), s.load(factors.add(at)));
                }
            }
        }
        for l in 0..len {
            let mut right = [s.splat(0.0); V];
            for (j, right) in right.iter_mut().enumerate() {
                *right = s.load(b.add(l * width + j * S::LANES));
            }
            let at = left.p.add(l * left.column);
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = s.splat(at.add(i * left.row).read_unaligned());
                for j in 0..V {
                    sums[j] = s.mul_add(a, right[j], sums[j]);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                s.store(c.add(i * width + j * S::LANES), *sum);
            }
        }
    }
}

/// [`product`] for any number of rows.
#[inline(always)]
unsafe fn products<S: Simd, const M: usize, const V: usize>(
    s: S,
    left: Left,
    b: *const f32,
    c: *mut f32,
    (rows, len): (usize, usize),
    old: &Sums,
) {
    let width = V * S::LANES;
    let mut i = 0;
    unsafe {
        while i + M <= rows {
            let left = Left { p: left.p.add(i * left.row), ..left };
            product::<S, M, V>(s, left, b, c.add(i * width), len, old);
            i += M;
        }
        while i < rows {
            let left = Left { p: left.p.add(i * left.row), ..left };
            product::<S, 1, V>(s, left, b, c.add(i * width), len, old);
            i += 1;
        }
    }
}

impl AttentionTask {
    /// The tile of a cache head's rows from `first` on, over these chunks: the results, or one chunk's partial results.
    #[inline(always)]
    pub(super) unsafe fn tile<S: Simd, C: Cached>(
        &self,
        s: S,
        buffers: &mut Buffers,
        head: usize,
        first: usize,
        chunks: Range<usize>,
    ) {
        let rows = (self.params.n_tokens * self.group - first).min(S::LANES * tile_vectors(S::REGISTERS));
        let job = Job { head, first, rows, chunks };
        unsafe {
            match (S::REGISTERS, rows.div_ceil(S::LANES)) {
                (32.., 3..) => self.tile_of::<S, C, 8, 3>(s, buffers, &job),
                (32.., 2) => self.tile_of::<S, C, 8, 2>(s, buffers, &job),
                (32.., _) => self.tile_of::<S, C, 8, 1>(s, buffers, &job),
                (16.., 2..) => self.tile_of::<S, C, 6, 2>(s, buffers, &job),
                (16.., _) => self.tile_of::<S, C, 6, 1>(s, buffers, &job),
                _ => self.tile_of::<S, C, 4, 1>(s, buffers, &job),
            }
        }
    }

    /// The query row, token · n_heads + head, of a cache head's row.
    fn query_row(&self, head: usize, row: usize) -> usize {
        row / self.group * self.params.n_heads + head * self.group + row % self.group
    }

    #[inline(always)]
    unsafe fn tile_of<S: Simd, C: Cached, const M: usize, const V: usize>(
        &self,
        s: S,
        buffers: &mut Buffers,
        job: &Job,
    ) {
        let (head_dim, width) = (self.params.cache.head_dim, V * S::LANES);
        let first = visible(&self.params, job.first / self.group);
        let last = visible(&self.params, (job.first + job.rows - 1) / self.group);
        unsafe {
            let tile = Tile::new(buffers, head_dim, width);
            for row in 0..job.rows {
                let q = self.q.at(self.query_row(job.head, job.first + row) * head_dim);
                for i in 0..head_dim {
                    tile.q.add(i * width + row).write(q.add(i).read_unaligned() * self.params.scale);
                }
            }
            // Places without a row are computed as zero queries and not looked at.
            for row in job.rows..width {
                for i in 0..head_dim {
                    tile.q.add(i * width + row).write(0.0);
                }
            }
            let mut fresh = true;
            for chunk in job.chunks.clone() {
                let from = (chunk * CHUNK).max(first.start / BLOCK * BLOCK);
                let to = ((chunk + 1) * CHUNK).min(last.end);
                if from >= to {
                    continue;
                }
                tile.chunk.values.write_bytes(0, head_dim * width);
                tile.chunk.sum.write_bytes(0, width);
                for i in 0..width {
                    // Finite, so that a score of −∞ minus it is −∞.
                    tile.chunk.max.add(i).write(f32::MIN);
                }
                let mut position = from;
                while position < to {
                    let len = (to - position).min(BLOCK);
                    // All rows see what the last one sees from the left and the first one from the right.
                    let masked = position < last.start || position + len > first.end;
                    self.block::<S, C, M, V>(s, &tile, job, (position, len), masked);
                    position += len;
                }
                if self.split {
                    self.put_partial(&tile, job, chunk, width);
                } else {
                    tile.merge::<S, V>(s, fresh);
                }
                fresh = false;
            }
            if !self.split {
                self.put_output::<S, V>(s, &tile, job);
            }
        }
    }

    /// Adds `len` ≤ BLOCK positions from `position` on to the chunk's sums.
    #[inline(always)]
    unsafe fn block<S: Simd, C: Cached, const M: usize, const V: usize>(
        &self,
        s: S,
        tile: &Tile,
        job: &Job,
        (position, len): (usize, usize),
        masked: bool,
    ) {
        let (head_dim, width) = (tile.head_dim, V * S::LANES);
        let at = (job.head * self.params.cache.capacity + position) * head_dim;
        unsafe {
            let keys = C::block(s, self.k.0.cast::<C>().add(at), tile.block, len * head_dim);
            let left = Left { p: keys, row: head_dim, column: 1 };
            products::<S, M, V>(s, left, tile.q, tile.scores, (len, head_dim), &Sums::New);
            if masked {
                for row in 0..width {
                    let sees = visible(&self.params, (job.first + row.min(job.rows - 1)) / self.group);
                    tile.from.add(row).write(sees.start.saturating_sub(position).min(BLOCK) as f32);
                    tile.to.add(row).write(sees.end.saturating_sub(position).min(BLOCK) as f32);
                }
            }
            self.softmax::<S, V>(s, tile, len, masked);
            let values = C::block(s, self.v.0.cast::<C>().add(at), tile.block, len * head_dim);
            if masked && !all_finite(s, values, len * head_dim) {
                // Zero times infinity would get into rows that do not see it.
                return tile.visible_products::<S, V>(s, values, len);
            }
            let left = Left { p: values, row: 1, column: head_dim };
            let old = Sums::Scaled(tile.factors);
            products::<S, M, V>(s, left, tile.scores, tile.chunk.values, (head_dim, len), &old);
        }
    }

    /// Turns a block's scores into exponentials relative to the largest scores of the chunk so far.
    #[inline(always)]
    unsafe fn softmax<S: Simd, const V: usize>(&self, s: S, tile: &Tile, len: usize, masked: bool) {
        let width = V * S::LANES;
        for j in 0..V {
            let lane = j * S::LANES;
            unsafe {
                let old_max = s.load(tile.chunk.max.add(lane));
                let mut max = old_max;
                for key in 0..len {
                    let p = tile.scores.add(key * width + lane);
                    let mut v = s.load(p);
                    if let Some(cap) = self.params.soft_cap {
                        v = s.mul(s.splat(cap), math::tanh(s, s.div(v, s.splat(cap))));
                    }
                    if masked {
                        v = tile.if_visible(s, lane, key, v, s.splat(f32::NEG_INFINITY));
                    }
                    if masked || self.params.soft_cap.is_some() {
                        s.store(p, v);
                    }
                    max = s.max(v, max);
                }
                let mut sum = s.splat(0.0);
                for key in 0..len {
                    let p = tile.scores.add(key * width + lane);
                    let e = math::exp_negative(s, s.sub(s.load(p), max));
                    s.store(p, e);
                    sum = s.add(sum, e);
                }
                let factor = math::exp_negative(s, s.sub(old_max, max));
                s.store(tile.factors.add(lane), factor);
                s.store(tile.chunk.max.add(lane), max);
                let old_sum = s.load(tile.chunk.sum.add(lane));
                s.store(tile.chunk.sum.add(lane), s.add(s.mul(old_sum, factor), sum));
            }
        }
    }

    /// Writes a chunk's state to the scratch, row by row.
    unsafe fn put_partial(&self, tile: &Tile, job: &Job, chunk: usize, width: usize) {
        for row in 0..job.rows {
            unsafe {
                let partial = self.partial(self.query_row(job.head, job.first + row), chunk);
                for i in 0..tile.head_dim {
                    partial.values.add(i).write(tile.chunk.values.add(i * width + row).read());
                }
                partial.set_max_and_sum(tile.chunk.max.add(row).read(), tile.chunk.sum.add(row).read());
            }
        }
    }

    /// Writes the results, row by row.
    #[inline(always)]
    unsafe fn put_output<S: Simd, const V: usize>(&self, s: S, tile: &Tile, job: &Job) {
        let width = V * S::LANES;
        unsafe {
            for j in 0..V {
                let sum = tile.all.sum.add(j * S::LANES);
                s.store(sum, s.div(s.splat(1.0), s.load(sum)));
            }
            for row in 0..job.rows {
                let output = self.output.at(self.query_row(job.head, job.first + row) * tile.head_dim);
                let factor = tile.all.sum.add(row).read();
                for i in 0..tile.head_dim {
                    output.add(i).write_unaligned(tile.all.values.add(i * width + row).read() * factor);
                }
            }
        }
    }
}

/// Rows of a cache head, and the chunks to go over.
struct Job {
    head: usize,
    first: usize,
    rows: usize,
    chunks: Range<usize>,
}

impl Tile {
    /// `yes` in lanes whose row sees the block's position number `key`, else `no`.
    #[inline(always)]
    unsafe fn if_visible<S: Simd>(&self, s: S, lane: usize, key: usize, yes: S::F, no: S::F) -> S::F {
        let (from, to) = unsafe { (s.load(self.from.add(lane)), s.load(self.to.add(lane))) };
        let started = s.select_ge(s.splat(key as f32), from, yes, no);
        s.select_ge(to, s.splat((key + 1) as f32), started, no)
    }

    /// What the second product does, for visible positions alone.
    #[inline(always)]
    unsafe fn visible_products<S: Simd, const V: usize>(&self, s: S, values: *const f32, len: usize) {
        let width = V * S::LANES;
        for j in 0..V {
            let lane = j * S::LANES;
            for i in 0..self.head_dim {
                unsafe {
                    let c = self.chunk.values.add(i * width + lane);
                    let mut sum = s.mul(s.load(c), s.load(self.factors.add(lane)));
                    for key in 0..len {
                        let value = s.splat(values.add(key * self.head_dim + i).read_unaligned());
                        let more = s.mul_add(value, s.load(self.scores.add(key * width + lane)), sum);
                        sum = self.if_visible(s, lane, key, more, sum);
                    }
                    s.store(c, sum);
                }
            }
        }
    }

    /// Merges the chunk's state into that of all chunks; `fresh` says that it is the first.
    #[inline(always)]
    unsafe fn merge<S: Simd, const V: usize>(&self, s: S, fresh: bool) {
        let width = V * S::LANES;
        let (all, chunk) = (&self.all, &self.chunk);
        unsafe {
            if fresh {
                all.values.copy_from_nonoverlapping(chunk.values, self.head_dim * width);
                all.max.copy_from_nonoverlapping(chunk.max, width);
                all.sum.copy_from_nonoverlapping(chunk.sum, width);
                return;
            }
            for j in 0..V {
                let lane = j * S::LANES;
                let (max, other_max) = (s.load(all.max.add(lane)), s.load(chunk.max.add(lane)));
                let new_max = s.max(max, other_max);
                let ours = math::exp_negative(s, s.sub(max, new_max));
                let theirs = math::exp_negative(s, s.sub(other_max, new_max));
                let (sum, other_sum) = (s.load(all.sum.add(lane)), s.load(chunk.sum.add(lane)));
                s.store(all.max.add(lane), new_max);
                s.store(all.sum.add(lane), s.add(s.mul(sum, ours), s.mul(other_sum, theirs)));
                for i in 0..self.head_dim {
                    let at = i * width + lane;
                    let kept = s.mul(s.load(all.values.add(at)), ours);
                    s.store(all.values.add(at), s.mul_add(s.load(chunk.values.add(at)), theirs, kept));
                }
            }
        }
    }
}

/// Whether no value is infinite or NaN.
#[inline(always)]
unsafe fn all_finite<S: Simd>(s: S, p: *const f32, len: usize) -> bool {
    let mut sum = s.splat(0.0);
    let mut i = 0;
    while i < len {
        let n = (len - i).min(S::LANES);
        // Zero times anything else is NaN.
        sum = s.mul_add(unsafe { super::load(s, p.add(i), n) }, s.splat(0.0), sum);
        i += n;
    }
    s.sum(sum) == 0.0
}
