//! The CUDA backend on the conformance table, where there is a GPU, and what it says where there is none.
#![cfg(feature = "cuda")]

use conformance::generate::{Scales, WeightData, normal, rng};
use conformance::{Outcome, Reference, Selection, Verdict, cases, run};
use mlx_native::{
    Activation, Activations, AffineFormat, AttentionParams, Binary, CommandEncoder, DType, DeviceOptions, GgmlType,
    KvCacheParams, MlxBuffer, MlxDevice, MlxError, RmsNormParams, RopeParams, RopeStyle, Weight, WeightFormat,
};

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

/// The operands of a layer of a model, and what recording it needs.
struct Layer {
    shape: Shape,
    cache: KvCacheParams,
    weights: [Weight; 7],
    /// normed, hidden, norm; q, k, v; attended, delta; gate, up; the norms of queries and keys; the caches.
    buffers: Vec<MlxBuffer>,
    positions: MlxBuffer,
}

/// What layers differ in.
#[derive(Clone, Copy, Debug)]
struct Shape {
    m: usize,
    start: usize,
    head_dim: usize,
    n_heads: usize,
    /// Whether queries and keys are normed.
    norms: bool,
    window: Option<usize>,
    /// Values of a row between the products, and of one between those of the feed-forward network.
    hidden: usize,
    feed: usize,
}

impl Shape {
    const fn new(m: usize, start: usize, head_dim: usize) -> Shape {
        Shape { m, start, head_dim, n_heads: 8, norms: false, window: None, hidden: 512, feed: 1024 }
    }
}

/// Buffers of a layer that are f32.
const FLOATS: usize = 12;

