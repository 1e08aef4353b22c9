//! Programs written in the way of the published crate: open a device, make a registry and an encoder, allocate, fill, encode, commit and wait, read.
//!
//! Every function of the contract appears with its published signature; results are compared with the formula over decoded weights.

use half::{bf16, f16};
use mlx_native::format::affine::Groups;
use mlx_native::format::{dequantize_row, quantize_row};
use mlx_native::{
    AffineFormat, CapabilityQuery, CastDirection, CommandEncoder, DType, GgmlBatchedQuantizedMatmulInputStrides,
    GgmlBatchedQuantizedMatmulParams, GgmlQuantizedMatmulIdParams, GgmlQuantizedMatmulParams,
    GgmlQuantizedMatmulPerm021Params, GgmlType, IdMmScratch, KernelRegistry, MlxBuffer, MlxDevice, OpKind,
    QuantizedMatmulParams, cast,
};

/// What every program of the published crate begins with.
struct Program {
    device: MlxDevice,
    registry: KernelRegistry,
    encoder: CommandEncoder,
}

impl Program {
    /// One on each device that runs here.
    fn all() -> Vec<Program> {
        let devices = [MlxDevice::reference().unwrap(), MlxDevice::new().unwrap(), MlxDevice::cpu().unwrap()];
        let program = |device: MlxDevice| {
            let encoder = device.command_encoder().unwrap();
            Program { device, registry: KernelRegistry::new(), encoder }
        };
        devices.into_iter().filter(runs).map(program).collect()
    }

    fn floats(&self, values: &[f32], shape: Vec<usize>) -> MlxBuffer {
        let mut buffer = self.device.alloc_buffer(values.len() * 4, DType::F32, shape).unwrap();
        buffer.as_mut_slice::<f32>().unwrap().copy_from_slice(values);
        buffer
    }

    fn bytes(&self, values: &[u8]) -> MlxBuffer {
        let mut buffer = self.device.alloc_buffer(values.len(), DType::U8, vec![values.len()]).unwrap();
        buffer.as_mut_slice::<u8>().unwrap().copy_from_slice(values);
        buffer
    }

    fn bf16s(&self, values: &[f32], shape: Vec<usize>) -> MlxBuffer {
        let bits: Vec<u16> = values.iter().map(|value| bf16::from_f32(*value).to_bits()).collect();
        let mut buffer = self.device.alloc_buffer(bits.len() * 2, DType::BF16, shape).unwrap();
        buffer.as_mut_slice::<u16>().unwrap().copy_from_slice(&bits);
        buffer
    }

    fn output(&self, dtype: DType, shape: Vec<usize>) -> MlxBuffer {
        let len: usize = shape.iter().product();
        self.device.alloc_buffer(len * dtype.size_of(), dtype, shape).unwrap()
    }
}

/// Whether the device multiplies at all.
fn runs(device: &MlxDevice) -> bool {
    let query = CapabilityQuery { op: OpKind::Matmul, format: GgmlType::Q8_0.into(), m: 1, n: 1, k: 32 };
    device.capability(&query).supported
}

/// Values between -1 and 1 that follow no pattern of the block sizes.
fn pattern(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729 + 13) % 2017) as f32 / 1008.5 - 1.0).collect()
}

/// A GGML matrix [n, k] and its values.
fn ggml(ty: GgmlType, n: usize, k: usize, seed: usize) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = vec![0; ty.row_bytes(n * k).unwrap()];
    quantize_row(ty, &pattern(n * k, seed), &mut bytes).unwrap();
    let mut values = vec![0.0; n * k];
    dequantize_row(ty, &bytes, &mut values).unwrap();
    (bytes, values)
}

/// [m, k] · [n, k]ᵀ
fn product(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32;
    x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| dot(x, w))).collect()
}

#[track_caller]
fn assert_near(device: &MlxDevice, found: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let errors: f64 = found.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let energy: f64 = expected.iter().map(|b| f64::from(*b).powi(2)).sum();
    assert!(errors <= tolerance * energy, "{}: NMSE {:e}", device.name(), errors / energy);
}

