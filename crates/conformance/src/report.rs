//! What a run of the table found, and what the library supports.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Write};

use mlx_native::format::can_quantize;
use mlx_native::{MlxDevice, Result, WeightFormat};

use crate::table::formats;
use crate::{Case, Outcome, Reference, Tally, Verdict, run_case};

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
    /// What passed, failed and was skipped for each format and operation.
    pub tally: Tally,
}

impl Report {
    /// Counts an outcome.
    pub fn add(&mut self, outcome: Outcome) {
        self.tally.add(&outcome);
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

/// Formats × devices as a Markdown table, from what runs of the whole table left behind: what each multiplies with, routes to experts and looks rows up
/// in. A tick is for cases that ran, all of them within their bounds; `fails` for those of which some were not.
///
/// # Errors
///
/// Those of a format that has no size.
pub fn support_table(runs: &[Tally]) -> Result<String> {
    let mut table = String::from("| format | bits per weight | quantize |");
    let mut rule = String::from("|---|---|---|");
    for run in runs {
        let title = run.about.first().map_or("", String::as_str);
        for column in COLUMNS {
            let _ = write!(table, " {title} {} |", column.title);
            rule.push_str("---|");
        }
    }
    let _ = writeln!(table, "\n{rule}");
    for format in formats() {
        let quantizes = match format {
            WeightFormat::Ggml(ty) => can_quantize(ty),
            _ => true,
        };
        let name = format.name();
        let row = family(&name);
        let _ = write!(table, "| {row} | {} | {} |", bits_per_weight(&format)?, tick(quantizes));
        for run in runs {
            for column in COLUMNS {
                let count =
                    run.sum(|format, operation| family(format) == row && column.operations.contains(&operation));
                let cell = if count.failed > 0 { "fails" } else { tick(count.is_ok()) };
                let _ = write!(table, " {cell} |");
            }
        }
        table.push('\n');
    }
    Ok(table)
}

/// A column of the support table for each device.
struct Column {
    title: &'static str,
    operations: &'static [&'static str],
}

const COLUMNS: [Column; 3] = [
    Column {
        title: "matmul",
        operations: &[
            "matmul",
            "matmul_transposed",
            "matmul_batched",
            "matmul_perm021",
            "matmul_rows_alone",
            "quantized_matmul",
        ],
    },
    Column { title: "experts", operations: &["matmul_id", "matmul_id_rows_alone"] },
    Column { title: "rows", operations: &["embedding"] },
];

/// A format's name; for affine formats the width alone, whatever the group size and the type of the scales.
fn family(name: &str) -> Cow<'_, str> {
    match name.strip_prefix("affine").and_then(|rest| rest.split_once('_')) {
        Some((bits, _)) => Cow::Owned(format!("affine, {bits} bits")),
        None => Cow::Borrowed(name),
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
    fn the_support_table_has_a_row_for_each_format_and_says_what_failed() {
        let run = "# GPU\naffine4_g64_bf16\tmatmul\t7\t0\t0\naffine4_g32_f16\tmatmul\t7\t0\t0\nQ4_K\tmatmul\t7\t1\t0\nmxfp8\tembedding\t1\t0\t0\n";
        let table = support_table(&[run.parse().unwrap()]).unwrap();
        assert_eq!(table.lines().count(), 2 + formats().count());
        assert!(table.starts_with("| format | bits per weight | quantize | GPU matmul | GPU experts | GPU rows |"));
        for row in [
            "| Q4_K | 4.5 | ✓ | fails |  |  |",
            "| affine, 4 bits | 4.5 | ✓ | ✓ |  |  |",
            "| mxfp8 | 8.25 | ✓ |  |  | ✓ |",
        ] {
            assert!(table.contains(row), "{table}");
        }
    }
}
