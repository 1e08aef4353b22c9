//! Turning a list of operations into steps, and walking the steps with all threads.
//!
//! Planning resolves views, chooses kernels and places barriers; it touches no data. Rows of x that several products read (query, key and value; gate and
//! up) are brought into the kernels' form once.

use std::sync::{Arc, Mutex, PoisonError};

use super::isa::Isa;
use super::kernel::{Faults, Kernel, Resolver, Share, Streams};
use super::kernels::Kernels;
use super::matmul::{Config, Precision, XKey};
use super::pool::{Job, Pool, Team, Ticket};
use super::products::{self, Operand, Prepare};
use super::vector;
use crate::backend::{CommandList, Completed, Submission};
use crate::buffer::View;
use crate::device::{Activations, DeviceOptions};
use crate::memory::{HostMemory, Memory};
use crate::ops::{Input, Op};
use crate::shelf::Shelf;
use crate::{MlxError, Result};

/// Prepared rows that are kept at once. Two suffice for a decoder: what attention reads, and what the feed-forward layer reads.
const SLOTS: usize = 2;

/// Runs lists on the threads of a pool.
pub(crate) struct Executor {
    pub isa: Isa,
    pub options: DeviceOptions,
    pub pool: Arc<Pool>,
    arena: Mutex<Arena>,
    schedules: Arc<Shelf<Schedule>>,
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

/// What runs between two barriers: phases of steps that one thread is enough for, in their order, and after them the phases that all threads share.
///
/// The last thread that comes to the barrier runs the former while the others still wait there, so that they cost no barriers of their own.
#[derive(Clone, Copy)]
struct Section {
    /// Where its phases begin in the list's.
    first: usize,
    /// Where those for all threads begin.
    together: usize,
}

/// A phase of a step.
#[derive(Clone, Copy)]
struct StepPhase {
    step: usize,
    phase: usize,
}

/// Kernels in order, and when their phases run.
#[derive(Default)]
struct Schedule {
    steps: Kernels,
    shared: vector::Shared,
    phases: Vec<StepPhase>,
    sections: Vec<Section>,
}

impl Schedule {
    /// Places the phases of the last kernel, and says how many these are; with `barrier`, everything before it ends first.
    fn place(&mut self, barrier: bool) -> usize {
        let step = self.steps.len() - 1;
        let kernel = self.steps.get(step);
        for phase in 0..kernel.phases() {
            let (wait, alone) = (barrier || phase > 0, kernel.shares(phase) == 1);
            let end = self.phases.len();
            match self.sections.last_mut() {
                // The thread that is alone runs one after the other, and the rest begins after it.
                Some(section) if section.together == end => section.together += usize::from(alone),
                Some(_) if !wait => {}
                _ => self.sections.push(Section { first: end, together: end + usize::from(alone) }),
            }
            self.phases.push(StepPhase { step, phase });
        }
        kernel.phases()
    }

    /// Forgets everything but its memory.
    fn clear(&mut self) {
        self.steps.clear();
        self.shared.clear();
        self.phases.clear();
        self.sections.clear();
    }

    fn run(&self, phases: std::ops::Range<usize>, share: &Share<'_>) {
        for &StepPhase { step, phase } in &self.phases[phases] {
            self.steps.get(step).run(phase, share);
        }
    }

