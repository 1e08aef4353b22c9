//! Tile matmuls through tensor operations and through simdgroup matrices, with partial tiles.

use half::f16;
use metal_host::{Binding, Buffer, CompileOptions, Dispatch, Grid, Kind, Library, Options, Pipeline, Report};

fn pipeline(name: &str, checks: bool) -> Pipeline {
    let options = CompileOptions { checks, ..CompileOptions::named("tensor.metal") };
    Library::compile(include_str!("shaders/tensor.metal"), options).unwrap().pipeline(name, &[]).unwrap()
}

struct Case {
    shape: [usize; 3],
    x: Vec<f32>,
    w: Vec<f16>,
}

impl Case {
    fn new(shape: [usize; 3]) -> Case {
        let [m, n, k] = shape;
        let mut state = 7u32;
        let mut next = move || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        Case {
            shape,
            x: (0..m * k).map(|_| f16::from_f32(next()).to_f32()).collect(),
            w: (0..n * k).map(|_| f16::from_f32(next())).collect(),
        }
    }

    fn run(&self, p: &Pipeline, seed: u64) -> (Vec<f32>, Report) {
        let [m, n, _] = self.shape;
        let (x, w) = (Buffer::from_slice("x", &self.x).unwrap(), Buffer::from_slice("w", &self.w).unwrap());
        let y = Buffer::uninitialised("y", m * n * 4).unwrap();
        let shape: Vec<u8> = self.shape.iter().flat_map(|&v| (v as u32).to_ne_bytes()).collect();
        let d = Dispatch {
            bindings: &[Binding::read(&x), Binding::read(&w), Binding::overwrite(&y), Binding::Bytes(&shape)],
            threadgroup_bytes: &[(32 + 64) * 32 * 2],
            grid: Grid::Threadgroups([n.div_ceil(64) as u32, m.div_ceil(32) as u32, 1]),
            group: [128, 1, 1],
            options: Options::seed(seed),
        };
        let report = p.dispatch(&d).unwrap();
        (y.to_vec_of(), report)
    }

    fn check(&self, y: &[f32]) {
        let [_, n, k] = self.shape;
        for (i, got) in y.iter().enumerate() {
            let want: f64 = (0..k).map(|p| f64::from(self.x[i / n * k + p]) * f64::from(self.w[i % n * k + p])).sum();
            assert!(
                (f64::from(*got) - want).abs() < 1e-4 * (k as f64).sqrt(),
                "{:?} element {i}: {got} for {want}",
                self.shape
            );
        }
    }
}

#[test]
fn partial_tiles_are_right_and_clean() {
    for kernel in ["tensor_matmul", "simdgroup_matmul"] {
        let p = pipeline(kernel, true);
        for (seed, shape) in [[40, 130, 512], [1, 1, 32], [32, 64, 64], [33, 65, 96]].into_iter().enumerate() {
            let case = Case::new(shape);
            let (y, report) = case.run(&p, seed as u64);
            assert!(report.findings.is_empty(), "{report}");
            case.check(&y);
            println!(
                "{kernel} {shape:?}: {:?}, {} accesses, {} switches",
                report.elapsed, report.accesses, report.switches
            );
        }
    }
}

#[test]
fn unchecked_values_are_the_same() {
    for kernel in ["tensor_matmul", "simdgroup_matmul"] {
        let case = Case::new([40, 130, 512]);
        let (y, report) = case.run(&pipeline(kernel, false), 0);
        case.check(&y);
        println!("{kernel} unchecked: {:?}", report.elapsed);
        assert_eq!(y, case.run(&pipeline(kernel, true), 0).0);
    }
}

fn small(kernel: &str, seed: u64) -> (Vec<f32>, Report) {
    let values: Vec<f16> = (0..256).map(|i| f16::from_f32((i % 19) as f32)).collect();
    let (x, w) = (Buffer::from_slice("x", &values).unwrap(), Buffer::from_slice("w", &values).unwrap());
    let y = Buffer::uninitialised("y", 1024).unwrap();
    let d = Dispatch {
        bindings: &[Binding::read(&x), Binding::read(&w), Binding::overwrite(&y)],
        threadgroup_bytes: &[],
        grid: Grid::Threadgroups([1, 1, 1]),
        group: [32, 1, 1],
        options: Options::seed(seed),
    };
    let report = pipeline(kernel, true).dispatch(&d).unwrap();
    (y.to_vec_of(), report)
}

#[test]
fn misuse_of_cooperative_tensors_is_caught() {
    let (_, report) = small("unset_accumulator", 0);
    assert!(
        report.find(Kind::Uninitialised).is_some_and(|f| f.to_string().contains("multiply_accumulate")),
        "{report}"
    );
    let (_, report) = small("part_of_scope", 0);
    assert!(
        report.find(Kind::SimdDivergence).is_some_and(|f| f.to_string().contains("31 of 32 at matmul2d::run")),
        "{report}"
    );
}

#[test]
fn a_layout_that_is_taken_for_granted_differs_under_another_seed() {
    let (first, report) = small("assumes_a_layout", 0);
    assert!(report.findings.is_empty(), "{report}");
    assert_ne!(first, small("assumes_a_layout", 5).0);
}
