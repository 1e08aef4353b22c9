//! Matrix products as steps: preparing rows of x, multiplying, and routing rows to experts.

use std::ops::Range;
use std::sync::OnceLock;

use half::bf16;

use super::exec::Planner;
use super::kernel::{Kernel, Share, Streams};
use super::matmul::{Part, Plan, RowMap, STREAMS, Weight, XRows, YRows};
use super::tasks::{Streamed, Tasks};
use super::vector::GRAIN;
use crate::format::{WeightFormat, WeightRow};
use crate::ops::{Input, InputLayout, Matmul, MatmulId, WeightView, fault};
use crate::{DType, GgmlType, MlxError, Result};

/// Bytes of its streams that a thread takes at once at least: some half a microsecond of reading, beside which taking them costs little.
const PIECE_BYTES: usize = 16 << 10;
/// Parts of fewer bytes are taken whole: beginning in the middle of another thread's costs what is gained.
const SHARED_BYTES: usize = 512 << 10;

/// A product `[m, k] · [n, k]ᵀ` and the kernel for it.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    pub plan: Plan,
    pub m: usize,
    pub k: usize,
}

impl Operand {
    fn new(
        planner: &Planner<'_>,
        format: WeightFormat,
        [m, n, k]: [usize; 3],
        forced: Option<&str>,
    ) -> Result<Operand> {
        let config = planner.executor.config();
        let plan = Plan::new(config, format, m, n, k);
        if let Some(name) = forced
            && name != plan.kernel()
            && name != config.isa.name()
        {
            return Err(MlxError::KernelNotFound(format!(
                "{name}: this device multiplies {format} with {}",
                plan.kernel()
            )));
        }
        super::log_kernel(plan.kernel(), format, [m, n, k]);
        Ok(Operand { plan, m, k })
    }

    /// See [`Plan::of_one_weight`].
    fn of_one_weight(self) -> Operand {
        Operand { plan: self.plan.of_one_weight(), ..self }
    }
}

/// Brings rows of x into the form that a kernel reads.
pub(crate) struct Prepare {
    plan: Plan,
    x: XRows,
    prepared: *mut u8,
    elements: usize,
}

// SAFETY: the pointers are to memory that the running list owns (see Planner); shares write disjoint parts of it.
unsafe impl Send for Prepare {}
// SAFETY: as above.
unsafe impl Sync for Prepare {}

impl Prepare {
    /// The rows of `input`, whose view starts at `x`, for the operand's kernel.
    pub(crate) fn new(operand: &Operand, input: &Input, x: *const u8, prepared: *mut u8) -> Prepare {
        let size = input.dtype.size_of();
        let x = match input.layout {
            InputLayout::Rows { row_bytes, .. } => XRows {
                data: x,
                dtype: input.dtype,
                row_stride: row_bytes / size,
                head_dim: operand.k,
                head_stride: operand.k,
            },
            InputLayout::Heads { head_dim } => {
                XRows { data: x, dtype: input.dtype, row_stride: head_dim, head_dim, head_stride: operand.m * head_dim }
            }
        };
        Prepare { plan: operand.plan, x, prepared, elements: operand.m * operand.k }
    }
}

impl Kernel for Prepare {
    fn shares(&self, _phase: usize) -> usize {
        self.elements.div_ceil(GRAIN)
    }

    fn run(&self, _phase: usize, share: &Share<'_>) {
        // SAFETY: ops/ has checked that the view holds m rows of k values in this layout; `prepared` has x_bytes; the executor runs each part once.
        unsafe { self.plan.prepare(self.x, self.prepared, share.part, share.parts) }
    }
}

/// A weight's bytes, resolved.
#[derive(Clone, Copy)]
struct WeightBytes {
    format: WeightFormat,
    /// Blocks or packed values, scales, biases: first byte and length of one matrix.
    parts: [(*const u8, usize); 3],
    /// Bytes from one matrix of a stack to the next.
    strides: [usize; 3],
}

