//! The configuration from a `config.json` in Hugging Face's layout, which MLX's model directories share.

use mlx_native::{Activation, RopeStyle};
use serde_json::{Value, json};

use super::{Experts, ModelConfig, QkNorm, Rope, SlidingWindow};
use crate::{ModelError, Result};

/// `model_type` of a configuration, and our name of the architecture.
const MODEL_TYPES: &[(&str, &str)] = &[
    ("llama", "llama"),
    ("mistral", "llama"),
    ("mixtral", "llama"),
    ("gemma3", "gemma3"),
    ("gemma3_text", "gemma3"),
    ("qwen2", "qwen2"),
    ("qwen2_moe", "qwen2moe"),
    ("qwen3", "qwen3"),
    ("qwen3_moe", "qwen3moe"),
    ("olmoe", "olmoe"),
];

/// Where a model that also sees images keeps the configuration of its decoder.
const TEXT_CONFIG: &str = "text_config";

/// Our name for a `model_type` that this crate runs.
fn supported(model_type: &str) -> Option<&'static str> {
    MODEL_TYPES.iter().find(|(name, _)| *name == model_type).map(|(_, architecture)| *architecture)
}

impl ModelConfig {
    /// The architecture that a parsed `config.json` names: one of [`ARCHITECTURES`](crate::ARCHITECTURES), or its `model_type` as it is.
    pub fn architecture_of(config: &Value) -> Option<&str> {
        let model_type = config.get("model_type")?.as_str()?;
        Some(supported(model_type).unwrap_or(model_type))
    }

    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    ///
    /// [`ModelError::UnsupportedArchitecture`]; a missing or malformed key; dimensions of 0 or that contradict each other.
    pub fn from_config_json(config: &Value) -> Result<ModelConfig> {
        let model_type = Keys { config, outer: None }.required_text("model_type")?;
        let architecture =
            supported(model_type).ok_or_else(|| ModelError::UnsupportedArchitecture { found: model_type.into() })?;
        let keys = match config.get(TEXT_CONFIG) {
            Some(inner) => Keys { config: inner, outer: Some(config) },
            None => Keys { config, outer: None },
        };
        let base = decoder(&keys, architecture)?;
        let config = match model_type {
            "mixtral" => {
                let experts = keys.experts("num_local_experts", base.feed_forward, true)?;
                ModelConfig { experts: Some(experts), ..base }
            }
            "gemma3" | "gemma3_text" => gemma3(&keys, base)?,
            "qwen2_moe" => {
                let length = keys.number("moe_intermediate_size", base.feed_forward)?;
                let shared = keys.number("shared_expert_intermediate_size", base.feed_forward)?;
                let experts = Experts { shared: Some(shared), ..keys.experts("num_experts", length, false)? };
                ModelConfig { experts: Some(keys.sparse(experts, base.n_layers)?), ..base }
            }
            "qwen3" => ModelConfig { qk_norm: QkNorm::Heads, ..base },
            "qwen3_moe" => {
                let length = keys.number("moe_intermediate_size", base.feed_forward)?;
                let experts = keys.experts("num_experts", length, keys.flag("norm_topk_prob", true)?)?;
                let experts = Some(keys.sparse(experts, base.n_layers)?);
                ModelConfig { qk_norm: QkNorm::Heads, experts, ..base }
            }
            "olmoe" => {
                let normalize = keys.flag("norm_topk_prob", false)?;
                let experts = Some(keys.experts("num_experts", base.feed_forward, normalize)?);
                ModelConfig { qk_norm: QkNorm::Tokens, experts, ..base }
            }
            _ => base,
        };
        config.check()?;
        Ok(config)
    }
}

