//! Threads that run jobs together and meet at barriers.
//!
//! A decode step has hundreds of operations of a few microseconds each. Waking a thread through the operating system takes longer than most of them
//! (11–16 µs against 0.15 µs for a spinning fork and 0.07 µs for a spinning barrier), so workers spin for a while before they sleep, and barriers spin
//! before they yield.
//!
//! Jobs run one after the other. Workers begin with one as soon as it is posted, and whoever posted it joins them later, at a barrier, when it has nothing
//! else to do; so a host gets the next operations ready while workers are busy with the first ones.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{MlxError, Result};

/// How long an idle worker spins before it sleeps: longer than the host takes between two tokens.
const SPIN: Duration = Duration::from_millis(1);
/// Turns at a barrier before a thread offers its processor to others: some 50 µs.
const BARRIER_TURNS: u32 = 4_000;
/// The same for a team that has more threads than processors: the one waited for may need this very processor.
const CROWDED_TURNS: u32 = 16;

/// What a team does.
pub(crate) trait Job: Sync {
    /// One member's part, from a place on that [`Team::barrier`] was given; 0 is the beginning.
    fn run(&self, team: &Team<'_>, from: usize);
}

/// A set of threads, the calling one included.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// Of several callers one at a time joins the workers.
    callers: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

/// A job that was posted.
#[derive(Debug)]
pub(crate) struct Ticket {
    number: usize,
    failed: Arc<AtomicBool>,
}

/// A job in the queue.
#[derive(Clone)]
struct Posted {
    /// Jobs before it.
    number: usize,
    job: JobPtr,
    failed: Arc<AtomicBool>,
}

/// A job that outlives its run, with its lifetime erased.
#[derive(Clone, Copy)]
struct JobPtr(*const (dyn Job + 'static));
// SAFETY: the job is Sync, and who posts one keeps it until it has ended (`Pool::post`).
unsafe impl Send for JobPtr {}

/// Whether a caller is in the team: what it wants, or what the team has made of that.
mod caller {
    /// None, or it has other things to do.
    pub(super) const AWAY: usize = 0;
    /// It takes part as soon as it is let in.
    pub(super) const WAITING: usize = 1;
    /// It is about to be told where to begin.
    pub(super) const ENTERING: usize = 2;
    /// It has been told.
    pub(super) const ADMITTED: usize = 3;
    /// It is a member until the job ends.
    pub(super) const INSIDE: usize = 4;
}

struct Shared {
    workers: usize,
    /// Jobs that have not ended, the current one first.
    queue: Mutex<VecDeque<Posted>>,
    /// Jobs that were ever posted, and those that have ended.
    posted: AtomicUsize,
    ended: AtomicUsize,
    stop: AtomicBool,
    sleepers: Mutex<()>,
    wake: Condvar,
    /// Threads that run the current job: all workers, and a caller once it has joined. Changes at barriers, and when a job ends.
    members: AtomicUsize,
    /// Members that are through with the job.
    finished: AtomicUsize,
    /// One of [`caller`]'s states.
    caller: AtomicUsize,
    /// Where an admitted caller begins.
    entry: Mutex<Option<(Posted, usize)>>,
    /// Members at the barrier.
    arrived: AtomicUsize,
    /// Barriers so far.
    generation: AtomicUsize,
    /// A member has panicked: nobody must wait for it.
    broken: AtomicBool,
    /// Turns before a waiting thread offers its processor to others.
    turns: u32,
}

/// Unwinds a thread whose team has lost a member.
struct Broken;

/// What a thread knows of the job that it takes part in.
pub(crate) struct Team<'a> {
    /// This thread's number, below the pool's threads; members are numbered without gaps.
    pub thread: usize,
    shared: &'a Shared,
    posted: &'a Posted,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks, and their contents are consistent at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Spins, and offers the processor to others after many turns.
struct Patience {
    turns: u32,
    most: u32,
}

impl Patience {
    fn turn(&mut self) {
        self.turns += 1;
        if self.turns < self.most {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

impl Team<'_> {
    /// Threads of the team, the same for all of them until the next barrier.
    pub(crate) fn threads(&self) -> usize {
        self.shared.members.load(Ordering::Relaxed)
    }

    /// Waits until every member has arrived, and one of them has run `alone`; what they wrote before is visible to it, and all of it after.
    /// Those that wait may do something small meanwhile, again and again: `idle` says whether it had anything to do. A caller that joins here
    /// begins with `place`, which is not 0.
    pub(crate) fn barrier(&self, place: usize, alone: impl FnOnce(), mut idle: impl FnMut() -> bool) {
        let shared = self.shared;
        if shared.workers == 0 {
            return alone();
        }
        let generation = shared.generation.load(Ordering::Acquire);
        let members = shared.members.load(Ordering::Relaxed);
        if shared.arrived.fetch_add(1, Ordering::AcqRel) + 1 == members {
            alone();
            let joins = shared.caller.load(Ordering::Relaxed) == caller::WAITING
                && shared.change_caller(caller::WAITING, caller::ENTERING);
            shared.members.store(members + usize::from(joins), Ordering::Relaxed);
            shared.arrived.store(0, Ordering::Relaxed);
            shared.generation.store(generation.wrapping_add(1), Ordering::Release);
            if joins {
                *lock(&shared.entry) = Some((self.posted.clone(), place));
                shared.caller.store(caller::ADMITTED, Ordering::Release);
            }
            return;
        }
        let mut patience = shared.patience();
        while shared.generation.load(Ordering::Acquire) == generation {
            if shared.broken.load(Ordering::Relaxed) {
                std::panic::resume_unwind(Box::new(Broken));
            }
            if !idle() {
                patience.turn();
            }
        }
    }
}

impl Shared {
    fn patience(&self) -> Patience {
        Patience { turns: 0, most: self.turns }
    }

    fn change_caller(&self, from: usize, to: usize) -> bool {
        self.caller.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn wait_for_end(&self, number: usize) {
        let mut patience = self.patience();
        while self.ended.load(Ordering::Acquire) <= number {
            patience.turn();
        }
    }

    /// A member's part in a job. All workers begin together; a caller that waits comes with them.
    fn serve(&self, posted: &Posted, thread: usize, from: usize) {
        let team = Team { thread, shared: self, posted };
        let part = || {
            if thread < self.workers {
                team.barrier(0, || (), || false);
            }
            // SAFETY: the job has not ended, since this member has not finished it; until then its owner keeps it (`Pool::post`).
            unsafe { &*posted.job.0 }.run(&team, from);
        };
        if catch_unwind(AssertUnwindSafe(part)).is_err() {
            posted.failed.store(true, Ordering::Relaxed);
            self.broken.store(true, Ordering::Relaxed);
        }
        // Settled, since none of them can be the last one at a barrier any more, and only until this one has finished: the last one to finish sets the
        // number for the next job.
        let members = self.members.load(Ordering::Relaxed);
        if self.finished.fetch_add(1, Ordering::AcqRel) + 1 == members {
            lock(&self.queue).pop_front();
            self.finished.store(0, Ordering::Relaxed);
            self.arrived.store(0, Ordering::Relaxed);
            self.broken.store(false, Ordering::Relaxed);
            self.members.store(self.workers, Ordering::Relaxed);
            self.change_caller(caller::INSIDE, caller::WAITING);
            self.ended.store(posted.number + 1, Ordering::Release);
        }
    }

    /// A caller's share of all jobs up to the numbered one, from the next barrier on. The caller's state is `WAITING`.
    fn attend(&self, number: usize) {
        let mut patience = self.patience();
        loop {
            if self.caller.load(Ordering::Acquire) == caller::ADMITTED {
                if let Some((posted, place)) = lock(&self.entry).take() {
                    self.caller.store(caller::INSIDE, Ordering::Relaxed);
                    self.serve(&posted, self.workers, place);
                    self.wait_for_end(posted.number);
                    patience = self.patience();
                }
                continue;
            }
            // A job behind the numbered one may have let the caller in meanwhile: then it has to stay.
            if self.ended.load(Ordering::Acquire) > number && self.change_caller(caller::WAITING, caller::AWAY) {
                return;
            }
            patience.turn();
        }
    }
}

impl Ticket {
    /// How the job has ended.
    fn outcome(&self) -> Result<()> {
        match self.failed.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(MlxError::CommandBufferError("a CPU kernel failed: this is a defect of mlx-native".into())),
        }
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller's included; 0 takes one for each processor that the process may use.
    pub(crate) fn new(threads: usize) -> Result<Pool> {
        let available = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = if threads == 0 { available } else { threads.min(1024) };
        let shared = Arc::new(Shared {
            workers: threads - 1,
            queue: Mutex::default(),
            posted: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(()),
            wake: Condvar::new(),
            // Without workers the caller is the team.
            members: AtomicUsize::new((threads - 1).max(1)),
            finished: AtomicUsize::new(0),
            caller: AtomicUsize::new(caller::AWAY),
            entry: Mutex::new(None),
            arrived: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            turns: if threads > available { CROWDED_TURNS } else { BARRIER_TURNS },
        });
        let mut pool = Pool { shared, callers: Mutex::new(()), workers: Vec::new() };
        for thread in 0..threads - 1 {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("mlx-native-{}", thread + 1))
                .spawn(move || work(&shared, thread))
                .map_err(|error| MlxError::DeviceNotFound(format!("cpu: thread {thread} of {threads}: {error}")))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads of the pool.
    pub(crate) fn threads(&self) -> usize {
        self.shared.workers + 1
    }

    /// Puts a job behind those that have not ended. Without workers it runs at once.
    ///
    /// # Safety
    ///
    /// The job lives, and stays where it is, until [`wait`](Self::wait) has returned for its ticket.
    pub(crate) unsafe fn post(&self, job: &dyn Job) -> Ticket {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; the caller keeps the job until it has ended.
        let job = JobPtr(unsafe { std::mem::transmute::<*const (dyn Job + '_), *const (dyn Job + 'static)>(job) });
        let failed = Arc::new(AtomicBool::new(false));
        if shared.workers == 0 {
            let _turn = lock(&self.callers);
            let posted = Posted { number: 0, job, failed: Arc::clone(&failed) };
            shared.serve_alone(&posted);
            return Ticket { number: 0, failed };
        }
        let mut queue = lock(&shared.queue);
        let number = shared.posted.load(Ordering::Relaxed);
        queue.push_back(Posted { number, job, failed: Arc::clone(&failed) });
        shared.posted.store(number + 1, Ordering::Release);
        drop(queue);
        // A worker that is about to sleep holds the lock while it looks at `posted`, so it either sees the new job or gets the notification.
        drop(lock(&shared.sleepers));
        shared.wake.notify_all();
        Ticket { number, failed }
    }

    /// Takes part in the jobs up to this one until it has ended.
    ///
    /// # Errors
    ///
    /// CommandBufferError when the job panicked on a thread.
    pub(crate) fn wait(&self, ticket: &Ticket) -> Result<()> {
        let shared = &*self.shared;
        if shared.workers > 0 && shared.ended.load(Ordering::Acquire) <= ticket.number {
            let _turn = lock(&self.callers);
            shared.caller.store(caller::WAITING, Ordering::Release);
            shared.attend(ticket.number);
        }
        ticket.outcome()
    }

    /// Runs a job to its end, on every thread from its beginning on.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub(crate) fn run(&self, job: &dyn Job) -> Result<()> {
        let shared = &*self.shared;
        if shared.workers == 0 {
            // SAFETY: the job has ended when this returns.
            return unsafe { self.post(job) }.outcome();
        }
        let _turn = lock(&self.callers);
        // Before the workers see the job, so that they take the caller along when they begin.
        shared.caller.store(caller::WAITING, Ordering::Release);
        // SAFETY: `attend` returns after the job has ended.
        let ticket = unsafe { self.post(job) };
        shared.attend(ticket.number);
        ticket.outcome()
    }

    /// Waits until no job is left.
    pub(crate) fn settle(&self) {
        let posted = self.shared.posted.load(Ordering::Acquire);
        if posted > 0 {
            self.shared.wait_for_end(posted - 1);
        }
    }
}

impl Shared {
    /// A job of the caller alone.
    fn serve_alone(&self, posted: &Posted) {
        let team = Team { thread: 0, shared: self, posted };
        // SAFETY: who posts the job keeps it until this has returned.
        if catch_unwind(AssertUnwindSafe(|| unsafe { &*posted.job.0 }.run(&team, 0))).is_err() {
            posted.failed.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        drop(lock(&self.shared.sleepers));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of jobs; joining cannot fail for another reason.
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared, thread: usize) {
    let mut next = 0;
    loop {
        let start = Instant::now();
        let mut turns = 0u32;
        while shared.posted.load(Ordering::Acquire) == next {
            if shared.stop.load(Ordering::Acquire) {
                return;
            }
            turns += 1;
            if !turns.is_multiple_of(64) || start.elapsed() < SPIN {
                std::hint::spin_loop();
                continue;
            }
            let sleepers = lock(&shared.sleepers);
            if shared.posted.load(Ordering::Acquire) == next && !shared.stop.load(Ordering::Acquire) {
                drop(shared.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner));
            }
        }
        // The job before this one has ended, and this one cannot without this thread: it is the first.
        let posted = lock(&shared.queue).front().cloned();
        if let Some(posted) = posted {
            shared.serve(&posted, thread, 0);
            shared.wait_for_end(posted.number);
        }
        next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Function<F>(F);

    impl<F: Fn(&Team<'_>, usize) + Sync> Job for Function<F> {
        fn run(&self, team: &Team<'_>, from: usize) {
            (self.0)(team, from);
        }
    }

    /// Rounds between barriers; in each, every member counts itself once, and one of them counts the round.
    struct Rounds {
        rounds: usize,
        members: Vec<AtomicUsize>,
        alone: AtomicUsize,
        counted: AtomicUsize,
    }

    impl Rounds {
        fn new(rounds: usize) -> Rounds {
            let members = (0..rounds).map(|_| AtomicUsize::new(0)).collect();
            Rounds { rounds, members, alone: AtomicUsize::new(0), counted: AtomicUsize::new(0) }
        }

        fn check(&self) {
            assert_eq!(self.alone.load(Ordering::Relaxed), self.rounds);
        }
    }

    impl Job for Rounds {
        fn run(&self, team: &Team<'_>, from: usize) {
            for round in from.saturating_sub(1)..self.rounds {
                // Who joins at this round's barrier is already past it.
                if round + 1 > from {
                    let alone = || {
                        let before = if round == 0 { 0 } else { self.members[round - 1].load(Ordering::Relaxed) };
                        assert_eq!(self.counted.swap(0, Ordering::Relaxed), before);
                        assert_eq!(self.alone.fetch_add(1, Ordering::Relaxed), round);
                    };
                    team.barrier(round + 1, alone, || false);
                }
                self.members[round].store(team.threads(), Ordering::Relaxed);
                assert!(team.thread < team.threads());
                self.counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[test]
    fn every_thread_runs_and_barriers_order_writes() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            for _ in 0..50 {
                let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
                let job = Function(|team: &Team<'_>, from| {
                    assert_eq!((team.threads(), from), (threads, 0));
                    for round in 1..=4 {
                        counts[team.thread].store(round, Ordering::Relaxed);
                        team.barrier(1, || (), || false);
                        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == round));
                        team.barrier(1, || (), || false);
                    }
                });
                pool.run(&job).unwrap();
            }
        }
    }

    #[test]
    fn a_caller_joins_jobs_that_have_begun() {
        for threads in [1, 2, 4] {
            let pool = Pool::new(threads).unwrap();
            for turn in 0..60usize {
                let jobs: Vec<Rounds> = (0..4).map(|i| Rounds::new(1 + 7 * i)).collect();
                // SAFETY: the jobs live until the last one has ended.
                let tickets: Vec<Ticket> = jobs.iter().map(|job| unsafe { pool.post(job) }).collect();
                for _ in 0..turn * 20 {
                    std::hint::spin_loop();
                }
                if turn % 3 == 0 {
                    pool.run(&Rounds::new(5)).unwrap();
                }
                for ticket in tickets.iter().rev() {
                    pool.wait(ticket).unwrap();
                }
                jobs.iter().for_each(Rounds::check);
            }
        }
    }

    #[test]
    fn callers_take_turns() {
        let pool = Pool::new(3).unwrap();
        std::thread::scope(|scope| {
            for caller in 0..3usize {
                let pool = &pool;
                scope.spawn(move || {
                    for turn in 0..40usize {
                        let (first, second) = (Rounds::new(1 + turn % 3), Rounds::new(6));
                        // SAFETY: waited for below.
                        let ticket = unsafe { pool.post(&first) };
                        if (caller + turn) % 2 == 0 {
                            pool.run(&second).unwrap();
                            second.check();
                        }
                        pool.wait(&ticket).unwrap();
                        first.check();
                    }
                });
            }
        });
        pool.settle();
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_survives() {
        let pool = Pool::new(3).unwrap();
        for thread in 0..3 {
            let job = Function(|team: &Team<'_>, _| {
                if team.thread == thread {
                    std::panic::resume_unwind(Box::new("defect"));
                }
                team.barrier(1, || (), || false);
            });
            assert!(pool.run(&job).is_err());
            pool.run(&Rounds::new(3)).unwrap();
        }
    }
}
