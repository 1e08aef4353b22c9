//! The host's processor: SIMD kernels chosen at run time, and threads.

mod exec;
mod isa;
mod kernel;
mod kernels;
mod limits;
mod matmul;
mod pool;
mod products;
mod tasks;
mod vector;

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use exec::Executor;
pub(crate) use isa::Isa;

use super::{Backend, Capability, CapabilityQuery, CommandList, OpKind, Submission};
use crate::device::{DeviceKind, DeviceOptions, Pace};
use crate::format::WeightFormat;
use crate::limits::Limits;
use crate::memory::Memory;
use crate::{MlxError, Result};

/// The host's processor.
pub(crate) struct CpuBackend {
    executor: Executor,
}

impl CpuBackend {
    /// All of `options.threads`, with the named instruction set or the best.
    pub(crate) fn new(options: DeviceOptions, isa: Option<&str>) -> Result<CpuBackend> {
        let isa = match isa {
            None => Isa::best(),
            Some(name) => Isa::available().find(|isa| isa.name() == name).ok_or_else(|| {
                let present: Vec<&str> = Isa::available().map(Isa::name).collect();
                MlxError::DeviceNotFound(format!(
                    "cpu: no instruction set `{name}` here; there are {}",
                    present.join(", ")
                ))
            })?,
        };
        Ok(CpuBackend { executor: Executor::new(isa, options)? })
    }
}

impl Backend for CpuBackend {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Cpu
    }

    fn name(&self) -> String {
        format!("cpu ({}, {} threads)", self.executor.isa.name(), self.executor.pool.threads())
    }

    fn submit(&self, list: CommandList) -> Box<dyn Submission> {
        self.executor.submit(list)
    }

    fn run(&self, list: CommandList) -> Result<()> {
        self.executor.run(list)
    }

    fn pace(&self) -> Pace {
        let others = self.executor.pool.threads() > 1;
        Pace { runs_ahead: others, steps_ahead: others, ..Pace::HOST }
    }

    fn capability(&self, query: &CapabilityQuery) -> Capability {
        capability(query, &self.executor.options, self.executor.isa)
    }

    fn probed_memory(&self) -> Result<Option<Box<dyn Memory>>> {
        limits::memory().map(Some)
    }

    fn limits(&self, memory: &dyn Memory) -> Result<Limits> {
        limits::measure(self.executor.isa, &self.executor.pool, memory)
    }
}

/// The kernel that a device with these options uses.
pub(crate) fn capability(query: &CapabilityQuery, options: &DeviceOptions, isa: Isa) -> Capability {
    let CapabilityQuery { op, format, m, n, k } = *query;
    if op == OpKind::Embedding {
        let kernel = format!("{}/embedding", isa.name());
        return Capability { supported: true, kernel, scratch_bytes: 0, why_not: None };
    }
    let plan = matmul::Plan::new(exec::config(isa, options), format, m, n, k);
    Capability {
        supported: true,
        kernel: plan.kernel().into(),
        scratch_bytes: plan.x_bytes() + plan.thread_bytes(),
        why_not: None,
    }
}

/// Prints a routing decision once, where `MLX_NATIVE_LOG=kernels` asks for it.
fn log_kernel(kernel: &'static str, format: WeightFormat, [m, n, k]: [usize; 3]) {
    static SEEN: Mutex<Option<HashSet<(&'static str, WeightFormat)>>> = Mutex::new(None);
    if !super::log_kernels() {
        return;
    }
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.get_or_insert_default().insert((kernel, format)) {
        super::log(format_args!("matmul {format} [{m}, {k}] · [{n}, {k}]ᵀ: {kernel}"));
    }
}
