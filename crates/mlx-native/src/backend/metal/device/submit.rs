//! One command buffer for a list, and waiting for it.

use std::ptr::NonNull;
use std::sync::Arc;

use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_foundation::NSString;
use objc2_metal::{
    MTLBarrierScope, MTLCommandBuffer, MTLCommandBufferStatus, MTLCommandEncoder, MTLCommandQueue,
    MTLComputeCommandEncoder, MTLComputePipelineState, MTLDispatchType, MTLSize,
};

use super::MetalBackend;
use super::memory::{Buffer, MetalMemory, Pool};
use super::pipelines::Pipeline;
use crate::backend::metal::launches::{Bound, Fault, Launch};
use crate::backend::metal::schedule::{ALIGNMENT, Schedule, Step};
use crate::backend::{CommandList, Submission};
use crate::buffer::{SharedMemory, View};
use crate::{MlxError, Result};

/// Committed work.
pub(super) struct Running {
    command_buffer: CommandBuffer,
    /// What each operation may report when the work has ended.
    tasks: Vec<Result<Option<Fault>>>,
    /// Fault words, arguments and scratch of the whole list.
    memory: Buffer,
    pool: Pool,
    /// Memories that kernels use, in case a storage moves to another one meanwhile.
    _held: Vec<Arc<SharedMemory>>,
    /// Keeps the host away from the storages.
    _list: CommandList,
}

struct CommandBuffer(Retained<ProtocolObject<dyn MTLCommandBuffer>>);

// SAFETY: a committed command buffer takes no more commands; waiting for it and reading its status and error is allowed on any thread, and only one
// thread has it.
unsafe impl Send for CommandBuffer {}

/// Where things lie in a submission's memory: a word for each operation, then arguments, then scratch.
struct Layout {
    arguments: usize,
    scratch: usize,
    bytes: usize,
}

impl Layout {
    fn new(schedule: &Schedule) -> Option<Layout> {
        let arguments = (schedule.tasks.len() * 4).checked_next_multiple_of(ALIGNMENT)?;
        let mut scratch = arguments;
        for step in schedule.stages.iter().flatten() {
            for bound in &step.launch.bindings {
                if let Bound::Bytes(bytes) = bound {
                    scratch = scratch.checked_add(bytes.len())?.checked_next_multiple_of(ALIGNMENT)?;
                }
            }
        }
        Some(Layout { arguments, scratch, bytes: scratch.checked_add(schedule.scratch_bytes)? })
    }
}

/// Encodes a list and commits it.
pub(super) fn submit(backend: &MetalBackend, list: CommandList) -> Result<Running> {
    let schedule = Schedule::new(&list, &backend.routing);
    debug_assert_eq!(schedule.race(), None);
    let layout = Layout::new(&schedule).ok_or(MlxError::BufferAllocationError { bytes: usize::MAX })?;
    let memory = backend.pool.take(layout.bytes)?;
    // SAFETY: the memory has a word for each operation at its start, and no command uses it.
    unsafe { memory.contents().write_bytes(0xff, schedule.tasks.len() * 4) };
    let (command_buffer, encoder) = begin(backend)?;
    let mut encoding = Encoding { schedule: &schedule, memory: &memory, layout: &layout, encoder, held: Vec::new() };
    let mut failed: Vec<(usize, MlxError)> = Vec::new();
    let mut arguments = layout.arguments;
    for (i, stage) in schedule.stages.iter().enumerate() {
        if i > 0 {
            encoding.encoder.memoryBarrierWithScope(MTLBarrierScope::Buffers);
        }
        for step in stage {
            let pipeline = match list.ops().get(step.task) {
                Some(recorded) => backend.pipelines.get(&step.launch.pipeline, &recorded.op),
                None => continue,
            };
            // Operations whose kernels do not compile fail; the others run, as they do after a bad id.
            if let Err(error) = pipeline.and_then(|pipeline| encoding.dispatch(step, &pipeline, &mut arguments)) {
                failed.push((step.task, error));
            }
        }
    }
    let held = std::mem::take(&mut encoding.held);
    encoding.encoder.endEncoding();
    drop(encoding);
    backend.pool.settle();
    command_buffer.commit();
    let mut tasks: Vec<Result<Option<Fault>>> =
        schedule.tasks.into_iter().map(|task| task.map(|task| task.fault)).collect();
    for (task, error) in failed {
        if let Some(slot @ Ok(_)) = tasks.get_mut(task) {
            *slot = Err(error);
        }
    }
    Ok(Running {
        command_buffer: CommandBuffer(command_buffer),
        tasks,
        memory,
        pool: backend.pool.clone(),
        _held: held,
        _list: list,
    })
}

type Begun = (Retained<ProtocolObject<dyn MTLCommandBuffer>>, Retained<ProtocolObject<dyn MTLComputeCommandEncoder>>);

/// A command buffer, which holds on to its resources, with its encoder.
fn begin(backend: &MetalBackend) -> Result<Begun> {
    let refused = || MlxError::CommandBufferError("metal: the system gives no command buffer".into());
    let command_buffer = backend.queue.commandBuffer().ok_or_else(refused)?;
    command_buffer.setLabel(Some(&NSString::from_str("mlx-native")));
    let encoder =
        command_buffer.computeCommandEncoderWithDispatchType(MTLDispatchType::Concurrent).ok_or_else(refused)?;
    Ok((command_buffer, encoder))
}