impl Layer {
    fn new(device: &MlxDevice, shape: Shape) -> Layer {
        let Shape { m, start, head_dim, n_heads, hidden, feed, .. } = shape;
        let n_kv_heads = 2;
        let cache = KvCacheParams { n_kv_heads, capacity: 1200, head_dim };
        let mut seed = 1u32;
        let mut next = move || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed >> 16
        };
        let weight = |n: usize, k: usize, next: &mut dyn FnMut() -> u32| {
            let mut blocks = device.alloc_buffer(n * k / 32 * 18, DType::U8, vec![n, k / 32, 18]).unwrap();
            for block in blocks.as_mut_slice::<u8>().unwrap().chunks_mut(18) {
                block.iter_mut().for_each(|byte| *byte = next() as u8);
                // d = 2^-8
                block[..2].copy_from_slice(&[0x00, 0x1c]);
            }
            Weight::ggml(GgmlType::Q4_0, n, k, blocks).unwrap()
        };
        let kv = n_kv_heads * head_dim;
        let heads = n_heads * head_dim;
        let shapes = [
            (heads, hidden),
            (kv, hidden),
            (kv, hidden),
            (hidden, heads),
            (feed, hidden),
            (feed, hidden),
            (hidden, feed),
        ];
        let weights = shapes.map(|(n, k)| weight(n, k, &mut next));
        let rows = [hidden, hidden, heads, kv, kv, heads, hidden, feed, feed].map(|len| m * len);
        let lens = [&rows[..2], &[hidden], &rows[2..], &[head_dim; 2]].concat();
        let mut buffers: Vec<MlxBuffer> = Vec::new();
        for len in lens {
            let mut buffer = device.alloc_buffer(len * 4, DType::F32, vec![len]).unwrap();
            buffer.as_mut_slice::<f32>().unwrap().iter_mut().for_each(|x| *x = next() as f32 / 65536.0 - 0.5);
            buffers.push(buffer);
        }
        for _ in 0..2 {
            let len = n_kv_heads * cache.capacity * head_dim;
            let mut buffer = device.alloc_buffer(len * 2, DType::F16, vec![len]).unwrap();
            // Halves from -1 to 1.
            let halves = buffer.as_mut_slice::<u16>().unwrap();
            halves.iter_mut().for_each(|x| *x = ((next() & 0x83ff) | 0x3800) as u16);
            buffers.push(buffer);
        }
        let mut positions = device.alloc_buffer(4 * m, DType::U32, vec![m]).unwrap();
        positions.as_mut_slice::<u32>().unwrap().iter_mut().enumerate().for_each(|(i, p)| *p = (start + i) as u32);
        Layer { shape, cache, weights, buffers, positions }
    }

    /// Records the layer; `each` is called after every operation.
    fn record(&mut self, encoder: &mut CommandEncoder, each: &mut dyn FnMut(&mut CommandEncoder)) {
        let (Shape { m, start, n_heads, norms, window, .. }, cache) = (self.shape, self.cache);
        let KvCacheParams { n_kv_heads, head_dim, .. } = cache;
        let [normed, hidden, norm, q, k, v, attended, delta, gate, up, q_norm, k_norm, k_cache, v_cache] =
            &mut self.buffers[..]
        else {
            panic!()
        };
        for (i, output) in [&mut *q, k, v].into_iter().enumerate() {
            encoder.matmul(normed, &self.weights[i], output).unwrap();
            each(encoder);
        }
        for (value, weight, n_heads) in [(&mut *q, q_norm, n_heads), (k, k_norm, n_kv_heads)] {
            if norms {
                let rows = RmsNormParams { rows: m * n_heads, dim: head_dim, eps: 1e-6 };
                encoder.rms_norm(&value.clone(), weight, value, &rows).unwrap();
                each(encoder);
            }
        }
        for (value, n_heads) in [(&mut *q, n_heads), (k, n_kv_heads)] {
            let params = RopeParams {
                n_tokens: m,
                n_heads,
                head_dim,
                n_rot: head_dim,
                base: 1e4,
                frequency_scale: 1.0,
                style: RopeStyle::NeoX,
            };
            encoder.rope(&value.clone(), &self.positions, None, value, &params).unwrap();
            each(encoder);
        }
        for (value, stored) in [(&*k, &mut *k_cache), (&*v, v_cache)] {
            encoder.store_kv(value, stored, &cache, start, m).unwrap();
            each(encoder);
        }
        let params = AttentionParams { cache, n_heads, n_tokens: m, start, scale: 0.1, window, soft_cap: None };
        encoder.attention(q, k_cache, v_cache, attended, &params).unwrap();
        each(encoder);
        encoder.matmul(attended, &self.weights[3], delta).unwrap();
        each(encoder);
        let rows = RmsNormParams { rows: m, dim: self.shape.hidden, eps: 1e-5 };
        encoder.add_rms_norm(&hidden.clone(), (delta, hidden), norm, normed, &rows).unwrap();
        each(encoder);
        encoder.matmul(normed, &self.weights[4], gate).unwrap();
        each(encoder);
        encoder.matmul(normed, &self.weights[5], up).unwrap();
        each(encoder);
        encoder.gated_activation(Activation::Silu, &gate.clone(), up, gate).unwrap();
        each(encoder);
        encoder.matmul(gate, &self.weights[6], delta).unwrap();
        each(encoder);
    }

    /// Makes the content what `results` gave.
    fn restore(&mut self, mut floats: &[f32], mut halves: &[u16]) {
        for buffer in &mut self.buffers[..FLOATS] {
            let to = buffer.as_mut_slice::<f32>().unwrap();
            to.copy_from_slice(floats.split_off(..to.len()).unwrap());
        }
        for buffer in &mut self.buffers[FLOATS..] {
            let to = buffer.as_mut_slice::<u16>().unwrap();
            to.copy_from_slice(halves.split_off(..to.len()).unwrap());
        }
    }

    /// The content of all buffers, the caches as bits.
    fn results(&self) -> (Vec<f32>, Vec<u16>) {
        let floats = self.buffers[..FLOATS].iter().flat_map(|buffer| buffer.as_slice::<f32>().unwrap().to_vec());
        let halves = self.buffers[FLOATS..].iter().flat_map(|buffer| buffer.as_slice::<u16>().unwrap().to_vec());
        (floats.collect(), halves.collect())
    }
}

