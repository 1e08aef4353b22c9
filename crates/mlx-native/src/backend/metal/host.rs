//! Launches run on the CPU by `metal-host`: the planning and the kernel text of the Metal backend, every access checked.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use metal_host::{Binding, Buffer, CompileOptions, Dispatch, FunctionConstant, Grid, Library, Options, Pipeline};

use super::launches::{Access, Bound, Fault, Launch, PipelineKey, Routing};
use super::schedule::{Schedule, Step};
use super::{capability, log_pipeline, source};
use crate::backend::{Backend, Capability, CapabilityQuery, CommandList, Completed, Submission};
use crate::buffer::View;
use crate::device::{DeviceKind, DeviceOptions};
use crate::memory::{MappedMemory, Memory};
use crate::ops::Op;
use crate::{MlxError, Result};

/// A device without a GPU.
pub(crate) struct MetalHost {
    routing: Routing,
    pipelines: Mutex<HashMap<PipelineKey, Pipeline>>,
    /// Lists run one after the other, and each in another order of threads than the last.
    seed: Mutex<u64>,
}

/// Memory of the checked address space.
struct HostBuffer {
    buffer: Arc<Buffer>,
    read_only: bool,
}

impl HostBuffer {
    fn zeroed(bytes: usize) -> Result<HostBuffer> {
        let buffer = Buffer::zeroed("buffer", bytes).map_err(|_| MlxError::BufferAllocationError { bytes })?;
        Ok(HostBuffer { buffer: Arc::new(buffer), read_only: false })
    }
}

// SAFETY: the buffer keeps its pages, readable and writable, at their page-aligned address until it is dropped, and `self` owns it.
unsafe impl Memory for HostBuffer {
    fn byte_len(&self) -> usize {
        self.buffer.len()
    }

