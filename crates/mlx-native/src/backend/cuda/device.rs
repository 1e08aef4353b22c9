//! The device: compiles kernels, runs lists, replays those that come again.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::claim::Claim;
use super::driver::{Context, DeviceAllocation, Geometry, Graph, Kernel, Stream};
use super::fingerprint::Fingerprint;
use super::frame::{Frame, live_bytes};
use super::launches::matmul::Route;
use super::launches::{self, Bound, Launch, PipelineKey, Plan, Planner, fuse};
use super::memory::{CudaMapped, CudaMemory};
use super::nvrtc::{self, Program};
use super::params::{Params, address};
use super::source;
use super::upload::Uploader;
use crate::backend::gpu::Fault;
use crate::backend::{
    Backend, Capability, CapabilityQuery, CommandList, Completed, LapTimer, OpKind, QueuedProduct, Recorded,
    Submission, log, log_kernels,
};
use crate::buffer::SharedMemory;
use crate::device::{DeviceKind, DeviceOptions, Pace};
use crate::limits::Limits;
use crate::memory::{MappedMemory, Memory};
use crate::{MlxError, Result};

/// Lists with fewer operations are launched one by one: a graph would gain them nothing.
const GRAPH_FROM: usize = 4;
/// Graphs that are kept. A model's generation needs a few for each power of two of the context's length.
const GRAPHS: usize = 64;
/// Lists of which it is remembered that they ran once.
const SEEN: usize = 64;

/// A large GPU needs many rows to be filled: 33,000 tokens/s instead of 26,600 with 512 (8 billion weights, H100). Lists are queued in a stream.
const PACE: Pace = Pace { batch: 2048, runs_ahead: true, steps_ahead: true };

/// An NVIDIA GPU.
pub(crate) struct CudaBackend {
    pub(super) context: Arc<Context>,
    options: DeviceOptions,
    pub(super) stream: Arc<Stream>,
    /// For copies to the host of what has ended, beside work that goes on.
    pub(super) fetches: Arc<Stream>,
    pub(super) uploader: Arc<Uploader>,
    engine: Mutex<Engine>,
    claim: Claim,
}

/// What runs lists, one at a time.
#[derive(Default)]
struct Engine {
    kernels: HashMap<PipelineKey, Arc<Kernel>>,
    /// Scratch memory of all operations, which run one after the other.
    scratch: Option<Arc<DeviceAllocation>>,
    frames: Vec<Arc<Frame>>,
    graphs: Vec<Captured>,
    /// Lists that have run launch by launch.
    seen: Vec<Fingerprint>,
}

/// A list that can be replayed.
struct Captured {
    fingerprint: Fingerprint,
    graph: Graph,
    frame: Arc<Frame>,
    /// The operations that have live values.
    live_at: Vec<usize>,
    faults: Vec<Fault>,
    /// What the graph's launches use.
    _kernels: Vec<Arc<Kernel>>,
    _scratch: Option<Arc<DeviceAllocation>>,
}

impl Captured {
    /// Whether it can be queued: no run before has values or faults in its frame. One that has neither follows itself.
    fn is_free(&self) -> bool {
        self.frame.is_empty() || Arc::strong_count(&self.frame) == 1
    }
}

/// A list with its operands found and everything planned.
struct Planned {
    /// The operations' plans and where their views lie, reads before writes.
    plans: Vec<Plan>,
    kernels: HashMap<PipelineKey, Arc<Kernel>>,
    scratch: Option<Arc<DeviceAllocation>>,
    /// Bytes of live values, and the operations that have some.
    live: usize,
    live_at: Vec<usize>,
    faults: Vec<Fault>,
}

/// Work on its way; it keeps alive what the work uses.
struct Running {
    frame: Arc<Frame>,
    faults: Vec<Fault>,
    /// What came up while the list was planned.
    result: Result<()>,
    _memories: Vec<Arc<SharedMemory>>,
    _kernels: Vec<Arc<Kernel>>,
    _scratch: Option<Arc<DeviceAllocation>>,
    _list: CommandList,
}

