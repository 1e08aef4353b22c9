//! Draws a case's data and records its operations.

use fastrand::Rng;
use mlx_native::{
    AttentionParams, DType, EmbeddingParams, GgmlBatchedQuantizedMatmulInputStrides, GgmlBatchedQuantizedMatmulParams,
    GgmlQuantizedMatmulIdParams, GgmlQuantizedMatmulParams, GgmlQuantizedMatmulPerm021Params, GgmlType, IdMmScratch,
    MlxBuffer, QuantizedMatmulParams, Result, RmsNormParams, RopeParams, SampleParams, WeightFormat,
    dispatch_quantized_matmul_simd_bf16, dispatch_quantized_matmul_simd_bf16_expert, quantized_matmul,
    quantized_matmul_ggml, quantized_matmul_ggml_batched, quantized_matmul_ggml_batched_strided,
    quantized_matmul_id_ggml, quantized_matmul_id_ggml_pooled, quantized_matmul_mm_tensor_perm021,
    quantized_matmul_mm_tensor_perm021_f16, quantized_matmul_simd,
};

use crate::generate::{Scales, WeightData, normal, normals};
use crate::stage::{Stage, by_heads};
use crate::{AffineEntry, Array, Case, Operation, Route, Shape, Values};

/// A case's operands in the order in which they are drawn: the same on every device.
pub(crate) struct Tape {
    rng: Rng,
    drawn: Vec<Drawn>,
    next: usize,
}

#[derive(Clone)]
enum Drawn {
    Array(Array),
    Weight(WeightData),
}

impl Tape {
    /// An empty tape that `rng` will fill.
    pub(crate) fn new(rng: Rng) -> Tape {
        Tape { rng, drawn: Vec::new(), next: 0 }
    }

    /// Goes back to the first operand: what was drawn once is given again, not drawn.
    pub(crate) fn rewind(&mut self) {
        self.next = 0;
    }

    fn next(&mut self, draw: impl FnOnce(&mut Rng) -> Result<Drawn>) -> Result<Drawn> {
        if self.next == self.drawn.len() {
            self.drawn.push(draw(&mut self.rng)?);
        }
        self.next += 1;
        Ok(self.drawn[self.next - 1].clone())
    }
}

/// Records `case` on the data of `tape`.
pub(crate) fn record(stage: &mut Stage<'_>, case: &Case, tape: &mut Tape) -> Result<()> {
    let mut draw = Draw { values: case.values, tape };
    match &case.operation {
        Operation::Matmul { .. }
        | Operation::Transposed { .. }
        | Operation::Batched { .. }
        | Operation::Perm021 { .. }
        | Operation::MatmulId { .. }
        | Operation::Affine { .. }
        | Operation::Embedding { .. }
        | Operation::RowsAlone { .. }
        | Operation::RoutedRowsAlone { .. } => product(stage, &case.operation, &mut draw),
        operation => rest(stage, operation, &mut draw),
    }
}

/// Draws operands as a case's values ask.
struct Draw<'a> {
    values: Values,
    tape: &'a mut Tape,
}

impl Draw<'_> {
    fn scale(&self) -> f32 {
        match self.values {
            Values::Large => 1e6,
            Values::Huge => 1e30,
            _ => 1.0,
        }
    }

    /// Any array.
    fn array(&mut self, draw: impl FnOnce(&mut Rng) -> Array) -> Result<Array> {
        match self.tape.next(|rng| Ok(Drawn::Array(draw(rng))))? {
            Drawn::Array(array) => Ok(array),
            Drawn::Weight(weight) => Ok(weight.data),
        }
    }

    /// Activations: `rows` rows of `k` values.
    fn rows(&mut self, dtype: DType, rows: usize, k: usize) -> Result<Array> {
        let (scale, spoilt) = (self.scale(), self.values == Values::NotFinite);
        self.array(|rng| {
            let mut values = normals(rng, rows * k, scale);
            spoil(&mut values, rows, k, spoilt);
            Array::floats(dtype, &values)
        })
    }

    fn floats(&mut self, len: usize) -> Result<Array> {
        self.rows(DType::F32, 1, len)
    }

    /// Values around 1 whatever the case's values: norm weights, second operands, caches.
    fn plain(&mut self, dtype: DType, len: usize) -> Result<Array> {
        self.array(|rng| Array::floats(dtype, &normals(rng, len, 1.0)))
    }

    fn weight(&mut self, format: WeightFormat, n_experts: usize, n: usize, k: usize) -> Result<WeightData> {
        let scales = if self.values == Values::TinyScales { Scales::Tiny } else { Scales::Ordinary };
        match self.tape.next(|rng| Ok(Drawn::Weight(WeightData::random(format, n_experts, n, k, scales, rng)?)))? {
            Drawn::Weight(weight) => Ok(weight),
            Drawn::Array(data) => Ok(WeightData { format, n_experts, n, k, data, scales: None, biases: None }),
        }
    }

    /// Ids below `limit`; a bad one is put in the middle, another one at the end.
    fn ids(&mut self, len: usize, limit: usize, bad: bool) -> Result<Array> {
        self.array(|rng| {
            let mut ids: Vec<u32> = (0..len).map(|_| rng.u32(..limit as u32)).collect();
            if bad {
                ids[len / 2] = limit as u32 + 3;
                ids[len - 1] = u32::MAX;
            }
            Array::words(&ids)
        })
    }
}