fn widened(buffer: &MlxBuffer) -> Vec<f32> {
    buffer.as_slice::<u16>().unwrap().iter().map(|bits| bf16::from_bits(*bits).to_f32()).collect()
}

const EXACT: f64 = 1e-10;
/// Half an ulp of bf16, squared.
const BF16: f64 = 1.6e-5;

#[test]
fn quantized_matmul_ggml() {
    for mut program in Program::all() {
        for ty in [GgmlType::Q4_0, GgmlType::Q8_0, GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::F16, GgmlType::BF16] {
            let (m, n, k) = (3, 20, 512);
            let (bytes, values) = ggml(ty, n, k, 1);
            let x = pattern(m * k, 2);
            let (input, weight) = (program.floats(&x, vec![m, k]), program.bytes(&bytes));
            let mut output = program.output(DType::F32, vec![m, n]);
            let params = GgmlQuantizedMatmulParams { m: m as u32, n: n as u32, k: k as u32, ggml_type: ty };
            let Program { device, registry, encoder } = &mut program;
            mlx_native::quantized_matmul_ggml(encoder, registry, device, &input, &weight, &mut output, &params)
                .unwrap();
            encoder.commit_and_wait().unwrap();
            assert_near(device, output.as_slice().unwrap(), &product(&x, &values, k), EXACT);
        }
    }
}

#[test]
fn the_modules_of_the_published_crate_are_there() {
    use mlx_native::ops::quantized_matmul::{QuantizedMatmulParams, quantized_matmul, quantized_matmul_simd};
    use mlx_native::ops::quantized_matmul_ggml::{GgmlQuantizedMatmulParams, quantized_matmul_ggml};
    use mlx_native::ops::quantized_matmul_id_ggml::{GgmlQuantizedMatmulIdParams, quantized_matmul_id_ggml};
    let _ = (quantized_matmul, quantized_matmul_simd, quantized_matmul_ggml, quantized_matmul_id_ggml);
    let _ = (size_of::<QuantizedMatmulParams>(), size_of::<GgmlQuantizedMatmulParams>());
    let _ = size_of::<GgmlQuantizedMatmulIdParams>();
    assert_eq!((mlx_native::MM_ROUTING_THRESHOLD, mlx_native::MM_ID_ROUTING_THRESHOLD), (8, 8));
}

#[test]
fn several_operations_in_one_command_buffer() {
    for program in Program::all() {
        let (bytes, values) = ggml(GgmlType::Q8_0, 64, 64, 3);
        let x = pattern(2 * 64, 4);
        let (input, weight) = (program.floats(&x, vec![2, 64]), program.bytes(&bytes));
        let (mut hidden, mut output) =
            (program.output(DType::F32, vec![2, 64]), program.output(DType::F32, vec![2, 64]));
        let params = GgmlQuantizedMatmulParams { m: 2, n: 64, k: 64, ggml_type: GgmlType::Q8_0 };
        let Program { device, mut registry, mut encoder } = program;
        let (e, r) = (&mut encoder, &mut registry);
        mlx_native::quantized_matmul_ggml(e, r, &device, &input, &weight, &mut hidden, &params).unwrap();
        e.memory_barrier();
        mlx_native::quantized_matmul_ggml(e, r, &device, &hidden, &weight, &mut output, &params).unwrap();
        e.commit();
        e.wait_until_completed().unwrap();
        let once = product(&x, &values, 64);
        assert_near(&device, hidden.as_slice().unwrap(), &once, EXACT);
        assert_near(&device, output.as_slice().unwrap(), &product(&once, &values, 64), EXACT);

        // After a commit the encoder records again.
        mlx_native::quantized_matmul_ggml(e, r, &device, &output, &weight, &mut hidden, &params).unwrap();
        e.commit_and_wait().unwrap();
        let thrice = product(&product(&once, &values, 64), &values, 64);
        assert_near(&device, hidden.as_slice().unwrap(), &thrice, EXACT);
    }
}

