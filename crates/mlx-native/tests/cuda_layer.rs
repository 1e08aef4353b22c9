//! The products of a layer that run as one launch, which takes a GPU of its own: other tests' devices would keep it from running.
#![cfg(feature = "cuda")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use conformance::generate::{Scales, WeightData, normals, rng};
use mlx_native::GgmlType::{self, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0};
use mlx_native::{
    Activation, CommandEncoder, DType, MlxBuffer, MlxDevice, MlxError, RmsNormParams, Weight, WeightFormat,
};

/// Widths of a layer, and its formats: of the output product, gate and up, down, and those of queries, keys and values.
#[derive(Clone, Copy, Debug)]
struct Shape {
    hidden: usize,
    feed: usize,
    heads: usize,
    next: &'static [usize],
    formats: [GgmlType; 4],
    activation: Activation,
}

const SHAPES: [Shape; 7] = [
    Shape {
        hidden: 4096,
        feed: 14336,
        heads: 4096,
        next: &[4096, 1024, 1024],
        formats: [Q4_K; 4],
        activation: Activation::Silu,
    },
    Shape {
        hidden: 3072,
        feed: 8192,
        heads: 4096,
        next: &[3072, 1024, 1000],
        formats: [Q4_K, Q4_K, Q6_K, Q4_K],
        activation: Activation::GeluTanh,
    },
    // Rows that need not be cut; fewer groups of rows than blocks, and a last one that is not whole.
    Shape {
        hidden: 3072,
        feed: 4096,
        heads: 3072,
        next: &[1, 40],
        formats: [Q8_0, Q4_0, Q5_K, Q8_0],
        activation: Activation::Silu,
    },
    // An odd number of units, whose last slice is shorter; an output head.
    Shape {
        hidden: 2816,
        feed: 11008,
        heads: 2816,
        next: &[40_000],
        formats: [Q4_0, Q4_0, Q4_0, Q6_K],
        activation: Activation::Silu,
    },
    // Five slices, whose blocks are not all of the GPU's.
    Shape {
        hidden: 2816,
        feed: 20480,
        heads: 2816,
        next: &[2816],
        formats: [Q4_K, Q4_0, Q4_K, Q4_0],
        activation: Activation::Silu,
    },
    Shape {
        hidden: 4096,
        feed: 12288,
        heads: 4096,
        next: &[4096, 1024],
        formats: [GgmlType::MXFP4, GgmlType::Q2_K, GgmlType::Q3_K, GgmlType::Q5_1],
        activation: Activation::Silu,
    },
    Shape {
        hidden: 4096,
        feed: 8192,
        heads: 4096,
        next: &[512],
        formats: [GgmlType::IQ4_XS, GgmlType::Q5_0, GgmlType::IQ4_NL, GgmlType::Q4_1],
        activation: Activation::Silu,
    },
];

/// What a layer begins with.
struct Content {
    /// Output, gate, up, down, and what the next layer begins with.
    weights: Vec<WeightData>,
    norms: [Vec<f32>; 2],
    /// Attention's output and the residual stream, then what is written: delta, normed, gate, up, and the next layer's.
    floats: Vec<Vec<f32>>,
}

impl Content {
    fn new(shape: Shape) -> Content {
        let Shape { hidden, feed, heads, next, formats, .. } = shape;
        let mut rng = rng(1, &format!("{shape:?}"));
        let [output, gate, down, after] = formats;
        let mut all = vec![(output, hidden, heads), (gate, feed, hidden), (gate, feed, hidden), (down, hidden, feed)];
        all.extend(next.iter().map(|n| (after, *n, hidden)));
        let mut weight =
            |(ty, n, k)| WeightData::random(WeightFormat::Ggml(ty), 1, n, k, Scales::Ordinary, &mut rng).unwrap();
        let weights = all.into_iter().map(&mut weight).collect();
        let norms = [0, 1].map(|_| normals(&mut rng, hidden, 1.0));
        let mut floats = vec![normals(&mut rng, heads, 1.0), normals(&mut rng, hidden, 1.0)];
        // What no kernel writes stays NaN.
        floats.extend([hidden, hidden, feed, feed].iter().chain(next).map(|len| vec![f32::NAN; *len]));
        Content { weights, norms, floats }
    }
}

struct Layer {
    shape: Shape,
    weights: Vec<Weight>,
    norms: [MlxBuffer; 2],
    floats: Vec<MlxBuffer>,
}

impl Layer {
    fn new(device: &MlxDevice, shape: Shape, content: &Content) -> Layer {
        let filled = |values: &Vec<f32>| {
            let mut buffer = device.alloc_buffer(4 * values.len(), DType::F32, vec![values.len()]).unwrap();
            buffer.as_mut_slice::<f32>().unwrap().copy_from_slice(values);
            buffer
        };
        Layer {
            shape,
            weights: content.weights.iter().map(|weight| weight.upload(device).unwrap()).collect(),
            norms: content.norms.each_ref().map(filled),
            floats: content.floats.iter().map(filled).collect(),
        }
    }