impl Submission for Running {
    fn wait(self: Box<Self>) -> Result<()> {
        self.frame.done.synchronise()?;
        self.result?;
        for (index, fault) in self.faults.iter().enumerate() {
            if let Some(word) = self.frame.fault(index) {
                return Err(fault.error((word >> 32) as u32, word as u32));
            }
        }
        Ok(())
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        // Buffers may keep the stream longer than the claim lives. An error was reported where it came up.
        let _ = self.stream.synchronise();
    }
}

impl CudaBackend {
    pub(crate) fn new(index: usize, options: DeviceOptions) -> Result<CudaBackend> {
        let context = Context::open(index)?;
        nvrtc::version()?;
        let stream = Arc::new(Stream::new(&context)?);
        let fetches = Arc::new(Stream::new(&context)?);
        let uploader = Arc::new(Uploader::new(&context));
        let claim = Claim::new(index);
        Ok(CudaBackend { context, options, stream, fetches, uploader, engine: Mutex::default(), claim })
    }

    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compiles a kernel, or loads it from the disk cache.
    fn build(&self, key: &PipelineKey) -> Result<Kernel> {
        let source = source::assemble(key);
        if log_kernels() {
            log(format_args!("{}: {}", source.name, key.function));
        }
        let arch = self.context.info.arch;
        let program = Program { name: &source.name, text: &source.text, kernel: &key.function, arch };
        let binary = nvrtc::build(&program)?;
        Kernel::load(&self.context, &binary.cubin, &binary.symbol)
    }

    /// A kernel of no plan.
    pub(super) fn kernel(&self, key: &PipelineKey) -> Result<Arc<Kernel>> {
        let mut engine = self.engine();
        if let Some(kernel) = engine.kernels.get(key) {
            return Ok(Arc::clone(kernel));
        }
        let kernel = Arc::new(self.build(key)?);
        engine.kernels.insert(key.clone(), Arc::clone(&kernel));
        Ok(kernel)
    }

