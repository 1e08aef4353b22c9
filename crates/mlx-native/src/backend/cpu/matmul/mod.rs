//! y[i][j] = Σ_l w[j][l] · x[i][l] for every weight format, straight from the stored bytes.
//!
//! Two phases, so that an executor can put a barrier between them: [`Plan::prepare`] brings x into the form that the kernel reads, and
//! [`Plan::run`] computes some output features of all rows. Both may be split over threads in any uneven way; no split, and no
//! timing, changes a bit of the result.
//!
//! Weights that are small integers times a scale for each 16 or 32 values go through integer kernels ([`tiles`], for many rows [`panels`]): x becomes
//! 8-bit integers with a scale for each 32 values. For [`Precision::Exact`] each row of x becomes three such
//! *columns*, the second and third holding what the one before has left over, which keeps 23 bits; small weights get two columns for
//! [`Precision::Q8`]. All other weights go through f32 ([`floats`]).
//!
//! A sum over 16 or 32 values is exact in i32, and the f32 operations on these sums come in one of two orders: that of few columns, which
//! batch-invariant products keep for every m, so that a row's bits depend on that row alone, and that of [`panels`], which has fewer sums to keep. Few rows of x
//! have a third one for some formats, with scales for other groups of at most 20 values: [`rowwise`], which is TQ1_0's where products are batch invariant.

mod ahead;
mod floats;
mod panels;
mod prepare;
mod rowwise;
mod simd;
mod source;
#[cfg(test)]
mod tests;
mod tiles;
mod vendor;

use std::ops::Range;

use rowwise::Rowwise;

use crate::DType;
use crate::backend::cpu::isa::Isa;
use crate::format::{AffineFormat, FpMode, GgmlType, WeightFormat};

/// How the activations of a product are represented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Precision {
    /// As exact as f32: NMSE ≤ 1e-10.
    Exact,
    /// 8-bit integers with a scale for each 32 values at most: NMSE ≤ 1e-4. 16 bits for weights so small that 8 might miss that.
    Q8,
}

/// One weight matrix `[n, k]` in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Weight<'a> {
    /// Blocks of a GGUF file, plain F32, F16 and BF16 included.
    Ggml {
        /// The format.
        ty: GgmlType,
        /// n rows.
        blocks: &'a [u8],
    },
    /// MLX affine groups.
    Affine {
        /// Width, group size and dtype of the scales.
        format: AffineFormat,
        /// n packed rows.
        packed: &'a [u8],
        /// `[n, ⌈k/group_size⌉]`.
        scales: &'a [u8],
        /// `[n, ⌈k/group_size⌉]`.
        biases: &'a [u8],
    },
    /// MLX floating-point groups.
    Fp {
        /// Which ones.
        mode: FpMode,
        /// n packed rows.
        packed: &'a [u8],
        /// `[n, ⌈k/group_size⌉]` bytes.
        scales: &'a [u8],
    },
}

/// What decides about kernels besides the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Config {
    /// The instruction set; must be available on this machine.
    pub isa: Isa,
    /// Precision of the activations.
    pub activations: Precision,
    /// A row's result may not depend on m or on the other rows.
    pub batch_invariant: bool,
}

/// Rows of x in memory: element f of head h of row i at `data + (i·row_stride + h·head_stride + f)` elements, where
/// element l of the row is `h = l / head_dim, f = l % head_dim`. A plain matrix has `head_dim = k`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct XRows {
    /// The first element.
    pub data: *const u8,
    /// F32, F16 or BF16.
    pub dtype: DType,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Contiguous elements.
    pub head_dim: usize,
    /// Elements from one head to the next.
    pub head_stride: usize,
}

/// Rows of y: element j of row i at `data + i·stride + j`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct YRows {
    /// The first element.
    pub data: *mut f32,
    /// Elements from one row to the next.
    pub stride: usize,
}

/// Which prepared rows a run multiplies, and where their results go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RowMap<'a> {
    /// Prepared row i to row i of y, for i < m.
    All(usize),
    /// (prepared row, row of y): what expert routing gathers.
    Pairs(&'a [(u32, u32)]),
}