    fn host_ptr(&self) -> Result<*mut u8> {
        Ok(self.buffer.as_ptr())
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn duplicate(&self) -> Result<Box<dyn Memory>> {
        let copy = HostBuffer::zeroed(self.buffer.len())?;
        copy.buffer.write(0, &self.buffer.to_vec()).map_err(|error| command_error(&error))?;
        Ok(Box::new(copy))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn command_error(error: &metal_host::Error) -> MlxError {
    MlxError::CommandBufferError(error.to_string())
}

impl MetalHost {
    /// Finds a C++ compiler to compile kernels with. With `tensor_ops` the device has tensor operations.
    pub(crate) fn new(options: DeviceOptions, tensor_ops: bool) -> Result<MetalHost> {
        let probe = "kernel void probe(device uint* x [[buffer(0)]]) { x[0] = 1; }";
        Library::compile(probe, CompileOptions::named("probe.metal"))
            .map_err(|error| MlxError::DeviceNotFound(format!("metal-host: {error}")))?;
        let routing = Routing { options, tensor_ops };
        Ok(MetalHost { routing, pipelines: Mutex::default(), seed: Mutex::new(1) })
    }

    fn pipeline(&self, key: &PipelineKey, op: &Op) -> Result<Pipeline> {
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = pipelines.get(key) {
            return Ok(pipeline.clone());
        }
        log_pipeline(key, op);
        let (name, text) = source::assemble(key.library);
        let constants: Vec<FunctionConstant> =
            key.constants.iter().map(|&(index, value)| FunctionConstant::int(index, value)).collect();
        let pipeline = Library::compile(&text, CompileOptions::named(&name))
            .and_then(|library| library.pipeline(&key.function, &constants))
            .map_err(|error| MlxError::ShaderCompilationError { name, message: error.to_string() })?;
        pipelines.insert(key.clone(), pipeline.clone());
        Ok(pipeline)
    }

    /// Runs a schedule, the launches of each stage in an order that the seed chooses, and returns each operation's result.
    fn run(&self, list: &CommandList, seed: u64) -> Vec<Result<()>> {
        let schedule = Schedule::new(list, &self.routing);
        let mut held: Vec<Held> = list.ops().iter().map(|_| Held::default()).collect();
        let mut results: Vec<Result<()>> = list.ops().iter().map(|_| Ok(())).collect();
        if let (Some(race), Some(first)) = (schedule.race(), results.first_mut()) {
            *first = Err(MlxError::CommandBufferError(race));
            return results;
        }
        let mut order = seed;
        for stage in &schedule.stages {
            let mut steps: Vec<&Step> = stage.iter().collect();
            while !steps.is_empty() {
                order = order.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let step = steps.swap_remove((order >> 33) as usize % steps.len());
                let (Some(recorded), Some(held)) = (list.ops().get(step.task), held.get_mut(step.task)) else {
                    continue;
                };
                // What follows an error runs all the same, as on a GPU.
                let result =
                    held.fill(&schedule, step).and_then(|()| self.dispatch(&step.launch, &recorded.op, held, order));
                if let (Err(error), Some(slot @ Ok(()))) = (result, results.get_mut(step.task)) {
                    *slot = Err(error);
                }
            }
        }
        let faults = schedule.tasks.into_iter().zip(&held).map(|(task, held)| match task?.fault {
            Some(fault) => held.check(&fault),
            None => Ok(()),
        });
        results.into_iter().zip(faults).map(|(result, fault)| result.and(fault)).collect()
    }

    fn dispatch(&self, launch: &Launch, op: &Op, memory: &Held, seed: u64) -> Result<()> {
        let pipeline = self.pipeline(&launch.pipeline, op)?;
        let mut views = Vec::new();
        for bound in &launch.bindings {
            views.push(match bound {
                Bound::View(view, access) => Some((locate(view)?, view, shared(launch, view, *access))),
                Bound::Bytes(_) | Bound::Scratch(..) | Bound::Fault => None,
            });
        }
        let bindings: Vec<Binding> = launch
            .bindings
            .iter()
            .zip(&views)
            .map(|(bound, view)| match (bound, view) {
                (Bound::Bytes(bytes), _) => Binding::Bytes(bytes),
                (Bound::Fault, _) => memory.fault.as_ref().map_or(Binding::Empty, Binding::read_write),
                (Bound::Scratch(index, access), _) => {
                    memory.scratch.get(*index).map_or(Binding::Empty, |buffer| binding(buffer, *access))
                }
                (_, Some((buffer, view, access))) => binding(buffer, *access).part(view.offset, view.len),
                _ => Binding::Empty,
            })
            .collect();
        let threadgroup_bytes = [launch.threadgroup_bytes];
        let dispatch = Dispatch {
            bindings: &bindings,
            threadgroup_bytes: if launch.threadgroup_bytes > 0 { &threadgroup_bytes } else { &[] },
            grid: Grid::Threadgroups(launch.grid),
            group: launch.group,
            options: Options::seed(seed),
        };
        let report = pipeline.dispatch(&dispatch).map_err(|error| command_error(&error))?;
        // Stricter than `is_clean`: two threads that write the same value are a finding too.
        if report.findings.is_empty() {
            return Ok(());
        }
        Err(MlxError::CommandBufferError(format!("{}: {report}", launch.pipeline.function)))
    }
}

/// The buffer that a view lies in.
fn locate(view: &View) -> Result<Arc<Buffer>> {
    let memory = view.storage.memory();
    match memory.as_any().downcast_ref::<HostBuffer>() {
        Some(held) => Ok(Arc::clone(&held.buffer)),
        None => Err(MlxError::CommandBufferError("metal-host: a buffer of another device".into())),
    }
}

/// Memory that an operation has for itself while its list runs. Each scratch memory is a buffer of its own, so that one byte beyond is a finding.
#[derive(Default)]
struct Held {
    scratch: Vec<Buffer>,
    fault: Option<Buffer>,
}

impl Held {
    /// Makes the memory before the operation's first launch.
    fn fill(&mut self, schedule: &Schedule, step: &Step) -> Result<()> {
        let Some(Ok(task)) = schedule.tasks.get(step.task) else { return Ok(()) };
        let memory = |error| command_error(&error);
        while let Some(part) = task.scratch.get(self.scratch.len()) {
            self.scratch.push(Buffer::uninitialised("scratch", part.len()).map_err(memory)?);
        }
        if self.fault.is_none() && task.fault.is_some() {
            self.fault = Some(Buffer::from_slice("fault", &[u32::MAX]).map_err(memory)?);
        }
        Ok(())
    }

    /// The error that the fault's word tells.
    fn check(&self, fault: &Fault) -> Result<()> {
        let word = self.fault.as_ref().map_or(Vec::new(), |word| word.to_vec_of::<u32>());
        match word.first() {
            Some(&index) if index != u32::MAX => {
                let at = fault.ids.offset + index as usize * 4;
                let id = locate(&fault.ids)?.read(at, 4).map_err(|error| command_error(&error))?;
                Err(fault.error(index, u32::from_le_bytes([id[0], id[1], id[2], id[3]])))
            }
            _ => Ok(()),
        }
    }
}

fn binding(buffer: &Buffer, access: Access) -> Binding<'_> {
    match access {
        Access::Read => Binding::read(buffer),
        Access::ReadWrite => Binding::read_write(buffer),
        Access::Overwrite => Binding::overwrite(buffer),
    }
}

/// The access of a view that shares bytes with another one of the launch: an operation in place.
fn shared(launch: &Launch, view: &View, access: Access) -> Access {
    let overlapping = launch.bindings.iter().filter(|bound| match bound {
        Bound::View(other, other_access) => {
            other.overlaps(view) && (access != Access::Read || *other_access != Access::Read)
        }
        _ => false,
    });
    // A written view overlaps itself.
    if overlapping.count() > usize::from(access != Access::Read) { Access::ReadWrite } else { access }
}

impl Backend for MetalHost {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Metal
    }

    fn name(&self) -> String {
        let tensor_ops = if self.routing.tensor_ops { ", with tensor operations" } else { "" };
        format!("metal-host (checked, on the CPU{tensor_ops})")
    }

    fn allocate(&self, bytes: usize) -> Result<Box<dyn Memory>> {
        Ok(Box::new(HostBuffer::zeroed(bytes)?))
    }

    /// The checked address space has its own copy of the file's bytes.
    fn map(&self, memory: MappedMemory) -> Result<Box<dyn Memory>> {
        let bytes = memory.range.len();
        let content = memory.map.get(memory.range).ok_or(MlxError::BufferAllocationError { bytes })?;
        let buffer = Buffer::from_bytes("mapped", content).map_err(|_| MlxError::BufferAllocationError { bytes })?;
        Ok(Box::new(HostBuffer { buffer: Arc::new(buffer.read_only()), read_only: true }))
    }

    fn submit(&self, list: CommandList) -> Box<dyn Submission> {
        let mut seed = self.seed.lock().unwrap_or_else(PoisonError::into_inner);
        *seed = seed.wrapping_add(1);
        Box::new(Completed(self.run(&list, *seed).into_iter().collect()))
    }

    fn capability(&self, query: &CapabilityQuery) -> Capability {
        capability(query, &self.routing)
    }
}
