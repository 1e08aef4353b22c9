//! The tensors of a GGUF file as weights on a device; quantized ones stay in the mapped file where the device shares the host's memory.

use mlx_native::format::dequantize_row;
use mlx_native::io::gguf::{GgufFile, TensorInfo};
use mlx_native::{DType, GgmlType, MlxBuffer, MlxDevice, MlxError, Weight};

use crate::{ModelConfig, ModelError, Result};

/// Everything that a model multiplies with.
#[derive(Debug)]
pub(crate) struct Weights {
    /// `[vocabulary, hidden]`
    pub embedding: Weight,
    pub layers: Vec<LayerWeights>,
    /// `[hidden]`
    pub output_norm: MlxBuffer,
    /// `[vocabulary, hidden]`; the embedding itself where the file has no other.
    pub output: Weight,
    /// `[n_rot/2]`: Llama 3's division of the rotation frequencies.
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
    /// `[head_dim]`
    pub q_norm: Option<MlxBuffer>,
    pub k_norm: Option<MlxBuffer>,
    pub attn_output: Weight,
    pub post_attn_norm: Option<MlxBuffer>,
    pub ffn_norm: MlxBuffer,
    pub gate: Weight,
    pub up: Weight,
    pub down: Weight,
    pub post_ffn_norm: Option<MlxBuffer>,
}

/// Finds tensors, checks their shapes and puts them on a device.
struct Loader<'a> {
    file: &'a GgufFile,
    device: &'a MlxDevice,
}

impl Loader<'_> {
    fn checked(&self, name: &str, expected: &[usize]) -> Result<TensorInfo<'_>> {
        let tensor = self.file.required_tensor(name)?;
        let found: Vec<usize> = tensor.shape.iter().map(|&dim| dim as usize).collect();
        if found != expected {
            return Err(ModelError::TensorShape { name: name.into(), expected: expected.into(), found });
        }
        Ok(tensor)
    }

    /// A matrix `[n, k]` in the file's own format.
    fn matrix(&self, name: &str, n: usize, k: usize) -> Result<Weight> {
        let tensor = self.checked(name, &[n, k])?;
        let (map, range) = self.file.tensor_map(&tensor)?;
        let dtype = match tensor.ggml_type {
            GgmlType::F32 => DType::F32,
            GgmlType::F16 => DType::F16,
            GgmlType::BF16 => DType::BF16,
            _ => DType::U8,
        };
        let shape = vec![n, range.len() / n / dtype.size_of()];
        let buffer = self.device.buffer_from_map(&map, range, dtype, shape)?;
        Ok(Weight::ggml(tensor.ggml_type, n, k, buffer)?)
    }

    /// A vector in f32, whatever its type in the file.
    fn vector(&self, name: &str, len: usize) -> Result<MlxBuffer> {
        let tensor = self.checked(name, &[len])?;
        let mut values = vec![0f32; len];
        dequantize_row(tensor.ggml_type, self.file.tensor_data(&tensor)?, &mut values)?;
        Ok(self.device.buffer_from_slice(&values, DType::F32, vec![len])?)
    }

    fn optional_vector(&self, name: &str, len: usize) -> Result<Option<MlxBuffer>> {
        self.file.tensor(name).is_some().then(|| self.vector(name, len)).transpose()
    }
}

impl Weights {
    pub(crate) fn load(file: &GgufFile, config: &ModelConfig, device: &MlxDevice) -> Result<Weights> {
        let loader = Loader { file, device };
        let hidden = config.hidden;
        let vocabulary = match file.required_tensor("token_embd.weight")?.shape[..] {
            [rows, _] => rows as usize,
            ref found => {
                let found = found.iter().map(|&dim| dim as usize).collect();
                return Err(ModelError::TensorShape {
                    name: "token_embd.weight".into(),
                    expected: vec![0, hidden],
                    found,
                });
            }
        };
        let embedding = loader.matrix("token_embd.weight", vocabulary, hidden)?;
        let output = match file.tensor("output.weight") {
            Some(_) => loader.matrix("output.weight", vocabulary, hidden)?,
            None => embedding.clone(),
        };
        Ok(Weights {
            layers: (0..config.n_layers).map(|i| LayerWeights::load(&loader, config, i)).collect::<Result<_>>()?,
            output_norm: loader.vector("output_norm.weight", hidden)?,
            output,
            frequency_factors: loader.optional_vector("rope_freqs.weight", config.n_rot / 2)?,
            embedding,
        })
    }

    /// Rows of the embedding.
    pub(crate) fn vocabulary(&self) -> usize {
        self.embedding.n()
    }
}

impl LayerWeights {
    fn load(loader: &Loader<'_>, config: &ModelConfig, layer: usize) -> Result<LayerWeights> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (hidden, feed_forward, head_dim) = (config.hidden, config.feed_forward, config.head_dim);
        let (q_len, kv_len) = (config.n_heads * head_dim, config.n_kv_heads * head_dim);
        let matrix = |part: &str, n, k| loader.matrix(&name(part), n, k);
        let vector = |part: &str, len| loader.vector(&name(part), len);
        let optional = |part: &str, len| loader.optional_vector(&name(part), len);
        if config.architecture == "gemma3" && loader.file.tensor(&name("attn_q_norm.weight")).is_none() {
            let missing = name("attn_q_norm.weight");
            return Err(MlxError::GgufParseError(format!("tensor `{missing}` is missing")).into());
        }
        Ok(LayerWeights {
            attn_norm: vector("attn_norm.weight", hidden)?,
            q: matrix("attn_q.weight", q_len, hidden)?,
            k: matrix("attn_k.weight", kv_len, hidden)?,
            v: matrix("attn_v.weight", kv_len, hidden)?,
            q_bias: optional("attn_q.bias", q_len)?,
            k_bias: optional("attn_k.bias", kv_len)?,
            v_bias: optional("attn_v.bias", kv_len)?,
            q_norm: optional("attn_q_norm.weight", head_dim)?,
            k_norm: optional("attn_k_norm.weight", head_dim)?,
            attn_output: matrix("attn_output.weight", hidden, q_len)?,
            post_attn_norm: optional("post_attention_norm.weight", hidden)?,
            ffn_norm: vector("ffn_norm.weight", hidden)?,
            gate: matrix("ffn_gate.weight", feed_forward, hidden)?,
            up: matrix("ffn_up.weight", feed_forward, hidden)?,
            down: matrix("ffn_down.weight", hidden, feed_forward)?,
            post_ffn_norm: optional("post_ffw_norm.weight", hidden)?,
        })
    }
}
