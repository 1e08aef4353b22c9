//! What benchmarks compare with: loads alone, time by the device's clock, cuBLAS.

use std::sync::Arc;

use super::cublas::Cublas;
use super::device::CudaBackend;
use super::driver::{DeviceAllocation, Event, Geometry, Kernel, Stream, free_bytes};
use super::launches::{Library, PipelineKey};
use super::memory::CudaMemory;
use super::params::Params;
use crate::backend::{LapTimer, QueuedProduct};
use crate::limits::Limits;
use crate::memory::Memory;
use crate::{MlxError, Result};

/// What is read in a sample, unless half of what is free is less: so much that its beginning and end, some microseconds, do not count.
const PROBED_BYTES: usize = 4 << 30;
const READ_THREADS: usize = 512;
/// What a block reads at a time, and how often.
const READ_BYTES: usize = READ_THREADS * 8 * 16;
const READ_ROUNDS: usize = 4;
const FILL_THREADS: usize = 256;

fn key(function: &str) -> PipelineKey {
    PipelineKey::new(Library::Limits, function)
}

fn too_large(what: usize) -> MlxError {
    MlxError::InvalidArgument(format!("{what} is more than a benchmark's kernel takes"))
}

impl CudaBackend {
    fn launch_alone(&self, function: &str, grid: usize, threads: usize, params: &mut Params) -> Result<()> {
        let kernel: Arc<Kernel> = self.kernel(&key(function))?;
        let (grid, threads) = (u32::try_from(grid).map_err(|_| too_large(grid))?, threads as u32);
        let geometry =
            Geometry { grid: [grid, 1, 1], block: [threads, 1, 1], cluster: 1, shared_bytes: 0, overlap: false };
        // SAFETY: the callers bind a value to each parameter and keep the memory until the stream has been waited for, or free it, which waits. The device keeps the kernel.
        unsafe { self.stream.launch(&kernel, &geometry, &mut params.pointers()) }
    }

    pub(super) fn memory_to_read(&self) -> Result<Box<dyn Memory>> {
        let piece = READ_BYTES * READ_ROUNDS;
        let bytes = PROBED_BYTES.min(free_bytes(&self.context)? / 2) / piece * piece;
        Ok(Box::new(CudaMemory::zeroed(&self.stream, &self.fetches, &self.uploader, bytes.max(piece))?))
    }

    /// Reads all of `memory` once and again, and takes the time of the second pass: the first keeps the device busy until that is queued.
    pub(super) fn measure_limits(&self, memory: &dyn Memory) -> Result<Limits> {
        let Some(memory) = memory.as_any().downcast_ref::<CudaMemory>() else {
            return Err(MlxError::CommandBufferError("cuda: not memory to measure reading with".into()));
        };
        let never = DeviceAllocation::new(&self.context, size_of::<u32>())?;
        let read = || {
            let mut params = Params::default();
            params.address(memory.device_address(false)?);
            params.address(never.address);
            params.value(&(READ_ROUNDS as u32));
            self.launch_alone("read_all<>", memory.byte_len() / READ_BYTES / READ_ROUNDS, READ_THREADS, &mut params)
        };
        let mut timer = CudaTimer::new(&self.stream);
        read()?;
        timer.mark()?;
        read()?;
        timer.mark()?;
        let seconds: f64 = timer.seconds()?.iter().sum();
        let read_bytes_per_s = memory.byte_len() as f64 / seconds;
        Ok(Limits { read_bytes_per_s, int8_ops_per_s: None, f32_ops_per_s: None })
    }

    pub(super) fn timer(&self) -> CudaTimer {
        CudaTimer::new(&self.stream)
    }

    /// Memory with random halves.
    fn halves(&self, count: usize, seed: u32) -> Result<DeviceAllocation> {
        let pairs = count.div_ceil(2);
        let memory = DeviceAllocation::new(&self.context, pairs * size_of::<u32>())?;
        let mut params = Params::default();
        params.address(memory.address);
        params.value(&(pairs as u64));
        params.value(&seed);
        self.launch_alone("random_halves<>", pairs.div_ceil(FILL_THREADS), FILL_THREADS, &mut params)?;
        Ok(memory)
    }

    /// cuBLAS's product of random halves.
    pub(super) fn cublas_product(&self, [m, n, k]: [usize; 3], weights: usize) -> Result<Box<dyn QueuedProduct>> {
        let cublas = Cublas::open(&self.stream)?;
        let weights = (0..weights.max(1)).map(|i| self.halves(n * k, 2 + i as u32)).collect::<Result<Vec<_>>>()?;
        let (input, output) = (self.halves(m * k, 1)?, self.halves(m * n, 0)?);
        self.stream.synchronise()?;
        Ok(Box::new(CublasProduct { cublas, shape: [m, n, k], weights, input, output, turn: 0 }))
    }
}

struct CublasProduct {
    // Dropped first, as it waits for what it queued.
    cublas: Cublas,
    shape: [usize; 3],
    weights: Vec<DeviceAllocation>,
    input: DeviceAllocation,
    output: DeviceAllocation,
    turn: usize,
}

impl QueuedProduct for CublasProduct {
    fn queue(&mut self) -> Result<()> {
        let weight = &self.weights[self.turn % self.weights.len()];
        self.turn += 1;
        // SAFETY: the allocations have these shapes and are freed after the library's end.
        unsafe { self.cublas.product(self.shape, weight.address, self.input.address, self.output.address) }
    }
}

/// Events in the stream.
pub(super) struct CudaTimer {
    stream: Arc<Stream>,
    events: Vec<Event>,
}

impl CudaTimer {
    fn new(stream: &Arc<Stream>) -> CudaTimer {
        CudaTimer { stream: Arc::clone(stream), events: Vec::new() }
    }
}

impl LapTimer for CudaTimer {
    fn mark(&mut self) -> Result<()> {
        let event = Event::timed(self.stream.context())?;
        event.record(&self.stream)?;
        self.events.push(event);
        Ok(())
    }

    fn seconds(&mut self) -> Result<Vec<f64>> {
        let events = std::mem::take(&mut self.events);
        if let Some(last) = events.last() {
            last.synchronise()?;
        }
        events.iter().zip(events.iter().skip(1)).map(|(from, to)| to.seconds_since(from)).collect()
    }
}
