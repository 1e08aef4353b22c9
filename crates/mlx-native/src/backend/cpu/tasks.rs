//! Work handed out to threads: each begins with a contiguous part of its own and then helps with the others'.

use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arrayvec::ArrayVec;

/// A number in a cache line of its own.
#[repr(align(64))]
struct Alone<T>(T);

/// So many threads are few.
const FEW: usize = 8;

/// A number for each thread, without an allocation where there are few: a step has hundreds of these.
enum Each<T> {
    Few(ArrayVec<Alone<T>, FEW>),
    Many(Box<[Alone<T>]>),
}

impl<T> Each<T> {
    fn new(numbers: impl ExactSizeIterator<Item = T>) -> Each<T> {
        let alone = numbers.map(Alone);
        if alone.len() <= FEW { Each::Few(alone.collect()) } else { Each::Many(alone.collect()) }
    }
}

impl<T> Deref for Each<T> {
    type Target = [Alone<T>];

    fn deref(&self) -> &[Alone<T>] {
        match self {
            Each::Few(numbers) => numbers,
            Each::Many(numbers) => numbers,
        }
    }
}

/// Where the part of a thread begins, and that of the thread before it ends.
fn first_of(count: usize, thread: usize, threads: usize) -> usize {
    count * thread / threads
}

/// Tasks that take a while each.
pub(super) struct Tasks {
    count: usize,
    /// The next task of each thread's part.
    next: Each<AtomicUsize>,
}

impl Tasks {
    pub(super) fn new(count: usize, threads: usize) -> Tasks {
        let first = |thread| AtomicUsize::new(first_of(count, thread, threads));
        Tasks { count, next: Each::new((0..threads).map(first)) }
    }

    /// Runs tasks until all have been taken.
    pub(super) fn each(&self, thread: usize, mut run: impl FnMut(usize)) {
        let threads = self.next.len();
        for turn in 0..threads {
            let part = (thread + turn) % threads;
            let end = first_of(self.count, part + 1, threads);
            let next = &self.next[part].0;
            // Looking first leaves the line with the thread that counts.
            while next.load(Ordering::Relaxed) < end {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task < end {
                    run(task);
                }
            }
        }
    }
}

/// How many pieces a thread takes at most from the end of another's part.
const MOST_PIECES: usize = 8;

/// Items that follow one another in memory, read by every thread from the front of its own part: whoever is through with that takes from the end of
/// another's what would otherwise be waited for, and no stream is interrupted. A thread that does not come at all is done without.
pub(super) struct Streamed {
    /// Of each thread: the first item that nobody has taken, and where what is left of its part ends, in the upper half.
    left: Each<AtomicU64>,
    /// Items of the smallest piece.
    piece: usize,
}

impl Streamed {
    /// `counts` items of each thread, taken at least `piece` at a time.
    #[inline(always)] // So that it is made where it stays.
    pub(super) fn new(counts: impl ExactSizeIterator<Item = usize>, piece: usize) -> Streamed {
        let left = counts.map(|count| AtomicU64::new(pair(0, count)));
        Streamed { left: Each::new(left), piece: piece.max(1) }
    }

    /// Runs items of a thread's part until all have been taken.
    pub(super) fn each(&self, thread: usize, mut run: impl FnMut(usize, Range<usize>)) {
        // Half of what is left: the more there is, the less likely is it that another thread comes for it.
        let front = |left: Range<usize>| left.start..left.end.min(left.start + self.piece.max(left.len() / 2));
        while let Some(items) = self.take(thread, front) {
            run(thread, items);
        }
        let parts = self.left.len();
        for part in (thread + 1..thread + parts).map(|part| part % parts) {
            let end = |left: Range<usize>| {
                let count = (left.len() / 2).min(MOST_PIECES * self.piece).max(self.piece);
                left.start.max(left.end.saturating_sub(count))..left.end
            };
            while let Some(items) = self.take(part, end) {
                run(part, items);
            }
        }
    }

    /// Takes the items that `choose` chooses, a beginning or an end of what is left.
    fn take(&self, part: usize, choose: impl Fn(Range<usize>) -> Range<usize>) -> Option<Range<usize>> {
        let left = &self.left[part].0;
        let mut seen = left.load(Ordering::Relaxed);
        loop {
            let all = (seen & u64::from(u32::MAX)) as usize..(seen >> 32) as usize;
            let chosen = choose(all.clone());
            if chosen.is_empty() {
                return None;
            }
            let rest =
                if chosen.start == all.start { pair(chosen.end, all.end) } else { pair(all.start, chosen.start) };
            match left.compare_exchange_weak(seen, rest, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(chosen),
                Err(now) => seen = now,
            }
        }
    }
}

fn pair(front: usize, end: usize) -> u64 {
    front as u64 | (end as u64) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn every_task_is_run_once() {
        for (count, threads) in [(0, 2), (1, 3), (7, 2), (64, 3)] {
            let tasks = Tasks::new(count, threads);
            let seen = Mutex::new(vec![0; count]);
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let (tasks, seen) = (&tasks, &seen);
                    scope.spawn(move || tasks.each(thread, |task| seen.lock().unwrap()[task] += 1));
                }
            });
            assert!(seen.into_inner().unwrap().iter().all(|&times| times == 1), "{count} tasks, {threads} threads");
        }
    }

    #[test]
    fn every_item_is_run_once_by_whoever_has_time() {
        for counts in [vec![0], vec![5, 0], vec![1, 1, 1], vec![40, 41], vec![3, 300]] {
            let streamed = Streamed::new(counts.iter().copied(), 3);
            let seen = Mutex::new(counts.iter().map(|&count| vec![0; count]).collect::<Vec<_>>());
            std::thread::scope(|scope| {
                for thread in 0..counts.len() {
                    let (streamed, seen) = (&streamed, &seen);
                    scope.spawn(move || {
                        streamed.each(thread, |part, items| {
                            items.for_each(|item| seen.lock().unwrap()[part][item] += 1);
                        });
                    });
                }
            });
            let seen = seen.into_inner().unwrap();
            assert!(seen.iter().flatten().all(|&times| times == 1), "{counts:?}: {seen:?}");
        }
    }

    #[test]
    fn what_a_late_thread_has_left_is_taken_from_its_end() {
        let streamed = Streamed::new([0, 100].into_iter(), 4);
        let mut taken = Vec::new();
        streamed.each(0, |part, items| {
            assert_eq!(part, 1);
            taken.push(items);
        });
        assert_eq!(taken[..3], [68..100, 36..68, 18..36], "eight pieces at most, then half of what is left");
        assert_eq!(taken.last(), Some(&(0..1)));
        streamed.each(1, |_, items| panic!("{items:?} again"));
    }

    #[test]
    fn a_thread_takes_half_of_its_own() {
        let streamed = Streamed::new([100].into_iter(), 8);
        let mut taken = Vec::new();
        streamed.each(0, |_, items| taken.push(items));
        assert_eq!(taken, [0..50, 50..75, 75..87, 87..95, 95..100]);
    }
}
