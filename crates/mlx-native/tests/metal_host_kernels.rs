//! Kernels of the Metal backend that the conformance table does not reach by itself, run by metal-host with all checks on.
#![cfg(feature = "metal-host")]

use conformance::generate::{Scales, WeightData, normals, rng};
use half::bf16;
use mlx_native::{
    Activation, AffineFormat, AttentionParams, DType, DeviceOptions, GgmlQuantizedMatmulParams, GgmlType,
    KernelRegistry, KvCacheParams, MlxBuffer, MlxDevice, MlxError, QuantizedMatmulParams, Result, RopeParams,
    RopeStyle, WeightFormat, dispatch_quantized_matmul_simd_bf16, quantized_matmul_ggml, quantized_matmul_simd,
};

/// The device with tensor operations, unless this machine has no C++ compiler.
fn device() -> Option<MlxDevice> {
    match MlxDevice::by_name("metal-host:tensor", DeviceOptions::default()) {
        Ok(device) => Some(device),
        Err(MlxError::DeviceNotFound(why)) => {
            eprintln!("skipped: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn upload<T: bytemuck::Pod>(device: &MlxDevice, dtype: DType, values: &[T]) -> MlxBuffer {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let mut buffer = device.alloc_buffer(bytes.len(), dtype, vec![bytes.len() / dtype.size_of()]).unwrap();
    buffer.as_mut_slice::<u8>().unwrap().copy_from_slice(bytes);
    buffer
}

fn nmse(found: &[f32], expected: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let errors: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    errors / expected.iter().map(|v| square(f64::from(*v))).sum::<f64>()
}

/// What each device computes; the reference comes last.
fn both<T>(run: impl Fn(&MlxDevice) -> Result<T>) -> Option<[T; 2]> {
    let device = device()?;
    Some([run(&device).unwrap(), run(&MlxDevice::reference().unwrap()).unwrap()])
}

/// A product by the kernel of that name (on the reference by its own).
fn forced(ty: GgmlType, [m, n, k]: [usize; 3], scale: f32, kernel: &str) -> Option<f64> {
    let mut rng = rng(3, kernel);
    let weight = WeightData::random(ty.into(), 1, n, k, Scales::Ordinary, &mut rng).unwrap();
    let x = normals(&mut rng, m * k, scale);
    let [found, expected] = both(|device| {
        let mut registry = KernelRegistry::new();
        if device.kind() == mlx_native::DeviceKind::Metal {
            registry.force(kernel);
        }
        let mut y = device.alloc_buffer(m * n * 4, DType::F32, vec![m, n])?;
        let params = GgmlQuantizedMatmulParams { m: m as u32, n: n as u32, k: k as u32, ggml_type: ty };
        let (x, w) = (upload(device, DType::F32, &x), upload(device, DType::U8, &weight.data.bytes));
        let mut encoder = device.command_encoder()?;
        quantized_matmul_ggml(&mut encoder, &mut registry, device, &x, &w, &mut y, &params)?;
        encoder.commit_and_wait()?;
        Ok(y.as_slice::<f32>()?.to_vec())
    })?;
    Some(nmse(&found, &expected))
}

#[test]
fn every_tile_kernel_is_right_at_every_edge_and_magnitude() {
    for (kernel, bound) in
        [("mm", 1e-6), ("mm_tensor", 1e-6), ("mm_large", 1e-6), ("mm_large_tensor", 1e-6), ("mm_f32", 1e-10)]
    {
        for ty in [GgmlType::Q6_K, GgmlType::F16, GgmlType::Q8_0] {
            let k = if ty == GgmlType::F16 { 104 } else { 512 };
            for (m, n, scale) in [(8, 65, 1.0), (9, 1, 1e6), (33, 130, 1e30), (129, 63, 1.0), (140, 64, 1e-30)] {
                let Some(error) = forced(ty, [m, n, k], scale, kernel) else { return };
                assert!(error <= bound, "{kernel} {ty} m={m} n={n} k={k} x{scale:e}: NMSE {error:e}");
                println!("{kernel} {ty} m={m} n={n} k={k} x{scale:e}: NMSE {error:.1e}");
            }
        }
    }
}

/// y by MLX's order of accumulation, in f32: see qmv.metal.
fn in_mlx_order(
    format: AffineFormat,
    [m, n, k]: [usize; 3],
    weight: &WeightData,
    x: &[f32],
    values: usize,
) -> Vec<f32> {
    let (bits, group) = (format.bits as usize, format.group_size as usize);
    let side = |array: &conformance::Array| -> Vec<f32> { array.values().into_iter().map(|v| v as f32).collect() };
    let (scales, biases) = (side(weight.scales.as_ref().unwrap()), side(weight.biases.as_ref().unwrap()));
    let row_bytes = k * bits / 8;
    let code = |j: usize, l: usize| {
        let byte = weight.data.bytes[j * row_bytes + l * bits / 8];
        f32::from(if bits == 4 { (byte >> (4 * (l % 2))) & 15 } else { byte })
    };
    // Fours of 4-bit codes are added up first.
    let sum = |terms: &[f32]| -> f32 {
        terms
            .chunks(if bits == 4 { 4 } else { 1 })
            .fold(0.0, |sum, four| sum + four.iter().skip(1).fold(four[0], |a, b| a + b))
    };
    let mut y = Vec::new();
    for x in x.chunks(k).take(m) {
        for j in 0..n {
            let mut lanes = [0.0f32; 32];
            for l in (0..k).step_by(values) {
                let inputs = &x[l..l + values];
                let products: Vec<f32> = (0..values).map(|i| inputs[i] * code(j, l + i)).collect();
                let at = j * (k / group) + l / group;
                lanes[l / values % 32] += scales[at] * sum(&products) + sum(inputs) * biases[at];
            }
            let mut stride = 1;
            while stride < 32 {
                (0..32).step_by(2 * stride).for_each(|i| lanes[i] += lanes[i + stride]);
                stride *= 2;
            }
            y.push(lanes[0]);
        }
    }
    y
}

#[test]
fn the_fast_affine_kernel_adds_in_the_order_of_mlx() {
    let Some(device) = device() else { return };
    for (bits, group_size, m, k) in [(4, 64, 1, 512), (8, 32, 3, 768), (4, 8, 12, 256), (8, 128, 1, 1024)] {
        let (n, scale_dtype) = (24, DType::BF16);
        let format = AffineFormat { bits, group_size, scale_dtype };
        let mut rng = rng(1, &format!("{bits} {group_size}"));
        let weight = WeightData::random(WeightFormat::Affine(format), 1, n, k, Scales::Ordinary, &mut rng).unwrap();
        let x: Vec<f32> = normals(&mut rng, m * k, 1.0).into_iter().map(|v| bf16::from_f32(v).to_f32()).collect();
        let halves: Vec<bf16> = x.iter().map(|v| bf16::from_f32(*v)).collect();
        let params = QuantizedMatmulParams { m: m as u32, n: n as u32, k: k as u32, group_size, bits };
        let side = |array: &Option<conformance::Array>| upload(&device, scale_dtype, &array.as_ref().unwrap().bytes);
        let (scales, biases) = (side(&weight.scales), side(&weight.biases));
        let w = upload(&device, DType::U32, &weight.data.bytes);
        let mut registry = KernelRegistry::new();
        let mut encoder = device.command_encoder().unwrap();
        registry.force("qmv_8");
        let input = upload(&device, DType::F32, &x);
        let y =
            quantized_matmul_simd(&mut encoder, &mut registry, &device, &input, &w, &scales, &biases, &params).unwrap();
        registry.clear_force();
        let input = upload(&device, DType::BF16, &halves);
        let short = dispatch_quantized_matmul_simd_bf16(
            &mut encoder,
            &mut registry,
            &device,
            &input,
            &w,
            &scales,
            &biases,
            &params,
        )
        .unwrap();
        encoder.commit_and_wait().unwrap();
        assert_eq!(y.as_slice::<f32>().unwrap(), in_mlx_order(format, [m, n, k], &weight, &x, 8));
        if bits == 8 || (k % 512 == 0 && group_size % 16 == 0) {
            let values = if bits == 4 { 16 } else { 8 };
            let expected: Vec<bf16> =
                in_mlx_order(format, [m, n, k], &weight, &x, values).into_iter().map(bf16::from_f32).collect();
            assert_eq!(short.as_slice::<u16>().unwrap(), bytemuck::cast_slice::<_, u16>(&expected));
        }
    }
}

fn attention(
    dtype: DType,
    [n_heads, n_kv_heads, head_dim]: [usize; 3],
    [start, n_tokens, capacity]: [usize; 3],
) -> Option<f64> {
    let mut rng = rng(5, "attention");
    let q = normals(&mut rng, n_tokens * n_heads * head_dim, 1.0);
    let [k, v] = [0, 1].map(|_| normals(&mut rng, capacity * n_kv_heads * head_dim, 1.0));
    let cache = KvCacheParams { n_kv_heads, capacity, head_dim };
    let scale = 1.0 / (head_dim as f32).sqrt();
    let params = AttentionParams { cache, n_heads, n_tokens, start, scale, window: None, soft_cap: None };
    let [found, expected] = both(|device| {
        let stored = |values: &[f32]| -> Result<MlxBuffer> {
            // The cache is full to its end, beyond what the tokens may see.
            let mut encoder = device.command_encoder()?;
            let bytes = values.len() * dtype.size_of();
            let mut buffer = device.alloc_buffer(bytes, dtype, vec![values.len()])?;
            encoder.store_kv(&upload(device, DType::F32, values), &mut buffer, &cache, 0, capacity)?;
            encoder.commit_and_wait()?;
            Ok(buffer)
        };
        let mut y = device.alloc_buffer(q.len() * 4, DType::F32, vec![q.len()])?;
        let mut encoder = device.command_encoder()?;
        encoder.attention(&upload(device, DType::F32, &q), &stored(&k)?, &stored(&v)?, &mut y, &params)?;
        encoder.commit_and_wait()?;
        Ok(y.as_slice::<f32>()?.to_vec())
    })?;
    Some(nmse(&found, &expected))
}

#[test]
fn attention_takes_wide_heads_and_long_caches() {
    for (dtype, heads, cache) in [
        (DType::F16, [2, 1, 600], [3, 2, 9]),
        (DType::F32, [1, 1, 1030], [5, 1, 6]),
        // Several parts, of one and of several groups of rows; the end of the cache within a group of eight positions.
        (DType::F16, [8, 2, 64], [1099, 1, 1101]),
        (DType::F16, [6, 2, 128], [700, 5, 707]),
        (DType::F16, [3, 1, 256], [260, 40, 300]),
        (DType::F16, [4, 4, 72], [0, 70, 70]),
    ] {
        let Some(error) = attention(dtype, heads, cache) else { return };
        assert!(error <= 1e-6, "{dtype} {heads:?} {cache:?}: NMSE {error:e}");
        println!("{dtype} {heads:?} {cache:?}: NMSE {error:.1e}");
    }
}

#[test]
fn rotation_takes_more_pairs_than_one_launch_has() {
    let (n_tokens, n_heads, head_dim, n_rot) = (3, 2, 2600, 2502);
    let mut rng = rng(5, "rope");
    let x = normals(&mut rng, n_tokens * n_heads * head_dim, 1.0);
    for style in [RopeStyle::Interleaved, RopeStyle::NeoX] {
        for in_place in [false, true] {
            let params = RopeParams { n_tokens, n_heads, head_dim, n_rot, base: 10_000.0, frequency_scale: 1.0, style };
            let Some([found, expected]) = both(|device| {
                let input = upload(device, DType::F32, &x);
                let mut output =
                    if in_place { input.clone() } else { upload(device, DType::F32, &vec![f32::NAN; x.len()]) };
                let positions = upload(device, DType::U32, &[0u32, 17, 100_000]);
                let mut encoder = device.command_encoder()?;
                encoder.rope(&input, &positions, None, &mut output, &params)?;
                encoder.commit_and_wait()?;
                Ok(output.as_slice::<f32>()?.to_vec())
            }) else {
                return;
            };
            let error = nmse(&found, &expected);
            assert!(error <= 1e-10, "{style:?} in place {in_place}: NMSE {error:e}");
        }
    }
}

/// What lies between two norms of a layer, recorded as a model does, in place: the launches that several operations share.
#[test]
fn a_layer_in_shared_launches_is_right() {
    let (n_kv_heads, head_dim, capacity) = (2, 48, 40);
    let cache = KvCacheParams { n_kv_heads, capacity, head_dim };
    for (m, style, activation, ty) in [
        (1, RopeStyle::NeoX, Activation::Silu, GgmlType::Q4_K),
        (3, RopeStyle::Interleaved, Activation::GeluTanh, GgmlType::Q4_K),
        (8, RopeStyle::NeoX, Activation::Silu, GgmlType::F16),
    ] {
        let mut rng = rng(7, "layer");
        let (hidden, feed) = (256, 72);
        let x = normals(&mut rng, m * hidden, 1.0);
        let [q, k, v] = [3, 1, 1].map(|heads| normals(&mut rng, m * heads * n_kv_heads * head_dim, 1.0));
        let [gate, up] =
            [0, 1].map(|_| WeightData::random(ty.into(), 1, feed, hidden, Scales::Ordinary, &mut rng).unwrap());
        let Some([found, expected]) = both(|device| {
            let [x, q, k, v] = [&x, &q, &k, &v].map(|values| upload(device, DType::F32, values));
            let positions = upload(device, DType::I32, &(5..5 + m as i32).collect::<Vec<i32>>());
            let [mut k_cache, mut v_cache] =
                [0, 1].map(|_| device.alloc_buffer(n_kv_heads * capacity * head_dim * 2, DType::F16, vec![]).unwrap());
            let [g, mut u] = [0, 1].map(|_| device.alloc_buffer(m * feed * 4, DType::F32, vec![m, feed]).unwrap());
            let mut encoder = device.command_encoder()?;
            for (value, n_heads) in [(&q, 3 * n_kv_heads), (&k, n_kv_heads)] {
                let (n_rot, base, frequency_scale) = (32, 1e4, 1.0);
                let params = RopeParams { n_tokens: m, n_heads, head_dim, n_rot, base, frequency_scale, style };
                encoder.rope(value, &positions, None, &mut value.clone(), &params)?;
            }
            encoder.store_kv(&k, &mut k_cache, &cache, 5, m)?;
            encoder.store_kv(&v, &mut v_cache, &cache, 5, m)?;
            encoder.matmul(&x, &gate.upload(device)?, &mut g.clone())?;
            encoder.matmul(&x, &up.upload(device)?, &mut u)?;
            encoder.gated_activation(activation, &g, &u, &mut g.clone())?;
            encoder.commit_and_wait()?;
            let halves = |cache: &MlxBuffer| -> Result<Vec<f32>> {
                Ok(cache.as_slice::<u16>()?.iter().map(|bits| half::f16::from_bits(*bits).to_f32()).collect())
            };
            let floats = [&q, &k, &g, &u].map(|buffer| buffer.as_slice::<f32>().unwrap().to_vec());
            Ok((floats, [halves(&k_cache)?, halves(&v_cache)?]))
        }) else {
            return;
        };
        for (i, (found, expected)) in found.0.iter().zip(&expected.0).enumerate() {
            assert!(nmse(found, expected) <= 1e-10, "m={m} output {i}: NMSE {:e}", nmse(found, expected));
        }
        // A key may be rounded the other way.
        assert!(nmse(&found.1[0], &expected.1[0]) <= 1e-9, "m={m} keys: {:e}", nmse(&found.1[0], &expected.1[0]));
        assert_eq!(found.1[1], expected.1[1], "m={m} values");
    }
}
