//! What one run of a list needs beside its operands: values that differ from run to run, and words for faults.

use std::sync::Arc;

use super::driver::{Context, DeviceAllocation, Event, PinnedAllocation, Stream};
use crate::Result;

/// Bytes from one live value to the next: a multiple of every alignment that they have.
const LIVE_STEP: usize = 16;

/// Memory on both sides, and a mark for the run's end.
pub(super) struct Frame {
    live: Option<(PinnedAllocation, DeviceAllocation)>,
    faults: Option<(PinnedAllocation, DeviceAllocation)>,
    pub(super) done: Event,
}

fn pair(context: &Arc<Context>, bytes: usize) -> Result<Option<(PinnedAllocation, DeviceAllocation)>> {
    if bytes == 0 {
        return Ok(None);
    }
    Ok(Some((PinnedAllocation::new(context, bytes)?, DeviceAllocation::new(context, bytes)?)))
}

/// Room for a live value.
pub(super) fn live_bytes(value: &[u8]) -> usize {
    value.len().next_multiple_of(LIVE_STEP)
}

impl Frame {
    /// Room for so many bytes of live values and so many faults.
    pub(super) fn new(context: &Arc<Context>, live: usize, faults: usize) -> Result<Frame> {
        Ok(Frame { live: pair(context, live)?, faults: pair(context, faults * 8)?, done: Event::new(context)? })
    }

    /// Whether it has that room.
    pub(super) fn fits(&self, live: usize, faults: usize) -> bool {
        let room = |pair: &Option<(PinnedAllocation, DeviceAllocation)>| pair.as_ref().map_or(0, |pair| pair.0.bytes);
        room(&self.live) >= live && room(&self.faults) >= faults * 8
    }

    /// Whether runs have nothing in it but its mark, which may move on to a later run's end.
    pub(super) fn is_empty(&self) -> bool {
        self.live.is_none() && self.faults.is_none()
    }

    /// Writes the live values on the host's side, in order. The run before must have ended.
    pub(super) fn write_live<'a>(&self, values: impl Iterator<Item = &'a [u8]>) {
        let Some((host, _)) = &self.live else { return };
        let mut offset = 0;
        for value in values {
            if offset + value.len() > host.bytes {
                return;
            }
            // SAFETY: inside the allocation, which the device does not read: the run before has ended.
            unsafe { host.as_ptr().add(offset).copy_from_nonoverlapping(value.as_ptr(), value.len()) };
            offset += live_bytes(value);
        }
    }

    /// The device's address of the live value at `offset`.
    pub(super) fn live_address(&self, offset: usize) -> u64 {
        self.live.as_ref().map_or(0, |pair| pair.1.address + offset as u64)
    }

    /// The device's address of fault word `index`.
    pub(super) fn fault_address(&self, index: usize) -> u64 {
        self.faults.as_ref().map_or(0, |pair| pair.1.address + 8 * index as u64)
    }

    /// Queues what comes before the launches: sends the live values, resets the faults.
    pub(super) fn begin(&self, stream: &Stream) -> Result<()> {
        if let Some((host, device)) = &self.live {
            // SAFETY: both have this size and live as long as the frame, which the run keeps.
            unsafe { stream.upload(device.address, host.as_ptr(), host.bytes)? };
        }
        if let Some((host, device)) = &self.faults {
            // SAFETY: as above.
            unsafe { stream.fill(device.address, 0xff, host.bytes)? };
        }
        Ok(())
    }

    /// Queues what comes after the launches: fetches the faults.
    pub(super) fn end(&self, stream: &Stream) -> Result<()> {
        if let Some((host, device)) = &self.faults {
            // SAFETY: as in `begin`.
            unsafe { stream.download(host.as_ptr(), device.address, host.bytes)? };
        }
        Ok(())
    }

    /// Fault word `index`, none where it is as it was reset. The run must have ended.
    pub(super) fn fault(&self, index: usize) -> Option<u64> {
        let (host, _) = self.faults.as_ref()?;
        if (index + 1) * 8 > host.bytes {
            return None;
        }
        // SAFETY: inside the allocation, which is aligned to more than 8 bytes and which the device no longer writes.
        let word = unsafe { host.as_ptr().cast::<u64>().add(index).read() };
        (word != u64::MAX).then_some(word)
    }
}
