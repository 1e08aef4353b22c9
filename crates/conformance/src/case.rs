//! One row of the table.

use std::fmt;

use mlx_native::{
    Activation, AffineFormat, AttentionParams, Binary, CastDirection, DType, ExpertGateParams, GgmlType, KvCacheParams,
    OpKind, RmsNormParams, RopeParams, RopeStyle, SampleParams, WeightFormat,
};

/// The dimensions of a product `[m, k] · [n, k]ᵀ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Input rows.
    pub m: usize,
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
}

/// Which published function an affine product goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AffineEntry {
    /// `quantized_matmul`
    Plain,
    /// `quantized_matmul_simd`
    Simd,
    /// `dispatch_quantized_matmul_simd_bf16`
    Bf16,
    /// `dispatch_quantized_matmul_simd_bf16_expert`, the second of three experts.
    Bf16Expert,
}

/// Which function an expert-routed product goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `CommandEncoder::matmul_id`
    Typed,
    /// `quantized_matmul_id_ggml`, with so many bytes between the experts' matrices.
    Ggml {
        /// Bytes from the end of a matrix to the next one's start.
        gap: usize,
    },
    /// `quantized_matmul_id_ggml_pooled`
    Pooled,
}

/// An operation with everything but its data.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// `CommandEncoder::matmul`
    Matmul {
        /// Weight.
        format: WeightFormat,
        /// Dimensions.
        shape: Shape,
        /// Element type of the input.
        input: DType,
        /// Element type of the output.
        output: DType,
    },
    /// `CommandEncoder::matmul` with a transposed weight; n and k are those of the product.
    Transposed {
        /// Weight.
        format: WeightFormat,
        /// Dimensions.
        shape: Shape,
    },
    /// `quantized_matmul_ggml_batched`, or its strided form over token-major input.
    Batched {
        /// Weight.
        ty: GgmlType,
        /// Dimensions of one product.
        shape: Shape,
        /// Products.
        batch: usize,
        /// Weight matrices.
        weight_batch: usize,
        /// Input `[m, batch, k]` by strides.
        strided: bool,
    },
    /// `quantized_matmul_mm_tensor_perm021`, or for F16 its `_f16` form; equal to the two-step path bit for bit.
    Perm021 {
        /// Weight.
        ty: GgmlType,
        /// Dimensions.
        shape: Shape,
        /// Values of a head.
        head_dim: usize,
    },
    /// An expert-routed product; m counts tokens.
    MatmulId {
        /// Weight.
        format: WeightFormat,
        /// Dimensions.
        shape: Shape,
        /// Experts of a token.
        top_k: usize,
        /// Experts.
        n_experts: usize,
        /// Function.
        route: Route,
        /// One id is no expert.
        bad_id: bool,
    },
    /// A published affine product.
    Affine {
        /// Weight.
        format: AffineFormat,
        /// Dimensions.
        shape: Shape,
        /// Function.
        entry: AffineEntry,
    },
    /// Rows of a weight `[n, k]`; m counts ids.
    Embedding {
        /// Weight.
        format: WeightFormat,
        /// Dimensions.
        shape: Shape,
        /// One id is no row.
        bad_id: bool,
    },
    /// `cast`
    Cast {
        /// Types.
        direction: CastDirection,
        /// Elements.
        len: usize,
    },
    /// `CommandEncoder::binary`
    Binary {
        /// Sum or product.
        kind: Binary,
        /// Elements of a.
        len: usize,
        /// Elements of b.
        b_len: usize,
        /// The output is a.
        in_place: bool,
    },
    /// `CommandEncoder::gated_activation`
    GatedActivation {
        /// Function.
        activation: Activation,
        /// Elements.
        len: usize,
        /// The output is the gate.
        in_place: bool,
    },
    /// `CommandEncoder::soft_cap`
    SoftCap {
        /// Elements.
        len: usize,
        /// The output is the input.
        in_place: bool,
    },
    /// `CommandEncoder::rms_norm`, or `add_rms_norm` with a residual.
    RmsNorm {
        /// Dimensions.
        params: RmsNormParams,
        /// Adds a residual.
        residual: bool,
    },
    /// `CommandEncoder::rope`
    Rope {
        /// Dimensions and angles.
        params: RopeParams,
        /// With frequency factors.
        factors: bool,
    },
    /// `CommandEncoder::softmax`
    Softmax {
        /// Rows.
        rows: usize,
        /// Values of a row.
        dim: usize,
        /// Factor.
        scale: f32,
    },
    /// `CommandEncoder::store_kv`
    StoreKv {
        /// Element type of the cache.
        dtype: DType,
        /// Its dimensions.
        cache: KvCacheParams,
        /// First position.
        start: usize,
        /// Positions.
        n_tokens: usize,
    },
    /// `CommandEncoder::attention`
    Attention {
        /// Element type of the caches.
        dtype: DType,
        /// Dimensions and mask.
        params: AttentionParams,
    },
    /// `CommandEncoder::expert_gate`
    ExpertGate(ExpertGateParams),
    /// `CommandEncoder::expert_sum`
    ExpertSum {
        /// Tokens.
        n_tokens: usize,
        /// Experts of a token.
        top_k: usize,
        /// Values of a row.
        n: usize,
    },
    /// `CommandEncoder::argmax`
    ArgMax {
        /// Rows.
        rows: usize,
        /// Values of a row.
        dim: usize,
    },
    /// `CommandEncoder::sample`
    Sample {
        /// Logits.
        dim: usize,
        /// Stages.
        params: SampleParams,
        /// Ids in the history.
        history: usize,
    },
    /// The rows of a product of 33 rows again, as products of the first 1 to 9 of them: the same bits, on a device that promises so.
    RowsAlone {
        /// Weight.
        format: WeightFormat,
        /// Output features.
        n: usize,
        /// Input features.
        k: usize,
    },
    /// The tokens of an expert-routed product of 33 tokens again, the first 1 to 9 of them.
    RoutedRowsAlone {
        /// Weight.
        format: WeightFormat,
        /// Output features.
        n: usize,
        /// Input features.
        k: usize,
    },
    /// The tokens of a prefill again, one by one.
    TokensAlone {
        /// Element type of the caches.
        dtype: DType,
        /// Dimensions and mask of the prefill.
        params: AttentionParams,
    },
}

