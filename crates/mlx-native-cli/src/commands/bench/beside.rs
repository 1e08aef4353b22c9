//! Timed runs, and samples of the machine's limits between them: neighbours on the machine disturb both alike.

use anyhow::Result;
use mlx_native::{Limits, LimitsProbe, MlxDevice};
use serde::Serialize;
use std::time::{Duration, Instant};

use super::median;

/// Measures the limits of a device between the runs of a benchmark.
pub struct Beside {
    probe: LimitsProbe,
    samples: Vec<Limits>,
}

/// Medians of the limits between the runs; none where the device does not measure itself.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Medians {
    /// What loads alone read from memory, 10⁹ bytes per second.
    pub read_gb_per_s: Option<f64>,
    /// 8-bit multiply-adds from registers, 10⁹ operations per second, two for each.
    pub int8_peak_gop_per_s: Option<f64>,
    /// The same in f32.
    pub f32_peak_gflop_per_s: Option<f64>,
}

/// The arithmetic that bounds an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arithmetic {
    Int8,
    F32,
}

impl Medians {
    /// The peak of this arithmetic, 10⁹ operations per second.
    pub fn peak(&self, arithmetic: Arithmetic) -> Option<f64> {
        match arithmetic {
            Arithmetic::Int8 => self.int8_peak_gop_per_s,
            Arithmetic::F32 => self.f32_peak_gflop_per_s,
        }
    }
}

impl Beside {
    /// For this device.
    pub fn new(device: &MlxDevice) -> Result<Self> {
        Ok(Self { probe: device.limits_probe()?, samples: Vec::new() })
    }

    /// Takes a sample.
    pub fn sample(&mut self) -> Result<()> {
        self.samples.extend(self.probe.measure()?);
        Ok(())
    }

    /// The medians of the samples since the last call.
    pub fn take(&mut self) -> Medians {
        let samples = std::mem::take(&mut self.samples);
        let middle = |value: fn(&Limits) -> Option<f64>| {
            let values: Vec<f64> = samples.iter().filter_map(value).map(|rate| rate / 1e9).collect();
            (!values.is_empty()).then(|| median(&values))
        };
        Medians {
            read_gb_per_s: middle(|limits| Some(limits.read_bytes_per_s)),
            int8_peak_gop_per_s: middle(|limits| limits.int8_ops_per_s),
            f32_peak_gflop_per_s: middle(|limits| limits.f32_ops_per_s),
        }
    }

    /// Seconds of each run of `once`, the first not counted, at least `runs` of them and for at least `least`; as much time again goes into
    /// samples of the limits.
    pub fn time(&mut self, runs: usize, least: Duration, mut once: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
        once()?;
        let mut seconds = Vec::new();
        let (mut running, mut sampling) = (Duration::ZERO, Duration::ZERO);
        while seconds.len() < runs || running < least {
            let before = Instant::now();
            once()?;
            let run = before.elapsed();
            seconds.push(run.as_secs_f64());
            running += run;
            if sampling < running {
                let before = Instant::now();
                self.sample()?;
                sampling += before.elapsed();
            }
        }
        Ok(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_the_samples_since_the_last() {
        let device = MlxDevice::cpu().unwrap();
        let mut beside = Beside { samples: Vec::new(), ..Beside::new(&device).unwrap() };
        assert!(beside.take().read_gb_per_s.is_none());
        let limits = |read| Limits { read_bytes_per_s: read, int8_ops_per_s: Some(2e9), f32_ops_per_s: Some(1e9) };
        beside.samples = vec![limits(1e9), limits(9e9), limits(4e9)];
        let medians = beside.take();
        assert_eq!(medians.read_gb_per_s, Some(4.0));
        assert_eq!((medians.peak(Arithmetic::Int8), medians.peak(Arithmetic::F32)), (Some(2.0), Some(1.0)));
        assert!(beside.take().read_gb_per_s.is_none());
    }
}