    /// One thread's way through the sections. From 1 on, `from` is the number of the section whose barrier the thread has joined the others at, plus 1.
    fn walk(&self, team: &Team<'_>, from: usize, isa: Isa, faults: &Faults) {
        let mut ahead = Ahead::default();
        for (index, &Section { first, together }) in self.sections.iter().enumerate().skip(from.saturating_sub(1)) {
            let end = self.sections.get(index + 1).map_or(self.phases.len(), |next| next.first);
            let step = self.phases[first].step;
            // Nothing comes before the first section.
            if index + 1 > from && (index > 0 || first < together) {
                let share = Share { part: team.thread, parts: team.threads(), faults };
                let alone = || self.run(first..together, &Share { part: 0, parts: 1, faults });
                team.barrier(index + 1, alone, || ahead.ask(isa, &self.steps, step, &share));
            }
            self.run(together..end, &Share { part: team.thread, parts: team.threads(), faults });
        }
    }
}

/// A list that was planned, and all that it uses until it has ended.
struct Planned {
    schedule: Schedule,
    isa: Isa,
    faults: Faults,
    schedules: Arc<Shelf<Schedule>>,
    _resolver: Resolver,
    _retired: Vec<HostMemory>,
    _list: CommandList,
}

impl Job for Planned {
    fn run(&self, team: &Team<'_>, from: usize) {
        self.schedule.walk(team, from, self.isa, &self.faults);
    }
}

impl Drop for Planned {
    fn drop(&mut self) {
        let mut schedule = std::mem::take(&mut self.schedule);
        schedule.clear();
        self.schedules.put(schedule);
    }
}

/// A list that the pool's threads run.
struct Running {
    planned: Arc<Planned>,
    ticket: Ticket,
    pool: Arc<Pool>,
}

impl Submission for Running {
    fn wait(self: Box<Self>) -> Result<()> {
        self.pool.wait(&self.ticket)?;
        self.planned.faults.result()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // What the threads use must not go before they have ended; there is nobody to tell how.
        let _ = self.pool.wait(&self.ticket);
    }
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
    fn ask(&mut self, isa: Isa, steps: &Kernels, step: usize, share: &Share<'_>) -> bool {
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
            *self = Ahead { streams: steps.get(self.next).streams(share), asked: 0, next: self.next + 1 };
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
    schedule: Schedule,
    /// Barriers so far; steps of one epoch may run at the same time. Starts at 1, so that 0 is before everything.
    epoch: usize,
    slots: [Slot; SLOTS],
    arena: &'a mut Arena,
    retired: Vec<HostMemory>,
}

impl Executor {
    pub(crate) fn new(isa: Isa, options: DeviceOptions) -> Result<Executor> {
        let pool = Arc::new(Pool::new(options.threads)?);
        Ok(Executor { isa, options, pool, arena: Mutex::default(), schedules: Arc::default() })
    }

    /// The kernels' configuration.
    pub(crate) fn config(&self) -> Config {
        config(self.isa, &self.options)
    }

    /// Runs the list to its end.
    pub(crate) fn run(&self, list: CommandList) -> Result<()> {
        // Until it has ended: see `plan`.
        let mut arena = self.arena.lock().unwrap_or_else(PoisonError::into_inner);
        let planned = self.plan(list, &mut arena)?;
        self.pool.run(&planned)?;
        drop(arena);
        planned.faults.result()
    }

    /// Leaves the list to the other threads; who waits for it joins them.
    pub(crate) fn submit(&self, list: CommandList) -> Box<dyn Submission> {
        let mut arena = self.arena.lock().unwrap_or_else(PoisonError::into_inner);
        let planned = match self.plan(list, &mut arena) {
            Ok(planned) => Arc::new(planned),
            Err(error) => return Box::new(Completed(Err(error))),
        };
        // SAFETY: `Running` keeps it until the pool has run it.
        let ticket = unsafe { self.pool.post(&*planned) };
        Box::new(Running { planned, ticket, pool: Arc::clone(&self.pool) })
    }

    /// Makes steps of a list. It must be posted before the arena is given to the next one: lists then run in the order in which they were planned, so that no
    /// two use the arena's memory at once, and what the arena grows out of, which this list keeps, outlives all that were planned before.
    fn plan(&self, list: CommandList, arena: &mut Arena) -> Result<Planned> {
        let mut planner = Planner {
            executor: self,
            resolver: Resolver::default(),
            schedule: self.schedules.take(),
            epoch: 1,
            slots: Default::default(),
            arena,
            retired: Vec::new(),
        };
        if let Err(error) = self.steps(&mut planner, &list) {
            self.pool.settle();
            return Err(error);
        }
        let Planner { schedule, resolver, retired, .. } = planner;
        Ok(Planned {
            schedule,
            isa: self.isa,
            faults: Faults::default(),
            schedules: Arc::clone(&self.schedules),
            _resolver: resolver,
            _retired: retired,
            _list: list,
        })
    }

