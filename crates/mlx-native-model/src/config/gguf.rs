//! The configuration from a GGUF file's metadata.

use mlx_native::io::gguf::{FromMetadata, GgufFile, MetadataValue};
use mlx_native::{Activation, RopeStyle};

use super::{Experts, ModelConfig, QkNorm, Rope, SlidingWindow};
use crate::{ModelError, Result};

impl ModelConfig {
    /// Reads the metadata of a GGUF file.
    ///
    /// # Errors
    ///
    /// [`ModelError::UnsupportedArchitecture`]; a missing or malformed key; dimensions of 0 or that contradict each other.
    pub fn from_gguf(file: &GgufFile) -> Result<ModelConfig> {
        let architecture = file.str("general.architecture")?;
        let keys = Keys { file, architecture };
        let config = match architecture {
            "llama" => llama(&keys)?,
            "gemma3" => gemma3(&keys)?,
            "qwen2" => ModelConfig { rope_style: RopeStyle::NeoX, ..decoder(&keys)? },
            "qwen2moe" => qwen2_moe(&keys)?,
            "qwen3" => qwen3(&keys)?,
            "qwen3moe" => {
                let base = qwen3(&keys)?;
                ModelConfig { experts: Some(keys.experts(base.feed_forward, true)?), ..base }
            }
            "olmoe" => olmoe(&keys)?,
            other => return Err(ModelError::UnsupportedArchitecture { found: other.into() }),
        };
        config.check()?;
        Ok(config)
    }
}

struct Keys<'a> {
    file: &'a GgufFile,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn required(&self, key: &str) -> Result<usize> {
        Ok(self.file.u32(&self.name(key))? as usize)
    }

    fn optional<T: FromMetadata<'a>>(&self, key: &str) -> Result<Option<T>> {
        Ok(self.file.optional(&self.name(key))?)
    }

    fn number(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.optional::<u32>(key)?.map_or(default, |value| value as usize))
    }

    /// A number that some files store once for each layer: supported where it is the same for all.
    fn per_layer(&self, key: &str) -> Result<Option<usize>> {
        let name = self.name(key);
        let Some(MetadataValue::Array(array)) = self.file.get(&name) else {
            return Ok(self.optional::<u32>(key)?.map(|value| value as usize));
        };
        let mut values = array.iter().map(|value| value.as_integer().and_then(|v| usize::try_from(v).ok()));
        match values.next() {
            Some(Some(first)) if values.all(|value| value == Some(first)) => Ok(Some(first)),
            _ => Err(ModelError::Config(format!("{name} differs between layers, which is not supported"))),
        }
    }

    fn rope(&self, default_base: f32) -> Result<Rope> {
        let factor = match self.optional::<&str>("rope.scaling.type")? {
            None | Some("none") => 1.0,
            Some("linear") => self.optional::<f32>("rope.scaling.factor")?.unwrap_or(1.0),
            Some(other) => return Err(ModelError::Config(format!("rope scaling `{other}` is not supported"))),
        };
        if !(factor > 0.0 && factor.is_finite()) {
            return Err(ModelError::Config(format!("rope.scaling.factor is {factor}")));
        }
        Ok(Rope {
            base: self.optional::<f32>("rope.freq_base")?.unwrap_or(default_base),
            frequency_scale: 1.0 / factor,
        })
    }

    /// Experts whose files say how long they are, or leave it to `feed_forward`, the length of those that a token goes to together.
    fn experts(&self, feed_forward: usize, normalize: bool) -> Result<Experts> {
        let top_k = self.required("expert_used_count")?;
        let default = feed_forward.checked_div(top_k).unwrap_or(0);
        Ok(Experts {
            n_experts: self.required("expert_count")?,
            top_k,
            feed_forward: self.number("expert_feed_forward_length", default)?,
            normalize,
            shared: None,
            dense_layers: Vec::new(),
        })
    }
}

