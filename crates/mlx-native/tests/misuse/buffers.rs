//! Buffers and encoders at the wrong time, in the wrong place or by the wrong handle.

use mlx_native::io::FileMap;
use mlx_native::{
    Binary, DType, EmbeddingParams, ExpertGateParams, GgmlType, KernelRegistry, MlxDevice, MlxError, RmsNormParams,
    Weight, quantized_matmul,
};

use super::operands::{AFFINE, Affine};
use super::{buffer, device, devices, invalid, pending};

#[test]
fn operands_that_overlap() {
    let device = device();
    let mut e = device.command_encoder().unwrap();
    let whole = buffer(&device, DType::F32, 16);
    let mut second = whole.slice_view(16, 8);
    invalid(e.soft_cap(&whole.slice_view(0, 8), &mut second, 1.0), &["overlaps"]);
    let mut same = whole.slice_view(0, 8);
    e.soft_cap(&whole.slice_view(0, 8), &mut same, 1.0).unwrap();
    let weight = Weight::ggml(GgmlType::F32, 2, 4, whole.slice_view(0, 8)).unwrap();
    let mut y = whole.slice_view(28, 2);
    invalid(e.matmul(&whole.slice_view(48, 4), &weight, &mut y), &["overlaps"]);
    // A norm may replace its input, but not the weight that every row reads.
    let (rows, norm) = (buffer(&device, DType::F32, 4), RmsNormParams { rows: 1, dim: 4, eps: 0.0 });
    let mut alias = rows.clone();
    invalid(e.rms_norm(&buffer(&device, DType::F32, 4), &rows, &mut alias, &norm), &["overlaps"]);
    e.rms_norm(&rows, &buffer(&device, DType::F32, 4), &mut alias, &norm).unwrap();
    let logits = buffer(&device, DType::F32, 4);
    let words = buffer(&device, DType::U32, 4);
    let params = ExpertGateParams { n_tokens: 1, n_experts: 4, top_k: 2, normalize: true };
    let mut weights = logits.slice_view(0, 2);
    invalid(e.expert_gate(&logits, &mut words.slice_view(0, 2), &mut weights, &params), &["overlaps"]);
}

#[test]
fn allocations() {
    for device in devices() {
        invalid(device.alloc_buffer(0, DType::F32, vec![]), &["0"]);
        for bytes in [usize::MAX, isize::MAX as usize, 1 << 60] {
            match device.alloc_buffer(bytes, DType::F32, vec![]).unwrap_err() {
                MlxError::BufferAllocationError { bytes: found } => assert_eq!(found, bytes),
                other => panic!("{other:?}"),
            }
        }
        let zeroed = device.alloc_buffer(1000, DType::U8, vec![1000]).unwrap();
        assert!(zeroed.as_slice::<u8>().unwrap().iter().all(|byte| *byte == 0));
    }
}

#[test]
fn views() {
    let device = device();
    let buffer = buffer(&device, DType::F32, 8);
    for (offset, len) in [(4, 8), (32, 1), (0, 9), (0, 0), (u64::MAX, 1), (4, usize::MAX), (u64::MAX, usize::MAX)] {
        invalid(buffer.try_slice_view(offset, len), &["slice_view", "32 bytes"]);
        let mut view = buffer.slice_view(offset, len);
        assert_eq!((view.byte_len(), view.element_count()), (0, 0));
        invalid(view.as_slice::<f32>(), &["slice_view"]);
        invalid(view.as_mut_slice::<f32>(), &["slice_view"]);
        invalid(view.try_slice_view(0, 1), &["slice_view"]);
        invalid(view.with_shape(vec![0]), &["slice_view"]);
        invalid(view.clone().as_slice::<f32>(), &["slice_view"]);
        invalid(view.slice_view(0, 1).as_slice::<f32>(), &["slice_view"]);
        let mut encoder = device.command_encoder().unwrap();
        let (x, y) = (super::buffer(&device, DType::F32, 8), &mut super::buffer(&device, DType::F32, 8));
        invalid(encoder.binary(Binary::Add, &x, &view, y), &["b"]);
        invalid(encoder.soft_cap(&x, &mut view, 1.0), &["output", "slice_view"]);
        invalid(Weight::ggml(GgmlType::F32, 1, 1, view.clone()), &["weight"]);
    }
    invalid(buffer.with_shape(vec![3, 3]), &["[3, 3]", "8"]);
    invalid(buffer.with_shape(vec![usize::MAX, 2]), &["8"]);
    assert_eq!(buffer.with_shape(vec![2, 4]).unwrap().shape(), [2, 4]);
    invalid(buffer.slice_view(0, 3).as_slice::<u64>(), &["12 bytes", "8 bytes"]);
    invalid(buffer.slice_view(4, 2).as_slice::<u64>(), &["aligned"]);
    invalid(buffer.as_slice::<[u8; 0]>(), &["0 bytes"]);
}