/// A float as it is written by hand: 1e-5, not the nearest f64 of the nearest f32.
fn number(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

impl ModelConfig {
    /// The `config.json` of such a model, less what only its tensors and its tokenizer tell; `factors` are those that a GGUF file divides the rotation's
    /// frequencies by.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`] for factors that are not Llama 3's.
    pub(crate) fn to_config_json(&self, factors: Option<&[f32]>) -> Result<Value> {
        let model_type = match (self.architecture.as_str(), &self.experts) {
            ("llama", Some(_)) => "mixtral",
            ("gemma3", _) => "gemma3_text",
            (architecture, _) => {
                let found = MODEL_TYPES.iter().find(|(_, ours)| *ours == architecture);
                found.map_or(architecture, |(model_type, _)| *model_type)
            }
        };
        let class = match model_type {
            "llama" => "LlamaForCausalLM",
            "mixtral" => "MixtralForCausalLM",
            "gemma3_text" => "Gemma3ForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            "qwen2_moe" => "Qwen2MoeForCausalLM",
            "qwen3" => "Qwen3ForCausalLM",
            "qwen3_moe" => "Qwen3MoeForCausalLM",
            _ => "OlmoeForCausalLM",
        };
        let mut json = json!({
            "architectures": [class], "model_type": model_type, "hidden_size": self.hidden, "num_hidden_layers": self.n_layers,
            "intermediate_size": self.feed_forward, "num_attention_heads": self.n_heads, "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim, "rms_norm_eps": number(self.norm_eps), "max_position_embeddings": self.context_length,
            "rope_theta": number(self.rope.base), "hidden_act": "silu",
        });
        if self.rope.frequency_scale != 1.0 {
            json["rope_scaling"] = json!({ "rope_type": "linear", "factor": number(1.0 / self.rope.frequency_scale) });
        }
        if let Some(factors) = factors {
            json["rope_scaling"] = self.llama3_scaling(factors)?;
        }
        if let Some(sliding) = &self.sliding {
            json["sliding_window"] = sliding.window.into();
            json["sliding_window_pattern"] = sliding.global_every.into();
            json["rope_local_base_freq"] = number(sliding.rope.base);
        }
        if model_type == "gemma3_text" {
            json["hidden_act"] = "gelu_pytorch_tanh".into();
            json["hidden_activation"] = "gelu_pytorch_tanh".into();
            json["query_pre_attn_scalar"] = number((1.0 / (self.attention_scale * self.attention_scale)).round());
        }
        if let Some(experts) = &self.experts {
            json["num_experts_per_tok"] = experts.top_k.into();
            json["norm_topk_prob"] = experts.normalize.into();
            let count = if model_type == "mixtral" { "num_local_experts" } else { "num_experts" };
            json[count] = experts.n_experts.into();
            match model_type {
                "mixtral" | "olmoe" => json["intermediate_size"] = experts.feed_forward.into(),
                _ => {
                    json["moe_intermediate_size"] = experts.feed_forward.into();
                    json["decoder_sparse_step"] = 1.into();
                    json["mlp_only_layers"] = experts.dense_layers.clone().into();
                }
            }
            if let Some(shared) = experts.shared {
                json["shared_expert_intermediate_size"] = shared.into();
            }
        }
        Ok(json)
    }

    /// Llama 3's scaling that gives these factors: all published models go from 1 to 4 periods in a context of 8192.
    fn llama3_scaling(&self, factors: &[f32]) -> Result<Value> {
        let largest = factors.iter().copied().fold(1.0, f32::max);
        let scaling = json!({
            "rope_type": "llama3", "factor": number(largest), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
        let made = llama3_factors(&Keys { config: &scaling, outer: None }, self.rope.base, largest, self.n_rot)?;
        let agree = made.len() == factors.len() && made.iter().zip(factors).all(|(a, b)| (a / b - 1.0).abs() < 1e-3);
        if !agree {
            let problem = "`rope_freqs.weight` is not Llama 3's, and has no place in a model directory";
            return Err(ModelError::Config(problem.into()));
        }
        Ok(scaling)
    }
}

struct Keys<'a> {
    config: &'a Value,
    /// The whole file, where `config` is a part of it.
    outer: Option<&'a Value>,
}

impl<'a> Keys<'a> {
    /// A value that is there and not null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        let found = self.config.get(key).or_else(|| self.outer?.get(key));
        found.filter(|value| !value.is_null())
    }

    fn unexpected(key: &str, expected: &str, found: &Value) -> ModelError {
        ModelError::Config(format!("config.json: `{key}`: expected {expected}, found {found}"))
    }

    fn missing(key: &str) -> ModelError {
        ModelError::Config(format!("config.json: `{key}` is missing"))
    }

    fn required_text(&self, key: &str) -> Result<&'a str> {
        let value = self.get(key).ok_or_else(|| Self::missing(key))?;
        value.as_str().ok_or_else(|| Self::unexpected(key, "a string", value))
    }

    fn optional_number(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        number.map(Some).ok_or_else(|| Self::unexpected(key, "a whole number", value))
    }

    fn number(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.optional_number(key)?.unwrap_or(default))
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.optional_number(key)?.ok_or_else(|| Self::missing(key))
    }

    fn float(&self, key: &str, default: f32) -> Result<f32> {
        let Some(value) = self.get(key) else { return Ok(default) };
        match value.as_f64().map(|number| number as f32) {
            Some(number) if number.is_finite() => Ok(number),
            _ => Err(Self::unexpected(key, "a number", value)),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| Self::unexpected(key, "true or false", value))
    }

    /// The entry `key` as an object of its own.
    fn object(&self, key: &str) -> Result<Option<Keys<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(config @ Value::Object(_)) => Ok(Some(Keys { config, outer: None })),
            Some(other) => Err(Self::unexpected(key, "an object", other)),
        }
    }

    /// Experts, of which a token goes to `num_experts_per_tok`.
    fn experts(&self, count: &str, feed_forward: usize, normalize: bool) -> Result<Experts> {
        Ok(Experts {
            n_experts: self.required(count)?,
            top_k: self.required("num_experts_per_tok")?,
            feed_forward,
            normalize,
            shared: None,
            dense_layers: Vec::new(),
        })
    }

    /// Qwen's ways to leave layers without experts: named ones, and all but every so many.
    fn sparse(&self, experts: Experts, n_layers: usize) -> Result<Experts> {
        let step = self.number("decoder_sparse_step", 1)?;
        let named = match self.get("mlp_only_layers") {
            None => Vec::new(),
            Some(list) => list
                .as_array()
                .and_then(|list| list.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>())
                .ok_or_else(|| Self::unexpected("mlp_only_layers", "a list of layers", list))?,
        };
        let dense = |layer: &usize| named.contains(&(*layer as u64)) || step == 0 || !(layer + 1).is_multiple_of(step);
        Ok(Experts { dense_layers: (0..n_layers.min(super::MOST)).filter(dense).collect(), ..experts })
    }

    /// The rotation of the layers that see everything, and what its frequencies are divided by.
    fn rope(&self, default_base: f32, n_rot: usize) -> Result<(Rope, Option<Vec<f32>>)> {
        // Newer files keep the base beside the scaling.
        let parameters = self.object("rope_parameters")?;
        let base = match &parameters {
            Some(parameters) => parameters.float("rope_theta", self.float("rope_theta", default_base)?)?,
            None => self.float("rope_theta", default_base)?,
        };
        let Some(scaling) = (match self.object("rope_scaling")? {
            Some(scaling) => Some(scaling),
            None => parameters,
        }) else {
            return Ok((Rope { base, frequency_scale: 1.0 }, None));
        };
        let kind = scaling
            .get("rope_type")
            .or_else(|| scaling.get("type"))
            .map_or("default", |kind| kind.as_str().unwrap_or("of another type than text"));
        let factor = scaling.float("factor", 1.0)?;
        if factor <= 0.0 {
            return Err(ModelError::Config(format!("config.json: the factor of `rope_scaling` is {factor}")));
        }
        match kind {
            "default" | "none" => Ok((Rope { base, frequency_scale: 1.0 }, None)),
            "linear" => Ok((Rope { base, frequency_scale: 1.0 / factor }, None)),
            "llama3" => {
                let factors = llama3_factors(&scaling, base, factor, n_rot)?;
                Ok((Rope { base, frequency_scale: 1.0 }, Some(factors)))
            }
            other => Err(ModelError::Config(format!("rope scaling `{other}` is not supported"))),
        }
    }
}