    fn record(&mut self, encoder: &mut CommandEncoder, each: &mut dyn FnMut(&mut CommandEncoder)) {
        let rows = RmsNormParams { rows: 1, dim: self.shape.hidden, eps: 1e-5 };
        let [attended, stream, delta, normed, gate, up, next @ ..] = &mut self.floats[..] else { panic!() };
        let [w_output, w_gate, w_up, w_down, w_next @ ..] = &self.weights[..] else { panic!() };
        encoder.matmul(attended, w_output, delta).unwrap();
        each(encoder);
        encoder.add_rms_norm(&stream.clone(), (delta, stream), &self.norms[0], normed, &rows).unwrap();
        each(encoder);
        encoder.matmul(normed, w_gate, gate).unwrap();
        each(encoder);
        encoder.matmul(normed, w_up, up).unwrap();
        each(encoder);
        encoder.gated_activation(self.shape.activation, &gate.clone(), up, gate).unwrap();
        each(encoder);
        encoder.matmul(gate, w_down, delta).unwrap();
        each(encoder);
        encoder.add_rms_norm(&stream.clone(), (delta, stream), &self.norms[1], normed, &rows).unwrap();
        each(encoder);
        for (weight, output) in w_next.iter().zip(next) {
            encoder.matmul(normed, weight, output).unwrap();
            each(encoder);
        }
    }

    fn results(&self) -> Vec<Vec<f32>> {
        self.floats.iter().map(|buffer| buffer.as_slice::<f32>().unwrap().to_vec()).collect()
    }

    fn restore(&mut self, content: &[Vec<f32>]) {
        for (buffer, values) in self.floats.iter_mut().zip(content) {
            buffer.as_mut_slice::<f32>().unwrap().copy_from_slice(values);
        }
    }
}

/// Few rows, for tools that slow a kernel down a hundredfold: rows that are cut into two slices, two formats whose sums of x take different room, and a norm before each.
const SMALL: Shape = Shape {
    hidden: 3072,
    feed: 6144,
    heads: 3072,
    next: &[16],
    formats: [Q4_K, Q4_K, GgmlType::Q2_K, Q4_K],
    activation: Activation::Silu,
};

/// The first device of a process alone has these launches: one test at a time.
fn device() -> Option<(MutexGuard<'static, ()>, MlxDevice)> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    match MlxDevice::cuda(0) {
        Ok(device) => Some((alone, device)),
        Err(MlxError::DeviceNotFound(why)) => {
            eprintln!("skipped: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Runs a layer as one list on each of the devices, so many times, and compares with its operations alone on the first, and each run with the one before. The last of
/// several times it is in the list twice: the second one's launch finds what the first one's has left.
fn compare(devices: &[&MlxDevice], shape: Shape, rounds: usize) {
    let content = Content::new(shape);
    let mut layer = Layer::new(devices[0], shape, &content);
    let mut encoder = devices[0].command_encoder().unwrap();
    layer.record(&mut encoder, &mut |encoder| encoder.commit_and_wait().unwrap());
    let expected = layer.results();
    for device in devices {
        let mut layer = Layer::new(device, shape, &content);
        let mut encoder = device.command_encoder().unwrap();
        let mut first: Option<Vec<Vec<f32>>> = None;
        for round in 0..rounds {
            layer.restore(&content.floats);
            layer.record(&mut encoder, &mut |_| ());
            if round > 0 && round + 1 == rounds {
                layer.record(&mut encoder, &mut |_| ());
                encoder.commit_and_wait().unwrap();
                assert!(layer.results().iter().flatten().all(|x| x.is_finite()), "{shape:?}");
                continue;
            }
            encoder.commit_and_wait().unwrap();
            let found = layer.results();
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let errors: f64 = found.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                let energy: f64 = expected.iter().map(|b| f64::from(*b).powi(2)).sum();
                assert!(errors <= 1e-9 * energy, "{shape:?}, round {round}, buffer {i}: {}", errors / energy);
            }
            let same = |first: &Vec<Vec<f32>>| {
                let bits = |all: &[Vec<f32>]| all.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
                bits(first) == bits(&found)
            };
            assert!(first.as_ref().is_none_or(same), "{shape:?}, round {round}");
            first = Some(found);
        }
    }
}

/// In one list they are one launch, which a second device of the process does not have; run again, and replayed, it gives the same bits.
#[test]
fn a_layers_products_are_those_that_its_operations_give_alone() {
    let Some((_alone, device)) = device() else { return };
    let second = MlxDevice::cuda(0).unwrap();
    for shape in SHAPES {
        compare(&[&device, &second], shape, 4);
    }
}

/// Ends in seconds under compute-sanitizer.
#[test]
fn a_small_layer_is_what_its_operations_give_alone() {
    let Some((_alone, device)) = device() else { return };
    compare(&[&device], SMALL, 1);
}
