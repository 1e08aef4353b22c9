//! Everything but attention.

use super::*;
use crate::format::{AffineFormat, FpMode, GgmlType, quantize_row};
use crate::{
    Activation, Binary, CastDirection, EmbeddingParams, ExpertGateParams, KernelRegistry, KvCacheParams, RmsNormParams,
    RopeParams, RopeStyle, SampleParams, Weight,
};

const DIMS: [usize; 6] = [1, 3, 31, 64, 65, 576];

/// The first handle again, so that the operation works in place.
fn same(buffer: &MlxBuffer) -> MlxBuffer {
    buffer.clone()
}

#[test]
fn casts_round_to_nearest_even() {
    for len in DIMS.into_iter().chain([5000]) {
        for direction in CastDirection::ALL {
            let mut input = random(1, len);
            let odd = [f32::NAN, f32::INFINITY, -1e30, 65519.0, 1e-7, 1.0 + 1.0 / 256.0, -0.0, 3e-6];
            input.iter_mut().skip(1).zip(odd).for_each(|(v, odd)| *v = odd);
            let bytes = match direction.from() {
                DType::F32 => f32s(&input),
                DType::F16 => f16s(&input),
                _ => {
                    let bits: Vec<u16> = input.iter().map(|&v| bf16::from_f32(v).to_bits()).collect();
                    Operand { bytes: bytemuck::cast_slice(&bits).to_vec(), dtype: DType::BF16 }
                }
            };
            check(&[bytes, poison(len, direction.to())], &[1], 0.0, &|encoder, buffers| {
                let [input, output] = buffers else { unreachable!() };
                let device = encoder.device().clone();
                crate::cast(encoder, &mut KernelRegistry::new(), &device, input, output, len, direction)
            });
        }
    }
}

#[test]
fn binary_repeats_b_and_works_in_place() {
    for (len, b_len) in [(1, 1), (62, 31), (64, 1), (65, 13), (576, 576), (12_000, 3), (9000, 4500), (9000, 1)] {
        for kind in [Binary::Add, Binary::Mul] {
            let (a, b) = (random(1, len), random(2, b_len));
            check(&[f32s(&a), f32s(&b), poison(len, DType::F32)], &[2], EXACT, &|encoder, buffers| {
                let [a, b, output] = buffers else { unreachable!() };
                encoder.binary(kind, a, b, output)
            });
            check(&[f32s(&a), f32s(&b)], &[0], EXACT, &|encoder, buffers| {
                let mut output = same(&buffers[0]);
                encoder.binary(kind, &buffers[0], &buffers[1], &mut output)
            });
        }
    }
    let (a, b) = (random(1, 100), random(2, 100));
    check(&[f32s(&a), f32s(&b)], &[1], EXACT, &|encoder, buffers| {
        let mut output = same(&buffers[1]);
        encoder.binary(Binary::Mul, &buffers[0], &buffers[1], &mut output)
    });
}

#[test]
fn activations_and_soft_cap_follow_their_formulas() {
    for len in DIMS.into_iter().chain([9000]) {
        let mut gate = random(3, len);
        gate.iter_mut().step_by(7).for_each(|v| *v *= 20.0);
        let extremes = [1e30, -1e30, 100.0, -100.0, f32::INFINITY, f32::NAN, 1e-30, -87.5, 88.5, 0.0];
        gate.iter_mut().skip(3).zip(extremes).for_each(|(v, extreme)| *v = extreme);
        let up = random(4, len);
        // A gate of 1e30 gives a result beside which nothing else counts, so that the rest is checked on its own as well.
        for gate in [gate.clone(), gate.iter().map(|v| if v.abs() < 1e20 { *v } else { 1.0 }).collect()] {
            for activation in [Activation::Silu, Activation::GeluTanh] {
                check(&[f32s(&gate), f32s(&up), poison(len, DType::F32)], &[2], EXACT, &|encoder, buffers| {
                    let [gate, up, output] = buffers else { unreachable!() };
                    encoder.gated_activation(activation, gate, up, output)
                });
                check(&[f32s(&gate), f32s(&up)], &[1], EXACT, &|encoder, buffers| {
                    let mut output = same(&buffers[1]);
                    encoder.gated_activation(activation, &buffers[0], &buffers[1], &mut output)
                });
            }
            for cap in [0.5, 30.0] {
                check(&[f32s(&gate)], &[0], EXACT, &|encoder, buffers| {
                    let mut output = same(&buffers[0]);
                    encoder.soft_cap(&buffers[0], &mut output, cap)
                });
            }
        }
    }
}

