//! What a run of the table found, and what the library supports.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use mlx_native::format::can_quantize;
use mlx_native::{CapabilityQuery, DeviceKind, MlxDevice, OpKind, Result, WeightFormat};

use crate::table::formats;
use crate::{Case, Outcome, Reference, Verdict, run_case};

/// The findings of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cases within their bounds.
    pub passed: usize,
    /// Cases that do not concern the device.
    pub skipped: usize,
    /// Cases that are wrong.
    pub failures: Vec<Outcome>,
    /// The worst NMSE for each operation, format and kernel.
    pub worst: BTreeMap<(String, String, String), f64>,
}

impl Report {
    /// Counts an outcome.
    pub fn add(&mut self, outcome: Outcome) {
        match outcome.verdict {
            Verdict::Skipped(_) => self.skipped += 1,
            Verdict::Failed(_) => self.failures.push(outcome),
            Verdict::Passed(difference) => {
                self.passed += 1;
                let format = outcome.case.format().map(|format| format.name().into_owned()).unwrap_or_default();
                let worst = self.worst.entry((outcome.case.op().into(), format, outcome.kernel)).or_default();
                *worst = worst.max(difference.nmse);
            }
        }
    }

    /// Whether nothing failed and something passed.
    pub fn is_ok(&self) -> bool {
        self.failures.is_empty() && self.passed > 0
    }

    /// The worst NMSE for each operation, format and kernel, as lines.
    pub fn worst_lines(&self) -> String {
        self.worst.iter().fold(String::new(), |mut lines, ((op, format, kernel), nmse)| {
            // Writing to a String cannot fail.
            let _ = writeln!(lines, "{op:<22} {format:<20} {kernel:<28} {nmse:.1e}");
            lines
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A broken kernel fails everywhere: the first cases tell enough.
        const SHOWN: usize = 30;
        for Outcome { case, device, kernel, verdict } in self.failures.iter().take(SHOWN) {
            if let Verdict::Failed(message) = verdict {
                writeln!(f, "FAILED {case} on {device} ({kernel}): {message}")?;
            }
        }
        if self.failures.len() > SHOWN {
            writeln!(f, "… and {} more", self.failures.len() - SHOWN)?;
        }
        if self.skipped > 0 {
            writeln!(f, "{} skipped", self.skipped)?;
        }
        write!(f, "{} passed, {} failed", self.passed, self.failures.len())
    }
}

/// Runs `cases` on `devices`, case by case, and tells `progress` of each outcome.
pub fn run(
    devices: &[MlxDevice],
    reference: &Reference,
    cases: impl Iterator<Item = Case>,
    mut progress: impl FnMut(&Outcome),
) -> Report {
    let mut report = Report::default();
    for case in cases {
        for device in devices {
            let outcome = run_case(device, reference, &case);
            progress(&outcome);
            report.add(outcome);
        }
    }
    report
}

/// Formats × devices as a Markdown table: what a device multiplies with, routes to experts and looks rows up in.
///
/// # Errors
///
/// Those of opening the CPU.
pub fn support_table() -> Result<String> {
    let devices = [MlxDevice::cpu()?];
    let mut table = String::from("| format | bits per weight | quantize |");
    let mut rule = String::from("|---|---|---|");
    for device in &devices {
        let name = match device.kind() {
            DeviceKind::Cpu => "CPU",
            DeviceKind::Cuda => "CUDA",
            DeviceKind::Metal => "Metal",
            _ => "reference",
        };
        for op in ["matmul", "experts", "rows"] {
            let _ = write!(table, " {name} {op} |");
            rule.push_str("---|");
        }
    }
    let _ = writeln!(table, "\n{rule}");
    for format in formats() {
        let quantizes = match format {
            WeightFormat::Ggml(ty) => can_quantize(ty),
            _ => true,
        };
        let _ = write!(table, "| {} | {} | {} |", family(&format), bits_per_weight(&format)?, tick(quantizes));
        for device in &devices {
            for op in [OpKind::Matmul, OpKind::MatmulId, OpKind::Embedding] {
                let query = CapabilityQuery { op, format, m: 1, n: 256, k: 1024 };
                let _ = write!(table, " {} |", tick(device.capability(&query).supported));
            }
        }
        table.push('\n');
    }
    Ok(table)
}

/// The format's name; for affine formats without the group size, of which every one is supported.
fn family(format: &WeightFormat) -> String {
    match format {
        WeightFormat::Affine(affine) => format!("affine, {} bits", affine.bits),
        other => other.name().into_owned(),
    }
}

fn bits_per_weight(format: &WeightFormat) -> Result<String> {
    const K: usize = 8192;
    let side_bytes = match format {
        WeightFormat::Ggml(_) => 0,
        WeightFormat::Affine(affine) => 2 * affine.groups(K)? * affine.scale_dtype.size_of(),
        WeightFormat::Fp(mode) => mode.groups(K),
    };
    let bits = ((format.row_bytes(K)? + side_bytes) * 8) as f64 / K as f64;
    Ok(format!("{bits:.4}").trim_end_matches('0').trim_end_matches('.').to_owned())
}

fn tick(yes: bool) -> &'static str {
    if yes { "✓" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Difference, Operation};

    fn outcome(verdict: Verdict) -> Outcome {
        let case = Case::new(Operation::SoftCap { len: 3, in_place: false });
        Outcome { case, device: "d".into(), kernel: "k".into(), verdict }
    }

    #[test]
    fn reports_count_and_keep_the_worst() {
        let mut report = Report::default();
        assert!(!report.is_ok());
        for nmse in [1e-12, 1e-11, 1e-13] {
            report.add(outcome(Verdict::Passed(Difference { nmse, max_abs: 0.0 })));
        }
        report.add(outcome(Verdict::Skipped("why".into())));
        assert!(report.is_ok());
        assert_eq!(report.worst.values().collect::<Vec<_>>(), [&1e-11]);
        report.add(outcome(Verdict::Failed("value 2".into())));
        assert!(!report.is_ok());
        let text = report.to_string();
        assert!(
            text.ends_with("3 passed, 1 failed") && text.contains("FAILED soft_cap/len=3 on d (k): value 2"),
            "{text}"
        );
    }

    #[test]
    fn the_table_has_a_row_for_each_format() {
        let table = support_table().unwrap();
        assert_eq!(table.lines().count(), 2 + formats().count());
        assert!(table.contains("| Q4_K | 4.5 |") && table.contains("| affine, 4 bits | 4.5 |"), "{table}");
        assert!(table.contains("| mxfp8 | 8.25 | ✓ |"), "{table}");
    }
}