    /// Compiles what is missing, on all processors.
    fn compile(&self, engine: &mut Engine, plans: &[Plan]) -> Result<()> {
        let keys: HashSet<&PipelineKey> =
            plans.iter().flat_map(|plan| &plan.launches).map(|launch| &launch.pipeline).collect();
        let missing: Vec<&PipelineKey> = keys.into_iter().filter(|key| !engine.kernels.contains_key(*key)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let next = AtomicUsize::new(0);
        let built = Mutex::new(Vec::new());
        let work = || {
            while let Some(key) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let kernel = self.build(key);
                built.lock().unwrap_or_else(PoisonError::into_inner).push((*key, kernel));
            }
        };
        let helpers = std::thread::available_parallelism().map_or(1, |n| n.get()).min(missing.len()) - 1;
        std::thread::scope(|scope| {
            for _ in 0..helpers {
                // Where the system gives no thread, this one does all of the work.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        for (key, kernel) in built.into_inner().unwrap_or_else(PoisonError::into_inner) {
            engine.kernels.insert(key.clone(), Arc::new(kernel?));
        }
        Ok(())
    }

    fn planner<'a>(&'a self, recorded: &'a Recorded) -> Planner<'a> {
        Planner {
            info: &self.context.info,
            options: &self.options,
            forced: recorded.kernel.as_deref(),
            alone: self.claim.granted,
        }
    }

    /// The plan of the operations from `index` on that run together, and how many they are.
    fn plan_at(&self, list: &CommandList, index: usize) -> Option<(Result<Plan>, usize)> {
        let ops = list.ops().get(index..)?;
        fuse::plan(ops, &self.planner(ops.first()?))
    }

    /// Plans a list. An operation that no kernel runs is left out; the first such error comes beside the plans.
    fn plan(&self, engine: &mut Engine, list: &CommandList) -> Result<(Planned, Result<()>)> {
        let mut result = Ok(());
        let mut plans = Vec::with_capacity(list.ops().len());
        let mut live_at = Vec::new();
        let mut index = 0;
        while let Some((plan, count)) = self.plan_at(list, index) {
            match plan {
                Ok(plan) => {
                    if plan.is_live() {
                        live_at.push(index + plan.live_from);
                    }
                    plans.push(plan);
                }
                Err(error) => result = result.and(Err(error)),
            }
            index += count;
        }
        self.compile(engine, &plans)?;
        let needed = plans.iter().map(scratch_bytes).max().unwrap_or(0);
        if engine.scratch.as_ref().is_none_or(|scratch| scratch.bytes < needed) && needed > 0 {
            // The old one is freed first, unless a graph uses it.
            engine.scratch = None;
            engine.scratch = Some(Arc::new(DeviceAllocation::new(&self.context, needed.next_power_of_two())?));
        }
        let bindings = || plans.iter().flat_map(|plan| &plan.launches).flat_map(|launch| &launch.bindings);
        let live = bindings().map(|bound| if let Bound::Live(value) = bound { live_bytes(value) } else { 0 }).sum();
        let kernels = plans.iter().flat_map(|plan| &plan.launches).filter_map(|launch| {
            engine.kernels.get(&launch.pipeline).map(|kernel| (launch.pipeline.clone(), Arc::clone(kernel)))
        });
        let kernels = kernels.collect();
        let faults = plans.iter().filter_map(|plan| plan.fault.clone()).collect();
        Ok((Planned { plans, kernels, scratch: engine.scratch.clone(), live, live_at, faults }, result))
    }

    /// Queues a planned list.
    fn queue(&self, planned: &Planned, frame: &Frame) -> Result<()> {
        frame.begin(&self.stream)?;
        let (mut live, mut fault) = (0, 0);
        let scratch_base = planned.scratch.as_ref().map_or(0, |scratch| scratch.address);
        for plan in &planned.plans {
            let mut offset = scratch_base;
            let mut scratch = Vec::with_capacity(plan.scratch.len());
            for part in &plan.scratch {
                scratch.push(offset);
                if part.zeroed {
                    // SAFETY: inside the scratch memory, whose size is that of the largest plan; the run keeps it.
                    unsafe { self.stream.fill(offset, 0, part.bytes)? };
                }
                offset += part.bytes.next_multiple_of(SCRATCH_ALIGNMENT) as u64;
            }
            for launch in &plan.launches {
                let Some(kernel) = planned.kernels.get(&launch.pipeline) else {
                    return Err(MlxError::KernelNotFound(launch.pipeline.function.clone()));
                };
                let mut params = Params::default();
                for bound in &launch.bindings {
                    match bound {
                        Bound::Live(value) => {
                            params.address(frame.live_address(live));
                            live += live_bytes(value);
                        }
                        Bound::Fault => params.address(frame.fault_address(fault)),
                        _ => params.bind(bound, &scratch)?,
                    }
                }
                self.launch(launch, kernel, &mut params)?;
            }
            fault += usize::from(plan.fault.is_some());
        }
        frame.end(&self.stream)
    }

    fn launch(&self, launch: &Launch, kernel: &Kernel, params: &mut Params) -> Result<()> {
        let geometry = Geometry {
            grid: launch.grid,
            block: [launch.threads, 1, 1],
            cluster: launch.cluster,
            shared_bytes: launch.shared_bytes,
            overlap: self.context.info.arch >= 90,
        };
        if launch.grid[1] > MAX_GRID || launch.grid[2] > MAX_GRID {
            return Err(MlxError::CommandBufferError(format!(
                "{}: a grid of {:?} blocks exceeds {MAX_GRID} in its second or third dimension",
                launch.pipeline.function, launch.grid
            )));
        }
        // SAFETY: planning binds a value to each parameter of the kernel; views and scratch memory are kept by the run.
        unsafe { self.stream.launch(kernel, &geometry, &mut params.pointers()) }
    }

    /// A frame with this room that no run uses.
    fn frame(&self, engine: &mut Engine, live: usize, faults: usize) -> Result<Arc<Frame>> {
        let free = |frame: &&Arc<Frame>| Arc::strong_count(frame) == 1 && frame.fits(live, faults);
        if let Some(frame) = engine.frames.iter().find(free) {
            return Ok(Arc::clone(frame));
        }
        let frame = Arc::new(Frame::new(&self.context, live.next_power_of_two(), faults)?);
        engine.frames.retain(|frame| Arc::strong_count(frame) > 1);
        engine.frames.push(Arc::clone(&frame));
        Ok(frame)
    }

    fn run(&self, list: CommandList) -> Result<Running> {
        let engine = &mut *self.engine();
        // Everything that the host wrote is sent before the first launch.
        let mut memories = Vec::new();
        let mut fingerprint = Fingerprint::default();
        let mut addresses = Vec::new();
        for recorded in list.ops() {
            addresses.clear();
            let (reads, writes) = (recorded.op.reads(), recorded.op.writes());
            let views = reads.iter().map(|view| (view, false)).chain(writes.iter().map(|view| (view, true)));
            for (view, writes) in views {
                let memory = view.storage.memory();
                addresses.push(address(view, &memory, writes)?);
                memories.push(memory);
            }
            fingerprint.add(&recorded.op, &addresses);
        }
        let may_replay = list.ops().len() >= GRAPH_FROM && list.ops().iter().all(|recorded| recorded.kernel.is_none());
        let captured = engine.graphs.iter().position(|captured| captured.fingerprint == fingerprint);
        if let (Some(index), true) = (captured, may_replay)
            && engine.graphs[index].is_free()
        {
            // The graphs are ordered by their last use.
            let captured = engine.graphs.remove(index);
            let (frame, faults) = (Arc::clone(&captured.frame), captured.faults.clone());
            let result = self.replay(&captured, &list);
            engine.graphs.push(captured);
            result?;
            return Ok(Running {
                frame,
                faults,
                result: Ok(()),
                _memories: memories,
                _kernels: Vec::new(),
                _scratch: None,
                _list: list,
            });
        }
        let (planned, result) = self.plan(engine, &list)?;
        let seen = engine.seen.iter().position(|seen| *seen == fingerprint);
        let frame = match (seen, may_replay && captured.is_none() && result.is_ok()) {
            (Some(index), true) => {
                engine.seen.remove(index);
                self.capture(engine, &planned, fingerprint)?
            }
            (_, may_be_seen) => {
                if may_be_seen {
                    engine.seen.truncate(SEEN - 1);
                    engine.seen.insert(0, fingerprint);
                }
                let frame = self.frame(engine, planned.live, planned.faults.len())?;
                frame.write_live(planned.live_values());
                self.queue(&planned, &frame)?;
                frame
            }
        };
        frame.done.record(&self.stream)?;
        Ok(Running {
            frame,
            faults: planned.faults,
            result,
            _memories: memories,
            _kernels: planned.kernels.into_values().collect(),
            _scratch: planned.scratch,
            _list: list,
        })
    }

    /// Captures a planned list, runs it and keeps it for the next time.
    fn capture(&self, engine: &mut Engine, planned: &Planned, fingerprint: Fingerprint) -> Result<Arc<Frame>> {
        let frame = Arc::new(Frame::new(&self.context, planned.live, planned.faults.len())?);
        frame.write_live(planned.live_values());
        self.stream.begin_capture()?;
        let queued = self.queue(planned, &frame);
        // A capture that was begun has to be ended, come what may.
        let graph = self.stream.end_capture();
        queued?;
        let captured = Captured {
            fingerprint,
            graph: graph?,
            frame: Arc::clone(&frame),
            live_at: planned.live_at.clone(),
            faults: planned.faults.clone(),
            _kernels: planned.kernels.values().cloned().collect(),
            _scratch: planned.scratch.clone(),
        };
        // SAFETY: the frame, the kernels and the scratch memory live as long as `captured`; the run keeps the operands.
        unsafe { self.stream.launch_graph(&captured.graph)? };
        if engine.graphs.len() >= GRAPHS {
            self.stream.synchronise()?;
            engine.graphs.remove(0);
        }
        engine.graphs.push(captured);
        Ok(frame)
    }

    /// Runs a captured list again, with the live values of this one.
    fn replay(&self, captured: &Captured, list: &CommandList) -> Result<()> {
        let mut values = Vec::with_capacity(2 * captured.live_at.len());
        for recorded in captured.live_at.iter().filter_map(|&index| list.ops().get(index)) {
            values.extend(launches::live_values(&recorded.op, &self.planner(recorded))?);
        }
        captured.frame.write_live(values.iter().map(Vec::as_slice));
        // SAFETY: the addresses are those of the list that was captured, whose memories this run keeps; the rest belongs to `captured`,
        // which waits for its end before it is dropped.
        unsafe { self.stream.launch_graph(&captured.graph)? };
        captured.frame.done.record(&self.stream)
    }
}

/// The largest grid but in its first dimension.
const MAX_GRID: u32 = 65_535;
/// What each scratch memory of an operation begins at a multiple of: the bulk copy engine's demand.
const SCRATCH_ALIGNMENT: usize = 256;

fn scratch_bytes(plan: &Plan) -> usize {
    plan.scratch.iter().map(|part| part.bytes.next_multiple_of(SCRATCH_ALIGNMENT)).sum()
}

impl Planned {
    /// The live values in the order of the launches.
    fn live_values(&self) -> impl Iterator<Item = &[u8]> {
        let bindings = self.plans.iter().flat_map(|plan| &plan.launches).flat_map(|launch| &launch.bindings);
        bindings.filter_map(|bound| if let Bound::Live(value) = bound { Some(&value[..]) } else { None })
    }
}

impl Backend for CudaBackend {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Cuda
    }

    fn name(&self) -> String {
        let info = &self.context.info;
        format!("{} (compute capability {}.{})", info.name, info.arch / 10, info.arch % 10)
    }

    fn pace(&self) -> Pace {
        PACE
    }

    fn allocate(&self, bytes: usize) -> Result<Box<dyn Memory>> {
        Ok(Box::new(CudaMemory::zeroed(&self.stream, &self.fetches, &self.uploader, bytes)?))
    }

    fn map(&self, memory: MappedMemory) -> Result<Box<dyn Memory>> {
        Ok(Box::new(CudaMapped::new(&self.stream, &self.uploader, memory)?))
    }

    fn submit(&self, list: CommandList) -> Box<dyn Submission> {
        match self.run(list) {
            Ok(running) => Box::new(running),
            Err(error) => {
                // What was queued before the error has to end before the list's storages are free again.
                let ended = self.stream.synchronise();
                Box::new(Completed(ended.and(Err(error))))
            }
        }
    }

    fn capability(&self, query: &CapabilityQuery) -> Capability {
        let hopper = launches::hopper::kernel_for(query, &self.context.info, &self.options);
        let kernel = hopper.unwrap_or_else(|| match query.op {
            OpKind::Matmul | OpKind::MatmulPerm021 => Route::choose(query.m, false, &self.options).name(false),
            OpKind::MatmulId => Route::choose(query.m, true, &self.options).name(true),
            OpKind::Embedding => "embedding",
        });
        Capability { supported: true, kernel: kernel.into(), scratch_bytes: 0, why_not: None }
    }

    fn probed_memory(&self) -> Result<Option<Box<dyn Memory>>> {
        self.context.times.then(|| self.memory_to_read()).transpose()
    }

    fn limits(&self, memory: &dyn Memory) -> Result<Limits> {
        self.measure_limits(memory)
    }

    fn lap_timer(&self) -> Result<Option<Box<dyn LapTimer>>> {
        Ok(self.context.times.then(|| -> Box<dyn LapTimer> { Box::new(self.timer()) }))
    }

    fn vendor_product(&self, shape: [usize; 3], weights: usize) -> Result<Box<dyn QueuedProduct>> {
        self.cublas_product(shape, weights)
    }
}
