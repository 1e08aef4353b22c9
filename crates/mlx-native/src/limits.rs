//! What a device's hardware can do at most, for benchmarks that print a share of it beside their figures.

use crate::memory::Memory;
use crate::{MlxDevice, Result};

/// What the hardware can do at most, with the threads and the instruction set of a device. One sample: neighbours on the machine disturb it as they
/// disturb what is compared with it, so take many between the runs of a benchmark, and their median.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes per second that loads alone read from memory beyond the caches.
    pub read_bytes_per_s: f64,
    /// Operations per second, two for each multiply-add, of the instructions that the integer kernels sum products of 8-bit values with; none where
    /// that is not measured.
    pub int8_ops_per_s: Option<f64>,
    /// Operations per second, two for each multiply-add, in f32; none where that is not measured.
    pub f32_ops_per_s: Option<f64>,
}

/// Measures [`Limits`] again and again. Holds memory of the device that is larger than any cache.
pub struct LimitsProbe {
    device: MlxDevice,
    memory: Option<Box<dyn Memory>>,
}

impl LimitsProbe {
    pub(crate) fn new(device: MlxDevice) -> Result<LimitsProbe> {
        let memory = device.backend().probed_memory()?;
        Ok(LimitsProbe { device, memory })
    }

    /// One sample, which takes some 10 ms; none where the device's backend does not measure itself.
    ///
    /// # Errors
    ///
    /// [`CommandBufferError`](crate::MlxError::CommandBufferError) when the device fails.
    pub fn measure(&self) -> Result<Option<Limits>> {
        self.memory.as_deref().map(|memory| self.device.backend().limits(memory)).transpose()
    }
}

impl std::fmt::Debug for LimitsProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LimitsProbe").field("device", &self.device).finish_non_exhaustive()
    }
}
