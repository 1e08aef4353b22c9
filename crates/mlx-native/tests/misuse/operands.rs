//! Calls whose operands do not fit.

use mlx_native::{
    Activation, AttentionParams, Binary, CastDirection, CommandEncoder, DType, EmbeddingParams, ExpertGateParams,
    FpMode, GgmlBatchedQuantizedMatmulInputStrides, GgmlBatchedQuantizedMatmulParams, GgmlQuantizedMatmulIdParams,
    GgmlQuantizedMatmulParams, GgmlQuantizedMatmulPerm021Params, GgmlType, IdMmScratch, KernelRegistry, KvCacheParams,
    MlxBuffer, MlxDevice, MlxError, QuantizedMatmulParams, Result, RmsNormParams, RopeParams, RopeStyle, SampleParams,
    Weight, WeightFormat, cast, dispatch_quantized_matmul_simd_bf16_expert, quantized_matmul, quantized_matmul_ggml,
    quantized_matmul_ggml_batched, quantized_matmul_ggml_batched_strided, quantized_matmul_id_ggml,
    quantized_matmul_id_ggml_pooled, quantized_matmul_mm_tensor_perm021,
};

use super::{buffer, device, invalid};

struct Ggml {
    device: MlxDevice,
    encoder: CommandEncoder,
    input: MlxBuffer,
    weight: MlxBuffer,
    output: MlxBuffer,
}

impl Ggml {
    /// Operands of exactly m = 2, n = 3, k = 64 in Q4_0.
    fn new() -> Ggml {
        let device = device();
        Ggml {
            encoder: device.command_encoder().unwrap(),
            input: buffer(&device, DType::F32, 2 * 64),
            weight: buffer(&device, DType::U8, 3 * 36),
            output: buffer(&device, DType::F32, 2 * 3),
            device,
        }
    }

    fn call(&mut self, params: GgmlQuantizedMatmulParams) -> Result<()> {
        let mut registry = KernelRegistry::new();
        let Ggml { device, encoder, input, weight, output } = self;
        quantized_matmul_ggml(encoder, &mut registry, device, input, weight, output, &params)
    }
}

const GGML: GgmlQuantizedMatmulParams = GgmlQuantizedMatmulParams { m: 2, n: 3, k: 64, ggml_type: GgmlType::Q4_0 };

#[test]
fn ggml_sizes() {
    let mut right = Ggml::new();
    right.call(GGML).unwrap();
    for (name, params) in [
        ("m", GgmlQuantizedMatmulParams { m: 0, ..GGML }),
        ("n", GgmlQuantizedMatmulParams { n: 0, ..GGML }),
        ("k", GgmlQuantizedMatmulParams { k: 0, ..GGML }),
    ] {
        invalid(Ggml::new().call(params), &[name, "0"]);
    }
    invalid(Ggml::new().call(GgmlQuantizedMatmulParams { k: 48, ..GGML }), &["32", "48"]);
    invalid(Ggml::new().call(GgmlQuantizedMatmulParams { m: 3, ..GGML }), &["input", "768", "512"]);
    invalid(Ggml::new().call(GgmlQuantizedMatmulParams { n: 4, ..GGML }), &["weight", "144", "108"]);
    let mut short = Ggml::new();
    short.output = buffer(&short.device, DType::F32, 5);
    invalid(short.call(GGML), &["output", "24", "20"]);
    assert!(short.encoder.is_empty(), "a refused operation must not be recorded");
}

#[test]
fn ggml_products_that_overflow() {
    const MAX: u32 = u32::MAX;
    for ty in [GgmlType::F32, GgmlType::Q4_0, GgmlType::IQ1_S] {
        let k = MAX - MAX % ty.block_values();
        for (m, n) in [(MAX, MAX), (1, MAX), (MAX, 1)] {
            let params = GgmlQuantizedMatmulParams { m, n, k, ggml_type: ty };
            assert!(matches!(Ggml::new().call(params), Err(MlxError::InvalidArgument(_))), "{ty} {m} {n} {k}");
        }
        invalid(Ggml::new().call(GgmlQuantizedMatmulParams { m: MAX, n: MAX, k, ggml_type: ty }), &["overflow"]);
    }
}

