//! Devices and kernels that are not there.

use std::process::Command;

use mlx_native::{
    DType, DeviceOptions, GgmlQuantizedMatmulIdParams, GgmlQuantizedMatmulParams, GgmlType, KernelRegistry, MlxDevice,
    MlxError, Result, quantized_matmul_ggml, quantized_matmul_id_ggml,
};

use super::{buffer, device, devices, invalid};

#[test]
fn kernels_that_are_not_there() {
    for device in devices() {
        let mut registry = KernelRegistry::new();
        registry.force("no_such_kernel");
        let (x, w) = (buffer(&device, DType::F32, 32), buffer(&device, DType::U8, 18));
        let mut y = buffer(&device, DType::F32, 1);
        let params = GgmlQuantizedMatmulParams { m: 1, n: 1, k: 32, ggml_type: GgmlType::Q4_0 };
        let mut encoder = device.command_encoder().unwrap();
        quantized_matmul_ggml(&mut encoder, &mut registry, &device, &x, &w, &mut y, &params).unwrap();
        match encoder.commit_and_wait().unwrap_err() {
            MlxError::KernelNotFound(message) => assert!(message.contains("no_such_kernel"), "{message}"),
            other => panic!("{}: {other:?}", device.name()),
        }
    }
}

#[test]
fn a_forced_kernel_concerns_its_own_call_alone() {
    let device = device();
    let mut registry = KernelRegistry::new();
    registry.force("no_such_kernel");
    let mut encoder = device.command_encoder().unwrap();
    let (x, mut y) = (buffer(&device, DType::F32, 32), buffer(&device, DType::F32, 32));
    let (w, ids) = (buffer(&device, DType::U8, 34), buffer(&device, DType::F32, 1));
    let params = GgmlQuantizedMatmulIdParams {
        n_tokens: 1,
        top_k: 1,
        n: 1,
        k: 32,
        n_experts: 1,
        expert_stride: 34,
        ggml_type: GgmlType::Q8_0,
    };
    let refused = quantized_matmul_id_ggml(&mut encoder, &mut registry, &device, &x, &w, &ids, &mut y, &params);
    invalid(refused, &["ids", "f32"]);
    encoder.soft_cap(&x, &mut y, 1.0).unwrap();
    encoder.commit_and_wait().unwrap();
}

#[test]
fn devices_that_are_not_there() {
    #[track_caller]
    fn absent(result: Result<MlxDevice>, words: &[&str]) {
        match result.map(|device| device.name()).unwrap_err() {
            MlxError::DeviceNotFound(message) => {
                assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
            }
            other => panic!("{other:?}"),
        }
    }
    let options = DeviceOptions::default();
    for (name, words) in
        [("", "cpu"), ("gpu", "gpu"), ("cpu:1", "cpu:1"), ("cuda:x", "x"), ("cuda:", "number"), ("metal:2", "metal:2")]
    {
        absent(MlxDevice::by_name(name, options), &[words]);
    }
    absent(MlxDevice::cpu_with_instruction_set("avx1024", options), &["avx1024"]);
    absent(MlxDevice::cuda(4096), &["cuda:4096"]);
    if !cfg!(target_os = "macos") {
        absent(MlxDevice::metal(), &["metal"]);
    }
}

/// Run by `the_environment_chooses_the_device` in a process of its own.
#[test]
#[ignore = "needs MLX_NATIVE_DEVICE, see the_environment_chooses_the_device"]
fn open_the_default_device() {
    match MlxDevice::new() {
        Ok(device) => println!("opened {:?}", device.kind()),
        Err(error) => println!("refused: {error}"),
    }
}

#[test]
fn the_environment_chooses_the_device() {
    let open = |value: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "devices::open_the_default_device", "--ignored", "--nocapture"])
            .env("MLX_NATIVE_DEVICE", value)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for (value, words) in [
        ("cpu", "opened Cpu"),
        ("cpu:0", "opened Cpu"),
        ("reference", "opened Reference"),
        ("cuda:77", "refused: device not found: cuda:77"),
        ("tpu", "refused: device not found: `tpu` is none of"),
        ("cuda:one", "refused: device not found: `cuda:one`"),
        ("", "refused: device not found"),
    ] {
        let output = open(value);
        assert!(output.contains(words), "{value}: {output}");
        assert_eq!(output.contains("refused"), output.contains("asked for by MLX_NATIVE_DEVICE"), "{output}");
    }
}