/// In one list some operations run as one launch; each in a list of its own they run alone.
#[test]
fn a_layer_gives_what_its_operations_give_alone() {
    for options in [DeviceOptions::default(), DeviceOptions { batch_invariant: true, ..DeviceOptions::default() }] {
        let Some(device) = device(options) else { return };
        let plain = [(1, 0, 64), (1, 700, 128), (1, 1100, 64), (3, 1100, 64), (7, 500, 256), (20, 300, 128)]
            .map(|(m, start, head_dim)| Shape::new(m, start, head_dim));
        let others = [
            Shape { norms: true, ..Shape::new(1, 63, 128) },
            Shape { norms: true, n_heads: 4, window: Some(100), ..Shape::new(1, 640, 256) },
            Shape { n_heads: 6, ..Shape::new(1, 129, 64) },
            Shape { norms: true, n_heads: 6, ..Shape::new(2, 129, 64) },
            // Rows that end 32 or 64 values behind whole units of 256, with two, three and eight of those.
            Shape { hidden: 576, feed: 1536, ..Shape::new(1, 129, 64) },
            Shape { hidden: 800, feed: 2080, ..Shape::new(1, 129, 64) },
        ];
        for shape in plain.into_iter().chain(others) {
            let mut alone = Layer::new(&device, shape);
            let mut encoder = device.command_encoder().unwrap();
            alone.record(&mut encoder, &mut |encoder| encoder.commit_and_wait().unwrap());
            let (floats, halves) = alone.results();
            let mut together = Layer::new(&device, shape);
            let (initial, initial_halves) = together.results();
            // The third run is a replay.
            for round in 0..3 {
                together.restore(&initial, &initial_halves);
                together.record(&mut encoder, &mut |_| ());
                encoder.commit_and_wait().unwrap();
                let (found, found_halves) = together.results();
                let errors: f64 = found.iter().zip(&floats).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                let energy: f64 = floats.iter().map(|b| f64::from(*b).powi(2)).sum();
                assert!(errors / energy < 1e-9, "{shape:?}, round {round}: {}", errors / energy);
                assert!(!options.batch_invariant || same_bits(&found, &floats), "{shape:?}, round {round}");
                let differ = found_halves.iter().zip(&halves).filter(|(a, b)| a.abs_diff(**b) > 1).count();
                assert_eq!(differ, 0, "{shape:?}, round {round}");
            }
        }
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Whole layers, whose launches differ for one token and for several.
#[test]
fn invariant_tokens_of_a_layer_do_not_depend_on_others() {
    for activations in [Activations::Auto, Activations::Exact] {
        let options = DeviceOptions { activations, batch_invariant: true, ..DeviceOptions::default() };
        let Some(device) = device(options) else { return };
        for shape in [
            Shape::new(11, 60, 64),
            Shape { norms: true, ..Shape::new(6, 700, 128) },
            Shape { norms: true, n_heads: 4, window: Some(100), ..Shape::new(3, 640, 256) },
            Shape { hidden: 576, feed: 1536, ..Shape::new(4, 1100, 64) },
        ] {
            let mut encoder = device.command_encoder().unwrap();
            let mut several = Layer::new(&device, shape);
            let (initial, mut halves) = several.results();
            several.record(&mut encoder, &mut |_| ());
            encoder.commit_and_wait().unwrap();
            let lens: Vec<_> = several.buffers[..FLOATS].iter().map(|b| b.as_slice::<f32>().unwrap().len()).collect();
            for token in 0..shape.m {
                let mut one = Layer::new(&device, Shape { m: 1, start: shape.start + token, ..shape });
                let (mut floats, mut at) = (Vec::new(), 0);
                for (i, len) in lens.iter().enumerate() {
                    // Norms are of all tokens.
                    let shared = [2, 10, 11].contains(&i);
                    let (first, count) = if shared { (0, *len) } else { (token * len / shape.m, len / shape.m) };
                    floats.extend_from_slice(&initial[at + first..][..count]);
                    at += len;
                }
                one.restore(&floats, &halves);
                one.record(&mut encoder, &mut |_| ());
                encoder.commit_and_wait().unwrap();
                halves = one.results().1;
                for (i, (found, expected)) in one.buffers.iter().zip(&several.buffers).take(FLOATS).enumerate() {
                    let (found, expected) = (found.as_slice::<f32>().unwrap(), expected.as_slice::<f32>().unwrap());
                    let first = if expected.len() == found.len() { 0 } else { token * found.len() };
                    let expected = &expected[first..][..found.len()];
                    assert!(same_bits(found, expected), "{activations:?}, {shape:?}, token {token}, buffer {i}");
                }
            }
            assert_eq!(halves, several.results().1, "{shape:?}");
        }
    }
}

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
    let (m, n, k) = (512, 71_936, 2048);
    let mut rng = rng(1, "shared tiles");
    let x: Vec<f32> = (0..m * k).map(|_| normal(&mut rng)).collect();
    let format = WeightFormat::Ggml(GgmlType::Q4_0);
    let weight = WeightData::random(format, 1, n, k, Scales::Ordinary, &mut rng).unwrap();
    // Twice, as what says that a part is there must be taken back.
    for found in products(&device, &x, &[&weight, &weight]) {
        let some =
            |values: &[f32], width: usize| [0, 255, 511].map(|row| values[row * width..][..width].to_vec()).concat();
        assert!(found.iter().all(|value| value.is_finite()));
        let share = error_share(&some(&found, n), &some(&x, k), &weight);
        assert!(share < 1e-6, "{share}");
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
    for (ty, k) in short.into_iter().chain(even) {
        for (m, n) in [(40, 328), (100, 72), (260, 648)] {
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