impl WeightBytes {
    fn resolve(planner: &mut Planner<'_>, view: &WeightView, [n, k]: [usize; 2]) -> Result<WeightBytes> {
        let side = crate::ops::scale_bytes(&view.format, n, k)?;
        let lengths = [view.format.matrix_bytes(n, k)?, side, side];
        let mut parts = [(std::ptr::NonNull::<u8>::dangling().as_ptr().cast_const(), 0); 3];
        let views = [Some(&view.data), view.scales.as_ref(), view.biases.as_ref()];
        for ((part, view), len) in parts.iter_mut().zip(views).zip(lengths) {
            if let Some(view) = view {
                *part = (planner.resolver.ptr(view)?.cast_const(), len);
            }
        }
        Ok(WeightBytes { format: view.format, parts, strides: view.strides })
    }

    /// Matrix `index` of the stack.
    ///
    /// # Safety
    ///
    /// The stack has more than `index` matrices, and its memory outlives the result.
    unsafe fn matrix<'a>(&self, index: usize) -> Weight<'a> {
        let bytes = |part: usize| {
            let (ptr, len) = self.parts[part];
            // SAFETY: ops/ has checked that the view holds every matrix of the stack in full.
            unsafe { std::slice::from_raw_parts(ptr.add(index * self.strides[part] * usize::from(len > 0)), len) }
        };
        match self.format {
            WeightFormat::Ggml(ty) => Weight::Ggml { ty, blocks: bytes(0) },
            WeightFormat::Affine(format) => {
                Weight::Affine { format, packed: bytes(0), scales: bytes(1), biases: bytes(2) }
            }
            WeightFormat::Fp(mode) => Weight::Fp { mode, packed: bytes(0), scales: bytes(1) },
        }
    }
}

impl WeightBytes {
    /// Row `row` of the first matrix, which has `rows`.
    ///
    /// # Safety
    ///
    /// As [`matrix`](Self::matrix), and `row < rows`.
    unsafe fn row<'a>(&self, row: usize, rows: usize) -> WeightRow<'a> {
        let [data, scales, biases] = self.parts.map(|(ptr, len)| {
            let pitch = len / rows;
            // SAFETY: the matrix lies in full behind `ptr`, and the row inside it.
            unsafe { std::slice::from_raw_parts(ptr.add(row * pitch), pitch) }
        });
        WeightRow { data, scales, biases }
    }
}

/// Output features of all rows.
struct Product {
    plan: Plan,
    n: usize,
    weight: WeightBytes,
    slab: usize,
    prepared: *const u8,
    m: usize,
    y: YRows,
    scratch: (*mut u8, usize),
    dealt: Dealt,
}

/// How a product's features are dealt to threads.
enum Dealt {
    /// So many of them a task.
    Tasks { chunk: usize, tasks: Tasks },
    /// A range for each thread, read in streams: turns of a [`Part`].
    Bands { n: usize, chunk: usize, turns: Streamed },
}

/// Which of `n` features are a thread's.
fn band(n: usize, chunk: usize, part: usize) -> Range<usize> {
    (part * chunk).min(n)..((part + 1) * chunk).min(n)
}

impl Dealt {
    #[inline(always)] // So that it is made where it stays.
    fn new(plan: &Plan, n: usize, row_bytes: usize, threads: usize) -> Dealt {
        let chunk = plan.chunk(threads).max(1);
        let (n, row_bytes) = (n / plan.features_in_one(), row_bytes * plan.features_in_one());
        if !plan.streams() {
            return Dealt::Tasks { chunk, tasks: Tasks::new(n.div_ceil(chunk), threads) };
        }
        let turns = (0..threads).map(|part| Part::turns_of(band(n, chunk, part).len()));
        let piece = if chunk * row_bytes < SHARED_BYTES { chunk } else { PIECE_BYTES / (STREAMS * row_bytes).max(1) };
        let turns = Streamed::new(turns, piece);
        Dealt::Bands { n, chunk, turns }
    }
}

// SAFETY: the pointers are to memory that the running list owns or reads; tasks write disjoint features, and each thread has its own scratch.
unsafe impl Send for Product {}
// SAFETY: as above.
unsafe impl Sync for Product {}

