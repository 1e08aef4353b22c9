//! Time on the device's own clock, and the vendor's products, for benchmarks.

use crate::backend::{LapTimer, QueuedProduct};
use crate::{MlxDevice, Result};

/// Times what a device does between marks in its queue, by its own clock: what the host does meanwhile does not count, as long as it keeps the queue
/// filled. From [`MlxDevice::laps`].
pub struct Laps {
    device: MlxDevice,
    timer: Box<dyn LapTimer>,
}

impl Laps {
    pub(crate) fn new(device: MlxDevice) -> Result<Option<Laps>> {
        Ok(device.backend().lap_timer()?.map(|timer| Laps { device, timer }))
    }

    /// Marks the end of what has been committed so far.
    ///
    /// # Errors
    ///
    /// [`CommandBufferError`](crate::MlxError::CommandBufferError) when the device fails.
    pub fn mark(&mut self) -> Result<()> {
        self.timer.mark()
    }

    /// Waits for the last mark, gives the seconds from each mark to the next and forgets them all.
    ///
    /// # Errors
    ///
    /// As [`mark`](Self::mark).
    pub fn seconds(&mut self) -> Result<Vec<f64>> {
        self.timer.seconds()
    }
}

impl std::fmt::Debug for Laps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Laps").field("device", &self.device).finish_non_exhaustive()
    }
}

/// The product of the vendor's own library, to compare with: `[m, k] · [n, k]ᵀ` of random halves, summed in f32, the result halves. From
/// [`MlxDevice::vendor_product`].
pub struct VendorProduct {
    device: MlxDevice,
    product: Box<dyn QueuedProduct>,
}

impl VendorProduct {
    pub(crate) fn new(device: MlxDevice, [m, n, k]: [usize; 3], weights: usize) -> Result<VendorProduct> {
        let product = device.backend().vendor_product([m, n, k], weights)?;
        Ok(VendorProduct { device, product })
    }

    /// Queues the product after all that has been committed; its weights take turns.
    ///
    /// # Errors
    ///
    /// [`CommandBufferError`](crate::MlxError::CommandBufferError) when the library or the device fails.
    pub fn queue(&mut self) -> Result<()> {
        self.product.queue()
    }
}

impl std::fmt::Debug for VendorProduct {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VendorProduct").field("device", &self.device).finish_non_exhaustive()
    }
}