    fn steps(&self, planner: &mut Planner<'_>, list: &CommandList) -> Result<()> {
        let target = vector::Target { isa: self.isa, options: &self.options, threads: self.pool.threads() };
        for (index, recorded) in list.ops().iter().enumerate() {
            let barrier = recorded.barrier;
            if barrier {
                planner.schedule.shared.barrier();
            }
            match (&recorded.op, &recorded.kernel) {
                (Op::Matmul(op), forced) => products::plan_matmul(planner, op, barrier, forced.as_deref())?,
                (Op::MatmulId(op), forced) => products::plan_matmul_id(planner, op, index, barrier, forced.as_deref())?,
                (_, Some(name)) => return Err(MlxError::KernelNotFound(format!("{name} for {}", recorded.op.name()))),
                (op, None) => {
                    let Planner { resolver, schedule: Schedule { steps, shared, .. }, .. } = planner;
                    vector::kernel(op, index, resolver, shared, target, steps)?;
                    planner.place(barrier);
                }
            }
            planner.forget_written(&recorded.op);
            planner.schedule.shared.forget_written(&recorded.op);
        }
        Ok(())
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
    #[inline(always)] // So that the kernel is made where it stays.
    pub(crate) fn push(&mut self, barrier: bool, kernel: impl Kernel + 'static) -> Result<()> {
        self.schedule.steps.push(kernel)?;
        self.place(barrier);
        Ok(())
    }

    /// Makes the last kernel a step.
    fn place(&mut self, barrier: bool) {
        self.epoch += usize::from(barrier) + self.schedule.place(barrier) - 1;
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
    pub(crate) fn prepared(&mut self, operand: &Operand, input: Input, barrier: bool) -> Result<PreparedRows> {
        let wanted = Prepared { key: operand.plan.x_key(), input, m: operand.m, k: operand.k };
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
        let x = self.resolver.ptr(&wanted.input.view)?;
        self.push(barrier || in_use, Prepare::new(operand, &wanted.input, x, ptr))?;
        self.slots[slot] = Slot { content: Some(wanted), ptr: Some(ptr), touched: self.epoch, written: self.epoch };
        Ok(PreparedRows { ptr, slot, barrier: true })
    }

    /// Appends the step that reads prepared rows.
    #[inline(always)] // As above.
    pub(crate) fn push_reader(&mut self, rows: &PreparedRows, kernel: impl Kernel + 'static) -> Result<()> {
        self.push(rows.barrier, kernel)?;
        self.slots[rows.slot].touched = self.epoch;
        Ok(())
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

#[cfg(test)]
mod tests {
    use crate::{DType, MlxDevice, RopeParams, RopeStyle};

    /// Rotations of one list share their angles until something writes the positions.
    #[test]
    fn angles_follow_their_positions() {
        let rotated = |device: MlxDevice| {
            let (n_tokens, head_dim) = (3, 8);
            let x: Vec<f32> = (0..n_tokens * head_dim).map(|i| 0.1 * i as f32 - 1.0).collect();
            let x = device.buffer_from_slice(&x, DType::F32, vec![n_tokens, head_dim]).unwrap();
            let positions = device.buffer_from_slice(&[1u32, 2, 3], DType::U32, vec![n_tokens]).unwrap();
            let mut written = positions.clone();
            let logits =
                device.buffer_from_slice(&[0.0f32, 1.0, 2.0, 5.0, 4.0, 3.0, 1.0, 7.0, 0.0], DType::F32, vec![3, 3]);
            let bytes = 4 * n_tokens * head_dim;
            let mut turned: Vec<_> =
                (0..3).map(|_| device.alloc_buffer(bytes, DType::F32, vec![n_tokens, head_dim]).unwrap()).collect();
            let mut encoder = device.command_encoder().unwrap();
            for (i, output) in turned.iter_mut().enumerate() {
                let params = RopeParams {
                    n_tokens,
                    n_heads: 1,
                    head_dim,
                    n_rot: head_dim,
                    base: 100.0,
                    frequency_scale: 1.0,
                    style: RopeStyle::NeoX,
                };
                encoder.rope(&x, &positions, None, output, &params).unwrap();
                if i == 1 {
                    encoder.argmax(logits.as_ref().unwrap(), &mut written, 3).unwrap();
                }
            }
            encoder.commit_and_wait().unwrap();
            turned.iter().flat_map(|turned| turned.as_slice::<f32>().unwrap().to_vec()).collect::<Vec<f32>>()
        };
        let (found, expected) = (rotated(MlxDevice::cpu().unwrap()), rotated(MlxDevice::reference().unwrap()));
        assert_eq!(expected[..24], expected[24..48]);
        assert_ne!(expected[..24], expected[48..]);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
        }
    }
}
