//! What a model's metadata say of its layers.

use mlx_native::io::gguf::{FromMetadata, GgufFile, MetadataValue};
use mlx_native::{Activation, RopeStyle};

use crate::{ModelError, Result};

/// Values of `general.architecture` that this crate runs.
pub const ARCHITECTURES: &[&str] = &["llama", "gemma3"];

/// A decoder's layers: the dimensions, and where the architectures differ.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `general.architecture`.
    pub architecture: String,
    /// Layers.
    pub n_layers: usize,
    /// Positions that the model was trained on.
    pub context_length: usize,
    /// Values of a hidden state.
    pub hidden: usize,
    /// Values between the two halves of a feed-forward layer.
    pub feed_forward: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Added to the mean square in every norm.
    pub norm_eps: f32,
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
    /// Sliding-window layers, where there are any.
    pub sliding: Option<SlidingWindow>,
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
            other => return Err(ModelError::UnsupportedArchitecture { found: other.into() }),
        };
        config.check()?;
        Ok(config)
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
        // Far above any model, and small enough that no product of three of them overflows.
        const MOST: usize = 1 << 20;
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
        if self.n_rot > self.head_dim || !self.n_rot.is_multiple_of(2) {
            return Err(ModelError::Config(format!("{} of a head's {} values are to turn", self.n_rot, self.head_dim)));
        }
        Ok(())
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
}

/// What the architectures have in common; `llama` is this and nothing more.
fn llama(keys: &Keys<'_>) -> Result<ModelConfig> {
    if keys.number("expert_count", 0)? > 0 {
        return Err(ModelError::Config("llama with experts is not supported".into()));
    }
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
        n_heads,
        n_kv_heads: keys.per_layer("attention.head_count_kv")?.unwrap_or(n_heads),
        head_dim,
        norm_eps: keys.optional::<f32>("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        activation: Activation::Silu,
        // The converter permutes query and key rows, so that neighbours pair up.
        rope_style: RopeStyle::Interleaved,
        n_rot: keys.number("rope.dimension_count", head_dim)?,
        rope: keys.rope(10_000.0)?,
        sliding: None,
    })
}

/// Gemma 3: scaled embeddings, norms around both halves of a layer and over query and key heads, five windowed layers to each global one.
fn gemma3(keys: &Keys<'_>) -> Result<ModelConfig> {
    let base = llama(keys)?;
    let local = Rope { base: keys.optional::<f32>("rope.freq_base_swa")?.unwrap_or(10_000.0), frequency_scale: 1.0 };
    let sliding = keys
        .optional::<u32>("attention.sliding_window")?
        .filter(|&window| window > 0)
        .map(|window| SlidingWindow { window: window as usize, global_every: 6, rope: local });
    // The 27B model (62 layers) scales by hidden / n_heads instead of the head's length.
    let scale_by = if base.n_layers == 62 { base.hidden / base.n_heads } else { base.head_dim };
    Ok(ModelConfig {
        embedding_scale: (base.hidden as f32).sqrt(),
        attention_scale: 1.0 / (scale_by as f32).sqrt(),
        activation: Activation::GeluTanh,
        rope_style: RopeStyle::NeoX,
        rope: keys.rope(1_000_000.0)?,
        sliding,
        ..base
    })
}