/// Llama 3's scaling: waves longer than the trained context by a factor are stretched by `factor`, short ones stay, and those between are
/// stretched in part. Divides frequency i, base^(−2i/n_rot).
fn llama3_factors(scaling: &Keys<'_>, base: f32, factor: f32, n_rot: usize) -> Result<Vec<f32>> {
    let trained = scaling.number("original_max_position_embeddings", 8192)? as f64;
    let low = f64::from(scaling.float("low_freq_factor", 1.0)?);
    let high = f64::from(scaling.float("high_freq_factor", 4.0)?);
    if !(low > 0.0 && high > low) {
        return Err(ModelError::Config(format!(
            "config.json: `rope_scaling` goes from low_freq_factor {low} to high_freq_factor {high}"
        )));
    }
    let factor = f64::from(factor);
    let factors = (0..n_rot.min(super::MOST) / 2).map(|i| {
        let wave = std::f64::consts::TAU * f64::from(base).powf(2.0 * i as f64 / n_rot as f64);
        // Periods of the wave in the trained context.
        let periods = trained / wave;
        let kept = ((periods - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - kept) / factor + kept)) as f32
    });
    Ok(factors.collect())
}

/// What the architectures have in common.
fn decoder(keys: &Keys<'_>, architecture: &str) -> Result<ModelConfig> {
    // The values that libraries take where a file leaves them out differ; Gemma's text configuration leaves out most.
    let gemma = architecture == "gemma3";
    let hidden = keys.required("hidden_size")?;
    let n_heads = match keys.optional_number("num_attention_heads")? {
        Some(heads) => heads,
        None if gemma => 8,
        None => return Err(Keys::missing("num_attention_heads")),
    };
    let head_dim = match keys.optional_number("head_dim")? {
        Some(head_dim) => head_dim,
        None if gemma => 256,
        None => hidden.checked_div(n_heads).unwrap_or(0),
    };
    if let Some(activation) = keys.get("hidden_act").or_else(|| keys.get("hidden_activation")) {
        let expected: &[&str] = if gemma { &["gelu_pytorch_tanh"] } else { &["silu"] };
        if !activation.as_str().is_some_and(|name| expected.contains(&name)) {
            return Err(Keys::unexpected("hidden_act", expected[0], activation));
        }
    }
    if keys.flag("rope_traditional", false)? {
        return Err(ModelError::Config("config.json: `rope_traditional` is not supported".into()));
    }
    let default_base = if matches!(architecture, "llama" | "olmoe") { 10_000.0 } else { 1_000_000.0 };
    let (rope, frequency_factors) = if gemma {
        (Rope { base: default_base, frequency_scale: 1.0 }, None)
    } else {
        keys.rope(default_base, head_dim)?
    };
    Ok(ModelConfig {
        architecture: architecture.into(),
        n_layers: keys.required("num_hidden_layers")?,
        context_length: keys.number("max_position_embeddings", if gemma { 131_072 } else { 32_768 })?,
        hidden,
        feed_forward: keys.required("intermediate_size")?,
        experts: None,
        n_heads,
        n_kv_heads: keys.number("num_key_value_heads", if gemma { 4 } else { n_heads })?,
        head_dim,
        norm_eps: keys.float("rms_norm_eps", if architecture == "olmoe" { 1e-5 } else { 1e-6 })?,
        qk_norm: QkNorm::None,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        activation: Activation::Silu,
        rope_style: RopeStyle::NeoX,
        n_rot: head_dim,
        rope,
        frequency_factors,
        sliding: None,
    })
}