#[test]
fn rms_norm_survives_every_magnitude() {
    for dim in DIMS.into_iter().chain([4100]) {
        for (rows, magnitude, eps) in
            [(1, 1.0, 1e-6), (7, 1.0, 1e-5), (2, 1e30, 1e-6), (2, 1e-25, 0.0), (2, 1e-25, 1e-6)]
        {
            let input: Vec<f32> = random(5, rows * dim).iter().map(|v| v * magnitude).collect();
            let (residual, weight) = (random(6, rows * dim), random(7, dim));
            let residual: Vec<f32> = residual.iter().map(|v| v * magnitude).collect();
            let params = RmsNormParams { rows, dim, eps };
            let len = rows * dim;
            let operands = [f32s(&input), f32s(&weight), poison(len, DType::F32)];
            check(&operands, &[2], EXACT, &|encoder, buffers| {
                let [input, weight, output] = buffers else { unreachable!() };
                encoder.rms_norm(input, weight, output, &params)
            });
            check(&operands[..2], &[0], EXACT, &|encoder, buffers| {
                let mut output = same(&buffers[0]);
                encoder.rms_norm(&buffers[0], &buffers[1], &mut output, &params)
            });
            let operands = [f32s(&input), f32s(&residual), f32s(&weight), poison(len, DType::F32)];
            check(&operands, &[0, 3], EXACT, &|encoder, buffers| {
                let [input, residual, weight, output] = buffers else { unreachable!() };
                encoder.add_rms_norm(input, (residual, &mut same(input)), weight, output, &params)
            });
            check(&operands, &[3, 0], EXACT, &|encoder, buffers| {
                let [input, residual, weight, sum] = buffers else { unreachable!() };
                encoder.add_rms_norm(input, (residual, sum), weight, &mut same(input), &params)
            });
        }
    }
}

#[test]
fn softmax_takes_any_logits() {
    for dim in DIMS.into_iter().chain([5000]) {
        for scale in [1.0, 0.125, -3.0, 0.0] {
            for magnitude in [1.0, 1e4, 1e-3] {
                let mut input: Vec<f32> = random(8, 5 * dim).iter().map(|v| v * magnitude).collect();
                if scale != 0.0 && dim > 3 {
                    input[1] = f32::NEG_INFINITY.copysign(-scale);
                    input[2 * dim + 1] = f32::NAN;
                    input[3 * dim..4 * dim].fill(f32::NEG_INFINITY);
                }
                check(&[f32s(&input)], &[0], EXACT, &|encoder, buffers| {
                    let mut output = same(&buffers[0]);
                    encoder.softmax(&buffers[0], &mut output, dim, scale)
                });
            }
        }
    }
}

#[test]
fn rope_turns_far_positions_exactly() {
    for (head_dim, n_rot) in [(2, 2), (31, 6), (64, 64), (65, 64), (128, 32), (320, 300)] {
        for style in [RopeStyle::Interleaved, RopeStyle::NeoX] {
            let positions = [0u32, 1, 17, 4095, 131_071, 1_000_000, 999_999];
            let (n_tokens, n_heads) = (positions.len(), 3);
            let len = n_tokens * n_heads * head_dim;
            let factors: Vec<f32> = random(10, n_rot / 2).iter().map(|v| v.abs() * 4.0 + 0.5).collect();
            let params =
                RopeParams { n_tokens, n_heads, head_dim, n_rot, base: 10_000.0, frequency_scale: 0.75, style };
            let operands = [f32s(&random(9, len)), u32s(&positions), f32s(&factors), poison(len, DType::F32)];
            check(&operands, &[3], EXACT, &|encoder, buffers| {
                let [input, positions, factors, output] = buffers else { unreachable!() };
                encoder.rope(input, positions, Some(factors), output, &params)
            });
            check(&operands, &[0], EXACT, &|encoder, buffers| {
                let mut output = same(&buffers[0]);
                encoder.rope(&buffers[0], &buffers[1], None, &mut output, &params)
            });
        }
    }
    let positions = [-3i32, i32::MIN, 5];
    let params = RopeParams {
        n_tokens: 3,
        n_heads: 1,
        head_dim: 64,
        n_rot: 64,
        base: 1e6,
        frequency_scale: 1.0,
        style: RopeStyle::NeoX,
    };
    let positions = Operand { bytes: bytemuck::cast_slice(&positions).to_vec(), dtype: DType::I32 };
    check(&[f32s(&random(9, 192)), positions, poison(192, DType::F32)], &[2], EXACT, &|encoder, buffers| {
        let [input, positions, output] = buffers else { unreachable!() };
        encoder.rope(input, positions, None, output, &params)
    });
}