/// A list on its way into a command buffer.
struct Encoding<'a> {
    schedule: &'a Schedule,
    memory: &'a Buffer,
    layout: &'a Layout,
    encoder: Retained<ProtocolObject<dyn MTLComputeCommandEncoder>>,
    held: Vec<Arc<SharedMemory>>,
}

impl Encoding<'_> {
    /// Encodes a launch; `arguments` is where its bytes go, and grows past them.
    fn dispatch(&mut self, step: &Step, pipeline: &Pipeline, arguments: &mut usize) -> Result<()> {
        let Launch { pipeline: key, bindings, grid, group, threadgroup_bytes } = &step.launch;
        let threads = group.iter().map(|&n| n as usize).product::<usize>();
        let limit = pipeline.maxTotalThreadsPerThreadgroup();
        if threads > limit || pipeline.threadExecutionWidth() != 32 {
            return Err(MlxError::CommandBufferError(format!(
                "{}: {threads} threads in simdgroups of 32 are needed, this GPU gives {limit} in simdgroups of {}",
                key.function,
                pipeline.threadExecutionWidth()
            )));
        }
        self.encoder.setComputePipelineState(pipeline);
        for (index, bound) in bindings.iter().enumerate() {
            match bound {
                Bound::View(view, _) => self.bind_view(view, index)?,
                Bound::Bytes(bytes) => {
                    // SAFETY: the layout has room for these bytes here, and no command uses the memory yet.
                    unsafe {
                        bytes.as_ptr().copy_to_nonoverlapping(self.memory.contents().add(*arguments), bytes.len());
                    }
                    self.bind(self.memory, *arguments, index);
                    *arguments = (*arguments + bytes.len()).next_multiple_of(ALIGNMENT);
                }
                Bound::Scratch(part, _) => {
                    let part = self.schedule.scratch(step, *part).ok_or_else(|| {
                        MlxError::CommandBufferError(format!("{}: no scratch memory {part}", key.function))
                    })?;
                    self.bind(self.memory, self.layout.scratch + part.start, index);
                }
                Bound::Fault => self.bind(self.memory, step.task * 4, index),
            }
        }
        if *threadgroup_bytes > 0 {
            // SAFETY: launches use index 0 alone, and stay within the 32 KiB that every GPU has.
            unsafe { self.encoder.setThreadgroupMemoryLength_atIndex(*threadgroup_bytes, 0) };
        }
        self.encoder.dispatchThreadgroups_threadsPerThreadgroup(size(*grid), size(*group));
        Ok(())
    }

    fn bind_view(&mut self, view: &View, index: usize) -> Result<()> {
        let shared = view.storage.memory();
        let Some(memory) = shared.as_any().downcast_ref::<MetalMemory>() else {
            return Err(MlxError::CommandBufferError("metal: a buffer of another device".into()));
        };
        let (buffer, offset) = memory.location();
        // Any offset will do that is aligned for the type that the kernel reads through: that of weights is a byte, and views of numbers are
        // checked to be aligned when operations are recorded.
        self.bind(buffer, offset + view.offset, index);
        self.held.push(shared);
        Ok(())
    }

    fn bind(&self, buffer: &Buffer, offset: usize, index: usize) {
        // SAFETY: offsets are those of views and layouts, which lie inside of their buffers; launches bind a handful of the 31 indices.
        unsafe { self.encoder.setBuffer_offset_atIndex(Some(buffer.get()), offset, index) };
    }
}

fn size([width, height, depth]: [u32; 3]) -> MTLSize {
    MTLSize { width: width as usize, height: height as usize, depth: depth as usize }
}

impl Submission for Running {
    fn wait(self: Box<Self>) -> Result<()> {
        let result = autoreleasepool(|_| {
            let command_buffer = &self.command_buffer.0;
            command_buffer.waitUntilCompleted();
            if command_buffer.status() != MTLCommandBufferStatus::Error {
                return Ok(());
            }
            let error = command_buffer.error();
            let text = error.map_or_else(|| "no reason given".into(), |error| error.localizedDescription().to_string());
            Err(MlxError::CommandBufferError(format!("metal: {text}")))
        });
        let Running { tasks, memory, pool, _held: held, _list: list, .. } = *self;
        let reported = tasks.into_iter().enumerate().map(|(task, fault)| match fault? {
            Some(fault) => check(&fault, &memory, task),
            None => Ok(()),
        });
        let result = result.and_then(|()| reported.collect());
        drop(held);
        drop(list);
        pool.put_back(memory);
        result
    }
}

/// The error that an operation's fault word tells, once the work has ended.
fn check(fault: &Fault, memory: &Buffer, task: usize) -> Result<()> {
    // SAFETY: the memory has a word for each operation at its start, and the work has ended.
    let index = unsafe { memory.contents().cast::<u32>().add(task).read() };
    if index == u32::MAX {
        return Ok(());
    }
    let ids = fault.ids.storage.memory();
    let inside = (index as usize).checked_mul(4).filter(|at| fault.ids.len >= at + 4);
    let at =
        inside.ok_or_else(|| MlxError::CommandBufferError(format!("metal: a fault at {index}, beyond the ids")))?;
    let first = NonNull::new(ids.host_ptr()?)
        .ok_or_else(|| MlxError::CommandBufferError("metal: the ids are not visible to the host".into()))?;
    // SAFETY: inside of the view of the ids, which is pending, so that the host does not write it, and the work has ended.
    let id = unsafe { first.as_ptr().add(fault.ids.offset + at).cast::<u32>().read_unaligned() };
    Err(fault.error(index, id))
}
