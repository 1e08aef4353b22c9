//! What a model's metadata say of its layers.

mod gguf;
pub(crate) mod mlx;

use mlx_native::{Activation, RopeStyle};

use crate::{ModelError, Result};

/// The architectures that this crate runs, by GGUF's names (`general.architecture`); Mixtral is a `llama` with experts.
pub const ARCHITECTURES: &[&str] = &["llama", "gemma3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "olmoe"];

/// Far above any model's dimension, and small enough that no product of three of them overflows.
const MOST: usize = 1 << 20;

/// A decoder's layers: the dimensions, and where the architectures differ.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// One of [`ARCHITECTURES`].
    pub architecture: String,
    /// Layers.
    pub n_layers: usize,
    /// Positions that the model was trained on.
    pub context_length: usize,
    /// Values of a hidden state.
    pub hidden: usize,
    /// Values between the two halves of a feed-forward layer without experts.
    pub feed_forward: usize,
    /// Feed-forward layers of experts, where there are any.
    pub experts: Option<Experts>,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Added to the mean square in every norm.
    pub norm_eps: f32,
    /// Norms over queries and keys.
    pub qk_norm: QkNorm,
    /// Factor on embedded tokens.
    pub embedding_scale: f32,
    /// Factor on attention scores.
    pub attention_scale: f32,
    /// The activation of the feed-forward gate.
    pub activation: Activation,
    /// Which values of a head turn together.
    pub rope_style: RopeStyle,
    /// Values of a head that turn.
    pub n_rot: usize,
    /// Rotation in layers that see everything.
    pub rope: Rope,
    /// What the rotation's frequencies are divided by, `[n_rot/2]`, where the configuration says so; a GGUF file may have a tensor of them instead.
    pub frequency_factors: Option<Vec<f32>>,
    /// Sliding-window layers, where there are any.
    pub sliding: Option<SlidingWindow>,
}

/// What the norms over queries and keys run over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// There are none.
    None,
    /// Each head on its own; weights `[head_dim]`.
    Heads,
    /// All heads of a token together; weights `[n_heads · head_dim]`.
    Tokens,
}

/// A mixture of experts in place of one feed-forward layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Experts of a layer.
    pub n_experts: usize,
    /// Experts that a token goes to.
    pub top_k: usize,
    /// Values between the two halves of an expert.
    pub feed_forward: usize,
    /// Whether the chosen probabilities are divided by their sum.
    pub normalize: bool,
    /// Values between the two halves of the expert that every token goes to, where there is one.
    pub shared: Option<usize>,
    /// Layers that have no experts.
    pub dense_layers: Vec<usize>,
}

/// Rotary position embedding of a kind of layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// θ
    pub base: f32,
    /// 1 / the linear scaling factor.
    pub frequency_scale: f32,
}

/// Layers that see a window of positions only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlidingWindow {
    /// Positions that a token sees, its own included.
    pub window: usize,
    /// Layer i sees everything when (i + 1) is a multiple of this, and the window otherwise.
    pub global_every: usize,
    /// Rotation in these layers.
    pub rope: Rope,
}

impl SlidingWindow {
    /// Whether layer `layer` (from 0) sees the window only.
    pub fn covers(&self, layer: usize) -> bool {
        !(layer + 1).is_multiple_of(self.global_every)
    }
}

impl ModelConfig {
    /// The experts of layer `layer` (from 0), if it has any.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| !experts.dense_layers.contains(&layer))
    }

    fn check(&self) -> Result<()> {
        let dims = [
            ("block_count", self.n_layers),
            ("context_length", self.context_length),
            ("embedding_length", self.hidden),
            ("feed_forward_length", self.feed_forward),
            ("attention.head_count", self.n_heads),
            ("attention.head_count_kv", self.n_kv_heads),
            ("attention.key_length", self.head_dim),
        ];
        if let Some((key, value)) = dims
            .iter()
            .find(|(key, value)| *value == 0 || *value > if *key == "context_length" { 1 << 31 } else { MOST })
        {
            return Err(ModelError::Config(format!("{}.{key} is {value}", self.architecture)));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(ModelError::Config(format!(
                "{} query heads are no multiple of {} key heads",
                self.n_heads, self.n_kv_heads
            )));
        }
        if let Some(experts) = &self.experts {
            let Experts { n_experts, top_k, feed_forward, shared, .. } = experts;
            if *top_k == 0 || top_k > n_experts || [n_experts, feed_forward].iter().any(|&&dim| dim == 0 || dim > MOST)
            {
                return Err(ModelError::Config(format!(
                    "{top_k} of {n_experts} experts of {feed_forward} values are to be used"
                )));
            }
            if let Some(shared) = shared.filter(|&shared| shared == 0 || shared > MOST) {
                return Err(ModelError::Config(format!("the shared expert has {shared} values")));
            }
        }
        if self.n_rot == 0 || self.n_rot > self.head_dim || !self.n_rot.is_multiple_of(2) {
            return Err(ModelError::Config(format!("{} of a head's {} values are to turn", self.n_rot, self.head_dim)));
        }
        Ok(())
    }
}
