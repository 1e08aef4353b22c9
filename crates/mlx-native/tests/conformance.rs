//! The conformance table on every device that this machine has.

use conformance::{Outcome, Reference, Report, Selection, Tally, Verdict, cases, cpu_devices, run, support_table};
use mlx_native::{DeviceKind, MlxDevice};

/// Changes the cases and their data: for looking further than the fixed sample.
fn seed() -> u64 {
    std::env::var("MLX_NATIVE_CONFORMANCE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

fn run_sample(devices: &[MlxDevice], seed: u64) -> Report {
    let failed = |outcome: &Outcome| {
        if let Verdict::Failed(message) = &outcome.verdict {
            eprintln!("{} on {} ({}): {message}", outcome.case, outcome.device, outcome.kernel);
        }
    };
    run(devices, &Reference::new().unwrap(), cases(Selection::Sample { seed }), failed)
}

#[test]
fn the_reference_passes_its_own_table() {
    let report = run_sample(&[MlxDevice::reference().unwrap()], seed());
    assert!(report.is_ok(), "{report}");
    assert!(report.worst.values().all(|nmse| *nmse == 0.0));
}

#[test]
fn every_instruction_set_passes_a_sample() {
    let devices = cpu_devices().unwrap();
    assert!(devices.iter().all(|device| device.kind() == DeviceKind::Cpu));
    let report = run_sample(&devices, seed());
    assert!(report.is_ok(), "{report}\n{}", report.worst_lines());
}

#[test]
#[ignore = "minutes: run it with --release"]
fn every_instruction_set_passes_the_full_table() {
    let devices = cpu_devices().unwrap();
    let report = run(&devices, &Reference::new().unwrap(), cases(Selection::Full), |_| {});
    println!("{report}\n{}", report.worst_lines());
    assert!(report.is_ok(), "{report}");
}

/// What whole runs left behind, see `support_table`.
const RUNS: [&str; 3] = [
    include_str!("../../../docs/conformance/cpu.tsv"),
    include_str!("../../../docs/conformance/metal-host.tsv"),
    include_str!("../../../docs/conformance/cuda-h100.tsv"),
];

#[test]
fn the_readme_shows_the_support_table() {
    let readme = include_str!("../../../README.md");
    let shown = readme.split("<!-- support-table -->").nth(1);
    let shown = shown.expect("README.md has the support table between two lines `<!-- support-table -->`");
    let runs: Vec<Tally> = RUNS.map(|run| run.parse().unwrap()).into();
    assert_eq!(shown.trim(), support_table(&runs).unwrap().trim());
}

/// A format or an operation that joins the table has to be run on every device before the documentation can claim it.
#[test]
fn the_recorded_runs_have_met_every_operation_and_format() {
    for run in RUNS {
        let run: Tally = run.parse().unwrap();
        for case in cases(Selection::Sample { seed: 1 }) {
            assert!(run.of(&case).is_some(), "{}: {case} and its like are not in the run", run.about[0]);
        }
    }
}
