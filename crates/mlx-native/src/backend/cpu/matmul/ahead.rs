//! How far ahead of their use the weights of one column are asked for, where no distance is always the fastest.
//!
//! While others keep the machine's memory busy, some formats are read faster if less is asked for at once; while memory has time for this program, more has to
//! be on its way. So a thread times two distances on what it reads anyway, goes with the faster one, and tries the other now and then. Results are the same.

use std::cell::Cell;
use std::time::Instant;

/// Bytes that a distance is timed on.
const TRIAL_BYTES: usize = 128 << 10;
/// One of so many trials is the slower distance's.
const TRIALS: u32 = 16;
/// The share of a new time in the average.
const SHARE: f32 = 0.25;

/// What a thread knows about two distances.
#[derive(Clone, Copy)]
struct Pace {
    /// Average nanoseconds of a byte; 0 before the first trial.
    times: [f32; 2],
    /// Trials so far.
    trials: u32,
}

impl Pace {
    const UNKNOWN: Pace = Pace { times: [0.0; 2], trials: 0 };

    /// The faster of the distances, or one that has not been tried.
    fn faster(&self) -> usize {
        usize::from(self.times[1] < self.times[0])
    }

    /// The distance of the next trial.
    fn next(&mut self) -> usize {
        self.trials = self.trials.wrapping_add(1);
        if self.trials.is_multiple_of(TRIALS) { 1 - self.faster() } else { self.faster() }
    }

    /// Adds a trial's time. One that is far too long has met an interruption and says little about memory.
    fn learn(&mut self, distance: usize, time: f32) {
        let average = &mut self.times[distance];
        *average = if *average == 0.0 { time } else { *average + SHARE * (time.min(2.0 * *average) - *average) };
    }
}

thread_local! {
    static PACE: Cell<Pace> = const { Cell::new(Pace::UNKNOWN) };
}

/// Chooses between two distances, turn by turn.
pub(super) struct Distances {
    pace: Pace,
    /// The one in use.
    chosen: usize,
    turn_bytes: usize,
    /// Turns of a trial.
    trial: usize,
    /// Turns that are left of this one, or more than a trial has where there are too few turns for any.
    left: usize,
    /// When the trial's second turn began: the first one pays for the change.
    since: Option<Instant>,
}

impl Distances {
    /// For so many turns, each of which reads `turn_bytes` bytes. Too few for a trial have the first distance: what long products show is not true of them.
    pub(super) fn new(turns: usize, turn_bytes: usize) -> Self {
        let pace = PACE.get();
        let trial = TRIAL_BYTES.div_ceil(turn_bytes.max(1)).max(2);
        let left = if turns < trial { usize::MAX } else { 0 };
        Distances { pace, chosen: 0, turn_bytes, trial, left, since: None }
    }

    /// Which of the two distances the next turn has.
    #[inline(always)]
    pub(super) fn next(&mut self) -> usize {
        if self.left == 0 || self.left == self.trial - 1 {
            self.look();
        }
        self.left -= 1;
        self.chosen
    }

    /// Before the first and the second turn of a trial.
    #[cold]
    fn look(&mut self) {
        if self.left == 0 {
            self.learn();
            self.chosen = self.pace.next();
            self.left = self.trial;
        } else {
            self.since = Some(Instant::now());
        }
    }

    /// After the last turn of a trial.
    fn learn(&mut self) {
        if let Some(since) = self.since.take() {
            let bytes = (self.trial - 1) * self.turn_bytes;
            self.pace.learn(self.chosen, since.elapsed().as_nanos() as f32 / bytes as f32);
        }
    }
}

impl Drop for Distances {
    fn drop(&mut self) {
        if self.left == 0 {
            self.learn();
        }
        PACE.set(self.pace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Trials of the first distance among the next 64, whose bytes take these times.
    fn firsts(pace: &mut Pace, times: [f32; 2]) -> usize {
        (0..64)
            .filter(|_| {
                let distance = pace.next();
                pace.learn(distance, times[distance]);
                distance == 0
            })
            .count()
    }

    #[test]
    fn the_faster_distance_is_used_and_the_other_one_tried() {
        let mut pace = Pace::UNKNOWN;
        assert_eq!(firsts(&mut pace, [0.05, 0.04]), 5, "the first trial, and four that look again");
        assert_eq!(firsts(&mut pace, [0.05, 0.04]), 4);
        // Memory changes: some trials pass until the averages have.
        let firsts_after = firsts(&mut pace, [0.03, 0.04]);
        assert!((4..60).contains(&firsts_after), "{firsts_after}");
        assert_eq!(firsts(&mut pace, [0.03, 0.04]), 60);
    }

    #[test]
    fn an_interruption_does_not_change_the_choice() {
        let mut pace = Pace::UNKNOWN;
        firsts(&mut pace, [0.03, 0.04]);
        pace.learn(0, 50.0);
        assert_eq!(pace.faster(), 0);
    }

    #[test]
    fn trials_take_turns_enough_and_are_kept_for_the_thread() {
        std::thread::spawn(|| {
            PACE.set(Pace { times: [0.05, 0.04], trials: 0 });
            let mut few = Distances::new(2, TRIAL_BYTES / 4);
            assert_eq!([few.next(), few.next()], [0, 0]);
            drop(few);
            assert_eq!(PACE.get().trials, 0, "two of four turns are no trial");
            PACE.set(Pace::UNKNOWN);
            let mut many = Distances::new(9, TRIAL_BYTES / 4);
            let chosen: Vec<_> = (0..9).map(|_| many.next()).collect();
            drop(many);
            assert_eq!(chosen[..8], [0, 0, 0, 0, 1, 1, 1, 1], "what is not known yet comes first");
            let pace = PACE.get();
            assert!(pace.trials == 3 && pace.times.iter().all(|&time| time > 0.0), "{:?}", pace.times);
        })
        .join()
        .unwrap();
    }
}
