//! Everything that a model multiplies with, on a device; quantized weights stay in the mapped file where the device shares the host's memory.

use mlx_native::{GgmlType, MlxBuffer, Weight};

use crate::config::{Experts, QkNorm};
use crate::source::Loader;
use crate::{ModelConfig, Result};

/// All weights.
#[derive(Debug)]
pub(crate) struct Weights {
    /// `[vocabulary, hidden]`
    pub embedding: Weight,
    pub layers: Vec<LayerWeights>,
    /// `[hidden]`
    pub output_norm: MlxBuffer,
    /// `[vocabulary, hidden]`; the embedding itself where the source has no other.
    pub output: Weight,
    /// `[n_rot/2]`: division of the rotation frequencies.
    pub frequency_factors: Option<MlxBuffer>,
}

/// One layer; the optional parts are those that only some architectures have.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    pub attn_norm: MlxBuffer,
    pub q: Weight,
    pub k: Weight,
    pub v: Weight,
    pub q_bias: Option<MlxBuffer>,
    pub k_bias: Option<MlxBuffer>,
    pub v_bias: Option<MlxBuffer>,
    /// `[head_dim]`, or `[n_heads · head_dim]`
    pub q_norm: Option<MlxBuffer>,
    pub k_norm: Option<MlxBuffer>,
    pub attn_output: Weight,
    pub attn_output_bias: Option<MlxBuffer>,
    pub post_attn_norm: Option<MlxBuffer>,
    pub ffn_norm: MlxBuffer,
    pub feed_forward: FeedForward,
    pub post_ffn_norm: Option<MlxBuffer>,
}

/// The second half of a layer.
#[derive(Debug)]
pub(crate) enum FeedForward {
    Dense(Box<Gated>),
    Experts(Box<ExpertWeights>),
}

/// A gated feed-forward layer, or a stack of them.
#[derive(Debug)]
pub(crate) struct Gated {
    /// `[feed_forward, hidden]`
    pub gate: Weight,
    /// `[feed_forward, hidden]`
    pub up: Weight,
    /// `[hidden, feed_forward]`
    pub down: Weight,
}

/// A mixture of experts.
#[derive(Debug)]
pub(crate) struct ExpertWeights {
    /// `[n_experts, hidden]`
    pub router: Weight,
    pub experts: Gated,
    pub shared: Option<SharedExpert>,
}

/// The expert that every token goes to, times σ(gate · x).
#[derive(Debug)]
pub(crate) struct SharedExpert {
    pub expert: Gated,
    /// `[2, hidden]`: the gate, and zeros. The softmax over its two products x is σ(gate · x) and its complement.
    pub gate: Weight,
    /// `[1, 2]`: takes the first of the two.
    pub first: Weight,
}

impl Weights {
    pub(crate) fn load(loader: &Loader<'_>, config: &ModelConfig) -> Result<Weights> {
        let hidden = config.hidden;
        let vocabulary = loader.rows("token_embd.weight")?;
        let embedding = loader.matrix("token_embd.weight", vocabulary, hidden)?;
        let output = match loader.has("output.weight") {
            true => loader.matrix("output.weight", vocabulary, hidden)?,
            false => embedding.clone(),
        };
        let frequency_factors = match &config.frequency_factors {
            Some(factors) => Some(loader.f32_buffer(factors)?),
            None if loader.has("rope_freqs.weight") => Some(loader.vector("rope_freqs.weight", config.n_rot / 2)?),
            None => None,
        };
        Ok(Weights {
            layers: (0..config.n_layers).map(|i| LayerWeights::load(loader, config, i)).collect::<Result<_>>()?,
            output_norm: loader.norm("output_norm.weight", hidden)?,
            output,
            frequency_factors,
            embedding,
        })
    }

    /// Rows of the embedding.
    pub(crate) fn vocabulary(&self) -> usize {
        self.embedding.n()
    }

    /// Bytes of weights that a token reads.
    pub(crate) fn bytes_per_token(&self, config: &ModelConfig) -> usize {
        self.layers_per_token(config, |weight| weight.byte_len() / weight.n_experts()) + self.output.byte_len()
    }

    /// Multiply-adds of a token in the layers' products.
    pub(crate) fn multiply_adds_per_token(&self, config: &ModelConfig) -> usize {
        self.layers_per_token(config, |weight| weight.n() * weight.k())
    }

    /// The sum of `each` over the matrices of all layers that a token goes through: of experts those that it is routed to.
    fn layers_per_token(&self, config: &ModelConfig, each: impl Fn(&Weight) -> usize) -> usize {
        let gated = |gated: &Gated| each(&gated.gate) + each(&gated.up) + each(&gated.down);
        let feed_forward = |layer: &LayerWeights| match &layer.feed_forward {
            FeedForward::Dense(dense) => gated(dense),
            FeedForward::Experts(mixture) => {
                let used = config.experts.as_ref().map_or(0, |experts| experts.top_k);
                let shared = mixture.shared.as_ref().map_or(0, |shared| gated(&shared.expert) + each(&shared.gate));
                each(&mixture.router) + used * gated(&mixture.experts) + shared
            }
        };
        let attention = |layer: &LayerWeights| [&layer.q, &layer.k, &layer.v, &layer.attn_output].map(&each);
        self.layers.iter().map(|layer| attention(layer).iter().sum::<usize>() + feed_forward(layer)).sum()
    }
}

