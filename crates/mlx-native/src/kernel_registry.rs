//! Which kernels an operation may use.

use std::sync::Arc;

/// Passed to every operation of the published interface; chooses among the kernels that could run it.
///
/// Compiled kernels belong to the device, so that every encoder shares them: the first operation that needs a kernel compiles it.
#[derive(Clone, Debug, Default)]
pub struct KernelRegistry {
    forced: Option<Arc<str>>,
}

impl KernelRegistry {
    /// A registry that leaves the choice of kernels to the device.
    pub fn new() -> KernelRegistry {
        KernelRegistry::default()
    }

    /// Makes the operations that are recorded with this registry use the kernel of this name, as [`Capability::kernel`](crate::Capability::kernel)
    /// reports it: for tests and benchmarks. A name that the device lacks, or a kernel that cannot run the operation, comes back from the wait as
    /// [`KernelNotFound`](crate::MlxError::KernelNotFound).
    pub fn force(&mut self, kernel: impl Into<Arc<str>>) {
        self.forced = Some(kernel.into());
    }

    /// Leaves the choice to the device again.
    pub fn clear_force(&mut self) {
        self.forced = None;
    }

    /// The kernel that is forced.
    pub fn forced(&self) -> Option<&Arc<str>> {
        self.forced.as_ref()
    }
}
