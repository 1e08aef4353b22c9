//! Operations on random data, ready to be recorded again and again.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use conformance::generate::{Scales, WeightData, normals, rng};
use mlx_native::{
    Activation, AttentionParams, CapabilityQuery, CommandEncoder, DType, KvCacheParams, MlxBuffer, MlxDevice, OpKind,
    RmsNormParams, RopeParams, RopeStyle, SampleParams, Weight, WeightFormat,
};
use serde::Serialize;

use super::beside::Arithmetic;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// A dense product, m × n × k
    Matmul,
    /// A product with the experts that each row is routed to, m × n × k
    MatmulId,
    /// The last m positions of a context attend to all before them; the cache is f16
    Attention,
    /// m rows of k
    RmsNorm,
    /// silu(gate) · up of m rows of n
    GatedActivation,
    /// The heads of m tokens, in place
    Rope,
    /// m rows of n
    Softmax,
    /// m rows of n
    Argmax,
    /// Drawing a token from n logits, temperature 0.8, the 40 largest
    Sample,
}

impl Operation {
    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
    }
}

/// An operation's dimensions; those that it does not have are none.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Shape {
    /// Rows, tokens.
    pub m: usize,
    /// Output features, values of a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// Input features.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
    /// Positions in the cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Query heads, heads of the cache, values of a head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<[usize; 3]>,
}

/// How an operation is recorded, given how often it was before.
type Record<'a> = Box<dyn FnMut(&mut CommandEncoder, usize) -> mlx_native::Result<()> + 'a>;

/// An operation on its data.
pub struct Case<'a> {
    pub op: Operation,
    pub format: Option<WeightFormat>,
    pub shape: Shape,
    /// The kernel, where the device tells.
    pub kernel: Option<String>,
    /// Bytes that a run reads and writes at least.
    pub bytes: usize,
    /// Operations of a run, two for each multiply-add; none where counting them says nothing.
    pub operations: Option<f64>,
    pub arithmetic: Arithmetic,
    /// Turns after which operands come again.
    pub turns: usize,
    /// Turns in a row that share an input.
    pub together: usize,
    pub record: Record<'a>,
}

/// Bytes that take turns, so that none is still in a cache when its turn comes.
const ROTATED_BYTES: usize = 256 << 20;

/// Copies that are together larger than the caches, for something of so many bytes.
pub fn copies(bytes: usize) -> usize {
    ROTATED_BYTES / bytes.max(1) + 1
}

/// Copies of a weight, which several cases share.
pub struct Weights {
    copies: Vec<Weight>,
    format: WeightFormat,
}

impl Weights {
    /// A random weight `[experts, n, k]`, as often as it takes to be larger than the caches.
    pub fn new(device: &MlxDevice, format: WeightFormat, experts: usize, n: usize, k: usize) -> Result<Self> {
        // Drawing takes long: whether there is room is asked first.
        let matrix = format.matrix_bytes(n, k)?;
        room(&format!("a weight of {experts} × {n} × {k} in {}", format.name()), &[matrix, experts])?;
        let data = WeightData::random(format, experts, n, k, Scales::Ordinary, &mut rng(1, "bench"))?;
        let copies = copies(matrix.saturating_mul(experts));
        Ok(Self { copies: (0..copies).map(|_| Ok(data.upload(device)?)).collect::<Result<_>>()?, format })
    }
}

/// The product of dimensions, when there is memory for so many bytes.
fn room(what: &str, dims: &[usize]) -> Result<usize> {
    let product = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    product
        .filter(|&bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok())
        .with_context(|| format!("{what}: there is no memory for it"))
}

/// Values of an operand with these dimensions, of four bytes each.
fn values(what: &str, dims: &[usize]) -> Result<usize> {
    room(&format!("{what} of {dims:?}"), &[dims, &[4]].concat()).map(|bytes| bytes / 4)
}

fn random(device: &MlxDevice, seed: u64, len: usize) -> Result<MlxBuffer> {
    Ok(device.buffer_from_slice(&normals(&mut rng(seed, "bench"), len, 1.0), DType::F32, vec![len])?)
}