/// Puts a NaN into row 0 and an infinity into row 1.
fn spoil(values: &mut [f32], rows: usize, k: usize, spoilt: bool) {
    if spoilt {
        values[3 % k] = f32::NAN;
        if rows > 1 {
            values[2 * k - 1] = f32::INFINITY;
        }
    }
}

fn product(stage: &mut Stage<'_>, operation: &Operation, draw: &mut Draw<'_>) -> Result<()> {
    match *operation {
        Operation::Matmul { format, shape: Shape { m, n, k }, input, output } => {
            let weight = draw.weight(format, 1, n, k)?;
            let x = draw.rows(input, m, k)?;
            stage.expect_energy(&x, &weight, m)?;
            let mut y = stage.output(output, m * n)?;
            stage.encoder.matmul(&stage.input(&x)?, &stage.weight(&weight)?, &mut y)
        }
        Operation::Transposed { format, shape: Shape { m, n, k } } => {
            let weight = draw.weight(format, 1, k, n)?;
            let x = draw.rows(DType::F32, m, k)?;
            stage.expect_energy(&x, &weight, m)?;
            let mut y = stage.output(DType::F32, m * n)?;
            stage.encoder.matmul(&stage.input(&x)?, &stage.weight(&weight)?.transposed()?, &mut y)
        }
        Operation::Batched { ty, shape, batch, weight_batch, strided } => {
            batched(stage, draw, (ty, shape), [batch, weight_batch], strided)
        }
        Operation::Perm021 { ty, shape, head_dim } => perm021(stage, draw, ty, shape, head_dim),
        Operation::MatmulId { format, shape: Shape { m, n, k }, top_k, n_experts, route, bad_id } => {
            let weight = draw.weight(format, n_experts, n, k)?;
            let ids = draw.ids(m * top_k, n_experts, bad_id)?;
            let x = draw.rows(DType::F32, m, k)?;
            stage.expect_energy(&x, &weight, m * top_k)?;
            let y = stage.output(DType::F32, m * top_k * n)?;
            routed(stage, &weight, [&x, &ids], y, (m, top_k), route)
        }
        Operation::Affine { format, shape, entry } => affine(stage, draw, WeightFormat::Affine(format), shape, entry),
        Operation::Embedding { format, shape: Shape { m, n, k }, bad_id } => {
            let weight = draw.weight(format, 1, n, k)?;
            let ids = draw.ids(m, n, bad_id)?;
            let mut y = stage.output(DType::F32, m * k)?;
            let params = EmbeddingParams { n_tokens: m, scale: 1.5 };
            stage.encoder.embedding(&stage.weight(&weight)?, &stage.input(&ids)?, &mut y, &params)
        }
        Operation::RowsAlone { format, n, k } => {
            let weight = draw.weight(format, 1, n, k)?;
            let x = draw.rows(DType::F32, 33, k)?;
            let (x, weight) = (stage.input(&x)?, stage.weight(&weight)?);
            for m in [33].into_iter().chain(1..=9) {
                let mut y = stage.output(DType::F32, m * n)?;
                stage.encoder.matmul(&x.try_slice_view(0, m * k)?, &weight, &mut y)?;
            }
            Ok(())
        }
        Operation::RoutedRowsAlone { format, n, k } => {
            let (n_experts, top_k) = (4, 2);
            let weight = draw.weight(format, n_experts, n, k)?;
            let ids = draw.ids(33 * top_k, n_experts, false)?;
            let x = draw.rows(DType::F32, 33, k)?;
            let (x, ids, weight) = (stage.input(&x)?, stage.input(&ids)?, stage.weight(&weight)?);
            for m in [33].into_iter().chain(1..=9) {
                let mut y = stage.output(DType::F32, m * top_k * n)?;
                let (x, ids) = (x.try_slice_view(0, m * k)?, ids.try_slice_view(0, m * top_k)?);
                stage.encoder.matmul_id(&x, &weight, &ids, &mut y, None)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn batched(
    stage: &mut Stage<'_>,
    draw: &mut Draw<'_>,
    (ty, Shape { m, n, k }): (GgmlType, Shape),
    [batch, weight_batch]: [usize; 2],
    strided: bool,
) -> Result<()> {
    let weight = draw.weight(ty.into(), weight_batch, n, k)?;
    // Row i belongs to product i ÷ m, or to product i mod batch where the input is token-major.
    let x = draw.rows(DType::F32, batch * m, k)?;
    stage.expect_energy(&x, &weight, batch * m)?;
    let mut y = stage.output(DType::F32, batch * m * n)?;
    let (x, w) = (stage.input(&x)?, stage.weight_bytes(&weight)?);
    let [m, n, k] = [m, n, k].map(|dim| dim as u32);
    let [batch, weight_batch] = [batch as u32, weight_batch as u32];
    let params = GgmlBatchedQuantizedMatmulParams { batch, weight_batch, m, n, k, ggml_type: ty };
    let Stage { encoder, registry, device, .. } = stage;
    if strided {
        // The same numbers understood as [m, batch, k].
        let batch_bytes = u64::from(k) * 4;
        let strides = GgmlBatchedQuantizedMatmulInputStrides { row_bytes: batch_bytes * u64::from(batch), batch_bytes };
        quantized_matmul_ggml_batched_strided(encoder, registry, device, &x, &w, &mut y, &params, &strides)
    } else {
        quantized_matmul_ggml_batched(encoder, registry, device, &x, &w, &mut y, &params)
    }
}

/// The permuting product, and after it the two-step path.
fn perm021(
    stage: &mut Stage<'_>,
    draw: &mut Draw<'_>,
    ty: GgmlType,
    Shape { m, n, k }: Shape,
    head_dim: usize,
) -> Result<()> {
    let weight = draw.weight(ty.into(), 1, n, k)?;
    let rows = draw.rows(DType::BF16, m, k)?;
    let x = by_heads(&rows, m, head_dim);
    stage.expect_energy(&x, &weight, 2 * m)?;
    let (mut y, mut y_two_steps) = (stage.output(DType::F32, m * n)?, stage.output(DType::F32, m * n)?);
    let widened: Vec<f32> = rows.values().iter().map(|value| *value as f32).collect();
    let (heads, rows) = (stage.input(&x)?, stage.input(&Array::floats(DType::F32, &widened))?);
    let w = stage.weight_bytes(&weight)?;
    let [m, n, k, head_dim] = [m, n, k, head_dim].map(|dim| dim as u32);
    let params = GgmlQuantizedMatmulPerm021Params { m, n, k, head_dim, ggml_type: ty };
    let Stage { encoder, registry, device, .. } = stage;
    let function = match ty {
        GgmlType::F16 => quantized_matmul_mm_tensor_perm021_f16,
        _ => quantized_matmul_mm_tensor_perm021,
    };
    function(encoder, registry, device, &heads, &w, &mut y, &params)?;
    let params = GgmlQuantizedMatmulParams { m, n, k, ggml_type: ty };
    quantized_matmul_ggml(encoder, registry, device, &rows, &w, &mut y_two_steps, &params)
}

fn routed(
    stage: &mut Stage<'_>,
    weight: &WeightData,
    [x, ids]: [&Array; 2],
    mut y: MlxBuffer,
    (n_tokens, top_k): (usize, usize),
    route: Route,
) -> Result<()> {
    let (x, ids) = (stage.input(x)?, stage.input(ids)?);
    let (ty, gap) = match (weight.format, route) {
        (WeightFormat::Ggml(ty), Route::Ggml { gap }) => (ty, gap),
        (WeightFormat::Ggml(ty), Route::Pooled) => (ty, 0),
        _ => return stage.encoder.matmul_id(&x, &stage.weight(weight)?, &ids, &mut y, None),
    };
    // The gaps hold bytes that decode to garbage.
    let slab = weight.data.bytes.len() / weight.n_experts;
    let mut spread = weight.clone();
    spread.data.bytes = weight.data.bytes.chunks(slab).flat_map(|slab| [slab, &vec![0xff; gap]].concat()).collect();
    spread.data.bytes.truncate(spread.data.bytes.len() - gap);
    let w = stage.weight_bytes(&spread)?;
    let [n_tokens, top_k, n, k, n_experts] =
        [n_tokens, top_k, weight.n, weight.k, weight.n_experts].map(|dim| dim as u32);
    let expert_stride = (slab + gap) as u64;
    let params = GgmlQuantizedMatmulIdParams { n_tokens, top_k, n, k, n_experts, expert_stride, ggml_type: ty };
    let Stage { encoder, registry, device, .. } = stage;
    if route != Route::Pooled {
        return quantized_matmul_id_ggml(encoder, registry, device, &x, &w, &ids, &mut y, &params);
    }
    let mut scratch = IdMmScratch::alloc(device, n_experts, n_tokens)?;
    quantized_matmul_id_ggml_pooled(encoder, registry, device, &x, &w, &ids, &mut y, &mut scratch, &params)
}

fn affine(
    stage: &mut Stage<'_>,
    draw: &mut Draw<'_>,
    format: WeightFormat,
    Shape { m, n, k }: Shape,
    entry: AffineEntry,
) -> Result<()> {
    let WeightFormat::Affine(of) = format else { return Ok(()) };
    let expert = entry == AffineEntry::Bf16Expert;
    let mut weight = draw.weight(format, if expert { 3 } else { 1 }, n, k)?;
    let dtype = if matches!(entry, AffineEntry::Plain | AffineEntry::Simd) { DType::F32 } else { DType::BF16 };
    let x = draw.rows(dtype, m, k)?;
    stage.expect_energy(&x, &weight, m)?;
    let (x, w) = (stage.input(&x)?, stage.weight_bytes(&weight)?);
    let side = |stage: &Stage<'_>, array: Option<Array>| stage.input(&array.unwrap_or(Array::raw(Vec::new())));
    let slab = |array: &Option<Array>| array.as_ref().map_or(0, |array| (array.bytes.len() / 3) as u32);
    let offsets = [(weight.data.bytes.len() / 3) as u32, slab(&weight.scales), slab(&weight.biases)];
    let (s, b) = (side(stage, weight.scales.take())?, side(stage, weight.biases.take())?);
    let [m, k, n] = [m, k, n].map(|dim| dim as u32);
    let params = QuantizedMatmulParams { m, k, n, group_size: of.group_size, bits: of.bits };
    let Stage { encoder: e, registry: r, device: d, .. } = stage;
    let y = match entry {
        AffineEntry::Plain => quantized_matmul(e, r, d, &x, &w, &s, &b, &params)?,
        AffineEntry::Simd => quantized_matmul_simd(e, r, d, &x, &w, &s, &b, &params)?,
        AffineEntry::Bf16 => dispatch_quantized_matmul_simd_bf16(e, r, d, &x, &w, &s, &b, &params)?,
        AffineEntry::Bf16Expert => {
            let [of_weight, of_scales, of_biases] = offsets;
            dispatch_quantized_matmul_simd_bf16_expert(
                e, r, d, &x, &w, &s, &b, &params, of_weight, of_scales, of_biases,
            )?
        }
    };
    stage.returned(y);
    Ok(())
}

fn rest(stage: &mut Stage<'_>, operation: &Operation, draw: &mut Draw<'_>) -> Result<()> {
    match *operation {
        Operation::Cast { direction, len } => {
            // Values of every size, from f16's subnormals to beyond its range.
            let x = draw.array(|rng| {
                let spread: Vec<f32> = (0..len).map(|_| normal(rng) * 2f32.powi(rng.i32(-28..20))).collect();
                Array::floats(direction.from(), &spread)
            })?;
            let mut y = stage.output(direction.to(), len)?;
            stage.encoder.cast(&stage.input(&x)?, &mut y)
        }
        Operation::Binary { kind, len, b_len, in_place } => {
            let (a, b) = (draw.floats(len)?, draw.plain(DType::F32, b_len)?);
            let (a, mut y) = operand_and_output(stage, &a, in_place)?;
            stage.encoder.binary(kind, &a, &stage.input(&b)?, &mut y)
        }
        Operation::GatedActivation { activation, len, in_place } => {
            let (gate, up) = (draw.floats(len)?, draw.plain(DType::F32, len)?);
            let (gate, mut y) = operand_and_output(stage, &gate, in_place)?;
            stage.encoder.gated_activation(activation, &gate, &stage.input(&up)?, &mut y)
        }
        Operation::SoftCap { len, in_place } => {
            let x = draw.floats(len)?;
            let (x, mut y) = operand_and_output(stage, &x, in_place)?;
            stage.encoder.soft_cap(&x, &mut y, 1.5)
        }
        Operation::RmsNorm { params, residual } => rms_norm(stage, draw, &params, residual),
        Operation::Rope { params, factors } => rope(stage, draw, &params, factors),
        Operation::Softmax { rows, dim, scale } => {
            let x = draw.rows(DType::F32, rows, dim)?;
            let mut y = stage.output(DType::F32, rows * dim)?;
            stage.encoder.softmax(&stage.input(&x)?, &mut y, dim, scale)
        }
        Operation::StoreKv { dtype, cache, start, n_tokens } => {
            let x = draw.floats(n_tokens * cache.n_kv_heads * cache.head_dim)?;
            let before = draw.plain(dtype, cache.n_kv_heads * cache.capacity * cache.head_dim)?;
            let mut y = stage.output_over(&before)?;
            stage.encoder.store_kv(&stage.input(&x)?, &mut y, &cache, start, n_tokens)
        }
        Operation::Attention { dtype, params } => attention(stage, draw, dtype, &params, false),
        Operation::TokensAlone { dtype, params } => attention(stage, draw, dtype, &params, true),
        Operation::ExpertGate(params) => {
            let logits = draw.rows(DType::F32, params.n_tokens, params.n_experts)?;
            let chosen = params.n_tokens * params.top_k;
            let (mut ids, mut weights) = (stage.output(DType::U32, chosen)?, stage.output(DType::F32, chosen)?);
            stage.encoder.expert_gate(&stage.input(&logits)?, &mut ids, &mut weights, &params)
        }
        Operation::ExpertSum { n_tokens, top_k, n } => {
            let x = draw.rows(DType::F32, n_tokens * top_k, n)?;
            let weights = draw.array(|rng| {
                let positive: Vec<f32> = (0..n_tokens * top_k).map(|_| 0.1 + rng.f32()).collect();
                Array::floats(DType::F32, &positive)
            })?;
            let weights = stage.input(&weights)?;
            let mut y = stage.output(DType::F32, n_tokens * n)?;
            stage.encoder.expert_sum(&stage.input(&x)?, &weights, &mut y, n_tokens, top_k, n)
        }
        Operation::ArgMax { rows, dim } => argmax(stage, draw, rows, dim),
        Operation::Sample { dim, params, history } => sample(stage, draw, dim, &params, history),
        _ => Ok(()),
    }
}

/// All tokens together, and where it is asked for each of them alone too.
fn attention(
    stage: &mut Stage<'_>,
    draw: &mut Draw<'_>,
    dtype: DType,
    params: &AttentionParams,
    alone: bool,
) -> Result<()> {
    let cached = params.cache.n_kv_heads * params.cache.capacity * params.cache.head_dim;
    let width = params.n_heads * params.cache.head_dim;
    let q = draw.rows(DType::F32, params.n_tokens, width)?;
    let (keys, values) = (draw.plain(dtype, cached)?, draw.plain(dtype, cached)?);
    let (q, keys, values) = (stage.input(&q)?, stage.input(&keys)?, stage.input(&values)?);
    let mut y = stage.output(DType::F32, params.n_tokens * width)?;
    stage.encoder.attention(&q, &keys, &values, &mut y, params)?;
    for t in 0..if alone { params.n_tokens } else { 0 } {
        let mut y = stage.output(DType::F32, width)?;
        let row = q.try_slice_view((t * width * 4) as u64, width)?;
        let params = AttentionParams { n_tokens: 1, start: params.start + t, ..*params };
        stage.encoder.attention(&row, &keys, &values, &mut y, &params)?;
    }
    Ok(())
}

fn argmax(stage: &mut Stage<'_>, draw: &mut Draw<'_>, rows: usize, dim: usize) -> Result<()> {
    // The largest value stands twice, so that the smaller index has to win.
    let x = draw.array(|rng| {
        let mut x = normals(rng, rows * dim, 1.0);
        for row in x.chunks_mut(dim) {
            let (first, second) = (rng.usize(..dim), rng.usize(..dim));
            (row[first], row[second]) = (9.0, 9.0);
        }
        Array::floats(DType::F32, &x)
    })?;
    let mut y = stage.output(DType::U32, rows)?;
    stage.encoder.argmax(&stage.input(&x)?, &mut y, dim)
}

fn sample(stage: &mut Stage<'_>, draw: &mut Draw<'_>, dim: usize, params: &SampleParams, history: usize) -> Result<()> {
    let spoilt = draw.values == Values::NotFinite;
    let logits = draw.array(|rng| {
        let mut logits = normals(rng, dim, 4.0);
        if spoilt {
            logits[dim / 2] = f32::NAN;
        }
        Array::floats(DType::F32, &logits)
    })?;
    let history = if history > 0 { Some(stage.input(&draw.ids(history, dim, false)?)?) } else { None };
    let mut y = stage.output(DType::U32, 1)?;
    let logits = stage.input(&logits)?;
    stage.encoder.sample(&logits, history.as_ref(), &mut y, params)
}

/// An input and an output of the same size: two buffers, or two handles on one.
fn operand_and_output(stage: &mut Stage<'_>, array: &Array, in_place: bool) -> Result<(MlxBuffer, MlxBuffer)> {
    if in_place {
        let y = stage.output_over(array)?;
        return Ok((y.clone(), y));
    }
    Ok((stage.input(array)?, stage.output(array.dtype, array.len())?))
}

fn rms_norm(stage: &mut Stage<'_>, draw: &mut Draw<'_>, params: &RmsNormParams, residual: bool) -> Result<()> {
    let (rows, dim) = (params.rows, params.dim);
    let (x, added, weight) =
        (draw.rows(DType::F32, rows, dim)?, draw.plain(DType::F32, rows * dim)?, draw.plain(DType::F32, dim)?);
    let mut y = stage.output(DType::F32, rows * dim)?;
    let (x, weight) = (stage.input(&x)?, stage.input(&weight)?);
    if residual {
        let mut sum = stage.output(DType::F32, rows * dim)?;
        let residual = (&stage.input(&added)?, &mut sum);
        return stage.encoder.add_rms_norm(&x, residual, &weight, &mut y, params);
    }
    stage.encoder.rms_norm(&x, &weight, &mut y, params)
}

fn rope(stage: &mut Stage<'_>, draw: &mut Draw<'_>, params: &RopeParams, factors: bool) -> Result<()> {
    let len = params.n_tokens * params.n_heads * params.head_dim;
    let x = draw.floats(len)?;
    // Positions across a long context, not in order.
    let positions: Vec<u32> = (0..params.n_tokens).map(|t| (t as u32 * 4099 + 7) % 40_000).collect();
    let spread = draw.array(|rng| {
        let spread: Vec<f32> = (0..params.n_rot / 2).map(|_| 1.0 + 7.0 * rng.f32()).collect();
        Array::floats(DType::F32, &spread)
    })?;
    let factors = if factors { Some(stage.input(&spread)?) } else { None };
    let mut y = stage.output(DType::F32, len)?;
    let (x, positions) = (stage.input(&x)?, stage.input(&Array::words(&positions))?);
    stage.encoder.rope(&x, &positions, factors.as_ref(), &mut y, params)
}
