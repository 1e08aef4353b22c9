//! Attention over a key-value cache.
//!
//! The positions are cut into chunks of at most [`CHUNK`], whatever the number of threads. A chunk of a row gives a [partial result](Partial): the
//! largest score, the sum of the exponentials, and the sum of the values that they weigh; partial results are merged in the order of
//! the chunks. So chunks can be shared between threads, and the result does not depend on how.
// SAFETY of every unsafe block here: the rules of `vector`; positions are below the cache's capacity, and scratch is written by one unit of work.
#![allow(clippy::undocumented_unsafe_blocks)]

mod rows;
mod tile;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Target;
use super::elementwise::{load, store};
use super::scratch::{Scratch, SharedScratch};
use super::simd::Simd;
use super::{GRAIN, Mem, Task, math};
use crate::backend::cpu::kernel::{Resolver, Share};
use crate::ops::{Attention, AttentionParams};
use crate::{DType, Result};

/// The most positions of a chunk; tiles always have this many.
const CHUNK: usize = 256;
/// The fewest.
const MIN_CHUNK: usize = 32;
/// Units of work that few positions are cut into, so that threads end together.
const UNITS: usize = 16;

/// Element of a cache.
trait Cached: Copy {
    /// `n` ≤ LANES elements at `p`, widened, then zeros.
    unsafe fn load<S: Simd>(s: S, p: *const Self, n: usize) -> S::F;

    /// `len` elements at `p` as f32: where they are, or in `buffer`.
    #[inline(always)]
    unsafe fn block<S: Simd>(s: S, p: *const Self, buffer: *mut f32, len: usize) -> *const f32 {
        let mut i = 0;
        while i < len {
            let n = (len - i).min(S::LANES);
            unsafe { store(s, buffer.add(i), Self::load(s, p.add(i), n), n) };
            i += n;
        }
        buffer
    }
}

impl Cached for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f32, n: usize) -> S::F {
        unsafe { load(s, p, n) }
    }

    #[inline(always)]
    unsafe fn block<S: Simd>(_s: S, p: *const f32, _buffer: *mut f32, _len: usize) -> *const f32 {
        p
    }
}

/// The bits of an f16.
impl Cached for u16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u16, n: usize) -> S::F {
        unsafe { if n == S::LANES { s.load_f16(p) } else { s.load_f16_n(p, n) } }
    }
}

/// Query rows of a cache head from which on they are computed as tiles: the two ways take the same time at about this many.
const TILE_FROM: usize = 12;
/// Units of work for a thread from which on the chunks of a tile are not computed apart: their partial results take memory in every list on its way.
const ENOUGH_UNITS: usize = 8;
/// Partial results may take this many values: 16 MiB.
const MAX_PARTIALS: usize = 1 << 22;

pub(super) struct AttentionTask {
    q: Mem<f32>,
    k: Mem<u8>,
    v: Mem<u8>,
    output: Mem<f32>,
    f16: bool,
    params: AttentionParams,
    /// Query heads of a cache head.
    group: usize,
    /// Positions of a chunk.
    chunk: usize,
    /// Chunks that some token sees.
    chunks: Range<usize>,
    way: Way,
    /// Whether the chunks of a row are computed apart and merged in a second phase.
    split: bool,
    /// Partial results `[n_tokens, n_heads, chunks]`, where chunks are computed apart.
    partials: Arc<Scratch>,
    /// The next unit of work that nobody has taken.
    next: AtomicUsize,
}

/// How rows are computed; the two differ in the order of their sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Row by row: for a few of them.
    Rows,
    /// The rows of a cache head, counted token by token, so many at once.
    Tiles { rows: usize, tiles: usize },
}

impl AttentionTask {
    pub(super) fn new(
        op: &Attention,
        resolver: &mut Resolver,
        scratch: &mut SharedScratch,
        Target { isa, options, threads }: Target<'_>,
    ) -> Result<AttentionTask> {
        let params = op.params;
        let (heads, head_dim) = (params.cache.n_kv_heads, params.cache.head_dim);
        let group = params.n_heads / heads;
        let rows = params.n_tokens * group;
        // The way must not depend on the other rows if the results must not.
        let way = if rows >= TILE_FROM || options.batch_invariant {
            let size = tile::rows(isa);
            Way::Tiles { rows: size, tiles: rows.div_ceil(size) }
        } else {
            Way::Rows
        };
        let (first, end) = (visible(&params, 0).start, params.start + params.n_tokens);
        let chunk = match way {
            Way::Rows => (heads * (end - first) / UNITS).next_power_of_two().clamp(MIN_CHUNK, CHUNK),
            Way::Tiles { .. } => CHUNK,
        };
        let chunks = first / chunk..end.div_ceil(chunk);
        let partials = (rows * heads).saturating_mul(chunks.len()).saturating_mul(head_dim + 2);
        let split = chunks.len() > 1
            && match way {
                Way::Rows => true,
                Way::Tiles { tiles, .. } => {
                    threads > 1 && heads * tiles < ENOUGH_UNITS * threads && partials <= MAX_PARTIALS
                }
            };
        Ok(AttentionTask {
            q: Mem::new(resolver, &op.q)?,
            k: Mem::new(resolver, &op.k_cache)?,
            v: Mem::new(resolver, &op.v_cache)?,
            output: Mem::new(resolver, &op.output)?,
            f16: op.k_cache.dtype == DType::F16,
            params,
            group,
            chunk,
            chunks,
            way,
            split,
            partials: scratch.get(if split { partials } else { 0 })?,
            next: AtomicUsize::new(0),
        })
    }

