//! Kernels of the usual shapes give right values under every schedule and no findings.

use half::{bf16, f16};
use metal_host::{Binding, Buffer, CompileOptions, Dispatch, FunctionConstant, Grid, Library, Options};

fn library() -> Library {
    Library::compile(include_str!("shaders/simple.metal"), CompileOptions::named("simple.metal")).unwrap()
}

fn run(
    pipeline: &metal_host::Pipeline,
    bindings: &[Binding],
    threadgroup_bytes: &[usize],
    grid: Grid,
    group: [u32; 3],
) {
    for seed in 0..4 {
        let d = Dispatch { bindings, threadgroup_bytes, grid, group, options: Options::seed(seed) };
        let report = pipeline.dispatch(&d).unwrap();
        assert!(report.findings.is_empty(), "seed {seed}: {report}");
    }
}

#[test]
fn grids_of_threads_end_in_a_partial_threadgroup() {
    let lib = library();
    let x: Vec<f32> = (0..100).map(|i| i as f32).collect();
    let buf = Buffer::from_slice("x", &x).unwrap().read_only();
    let y = Buffer::uninitialised("y", 400).unwrap();
    let mut args = 100u32.to_ne_bytes().to_vec();
    args.extend(0.5f32.to_ne_bytes());
    for negate in [false, true] {
        let p = lib.pipeline("scale", &[FunctionConstant::bool(0, negate)]).unwrap();
        run(
            &p,
            &[Binding::read(&buf), Binding::overwrite(&y), Binding::Bytes(&args)],
            &[],
            Grid::Threads([100, 1, 1]),
            [64, 1, 1],
        );
        let sign = if negate { -0.5 } else { 0.5 };
        assert_eq!(y.to_vec_of::<f32>(), x.iter().map(|v| v * sign).collect::<Vec<_>>());
    }
}

#[test]
fn simdgroup_sums() {
    let (n, k) = (7u32, 75u32);
    let x: Vec<f32> = (0..n * k).map(|i| (i % 13) as f32 - 6.0).collect();
    let (bx, by) = (Buffer::from_slice("x", &x).unwrap(), Buffer::uninitialised("y", 28).unwrap());
    let (kb, nb) = (k.to_ne_bytes(), n.to_ne_bytes());
    let p = library().pipeline("row_sums", &[]).unwrap();
    let bindings = [Binding::read(&bx), Binding::overwrite(&by), Binding::Bytes(&kb), Binding::Bytes(&nb)];
    run(&p, &bindings, &[], Grid::Threadgroups([2, 1, 1]), [128, 1, 1]);
    let expected: Vec<f32> = x.chunks(k as usize).map(|r| r.iter().sum()).collect();
    assert_eq!(by.to_vec_of::<f32>(), expected);
}

#[test]
fn threadgroup_memory_and_barriers() {
    let lib = library();
    let values: Vec<f16> = (0..256).map(|i| f16::from_f32(i as f32)).collect();
    let b = Buffer::from_slice("x", &values).unwrap();
    run(
        &lib.pipeline("reverse_half_128", &[]).unwrap(),
        &[Binding::read_write(&b)],
        &[256],
        Grid::Threadgroups([2, 1, 1]),
        [128, 1, 1],
    );
    assert_eq!(b.to_vec_of::<f16>(), values, "four runs reverse an even number of times");
    let values: Vec<bf16> = (0..64).map(|i| bf16::from_f32(i as f32)).collect();
    let b = Buffer::from_slice("x", &values).unwrap();
    let d = Dispatch {
        bindings: &[Binding::read_write(&b)],
        threadgroup_bytes: &[128],
        grid: Grid::Threadgroups([1, 1, 1]),
        group: [64, 1, 1],
        options: Options::seed(9),
    };
    let report = lib.pipeline("reverse_bf16_64", &[]).unwrap().dispatch(&d).unwrap();
    assert!(report.findings.is_empty(), "{report}");
    assert_eq!(b.to_vec_of::<bf16>(), values.into_iter().rev().collect::<Vec<_>>());
}

#[test]
fn simdgroup_matrices() {
    let k = 24usize;
    let value = |i: usize| f16::from_f32((i * 7 % 17) as f32 - 8.0);
    let a: Vec<f16> = (0..16 * k).map(value).collect();
    let b: Vec<f16> = (0..k * 16).map(|i| value(i + 3)).collect();
    let (ba, bb) = (Buffer::from_slice("a", &a).unwrap(), Buffer::from_slice("b", &b).unwrap());
    let c = Buffer::uninitialised("c", 16 * 16 * 4).unwrap();
    let kb = (k as u32).to_ne_bytes();
    let bindings = [Binding::read(&ba), Binding::read(&bb), Binding::overwrite(&c), Binding::Bytes(&kb)];
    run(&library().pipeline("matmul8", &[]).unwrap(), &bindings, &[], Grid::Threadgroups([2, 2, 1]), [32, 1, 1]);
    for (i, got) in c.to_vec_of::<f32>().into_iter().enumerate() {
        let want: f32 = (0..k).map(|p| f32::from(a[i / 16 * k + p]) * f32::from(b[p * 16 + i % 16])).sum();
        assert_eq!(got, want, "element {i}");
    }
}

