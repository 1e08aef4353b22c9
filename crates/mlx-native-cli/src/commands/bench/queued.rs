//! Lists of an operation, and their time by the device's own clock.

use anyhow::Result;
use mlx_native::{CommandEncoder, Laps, VendorProduct};
use std::time::Duration;

use super::beside::Beside;
use super::cases::Case;
use super::ops::RUNS;

/// Records an operation several times in a list; each turn has operands of its own.
pub struct Lists {
    pub encoder: CommandEncoder,
    pub turn: usize,
}

impl Lists {
    /// Starts a list.
    fn queue(&mut self, case: &mut Case<'_>, times: usize) -> Result<()> {
        for _ in 0..times {
            (case.record)(&mut self.encoder, self.turn)?;
            self.turn += 1;
        }
        self.encoder.commit();
        Ok(())
    }

    /// Starts a list and waits for it.
    pub fn run(&mut self, case: &mut Case<'_>, times: usize) -> Result<()> {
        self.queue(case, times)?;
        Ok(self.encoder.wait_until_completed()?)
    }
}

/// Seconds of each list, and of as many products of the vendor's right after it, if they were asked for.
#[derive(Default)]
pub struct Runs {
    pub seconds: Vec<f64>,
    pub vendor: Vec<f64>,
}

/// Times lists on a device with a queue.
pub struct Queued {
    pub laps: Laps,
    pub vendor: Option<VendorProduct>,
    /// How long is measured at least.
    pub least: Duration,
}

/// Lists that are queued before the host waits, after one that keeps the device busy meanwhile.
const AHEAD: usize = 8;
/// Samples of the limits before the lists and after them: between them they would let the device rest.
const SAMPLES: usize = 5;

impl Queued {
    /// Times lists of `times` operations.
    pub fn time(&mut self, beside: &mut Beside, case: &mut Case<'_>, lists: &mut Lists, times: usize) -> Result<Runs> {
        self.sample(beside)?;
        let mut runs = Runs::default();
        // The first round is not counted: kernels are compiled in it, and lists captured.
        for round in 0.. {
            lists.queue(case, times)?;
            self.laps.mark()?;
            for _ in 0..AHEAD {
                lists.queue(case, times)?;
                self.laps.mark()?;
                if let Some(vendor) = &mut self.vendor {
                    (0..times).try_for_each(|_| vendor.queue())?;
                    self.laps.mark()?;
                }
            }
            lists.encoder.wait_until_completed()?;
            let seconds = self.laps.seconds()?;
            if round == 0 {
                continue;
            }
            match self.vendor {
                None => runs.seconds.extend(seconds),
                Some(_) => {
                    runs.seconds.extend(seconds.iter().step_by(2));
                    runs.vendor.extend(seconds.iter().skip(1).step_by(2));
                }
            }
            let all: f64 = runs.seconds.iter().sum();
            if all >= self.least.as_secs_f64() && runs.seconds.len() >= RUNS {
                break;
            }
        }
        self.sample(beside)?;
        Ok(runs)
    }

    fn sample(&self, beside: &mut Beside) -> Result<()> {
        (0..SAMPLES).try_for_each(|_| beside.sample())
    }
}
