//! The device `metal`: an Apple GPU through objc2-metal. All that is here was type-checked for macOS; what it plans and what its kernels do is tested
//! by `metal-host`.
//!
//! A list of operations is one command buffer with one concurrent compute encoder: the launches of a stage overlap, a memory barrier lies between two
//! stages. Buffers are shared storage, tracked by Metal, so that command buffers wait for each other where they touch the same buffer.

mod memory;
mod pipelines;
mod probe;
mod submit;

use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_metal::{MTLCommandQueue, MTLCreateSystemDefaultDevice, MTLDevice, MTLGPUFamily};

use self::memory::{MetalMemory, Pool};
use self::pipelines::Pipelines;
use super::launches::Routing;
use crate::backend::{Backend, Capability, CapabilityQuery, CommandList, Completed, Submission};
use crate::device::{DeviceKind, DeviceOptions};
use crate::memory::{MappedMemory, Memory};
use crate::{MlxError, Result};

// MTLCreateSystemDefaultDevice finds no device in a program that does not link CoreGraphics.
#[link(name = "CoreGraphics", kind = "framework")]
unsafe extern "C" {}

type Device = Retained<ProtocolObject<dyn MTLDevice>>;

/// The system's default GPU.
pub(crate) struct MetalBackend {
    device: Device,
    queue: Retained<ProtocolObject<dyn MTLCommandQueue>>,
    routing: Routing,
    pipelines: Pipelines,
    pool: Pool,
}

impl MetalBackend {
    /// Opens the default GPU.
    ///
    /// # Errors
    ///
    /// [`MlxError::DeviceNotFound`] when there is none, or it is older than the M1: kernels need 8×8 matrices and shared memory.
    pub(crate) fn new(options: DeviceOptions) -> Result<MetalBackend> {
        autoreleasepool(|_| {
            let missing = |why: String| MlxError::DeviceNotFound(format!("metal: {why}"));
            let device = MTLCreateSystemDefaultDevice().ok_or_else(|| missing("this machine has no GPU".into()))?;
            if !device.supportsFamily(MTLGPUFamily::Apple7) || !device.hasUnifiedMemory() {
                return Err(missing(format!(
                    "{} is not an Apple GPU of the M1's family or a later one",
                    device.name()
                )));
            }
            if !objc2::available!(macos = 14.0) {
                return Err(missing("bfloat in kernels needs macOS 14".into()));
            }
            let queue = device.newCommandQueue().ok_or_else(|| missing("the system gives no command queue".into()))?;
            let pool = Pool::new(&device, &queue);
            let mut backend = MetalBackend {
                pipelines: Pipelines::new(device.clone()),
                device,
                queue,
                routing: Routing { options, tensor_ops: false },
                pool,
            };
            backend.routing.tensor_ops = probe::tensor_operations(&backend);
            Ok(backend)
        })
    }
}

impl Backend for MetalBackend {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Metal
    }

    fn name(&self) -> String {
        let tensor = if self.routing.tensor_ops { ", tensor operations" } else { "" };
        autoreleasepool(|_| format!("{} (Metal{tensor})", self.device.name()))
    }

    fn allocate(&self, bytes: usize) -> Result<Box<dyn Memory>> {
        Ok(Box::new(MetalMemory::zeroed(&self.pool, bytes)?))
    }

    fn map(&self, memory: MappedMemory) -> Result<Box<dyn Memory>> {
        Ok(Box::new(MetalMemory::mapped(&self.pool, memory)?))
    }

    fn submit(&self, list: CommandList) -> Box<dyn Submission> {
        match autoreleasepool(|_| submit::submit(self, list)) {
            Ok(submission) => Box::new(submission),
            Err(error) => Box::new(Completed(Err(error))),
        }
    }

    fn capability(&self, query: &CapabilityQuery) -> Capability {
        super::capability(query, &self.routing)
    }
}