#[test]
fn operands_that_are_not_aligned() {
    let device = device();
    let bytes = buffer(&device, DType::F32, 8);
    let odd = |start, len| bytes.slice_view(start, len);
    let mut e = device.command_encoder().unwrap();
    let y = &mut buffer(&device, DType::F32, 4);
    invalid(e.soft_cap(&odd(2, 4), y, 1.0), &["input", "byte 2", "aligned to f32"]);
    invalid(e.soft_cap(&buffer(&device, DType::F32, 4), &mut odd(5, 4), 1.0), &["output", "byte 5", "aligned to f32"]);
    e.soft_cap(&odd(12, 4), y, 1.0).unwrap();
    let map = FileMap::from_bytes([0u8; 64]);
    invalid(device.buffer_from_map(&map, 2..18, DType::F32, vec![4]), &["byte 2", "aligned to f32"]);
    device.buffer_from_map(&map, 2..18, DType::U8, vec![16]).unwrap();
}

#[test]
fn the_host_keeps_away_while_work_is_pending() {
    for device in devices() {
        let mut x = buffer(&device, DType::F32, 4);
        x.as_mut_slice::<f32>().unwrap().fill(1.0);
        let mut y = buffer(&device, DType::F32, 4);
        let mut encoder = device.command_encoder().unwrap();
        encoder.binary(Binary::Add, &x, &x, &mut y).unwrap();
        for used in [&x, &y, &x.clone(), &y.slice_view(0, 1)] {
            pending(used.as_slice::<f32>());
        }
        pending(x.as_mut_slice::<f32>());
        pending(y.as_mut_slice::<f32>());
        encoder.commit_and_wait().unwrap();
        assert_eq!(y.as_slice::<f32>().unwrap(), [2.0; 4]);
        x.as_mut_slice::<f32>().unwrap().fill(3.0);
    }
}

#[test]
fn an_encoder_that_is_dropped_discards_its_work_and_lets_go_of_its_buffers() {
    let device = device();
    let x = buffer(&device, DType::F32, 4);
    let mut y = buffer(&device, DType::F32, 4);
    y.as_mut_slice::<f32>().unwrap().fill(5.0);
    let mut encoder = device.command_encoder().unwrap();
    encoder.soft_cap(&x, &mut y, 1.0).unwrap();
    pending(y.as_slice::<f32>());
    drop(encoder);
    assert_eq!(y.as_slice::<f32>().unwrap(), [5.0; 4]);
    y.as_mut_slice::<f32>().unwrap().fill(6.0);
}

#[test]
fn slices_are_snapshots_when_handles_share_a_storage() {
    for device in devices() {
        let reader = device.buffer_from_slice(&[1.0f32; 4], DType::F32, vec![4]).unwrap();
        let mut writer = reader.clone();
        let before = reader.as_slice::<f32>().unwrap();
        invalid(writer.as_mut_slice::<f32>(), &["2 handles"]);

        let x = device.buffer_from_slice(&[0.5f32; 4], DType::F32, vec![4]).unwrap();
        let mut encoder = device.command_encoder().unwrap();
        encoder.binary(Binary::Add, &x, &x, &mut writer).unwrap();
        assert_eq!(before, [1.0; 4]);
        encoder.binary(Binary::Mul, &x, &x, &mut writer).unwrap();
        encoder.commit_and_wait().unwrap();
        assert_eq!(before, [1.0; 4], "what was handed out must not change");
        assert_eq!(reader.as_slice::<f32>().unwrap(), [0.25; 4]);
        assert_eq!(before, [1.0; 4]);
        assert_eq!(writer.as_slice::<f32>().unwrap(), [0.25; 4]);
        drop(reader);
        writer.as_mut_slice::<f32>().unwrap().fill(2.0);
        assert_eq!(writer.as_slice::<f32>().unwrap(), [2.0; 4]);
    }
}