#[test]
fn batched_and_strided() {
    for program in Program::all() {
        let (batch, weight_batch, m, n, k) = (4, 2, 3, 5, 64);
        let ty = GgmlType::Q4_0;
        let (bytes, values) = ggml(ty, weight_batch * n, k, 5);
        let x = pattern(batch * m * k, 6);
        let (input, weight) = (program.floats(&x, vec![batch, m, k]), program.bytes(&bytes));
        let mut output = program.output(DType::F32, vec![batch, m, n]);
        let params = GgmlBatchedQuantizedMatmulParams { batch: 4, weight_batch: 2, m: 3, n: 5, k: 64, ggml_type: ty };
        let Program { device, mut registry, mut encoder } = program;
        let (e, r) = (&mut encoder, &mut registry);
        mlx_native::quantized_matmul_ggml_batched(e, r, &device, &input, &weight, &mut output, &params).unwrap();
        e.commit_and_wait().unwrap();
        let of_batch = |x: &[f32], b: usize| product(x, &values[b / 2 * n * k..][..n * k], k);
        let expected: Vec<f32> = x.chunks(m * k).enumerate().flat_map(|(b, x)| of_batch(x, b)).collect();
        assert_near(&device, output.as_slice().unwrap(), &expected, EXACT);

        // The same buffer understood as token-major [m, batch, k].
        let strides = GgmlBatchedQuantizedMatmulInputStrides { row_bytes: 4 * 64 * 4, batch_bytes: 64 * 4 };
        mlx_native::quantized_matmul_ggml_batched_strided(
            e,
            r,
            &device,
            &input,
            &weight,
            &mut output,
            &params,
            &strides,
        )
        .unwrap();
        e.commit_and_wait().unwrap();
        let rows = |b: usize| (0..m).flat_map(move |i| (i * batch + b) * k..(i * batch + b + 1) * k);
        let gathered = |b: usize| rows(b).map(|at| x[at]).collect::<Vec<f32>>();
        let expected: Vec<f32> = (0..batch).flat_map(|b| of_batch(&gathered(b), b)).collect();
        assert_near(&device, output.as_slice().unwrap(), &expected, EXACT);
    }
}

#[test]
fn permuted_input() {
    for program in Program::all() {
        let (m, n, k, head_dim) = (9, 7, 128, 32);
        let x: Vec<f32> = pattern(m * k, 7).iter().map(|value| bf16::from_f32(*value).to_f32()).collect();
        let logical: Vec<f32> = (0..m * k)
            .map(|at| (at / k, at % k))
            .map(|(i, l)| x[(l / head_dim * m + i) * head_dim + l % head_dim])
            .collect();
        let input = program.bf16s(&x, vec![k / head_dim, m, head_dim]);
        let (bytes, values) = ggml(GgmlType::Q8_0, n, k, 8);
        let (half_bytes, half_values) = ggml(GgmlType::F16, n, k, 9);
        let (weight, half_weight) = (program.bytes(&bytes), program.bytes(&half_bytes));
        let mut output = program.output(DType::F32, vec![m, n]);
        let params = GgmlQuantizedMatmulPerm021Params { m: 9, n: 7, k: 128, head_dim: 32, ggml_type: GgmlType::Q8_0 };
        let Program { device, mut registry, mut encoder } = program;
        let (e, r) = (&mut encoder, &mut registry);
        mlx_native::quantized_matmul_mm_tensor_perm021(e, r, &device, &input, &weight, &mut output, &params).unwrap();
        e.commit_and_wait().unwrap();
        assert_near(&device, output.as_slice().unwrap(), &product(&logical, &values, k), 1e-6);
        mlx_native::quantized_matmul_mm_tensor_perm021_f16(e, r, &device, &input, &half_weight, &mut output, &params)
            .unwrap();
        e.commit_and_wait().unwrap();
        assert_near(&device, output.as_slice().unwrap(), &product(&logical, &half_values, k), 1e-6);
    }
}

