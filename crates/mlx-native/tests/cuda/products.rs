//! Products of shapes that the table does not have: tall, long, ragged, several of one input, rows that must not depend on others.

use conformance::generate::{Scales, WeightData, normal, rng};
use mlx_native::{Activations, AffineFormat, DType, DeviceOptions, GgmlType, MlxDevice, Weight, WeightFormat};

use crate::{device, same_bits};

/// Rows that several blocks share: two with two units of 256 values a warp, four with one.
#[test]
fn rows_of_any_length_are_summed() {
    let Some(device) = device(DeviceOptions::default()) else { return };
    let reference = MlxDevice::reference().unwrap();
    let n = 200;
    for (m, k) in [(1, 8448), (1, 14336), (3, 14336), (8, 14336), (4, 16384), (1, 28672), (1, 40960)] {
        let product = |device: &MlxDevice| {
            let mut state = k as u32;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state >> 16
            };
            let mut blocks = device.alloc_buffer(n * k / 32 * 18, DType::U8, vec![n, k / 32, 18]).unwrap();
            for block in blocks.as_mut_slice::<u8>().unwrap().chunks_mut(18) {
                block.iter_mut().for_each(|byte| *byte = next() as u8);
                block[..2].copy_from_slice(&[0x00, 0x1c]);
            }
            let weight = Weight::ggml(GgmlType::Q4_0, n, k, blocks).unwrap();
            let mut x = device.alloc_buffer(m * k * 4, DType::F32, vec![m, k]).unwrap();
            x.as_mut_slice::<f32>().unwrap().iter_mut().for_each(|x| *x = next() as f32 / 65536.0 - 0.5);
            let mut y = device.alloc_buffer(m * n * 4, DType::F32, vec![m, n]).unwrap();
            let mut encoder = device.command_encoder().unwrap();
            encoder.matmul(&x, &weight, &mut y).unwrap();
            encoder.commit_and_wait().unwrap();
            y.as_slice::<f32>().unwrap().to_vec()
        };
        let (found, expected) = (product(&device), product(&reference));
        let errors: f64 = found.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let energy: f64 = expected.iter().map(|b| f64::from(*b).powi(2)).sum();
        let bound = if m > 4 { 1e-6 } else { 1e-10 };
        assert!(errors / energy < bound, "m = {m}, k = {k}: {}", errors / energy);
    }
}

/// The products of the rows `x` with each weight, `[m, n]`, recorded one after the other in one list.
fn products(device: &MlxDevice, x: &[f32], weights: &[&WeightData]) -> Vec<Vec<f32>> {
    let filled = |values: &[f32]| {
        let mut buffer = device.alloc_buffer(4 * values.len(), DType::F32, vec![values.len()]).unwrap();
        buffer.as_mut_slice::<f32>().unwrap().copy_from_slice(values);
        buffer
    };
    let input = filled(x);
    let uploaded: Vec<Weight> = weights.iter().map(|weight| weight.upload(device).unwrap()).collect();
    // What no kernel writes stays NaN.
    let mut outputs: Vec<_> = weights.iter().map(|w| filled(&vec![f32::NAN; x.len() / w.k * w.n])).collect();
    let mut encoder = device.command_encoder().unwrap();
    for (weight, output) in uploaded.iter().zip(&mut outputs) {
        encoder.matmul(&input, weight, output).unwrap();
    }
    encoder.commit_and_wait().unwrap();
    outputs.iter().map(|output| output.as_slice::<f32>().unwrap().to_vec()).collect()
}

/// The error's share of the energy of `x` times the weight, decoded; NaN where something was not written.
fn error_share(found: &[f32], x: &[f32], weight: &WeightData) -> f64 {
    let values = weight.decode().unwrap();
    let rows = x.chunks(weight.k).flat_map(|row| values.chunks(weight.k).map(move |w| (row, w)));
    let (mut errors, mut energy) = (0.0, 0.0);
    for ((row, w), found) in rows.zip(found) {
        let y: f64 = row.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        errors += (y - f64::from(*found)).powi(2);
        energy += y * y;
    }
    errors / energy
}