#[test]
fn formats_without_a_matmul() {
    let integers = [GgmlType::I8, GgmlType::I16, GgmlType::I32, GgmlType::I64, GgmlType::F64];
    for ty in integers.into_iter().chain([GgmlType::Q8_1, GgmlType::Q8_K]) {
        let params = GgmlQuantizedMatmulParams { k: 256, ggml_type: ty, ..GGML };
        invalid(Ggml::new().call(params), &[ty.name(), "no matmul"]);
        invalid(Weight::ggml(ty, 1, 256, buffer(&device(), DType::U8, 4096)), &[ty.name(), "no matmul"]);
    }
}

#[test]
fn ggml_element_types() {
    let mut wrong = Ggml::new();
    wrong.input = buffer(&wrong.device, DType::F16, 4 * 64);
    invalid(wrong.call(GGML), &["input", "f32", "f16"]);
    let mut wrong = Ggml::new();
    wrong.output = buffer(&wrong.device, DType::U32, 6);
    invalid(wrong.call(GGML), &["output", "f32", "u32"]);
}

#[test]
fn batched_shapes_and_strides() {
    let Ggml { device, mut encoder, input, weight, mut output } = Ggml::new();
    let mut registry = KernelRegistry::new();
    let params =
        GgmlBatchedQuantizedMatmulParams { batch: 1, weight_batch: 1, m: 2, n: 3, k: 64, ggml_type: GgmlType::Q4_0 };
    let (e, r) = (&mut encoder, &mut registry);
    let mut call = |params| quantized_matmul_ggml_batched(e, r, &device, &input, &weight, &mut output, &params);
    call(params).unwrap();
    invalid(
        call(GgmlBatchedQuantizedMatmulParams { batch: 3, weight_batch: 2, ..params }),
        &["batch 3", "weight_batch 2"],
    );
    invalid(call(GgmlBatchedQuantizedMatmulParams { batch: 0, ..params }), &["batch"]);
    invalid(call(GgmlBatchedQuantizedMatmulParams { weight_batch: 0, ..params }), &["weight_batch"]);
    invalid(call(GgmlBatchedQuantizedMatmulParams { batch: 2, ..params }), &["input"]);
    const MAX: u32 = u32::MAX;
    invalid(
        call(GgmlBatchedQuantizedMatmulParams { batch: MAX, weight_batch: 1, m: MAX, n: MAX, ..params }),
        &["overflow"],
    );

    let mut call = |row_bytes, batch_bytes| {
        let strides = GgmlBatchedQuantizedMatmulInputStrides { row_bytes, batch_bytes };
        let params = GgmlBatchedQuantizedMatmulParams { batch: 2, m: 1, ..params };
        quantized_matmul_ggml_batched_strided(e, r, &device, &input, &weight, &mut output, &params, &strides)
    };
    call(256, 256).unwrap();
    call(0, 256).unwrap(); // one row a product: its stride is never stepped over
    invalid(call(256, 258), &["multiples of 4", "258"]);
    invalid(call(256, 260), &["input", "516", "512"]);
    invalid(call(256, u64::MAX - 3), &["overflow"]);
    let mut call = |row_bytes| {
        let strides = GgmlBatchedQuantizedMatmulInputStrides { row_bytes, batch_bytes: 0 };
        quantized_matmul_ggml_batched_strided(e, r, &device, &input, &weight, &mut output, &params, &strides)
    };
    invalid(call(252), &["256", "252"]);
    invalid(call(u64::MAX - 3), &["overflow"]);
}

#[test]
fn permuted_heads() {
    let device = device();
    let (mut encoder, mut registry) = (device.command_encoder().unwrap(), KernelRegistry::new());
    let (input, weight) = (buffer(&device, DType::BF16, 2 * 192), buffer(&device, DType::U8, 3 * 108));
    let mut output = buffer(&device, DType::F32, 6);
    let params = GgmlQuantizedMatmulPerm021Params { m: 2, n: 3, k: 192, head_dim: 32, ggml_type: GgmlType::Q4_0 };
    let mut call = |input: &MlxBuffer, params| {
        quantized_matmul_mm_tensor_perm021(&mut encoder, &mut registry, &device, input, &weight, &mut output, &params)
    };
    call(&input, params).unwrap();
    for head_dim in [0, 16, 48, 128] {
        let params = GgmlQuantizedMatmulPerm021Params { head_dim, ..params };
        invalid(call(&input, params), &["head_dim", "32", &head_dim.to_string()]);
    }
    invalid(call(&buffer(&device, DType::F32, 2 * 192), params), &["input", "bf16", "f32"]);
    invalid(call(&buffer(&device, DType::BF16, 100), params), &["input", "768", "200"]);
}