#[test]
fn buffers_of_another_device() {
    let (here, there) = (device(), device());
    let (x, stranger) = (buffer(&here, DType::F32, 4), buffer(&there, DType::F32, 4));
    let (mut y, mut other) = (buffer(&here, DType::F32, 4), buffer(&there, DType::F32, 4));
    let mut encoder = here.command_encoder().unwrap();
    invalid(encoder.soft_cap(&stranger, &mut y, 1.0), &["input", "another device"]);
    invalid(encoder.soft_cap(&x, &mut other, 1.0), &["output", "another device"]);
    let weight = Weight::ggml(GgmlType::F32, 1, 4, stranger).unwrap();
    invalid(encoder.matmul(&x, &weight, &mut y), &["weight", "another device"]);
    // A clone of a device is the same device.
    encoder.soft_cap(&buffer(&here.clone(), DType::F32, 4), &mut y, 1.0).unwrap();
    // The affine functions allocate their result on the device that they are given: it must be the encoder's.
    let affine = Affine::new(DType::F32);
    let [x, w, s, b] = &affine.buffers;
    let mut encoder = affine.device.command_encoder().unwrap();
    invalid(
        quantized_matmul(&mut encoder, &mut KernelRegistry::new(), &there, x, w, s, b, &AFFINE),
        &["another device"],
    );
}

#[test]
fn two_threads_commit_to_one_device() {
    devices().iter().for_each(count_on_two_threads);
}

fn count_on_two_threads(device: &MlxDevice) {
    let shared = device.buffer_from_slice(&[0.0f32; 64], DType::F32, vec![64]).unwrap();
    let one = device.buffer_from_slice(&[1.0f32], DType::F32, vec![1]).unwrap();
    const ROUNDS: usize = 200;
    std::thread::scope(|scope| {
        for half in 0..2 {
            let (shared, one) = (&shared, &one);
            scope.spawn(move || {
                // Each thread counts in its own half of one storage, and both count in a word that they share.
                let view = shared.slice_view(half * 128, 31);
                let mut own = view.clone();
                let common = shared.slice_view(31 * 4, 1);
                let mut common_out = common.clone();
                for _ in 0..ROUNDS {
                    let mut encoder = device.command_encoder().unwrap();
                    encoder.binary(Binary::Add, &view, one, &mut own).unwrap();
                    encoder.binary(Binary::Add, &common, one, &mut common_out).unwrap();
                    encoder.commit_and_wait().unwrap();
                }
            });
        }
    });
    let counted = shared.as_slice::<f32>().unwrap();
    assert!(counted[..31].iter().chain(&counted[32..63]).all(|count| *count == ROUNDS as f32), "{counted:?}");
    assert_eq!(counted[31], 2.0 * ROUNDS as f32);
}

#[test]
fn errors_come_from_the_first_operation_that_failed() {
    let device = device();
    let weight = Weight::ggml(GgmlType::F32, 2, 1, buffer(&device, DType::F32, 2)).unwrap();
    let mut y = buffer(&device, DType::F32, 1);
    let ids = |id: u32| device.buffer_from_slice(&[id], DType::U32, vec![1]).unwrap();
    let params = EmbeddingParams { n_tokens: 1, scale: 1.0 };
    let mut encoder = device.command_encoder().unwrap();
    for id in [1, 70, 80] {
        encoder.embedding(&weight, &ids(id), &mut y, &params).unwrap();
    }
    encoder.commit();
    encoder.embedding(&weight, &ids(90), &mut y, &params).unwrap();
    encoder.commit();
    let message = encoder.wait_until_completed().unwrap_err().to_string();
    assert!(message.contains("id 70"), "{message}");
    encoder.wait_until_completed().unwrap();
}
