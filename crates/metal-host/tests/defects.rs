//! Each check catches the defect it is for, under every schedule, and the same kernel without the defect is clean.

use metal_host::{Binding, Buffer, CompileOptions, Dispatch, Grid, Kind, Library, Options, Report};

const GROUPS: u32 = 3;
const N: u32 = 64 * GROUPS;

fn library() -> Library {
    let options = CompileOptions::named("defects.metal");
    Library::compile(include_str!("shaders/defects.metal"), options).unwrap()
}

fn run(lib: &Library, kernel: &str, seed: u64) -> Report {
    let x: Vec<f32> = (0..N).map(|i| i as f32 + 1.0).collect();
    let x = Buffer::from_slice("x", &x).unwrap().read_only();
    let y = Buffer::uninitialised("y", N as usize * 4).unwrap();
    let count = Buffer::zeroed("count", 4).unwrap();
    let n = N.to_ne_bytes();
    let third = if kernel.starts_with("plain_counter") { Binding::read_write(&count) } else { Binding::Empty };
    let bindings = [Binding::read(&x), Binding::overwrite(&y), Binding::Bytes(&n), third];
    // One threadgroup more than there are elements, for kernels that guard against it.
    let extra = u32::from(kernel.starts_with("overrun_write"));
    let dispatch = Dispatch {
        bindings: &bindings,
        threadgroup_bytes: &[256],
        grid: Grid::Threadgroups([GROUPS + extra, 1, 1]),
        group: [64, 1, 1],
        options: Options::seed(seed),
    };
    lib.pipeline(kernel, &[]).unwrap().dispatch(&dispatch).unwrap()
}

/// Kernel, the finding it must give, and words that the finding must contain.
const DEFECTS: &[(&str, Kind, &[&str])] = &[
    ("missing_barrier", Kind::RaceInThreadgroup, &["\"tile\"", "thread"]),
    ("missing_second_barrier", Kind::RaceInThreadgroup, &["\"tile\""]),
    ("wrong_barrier_flags", Kind::RaceInThreadgroup, &["\"tile\""]),
    ("barrier_of_one_simdgroup", Kind::RaceInThreadgroup, &["\"tile\""]),
    ("overrun", Kind::OutOfBounds, &["read of 4 bytes at 768 of buffer(0) \"x\" (768 bytes)", "thread 63"]),
    ("overrun_write", Kind::OutOfBounds, &["write of 4 bytes at 768 of buffer(1) \"y\""]),
    ("underrun", Kind::OutOfBounds, &["read of 4 bytes at -4 of buffer(0) \"x\"", "[0, 0, 0]"]),
    ("tile_overrun", Kind::OutOfBounds, &["at 256 of threadgroup(0)"]),
    ("array_overrun", Kind::Index, &["index 4"]),
    ("uninitialised_tile", Kind::Uninitialised, &["\"acc\""]),
    ("uninitialised_output", Kind::Uninitialised, &["buffer(1) \"y\""]),
    ("uninitialised_matrix", Kind::Uninitialised, &["simdgroup matrix"]),
    ("wrong_grid", Kind::UnwrittenOutput, &["byte 128 of \"y\"", "384 bytes were never written"]),
    ("overlapping_groups", Kind::RaceAcrossThreadgroups, &["another threadgroup", "\"y\""]),
    ("read_across_groups", Kind::RaceAcrossThreadgroups, &["another threadgroup"]),
    ("misaligned_vector", Kind::Misaligned, &["divisible by 16"]),
    ("misaligned_read", Kind::Misaligned, &["divisible by 16"]),
    ("divergent_barrier", Kind::BarrierDivergence, &["40 of 64 at threadgroup_barrier", "returned"]),
    ("return_before_barrier", Kind::BarrierDivergence, &["1 of 64 returned"]),
    ("write_to_input", Kind::ReadOnlyWrite, &["buffer(0) \"x\""]),
    ("simdgroup_race", Kind::RaceInSimdgroup, &["\"tile\""]),
    ("early_overwrite", Kind::RaceInSimdgroup, &["\"part\""]),
    ("lost_update", Kind::RaceInSimdgroup, &["\"last\""]),
    ("plain_counter", Kind::RaceInSimdgroup, &["\"count\""]),
    ("divergent_matrix", Kind::SimdDivergence, &["16 of 32 at simdgroup_load"]),
    ("divergent_shuffle", Kind::SimdDivergence, &["simd_shuffle_xor"]),
    ("unbound", Kind::UnboundBuffer, &["\"bias\""]),
    ("wild", Kind::WildAccess, &[]),
    ("short_arguments", Kind::Argument, &["\"args\"", "larger than what is bound"]),
    ("long_shift", Kind::Arithmetic, &["shift"]),
    ("overflow", Kind::Arithmetic, &["multiplication overflows"]),
    ("too_much_threadgroup_memory", Kind::Argument, &["32 KiB"]),
    ("division_by_zero", Kind::Arithmetic, &["division by zero"]),
];

