//! Turning a list of operations into steps, and walking the steps with all threads.
//!
//! Planning resolves views, chooses kernels and places barriers; it touches no data. Rows of x that several products read (query, key and value; gate and
//! up) are brought into the kernels' form once.

use std::sync::{Mutex, PoisonError};

use super::isa::Isa;
use super::kernel::{Faults, Kernel, Resolver, Share, Streams};
use super::matmul::{Config, Precision, XKey};
use super::pool::Pool;
use super::products::{self, Operand, Prepare};
use super::vector;
use crate::backend::CommandList;
use crate::buffer::View;
use crate::device::{Activations, DeviceOptions};
use crate::memory::{HostMemory, Memory};
use crate::ops::{Input, Op};
use crate::{MlxError, Result};

/// Prepared rows that are kept at once. Two suffice for a decoder: what attention reads, and what the feed-forward layer reads.
const SLOTS: usize = 2;

/// Runs lists on the threads of a pool.
pub(crate) struct Executor {
    pub isa: Isa,
    pub options: DeviceOptions,
    pub pool: Pool,
    arena: Mutex<Arena>,
}

/// Memory that one list after another uses.
#[derive(Default)]
struct Arena {
    slots: [Option<HostMemory>; SLOTS],
    threads: Option<HostMemory>,
}

/// Memory that grows, and keeps what it grew out of until the list that may still point to it has ended.
fn grow(memory: &mut Option<HostMemory>, bytes: usize, retired: &mut Vec<HostMemory>) -> Result<*mut u8> {
    if memory.as_ref().is_none_or(|memory| memory.byte_len() < bytes) {
        retired.extend(memory.replace(HostMemory::zeroed(bytes)?));
    }
    match memory {
        Some(memory) => memory.host_ptr(),
        None => Err(MlxError::BufferAllocationError { bytes }),
    }
}

/// A kernel to run, after a barrier or at once.
struct Step {
    barrier: bool,
    kernel: Box<dyn Kernel>,
}

/// How many bytes of each stream a waiting thread asks for: they have to stay in the second-level cache until they are used.
const AHEAD_BYTES: usize = 16 << 10;
/// How many steps ahead a waiting thread looks for weights.
const AHEAD_STEPS: usize = 8;
const LINE: usize = 64;

/// What a thread that waits for the others asks memory for: the weights that its next products begin with. Memory would idle with the thread otherwise,
/// and each product would begin by waiting for its first lines.
#[derive(Default)]
struct Ahead {
    streams: Option<Streams>,
    /// Bytes of each stream that were asked for.
    asked: usize,
    /// The step to look at when these streams are done with.
    next: usize,
}

impl Ahead {
    /// Asks for a line of each stream of a step from `step` on, and says whether there was one.
    fn ask(&mut self, isa: Isa, steps: &[Step], step: usize, share: &Share<'_>) -> bool {
        if self.next <= step {
            *self = Ahead { next: step, ..Ahead::default() };
        }
        loop {
            if let Some(streams) = &self.streams
                && self.asked < streams.bytes.min(AHEAD_BYTES)
            {
                for start in streams.starts {
                    isa.prefetch(start.wrapping_add(self.asked));
                }
                self.asked += LINE;
                return true;
            }
            if self.next >= steps.len().min(step + AHEAD_STEPS) {
                return false;
            }
            *self = Ahead { streams: steps[self.next].kernel.streams(share), asked: 0, next: self.next + 1 };
        }
    }
}

/// What prepared rows were made of.
#[derive(Clone)]
struct Prepared {
    key: XKey,
    input: Input,
    m: usize,
    k: usize,
}

impl Prepared {
    fn serves(&self, other: &Prepared) -> bool {
        self.key == other.key
            && (self.m, self.k) == (other.m, other.k)
            && self.input.dtype == other.input.dtype
            && self.input.layout == other.input.layout
            && self.input.view.same_start(&other.input.view)
            && self.input.view.len == other.input.view.len
    }
}

/// A slot of prepared rows while a list is planned.
#[derive(Default)]
struct Slot {
    content: Option<Prepared>,
    ptr: Option<*mut u8>,
    /// Epoch of the last step that reads or writes it.
    touched: usize,
    /// Epoch in which it was written.
    written: usize,
}

/// Rows that a product's kernel can read.
pub(crate) struct PreparedRows {
    pub ptr: *const u8,
    slot: usize,
    /// Whether a barrier must come before the step that reads them.
    pub barrier: bool,
}

/// A list while it is planned.
pub(crate) struct Planner<'a> {
    pub executor: &'a Executor,
    pub resolver: Resolver,
    steps: Vec<Step>,
    /// Barriers so far; steps of one epoch may run at the same time. Starts at 1, so that 0 is before everything.
    epoch: usize,
    slots: [Slot; SLOTS],
    arena: &'a mut Arena,
    retired: Vec<HostMemory>,
}

impl Executor {
    pub(crate) fn new(isa: Isa, options: DeviceOptions) -> Result<Executor> {
        Ok(Executor { isa, options, pool: Pool::new(options.threads)?, arena: Mutex::default() })
    }

    /// The kernels' configuration.
    pub(crate) fn config(&self) -> Config {
        config(self.isa, &self.options)
    }