impl LayerWeights {
    fn load(loader: &Loader<'_>, config: &ModelConfig, layer: usize) -> Result<LayerWeights> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (hidden, head_dim) = (config.hidden, config.head_dim);
        let (q_len, kv_len) = (config.n_heads * head_dim, config.n_kv_heads * head_dim);
        let matrix = |part: &str, n, k| loader.matrix(&name(part), n, k);
        let norm = |part: &str, len| loader.norm(&name(part), len);
        let optional = |part: &str, len| {
            let name = name(part);
            loader.has(&name).then(|| loader.vector(&name, len)).transpose()
        };
        let optional_norm = |part: &str, len| loader.has(&name(part)).then(|| norm(part, len)).transpose();
        // A layer without its bias would give wrong text, not an error.
        for part in ["ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"] {
            if loader.has(&name(part)) {
                return Err(crate::ModelError::Config(format!(
                    "tensor `{}`: such biases are not supported",
                    name(part)
                )));
            }
        }
        let qk_norm = |part: &str, n_heads: usize| match config.qk_norm {
            QkNorm::None => Ok(None),
            QkNorm::Heads => norm(part, head_dim).map(Some),
            QkNorm::Tokens => norm(part, n_heads * head_dim).map(Some),
        };
        Ok(LayerWeights {
            attn_norm: norm("attn_norm.weight", hidden)?,
            q: matrix("attn_q.weight", q_len, hidden)?,
            k: matrix("attn_k.weight", kv_len, hidden)?,
            v: matrix("attn_v.weight", kv_len, hidden)?,
            q_bias: optional("attn_q.bias", q_len)?,
            k_bias: optional("attn_k.bias", kv_len)?,
            v_bias: optional("attn_v.bias", kv_len)?,
            q_norm: qk_norm("attn_q_norm.weight", config.n_heads)?,
            k_norm: qk_norm("attn_k_norm.weight", config.n_kv_heads)?,
            attn_output: matrix("attn_output.weight", hidden, q_len)?,
            attn_output_bias: optional("attn_output.bias", hidden)?,
            post_attn_norm: optional_norm("post_attention_norm.weight", hidden)?,
            ffn_norm: norm("ffn_norm.weight", hidden)?,
            feed_forward: match config.experts_of(layer) {
                Some(experts) => FeedForward::Experts(Box::new(ExpertWeights::load(loader, experts, hidden, layer)?)),
                None => FeedForward::Dense(Box::new(Gated {
                    gate: matrix("ffn_gate.weight", config.feed_forward, hidden)?,
                    up: matrix("ffn_up.weight", config.feed_forward, hidden)?,
                    down: matrix("ffn_down.weight", hidden, config.feed_forward)?,
                })),
            },
            post_ffn_norm: optional_norm("post_ffw_norm.weight", hidden)?,
        })
    }
}

impl ExpertWeights {
    fn load(loader: &Loader<'_>, experts: &Experts, hidden: usize, layer: usize) -> Result<ExpertWeights> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let stack = |part: &str, n, k| loader.stack(&name(part), experts.n_experts, n, k);
        let matrix = |part: &str, n, k| loader.matrix(&name(part), n, k);
        let shared = match experts.shared {
            None => None,
            Some(length) => Some(SharedExpert {
                expert: Gated {
                    gate: matrix("ffn_gate_shexp.weight", length, hidden)?,
                    up: matrix("ffn_up_shexp.weight", length, hidden)?,
                    down: matrix("ffn_down_shexp.weight", hidden, length)?,
                },
                gate: {
                    let mut rows = loader.values(&name("ffn_gate_inp_shexp.weight"), hidden)?;
                    rows.resize(2 * hidden, 0.0);
                    Weight::ggml(GgmlType::F32, 2, hidden, loader.f32_buffer(&rows)?)?
                },
                first: Weight::ggml(GgmlType::F32, 1, 2, loader.f32_buffer(&[1.0, 0.0])?)?,
            }),
        };
        Ok(ExpertWeights {
            router: matrix("ffn_gate_inp.weight", experts.n_experts, hidden)?,
            experts: Gated {
                gate: stack("ffn_gate_exps.weight", experts.feed_forward, hidden)?,
                up: stack("ffn_up_exps.weight", experts.feed_forward, hidden)?,
                down: stack("ffn_down_exps.weight", hidden, experts.feed_forward)?,
            },
            shared,
        })
    }
}