/// Products of one input, which may run as one launch, in formats and widths whose rows begin at any multiple of two bytes. Some values of a row are
/// hundreds of times as large as the others, as a model's are.
#[test]
fn products_of_one_input_are_those_of_the_decoded_weights() {
    use GgmlType::{IQ4_NL, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q6_K, Q8_0};
    let Some(device) = device(DeviceOptions::default()) else { return };
    for (ty, k) in
        [(Q4_0, 640), (Q4_1, 576), (Q5_0, 640), (Q5_1, 1024), (Q8_0, 640), (IQ4_NL, 576), (Q4_K, 768), (Q6_K, 2048)]
    {
        for ns in [&[1024, 256, 200][..], &[640, 640]] {
            for m in [1, 2, 4, 6] {
                let mut rng = rng(1, &format!("{ty:?} {ns:?} {m}"));
                let size = |i: usize| if i % 97 == 13 { 300.0 } else { 1.0 };
                let x: Vec<f32> = (0..m * k).map(|i| normal(&mut rng) * size(i)).collect();
                let mut weight = |n| WeightData::random(WeightFormat::Ggml(ty), 1, n, k, Scales::Ordinary, &mut rng);
                let weights: Vec<WeightData> = ns.iter().map(|&n| weight(n).unwrap()).collect();
                let found = products(&device, &x, &weights.iter().collect::<Vec<_>>());
                for (i, (found, weight)) in found.iter().zip(&weights).enumerate() {
                    let share = error_share(found, &x, weight);
                    // Up to four rows are as good as f32, but for the smallest of their values.
                    assert!(share < if m > 4 { 1e-6 } else { 1e-9 }, "{ty:?}, k {k}, {i} of {ns:?}, m {m}: {share}");
                }
            }
        }
    }
}

/// More rows than blocks begin with, so that they draw the rest: the output heads of models. Before it the same kernel runs for a few rows, of which
/// nothing is drawn.
#[test]
fn every_row_of_a_tall_matrix_is_computed() {
    use GgmlType::{Q4_0, Q4_K, Q6_K, Q8_0};
    let Some(device) = device(DeviceOptions::default()) else { return };
    for (ty, n, k) in [(Q8_0, 262_144, 640), (Q4_0, 49_152, 576), (Q4_K, 60_000, 1024), (Q6_K, 128_256, 256)] {
        for m in [1, 6] {
            let mut rng = rng(1, &format!("{ty:?} {n} {k} {m}"));
            let x: Vec<f32> = (0..m * k).map(|_| normal(&mut rng)).collect();
            let mut weight = |n| WeightData::random(WeightFormat::Ggml(ty), 1, n, k, Scales::Ordinary, &mut rng);
            let [few, many] = [200, n].map(|n| weight(n).unwrap());
            let found = products(&device, &x, &[&few, &few, &many]);
            for (found, weight) in found.iter().zip([&few, &few, &many]) {
                let share = error_share(found, &x, weight);
                assert!(share < if m > 4 { 1e-6 } else { 1e-9 }, "{ty:?} [{n}, {k}], m {m}: {share}");
            }
        }
    }
}

/// So many tiles that Hopper's blocks share some of them first and add up their parts under the products of the others: prompts on output heads. Rows
/// of both tiles of the input are compared.
#[test]
fn tiles_that_blocks_share_are_summed() {
    let Some(device) = device(DeviceOptions::default()) else { return };
    let (m, n) = (512, 71_936);
    // Whole rows, and ragged ones of eight and of sixteen sorts.
    for (ty, k) in [(GgmlType::Q4_0, 2048), (GgmlType::Q8_0, 2080), (GgmlType::MXFP4, 2080)] {
        let mut rng = rng(1, "shared tiles");
        let x: Vec<f32> = (0..m * k).map(|_| normal(&mut rng)).collect();
        let weight = WeightData::random(WeightFormat::Ggml(ty), 1, n, k, Scales::Ordinary, &mut rng).unwrap();
        // Twice, as what says that a part is there must be taken back.
        for found in products(&device, &x, &[&weight, &weight]) {
            let some = |values: &[f32], width: usize| {
                [0, 255, 511].map(|row| values[row * width..][..width].to_vec()).concat()
            };
            assert!(found.iter().all(|value| value.is_finite()));
            let share = error_share(&some(&found, n), &some(&x, k), &weight);
            assert!(share < 1e-6, "{ty:?}, k {k}: {share}");
        }
    }
}