/// What the architectures have in common.
fn decoder(keys: &Keys<'_>) -> Result<ModelConfig> {
    let hidden = keys.required("embedding_length")?;
    let missing = |key: &str| ModelError::Config(format!("{}.{key} is missing", keys.architecture));
    let n_heads = keys.per_layer("attention.head_count")?.ok_or_else(|| missing("attention.head_count"))?;
    let head_dim = keys.number("attention.key_length", hidden.checked_div(n_heads).unwrap_or(0))?;
    if keys.number("attention.value_length", head_dim)? != head_dim {
        return Err(ModelError::Config("heads whose keys and values differ in length are not supported".into()));
    }
    Ok(ModelConfig {
        architecture: keys.architecture.into(),
        n_layers: keys.required("block_count")?,
        context_length: keys.required("context_length")?,
        hidden,
        feed_forward: keys.per_layer("feed_forward_length")?.ok_or_else(|| missing("feed_forward_length"))?,
        experts: None,
        n_heads,
        n_kv_heads: keys.per_layer("attention.head_count_kv")?.unwrap_or(n_heads),
        head_dim,
        norm_eps: keys.optional::<f32>("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
        qk_norm: QkNorm::None,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        activation: Activation::Silu,
        rope_style: RopeStyle::NeoX,
        n_rot: keys.number("rope.dimension_count", head_dim)?,
        rope: keys.rope(10_000.0)?,
        frequency_factors: None,
        sliding: None,
    })
}

/// Llama, Mistral, and with experts Mixtral, all of whose feed-forward layers have the same length.
fn llama(keys: &Keys<'_>) -> Result<ModelConfig> {
    let base = decoder(keys)?;
    let experts = match keys.number("expert_count", 0)? {
        0 => None,
        _ => Some(Experts { feed_forward: base.feed_forward, ..keys.experts(0, true)? }),
    };
    // The converter permutes query and key rows, so that neighbours pair up.
    Ok(ModelConfig { experts, rope_style: RopeStyle::Interleaved, ..base })
}

/// Qwen 2 with experts: one of them sees every token, and the chosen probabilities stay as they are.
fn qwen2_moe(keys: &Keys<'_>) -> Result<ModelConfig> {
    let base = decoder(keys)?;
    let shared = keys.number("expert_shared_feed_forward_length", base.feed_forward)?;
    let experts = Experts { shared: Some(shared), ..keys.experts(base.feed_forward, false)? };
    Ok(ModelConfig { experts: Some(experts), ..base })
}

/// Qwen 3: norms over query and key heads, no biases.
fn qwen3(keys: &Keys<'_>) -> Result<ModelConfig> {
    Ok(ModelConfig { qk_norm: QkNorm::Heads, ..decoder(keys)? })
}

/// OLMoE: norms over all heads together, and the chosen probabilities stay as they are.
fn olmoe(keys: &Keys<'_>) -> Result<ModelConfig> {
    let base = decoder(keys)?;
    let experts = Experts { feed_forward: base.feed_forward, ..keys.experts(0, false)? };
    Ok(ModelConfig { qk_norm: QkNorm::Tokens, experts: Some(experts), ..base })
}

/// Gemma 3: scaled embeddings, norms around both halves of a layer and over query and key heads, five windowed layers to each global one.
fn gemma3(keys: &Keys<'_>) -> Result<ModelConfig> {
    let base = decoder(keys)?;
    let local = Rope { base: keys.optional::<f32>("rope.freq_base_swa")?.unwrap_or(10_000.0), frequency_scale: 1.0 };
    let sliding = keys
        .optional::<u32>("attention.sliding_window")?
        .filter(|&window| window > 0)
        .map(|window| SlidingWindow { window: window as usize, global_every: 6, rope: local });
    // The 27B model (62 layers) scales by hidden / n_heads instead of the head's length.
    let scale_by = match base.n_layers {
        62 => base.hidden.checked_div(base.n_heads).unwrap_or(0),
        _ => base.head_dim,
    };
    Ok(ModelConfig {
        qk_norm: QkNorm::Heads,
        embedding_scale: (base.hidden as f32).sqrt(),
        attention_scale: 1.0 / (scale_by as f32).sqrt(),
        activation: Activation::GeluTanh,
        rope: keys.rope(1_000_000.0)?,
        sliding,
        ..base
    })
}