impl Kernel for Product {
    fn run(&self, _phase: usize, share: &Share<'_>) {
        // SAFETY: the planner has made `weight` from a view that holds the slab.
        let weight = unsafe { self.weight.matrix(self.slab) };
        // SAFETY: thread_scratch gives every thread one stride.
        let scratch = unsafe { self.scratch.0.add(share.part * self.scratch.1) };
        let run = |part: Part| {
            // SAFETY: the plan, the rows and y were made for this product; what is dealt to a thread is no other's.
            unsafe { self.plan.run(&weight, self.prepared, RowMap::All(self.m), self.y, part, scratch) };
        };
        match &self.dealt {
            Dealt::Tasks { chunk, tasks } => {
                tasks.each(share.part, |task| run(Part::all(task * chunk..((task + 1) * chunk).min(self.n))));
            }
            Dealt::Bands { n, chunk, turns } => {
                let mut again = false;
                turns.each(share.part, |part, turns| {
                    run(Part { features: band(*n, *chunk, part), turns, again });
                    again = true;
                });
            }
        }
    }

    fn streams(&self, share: &Share<'_>) -> Option<Streams> {
        let Dealt::Bands { n, chunk, .. } = self.dealt else { return None };
        let band = band(n, chunk, share.part);
        if band.is_empty() {
            return None;
        }
        let (data, len) = self.weight.parts[0];
        let (row_bytes, rows) = (len / self.n * self.plan.features_in_one(), Part::turns_of(band.len()));
        let start = self.slab * self.weight.strides[0] + band.start * row_bytes;
        let starts = std::array::from_fn(|r| data.wrapping_add(start + r * rows * row_bytes));
        Some(Streams { starts, bytes: rows * row_bytes })
    }
}

/// Appends the steps of a dense product.
pub(crate) fn plan_matmul(planner: &mut Planner<'_>, op: &Matmul, barrier: bool, forced: Option<&str>) -> Result<()> {
    let Matmul { batch, weight_batch, m, n, k, .. } = *op;
    let (mut barrier, format) = (barrier, op.weight.format);
    let output = planner.resolver.ptr(&op.output)?;
    // A result that is not f32 is computed in f32 first.
    let y = match op.output_dtype {
        DType::F32 => output,
        _ => planner.temporary(batch * m * n * 4)?,
    }
    .cast::<f32>();
    // Weights used as x @ w are transposed to f32 first.
    let (weight, format) = if op.weight.transposed {
        let weight = WeightBytes::resolve(planner, &op.weight, [k, n])?;
        let values = planner.temporary(n * k * 4)?.cast::<f32>();
        planner.push(barrier, Transpose { weight, values, n, k })?;
        barrier = true;
        let parts = [(values.cast_const().cast::<u8>(), n * k * 4), (values.cast(), 0), (values.cast(), 0)];
        let format = WeightFormat::Ggml(GgmlType::F32);
        (WeightBytes { format, parts, strides: [0; 3] }, format)
    } else {
        (WeightBytes::resolve(planner, &op.weight, [n, k])?, format)
    };
    let (products, m, layout) = merge_batches(op);
    let operand = Operand::new(planner, format, [m, n, k], forced)?.of_one_weight();
    let scratch = planner.thread_scratch(operand.plan.thread_bytes())?;
    for product in 0..products {
        let input = batch_input(&op.input, layout, product, [m, k]);
        let rows = planner.prepared(&operand, input, barrier)?;
        let threads = planner.executor.pool.threads();
        let dealt = Dealt::new(&operand.plan, n, weight.parts[0].1 / n.max(1), threads);
        // SAFETY: ops/ has checked that the output holds `batch` products of m rows.
        let data = unsafe { y.add(product * m * n) };
        let kernel = Product {
            plan: operand.plan,
            n,
            weight,
            slab: if weight_batch == 1 { 0 } else { product / (batch / weight_batch) },
            prepared: rows.ptr,
            m,
            y: YRows { data, stride: n },
            scratch,
            dealt,
        };
        planner.push_reader(&rows, kernel)?;
        barrier = false;
    }
    if op.output_dtype != DType::F32 {
        let kernel = RoundToBf16 { from: y, to: output.cast(), len: batch * op.m * n };
        planner.push(true, kernel)?;
    }
    Ok(())
}

/// Batches over one weight whose rows follow each other are one product with more rows: (products, rows of each, where the input's lie).
fn merge_batches(op: &Matmul) -> (usize, usize, InputLayout) {
    match op.input.layout {
        InputLayout::Rows { row_bytes, batch_bytes }
            if op.weight_batch == 1 && (op.m == 1 || batch_bytes == op.m * row_bytes) =>
        {
            let row_bytes = if op.m == 1 { batch_bytes } else { row_bytes };
            let m = op.batch * op.m;
            (1, m, InputLayout::Rows { row_bytes, batch_bytes: m * row_bytes })
        }
        layout => (op.batch, op.m, layout),
    }
}

