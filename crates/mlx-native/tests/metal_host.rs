//! The Metal backend's planning and kernel text on the conformance table, run by metal-host with all checks on.
#![cfg(feature = "metal-host")]

use conformance::{Outcome, Reference, Selection, Verdict, cases, run};
use mlx_native::{Activations, DeviceOptions, MlxDevice, MlxError};

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