impl RowMap<'_> {
    /// How many rows.
    pub(crate) fn len(&self) -> usize {
        match self {
            RowMap::All(m) => *m,
            RowMap::Pairs(pairs) => pairs.len(),
        }
    }

    /// The i-th (prepared row, row of y).
    #[inline(always)]
    fn get(&self, i: usize) -> (usize, usize) {
        match self {
            RowMap::All(_) => (i, i),
            RowMap::Pairs(pairs) => (pairs[i].0 as usize, pairs[i].1 as usize),
        }
    }
}

/// Weight rows that a kernel for one row of x reads side by side.
pub(crate) const STREAMS: usize = 4;

/// So many turns and more are an odd number.
const ODD_TURNS: usize = 256;

/// The output features of a run, several of which may count as [one](Plan::features_in_one).
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub features: Range<usize>,
    /// Of one row of x: which of the features. The range is [`STREAMS`] bands one behind the other, the last of them the shorter one, and a turn is a
    /// feature of each. Kernels that do not read bands side by side take so many neighbours for a turn.
    pub turns: Range<usize>,
    /// The scratch memory is as a run of the same product for the same row of x left it: what that made of x is still there.
    pub again: bool,
}

impl Part {
    /// All features of a range.
    pub(crate) fn all(features: Range<usize>) -> Part {
        let turns = 0..Part::turns_of(features.len());
        Part { features, turns, again: false }
    }

    /// Turns of so many features; an odd number where one more costs little. For many k an even number of rows is whole pages, and all bands would come to the
    /// ends of theirs at once, where the processor has to look up the next and stops reading ahead.
    pub(crate) fn turns_of(count: usize) -> usize {
        let turns = count.div_ceil(STREAMS);
        if turns < ODD_TURNS { turns } else { turns | 1 }
    }
}

/// What prepared x depends on besides x itself: equal keys and equal k mean that one preparation serves both products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct XKey {
    layout: prepare::Layout,
}

/// One share of phase 2: what a kernel gets.
struct Job<'a> {
    weight: &'a Weight<'a>,
    /// Of all rows that are one.
    k: usize,
    layout: prepare::Layout,
    prepared: *const u8,
    rows: RowMap<'a>,
    y: YRows,
    n: Range<usize>,
    /// All features, of which these are some.
    n_all: usize,
    /// See [`Part`]; all of them where there are several rows.
    turns: Range<usize>,
    /// See [`Part`].
    again: bool,
    scratch: *mut u8,
    batch_invariant: bool,
}

/// A kernel: computes a [`Job`]. Unsafe for the reasons of [`Plan::run`], and because it needs its instruction set.
type Kernel = unsafe fn(&Job);

/// The kernel of one product `[m, k] · [n, k]ᵀ`, chosen without touching data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    m: usize,
    n: usize,
    k: usize,
    isa: Isa,
    layout: prepare::Layout,
    batch_invariant: bool,
    kernel: Kernel,
    name: &'static str,
    /// How many weight rows a single row of x can meet as one.
    rows_in_one: usize,
    /// How few rows of x can be prepared.
    rowwise: Option<Rowwise>,
}

impl Plan {
    /// Chooses the kernel for a legal product: `k` is whole blocks of `format`, which has a matmul, and `config.isa` is available.
    pub(crate) fn new(config: Config, format: WeightFormat, m: usize, n: usize, k: usize) -> Plan {
        let choice = source::choose(config, format, n, k);
        let layout = choice.layout;
        // Otherwise a row's last group is a part of one.
        let whole_groups = match format {
            WeightFormat::Ggml(_) => true,
            WeightFormat::Affine(affine) => k.is_multiple_of(affine.group_size as usize),
            WeightFormat::Fp(mode) => k.is_multiple_of(mode.group_size() as usize),
        };
        Plan {
            m,
            n,
            k,
            isa: config.isa,
            layout,
            batch_invariant: config.batch_invariant,
            kernel: choice.kernel,
            name: choice.name,
            rows_in_one: if whole_groups { choice.rows_in_one } else { 1 },
            rowwise: choice.rowwise,
        }
    }

    /// The plan for m rows that all meet the same weight, not each one of several: a single row has a layout of its own, and may meet several features
    /// as [one](Self::features_in_one).
    pub(crate) fn of_one_weight(self) -> Plan {
        let rowwise = self.rowwise.filter(|form| form.takes(self.m, self.batch_invariant));
        Plan { layout: self.layout.of_rows(self.m, self.rows_in_one, rowwise), ..self }
    }