/// The input of one product of a batch.
fn batch_input(input: &Input, layout: InputLayout, product: usize, [m, k]: [usize; 2]) -> Input {
    let view = match layout {
        InputLayout::Heads { .. } => input.view.clone(),
        InputLayout::Rows { row_bytes, batch_bytes } => {
            let len = (m - 1) * row_bytes + k * input.dtype.size_of();
            input.view.part(product * batch_bytes, len)
        }
    };
    Input { view, dtype: input.dtype, layout }
}

/// Values of an MLX matrix `[k, n]`, written as f32 `[n, k]`.
struct Transpose {
    weight: WeightBytes,
    values: *mut f32,
    n: usize,
    k: usize,
}

// SAFETY: the values are memory of the running list; shares write disjoint columns of it.
unsafe impl Send for Transpose {}
// SAFETY: as above.
unsafe impl Sync for Transpose {}

impl Kernel for Transpose {
    fn run(&self, _phase: usize, share: &Share<'_>) {
        let mut values = vec![0f32; self.n];
        for l in share.range(self.k, 1) {
            // SAFETY: the planner has made `weight` from a view that holds k rows.
            let row = unsafe { self.weight.row(l, self.k) };
            if self.weight.format.dequantize_row(row, &mut values).is_err() {
                values.fill(f32::NAN);
            }
            for (j, value) in values.iter().enumerate() {
                // SAFETY: j < n and l < k.
                unsafe { *self.values.add(j * self.k + l) = *value };
            }
        }
    }
}

/// to[i] = bf16(from[i])
struct RoundToBf16 {
    from: *const f32,
    to: *mut bf16,
    len: usize,
}

// SAFETY: both are memory of the running list; shares write disjoint ranges.
unsafe impl Send for RoundToBf16 {}
// SAFETY: as above.
unsafe impl Sync for RoundToBf16 {}

impl Kernel for RoundToBf16 {
    fn run(&self, _phase: usize, share: &Share<'_>) {
        for i in share.range(self.len, 64) {
            // SAFETY: i < len, which both hold; the output may lie at any even address.
            unsafe { self.to.add(i).write_unaligned(bf16::from_f32(*self.from.add(i))) };
        }
    }
}

/// An expert-routed product: phase 0 sorts the slots by expert, phase 1 multiplies.
struct Routed {
    /// Position in the list, for faults.
    index: usize,
    plan: Plan,
    weight: WeightBytes,
    prepared: *const u8,
    ids: *const u32,
    y: YRows,
    scratch: (*mut u8, usize),
    /// The caller's lists, where there are some: counts and slots.
    lists: Option<[*mut u32; 2]>,
    top_k: usize,
    n_tokens: usize,
    n_experts: usize,
    n: usize,
    threads: usize,
    routes: OnceLock<Routes>,
}

/// Slots by expert.
struct Routes {
    /// (token, slot), expert after expert.
    pairs: Vec<(u32, u32)>,
    /// Experts that have slots, and where in `pairs`.
    experts: Vec<(usize, Range<usize>)>,
    /// Features of a task; every expert has `chunks` tasks.
    chunk: usize,
    chunks: usize,
    tasks: Tasks,
}

// SAFETY: the pointers are to memory that the running list owns or reads; tasks write disjoint slots and features, and each thread has its own scratch.
unsafe impl Send for Routed {}
// SAFETY: as above.
unsafe impl Sync for Routed {}