#[test]
fn expert_routing() {
    let device = device();
    let (mut encoder, mut registry) = (device.command_encoder().unwrap(), KernelRegistry::new());
    let (input, weight) = (buffer(&device, DType::F32, 64), buffer(&device, DType::U8, 4 * 34 * 3));
    let mut ids = buffer(&device, DType::U32, 4);
    let mut output = buffer(&device, DType::F32, 4 * 3);
    // Two tokens of two experts each; experts of [3, 32].
    let params = GgmlQuantizedMatmulIdParams {
        n_tokens: 2,
        top_k: 2,
        n: 3,
        k: 32,
        n_experts: 4,
        expert_stride: 102,
        ggml_type: GgmlType::Q8_0,
    };
    let (e, r) = (&mut encoder, &mut registry);
    let mut call = |params| quantized_matmul_id_ggml(e, r, &device, &input, &weight, &ids, &mut output, &params);
    call(params).unwrap();
    invalid(call(GgmlQuantizedMatmulIdParams { expert_stride: 101, ..params }), &["expert_stride", "102", "101"]);
    invalid(call(GgmlQuantizedMatmulIdParams { expert_stride: 103, ..params }), &["weight", "411", "408"]);
    invalid(call(GgmlQuantizedMatmulIdParams { expert_stride: u64::MAX, ..params }), &["address space"]);
    invalid(call(GgmlQuantizedMatmulIdParams { n_experts: 5, ..params }), &["weight", "510", "408"]);
    invalid(call(GgmlQuantizedMatmulIdParams { top_k: 0, ..params }), &["top_k"]);
    invalid(call(GgmlQuantizedMatmulIdParams { n_experts: 0, ..params }), &["n_experts"]);
    invalid(call(GgmlQuantizedMatmulIdParams { n_tokens: 3, ..params }), &["input", "384", "256"]);
    invalid(call(GgmlQuantizedMatmulIdParams { top_k: 3, ..params }), &["ids", "24", "16"]);
    const MAX: u32 = u32::MAX;
    let huge = GgmlQuantizedMatmulIdParams { n_tokens: MAX, top_k: MAX, n: MAX, n_experts: 1, ..params };
    assert!(matches!(call(huge), Err(MlxError::InvalidArgument(_))));

    // A scratch for one token; more experts of a token than there are.
    let mut scratch = IdMmScratch::alloc(&device, 4, 1).unwrap();
    let mut pooled = |params| {
        quantized_matmul_id_ggml_pooled(e, r, &device, &input, &weight, &ids, &mut output, &mut scratch, &params)
    };
    invalid(pooled(params), &["scratch", "8", "4"]);
    invalid(pooled(GgmlQuantizedMatmulIdParams { n_tokens: 1, n_experts: 1, ..params }), &["top_k 2", "n_experts 1"]);
    invalid(IdMmScratch::alloc(&device, 0, 1), &["n_experts"]);
    assert!(IdMmScratch::alloc(&device, MAX, MAX).is_err());
    e.commit_and_wait().unwrap();

    // Bad ids: NaN rows, and the first bad slot by name. Everything else is as it should be.
    ids.as_mut_slice::<u32>().unwrap().copy_from_slice(&[3, 9, u32::MAX, 0]);
    output.as_mut_slice::<f32>().unwrap().fill(7.0);
    quantized_matmul_id_ggml(e, r, &device, &input, &weight, &ids, &mut output, &params).unwrap();
    match e.commit_and_wait().unwrap_err() {
        MlxError::CommandBufferError(message) => assert!(message.contains("slot 1: expert 9 of 4"), "{message}"),
        other => panic!("{other:?}"),
    }
    let rows = output.as_slice::<f32>().unwrap();
    assert!(
        rows[3..9].iter().all(|value| value.is_nan()) && rows[..3] == [0.0; 3] && rows[9..] == [0.0; 3],
        "{rows:?}"
    );
    // The encoder goes on after an error.
    assert!(e.commit_and_wait().is_ok());
}

