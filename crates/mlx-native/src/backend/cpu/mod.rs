//! The host's processor: SIMD kernels chosen at run time, and threads.

#[allow(dead_code)] // until the executor calls them
mod isa;
mod kernel;
#[allow(dead_code)] // until the executor calls it
mod matmul;
mod pool;
#[allow(dead_code)] // until the executor calls it
mod vector;

use super::{Backend, Capability, CapabilityQuery, CommandList, Completed, Submission};
use crate::device::{DeviceKind, DeviceOptions};
use crate::{MlxError, Result};

/// The host's processor.
pub(crate) struct CpuBackend {
    pool: pool::Pool,
}

impl CpuBackend {
    pub(crate) fn new(options: DeviceOptions, _isa: Option<&str>) -> Result<CpuBackend> {
        Ok(CpuBackend { pool: pool::Pool::new(options.threads)? })
    }
}

impl Backend for CpuBackend {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Cpu
    }

    fn name(&self) -> String {
        format!("cpu ({} threads)", self.pool.threads())
    }

    fn submit(&self, list: CommandList) -> Box<dyn Submission> {
        let message = list.ops().first().map(|recorded| format!("{} has no CPU kernel yet", recorded.op.name()));
        Box::new(Completed(message.map_or(Ok(()), |message| Err(MlxError::CommandBufferError(message)))))
    }

    fn capability(&self, _query: &CapabilityQuery) -> Capability {
        Capability::no("no CPU kernels yet")
    }
}

pub(crate) fn instruction_sets() -> Vec<&'static str> {
    vec!["portable"]
}

pub(crate) fn best_isa() -> &'static str {
    "portable"
}

pub(crate) fn capability(_query: &CapabilityQuery, _options: &DeviceOptions, _isa: &str) -> Capability {
    Capability::no("no CPU kernels yet")
}