    /// Takes units of work until there is none left.
    #[inline(always)]
    unsafe fn units<S: Simd, C: Cached>(&self, s: S) {
        let heads = self.params.cache.n_kv_heads;
        let chunks = if self.split { self.chunks.len() } else { 1 };
        let mut buffers = tile::Buffers::default();
        loop {
            let unit = self.next.fetch_add(1, Ordering::Relaxed);
            let (rest, chunk) = (unit / chunks, self.chunks.start + unit % chunks);
            match self.way {
                Way::Rows if rest < heads => unsafe { self.chunk_rows::<S, C>(s, rest, chunk) },
                Way::Tiles { rows, tiles } if rest < heads * tiles => {
                    // The last tiles see the most: they go first, so that the threads end together.
                    let (tile, head) = (tiles - 1 - rest / heads, rest % heads);
                    let range = if self.split { chunk..chunk + 1 } else { self.chunks.clone() };
                    unsafe { self.tile::<S, C>(s, &mut buffers, head, tile * rows, range) };
                }
                _ => return,
            }
        }
    }

    /// Where the partial result of a query row, token · n_heads + head, for a chunk is.
    #[inline(always)]
    unsafe fn partial(&self, row: usize, chunk: usize) -> Partial {
        let head_dim = self.params.cache.head_dim;
        let index = row * self.chunks.len() + chunk - self.chunks.start;
        unsafe { Partial { values: self.partials.at(index * (head_dim + 2)), head_dim } }
    }

    /// Merges the row's partial results into its output.
    #[inline(always)]
    unsafe fn merge<S: Simd>(&self, s: S, row: usize) {
        let head_dim = self.params.cache.head_dim;
        let sees = visible(&self.params, row / self.params.n_heads);
        let chunks = sees.start / self.chunk..sees.end.div_ceil(self.chunk);
        unsafe {
            let output = self.output.at(row * head_dim);
            let first = self.partial(row, chunks.start);
            let (mut max, mut sum) = first.max_and_sum();
            output.cast::<u8>().copy_from_nonoverlapping(first.values.cast(), 4 * head_dim);
            for chunk in chunks.start + 1..chunks.end {
                let other = self.partial(row, chunk);
                let (other_max, other_sum) = other.max_and_sum();
                let new_max = if max > other_max { max } else { other_max };
                let ours = math::exp_negative(s, s.splat(max - new_max));
                let theirs = math::exp_negative(s, s.splat(other_max - new_max));
                (max, sum) = (new_max, sum * s.to_array(ours)[0] + other_sum * s.to_array(theirs)[0]);
                let mut i = 0;
                while i < head_dim {
                    let n = (head_dim - i).min(S::LANES);
                    let kept = s.mul(load(s, output.add(i), n), ours);
                    store(s, output.add(i), s.mul_add(load(s, other.values.add(i), n), theirs, kept), n);
                    i += n;
                }
            }
            scale(s, output, head_dim, 1.0 / sum);
        }
    }
}

/// The positions that a token sees.
fn visible(params: &AttentionParams, token: usize) -> Range<usize> {
    let end = params.start + token + 1;
    end.saturating_sub(params.window.unwrap_or(end))..end
}

/// Multiplies `n` values at `p`.
#[inline(always)]
unsafe fn scale<S: Simd>(s: S, p: *mut f32, len: usize, factor: f32) {
    let mut i = 0;
    while i < len {
        let n = (len - i).min(S::LANES);
        unsafe { store(s, p.add(i), s.mul(load(s, p.add(i), n), s.splat(factor)), n) };
        i += n;
    }
}

impl Task for AttentionTask {
    fn phases(&self) -> usize {
        if self.split { 2 } else { 1 }
    }

    fn shares(&self, phase: usize) -> usize {
        let merged = self.params.n_tokens * self.params.n_heads * self.chunks.len() * self.params.cache.head_dim;
        if phase == 1 { merged.div_ceil(4 * GRAIN) } else { usize::MAX }
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S, phase: usize, share: &Share<'_>) {
        if phase == 1 {
            for row in share.range(self.params.n_tokens * self.params.n_heads, 1) {
                unsafe { self.merge(s, row) };
            }
            return;
        }
        unsafe {
            if self.f16 {
                self.units::<S, u16>(s);
            } else {
                self.units::<S, f32>(s);
            }
        }
    }
}

/// One row's result for one chunk: head_dim sums, then the largest score, then the sum of the exponentials.
#[derive(Clone, Copy)]
struct Partial {
    values: *mut f32,
    head_dim: usize,
}

impl Partial {
    #[inline(always)]
    unsafe fn max_and_sum(self) -> (f32, f32) {
        unsafe { (self.values.add(self.head_dim).read(), self.values.add(self.head_dim + 1).read()) }
    }

    #[inline(always)]
    unsafe fn set_max_and_sum(self, max: f32, sum: f32) {
        unsafe {
            self.values.add(self.head_dim).write(max);
            self.values.add(self.head_dim + 1).write(sum);
        }
    }
}
