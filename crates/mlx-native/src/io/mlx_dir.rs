//! Model directories as mlx-lm writes them: `config.json` and quantized weights in safetensors.
//!
//! A quantized layer `L` is stored as `L.weight` (packed), `L.scales` and, for affine formats, `L.biases`. How it is packed is said in
//! `config.json`, for all layers and optionally for single ones:
//!
//! ```json
//! { "quantization": { "group_size": 64, "bits": 4, "mode": "affine",
//!                     "model.layers.0.mlp.down_proj": { "group_size": 32, "bits": 8 },
//!                     "lm_head": false } }
//! ```

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::FileMap;
use super::safetensors::{SafetensorsFile, SafetensorsInfo};
use crate::format::{AffineFormat, FpMode, WeightFormat, WeightRow, dequantize_row};
use crate::{DType, GgmlType, MlxError, Result};

/// What MLX takes where an affine configuration leaves them out.
const DEFAULT_AFFINE: (u32, u32) = (64, 4);

/// How a layer's weight is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// Packed integers, a scale and a bias for each group.
    Affine {
        /// Values that share a scale and a bias.
        group_size: u32,
        /// Bits of a value.
        bits: u32,
    },
    /// Packed floats, a scale for each group.
    Fp(FpMode),
}

/// The `quantization` entry of a `config.json`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuantizationConfig {
    /// For layers that are not named; `None` if the model is not quantized.
    default: Option<Quantization>,
    /// For named layers; `None` if such a layer is not quantized.
    layers: HashMap<String, Option<Quantization>>,
}

impl QuantizationConfig {
    /// Reads the entry from a parsed `config.json`; without one the model is not quantized.
    ///
    /// # Errors
    /// [`MlxError::QuantConfigError`] that names the entry, what was expected and what was found.
    pub fn from_config(config: &Value) -> Result<Self> {
        let entry = match config.get("quantization") {
            None | Some(Value::Null) => return Ok(Self::default()),
            Some(Value::Object(entry)) => entry,
            Some(other) => return Err(unexpected("quantization", "an object", other)),
        };
        let default = Some(parse_quantization("quantization", entry)?);
        let mut layers = HashMap::new();
        for (key, value) in entry {
            match value {
                Value::Object(layer) => {
                    layers.insert(key.clone(), Some(parse_quantization(&format!("quantization.{key}"), layer)?));
                }
                Value::Bool(quantized) => {
                    layers.insert(key.clone(), default.filter(|_| *quantized));
                }
                // Entries of other tools beside MLX's own.
                _ => {}
            }
        }
        Ok(QuantizationConfig { default, layers })
    }

    /// How a layer is quantized, if its weight is stored with scales: `layer` is the tensor's name without `.weight`.
    pub fn layer(&self, layer: &str) -> Option<Quantization> {
        self.layers.get(layer).copied().unwrap_or(self.default)
    }
}

fn parse_quantization(at: &str, entry: &Map<String, Value>) -> Result<Quantization> {
    let number = |key: &str| match entry.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().map(u32::try_from) {
            Some(Ok(number)) => Ok(Some(number)),
            _ => Err(unexpected(&format!("{at}.{key}"), "a whole number", value)),
        },
    };
    let (group_size, bits) = (number("group_size")?, number("bits")?);
    let mode = match entry.get("mode") {
        None | Some(Value::Null) => "affine",
        Some(Value::String(mode)) => mode,
        Some(other) => return Err(unexpected(&format!("{at}.mode"), "a string", other)),
    };
    if mode == "affine" {
        let (group_size, bits) = (group_size.unwrap_or(DEFAULT_AFFINE.0), bits.unwrap_or(DEFAULT_AFFINE.1));
        // Any scale dtype will do to check the other two.
        AffineFormat::new(bits, group_size, DType::F32)
            .map_err(|e| MlxError::QuantConfigError(format!("{at}: {e}")))?;
        return Ok(Quantization::Affine { group_size, bits });
    }
    let Some(fp) = FpMode::from_name(mode) else {
        let problem = format!("{at}.mode: expected affine, mxfp4, mxfp8 or nvfp4, found {mode:?}");
        return Err(MlxError::QuantConfigError(problem));
    };
    for (key, found, expected) in [("group_size", group_size, fp.group_size()), ("bits", bits, fp.bits())] {
        if let Some(found) = found.filter(|&found| found != expected) {
            let problem = format!("{at}.{key}: expected {expected} for {mode}, found {found}");
            return Err(MlxError::QuantConfigError(problem));
        }
    }
    Ok(Quantization::Fp(fp))
}

fn unexpected(at: &str, expected: &str, found: &Value) -> MlxError {
    MlxError::QuantConfigError(format!("{at}: expected {expected}, found {found}"))
}

