//! Runs a case on the reference and on a device, and compares.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use mlx_native::{CapabilityQuery, DType, MlxDevice, Result};

use crate::compare::{Bound, Difference, Precision, bound, compare};
use crate::generate::rng;
use crate::record::{Tape, record};
use crate::stage::{Run, Stage};
use crate::{Array, Case, Operation};

/// The f64 oracle. It keeps the last case's data and results, so that a case is drawn and computed once when devices take turns.
pub struct Reference {
    device: MlxDevice,
    last: Mutex<Option<(Case, Arc<Expected>)>>,
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reference").field("device", &self.device).finish_non_exhaustive()
    }
}

/// What a case must give.
struct Expected {
    tape: Mutex<Tape>,
    /// Draws that cancelled before this one.
    #[cfg(test)]
    attempt: u64,
    outputs: Vec<Array>,
    error: Option<String>,
}

/// How a case went on a device.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Within the bounds.
    Passed(Difference),
    /// What is wrong.
    Failed(String),
    /// Why the case does not concern the device.
    Skipped(String),
}

/// A case's result on a device.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The case.
    pub case: Case,
    /// The device, see [`label`].
    pub device: String,
    /// The kernel that the device chose; the operation's name where devices do not tell.
    pub kernel: String,
    /// The result.
    pub verdict: Verdict,
}

impl Reference {
    /// Opens the oracle.
    ///
    /// # Errors
    ///
    /// Those of opening a device.
    pub fn new() -> Result<Reference> {
        Ok(Reference { device: MlxDevice::reference()?, last: Mutex::default() })
    }

    fn expected(&self, case: &Case) -> std::result::Result<Arc<Expected>, String> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, expected)) = last.as_ref().filter(|(held, _)| held == case) {
            return Ok(Arc::clone(expected));
        }
        // Sums of few terms may cancel by chance; relative errors say nothing about such a draw, so it is made again.
        const ATTEMPTS: u64 = 64;
        for attempt in 0..ATTEMPTS {
            let mut tape = Tape::new(rng(case.seed.wrapping_add(attempt << 32), &case.name()));
            let Run { outputs, error, energy } = execute(&self.device, case, &mut tape, 0xff, true)?;
            let found: f64 = outputs.iter().map(|output| output.mean_square() * output.len() as f64).sum();
            if attempt + 1 == ATTEMPTS || energy.is_none_or(|energy| found >= energy / 2.0) {
                let expected = Arc::new(Expected {
                    tape: Mutex::new(tape),
                    #[cfg(test)]
                    attempt,
                    outputs,
                    error,
                });
                *last = Some((case.clone(), Arc::clone(&expected)));
                return Ok(expected);
            }
        }
        Err("no data".into())
    }
}

fn execute(
    device: &MlxDevice,
    case: &Case,
    tape: &mut Tape,
    poison: u8,
    measure: bool,
) -> std::result::Result<Run, String> {
    let mut stage = Stage::new(device, case.offset, poison).map_err(|error| error.to_string())?;
    if measure && case.shape().is_some() {
        stage = stage.measured();
    }
    tape.rewind();
    record(&mut stage, case, tape).map_err(|error| format!("recording: {error}"))?;
    stage.run()
}

/// A device's name with the options that change its numbers.
pub fn label(device: &MlxDevice) -> String {
    let options = device.options();
    let invariant = if options.batch_invariant { ", batch_invariant" } else { "" };
    format!("{} [{:?}{invariant}]", device.name(), options.activations)
}

/// Runs `case` on `device` twice, over differently poisoned outputs, and compares with the reference and with itself.
pub fn run_case(device: &MlxDevice, reference: &Reference, case: &Case) -> Outcome {
    let kernel = match (case.kind(), case.format(), case.shape()) {
        (Some(op), Some(format), Some(shape)) => {
            device.capability(&CapabilityQuery { op, format, m: shape.m, n: shape.n, k: shape.k }).kernel
        }
        _ => case.op().to_owned(),
    };
    let alone = matches!(
        case.operation,
        Operation::RowsAlone { .. } | Operation::RoutedRowsAlone { .. } | Operation::TokensAlone { .. }
    );
    let verdict = if alone && !device.options().batch_invariant {
        Verdict::Skipped("the device does not promise batch invariance".into())
    } else {
        match check(device, reference, case) {
            Ok(difference) => Verdict::Passed(difference),
            Err(message) => Verdict::Failed(message),
        }
    };
    Outcome { case: case.clone(), device: label(device), kernel, verdict }
}