fn empty(device: &MlxDevice, len: usize, dtype: DType) -> Result<MlxBuffer> {
    Ok(device.alloc_buffer(len * dtype.size_of(), dtype, vec![len])?)
}

/// A product of m rows, each with `per_row` experts where it is routed; so many in turn read one input.
pub fn product<'a>(
    device: &MlxDevice,
    weights: &'a Weights,
    m: usize,
    per_row: Option<usize>,
    one_input: usize,
) -> Result<Case<'a>> {
    let Weights { copies, format } = weights;
    let Some(first) = copies.first() else { bail!("no weight to multiply with") };
    let (n, k, experts) = (first.n(), first.k(), first.n_experts());
    let (op, kind, rows) = match per_row {
        None => (Operation::Matmul, OpKind::Matmul, m),
        Some(per_row) => (Operation::MatmulId, OpKind::MatmulId, values("rows", &[m, per_row])?),
    };
    let input = values("an input", &[m, k])?;
    let output = values("outputs", &[one_input, rows, n])? / one_input;
    let capability = device.capability(&CapabilityQuery { op: kind, format: *format, m, n, k });
    if let Some(why) = capability.why_not {
        bail!("{}, m {m}, n {n}, k {k} on {}: {why}", format.name(), device.name());
    }
    // Products of one list share what they make of an input; with three in turn, every one makes its own.
    let inputs = [2, 3, 4].map(|seed| random(device, seed, input));
    let inputs = inputs.into_iter().collect::<Result<Vec<_>>>()?;
    // What they write has to be apart for that.
    let outputs = (0..one_input).map(|_| empty(device, output, DType::F32));
    let mut outputs = outputs.collect::<Result<Vec<_>>>()?;
    // Rows take the experts in turn, so that as many as possible are used.
    let ids: Vec<u32> = (0..rows).map(|slot| (slot % experts) as u32).collect();
    let ids = device.buffer_from_slice(&ids, DType::U32, vec![m, rows / m])?;
    let bytes = first.byte_len() / experts * rows.min(if per_row.is_some() { experts } else { 1 })
        + DType::F32.size_of() * (m * k + rows * n);
    Ok(Case {
        op,
        format: Some(*format),
        shape: Shape { m, n: Some(n), k: Some(k), ..Shape::default() },
        arithmetic: if capability.kernel.ends_with("int8") { Arithmetic::Int8 } else { Arithmetic::F32 },
        kernel: Some(capability.kernel),
        bytes,
        operations: Some(2.0 * rows as f64 * n as f64 * k as f64),
        turns: copies.len(),
        together: outputs.len(),
        record: Box::new(move |encoder, turn| {
            let (weight, input) = (&copies[turn % copies.len()], &inputs[turn / outputs.len() % inputs.len()]);
            let count = outputs.len();
            let output = &mut outputs[turn % count];
            match per_row {
                None => encoder.matmul(input, weight, output),
                Some(_) => encoder.matmul_id(input, weight, &ids, output, None),
            }
        }),
    })
}

/// The last `m` positions of `context` attend to all before them.
pub fn attention(device: &MlxDevice, m: usize, context: usize, heads: [usize; 3]) -> Result<Case<'static>> {
    let [n_heads, n_kv_heads, head_dim] = heads;
    if m > context {
        bail!("attention of {m} tokens in a context of {context}: expected at most as many tokens as positions");
    }
    let params = AttentionParams {
        cache: KvCacheParams { n_kv_heads, capacity: context, head_dim },
        n_heads,
        n_tokens: m,
        start: context - m,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window: None,
        soft_cap: None,
    };
    let len = values("a cache", &[n_kv_heads, context, head_dim])?;
    let q_len = values("an input", &[m, n_heads, head_dim])?;
    let cache_bytes = 2 * len * DType::F16.size_of();
    let values = random(device, 1, len)?;
    // Caches come from memory, as those of a model's many layers do.
    let mut caches = Vec::new();
    for _ in 0..copies(cache_bytes) {
        let mut pair = [empty(device, len, DType::F16)?, empty(device, len, DType::F16)?];
        let mut encoder = device.command_encoder()?;
        for cache in &mut pair {
            encoder.store_kv(&values, cache, &params.cache, 0, context)?;
        }
        encoder.commit_and_wait()?;
        caches.push(pair);
    }
    let q = random(device, 2, q_len)?;
    let mut output = empty(device, q_len, DType::F32)?;
    let pairs = m * (context - m) + m * (m + 1) / 2;
    Ok(Case {
        op: Operation::Attention,
        format: None,
        shape: Shape { m, context: Some(context), heads: Some(heads), ..Shape::default() },
        kernel: None,
        bytes: cache_bytes + q.byte_len() + output.byte_len(),
        operations: Some(4.0 * (pairs * n_heads * head_dim) as f64),
        arithmetic: Arithmetic::F32,
        turns: caches.len(),
        together: 1,
        record: Box::new(move |encoder, turn| {
            let [k, v] = &caches[turn % caches.len()];
            encoder.attention(&q, k, v, &mut output, &params)
        }),
    })
}

