//! Kernels of every operation but the matrix products: norms, activations, rotations, attention, sampling.
//!
//! A [`Task`] is written once, generic over an instruction set's vectors; [`OnIsa`] compiles it for each set and picks one at run time.
//!
//! # Safety
//!
//! A task holds [`Mem`] pointers, which say nothing about lifetimes or aliasing. What makes their use sound, everywhere in this module:
//!
//! * `ops/` has checked that every view is large enough for its operation's dimensions, and tasks touch only elements inside these.
//! * The executor's [`Resolver`] keeps the memory alive and the host away from it while a list runs, and the executor
//!   separates operations of which one writes what the other touches.
//! * Shares of a phase write disjoint elements, and none reads what another writes, except through atomics.
//! * An output is an input's very bytes or disjoint from it, so every task reads an element before it writes the one at the same index.
//! * Nothing is assumed about alignment: a view may start at any byte.

mod attention;
mod elementwise;
mod embedding;
mod experts;
mod math;
mod norm;
mod rope;
mod sampling;
mod scratch;
mod simd;
mod store_kv;

use super::isa::Isa;
use super::kernel::{Kernel, Resolver, Share};
use super::kernels::Kernels;
use crate::buffer::View;
use crate::device::DeviceOptions;
use crate::ops::Op;
use crate::{MlxError, Result};
use rope::SharedAngles;
use scratch::SharedScratch;
use simd::Simd;

/// Elements below which a second thread costs more than it saves: a few microseconds of work.
pub(super) const GRAIN: usize = 4096;

/// An operand's memory. See the module's text for what makes its use sound.
#[derive(Debug)]
struct Mem<T>(*mut T);

impl<T> Clone for Mem<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Mem<T> {}
// SAFETY: a pointer to memory that the module's rules share between threads.
unsafe impl<T> Send for Mem<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mem<T> {}

impl<T: Copy> Mem<T> {
    fn new(resolver: &mut Resolver, view: &View) -> Result<Mem<T>> {
        Ok(Mem(resolver.ptr(view)?.cast()))
    }

    fn optional(resolver: &mut Resolver, view: &Option<View>) -> Result<Option<Mem<T>>> {
        view.as_ref().map(|view| Mem::new(resolver, view)).transpose()
    }

    /// # Safety
    /// Element `i` or its end is inside the operand.
    #[inline(always)]
    unsafe fn at(self, i: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(i) }
    }

    /// # Safety
    /// Element `i` is inside the operand, and nobody writes it meanwhile.
    #[inline(always)]
    unsafe fn get(self, i: usize) -> T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(i).read_unaligned() }
    }

    /// # Safety
    /// Element `i` is inside the operand, and this share's alone.
    #[inline(always)]
    unsafe fn set(self, i: usize, value: T) {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(i).write_unaligned(value) }
    }
}

/// An operation's work, generic over the instruction set.
trait Task: Send + Sync {
    /// As [`Kernel::phases`].
    fn phases(&self) -> usize {
        1
    }

    /// As [`Kernel::shares`]; usually the pieces that [`Share::range`] deals out.
    fn shares(&self, _phase: usize) -> usize {
        usize::MAX
    }

    /// As [`Kernel::run`]. Implementations are `#[inline(always)]`, so that they are compiled for the set of `s`.
    ///
    /// # Safety
    /// The module's rules on operands hold.
    unsafe fn run<S: Simd>(&self, s: S, phase: usize, share: &Share<'_>);
}

/// A task on the instruction set that it was planned for.
struct OnIsa<T> {
    task: T,
    isa: Isa,
}

impl<T: Task> Kernel for OnIsa<T> {
    fn phases(&self) -> usize {
        self.task.phases()
    }

    fn shares(&self, phase: usize) -> usize {
        self.task.shares(phase)
    }

    fn run(&self, phase: usize, share: &Share<'_>) {
        match self.isa {
            // SAFETY: the portable set needs nothing; the executor upholds the module's rules.
            Isa::Portable => unsafe { self.task.run(simd::Portable, phase, share) },
            // SAFETY: `kernel` has checked that the set is available; the executor upholds the module's rules.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { run_avx2(&self.task, phase, share) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { run_avx512(&self.task, phase, share) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => unsafe { run_neon(&self.task, phase, share) },
        }
    }
}

/// # Safety
/// `Isa::Avx2` is available, and the module's rules hold.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<T: Task>(task: &T, phase: usize, share: &Share<'_>) {
    // SAFETY: the caller's promise.
    unsafe { task.run(simd::Avx2::new(), phase, share) }
}

