//! Every operation's formula on numbers that can be checked by hand.

use mlx_native::{
    Activation, AttentionParams, Binary, CapabilityQuery, CommandEncoder, DType, EmbeddingParams, ExpertGateParams,
    GgmlType, KvCacheParams, MlxBuffer, MlxDevice, OpKind, Result, RmsNormParams, RopeParams, RopeStyle, SampleParams,
    Weight,
};

/// The devices of this machine that run operations.
fn devices() -> Vec<MlxDevice> {
    let query = CapabilityQuery { op: OpKind::Matmul, format: GgmlType::F32.into(), m: 1, n: 1, k: 32 };
    let runs = |device: &MlxDevice| device.capability(&query).supported;
    [MlxDevice::reference().unwrap(), MlxDevice::cpu().unwrap()].into_iter().filter(runs).collect()
}

fn floats(device: &MlxDevice, values: &[f32]) -> MlxBuffer {
    device.buffer_from_slice(values, DType::F32, vec![values.len()]).unwrap()
}

fn words(device: &MlxDevice, values: &[u32]) -> MlxBuffer {
    device.buffer_from_slice(values, DType::U32, vec![values.len()]).unwrap()
}

fn empty(device: &MlxDevice, len: usize, dtype: DType) -> MlxBuffer {
    device.alloc_buffer(len * dtype.size_of(), dtype, vec![len]).unwrap()
}

fn run(device: &MlxDevice, record: impl FnOnce(&mut CommandEncoder) -> Result<()>) -> Result<()> {
    let mut encoder = device.command_encoder()?;
    record(&mut encoder)?;
    encoder.commit_and_wait()
}

#[test]
fn what_earlier_commits_wrote_is_read_while_later_ones_run() {
    for device in devices() {
        let x = floats(&device, &[1.0, 2.0]);
        let (mut y, mut z) = (empty(&device, 2, DType::F32), empty(&device, 2, DType::F32));
        let mut encoder = device.command_encoder().unwrap();
        for output in [&mut y, &mut z] {
            encoder.binary(Binary::Add, &x, &x, output).unwrap();
            encoder.commit();
            // Nothing to hand over.
            encoder.commit();
        }
        assert_eq!(encoder.in_flight(), 2);
        encoder.wait_until_left(2).unwrap();
        encoder.wait_until_left(1).unwrap();
        assert_eq!(y.as_slice::<f32>().unwrap(), [2.0, 4.0]);
        assert_eq!(encoder.in_flight(), 1);
        encoder.wait_until_completed().unwrap();
        assert_eq!(z.as_slice::<f32>().unwrap(), [2.0, 4.0]);
    }
}

#[track_caller]
fn assert_near(device: &MlxDevice, found: &MlxBuffer, expected: &[f32]) {
    let found = found.as_slice::<f32>().unwrap();
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let near = (found - expected).abs() <= 1e-6 * expected.abs().max(1.0);
        assert!(near, "{}: value {i}: expected {expected}, got {found}", device.name());
    }
}

/// An f32 weight [n, k].
fn weight(device: &MlxDevice, n: usize, k: usize, values: &[f32]) -> Weight {
    Weight::ggml(GgmlType::F32, n, k, floats(device, values)).unwrap()
}

#[test]
fn products_sum_rows() {
    for device in devices() {
        let w = weight(&device, 2, 3, &[1.0, 2.0, 3.0, -1.0, 0.0, 1.0]);
        let x = floats(&device, &[1.0, 1.0, 1.0, 0.0, 10.0, 100.0]);
        let mut y = empty(&device, 4, DType::F32);
        run(&device, |encoder| encoder.matmul(&x, &w, &mut y)).unwrap();
        assert_near(&device, &y, &[6.0, 0.0, 320.0, 100.0]);
    }
}

