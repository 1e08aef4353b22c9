//! Copying large memory to the device: through page-locked staging memory, by threads that read the file while others' copies are on their way.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use super::driver::{Context, DeviceAllocation, Event, PinnedAllocation, Stream};
use crate::io::FileMap;
use crate::{MlxError, Result};

/// Bytes of one staging buffer, of which a lane has two: one is filled while the other is sent.
const STAGING_BYTES: usize = 8 << 20;
/// Threads that copy mapped files: enough to keep a PCIe link busy with what the page cache has.
const THREADS: usize = 4;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream with staging memory.
struct Lane {
    stream: Stream,
    staging: [(PinnedAllocation, Event); 2],
}

impl Lane {
    fn new(context: &Arc<Context>) -> Result<Lane> {
        let buffer = || -> Result<_> { Ok((PinnedAllocation::new(context, STAGING_BYTES)?, Event::new(context)?)) };
        Ok(Lane { stream: Stream::new(context)?, staging: [buffer()?, buffer()?] })
    }

    /// Copies and waits for the end.
    fn copy(&self, address: u64, bytes: &[u8]) -> Result<()> {
        for (i, piece) in bytes.chunks(STAGING_BYTES).enumerate() {
            let (staging, sent) = &self.staging[i % 2];
            sent.synchronise()?;
            // SAFETY: the piece is no longer than the staging memory, whose last copy has ended.
            unsafe { staging.as_ptr().copy_from_nonoverlapping(piece.as_ptr(), piece.len()) };
            // SAFETY: `address` has room for all of `bytes` (the caller's size); the staging memory stays until the synchronisation.
            unsafe { self.stream.upload(address + (i * STAGING_BYTES) as u64, staging.as_ptr(), piece.len())? };
            sent.record(&self.stream)?;
        }
        self.stream.synchronise()
    }
}

/// A copy that is being made.
pub(super) struct Transfer {
    target: DeviceAllocation,
    done: Mutex<Option<std::result::Result<(), String>>>,
    changed: Condvar,
}

impl Transfer {
    /// The address, once the copy has ended.
    pub(super) fn wait(&self) -> Result<u64> {
        let mut done = lock(&self.done);
        loop {
            match &*done {
                Some(Ok(())) => return Ok(self.target.address),
                Some(Err(message)) => return Err(MlxError::CommandBufferError(message.clone())),
                None => done = self.changed.wait(done).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn finish(&self, result: std::result::Result<(), String>) {
        *lock(&self.done) = Some(result);
        self.changed.notify_all();
    }
}

struct Job {
    map: FileMap,
    range: Range<usize>,
    transfer: Arc<Transfer>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// What the uploader and its threads share.
struct Shared {
    context: Arc<Context>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Copies to the device.
pub(super) struct Uploader {
    shared: Arc<Shared>,
    /// For copies that the caller waits for.
    direct: Mutex<Option<Lane>>,
    threads: OnceLock<Vec<JoinHandle<()>>>,
}

impl Uploader {
    pub(super) fn new(context: &Arc<Context>) -> Uploader {
        let shared = Shared { context: Arc::clone(context), queue: Mutex::default(), changed: Condvar::new() };
        Uploader { shared: Arc::new(shared), direct: Mutex::new(None), threads: OnceLock::new() }
    }

    /// Copies host memory to `address`, which has room for it, and waits.
    pub(super) fn copy(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let mut direct = lock(&self.direct);
        if direct.is_none() {
            *direct = Some(Lane::new(&self.shared.context)?);
        }
        match &*direct {
            Some(lane) => lane.copy(address, bytes),
            None => Ok(()),
        }
    }

    /// Begins to copy a part of a file to `target`.
    pub(super) fn begin(&self, map: FileMap, range: Range<usize>, target: DeviceAllocation) -> Arc<Transfer> {
        let transfer = Arc::new(Transfer { target, done: Mutex::new(None), changed: Condvar::new() });
        self.threads.get_or_init(|| {
            (0..THREADS)
                .filter_map(|_| {
                    let shared = Arc::clone(&self.shared);
                    std::thread::Builder::new().name("cuda-upload".into()).spawn(move || shared.work()).ok()
                })
                .collect()
        });
        lock(&self.shared.queue).jobs.push_back(Job { map, range, transfer: Arc::clone(&transfer) });
        self.shared.changed.notify_one();
        if self.threads.get().is_none_or(Vec::is_empty) {
            // The system gives no threads: this one does the work.
            self.shared.drain();
        }
        transfer
    }
}

impl Shared {
    /// Takes jobs until the queue is closed.
    fn work(&self) {
        let mut lane = None;
        loop {
            let job = {
                let mut queue = lock(&self.queue);
                loop {
                    match queue.jobs.pop_front() {
                        Some(job) => break job,
                        None if queue.closed => return,
                        None => queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
                    }
                }
            };
            self.run(&mut lane, &job);
        }
    }

    fn drain(&self) {
        let mut lane = None;
        while let Some(job) = { lock(&self.queue).jobs.pop_front() } {
            self.run(&mut lane, &job);
        }
    }

    fn run(&self, lane: &mut Option<Lane>, job: &Job) {
        let result = match lane.take().map_or_else(|| Lane::new(&self.context), Ok) {
            Ok(made) => {
                let result = made.copy(job.transfer.target.address, &job.map[job.range.clone()]);
                *lane = Some(made);
                result
            }
            Err(error) => Err(error),
        };
        job.transfer.finish(result.map_err(|error| format!("copying weights to the device: {error}")));
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.take().into_iter().flatten() {
            // A thread that panicked has nothing more to say.
            let _ = thread.join();
        }
    }
}