pub(crate) struct Affine {
    pub(crate) device: MlxDevice,
    pub(crate) buffers: [MlxBuffer; 4],
}

impl Affine {
    /// Operands of exactly m = 2, n = 8, k = 512 at 4 bits in groups of 64.
    pub(crate) fn new(dtype: DType) -> Affine {
        let device = device();
        let buffers = [
            buffer(&device, dtype, 2 * 512),
            buffer(&device, DType::U32, 8 * 64),
            buffer(&device, DType::BF16, 8 * 8),
            buffer(&device, DType::BF16, 8 * 8),
        ];
        Affine { device, buffers }
    }

    fn short(mut self, which: usize) -> Affine {
        let dtype = self.buffers[which].dtype();
        self.buffers[which] = buffer(&self.device, dtype, self.buffers[which].element_count() - 1);
        self
    }

    fn call(&self, params: QuantizedMatmulParams) -> Result<MlxBuffer> {
        let [x, w, s, b] = &self.buffers;
        let mut encoder = self.device.command_encoder()?;
        quantized_matmul(&mut encoder, &mut KernelRegistry::new(), &self.device, x, w, s, b, &params)
    }

    fn expert(&self, params: QuantizedMatmulParams, offsets: [u32; 3]) -> Result<MlxBuffer> {
        let [x, w, s, b] = &self.buffers;
        let mut encoder = self.device.command_encoder()?;
        let (d, r) = (&self.device, &mut KernelRegistry::new());
        let [of_w, of_s, of_b] = offsets;
        dispatch_quantized_matmul_simd_bf16_expert(&mut encoder, r, d, x, w, s, b, &params, of_w, of_s, of_b)
    }
}

pub(crate) const AFFINE: QuantizedMatmulParams = QuantizedMatmulParams { m: 2, k: 512, n: 8, group_size: 64, bits: 4 };

#[test]
fn affine_checks_in_order() {
    Affine::new(DType::F32).call(AFFINE).unwrap();
    for bits in [0, 7, 9, 16, u32::MAX] {
        // The width comes before everything else.
        let params = QuantizedMatmulParams { bits, m: 0, k: 0, n: 0, group_size: 0 };
        invalid(Affine::new(DType::F32).call(params), &["bits"]);
    }
    for bits in [3, 5] {
        invalid(Affine::new(DType::F32).call(QuantizedMatmulParams { bits, k: 508, ..AFFINE }), &["bits", "508"]);
    }
    for (name, params) in [
        ("m", QuantizedMatmulParams { m: 0, ..AFFINE }),
        ("k", QuantizedMatmulParams { k: 0, ..AFFINE }),
        ("n", QuantizedMatmulParams { n: 0, ..AFFINE }),
        ("group_size", QuantizedMatmulParams { group_size: 0, ..AFFINE }),
    ] {
        // Zero dimensions come before sizes.
        invalid(Affine::new(DType::F32).short(0).call(params), &[name, "0"]);
    }
    let words =
        ["Input buffer too small", "Weight buffer too small", "Scales buffer too small", "Biases buffer too small"];
    for (which, words) in words.into_iter().enumerate() {
        // Each comes before those after it.
        let short = (which..4).fold(Affine::new(DType::F32), Affine::short);
        invalid(short.call(AFFINE), &[words]);
    }
    const MAX: u32 = u32::MAX;
    let params = QuantizedMatmulParams { m: MAX, k: MAX, n: MAX, group_size: 64, bits: 4 };
    assert!(matches!(Affine::new(DType::F32).call(params), Err(MlxError::InvalidArgument(_))));
    let huge_group = QuantizedMatmulParams { group_size: MAX, ..AFFINE };
    Affine::new(DType::F32).call(huge_group).unwrap();
}