#[test]
fn experts_multiply_the_rows_that_name_them_and_bad_ids_are_named() {
    for device in devices() {
        let data = floats(&device, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let stack = Weight::stack(GgmlType::F32.into(), 3, 1, 2, data, None, None).unwrap();
        let x = floats(&device, &[1.0, 1.0, 1.0, 10.0]);
        let mut y = empty(&device, 4, DType::F32);
        let ids = words(&device, &[2, 0, 1, 1]);
        run(&device, |encoder| encoder.matmul_id(&x, &stack, &ids, &mut y, None)).unwrap();
        assert_near(&device, &y, &[11.0, 3.0, 43.0, 43.0]);

        let ids = words(&device, &[2, 7, 9, 1]);
        let message =
            run(&device, |encoder| encoder.matmul_id(&x, &stack, &ids, &mut y, None)).unwrap_err().to_string();
        assert!(message.contains("slot 1: expert 7 of 3"), "{message}");
        let y = y.as_slice::<f32>().unwrap();
        assert!(y[0] == 11.0 && y[1].is_nan() && y[2].is_nan() && y[3] == 43.0, "{y:?}");
    }
}

#[test]
fn embedding_rows_are_scaled_and_bad_ids_are_named() {
    for device in devices() {
        let w = weight(&device, 3, 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut y = empty(&device, 4, DType::F32);
        let params = EmbeddingParams { n_tokens: 2, scale: 2.0 };
        let ids = words(&device, &[2, 0]);
        run(&device, |encoder| encoder.embedding(&w, &ids, &mut y, &params)).unwrap();
        assert_near(&device, &y, &[10.0, 12.0, 2.0, 4.0]);

        let ids = words(&device, &[1, 3]);
        let message = run(&device, |encoder| encoder.embedding(&w, &ids, &mut y, &params)).unwrap_err().to_string();
        assert!(message.contains("token 1: id 3 of 3"), "{message}");
        let y = y.as_slice::<f32>().unwrap();
        assert!(y[..2] == [6.0, 8.0] && y[2].is_nan() && y[3].is_nan(), "{y:?}");
    }
}

#[test]
fn elementwise_operations() {
    for device in devices() {
        let (a, b) = (floats(&device, &[1.0, 2.0, 3.0, 4.0]), floats(&device, &[10.0, 100.0]));
        let mut y = empty(&device, 4, DType::F32);
        run(&device, |encoder| encoder.binary(Binary::Add, &a, &b, &mut y)).unwrap();
        assert_near(&device, &y, &[11.0, 102.0, 13.0, 104.0]);
        run(&device, |encoder| encoder.binary(Binary::Mul, &a, &b, &mut y)).unwrap();
        assert_near(&device, &y, &[10.0, 200.0, 30.0, 400.0]);

        let (gate, up) = (floats(&device, &[0.0, 1.0, -1.0, 100.0]), floats(&device, &[5.0, 2.0, 2.0, 1.0]));
        run(&device, |encoder| encoder.gated_activation(Activation::Silu, &gate, &up, &mut y)).unwrap();
        // σ(1) = 0.7310585786
        assert_near(&device, &y, &[0.0, 1.462_117_2, -0.537_882_84, 100.0]);
        run(&device, |encoder| encoder.gated_activation(Activation::GeluTanh, &gate, &up, &mut y)).unwrap();
        // GELU(tanh)(1) = 0.8411919906
        assert_near(&device, &y, &[0.0, 1.682_384, -0.317_616_02, 100.0]);

        let x = floats(&device, &[0.0, 30.0, -30.0, 1e9]);
        run(&device, |encoder| encoder.soft_cap(&x, &mut y, 30.0)).unwrap();
        // 30 · tanh(1)
        assert_near(&device, &y, &[0.0, 22.847_824, -22.847_824, 30.0]);
    }
}

#[test]
fn casts_round_to_nearest_even() {
    for device in devices() {
        let x = floats(&device, &[1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1e6]);
        let mut bf16 = empty(&device, 4, DType::BF16);
        run(&device, |encoder| encoder.cast(&x, &mut bf16)).unwrap();
        assert_eq!(bf16.as_slice::<u16>().unwrap(), [0x3f80, 0x3f80, 0x3f82, 0x4974]);
        let mut f16 = empty(&device, 4, DType::F16);
        run(&device, |encoder| encoder.cast(&x, &mut f16)).unwrap();
        assert_eq!(f16.as_slice::<u16>().unwrap(), [0x3c00, 0x3c04, 0x3c0c, 0x7c00]);
        let mut back = empty(&device, 4, DType::F32);
        run(&device, |encoder| encoder.cast(&bf16, &mut back)).unwrap();
        assert_near(&device, &back, &[1.0, 1.0, 1.015_625, 999_424.0]);
    }
}

#[test]
fn norms_divide_by_the_root_mean_square() {
    for device in devices() {
        let params = RmsNormParams { rows: 2, dim: 2, eps: 0.0 };
        let (x, w) = (floats(&device, &[3.0, 4.0, 1.0, -1.0]), floats(&device, &[1.0, 2.0]));
        let mut y = empty(&device, 4, DType::F32);
        run(&device, |encoder| encoder.rms_norm(&x, &w, &mut y, &params)).unwrap();
        // √(25/2) = 3.5355339
        assert_near(&device, &y, &[0.848_528_15, 2.262_741_7, 1.0, -2.0]);

        let residual = floats(&device, &[0.0, 0.0, 2.0, 4.0]);
        let mut sum = empty(&device, 4, DType::F32);
        run(&device, |encoder| encoder.add_rms_norm(&x, (&residual, &mut sum), &w, &mut y, &params)).unwrap();
        assert_near(&device, &sum, &[3.0, 4.0, 3.0, 3.0]);
        assert_near(&device, &y, &[0.848_528_15, 2.262_741_7, 1.0, 2.0]);
    }
}

#[test]
fn rope_turns_the_pairs_of_its_style() {
    for device in devices() {
        let x = floats(&device, &[1.0, 0.0, 0.0, 1.0, 7.0]);
        let params = RopeParams {
            n_tokens: 1,
            n_heads: 1,
            head_dim: 5,
            n_rot: 4,
            base: 16.0,
            frequency_scale: 0.5,
            style: RopeStyle::Interleaved,
        };
        let positions = words(&device, &[2]);
        let mut y = empty(&device, 5, DType::F32);
        // The angles are 2 · 0.5 · 16^0 = 1 and 2 · 0.5 · 16^(−1/2) = 1/4.
        let [s1, c1, s2, c2] = [0.841_471, 0.540_302_3, 0.247_403_96, 0.968_912_4];
        run(&device, |encoder| encoder.rope(&x, &positions, None, &mut y, &params)).unwrap();
        assert_near(&device, &y, &[c1, s1, -s2, c2, 7.0]);

        let neox = RopeParams { style: RopeStyle::NeoX, ..params };
        let factors = floats(&device, &[1.0, 0.25]);
        run(&device, |encoder| encoder.rope(&x, &positions, Some(&factors), &mut y, &neox)).unwrap();
        assert_near(&device, &y, &[c1, -s1, s1, c1, 7.0]);
    }
}

#[test]
fn softmax_rows_sum_to_one() {
    for device in devices() {
        let x = floats(&device, &[0.0, 3f32.ln(), 1000.0, f32::NEG_INFINITY]);
        let mut y = empty(&device, 4, DType::F32);
        run(&device, |encoder| encoder.softmax(&x, &mut y, 2, 2.0)).unwrap();
        assert_near(&device, &y, &[0.1, 0.9, 1.0, 0.0]);
    }
}

#[test]
fn attention_sees_its_window_of_the_cache() {
    for device in devices() {
        for dtype in [DType::F16, DType::F32] {
            let cache = KvCacheParams { n_kv_heads: 1, capacity: 4, head_dim: 1 };
            let (mut keys, mut values) = (empty(&device, 4, dtype), empty(&device, 4, dtype));
            let stored_keys = floats(&device, &[0.0, 0.0, 3f32.ln()]);
            let stored_values = floats(&device, &[8.0, 16.0, 32.0]);
            let q = floats(&device, &[0.0, 1.0]);
            let mut y = empty(&device, 2, DType::F32);
            let params =
                AttentionParams { cache, n_heads: 2, n_tokens: 1, start: 2, scale: 1.0, window: None, soft_cap: None };
            run(&device, |encoder| {
                encoder.store_kv(&stored_keys, &mut keys, &cache, 0, 3)?;
                encoder.store_kv(&stored_values, &mut values, &cache, 0, 3)?;
                encoder.attention(&q, &keys, &values, &mut y, &params)
            })
            .unwrap();
            let third = |y: &MlxBuffer| y.as_slice::<f32>().unwrap()[0];
            assert!((third(&y) - 56.0 / 3.0).abs() < 1e-5, "{}", third(&y));
            // Weights 1/5, 1/5, 3/5; ln 3 is rounded where the cache is f16.
            assert!((y.as_slice::<f32>().unwrap()[1] - 24.0).abs() < 1e-2);

            let window = AttentionParams { window: Some(2), ..params };
            run(&device, |encoder| encoder.attention(&q, &keys, &values, &mut y, &window)).unwrap();
            assert!((third(&y) - 24.0).abs() < 1e-5, "{}", third(&y));
        }
    }
}

#[test]
fn experts_are_gated_and_summed() {
    for device in devices() {
        let logits = floats(&device, &[0.0, 2f32.ln(), 0.0, 5f32.ln()]);
        let (mut ids, mut weights) = (empty(&device, 3, DType::U32), empty(&device, 3, DType::F32));
        let params = ExpertGateParams { n_tokens: 1, n_experts: 4, top_k: 3, normalize: false };
        run(&device, |encoder| encoder.expert_gate(&logits, &mut ids, &mut weights, &params)).unwrap();
        assert_eq!(ids.as_slice::<u32>().unwrap(), [3, 1, 0]);
        assert_near(&device, &weights, &[5.0 / 9.0, 2.0 / 9.0, 1.0 / 9.0]);
        let normalized = ExpertGateParams { normalize: true, ..params };
        run(&device, |encoder| encoder.expert_gate(&logits, &mut ids, &mut weights, &normalized)).unwrap();
        assert_near(&device, &weights, &[0.625, 0.25, 0.125]);

        let x = floats(&device, &[8.0, 80.0, 16.0, 160.0, 24.0, 240.0]);
        let mut y = empty(&device, 2, DType::F32);
        run(&device, |encoder| encoder.expert_sum(&x, &weights, &mut y, 1, 3, 2)).unwrap();
        assert_near(&device, &y, &[12.0, 120.0]);
    }
}

#[test]
fn argmax_takes_the_first_of_equals_and_passes_over_nan() {
    for device in devices() {
        let x = floats(&device, &[1.0, 3.0, 3.0, f32::NAN, -5.0, f32::NEG_INFINITY, f32::NAN, f32::NAN, f32::NAN]);
        let mut y = empty(&device, 3, DType::U32);
        run(&device, |encoder| encoder.argmax(&x, &mut y, 3)).unwrap();
        assert_eq!(y.as_slice::<u32>().unwrap(), [1, 1, 0]);
    }
}

#[test]
fn sampling_stages() {
    for device in devices() {
        let logits = floats(&device, &[1.0, 4.0, 3.0, 2.0]);
        let mut token = empty(&device, 1, DType::U32);
        let mut draw = |history: Option<&[u32]>, params: SampleParams| {
            let history = history.map(|ids| words(&device, ids));
            run(&device, |encoder| encoder.sample(&logits, history.as_ref(), &mut token, &params))?;
            Ok::<u32, mlx_native::MlxError>(token.as_slice::<u32>()?[0])
        };
        let greedy = SampleParams::default();
        assert_eq!(draw(None, greedy).unwrap(), 1);
        // 4/2 = 2 and 3/2 = 1.5 fall to or below the 2 of token 3; of equals the smaller id wins.
        let penalty = SampleParams { repetition_penalty: 2.0, ..greedy };
        assert_eq!(draw(Some(&[1, 1, 900]), penalty).unwrap(), 2);
        assert_eq!(draw(Some(&[2, 1]), penalty).unwrap(), 1);

        let hot = SampleParams { temperature: 100.0, ..greedy };
        let draws = |params: SampleParams, draw: &mut dyn FnMut(SampleParams) -> u32| {
            let mut seen = [0; 4];
            for step in 0..200 {
                seen[draw(SampleParams { step, ..params }) as usize] += 1;
            }
            seen
        };
        let mut any = |params| draw(None, params).unwrap();
        let seen = draws(hot, &mut any);
        assert!(seen.iter().all(|&count| count > 30), "{seen:?}");
        let seen = draws(SampleParams { top_k: 2, ..hot }, &mut any);
        assert!(seen[0] == 0 && seen[3] == 0 && seen[1] > 60 && seen[2] > 60, "{seen:?}");
        // At temperature 1 the probabilities are 0.032, 0.644, 0.237 and 0.087.
        let warm = SampleParams { temperature: 1.0, ..greedy };
        let seen = draws(SampleParams { top_p: 0.7, ..warm }, &mut any);
        assert!(seen[0] == 0 && seen[3] == 0 && seen[1] > 120 && seen[2] > 30, "{seen:?}");
        let seen = draws(SampleParams { min_p: 0.1, ..warm }, &mut any);
        assert!(seen[0] == 0 && seen[3] > 5, "{seen:?}");
        let same = SampleParams { seed: 3, step: 5, ..hot };
        assert_eq!(any(same), any(same));
    }
}

#[test]
fn sampling_from_nan_is_an_error() {
    for device in devices() {
        let logits = floats(&device, &[1.0, f32::NAN]);
        let mut token = empty(&device, 1, DType::U32);
        let params = SampleParams::default();
        let message =
            run(&device, |encoder| encoder.sample(&logits, None, &mut token, &params)).unwrap_err().to_string();
        assert!(message.contains("logit 1 is NaN"), "{message}");
    }
}