    /// How many output features are one to [`run`](Self::run), whose parts count these.
    pub(crate) fn features_in_one(&self) -> usize {
        self.layout.times()
    }

    /// Bytes of prepared x for all m rows; 64-byte alignment is best.
    pub(crate) fn x_bytes(&self) -> usize {
        self.m * self.layout.row_bytes()
    }

    /// Bytes of each thread's scratch memory for runs of at most m rows.
    pub(crate) fn thread_bytes(&self) -> usize {
        let column = tiles::column_scratch(self.layout);
        panels::SCRATCH_BYTES.max(tiles::SCRATCH_BYTES).max(floats::scratch_bytes(self.m)).max(column)
    }

    /// The kernel's name, for the capability query: instruction set, then family.
    pub(crate) fn kernel(&self) -> &'static str {
        self.name
    }

    /// Two plans with equal keys read the same prepared x.
    pub(crate) fn x_key(&self) -> XKey {
        XKey { layout: self.layout }
    }

    /// How many output features one run should take when runs are handed out to `threads` threads on demand.
    ///
    /// One row streams weights, which goes fastest in one long band a thread; many rows want bands whose intermediate sums fit the cache.
    pub(crate) fn chunk(&self, threads: usize) -> usize {
        let even = (self.n / self.features_in_one()).div_ceil(threads.max(1));
        let by_row = matches!(self.layout, prepare::Layout::Rowwise { .. });
        match self.m * self.layout.planes() {
            0 | 1 => even.next_multiple_of((8 / self.features_in_one()).max(STREAMS)),
            columns if by_row || columns <= tiles::COLUMN_BLOCK => {
                even.div_ceil(4).min(64).next_multiple_of(4 * tiles::MAX_GROUPS)
            }
            _ => panels::task_rows(self.n, threads),
        }
    }

    /// Whether runs are for one row of x, which reads weights in [`STREAMS`] bands: then a run may be for some of the turns of its [`Part`].
    pub(crate) fn streams(&self) -> bool {
        self.m * self.layout.planes() == 1
    }

    /// Phase 1: part `part` of `parts` of bringing x into the form that [`run`](Plan::run) reads.
    ///
    /// # Safety
    /// `x` is readable for m rows of k elements, `prepared` writable for [`x_bytes`](Plan::x_bytes); no other part of the
    /// same number runs at the same time, and `part < parts`.
    pub(crate) unsafe fn prepare(&self, x: XRows, prepared: *mut u8, part: usize, parts: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { prepare::prepare(self.isa, self.layout, x, self.m, prepared, part, parts) }
    }

    /// Phase 2: a part of the output features of `rows`, after all parts of phase 1 are done.
    ///
    /// # Safety
    /// `weight` has the plan's format and shape, `prepared` was written by the parts of a plan with an equal
    /// [`x_key`](Plan::x_key) and k, `rows` names prepared rows and rows of `y` that exist (at most m of them), `y` is writable at these rows for
    /// the part's features and no other run writes the same place, they end within the plan's n divided by [`features_in_one`](Plan::features_in_one), the part has
    /// all turns unless the plan [`streams`](Plan::streams), `scratch` is writable for [`thread_bytes`](Plan::thread_bytes) and used by no one else, and as the
    /// part's `again` says.
    pub(crate) unsafe fn run(
        &self,
        weight: &Weight,
        prepared: *const u8,
        rows: RowMap,
        y: YRows,
        part: Part,
        scratch: *mut u8,
    ) {
        let Part { features: n, turns, again } = part;
        let times = self.features_in_one();
        debug_assert!(n.end * times <= self.n && turns.end <= Part::turns_of(n.len()));
        if turns.is_empty() || rows.len() == 0 {
            return;
        }
        let Plan { layout, batch_invariant, .. } = *self;
        let k = self.k * times;
        let n_all = self.n / times;
        let job = Job { weight, k, layout, prepared, rows, y, n, n_all, turns, again, scratch, batch_invariant };
        // SAFETY: the kernel belongs to an instruction set that the plan's maker found available; the rest is the caller's promise.
        unsafe { (self.kernel)(&job) }
    }
}