/// The 1-based line of a kernel's first defective statement is somewhere between its name and the next kernel's.
fn lines_of(kernel: &str) -> std::ops::Range<usize> {
    let text = include_str!("shaders/defects.metal");
    let start = text.lines().position(|l| l.contains(&format!("kernel void {kernel}("))).unwrap() + 1;
    let rest = text.lines().skip(start).position(|l| l.starts_with("kernel void")).unwrap_or(usize::MAX - start);
    start..start + rest + 1
}

#[test]
fn each_defect_is_caught_and_its_twin_is_clean() {
    let lib = library();
    let mut failures = Vec::new();
    for (kernel, kind, words) in DEFECTS {
        for seed in 0..3 {
            let report = run(&lib, kernel, seed);
            let text = report.to_string();
            match report.find(*kind) {
                None => failures.push(format!("seed {seed}: no {kind:?} in {text}")),
                Some(_) if seed == 0 && words.iter().any(|w| !text.contains(w)) => {
                    failures.push(format!("{words:?} not in {text}"));
                }
                Some(f) if *kind != Kind::UnwrittenOutput && *kind != Kind::Argument => {
                    let line = f
                        .location
                        .as_deref()
                        .and_then(|l| l.strip_prefix("defects.metal:"))
                        .and_then(|l| l.split(' ').next()?.parse().ok());
                    if !line.is_some_and(|l: usize| lines_of(kernel).contains(&l)) {
                        failures.push(format!(
                            "location {:?} is not in lines {:?}: {text}",
                            f.location,
                            lines_of(kernel)
                        ));
                    }
                }
                Some(_) => {}
            }
            let report = run(&lib, &format!("{kernel}_fixed"), seed);
            if !report.findings.is_empty() || report.stopped {
                failures.push(format!("seed {seed}: {report}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn every_pair_is_listed() {
    let text = include_str!("shaders/defects.metal");
    let fixed = text.lines().filter(|l| l.starts_with("kernel void") && l.contains("_fixed(")).count();
    assert_eq!(fixed, DEFECTS.len());
}

#[test]
fn one_value_written_twice_is_a_note() {
    let source =
        "kernel void f(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i / 2] = 1.0f; }";
    let lib = Library::compile(source, CompileOptions::named("twice.metal")).unwrap();
    let y = Buffer::uninitialised("y", 64).unwrap();
    let d = Dispatch {
        bindings: &[Binding::overwrite(&y)],
        threadgroup_bytes: &[],
        grid: Grid::Threads([32, 1, 1]),
        group: [32, 1, 1],
        options: Options::default(),
    };
    let report = lib.pipeline("f", &[]).unwrap().dispatch(&d).unwrap();
    assert!(report.is_clean() && report.find(Kind::SameValueWrite).is_some(), "{report}");
}

#[test]
fn a_private_accumulator_without_a_value_is_a_warning() {
    let source = "kernel void f(device float* x [[buffer(0)]], constant int& n [[buffer(1)]]) { float sum; for (int i = 0; i < n; i++) sum += x[i]; x[0] = sum; }";
    let lib = Library::compile(source, CompileOptions::named("private.metal")).unwrap();
    assert!(lib.warnings().iter().any(|w| w.contains("private.metal:1") && w.contains("sum")), "{:?}", lib.warnings());
}

#[test]
fn private_memory_beyond_a_stack_is_refused() {
    let source = "kernel void f(device float* x [[buffer(0)]], constant uint& n [[buffer(1)]]) {\n\
                  float big[63000]; for (uint i = 0; i < n; i++) big[i] = x[i]; x[0] = big[n / 2]; }";
    let e = Library::compile(source, CompileOptions::named("big.metal")).unwrap_err().to_string();
    assert!(e.contains("big.metal") && e.contains("frame"), "{e}");
}

#[test]
fn a_dispatch_can_run_unchecked() {
    let lib = library();
    let x = Buffer::zeroed("x", N as usize * 4).unwrap();
    let y = Buffer::zeroed("y", N as usize * 4).unwrap();
    let n = N.to_ne_bytes();
    let d = Dispatch {
        bindings: &[Binding::read(&x), Binding::overwrite(&y), Binding::Bytes(&n)],
        threadgroup_bytes: &[],
        grid: Grid::Threadgroups([GROUPS, 1, 1]),
        group: [64, 1, 1],
        options: Options { checks: false, ..Options::default() },
    };
    let report = lib.pipeline("missing_barrier", &[]).unwrap().dispatch(&d).unwrap();
    assert!(report.findings.is_empty() && report.accesses == 0, "{report}");
}
