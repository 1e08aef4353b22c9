//! The Metal backend's planning and kernel text on the conformance table, run by metal-host with all checks on.
#![cfg(feature = "metal-host")]

use conformance::{Outcome, Reference, Selection, Verdict, cases, run};
use mlx_native::format::quantize_row;
use mlx_native::{
    Activations, DType, DeviceOptions, GgmlQuantizedMatmulParams, GgmlType, KernelRegistry, MlxDevice, MlxError,
    quantized_matmul_ggml,
};

/// With and without Metal's tensor operations.
const DEVICES: [&str; 2] = ["metal-host", "metal-host:tensor"];

/// The device, unless this machine has no C++ compiler.
fn device(name: &str, options: DeviceOptions) -> Option<MlxDevice> {
    match MlxDevice::by_name(name, options) {
        Ok(device) => Some(device),
        Err(MlxError::DeviceNotFound(why)) => {
            eprintln!("skipped: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn seed() -> u64 {
    std::env::var("MLX_NATIVE_CONFORMANCE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

/// Runs the cases of the sample whose names begin with one of `ops` followed by a slash.
fn sample(ops: &[&str], options: DeviceOptions) {
    sample_on(DEVICES[0], ops, options);
}

fn sample_on(name: &str, ops: &[&str], options: DeviceOptions) {
    let Some(device) = device(name, options) else { return };
    let wanted = |name: &str| ops.iter().any(|op| name.strip_prefix(op).is_some_and(|rest| rest.starts_with('/')));
    let chosen = cases(Selection::Sample { seed: seed() }).filter(|case| wanted(&case.name()));
    let failed = |outcome: &Outcome| {
        if let Verdict::Failed(message) = &outcome.verdict {
            eprintln!("{}: {message}", outcome.case);
        }
    };
    let report = run(&[device], &Reference::new().unwrap(), chosen, failed);
    assert!(report.is_ok(), "{report}");
    println!("{report}\n{}", report.worst_lines());
}

#[test]
fn elementwise() {
    sample(&["cast", "binary", "gated_activation", "soft_cap"], DeviceOptions::default());
}

#[test]
fn rows() {
    sample(&["rms_norm", "softmax"], DeviceOptions::default());
}

#[test]
fn attention_and_rope() {
    sample(&["rope", "store_kv", "attention"], DeviceOptions::default());
}

#[test]
fn choosing() {
    sample(&["argmax", "sample", "expert_gate", "expert_sum"], DeviceOptions::default());
}

/// A format for each family of decoders; the ignored tests have all of them.
const FAMILIES: [&str; 5] = ["Q4_K", "IQ2_XXS", "F16", "affine4_g64_bf16", "mxfp4"];

#[test]
fn weights() {
    for format in FAMILIES {
        weights_of(DEVICES[0], format, DeviceOptions::default());
    }
}

#[test]
fn weights_by_tensor_operations() {
    for format in FAMILIES {
        weights_of(DEVICES[1], format, DeviceOptions::default());
    }
}

#[test]
fn exact_weights() {
    for format in ["Q6_K", "mxfp8"] {
        weights_of(DEVICES[0], format, DeviceOptions { activations: Activations::Exact, ..DeviceOptions::default() });
    }
}

/// Every row alone and among 32 others, tokens alone and among others, experts' rows too: the same bits.
#[test]
fn rows_do_not_depend_on_their_company() {
    let options = DeviceOptions { batch_invariant: true, ..DeviceOptions::default() };
    let ops = ["Q4_K", "F16", "affine4_g64_bf16"]
        .iter()
        .flat_map(|format| [format!("matmul_rows_alone/{format}"), format!("matmul_id_rows_alone/{format}")])
        .chain(["attention_tokens_alone".into()]);
    let ops: Vec<String> = ops.collect();
    sample(&ops.iter().map(String::as_str).collect::<Vec<_>>(), options);
}

#[test]
#[ignore = "compiles two libraries for each format: minutes"]
fn weights_of_every_format() {
    for format in conformance::formats() {
        for name in DEVICES {
            weights_of(name, &format.name(), DeviceOptions::default());
        }
    }
}

fn weights_of(device: &str, format: &str, options: DeviceOptions) {
    let ops = [
        "matmul",
        "matmul_id",
        "matmul_batched",
        "matmul_perm021",
        "matmul_transposed",
        "embedding",
        "quantized_matmul",
    ];
    let names: Vec<String> = ops.iter().map(|op| format!("{op}/{format}")).collect();
    sample_on(device, &names.iter().map(String::as_str).collect::<Vec<_>>(), options);
}

/// A product of 11 rows with a Q8_0 weight by the kernel of this name.
fn forced(device: &MlxDevice, kernel: Option<&str>) -> Result<Vec<f32>, MlxError> {
    const SHAPE: [usize; 3] = [11, 70, 96];
    let [m, n, k] = SHAPE;
    let wave = |len: usize| -> Vec<f32> { (0..len).map(|i| ((i * 7919) % 1013) as f32 / 506.0 - 1.0).collect() };
    let mut blocks = vec![0; n * GgmlType::Q8_0.row_bytes(k)?];
    for (row, out) in wave(n * k).chunks_exact(k).zip(blocks.chunks_exact_mut(GgmlType::Q8_0.row_bytes(k)?)) {
        quantize_row(GgmlType::Q8_0, row, out)?;
    }
    let x = device.buffer_from_slice(&wave(m * k), DType::F32, vec![m, k])?;
    let weight = device.buffer_from_slice(&blocks, DType::U8, vec![blocks.len()])?;
    let mut y = device.alloc_buffer(m * n * 4, DType::F32, vec![m, n])?;
    let mut registry = KernelRegistry::new();
    if let Some(kernel) = kernel {
        registry.force(kernel);
    }
    let mut encoder = device.command_encoder()?;
    let params = GgmlQuantizedMatmulParams { m: m as u32, n: n as u32, k: k as u32, ggml_type: GgmlType::Q8_0 };
    quantized_matmul_ggml(&mut encoder, &mut registry, device, &x, &weight, &mut y, &params)?;
    encoder.commit_and_wait()?;
    Ok(y.as_slice::<f32>()?.to_vec())
}

#[test]
fn kernels_run_by_name() {
    let Some(device) = device(DEVICES[1], DeviceOptions::default()) else { return };
    let exact = forced(&MlxDevice::reference().unwrap(), None).unwrap();
    let power: f32 = exact.iter().map(|y| y * y).sum();
    for kernel in ["mv_r1", "mv_r2", "mv_r4", "mv_r8", "mm", "mm_f32", "mm_tensor", "mm_large", "mm_large_tensor"] {
        let found = forced(&device, Some(kernel)).unwrap();
        let error: f32 = found.iter().zip(&exact).map(|(y, exact)| (y - exact) * (y - exact)).sum();
        assert!(error <= 1e-6 * power, "{kernel}: NMSE {:.1e}", error / power);
    }
    for kernel in ["mm_id", "embedding", "fastest", ""] {
        let error = forced(&device, Some(kernel)).unwrap_err();
        assert!(matches!(&error, MlxError::KernelNotFound(_)), "{kernel}: {error}");
    }
}