impl Routed {
    fn route(&self, share: &Share<'_>) -> Routes {
        let slots = self.n_tokens * self.top_k;
        // SAFETY: ops/ has checked that the ids hold this many; the view may lie at any address.
        let id = |slot: usize| unsafe { self.ids.add(slot).read_unaligned() as usize };
        let mut starts = vec![0usize; self.n_experts + 1];
        for slot in 0..slots {
            let expert = id(slot);
            if expert < self.n_experts {
                starts[expert + 1] += 1;
                continue;
            }
            share.faults.report(self.index, slot, || fault::bad_expert(slot, expert as u32, self.n_experts));
            for j in 0..self.n {
                // SAFETY: slot and feature exist, and no task writes the row of a slot without an expert.
                unsafe { *self.y.data.add(slot * self.y.stride + j) = f32::NAN };
            }
        }
        for expert in 0..self.n_experts {
            starts[expert + 1] += starts[expert];
        }
        let mut pairs = vec![(0, 0); starts[self.n_experts]];
        let mut next = starts.clone();
        for slot in 0..slots {
            let expert = id(slot);
            if expert < self.n_experts {
                pairs[next[expert]] = ((slot / self.top_k) as u32, slot as u32);
                next[expert] += 1;
            }
        }
        if let Some([counts, lists]) = self.lists {
            for expert in 0..self.n_experts {
                // SAFETY: the scratch has n_experts counts.
                unsafe { counts.add(expert).write_unaligned((starts[expert + 1] - starts[expert]) as u32) };
            }
            for (i, (_, slot)) in pairs.iter().enumerate() {
                // SAFETY: the scratch has room for every slot.
                unsafe { lists.add(i).write_unaligned(*slot) };
            }
        }
        let experts: Vec<_> = (0..self.n_experts)
            .map(|expert| (expert, starts[expert]..starts[expert + 1]))
            .filter(|(_, range)| !range.is_empty())
            .collect();
        // Enough tasks that the threads end together, and not so many that preparing one outweighs it.
        let wanted = (8 * self.threads).div_ceil(experts.len().max(1));
        let chunk = self.n.div_ceil(wanted).next_multiple_of(16).max(64);
        let chunks = self.n.div_ceil(chunk);
        let tasks = Tasks::new(experts.len() * chunks, self.threads);
        Routes { pairs, experts, chunk, chunks, tasks }
    }
}

impl Kernel for Routed {
    fn phases(&self) -> usize {
        2
    }

    fn shares(&self, phase: usize) -> usize {
        if phase == 0 { 1 } else { usize::MAX }
    }

    fn run(&self, phase: usize, share: &Share<'_>) {
        if phase == 0 {
            if share.part == 0 {
                self.routes.get_or_init(|| self.route(share));
            }
            return;
        }
        let Some(routes) = self.routes.get() else { return };
        // SAFETY: thread_scratch gives every thread one stride.
        let scratch = unsafe { self.scratch.0.add(share.part * self.scratch.1) };
        routes.tasks.each(share.part, |task| {
            let (expert, range) = &routes.experts[task / routes.chunks];
            let start = task % routes.chunks * routes.chunk;
            let features = start..(start + routes.chunk).min(self.n);
            let rows = RowMap::Pairs(&routes.pairs[range.clone()]);
            // SAFETY: the expert is below n_experts; the pairs name tokens that were prepared and slots of y; a task's slots and features are its own.
            unsafe {
                let weight = self.weight.matrix(*expert);
                self.plan.run(&weight, self.prepared, rows, self.y, Part::all(features), scratch);
            }
        });
    }
}

/// Appends the steps of an expert-routed product.
pub(crate) fn plan_matmul_id(
    planner: &mut Planner<'_>,
    op: &MatmulId,
    index: usize,
    barrier: bool,
    forced: Option<&str>,
) -> Result<()> {
    let MatmulId { n_tokens, top_k, n_experts, n, k, .. } = *op;
    let format = op.weight.format;
    let weight = WeightBytes::resolve(planner, &op.weight, [n, k])?;
    let tokens = Operand::new(planner, format, [n_tokens, n, k], forced)?;
    // One expert may get every slot, so the multiplying plan is for that many rows.
    let slots = Operand::new(planner, format, [n_tokens * top_k, n, k], forced)?;
    let scratch = planner.thread_scratch(slots.plan.thread_bytes())?;
    let rows = planner.prepared(&tokens, op.input.clone(), barrier)?;
    let lists = match &op.scratch {
        None => None,
        Some([counts, slots]) => Some([planner.resolver.ptr(counts)?.cast(), planner.resolver.ptr(slots)?.cast()]),
    };
    let kernel = Routed {
        index,
        plan: slots.plan,
        weight,
        prepared: rows.ptr,
        ids: planner.resolver.ptr(&op.ids)?.cast_const().cast(),
        y: YRows { data: planner.resolver.ptr(&op.output)?.cast(), stride: n },
        scratch,
        lists,
        top_k,
        n_tokens,
        n_experts,
        n,
        threads: planner.executor.pool.threads(),
        routes: OnceLock::new(),
    };
    planner.push_reader(&rows, kernel)
}