#[test]
fn expert_routed_plain_and_pooled() {
    for program in Program::all() {
        for n_tokens in [2, 12] {
            let (top_k, n, k, n_experts) = (2, 6, 256, 4);
            let ty = GgmlType::Q4_K;
            let (bytes, values) = ggml(ty, n_experts * n, k, 10);
            let x = pattern(n_tokens * k, 11);
            let ids: Vec<u32> = (0..n_tokens * top_k).map(|slot| (slot * 3 % n_experts) as u32).collect();
            let (input, weight) = (program.floats(&x, vec![n_tokens, k]), program.bytes(&bytes));
            let mut id_buffer = program.device.alloc_buffer(ids.len() * 4, DType::U32, vec![n_tokens, top_k]).unwrap();
            id_buffer.as_mut_slice::<u32>().unwrap().copy_from_slice(&ids);
            let params = GgmlQuantizedMatmulIdParams {
                n_tokens: n_tokens as u32,
                top_k: top_k as u32,
                n: n as u32,
                k: k as u32,
                n_experts: n_experts as u32,
                expert_stride: (bytes.len() / n_experts) as u64,
                ggml_type: ty,
            };
            let expected: Vec<f32> = ids
                .iter()
                .enumerate()
                .flat_map(|(slot, id)| {
                    product(&x[slot / top_k * k..][..k], &values[*id as usize * n * k..][..n * k], k)
                })
                .collect();
            let device = &program.device;
            let mut registry = KernelRegistry::new();
            let mut encoder = device.command_encoder().unwrap();
            let (e, r) = (&mut encoder, &mut registry);
            let mut output = program.output(DType::F32, vec![n_tokens * top_k, n]);
            mlx_native::quantized_matmul_id_ggml(e, r, device, &input, &weight, &id_buffer, &mut output, &params)
                .unwrap();
            e.commit_and_wait().unwrap();
            assert_near(device, output.as_slice().unwrap(), &expected, EXACT);

            let mut scratch = IdMmScratch::alloc(device, 4, 12).unwrap();
            let mut pooled = program.output(DType::F32, vec![n_tokens * top_k, n]);
            mlx_native::quantized_matmul_id_ggml_pooled(
                e,
                r,
                device,
                &input,
                &weight,
                &id_buffer,
                &mut pooled,
                &mut scratch,
                &params,
            )
            .unwrap();
            e.commit_and_wait().unwrap();
            assert_near(device, pooled.as_slice().unwrap(), &expected, EXACT);
        }
    }
}

/// An affine matrix [n, k] with bf16 scales: packed values, scales, biases, and what they decode to.
fn affine(bits: u32, group_size: u32, n: usize, k: usize) -> ([Vec<u8>; 3], Vec<f32>) {
    let format = AffineFormat::new(bits, group_size, DType::BF16).unwrap();
    let (pitch, groups) = (format.row_bytes(k).unwrap(), format.groups(k).unwrap());
    let (mut packed, mut scales, mut biases) = (vec![0; n * pitch], vec![0.0; n * groups], vec![0.0; n * groups]);
    let mut decoded = vec![0.0; n * k];
    for (row, values) in pattern(n * k, 12).chunks(k).enumerate() {
        let (p, s, b) = (
            &mut packed[row * pitch..][..pitch],
            &mut scales[row * groups..][..groups],
            &mut biases[row * groups..][..groups],
        );
        format.quantize_row(values, p, s, b).unwrap();
        format.dequantize_row(p, Groups { scales: s, biases: b }, &mut decoded[row * k..][..k]).unwrap();
    }
    let narrow = |values: &[f32]| values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
    ([packed, narrow(&scales), narrow(&biases)], decoded)
}

