//! The CUDA backend on the conformance table, where there is a GPU, and what it says where there is none.
#![cfg(feature = "cuda")]

mod layers;
mod products;

use conformance::{Outcome, Reference, Selection, Verdict, cases, run};
use mlx_native::{Activations, Binary, DType, DeviceOptions, GgmlType, MlxBuffer, MlxDevice, MlxError, Weight};

/// The device, unless this machine has none.
fn device(options: DeviceOptions) -> Option<MlxDevice> {
    match MlxDevice::cuda_with(0, options) {
        Ok(device) => Some(device),
        Err(MlxError::DeviceNotFound(why)) => {
            eprintln!("skipped: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

fn sample(options: DeviceOptions) {
    let Some(device) = device(options) else { return };
    let failed = |outcome: &Outcome| {
        if let Verdict::Failed(message) = &outcome.verdict {
            eprintln!("{}: {message}", outcome.case);
        }
    };
    let report = run(&[device], &Reference::new().unwrap(), cases(Selection::Sample { seed: 1 }), failed);
    assert!(report.is_ok(), "{report}");
}

#[test]
fn a_machine_without_a_gpu_says_what_is_missing() {
    match MlxDevice::cuda(4095) {
        Err(MlxError::DeviceNotFound(why)) => assert!(why.starts_with("cuda"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_sample_passes() {
    sample(DeviceOptions::default());
}

#[test]
fn the_sample_passes_with_exact_activations() {
    sample(DeviceOptions { activations: Activations::Exact, ..DeviceOptions::default() });
}

#[test]
fn the_sample_passes_batch_invariant() {
    sample(DeviceOptions { batch_invariant: true, ..DeviceOptions::default() });
}

/// Records a chain of operations on the same buffers, as a generation step does: the third run and those after it are replays of a graph.
#[test]
fn replayed_lists_see_what_the_host_wrote() {
    let Some(device) = device(DeviceOptions::default()) else { return };
    let (n, k) = (64, 64);
    let mut blocks = device.alloc_buffer(n * k / 32 * 34, DType::U8, vec![n, k / 32, 34]).unwrap();
    for block in blocks.as_mut_slice::<u8>().unwrap().chunks_mut(34) {
        // d = 1, the first value 1.
        block[..3].copy_from_slice(&[0x00, 0x3c, 1]);
    }
    let weight = Weight::ggml(GgmlType::Q8_0, n, k, blocks).unwrap();
    let buffer = |len: usize| device.alloc_buffer(len * 4, DType::F32, vec![len]).unwrap();
    let (mut x, mut y, mut sum): (MlxBuffer, MlxBuffer, MlxBuffer) = (buffer(k), buffer(n), buffer(n));
    let mut encoder = device.command_encoder().unwrap();
    for round in 0..6 {
        x.as_mut_slice::<f32>().unwrap().fill(round as f32);
        encoder.matmul(&x, &weight, &mut y).unwrap();
        encoder.binary(Binary::Add, &y, &y, &mut sum).unwrap();
        encoder.soft_cap(&sum, &mut y, 1000.0).unwrap();
        encoder.binary(Binary::Mul, &sum, &y, &mut x).unwrap();
        encoder.commit_and_wait().unwrap();
        // Both blocks of a row contribute x.
        assert_eq!(sum.as_slice::<f32>().unwrap(), vec![4.0 * round as f32; n]);
    }
}