fn check(device: &MlxDevice, reference: &Reference, case: &Case) -> std::result::Result<Difference, String> {
    let expected = reference.expected(case).map_err(|error| format!("the reference failed: {error}"))?;
    let mut tape = expected.tape.lock().unwrap_or_else(PoisonError::into_inner);
    let run = execute(device, case, &mut tape, 0xff, false)?;
    judge(device, case, &expected, &run).and_then(|difference| {
        // Other poison: an element that nobody wrote, or that read another one's old content, shows.
        let again = execute(device, case, &mut tape, 0x7f, false)?;
        let sampled_nothing = matches!(case.operation, Operation::Sample { .. }) && run.error.is_some();
        if !sampled_nothing && again.outputs != run.outputs {
            return Err("a second run gave other bits".into());
        }
        Ok(difference)
    })
}

fn judge(device: &MlxDevice, case: &Case, expected: &Expected, run: &Run) -> std::result::Result<Difference, String> {
    match (&expected.error, &run.error) {
        (None, None) => {}
        (None, Some(error)) => return Err(error.clone()),
        (Some(wanted), found) => {
            // The reference names itself first: "matmul_id: slot 5: expert 9 of 8".
            let fact = wanted.split_once(": ").map_or(wanted.as_str(), |(_, fact)| fact);
            match found {
                Some(found) if found.contains(fact) => {}
                _ => return Err(format!("the wait must report `{fact}`, got {found:?}")),
            }
            if matches!(case.operation, Operation::Sample { .. }) {
                return Ok(Difference::default());
            }
        }
    }
    let mut worst = Difference::default();
    for (i, (found, reference)) in run.outputs.iter().zip(&expected.outputs).enumerate() {
        let limit = bound(precision(case, i, reference), device.kind(), &device.options());
        let difference = compare(found, reference, limit).map_err(|message| match run.outputs.len() {
            1 => message,
            _ => format!("output {i}: {message}"),
        })?;
        worst.nmse = worst.nmse.max(difference.nmse);
        worst.max_abs = worst.max_abs.max(difference.max_abs);
    }
    relations(case, &run.outputs)?;
    Ok(worst)
}

/// Which row of the accuracy table an output stands under.
fn precision(case: &Case, output: usize, array: &Array) -> Precision {
    match case.operation {
        _ if !array.is_float() => Precision::Exact,
        Operation::Cast { .. } | Operation::StoreKv { .. } => Precision::Exact,
        Operation::Embedding { .. } => Precision::Float,
        Operation::Attention { .. } | Operation::TokensAlone { .. } => Precision::Attention,
        Operation::RowsAlone { .. } | Operation::RoutedRowsAlone { .. } => {
            Precision::Product { m: if output == 0 { 33 } else { output }, output: DType::F32 }
        }
        _ => match case.shape() {
            Some(shape) => Precision::Product { m: shape.m, output: array.dtype },
            None => Precision::Float,
        },
    }
}

/// What must hold among the outputs of one run, bit for bit.
fn relations(case: &Case, outputs: &[Array]) -> std::result::Result<(), String> {
    let same = |a: &[u8], b: &[u8], what: &dyn Fn() -> String| {
        let pairs = a.chunks_exact(4).zip(b.chunks_exact(4));
        match pairs.enumerate().find(|(_, (a, b))| a != b) {
            None => Ok(()),
            Some((i, _)) => Err(format!("{}: value {i} has other bits", what())),
        }
    };
    match case.operation {
        Operation::Perm021 { .. } => {
            same(&outputs[0].bytes, &outputs[1].bytes, &|| "permuting first and then multiplying".into())
        }
        Operation::RowsAlone { .. } | Operation::RoutedRowsAlone { .. } => (1..outputs.len()).try_for_each(|m| {
            let rows = &outputs[0].bytes[..outputs[m].bytes.len()];
            same(rows, &outputs[m].bytes, &|| format!("the first {m} of 33 rows alone"))
        }),
        Operation::TokensAlone { .. } => (1..outputs.len()).try_for_each(|t| {
            let width = outputs[t].bytes.len();
            let row = &outputs[0].bytes[(t - 1) * width..t * width];
            same(row, &outputs[t].bytes, &|| format!("token {} alone", t - 1))
        }),
        _ => Ok(()),
    }
}