/// Products of many tokens with experts of their own that share their lists give what each gives alone, bit for bit, and the row of a slot without an expert is NaN in all of them.
#[test]
fn routed_products_of_one_input_are_those_alone() {
    let Some(device) = device(DeviceOptions::default()) else { return };
    let (m, k, experts, top) = (100, 512, 8, 3);
    let mut rng = rng(1, "routed together");
    let x: Vec<f32> = (0..m * k).map(|_| normal(&mut rng)).collect();
    let input = device.buffer_from_slice(&x, DType::F32, vec![m, k]).unwrap();
    for bad in [false, true] {
        let mut ids: Vec<u32> = (0..m * top).map(|slot| (slot * 7 % experts) as u32).collect();
        if bad {
            ids[17] = experts as u32;
        }
        let ids = device.buffer_from_slice(&ids, DType::U32, vec![m, top]).unwrap();
        let shapes = [(GgmlType::Q4_0, 192), (GgmlType::Q4_0, 130), (GgmlType::Q4_0, 64), (GgmlType::MXFP4, 96)];
        let weights = shapes.map(|(ty, n)| {
            let data = WeightData::random(WeightFormat::Ggml(ty), experts, n, k, Scales::Ordinary, &mut rng).unwrap();
            data.upload(&device).unwrap()
        });
        let run = |lists: &[&[usize]]| {
            let mut outputs = shapes.map(|(_, n)| {
                device.buffer_from_slice(&vec![7f32; m * top * n], DType::F32, vec![m * top, n]).unwrap()
            });
            for list in lists {
                let mut encoder = device.command_encoder().unwrap();
                for &i in *list {
                    encoder.matmul_id(&input, &weights[i], &ids, &mut outputs[i], None).unwrap();
                }
                assert_eq!(encoder.commit_and_wait().is_err(), bad);
            }
            outputs.map(|output| output.as_slice::<f32>().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>())
        };
        let together = run(&[&[0, 1, 2, 3]]);
        assert_eq!(together, run(&[&[0], &[1], &[2], &[3]]));
        for (found, (_, n)) in together.iter().zip(shapes) {
            for (slot, row) in found.chunks(n).enumerate() {
                assert!(
                    row.iter().all(|bits| f32::from_bits(*bits).is_nan() == (bad && slot == 17)),
                    "{n}, slot {slot}"
                );
            }
        }
    }
}

/// Rows of weights that start on no multiple of 16 bytes, some on words, some between two, and end within a unit of 256 values: Hopper's tiles of every width.
#[test]
fn rows_that_start_anywhere_are_multiplied() {
    use GgmlType::{IQ4_NL, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q5_0, Q5_1, Q6_K, Q8_0};
    let Some(device) = device(DeviceOptions::default()) else { return };
    let short = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL];
    let short = short.map(|ty| [(ty, 544), (ty, 96), (ty, 928), (ty, 1056), (ty, 1088)]).concat();
    let even = [(MXFP4, 576), (MXFP4, 192), (MXFP4, 1088), (Q2_K, 768), (Q3_K, 768), (Q6_K, 768)];
    let odd = [(MXFP4, 544), (MXFP4, 96), (MXFP4, 1056), (MXFP4, 1120)];
    for (ty, k) in short.into_iter().chain(even).chain(odd) {
        // Eights of rows and sixteens; outputs that leave from registers and by copies.
        for (m, n) in [(40, 328), (40, 336), (100, 72), (100, 80), (260, 648), (270, 672)] {
            let mut rng = rng(1, &format!("{ty:?} {m} {n} {k}"));
            let x: Vec<f32> = (0..m * k).map(|_| normal(&mut rng)).collect();
            let format = WeightFormat::Ggml(ty);
            let weight = WeightData::random(format, 1, n, k, Scales::Ordinary, &mut rng).unwrap();
            for found in products(&device, &x, &[&weight, &weight]) {
                let share = error_share(&found, &x, &weight);
                assert!(share < 1e-6, "{ty:?} [{n}, {k}], m {m}: {share}");
            }
        }
    }
}

/// Rows whose largest exponents are in their first values, between, or in the last ones, which tiles multiply first: each feature is compared by itself.
#[test]
fn exponents_of_a_row_may_lie_far_apart() {
    let Some(device) = device(DeviceOptions::default()) else { return };
    let (m, n) = (260, 672);
    for k in [1056, 1088] {
        let mut rng = rng(1, &format!("exponents {k}"));
        let x: Vec<f32> = (0..m * k).map(|_| normal(&mut rng)).collect();
        let format = WeightFormat::Ggml(GgmlType::MXFP4);
        let mut weight = WeightData::random(format, 1, n, k, Scales::Ordinary, &mut rng).unwrap();
        let blocks = k / 32;
        for (i, block) in weight.data.bytes.chunks_mut(17).enumerate() {
            let (row, place) = (i / blocks, i % blocks);
            let largest = [0, blocks / 2, blocks - 1][row % 3];
            block[0] = if place == largest { 150 } else { 100 + (7 * place % 11) as u8 };
        }
        let found = products(&device, &x, &[&weight]).remove(0);
        for (feature, w) in weight.decode().unwrap().chunks(k).enumerate() {
            let (mut errors, mut energy) = (0.0, 0.0);
            for (row, found) in x.chunks(k).zip(found.chunks(n)) {
                let y: f64 = row.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                errors += (y - f64::from(found[feature])).powi(2);
                energy += y * y;
            }
            assert!(errors / energy < 1e-6, "k {k}, feature {feature}: {}", errors / energy);
        }
    }
}

