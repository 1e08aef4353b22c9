//! Layers of a model as they are recorded: fused launches, captured lists and replays.

use mlx_native::{
    Activation, Activations, AttentionParams, CommandEncoder, DType, DeviceOptions, GgmlType, KvCacheParams, MlxBuffer,
    MlxDevice, RmsNormParams, RopeParams, RopeStyle, Weight,
};

use crate::{device, same_bits};

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