/// A bound for each output, for those who show the table.
pub fn bounds(device: &MlxDevice, case: &Case) -> Bound {
    let output = match case.operation {
        Operation::Matmul { output, .. } => output,
        _ => DType::F32,
    };
    bound(precision(case, 0, &Array { dtype: output, bytes: Vec::new() }), device.kind(), &device.options())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Shape, Values};
    use mlx_native::{GgmlType, MlxError};

    fn product(m: usize) -> Case {
        let shape = Shape { m, n: 31, k: 96 };
        let (input, output) = (DType::F32, DType::F32);
        Case::new(Operation::Matmul { format: GgmlType::Q4_0.into(), shape, input, output })
    }

    /// Judges the reference's own run after `plant` changed it.
    fn judged(case: &Case, plant: impl FnOnce(&mut Run)) -> std::result::Result<Difference, String> {
        let reference = Reference::new().unwrap();
        let expected = reference.expected(case).unwrap();
        let mut run = execute(&reference.device, case, &mut expected.tape.lock().unwrap(), 0xff, false).unwrap();
        plant(&mut run);
        judge(&reference.device, case, &expected, &run)
    }

    fn poke(run: &mut Run, output: usize, at: usize, value: f32) {
        run.outputs[output].bytes[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
    }

    #[test]
    fn the_reference_agrees_with_itself() {
        assert_eq!(judged(&product(5), |_| {}), Ok(Difference::default()));
    }

    #[test]
    fn a_wrong_value_is_caught() {
        let message = judged(&product(5), |run| {
            let value = run.outputs[0].values()[40] as f32;
            poke(run, 0, 40, value * 1.01);
        })
        .unwrap_err();
        assert!(message.contains("NMSE") && message.contains("value 40"), "{message}");
    }

    #[test]
    fn an_element_that_nobody_wrote_is_caught() {
        let message = judged(&product(5), |run| poke(run, 0, 154, f32::from_bits(0xffff_ffff))).unwrap_err();
        assert!(message.contains("value 154") && message.contains("NaN"), "{message}");
    }

    #[test]
    fn a_lost_nan_is_caught() {
        let case = product(5).with(Values::NotFinite);
        assert!(judged(&case, |_| {}).is_ok());
        let message = judged(&case, |run| poke(run, 0, 2, 0.0)).unwrap_err();
        assert!(message.contains("value 2"), "{message}");
    }

    #[test]
    fn a_missing_or_a_wrong_error_is_caught() {
        let case = Case::new(Operation::Embedding {
            format: GgmlType::Q8_0.into(),
            shape: Shape { m: 5, n: 3, k: 32 },
            bad_id: true,
        });
        assert!(judged(&case, |_| {}).is_ok());
        assert!(judged(&case, |run| run.error = None).unwrap_err().contains("token 2: id 6 of 3"));
        assert!(judged(&case, |run| run.error = Some("token 3: id 6 of 3".into())).is_err());
        let quiet = product(5);
        assert!(judged(&quiet, |run| run.error = Some("lost".into())).is_err());
    }

    #[test]
    fn other_bits_between_two_paths_are_caught() {
        let shape = Shape { m: 3, n: 5, k: 64 };
        let case = Case::new(Operation::Perm021 { ty: GgmlType::Q8_0, shape, head_dim: 32 });
        assert!(judged(&case, |_| {}).is_ok());
        let message = judged(&case, |run| run.outputs[1].bytes[8] ^= 1).unwrap_err();
        assert!(message.contains("value 2"), "{message}");

        let case = Case::new(Operation::RowsAlone { format: GgmlType::Q8_0.into(), n: 5, k: 64 });
        assert!(judged(&case, |_| {}).is_ok());
        let message = judged(&case, |run| run.outputs[4].bytes[0] ^= 1).unwrap_err();
        assert!(message.contains("the first 4 of 33"), "{message}");
    }

    #[test]
    fn a_draw_that_cancels_is_made_again() {
        let reference = Reference::new().unwrap();
        let again = (0..20).filter(|&seed| {
            let shape = Shape { m: 1, n: 1, k: 32 };
            let (input, output) = (DType::F32, DType::F32);
            let operation = Operation::Matmul { format: GgmlType::Q8_0.into(), shape, input, output };
            let case = Case { seed, ..Case::new(operation) };
            let expected = reference.expected(&case).unwrap();
            // 32 terms of weights and activations of some tenths to 1 have more energy than twice this.
            assert!(expected.outputs[0].mean_square() > 4.0, "seed {seed}: {:?}", expected.outputs[0].values());
            expected.attempt > 0
        });
        assert!((1..20).contains(&again.count()));
    }

    #[test]
    fn a_device_that_cannot_is_a_failure_and_not_a_pass() -> std::result::Result<(), MlxError> {
        let reference = Reference::new()?;
        let case = Case::new(Operation::Matmul {
            format: GgmlType::Q4_0.into(),
            shape: Shape { m: 1, n: 1, k: 33 },
            input: DType::F32,
            output: DType::F32,
        });
        let outcome = run_case(&reference.device, &reference, &case);
        assert!(matches!(outcome.verdict, Verdict::Failed(_)), "{outcome:?}");
        Ok(())
    }
}