/// A weight of an MLX model: a matrix `[n, k]` or a stack of them, and the tensors that it is stored in.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MlxWeight<'a> {
    /// What the bytes mean; for weights that are not quantized the plain type.
    pub format: WeightFormat,
    /// Matrices in the stack, for experts; 1 for a single matrix.
    pub n_experts: usize,
    /// Rows: output features.
    pub n: usize,
    /// Values of a row: input features.
    pub k: usize,
    /// Packed or plain values.
    pub weight: &'a SafetensorsInfo,
    /// Scales `[…, n, k / group_size]`.
    pub scales: Option<&'a SafetensorsInfo>,
    /// Biases, as the scales; affine formats only.
    pub biases: Option<&'a SafetensorsInfo>,
}

/// An open model directory.
#[derive(Debug)]
pub struct MlxModelDir {
    config: Value,
    quantization: QuantizationConfig,
    file: SafetensorsFile,
}

impl MlxModelDir {
    /// Opens `config.json` and the safetensors, single or in shards.
    ///
    /// # Errors
    /// [`MlxError::IoError`] if a file is missing, [`MlxError::QuantConfigError`] for a malformed configuration,
    /// [`MlxError::SafetensorsError`] for malformed weights.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let path = dir.as_ref().join("config.json");
        let at = |problem: &dyn std::fmt::Display| MlxError::QuantConfigError(format!("{}: {problem}", path.display()));
        let config: Value = serde_json::from_slice(&FileMap::open(&path)?).map_err(|e| at(&e))?;
        let quantization = QuantizationConfig::from_config(&config).map_err(|e| match e {
            MlxError::QuantConfigError(problem) => at(&problem),
            other => other,
        })?;
        Ok(MlxModelDir { config, quantization, file: SafetensorsFile::open_dir(dir)? })
    }

    /// The whole `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// What it says about quantization.
    pub fn quantization(&self) -> &QuantizationConfig {
        &self.quantization
    }

    /// The tensors.
    pub fn file(&self) -> &SafetensorsFile {
        &self.file
    }

    /// The weight of a layer, by its name without `.weight`: `"model.layers.0.self_attn.q_proj"`.
    ///
    /// # Errors
    /// [`MlxError::SafetensorsError`] if a tensor is missing, [`MlxError::UnsupportedDtype`] if it has no matrix product,
    /// [`MlxError::QuantConfigError`] if shapes and configuration contradict each other.
    pub fn weight(&self, layer: &str) -> Result<MlxWeight<'_>> {
        let weight = self.file.required_tensor(&format!("{layer}.weight"))?;
        let (n_experts, n, columns) = matrix_shape(weight)?;
        let Some(scales) = self.file.tensor(&format!("{layer}.scales")) else {
            let format = plain_format(weight)?.into();
            return Ok(MlxWeight { format, n_experts, n, k: columns, weight, scales: None, biases: None });
        };

        let problem = |problem: String| MlxError::QuantConfigError(format!("layer `{layer}`: {problem}"));
        let quantization = self
            .quantization
            .layer(layer)
            .ok_or_else(|| problem("has scales, but config.json does not say how it is quantized".to_string()))?;
        let groups = match *scales.shape.as_slice() {
            [.., groups] if scales.shape[..scales.shape.len() - 1] == weight.shape[..weight.shape.len() - 1] => groups,
            _ => {
                let (expected, found) = (&weight.shape[..weight.shape.len() - 1], &scales.shape);
                return Err(problem(format!("expected scales of {expected:?} rows, found {found:?}")));
            }
        };
        let (format, group_size) = match quantization {
            Quantization::Affine { group_size, bits } => {
                let format =
                    AffineFormat::new(bits, group_size, scales.dtype()?).map_err(|e| problem(e.to_string()))?;
                (WeightFormat::Affine(format), group_size)
            }
            Quantization::Fp(mode) => {
                if scales.dtype()? != DType::U8 {
                    return Err(problem(format!(
                        "expected u8 scales for {}, found {}",
                        mode.name(),
                        scales.dtype_name()
                    )));
                }
                (WeightFormat::Fp(mode), mode.group_size())
            }
        };
        let k = groups
            .checked_mul(group_size as usize)
            .ok_or_else(|| problem(format!("{groups} groups of {group_size} values overflow")))?;
        let expected = format.row_bytes(k).map_err(|e| problem(e.to_string()))?;
        let found = columns.saturating_mul(weight.dtype()?.size_of());
        if expected != found {
            let rows =
                format!("{groups} groups make rows of {expected} bytes in {format}, but the weight's have {found}");
            return Err(problem(rows));
        }
        let biases = match quantization {
            Quantization::Affine { .. } => {
                let biases = self.file.required_tensor(&format!("{layer}.biases"))?;
                if biases.shape != scales.shape || biases.dtype()? != scales.dtype()? {
                    return Err(problem(format!(
                        "expected biases like the scales, {:?} {}, found {:?} {}",
                        scales.shape,
                        scales.dtype_name(),
                        biases.shape,
                        biases.dtype_name()
                    )));
                }
                Some(biases)
            }
            Quantization::Fp(_) => None,
        };
        Ok(MlxWeight { format, n_experts, n, k, weight, scales: Some(scales), biases })
    }

    /// The bytes of a row of `weight`, for [`WeightFormat::dequantize_row`]; the rows of a stack are counted through.
    ///
    /// # Errors
    /// [`MlxError::InvalidArgument`] if there is no such row, [`MlxError::SafetensorsError`] if `weight` is of another directory.
    pub fn row(&self, weight: &MlxWeight<'_>, row: usize) -> Result<WeightRow<'_>> {
        let rows = weight.n_experts.saturating_mul(weight.n);
        let part = |tensor: Option<&SafetensorsInfo>| -> Result<&[u8]> {
            let Some(tensor) = tensor else { return Ok(&[]) };
            let data = self.file.tensor_data(tensor)?;
            let len = data.len() / rows.max(1);
            row.checked_mul(len)
                .and_then(|start| data.get(start..start + len))
                .filter(|_| row < rows)
                .ok_or_else(|| MlxError::InvalidArgument(format!("tensor `{}`: row {row} of {rows}", tensor.name)))
        };
        Ok(WeightRow { data: part(Some(weight.weight))?, scales: part(weight.scales)?, biases: part(weight.biases)? })
    }

    /// The values of a tensor of plain floats.
    ///
    /// # Errors
    /// [`MlxError::UnsupportedDtype`] for other types, [`MlxError::InvalidArgument`] if `out` has another length than the tensor.
    pub fn plain_values(&self, tensor: &SafetensorsInfo, out: &mut [f32]) -> Result<()> {
        dequantize_row(plain_format(tensor)?, self.file.tensor_data(tensor)?, out)
    }

    /// Checks that every scale and bias of a layer's weight is a number: one that is not spoils every product with its row.
    ///
    /// # Errors
    /// [`MlxError::SafetensorsError`] that names the tensor and the place.
    pub fn check_scales(&self, layer: &str, weight: &MlxWeight<'_>) -> Result<()> {
        for (part, tensor) in [("scales", weight.scales), ("biases", weight.biases)] {
            let Some(tensor) = tensor else { continue };
            let data = self.file.tensor_data(tensor)?;
            // All bits of the exponent are set in infinities and NaN, and in nothing else.
            let high = |byte: u8, mask: u8| byte & mask == mask;
            let size = tensor.dtype()?.size_of();
            let found = match (weight.format, tensor.dtype()?) {
                (WeightFormat::Fp(mode), _) => data.iter().position(|&byte| !mode.scale(byte).is_finite()),
                (_, DType::F16) => data.as_chunks::<2>().0.iter().position(|bytes| high(bytes[1], 0x7c)),
                (_, DType::BF16) => {
                    data.as_chunks::<2>().0.iter().position(|bytes| high(bytes[1], 0x7f) && high(bytes[0], 0x80))
                }
                _ => data.as_chunks::<4>().0.iter().position(|bytes| high(bytes[3], 0x7f) && high(bytes[2], 0x80)),
            };
            if let Some(index) = found {
                let groups = (data.len() / size / weight.n_experts.saturating_mul(weight.n).max(1)).max(1);
                return Err(MlxError::SafetensorsError(format!(
                    "tensor `{layer}.{part}`: group {} of row {} is not a finite number",
                    index % groups,
                    index / groups
                )));
            }
        }
        Ok(())
    }
}

/// Experts, rows, columns.
fn matrix_shape(weight: &SafetensorsInfo) -> Result<(usize, usize, usize)> {
    let shape = match *weight.shape.as_slice() {
        [n, columns] => (1, n, columns),
        [n_experts, n, columns] => (n_experts, n, columns),
        _ => (0, 0, 0),
    };
    if shape.0 == 0 || shape.1 == 0 || shape.2 == 0 {
        let (name, found) = (&weight.name, &weight.shape);
        let problem = format!("tensor `{name}`: expected a matrix or a stack of matrices, found {found:?}");
        return Err(MlxError::SafetensorsError(problem));
    }
    Ok(shape)
}

fn plain_format(weight: &SafetensorsInfo) -> Result<GgmlType> {
    match weight.dtype()? {
        DType::F32 => Ok(GgmlType::F32),
        DType::F16 => Ok(GgmlType::F16),
        DType::BF16 => Ok(GgmlType::BF16),
        other => Err(MlxError::UnsupportedDtype(format!(
            "tensor `{}` is {other}: a weight without scales is f32, f16 or bf16",
            weight.name
        ))),
    }
}