    /// Runs the list to its end.
    pub(crate) fn run(&self, list: &CommandList) -> Result<()> {
        // Held for the whole run: the arena belongs to one list at a time.
        let mut arena = self.arena.lock().unwrap_or_else(PoisonError::into_inner);
        let mut planner = Planner {
            executor: self,
            resolver: Resolver::default(),
            steps: Vec::with_capacity(list.ops().len() + list.ops().len() / 2),
            epoch: 1,
            slots: Default::default(),
            arena: &mut arena,
            retired: Vec::new(),
        };
        for (index, recorded) in list.ops().iter().enumerate() {
            let barrier = recorded.barrier;
            match (&recorded.op, &recorded.kernel) {
                (Op::Matmul(op), forced) => products::plan_matmul(&mut planner, op, barrier, forced.as_deref())?,
                (Op::MatmulId(op), forced) => {
                    products::plan_matmul_id(&mut planner, op, index, barrier, forced.as_deref())?
                }
                (_, Some(name)) => return Err(MlxError::KernelNotFound(format!("{name} for {}", recorded.op.name()))),
                (op, None) => {
                    let kernel = vector::kernel(op, index, &mut planner.resolver, self.isa, &self.options)?;
                    planner.push(barrier, kernel);
                }
            }
            planner.forget_written(&recorded.op);
        }
        let Planner { steps, resolver, retired, .. } = planner;
        let faults = Faults::default();
        self.pool.run(&|team| {
            let share = Share { part: team.thread, parts: team.threads, faults: &faults };
            let mut ahead = Ahead::default();
            for (index, step) in steps.iter().enumerate() {
                if step.barrier {
                    team.barrier(|| ahead.ask(self.isa, &steps, index, &share));
                }
                for phase in 0..step.kernel.phases() {
                    if phase > 0 {
                        team.barrier(|| ahead.ask(self.isa, &steps, index + 1, &share));
                    }
                    step.kernel.run(phase, &share);
                }
            }
        })?;
        drop((steps, resolver, retired));
        faults.into_result()
    }
}

/// The matmul kernels' configuration under a device's options.
pub(crate) fn config(isa: Isa, options: &DeviceOptions) -> Config {
    let activations = match options.activations {
        Activations::Auto | Activations::Exact => Precision::Exact,
        Activations::Q8 => Precision::Q8,
    };
    Config { isa, activations, batch_invariant: options.batch_invariant }
}

impl Planner<'_> {
    /// Appends a step; with `barrier`, everything before it ends first.
    pub(crate) fn push(&mut self, barrier: bool, kernel: Box<dyn Kernel>) {
        self.epoch += usize::from(barrier) + kernel.phases() - 1;
        self.steps.push(Step { barrier, kernel });
    }

    /// Scratch memory for each thread: the first thread's, and the bytes from one thread's to the next.
    pub(crate) fn thread_scratch(&mut self, bytes: usize) -> Result<(*mut u8, usize)> {
        let stride = bytes.next_multiple_of(4096);
        let total = stride * self.executor.pool.threads();
        Ok((grow(&mut self.arena.threads, total, &mut self.retired)?, stride))
    }

    /// Memory of this list alone.
    pub(crate) fn temporary(&mut self, bytes: usize) -> Result<*mut u8> {
        let memory = HostMemory::zeroed(bytes)?;
        let ptr = memory.host_ptr()?;
        self.retired.push(memory);
        Ok(ptr)
    }

    /// Rows of x in the form that the operand's kernel reads, prepared by a step of their own unless an earlier product has left them.
    pub(crate) fn prepared(&mut self, operand: &Operand, input: &Input, barrier: bool) -> Result<PreparedRows> {
        let wanted = Prepared { key: operand.plan.x_key(), input: input.clone(), m: operand.m, k: operand.k };
        let found = self.slots.iter().position(|slot| slot.content.as_ref().is_some_and(|have| have.serves(&wanted)));
        if let Some(slot) = found
            && let Some(ptr) = self.slots[slot].ptr
        {
            return Ok(PreparedRows { ptr, slot, barrier: barrier || self.slots[slot].written == self.epoch });
        }
        // The slot that has not been used for longest; one that the current epoch uses can be overwritten only after a barrier.
        let slot = usize::from(self.slots[1].touched < self.slots[0].touched);
        let ptr = grow(&mut self.arena.slots[slot], operand.plan.x_bytes(), &mut self.retired)?;
        let in_use = self.slots[slot].touched == self.epoch;
        let x = self.resolver.ptr(&input.view)?;
        self.push(barrier || in_use, Box::new(Prepare::new(operand, input, x, ptr)));
        self.slots[slot] = Slot { content: Some(wanted), ptr: Some(ptr), touched: self.epoch, written: self.epoch };
        Ok(PreparedRows { ptr, slot, barrier: true })
    }

    /// Appends the step that reads prepared rows.
    pub(crate) fn push_reader(&mut self, rows: &PreparedRows, kernel: Box<dyn Kernel>) {
        self.push(rows.barrier, kernel);
        self.slots[rows.slot].touched = self.epoch;
    }

    /// Prepared rows whose source the operation writes are stale.
    fn forget_written(&mut self, op: &Op) {
        let writes = op.writes();
        for slot in &mut self.slots {
            let stale = |content: &Prepared| writes.iter().any(|write: &&View| write.overlaps(&content.input.view));
            if slot.content.as_ref().is_some_and(stale) {
                slot.content = None;
            }
        }
    }
}