#[test]
fn embeddings_of_every_format_and_of_bad_ids() {
    let ids = u32s(&[3, 0, 9, 4, 7, u32::MAX, 1]);
    let (n, k) = (9, 512);
    let params = EmbeddingParams { n_tokens: 7, scale: 1.5 };
    for ty in GgmlType::all().filter(|ty| ty.is_matmul_weight()) {
        let row_bytes = ty.row_bytes(k).unwrap();
        // Any bytes are a block, but scales with large exponents would hide the rest.
        let mut bytes: Vec<u8> = random(11, n * row_bytes).iter().map(|v| (v.to_bits() >> 3) as u8 & 0x3b).collect();
        if crate::format::can_quantize(ty) {
            for row in 0..n {
                let at = row * row_bytes;
                quantize_row(ty, &random(row as u64, k), &mut bytes[at..at + row_bytes]).unwrap();
            }
        }
        let ids = Operand { bytes: ids.bytes.clone(), dtype: DType::U32 };
        let operands = [Operand { bytes, dtype: DType::U8 }, ids, poison(7 * k, DType::F32)];
        check(&operands, &[2], EXACT, &|encoder, buffers| {
            let [data, ids, output] = buffers else { unreachable!() };
            encoder.embedding(&Weight::ggml(ty, n, k, data.clone())?, ids, output, &params)
        });
    }
}

#[test]
fn embeddings_of_mlx_formats_in_both_orientations() {
    let ids = [3u32, 0, 9, 4, 63, 64, 1];
    let (n, k) = (64, 64);
    let params = EmbeddingParams { n_tokens: 7, scale: 1.0 };
    let codes = |bytes: usize| -> Vec<u8> { random(12, bytes).iter().map(|v| (v.to_bits() >> 3) as u8).collect() };
    for transposed in [false, true] {
        for bits in [1, 2, 3, 4, 5, 6, 8] {
            for scale_dtype in [DType::F32, DType::F16, DType::BF16] {
                let format = AffineFormat::new(bits, 32, scale_dtype).unwrap();
                let side = |seed| {
                    let v = random(seed, n * 2);
                    let bytes = match scale_dtype {
                        DType::F32 => f32s(&v).bytes,
                        DType::F16 => f16s(&v).bytes,
                        _ => v.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
                    };
                    Operand { bytes, dtype: scale_dtype }
                };
                let data = Operand { bytes: codes(n * format.row_bytes(k).unwrap()), dtype: DType::U8 };
                let operands = [data, side(1), side(2), u32s(&ids), poison(7 * k, DType::F32)];
                check(&operands, &[4], EXACT, &|encoder, buffers| {
                    let [data, scales, biases, ids, output] = buffers else { unreachable!() };
                    let weight = Weight::affine(format, n, k, data.clone(), scales.clone(), biases.clone())?;
                    let weight = if transposed { weight.transposed()? } else { weight };
                    encoder.embedding(&weight, ids, output, &params)
                });
            }
        }
        for mode in FpMode::ALL {
            let mut bytes = codes(n * mode.row_bytes(k).unwrap());
            // Codes of mxfp8 that are NaN stay out.
            bytes.iter_mut().for_each(|b| *b &= 0xf7);
            let scales = codes(n * mode.groups(k)).iter().map(|b| 120 + b % 7).collect();
            let operands = [
                Operand { bytes, dtype: DType::U8 },
                Operand { bytes: scales, dtype: DType::U8 },
                u32s(&ids),
                poison(7 * k, DType::F32),
            ];
            check(&operands, &[3], EXACT, &|encoder, buffers| {
                let [data, scales, ids, output] = buffers else { unreachable!() };
                let weight = Weight::fp(mode, n, k, data.clone(), scales.clone())?;
                let weight = if transposed { weight.transposed()? } else { weight };
                encoder.embedding(&weight, ids, output, &params)
            });
        }
    }
}

#[test]
fn a_cache_keeps_what_is_not_stored() {
    for head_dim in DIMS {
        for dtype in [DType::F16, DType::F32] {
            let shape = KvCacheParams { n_kv_heads: 3, capacity: 9, head_dim };
            let cache = random(13, 27 * head_dim);
            let cache = if dtype == DType::F16 { f16s(&cache) } else { f32s(&cache) };
            check(&[f32s(&random(14, 4 * 3 * head_dim)), cache], &[1], 0.0, &|encoder, buffers| {
                let [input, cache] = buffers else { unreachable!() };
                encoder.store_kv(input, cache, &shape, 5, 4)
            });
        }
    }
}