/// What is special about a case's data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Values {
    /// About normally distributed, variance 1.
    #[default]
    Ordinary,
    /// The same times 1e6, beyond f16.
    Large,
    /// The same times 1e30.
    Huge,
    /// A NaN in row 0 and an infinity in row 1.
    NotFinite,
    /// Weights with tiny and subnormal scales.
    TinyScales,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// What runs.
    pub operation: Operation,
    /// On what.
    pub values: Values,
    /// Every buffer is a view that starts at an odd multiple of its elements' alignment.
    pub offset: bool,
    /// Of the data.
    pub seed: u64,
}

impl Case {
    /// A case with ordinary data.
    pub fn new(operation: Operation) -> Case {
        Case { operation, values: Values::Ordinary, offset: false, seed: 0 }
    }

    /// The same operation on other data.
    pub fn with(self, values: Values) -> Case {
        Case { values, ..self }
    }

    /// The same operation on views at odd offsets.
    pub fn at_odd_offsets(self) -> Case {
        Case { offset: true, ..self }
    }

    /// `op/format/dimensions`, for reports and filters.
    pub fn name(&self) -> String {
        self.to_string()
    }

    /// The operation's name.
    pub fn op(&self) -> &'static str {
        match self.operation {
            Operation::Matmul { .. } => "matmul",
            Operation::Transposed { .. } => "matmul_transposed",
            Operation::Batched { .. } => "matmul_batched",
            Operation::Perm021 { .. } => "matmul_perm021",
            Operation::MatmulId { .. } => "matmul_id",
            Operation::Affine { .. } => "quantized_matmul",
            Operation::Embedding { .. } => "embedding",
            Operation::Cast { .. } => "cast",
            Operation::Binary { .. } => "binary",
            Operation::GatedActivation { .. } => "gated_activation",
            Operation::SoftCap { .. } => "soft_cap",
            Operation::RmsNorm { .. } => "rms_norm",
            Operation::Rope { .. } => "rope",
            Operation::Softmax { .. } => "softmax",
            Operation::StoreKv { .. } => "store_kv",
            Operation::Attention { .. } => "attention",
            Operation::ExpertGate(_) => "expert_gate",
            Operation::ExpertSum { .. } => "expert_sum",
            Operation::ArgMax { .. } => "argmax",
            Operation::Sample { .. } => "sample",
            Operation::RowsAlone { .. } => "matmul_rows_alone",
            Operation::RoutedRowsAlone { .. } => "matmul_id_rows_alone",
            Operation::TokensAlone { .. } => "attention_tokens_alone",
        }
    }

    /// The weight's format, of a product or an embedding.
    pub fn format(&self) -> Option<WeightFormat> {
        match self.operation {
            Operation::Matmul { format, .. }
            | Operation::Transposed { format, .. }
            | Operation::MatmulId { format, .. }
            | Operation::Embedding { format, .. }
            | Operation::RowsAlone { format, .. }
            | Operation::RoutedRowsAlone { format, .. } => Some(format),
            Operation::Batched { ty, .. } | Operation::Perm021 { ty, .. } => Some(ty.into()),
            Operation::Affine { format, .. } => Some(WeightFormat::Affine(format)),
            _ => None,
        }
    }

    /// The dimensions of a product or an embedding.
    pub fn shape(&self) -> Option<Shape> {
        match self.operation {
            Operation::Matmul { shape, .. }
            | Operation::Transposed { shape, .. }
            | Operation::Batched { shape, .. }
            | Operation::Perm021 { shape, .. }
            | Operation::MatmulId { shape, .. }
            | Operation::Affine { shape, .. }
            | Operation::Embedding { shape, .. } => Some(shape),
            Operation::RowsAlone { n, k, .. } | Operation::RoutedRowsAlone { n, k, .. } => Some(Shape { m: 33, n, k }),
            _ => None,
        }
    }

    /// How a capability query names the operation.
    pub fn kind(&self) -> Option<OpKind> {
        match self.operation {
            Operation::Matmul { .. }
            | Operation::Transposed { .. }
            | Operation::Batched { .. }
            | Operation::Affine { .. }
            | Operation::RowsAlone { .. } => Some(OpKind::Matmul),
            Operation::Perm021 { .. } => Some(OpKind::MatmulPerm021),
            Operation::MatmulId { .. } | Operation::RoutedRowsAlone { .. } => Some(OpKind::MatmulId),
            Operation::Embedding { .. } => Some(OpKind::Embedding),
            _ => None,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m={},n={},k={}", self.m, self.n, self.k)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.op())?;
        if let Some(format) = self.format() {
            write!(f, "/{format}")?;
        }
        if let Some(shape) = self.shape() {
            write!(f, "/{shape}")?;
        }
        match &self.operation {
            Operation::Matmul { input, output, .. } if (*input, *output) != (DType::F32, DType::F32) => {
                write!(f, ",{input}->{output}")?
            }
            Operation::Batched { batch, weight_batch, strided, .. } => {
                write!(f, ",batch={batch}/{weight_batch}{}", if *strided { ",strided" } else { "" })?
            }
            Operation::Perm021 { head_dim, .. } => write!(f, ",head_dim={head_dim}")?,
            Operation::MatmulId { top_k, n_experts, route, bad_id, .. } => {
                let route = match route {
                    Route::Typed => "typed".to_owned(),
                    Route::Ggml { gap } => format!("gap={gap}"),
                    Route::Pooled => "pooled".to_owned(),
                };
                write!(f, ",top_k={top_k},experts={n_experts},{route}{}", bad(*bad_id))?
            }
            Operation::Affine { entry, .. } => {
                let entry = match entry {
                    AffineEntry::Plain => "plain",
                    AffineEntry::Simd => "simd",
                    AffineEntry::Bf16 => "bf16",
                    AffineEntry::Bf16Expert => "bf16_expert",
                };
                write!(f, ",{entry}")?
            }
            Operation::Embedding { bad_id, .. } => f.write_str(bad(*bad_id))?,
            Operation::Cast { direction, len } => write!(f, "/{}->{},len={len}", direction.from(), direction.to())?,
            Operation::Binary { kind, len, b_len, in_place } => {
                let kind = if *kind == Binary::Add { "add" } else { "mul" };
                write!(f, "/{kind},len={len},b_len={b_len}{}", place(*in_place))?
            }
            Operation::GatedActivation { activation, len, in_place } => {
                let activation = if *activation == Activation::Silu { "silu" } else { "gelu_tanh" };
                write!(f, "/{activation},len={len}{}", place(*in_place))?
            }
            Operation::SoftCap { len, in_place } => write!(f, "/len={len}{}", place(*in_place))?,
            Operation::RmsNorm { params: p, residual } => {
                write!(f, "/rows={},dim={}{}", p.rows, p.dim, if *residual { ",residual" } else { "" })?
            }
            Operation::Rope { params: p, factors } => {
                let style = if p.style == RopeStyle::NeoX { "neox" } else { "interleaved" };
                let factors = if *factors { ",factors" } else { "" };
                let (tokens, heads) = (p.n_tokens, p.n_heads);
                write!(f, "/{style},tokens={tokens},heads={heads},dim={},rot={}{factors}", p.head_dim, p.n_rot)?
            }
            Operation::Softmax { rows, dim, scale } => write!(f, "/rows={rows},dim={dim},scale={scale}")?,
            Operation::StoreKv { dtype, cache: c, start, n_tokens } => write!(
                f,
                "/{dtype},heads={},dim={},capacity={},start={start},tokens={n_tokens}",
                c.n_kv_heads, c.head_dim, c.capacity
            )?,
            Operation::Attention { dtype, params: p } | Operation::TokensAlone { dtype, params: p } => {
                let KvCacheParams { n_kv_heads, capacity: _, head_dim } = p.cache;
                write!(f, "/{dtype},heads={}/{n_kv_heads},dim={head_dim}", p.n_heads)?;
                write!(f, ",start={},tokens={}", p.start, p.n_tokens)?;
                p.window.iter().try_for_each(|window| write!(f, ",window={window}"))?;
                p.soft_cap.iter().try_for_each(|cap| write!(f, ",cap={cap}"))?
            }
            Operation::ExpertGate(p) => {
                let normalize = if p.normalize { ",normalize" } else { "" };
                write!(f, "/tokens={},experts={},top_k={}{normalize}", p.n_tokens, p.n_experts, p.top_k)?
            }
            Operation::ExpertSum { n_tokens, top_k, n } => write!(f, "/tokens={n_tokens},top_k={top_k},n={n}")?,
            Operation::ArgMax { rows, dim } => write!(f, "/rows={rows},dim={dim}")?,
            Operation::Sample { dim, params: p, history } => {
                write!(f, "/dim={dim},t={},k={},p={}", p.temperature, p.top_k, p.top_p)?;
                write!(f, ",min_p={},penalty={},history={history}", p.min_p, p.repetition_penalty)?;
                write!(f, ",seed={},step={}", p.seed, p.step)?
            }
            _ => {}
        }
        f.write_str(match self.values {
            Values::Ordinary => "",
            Values::Large => "+large",
            Values::Huge => "+huge",
            Values::NotFinite => "+not_finite",
            Values::TinyScales => "+tiny_scales",
        })?;
        f.write_str(if self.offset { "+offset" } else { "" })
    }
}

fn bad(bad_id: bool) -> &'static str {
    if bad_id { ",bad_id" } else { "" }
}

fn place(in_place: bool) -> &'static str {
    if in_place { ",in_place" } else { "" }
}