#[test]
fn affine_experts_are_inside_their_buffers_and_aligned() {
    let one_of = |offsets| Affine::new(DType::BF16).expert(AFFINE, offsets);
    one_of([0; 3]).unwrap();
    invalid(one_of([2, 0, 0]), &["expert_offset_bytes", "multiple of 4"]);
    invalid(one_of([0, 1, 0]), &["scales_offset_bytes", "multiple of 2"]);
    invalid(one_of([0, 0, 3]), &["biases_offset_bytes", "multiple of 2"]);
    invalid(one_of([4, 0, 0]), &["Weight buffer too small"]);
    invalid(one_of([0, 2, 0]), &["Scales buffer too small"]);
    invalid(one_of([0, 0, 2]), &["Biases buffer too small"]);
    invalid(one_of([u32::MAX - 3, 0, 0]), &["Weight buffer too small"]);
    for params in [
        QuantizedMatmulParams { n: 7, ..AFFINE },
        QuantizedMatmulParams { k: 256, ..AFFINE },
        QuantizedMatmulParams { group_size: 8, ..AFFINE },
        QuantizedMatmulParams { bits: 8, k: 128, ..AFFINE },
    ] {
        invalid(Affine::new(DType::BF16).expert(params, [0; 3]), &["aligned"]);
    }
    for bits in [2, 3, 6, 7] {
        invalid(Affine::new(DType::BF16).expert(QuantizedMatmulParams { bits, ..AFFINE }, [0; 3]), &["bits"]);
    }
}

#[test]
fn weights() {
    let device = device();
    let data = || buffer(&device, DType::U8, 64);
    invalid(Weight::ggml(GgmlType::Q8_0, 2, 32, data()), &["weight", "68", "64"]);
    invalid(Weight::ggml(GgmlType::Q8_0, 0, 32, data()), &["n", "0"]);
    invalid(Weight::ggml(GgmlType::Q8_0, 1, 33, data()), &["32", "33"]);
    assert!(Weight::ggml(GgmlType::F32, usize::MAX / 2, usize::MAX / 2, data()).is_err());
    invalid(Weight::fp(FpMode::Nvfp4, 1, 24, data(), data()), &["group size 16", "24"]);
    invalid(Weight::stack(WeightFormat::Fp(FpMode::Mxfp4), 1, 1, 32, data(), None, None), &["scales"]);
    invalid(Weight::stack(GgmlType::Q8_0.into(), 1, 1, 32, data(), Some(data()), None), &["scales"]);
    invalid(Weight::stack(GgmlType::Q8_0.into(), usize::MAX, 1, 32, data(), None, None), &["overflow"]);
    invalid(Weight::ggml(GgmlType::Q8_0, 1, 32, data()).unwrap().transposed(), &["transpose"]);
    let weight = Weight::ggml(GgmlType::Q8_0, 1, 32, data()).unwrap();
    invalid(weight.rows(0, 2), &["rows"]);
    invalid(weight.rows(usize::MAX, 1), &["rows"]);
    invalid(weight.rows(0, 0), &["rows"]);

    let mut encoder = device.command_encoder().unwrap();
    let (x, mut y) = (buffer(&device, DType::F32, 33), buffer(&device, DType::F32, 8));
    invalid(encoder.matmul(&x, &weight, &mut y), &["33", "32"]);
    let stack = Weight::stack(GgmlType::F32.into(), 2, 2, 4, data(), None, None).unwrap();
    let x = buffer(&device, DType::F32, 4);
    invalid(encoder.matmul(&x, &stack, &mut y), &["stack"]);
    let ids = buffer(&device, DType::U32, 1);
    invalid(encoder.matmul_id(&buffer(&device, DType::F32, 5), &stack, &ids, &mut y, None), &["rows"]);
    invalid(encoder.matmul_id(&buffer(&device, DType::F32, 8), &stack, &ids, &mut y, None), &["ids"]);
    assert!(encoder.is_empty());
}

