//! Launches run on the CPU by `metal-host`: the planning and the kernel text of the Metal backend, every access checked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use metal_host::{Binding, Buffer, CompileOptions, Dispatch, FunctionConstant, Grid, Library, Options, Pipeline};

use super::launches::route::{Dense, DenseShape, Routed};
use super::launches::{self, Access, Bound, Launch, PipelineKey, Routing};
use super::source;
use crate::backend::{Backend, Capability, CapabilityQuery, CommandList, Completed, OpKind, Submission};
use crate::buffer::View;
use crate::device::{DeviceKind, DeviceOptions};
use crate::memory::Memory;
use crate::ops::Op;
use crate::{MlxError, Result};

/// A device without a GPU.
pub(crate) struct MetalHost {
    routing: Routing,
    buffers: Arc<Registry>,
    pipelines: Mutex<HashMap<PipelineKey, Pipeline>>,
    /// Lists run one after the other, and each in another order of threads than the last.
    seed: Mutex<u64>,
}

/// The device's buffers by address, so that a view's memory leads back to its buffer.
#[derive(Default)]
struct Registry(Mutex<HashMap<usize, Weak<Buffer>>>);

impl Registry {
    fn entries(&self) -> MutexGuard<'_, HashMap<usize, Weak<Buffer>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allocate(registry: &Arc<Registry>, bytes: usize) -> Result<HostBuffer> {
        let buffer =
            Buffer::zeroed("buffer", bytes).map(Arc::new).map_err(|_| MlxError::BufferAllocationError { bytes })?;
        registry.entries().insert(buffer.as_ptr() as usize, Arc::downgrade(&buffer));
        Ok(HostBuffer { buffer, registry: Arc::clone(registry) })
    }
}

/// Memory of the checked address space.
struct HostBuffer {
    buffer: Arc<Buffer>,
    registry: Arc<Registry>,
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        self.registry.entries().remove(&(self.buffer.as_ptr() as usize));
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

    fn duplicate(&self) -> Result<Box<dyn Memory>> {
        let copy = Registry::allocate(&self.registry, self.buffer.len())?;
        copy.buffer.write(0, &self.buffer.to_vec()).map_err(|error| command_error(&error))?;
        Ok(Box::new(copy))
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
        Ok(MetalHost { routing, buffers: Arc::default(), pipelines: Mutex::default(), seed: Mutex::new(1) })
    }

    fn pipeline(&self, key: &PipelineKey) -> Result<Pipeline> {
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = pipelines.get(key) {
            return Ok(pipeline.clone());
        }
        let (name, text) = source::assemble(key.library);
        let constants: Vec<FunctionConstant> =
            key.constants.iter().map(|&(index, value)| FunctionConstant::int(index, value)).collect();
        let pipeline = Library::compile(&text, CompileOptions::named(&name))
            .and_then(|library| library.pipeline(&key.function, &constants))
            .map_err(|error| MlxError::ShaderCompilationError { name, message: error.to_string() })?;
        pipelines.insert(key.clone(), pipeline.clone());
        Ok(pipeline)
    }

    /// The buffer that a view lies in, and the view's first byte there; what lies in a mapped file is copied.
    fn locate(&self, view: &View) -> Result<(Arc<Buffer>, usize)> {
        let memory = view.storage.memory();
        let base = memory.host_ptr()?;
        if let Some(buffer) = self.buffers.entries().get(&(base as usize)).and_then(Weak::upgrade) {
            return Ok((buffer, view.offset));
        }
        // SAFETY: `memory` is alive, the view lies inside of it (checked when the operation was recorded), and nobody writes it while the
        // list is pending.
        let bytes = unsafe { std::slice::from_raw_parts(base.add(view.offset), view.len) };
        let copy = Buffer::from_bytes("mapped", bytes).map_err(|error| command_error(&error))?;
        Ok((Arc::new(copy.read_only()), 0))
    }

    fn run(&self, op: &Op, kernel: Option<&str>, seed: u64) -> Result<()> {
        let plan = launches::plan(op, kernel, &self.routing)?;
        let memory = |error| command_error(&error);
        let word = Buffer::from_slice("fault", &[u32::MAX]).map_err(memory)?;
        let scratch = plan.scratch.iter().map(|&bytes| Buffer::uninitialised("scratch", bytes).map_err(memory));
        let scratch: Vec<Buffer> = scratch.collect::<Result<_>>()?;
        for launch in &plan.launches {
            self.dispatch(launch, &word, &scratch, seed)?;
        }
        match (plan.fault, word.to_vec_of::<u32>()[..] != [u32::MAX]) {
            (Some(fault), true) => {
                let index = word.to_vec_of::<u32>()[0];
                let (ids, offset) = self.locate(&fault.ids)?;
                let id = ids.read(offset + index as usize * 4, 4).map_err(|error| command_error(&error))?;
                Err(fault.error(index, u32::from_le_bytes([id[0], id[1], id[2], id[3]])))
            }
            _ => Ok(()),
        }
    }

    fn dispatch(&self, launch: &Launch, fault: &Buffer, scratch: &[Buffer], seed: u64) -> Result<()> {
        let pipeline = self.pipeline(&launch.pipeline)?;
        let mut held = Vec::new();
        for bound in &launch.bindings {
            held.push(match bound {
                Bound::View(view, access) => Some((self.locate(view)?, view, shared(launch, view, *access))),
                Bound::Bytes(_) | Bound::Scratch(..) | Bound::Fault => None,
            });
        }
        let bindings: Vec<Binding> = launch
            .bindings
            .iter()
            .zip(&held)
            .map(|(bound, held)| match (bound, held) {
                (Bound::Bytes(bytes), _) => Binding::Bytes(bytes),
                (Bound::Fault, _) => Binding::read_write(fault),
                (Bound::Scratch(index, access), _) => match scratch.get(*index) {
                    Some(buffer) => binding(buffer, *access),
                    None => Binding::Empty,
                },
                (_, Some(((buffer, offset), view, access))) => binding(buffer, *access).part(*offset, view.len),
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
        Ok(Box::new(Registry::allocate(&self.buffers, bytes)?))
    }

    fn submit(&self, list: CommandList) -> Box<dyn Submission> {
        let mut seed = self.seed.lock().unwrap_or_else(PoisonError::into_inner);
        // What follows a bad id runs all the same: its row is NaN and goes on as NaN.
        let results: Vec<Result<()>> = list
            .ops()
            .iter()
            .map(|recorded| {
                *seed = seed.wrapping_add(1);
                self.run(&recorded.op, recorded.kernel.as_deref(), *seed)
            })
            .collect();
        Box::new(Completed(results.into_iter().collect()))
    }

    fn capability(&self, query: &CapabilityQuery) -> Capability {
        let shape = DenseShape { m: query.m, transposed: false };
        let kernel = match query.op {
            OpKind::Matmul | OpKind::MatmulPerm021 => Dense::choose(&shape, &self.routing).name().into(),
            OpKind::MatmulId => Routed::choose(query.m, &self.routing).name().into(),
            OpKind::Embedding => "embedding".into(),
        };
        Capability { supported: true, kernel, scratch_bytes: 0, why_not: None }
    }
}