#[test]
fn affine_entry_points() {
    for program in Program::all() {
        for bits in [2, 3, 4, 5, 6, 8] {
            let (m, n, k, group_size) = (3, 16, 512, 64);
            let ([packed, scales, biases], decoded) = affine(bits, group_size, n, k);
            let x: Vec<f32> = pattern(m * k, 13).iter().map(|value| bf16::from_f32(*value).to_f32()).collect();
            let expected = product(&x, &decoded, k);
            let (input, half_input) = (program.floats(&x, vec![m, k]), program.bf16s(&x, vec![m, k]));
            let side = |bytes: &[u8]| {
                let mut buffer = program.device.alloc_buffer(bytes.len(), DType::BF16, vec![bytes.len() / 2]).unwrap();
                buffer.as_mut_slice::<u8>().unwrap().copy_from_slice(bytes);
                buffer
            };
            let (w, s, b) = (program.bytes(&packed), side(&scales), side(&biases));
            let params = QuantizedMatmulParams { m: m as u32, k: k as u32, n: n as u32, group_size, bits };
            let d = &program.device;
            let (mut registry, mut encoder) = (KernelRegistry::new(), d.command_encoder().unwrap());
            let (e, r) = (&mut encoder, &mut registry);

            let plain = mlx_native::quantized_matmul(e, r, d, &input, &w, &s, &b, &params).unwrap();
            let simd = mlx_native::quantized_matmul_simd(e, r, d, &input, &w, &s, &b, &params).unwrap();
            let half =
                mlx_native::dispatch_quantized_matmul_simd_bf16(e, r, d, &half_input, &w, &s, &b, &params).unwrap();
            e.commit_and_wait().unwrap();
            assert_eq!((plain.dtype(), plain.shape()), (DType::F32, &[m, n][..]));
            assert_eq!((half.dtype(), half.shape()), (DType::BF16, &[m, n][..]));
            assert_near(d, plain.as_slice().unwrap(), &expected, EXACT);
            assert_near(d, simd.as_slice().unwrap(), &expected, EXACT);
            assert_near(d, &widened(&half), &expected, BF16);

            if matches!(bits, 4 | 8) {
                // Two experts of eight rows; the second one.
                let half_of = |bytes: &[u8]| (bytes.len() / 2) as u32;
                let params = QuantizedMatmulParams { n: 8, ..params };
                let expert = mlx_native::dispatch_quantized_matmul_simd_bf16_expert(
                    e,
                    r,
                    d,
                    &half_input,
                    &w,
                    &s,
                    &b,
                    &params,
                    half_of(&packed),
                    half_of(&scales),
                    half_of(&biases),
                )
                .unwrap();
                e.commit_and_wait().unwrap();
                assert_near(d, &widened(&expert), &product(&x, &decoded[8 * k..], k), BF16);
            }
        }
    }
}

#[test]
fn casts() {
    for program in Program::all() {
        let x = pattern(100, 14);
        let input = program.floats(&x, vec![100]);
        let (mut half, mut brain) = (program.output(DType::F16, vec![100]), program.output(DType::BF16, vec![100]));
        let mut back = program.output(DType::F32, vec![100]);
        let Program { device, mut registry, mut encoder } = program;
        let (e, r) = (&mut encoder, &mut registry);
        cast(e, r, &device, &input, &mut half, 100, CastDirection::F32ToF16).unwrap();
        cast(e, r, &device, &input, &mut brain, 100, CastDirection::F32ToBF16).unwrap();
        cast(e, r, &device, &brain, &mut back, 100, CastDirection::BF16ToF32).unwrap();
        e.commit_and_wait().unwrap();
        let halves = half.as_slice::<u16>().unwrap();
        assert!(x.iter().zip(halves).all(|(x, bits)| f16::from_f32(*x).to_bits() == *bits));
        assert!(x.iter().zip(back.as_slice::<f32>().unwrap()).all(|(x, back)| bf16::from_f32(*x).to_f32() == *back));
    }
}