#[test]
fn the_rest_of_a_forward_pass() {
    let device = device();
    let mut e = device.command_encoder().unwrap();
    let f32s = |len| buffer(&device, DType::F32, len);
    let u32s = |len| buffer(&device, DType::U32, len);
    let f16s = |len| buffer(&device, DType::F16, len);

    let mut r = KernelRegistry::new();
    let halves = &mut f16s(4);
    invalid(cast(&mut e, &mut r, &device, &f32s(4), halves, 0, CastDirection::F32ToF16), &["n_elements"]);
    invalid(cast(&mut e, &mut r, &device, &f32s(4), halves, 5, CastDirection::F32ToF16), &["input", "20", "16"]);
    invalid(cast(&mut e, &mut r, &device, &f32s(5), halves, 5, CastDirection::F32ToF16), &["output", "10", "8"]);
    invalid(cast(&mut e, &mut r, &device, &f32s(4), halves, 4, CastDirection::BF16ToF16), &["input", "bf16", "f32"]);
    invalid(cast(&mut e, &mut r, &device, &f32s(4), halves, usize::MAX, CastDirection::F32ToF16), &["overflow"]);
    invalid(e.cast(&f32s(4), &mut f32s(4)), &["f32 to f32"]);

    invalid(e.binary(Binary::Add, &f32s(4), &f32s(3), &mut f32s(4)), &["3", "4"]);
    invalid(e.binary(Binary::Add, &f32s(4), &f32s(4), &mut f32s(3)), &["output", "16", "12"]);
    invalid(e.binary(Binary::Add, &f32s(4), &f16s(4), &mut f32s(4)), &["b", "f32", "f16"]);
    invalid(e.gated_activation(Activation::Silu, &f32s(4), &f32s(3), &mut f32s(4)), &["up", "16", "12"]);
    for cap in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        invalid(e.soft_cap(&f32s(4), &mut f32s(4), cap), &["cap"]);
    }

    let norm = RmsNormParams { rows: 2, dim: 4, eps: 1e-6 };
    invalid(e.rms_norm(&f32s(8), &f32s(3), &mut f32s(8), &norm), &["weight", "16", "12"]);
    invalid(e.rms_norm(&f32s(7), &f32s(4), &mut f32s(8), &norm), &["input", "32", "28"]);
    invalid(e.rms_norm(&f32s(8), &f32s(4), &mut f32s(8), &RmsNormParams { rows: 0, ..norm }), &["rows"]);
    invalid(e.rms_norm(&f32s(8), &f32s(4), &mut f32s(8), &RmsNormParams { eps: f32::NAN, ..norm }), &["eps"]);
    invalid(e.rms_norm(&f32s(8), &f32s(4), &mut f32s(8), &RmsNormParams { rows: usize::MAX, ..norm }), &["overflow"]);
    invalid(e.add_rms_norm(&f32s(8), (&f32s(7), &mut f32s(8)), &f32s(4), &mut f32s(8), &norm), &["residual"]);

    let rope = RopeParams {
        n_tokens: 1,
        n_heads: 1,
        head_dim: 8,
        n_rot: 8,
        base: 10_000.0,
        frequency_scale: 1.0,
        style: RopeStyle::NeoX,
    };
    let mut turn = |params: RopeParams, positions: usize| {
        e.rope(&f32s(8), &u32s(positions), Some(&f32s(4)), &mut f32s(8), &params)
    };
    turn(rope, 1).unwrap();
    invalid(turn(RopeParams { n_rot: 7, ..rope }, 1), &["n_rot", "7"]);
    invalid(turn(RopeParams { n_rot: 10, ..rope }, 1), &["n_rot", "10"]);
    invalid(turn(RopeParams { base: 0.0, ..rope }, 1), &["base"]);
    invalid(turn(RopeParams { frequency_scale: f32::NAN, ..rope }, 1), &["frequency_scale"]);
    invalid(turn(RopeParams { n_tokens: 2, ..rope }, 2), &["input"]);
    invalid(turn(RopeParams { n_heads: usize::MAX, ..rope }, 1), &["overflow"]);

    invalid(e.softmax(&f32s(4), &mut f32s(4), 3, 1.0), &["3", "4"]);
    invalid(e.softmax(&f32s(4), &mut f32s(4), 0, 1.0), &["dim"]);
    invalid(e.softmax(&f32s(4), &mut f32s(4), 4, f32::NAN), &["scale"]);

    let weight = Weight::ggml(GgmlType::F32, 4, 8, f32s(32)).unwrap();
    let one = EmbeddingParams { n_tokens: 1, scale: 1.0 };
    invalid(e.embedding(&weight, &u32s(1), &mut f32s(7), &one), &["output", "32", "28"]);
    invalid(e.embedding(&weight, &f32s(1), &mut f32s(8), &one), &["ids", "u32", "f32"]);
    invalid(e.embedding(&weight, &u32s(1), &mut f32s(8), &EmbeddingParams { n_tokens: 2, ..one }), &["ids", "8", "4"]);
    invalid(
        e.embedding(&weight, &u32s(1), &mut f32s(8), &EmbeddingParams { n_tokens: usize::MAX, ..one }),
        &["overflow"],
    );

    let cache = KvCacheParams { n_kv_heads: 2, capacity: 4, head_dim: 8 };
    invalid(e.store_kv(&f32s(16), &mut f16s(64), &cache, 4, 1), &["positions", "4"]);
    invalid(e.store_kv(&f32s(16), &mut f16s(64), &cache, usize::MAX, 1), &["positions"]);
    invalid(e.store_kv(&f32s(16), &mut f16s(63), &cache, 0, 1), &["cache", "128", "126"]);
    invalid(e.store_kv(&f32s(15), &mut f16s(64), &cache, 0, 1), &["input", "64", "60"]);
    invalid(e.store_kv(&f32s(16), &mut u32s(64), &cache, 0, 1), &["cache", "f16", "u32"]);
    let attention =
        AttentionParams { cache, n_heads: 4, n_tokens: 1, start: 3, scale: 1.0, window: None, soft_cap: None };
    let mut attend =
        |params: AttentionParams, values: &MlxBuffer| e.attention(&f32s(32), &f16s(64), values, &mut f32s(32), &params);
    attend(attention, &f16s(64)).unwrap();
    invalid(attend(attention, &f32s(64)), &["v_cache", "f16", "f32"]);
    invalid(attend(AttentionParams { n_heads: 3, ..attention }, &f16s(64)), &["n_heads 3", "n_kv_heads 2"]);
    invalid(attend(AttentionParams { start: 4, ..attention }, &f16s(64)), &["positions", "4"]);
    invalid(attend(AttentionParams { window: Some(0), ..attention }, &f16s(64)), &["window"]);
    invalid(attend(AttentionParams { soft_cap: Some(0.0), ..attention }, &f16s(64)), &["soft_cap"]);
    invalid(attend(AttentionParams { scale: f32::NAN, ..attention }, &f16s(64)), &["scale"]);

    let gate = ExpertGateParams { n_tokens: 1, n_experts: 4, top_k: 2, normalize: true };
    invalid(
        e.expert_gate(&f32s(4), &mut u32s(2), &mut f32s(2), &ExpertGateParams { top_k: 5, ..gate }),
        &["top_k 5", "4"],
    );
    invalid(e.expert_gate(&f32s(3), &mut u32s(2), &mut f32s(2), &gate), &["logits", "16", "12"]);
    invalid(e.expert_gate(&f32s(4), &mut u32s(1), &mut f32s(2), &gate), &["ids", "8", "4"]);
    invalid(e.expert_sum(&f32s(8), &f32s(2), &mut f32s(3), 1, 2, 4), &["output", "16", "12"]);
    invalid(e.expert_sum(&f32s(8), &f32s(2), &mut f32s(4), 1, 0, 4), &["top_k"]);

    invalid(e.argmax(&f32s(4), &mut u32s(1), 3), &["4", "3"]);
    invalid(e.argmax(&f32s(4), &mut f32s(1), 4), &["output", "u32", "f32"]);
    for params in [
        SampleParams { temperature: -1.0, ..Default::default() },
        SampleParams { temperature: f32::NAN, ..Default::default() },
        SampleParams { top_p: 0.0, ..Default::default() },
        SampleParams { top_p: 1.5, ..Default::default() },
        SampleParams { min_p: -0.1, ..Default::default() },
        SampleParams { repetition_penalty: 0.0, ..Default::default() },
    ] {
        invalid(e.sample(&f32s(4), None, &mut u32s(1), &params), &["out of range"]);
    }
    assert_eq!(e.len(), 2, "only the two right calls are recorded");
}
