//! What a model directory holds.

use anyhow::Result;
use mlx_native::io::mlx_dir::MlxModelDir;
use mlx_native_model::ModelConfig;
use std::path::PathBuf;

use super::{Info, Metadata, Tensor};

/// Configuration and tensors; what is the same for all kinds of model is left empty. Packed values are one tensor with their scales and biases.
pub fn info(dir: &MlxModelDir) -> Result<Info<'_>> {
    let file = dir.file();
    let mut tensors = Vec::new();
    for tensor in file.tensors() {
        let layer = |suffix| tensor.name.strip_suffix(suffix);
        let part_of = |layer: &str| file.tensor(&format!("{layer}.scales")).is_some();
        if layer(".scales").or(layer(".biases")).is_some_and(part_of) {
            continue;
        }
        let weight = match layer(".weight") {
            Some(layer) if tensor.shape.len() > 1 => dir.weight(layer).ok(),
            _ => None,
        };
        tensors.push(match weight {
            Some(weight) => Tensor {
                name: &tensor.name,
                shape: match tensor.shape.len() {
                    2 => vec![weight.n as u64, weight.k as u64],
                    _ => vec![weight.n_experts as u64, weight.n as u64, weight.k as u64],
                },
                format: weight.format.name().into_owned(),
                bytes: [Some(tensor), weight.scales, weight.biases].iter().flatten().map(|part| part.byte_len).sum(),
                part: tensor.shard,
                offset: tensor.offset,
                weight: Some(weight.format),
            },
            None => Tensor {
                name: &tensor.name,
                shape: tensor.shape.iter().map(|&dim| dim as u64).collect(),
                format: tensor.dtype_name(),
                bytes: tensor.byte_len,
                part: tensor.shard,
                offset: tensor.offset,
                weight: None,
            },
        });
    }
    let config = dir.config();
    let architecture = ModelConfig::architecture_of(config);
    Ok(Info {
        path: PathBuf::new(),
        kind: "model directory".to_owned(),
        files: file.maps().len(),
        bytes: file.maps().iter().map(|map| map.len() as u64).sum(),
        version: None,
        alignment: None,
        parameters: 0,
        architecture,
        runs: false,
        metadata: config
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), Metadata::Json(value)))
            .collect(),
        formats: Vec::new(),
        devices: Vec::new(),
        tensors,
    })
}