/// An operation on `m` rows of `width` values that are in the caches, as a decoder's are; `heads` matter to rope.
pub fn rowwise(device: &MlxDevice, op: Operation, m: usize, width: usize, heads: [usize; 3]) -> Result<Case<'static>> {
    let [n_heads, _, head_dim] = heads;
    let width = if op == Operation::Rope { values("a row", &[n_heads, head_dim])? } else { width };
    let len = if op == Operation::Sample { width } else { values("an input", &[m, width])? };
    let mut shape = Shape { m, n: Some(width), ..Shape::default() };
    let input = random(device, 1, len)?;
    let input_bytes = input.byte_len();
    let (record, bytes): (Record<'static>, usize) = match op {
        Operation::Matmul | Operation::MatmulId | Operation::Attention => bail!("{} is not row by row", op.name()),
        Operation::RmsNorm => {
            shape = Shape { m, k: Some(width), ..Shape::default() };
            let weight = random(device, 2, width)?;
            let bytes = 2 * input_bytes + weight.byte_len();
            let mut output = empty(device, len, DType::F32)?;
            let params = RmsNormParams { rows: m, dim: width, eps: 1e-6 };
            (Box::new(move |encoder, _| encoder.rms_norm(&input, &weight, &mut output, &params)), bytes)
        }
        Operation::GatedActivation => {
            let up = random(device, 2, len)?;
            let mut output = empty(device, len, DType::F32)?;
            let record: Record<'static> =
                Box::new(move |encoder, _| encoder.gated_activation(Activation::Silu, &input, &up, &mut output));
            (record, 3 * input_bytes)
        }
        Operation::Rope => {
            shape = Shape { m, heads: Some(heads), ..Shape::default() };
            let positions: Vec<u32> = (1000..).take(m).collect();
            let positions = device.buffer_from_slice(&positions, DType::U32, vec![m])?;
            let params = RopeParams {
                n_tokens: m,
                n_heads,
                head_dim,
                n_rot: head_dim,
                base: 1e4,
                frequency_scale: 1.0,
                style: RopeStyle::NeoX,
            };
            let mut output = input.clone();
            (Box::new(move |encoder, _| encoder.rope(&input, &positions, None, &mut output, &params)), 2 * input_bytes)
        }
        Operation::Softmax => {
            let mut output = empty(device, len, DType::F32)?;
            (Box::new(move |encoder, _| encoder.softmax(&input, &mut output, width, 1.0)), 2 * input_bytes)
        }
        Operation::Argmax => {
            let mut output = empty(device, m, DType::U32)?;
            (Box::new(move |encoder, _| encoder.argmax(&input, &mut output, width)), input_bytes)
        }
        Operation::Sample => {
            shape = Shape { m: 1, n: Some(width), ..Shape::default() };
            let mut output = empty(device, 1, DType::U32)?;
            let params = SampleParams { temperature: 0.8, top_k: 40, ..SampleParams::default() };
            (Box::new(move |encoder, _| encoder.sample(&input, None, &mut output, &params)), input_bytes)
        }
    };
    let arithmetic = Arithmetic::F32;
    Ok(Case {
        op,
        format: None,
        shape,
        kernel: None,
        bytes,
        operations: None,
        arithmetic,
        turns: 1,
        together: 1,
        record,
    })
}
