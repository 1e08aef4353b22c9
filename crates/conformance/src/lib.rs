//! The conformance table: op × format × shape × kind of data, with generators and error metrics.
//!
//! One table is the correctness test of every device, `mlxn selftest`, the list of what benchmarks measure, and the support table of the
//! documentation.
//!
//! ```
//! use conformance::{Reference, Selection, cases, run};
//! let device = mlx_native::MlxDevice::reference()?;
//! let few = cases(Selection::Sample { seed: 1 }).filter(|case| case.name().starts_with("softmax"));
//! let report = run(&[device], &Reference::new()?, few, |_| {});
//! assert!(report.is_ok(), "{report}");
//! # Ok::<(), mlx_native::MlxError>(())
//! ```

mod array;
mod case;
mod check;
mod compare;
pub mod generate;
mod record;
mod report;
mod stage;
mod table;
mod tally;

pub use array::Array;
pub use case::{AffineEntry, Case, Operation, Route, Shape, Values};
pub use check::{Outcome, Reference, Verdict, bounds, label, run_case};
pub use compare::{Bound, Difference, Precision, bound, compare};
pub use report::{Report, run, support_table};
pub use table::{M, N, Selection, cases, formats, part};
pub use tally::{Count, Tally};

use mlx_native::{Activations, DeviceOptions, MlxDevice, Result};

/// Every way in which this machine's processor can run the table: each instruction set × activations × batch invariance.
///
/// # Errors
///
/// Those of opening a device.
pub fn cpu_devices() -> Result<Vec<MlxDevice>> {
    let mut devices = Vec::new();
    for name in MlxDevice::cpu_instruction_sets() {
        for activations in [Activations::Exact, Activations::Q8] {
            for batch_invariant in [false, true] {
                // Shares of threads must not show in results: an odd number of them cuts rows elsewhere.
                let threads = if batch_invariant { 3 } else { 2 };
                let options = DeviceOptions { activations, batch_invariant, threads };
                devices.push(MlxDevice::cpu_with_instruction_set(name, options)?);
            }
        }
    }
    Ok(devices)
}