/// Gemma 3: scaled embeddings, norms around both halves of a layer and over query and key heads, five windowed layers to each global one.
fn gemma3(keys: &Keys<'_>, base: ModelConfig) -> Result<ModelConfig> {
    // Newer files have one set of rotations for each kind of layer.
    let kinds = keys.object("rope_parameters")?;
    let of = |kind: &str| kinds.as_ref().map_or(Ok(None), |kinds| kinds.object(kind));
    let rope = match of("full_attention")? {
        Some(parameters) => {
            let scale = parameters.float("factor", 1.0)?;
            let base = parameters.float("rope_theta", 1_000_000.0)?;
            Rope { base, frequency_scale: 1.0 / scale }
        }
        None => keys.rope(1_000_000.0, base.head_dim)?.0,
    };
    let local = match of("sliding_attention")? {
        Some(parameters) => parameters.float("rope_theta", 10_000.0)?,
        None => keys.float("rope_local_base_freq", 10_000.0)?,
    };
    let window = keys.number("sliding_window", 512)?;
    let global_every = keys.number("sliding_window_pattern", keys.number("_sliding_window_pattern", 6)?)?;
    if window == 0 || global_every == 0 || !(rope.base > 0.0 && rope.frequency_scale.is_finite() && local > 0.0) {
        return Err(ModelError::Config(format!(
            "config.json: a window of {window}, global layers every {global_every}, rotations {rope:?} and {local}"
        )));
    }
    let local = Rope { base: local, frequency_scale: 1.0 };
    let scale_by = keys.float("query_pre_attn_scalar", 256.0)?;
    Ok(ModelConfig {
        qk_norm: QkNorm::Heads,
        // The reference implementations round this factor to bf16 for such directories.
        embedding_scale: half::bf16::from_f32((base.hidden as f32).sqrt()).to_f32(),
        attention_scale: 1.0 / scale_by.max(f32::MIN_POSITIVE).sqrt(),
        activation: Activation::GeluTanh,
        rope,
        sliding: Some(SlidingWindow { window, global_every, rope: local }),
        ..base
    })
}