/// A row's bits are those that it has among other numbers of rows, in another place and beside other products; rows beside it that are not finite change nothing.
#[test]
fn invariant_rows_do_not_depend_on_others() {
    use GgmlType::{IQ3_S, MXFP4, Q2_K, Q4_0, Q4_K, Q5_1, Q6_K, Q8_0};
    const ROWS: usize = 130;
    const COUNTS: [usize; 7] = [1, 2, 4, 5, 8, 9, 20];
    let affine = |bits| WeightFormat::Affine(AffineFormat { bits, group_size: 64, scale_dtype: DType::BF16 });
    // Whole rows, rows that start anywhere, that end within a unit, that several blocks share; and a format without kernels of its own.
    let ggml = [(Q4_0, 2048), (Q4_0, 2080), (Q4_0, 14336), (Q4_0, 8480), (Q8_0, 1088), (Q5_1, 4096), (Q4_K, 1024)];
    let more = [(Q6_K, 768), (MXFP4, 544), (MXFP4, 8192), (Q2_K, 1024), (IQ3_S, 512)];
    let ggml = ggml.into_iter().chain(more).map(|(ty, k)| (WeightFormat::Ggml(ty), k));
    for activations in [Activations::Auto, Activations::Exact] {
        let options = DeviceOptions { activations, batch_invariant: true, ..DeviceOptions::default() };
        let Some(device) = device(options) else { return };
        let bound = if activations == Activations::Exact { 1e-10 } else { 1e-6 };
        for (format, k) in ggml.clone().chain([(affine(4), 1024), (affine(8), 2560)]) {
            let mut rng = rng(1, &format!("{format:?} {k}"));
            let x: Vec<f32> = (0..ROWS * k).map(|_| normal(&mut rng)).collect();
            let mut weight = |n| WeightData::random(format, 1, n, k, Scales::Ordinary, &mut rng).unwrap();
            let weights = [200, 72].map(&mut weight);
            let all = weights.each_ref().map(|weight| products(&device, &x, &[weight]).remove(0));
            for (all, weight) in all.iter().zip(&weights) {
                let share = error_share(all, &x, weight);
                assert!(share < bound, "{format:?}, k {k}: {share}");
            }
            let compare = |x: &[f32], places: &[usize]| {
                let found = products(&device, x, &weights.each_ref());
                for ((found, all), n) in found.iter().zip(&all).zip([200, 72]) {
                    let alike = |(i, row): (usize, &usize)| same_bits(&found[i * n..][..n], &all[row * n..][..n]);
                    assert!(
                        places.iter().enumerate().filter(|(_, row)| **row < ROWS).all(alike),
                        "{activations:?}, {format:?}, k {k}, n {n}, rows {places:?}"
                    );
                }
            };
            for m in COUNTS {
                for first in [0, 3, 101] {
                    let places: Vec<usize> = (first..first + m).collect();
                    compare(&x[first * k..][..m * k], &places);
                }
            }
            let mut spoilt = x[..8 * k].to_vec();
            spoilt[2 * k + 7] = f32::NAN;
            spoilt[5 * k..6 * k].iter_mut().for_each(|value| *value *= 1e30);
            compare(&spoilt, &[0, 1, ROWS, 3, 4, ROWS, 6, 7]);
        }
        for (format, k) in [(WeightFormat::Ggml(Q4_0), 768), (WeightFormat::Ggml(Q4_0), 544), (affine(4), 2048)]
            .into_iter()
            .chain([(MXFP4, 2048), (Q6_K, 768), (Q8_0, 8192)].map(|(ty, k)| (WeightFormat::Ggml(ty), k)))
        {
            let (n, experts, top) = (72, 5, 2);
            let mut rng = rng(1, &format!("experts {format:?} {k}"));
            let x: Vec<f32> = (0..ROWS * k).map(|_| normal(&mut rng)).collect();
            let ids: Vec<u32> = (0..ROWS * top).map(|_| rng.u32(..experts as u32)).collect();
            let data = WeightData::random(format, experts, n, k, Scales::Ordinary, &mut rng).unwrap();
            let weight = data.upload(&device).unwrap();
            let run = |first: usize, m: usize| {
                let input = device.buffer_from_slice(&x[first * k..][..m * k], DType::F32, vec![m, k]).unwrap();
                let ids = device.buffer_from_slice(&ids[first * top..][..m * top], DType::U32, vec![m, top]).unwrap();
                let mut output = device.alloc_buffer(m * top * n * 4, DType::F32, vec![m * top, n]).unwrap();
                let mut encoder = device.command_encoder().unwrap();
                encoder.matmul_id(&input, &weight, &ids, &mut output, None).unwrap();
                encoder.commit_and_wait().unwrap();
                output.as_slice::<f32>().unwrap().to_vec()
            };
            let all = run(0, ROWS);
            for (m, first) in COUNTS.into_iter().flat_map(|m| [0, 3, 101].map(|first| (m, first))) {
                let expected = &all[first * top * n..][..m * top * n];
                assert!(same_bits(&run(first, m), expected), "{activations:?}, {format:?}, k {k}, {m} from {first}");
            }
        }
    }
}