#[test]
fn vectors_swizzles_and_atomics() {
    let q: Vec<u8> = (0..40).collect();
    let (bq, y) = (Buffer::from_bytes("q", &q).unwrap(), Buffer::uninitialised("y", 160).unwrap());
    let (h, count) = (Buffer::uninitialised("h", 40).unwrap(), Buffer::zeroed("count", 4).unwrap());
    let bindings = [Binding::read(&bq), Binding::overwrite(&y), Binding::overwrite(&h), Binding::read_write(&count)];
    run(&library().pipeline("vectors", &[]).unwrap(), &bindings, &[], Grid::Threads([10, 1, 1]), [4, 1, 1]);
    let y = y.to_vec_of::<f32>();
    assert_eq!(y[4..8], [4.5, 3.0, 12.0, 15.0]);
    assert_eq!(h.to_vec_of::<f16>()[2..4], [f16::from_f32(4.5), f16::from_f32(15.1)]);
    // The swizzled x is (4 i + 1) / 2 + 2, above 3 for every thread but the first.
    assert_eq!(count.to_vec_of::<u32>(), [9 * 4]);
}

#[test]
fn a_buffer_may_be_bound_twice() {
    let x: Vec<f32> = (0..64).map(|i| i as f32).collect();
    let b = Buffer::from_slice("x", &x).unwrap();
    let mut args = 32u32.to_ne_bytes().to_vec();
    args.extend(2.0f32.to_ne_bytes());
    let p = library().pipeline("scale", &[FunctionConstant::bool(0, false)]).unwrap();
    // All of it to read, the upper half to write: in place, and from one half to the other.
    for (from, want) in [(0, 62.0), (128, 124.0)] {
        let read = Binding::read(&b).part(from, 256 - from);
        let d = Dispatch {
            bindings: &[read, Binding::read_write(&b).part(128, 128), Binding::Bytes(&args)],
            threadgroup_bytes: &[],
            grid: Grid::Threads([32, 1, 1]),
            group: [32, 1, 1],
            options: Options::default(),
        };
        let report = p.dispatch(&d).unwrap();
        assert!(report.findings.is_empty(), "{report}");
        let y = b.to_vec_of::<f32>();
        assert_eq!(y[63], want);
    }
}

#[test]
fn without_checks_the_values_are_the_same() {
    let options = CompileOptions { checks: false, ..CompileOptions::named("simple.metal") };
    let lib = Library::compile(include_str!("shaders/simple.metal"), options).unwrap();
    let x: Vec<f32> = (0..2 * 75).map(|i| i as f32).collect();
    let (bx, by) = (Buffer::from_slice("x", &x).unwrap(), Buffer::zeroed("y", 8).unwrap());
    let (kb, nb) = (75u32.to_ne_bytes(), 2u32.to_ne_bytes());
    let bindings = [Binding::read(&bx), Binding::overwrite(&by), Binding::Bytes(&kb), Binding::Bytes(&nb)];
    run(&lib.pipeline("row_sums", &[]).unwrap(), &bindings, &[], Grid::Threadgroups([1, 1, 1]), [128, 1, 1]);
    assert_eq!(by.to_vec_of::<f32>(), [2775.0, 8400.0]);
}

#[test]
fn wrong_requests_are_typed_errors() {
    use metal_host::Error;
    let lib = library();
    assert!(matches!(lib.pipeline("scall", &[]), Err(Error::UnknownKernel { .. })));
    assert!(matches!(
        lib.pipeline("scale", &[FunctionConstant::int(7, 1)]),
        Err(Error::UnknownConstant { index: 7, .. })
    ));
    let b = Buffer::zeroed("x", 16).unwrap();
    let d = Dispatch {
        bindings: &[Binding::read(&b).part(8, 16)],
        threadgroup_bytes: &[],
        grid: Grid::Threads([1, 1, 1]),
        group: [32, 1, 1],
        options: Options::default(),
    };
    assert!(matches!(lib.pipeline("scale", &[]).unwrap().dispatch(&d), Err(Error::Dispatch { .. })));
    let e = Library::compile(
        "kernel void f(device float* x [[buffer(0)]]) { x[0] = nope; }",
        CompileOptions::named("bad.metal"),
    )
    .unwrap_err();
    assert!(e.to_string().contains("bad.metal:1"), "{e}");
}