/// # Safety
/// `Isa::Avx512` is available, and the module's rules hold.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn run_avx512<T: Task>(task: &T, phase: usize, share: &Share<'_>) {
    // SAFETY: the caller's promise.
    unsafe { task.run(simd::Avx512::new(), phase, share) }
}

/// # Safety
/// `Isa::Neon` is available, and the module's rules hold.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn run_neon<T: Task>(task: &T, phase: usize, share: &Share<'_>) {
    // SAFETY: the caller's promise.
    unsafe { task.run(simd::Neon::new(), phase, share) }
}

/// What a list's operations have in common.
#[derive(Default)]
pub(crate) struct Shared {
    angles: SharedAngles,
    scratch: SharedScratch,
}

impl Shared {
    /// All operations so far end before what comes.
    pub(crate) fn barrier(&mut self) {
        self.scratch.barrier();
    }

    /// The list has ended, and its kernels are gone: what is left is memory for the next one.
    pub(crate) fn clear(&mut self) {
        self.angles = SharedAngles::default();
        self.scratch.clear();
    }

    /// What was made from operands that the operation writes is stale.
    pub(crate) fn forget_written(&mut self, op: &Op) {
        self.angles.forget_written(op);
    }
}

/// What kernels are planned for.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub isa: Isa,
    pub options: &'a DeviceOptions,
    /// Threads that share a phase.
    pub threads: usize,
}

/// Appends the kernel of an operation that is no matrix product. `index` is the operation's position in its list, for faults; `shared` is what those before it
/// have left.
///
/// # Errors
///
/// DeviceNotFound when the machine lacks `isa`; CommandBufferError for a matrix product; what resolving an operand gives.
pub(crate) fn kernel(
    op: &Op,
    index: usize,
    resolver: &mut Resolver,
    shared: &mut Shared,
    target: Target<'_>,
    kernels: &mut Kernels,
) -> Result<()> {
    let isa = target.isa;
    if !isa.is_available() {
        return Err(MlxError::DeviceNotFound(format!("cpu: this machine has no {}", isa.name())));
    }
    let mut append = Append { isa, kernels };
    match op {
        Op::Matmul(_) | Op::MatmulId(_) => {
            Err(MlxError::CommandBufferError(format!("{} is not a vector kernel", op.name())))
        }
        Op::Cast(op) => append.task(elementwise::CastTask::new(op, resolver)?),
        Op::Binary(op) => append.task(elementwise::BinaryTask::new(op, resolver)?),
        Op::GatedActivation(op) => append.task(elementwise::GatedTask::new(op, resolver)?),
        Op::SoftCap(op) => append.task(elementwise::SoftCapTask::new(op, resolver)?),
        Op::RmsNorm(op) => append.task(norm::RmsNormTask::new(op, resolver)?),
        Op::Rope(op) => append.task(rope::RopeTask::new(op, resolver, &mut shared.angles)?),
        Op::Embedding(op) => append.task(embedding::EmbeddingTask::new(op, index, resolver)?),
        Op::Softmax(op) => append.task(norm::SoftmaxTask::new(op, resolver)?),
        Op::StoreKv(op) => append.task(store_kv::StoreKvTask::new(op, resolver)?),
        Op::Attention(op) => append.task(attention::AttentionTask::new(op, resolver, &mut shared.scratch, target)?),
        Op::ExpertGate(op) => append.task(experts::ExpertGateTask::new(op, resolver)?),
        Op::ExpertSum(op) => append.task(experts::ExpertSumTask::new(op, resolver)?),
        Op::ArgMax(op) => append.task(sampling::ArgMaxTask::new(op, resolver)?),
        Op::Sample(op) => append.task(sampling::SampleTask::new(op, index, resolver)?),
    }
}

/// Where kernels are put.
struct Append<'a> {
    isa: Isa,
    kernels: &'a mut Kernels,
}

impl Append<'_> {
    fn task<T: Task + 'static>(&mut self, task: T) -> Result<()> {
        self.kernels.push(OnIsa { task, isa: self.isa })
    }
}

#[cfg(test)]
mod tests;