#[test]
fn experts_are_ranked_and_summed() {
    for (n_experts, top_k) in [(1, 1), (3, 2), (31, 31), (64, 8), (130, 6)] {
        for normalize in [false, true] {
            let n_tokens = 5;
            let mut logits = random(15, n_tokens * n_experts);
            logits[..n_experts].fill(0.5);
            if n_experts > 3 {
                logits[n_experts + 2] = f32::NEG_INFINITY;
                logits[2 * n_experts] = f32::NAN;
            }
            let params = ExpertGateParams { n_tokens, n_experts, top_k, normalize };
            let chosen = n_tokens * top_k;
            let operands = [f32s(&logits), poison(chosen, DType::U32), poison(chosen, DType::F32)];
            check(&operands, &[2], EXACT, &|encoder, buffers| {
                let [logits, ids, weights] = buffers else { unreachable!() };
                encoder.expert_gate(logits, ids, weights, &params)
            });
            check(&operands, &[1], 0.0, &|encoder, buffers| {
                let [logits, ids, weights] = buffers else { unreachable!() };
                encoder.expert_gate(logits, ids, weights, &params)
            });
        }
    }
    for n in DIMS {
        for (n_tokens, top_k) in [(1, 1), (5, 8), (70, 2)] {
            let slots = n_tokens * top_k;
            let operands = [f32s(&random(16, slots * n)), f32s(&random(17, slots)), poison(n_tokens * n, DType::F32)];
            check(&operands, &[2], EXACT, &|encoder, buffers| {
                let [input, weights, output] = buffers else { unreachable!() };
                encoder.expert_sum(input, weights, output, n_tokens, top_k, n)
            });
        }
    }
}

#[test]
fn argmax_takes_the_smallest_index_of_equals() {
    for dim in DIMS.into_iter().chain([20_000]) {
        let mut input = random(18, 6 * dim);
        input[0] = f32::NAN;
        input[dim..2 * dim].fill(f32::NAN);
        input[2 * dim..3 * dim].fill(f32::NEG_INFINITY);
        input[3 * dim..4 * dim].fill(-3.0);
        input[4 * dim] = f32::NAN;
        input[5 * dim - 1] = 7.0;
        input[5 * dim - 1 - dim / 2] = 7.0;
        input[5 * dim..].fill(0.0);
        input[5 * dim] = -0.0;
        check(&[f32s(&input), poison(6, DType::U32)], &[1], 0.0, &|encoder, buffers| {
            let [input, output] = buffers else { unreachable!() };
            encoder.argmax(input, output, dim)
        });
    }
}

#[test]
fn samples_are_the_references() {
    let base = SampleParams { temperature: 0.8, ..SampleParams::default() };
    let settings = [
        SampleParams::default(),
        SampleParams { repetition_penalty: 1.7, ..SampleParams::default() },
        base,
        SampleParams { top_k: 40, ..base },
        SampleParams { top_p: 0.9, ..base },
        SampleParams { min_p: 0.05, temperature: 2.0, ..base },
        SampleParams { top_k: 100, top_p: 0.95, min_p: 0.01, repetition_penalty: 1.1, ..base },
        SampleParams { top_p: 1e-6, temperature: 5.0, ..base },
    ];
    for dim in [1, 3, 65, 3000] {
        let logits: Vec<f32> = random(19, dim).iter().map(|v| v * 3.0).collect();
        for params in settings {
            for step in 0..5 {
                let params = SampleParams { seed: 7, step, ..params };
                let history = u32s(&[2, 0, 2, 1_000_000, 40]);
                check(&[f32s(&logits), history, poison(1, DType::U32)], &[2], 0.0, &|encoder, buffers| {
                    let [logits, history, output] = buffers else { unreachable!() };
                    encoder.sample(logits, Some(history), output, &params)
                });
            }
        }
    }
    let mut logits = random(20, 50);
    logits[33] = f32::NAN;
    let operands = [f32s(&logits), poison(1, DType::U32)];
    let record: Record<'_> = &|encoder, buffers| {
        let [logits, output] = buffers else { unreachable!() };
        encoder.sample(logits, None, output, &SampleParams::default())
    };
    let (_, result) = run_kernel(Isa::Portable, 2, &DeviceOptions::default(), &operands, record);
    assert!(result.unwrap_err().to_string().contains("33"));
}
