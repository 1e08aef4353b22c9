//! The tensors of a source as rows of f32, under GGUF's names and in the conventions of the layout that is written.

use mlx_native::format::dequantize_row;
use mlx_native::io::gguf::GgufFile;
use mlx_native::io::mlx_dir::{MlxModelDir, MlxWeight};
use mlx_native::{GgmlType, WeightFormat};

use crate::{ModelConfig, ModelError, Result, names};

/// Writes the values of a row.
type ReadRow<'a> = dyn Fn(usize, &mut [f32]) -> mlx_native::Result<()> + Sync + 'a;

/// A tensor to be written.
pub(super) struct InputTensor<'a> {
    /// In the result.
    pub name: String,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// Of the source.
    pub format: WeightFormat,
    pub read: Box<ReadRow<'a>>,
    /// Its bytes, where `read` shows them as they are and they are of one GGML type.
    pub raw: Option<&'a [u8]>,
}

impl InputTensor<'_> {
    /// Values of a row.
    pub fn k(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    pub fn values(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product()
    }

    /// Whether it is a matrix that takes the format: no norm, no bias, and no router, whose few values decide over much.
    pub fn is_quantizable(&self) -> bool {
        let is_router = ["ffn_gate_inp", ".mlp.gate.", ".block_sparse_moe.gate.", "shared_expert_gate"];
        self.shape.len() > 1
            && self.rows() > 1
            && self.name.ends_with(".weight")
            && !self.name.contains("norm")
            && !is_router.iter().any(|router| self.name.contains(router))
    }

    /// Whether the source has quantized it already.
    pub fn is_quantized(&self) -> bool {
        !matches!(self.format, WeightFormat::Ggml(GgmlType::F32 | GgmlType::F16 | GgmlType::BF16))
    }
}

/// The tensors of a GGUF file as they are.
pub(super) fn of_gguf(file: &GgufFile) -> Result<Vec<InputTensor<'_>>> {
    let tensor = |info: mlx_native::io::gguf::TensorInfo<'_>| -> Result<_> {
        let shape: Vec<usize> = info.shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(usize::MAX)).collect();
        let (ty, name) = (info.ggml_type, info.name.to_owned());
        let data = file.tensor_data(&info)?;
        let rows: usize = shape.iter().rev().skip(1).product();
        let row_bytes = data.len() / rows.max(1);
        let read = move |row: usize, out: &mut [f32]| {
            dequantize_row(ty, data.get(row * row_bytes..(row + 1) * row_bytes).unwrap_or_default(), out)
        };
        Ok(InputTensor { name, shape, format: ty.into(), read: Box::new(read), raw: Some(data) })
    };
    file.tensors().map(tensor).collect()
}

/// The tensors of a directory under their own names, without scales and biases, single experts in stacks.
pub(super) fn of_directory(dir: &MlxModelDir) -> Result<Vec<InputTensor<'_>>> {
    let file = dir.file();
    let mut tensors = Vec::new();
    for info in file.tensors() {
        let quantized = |suffix| {
            info.name.strip_suffix(suffix).is_some_and(|layer| file.tensor(&format!("{layer}.scales")).is_some())
        };
        if quantized(".scales") || quantized(".biases") {
            continue;
        }
        if let Some((stack, expert)) = names::stack_of(&info.name) {
            if expert == 0 {
                tensors.push(stacked(dir, stack)?);
            }
            continue;
        }
        let layer = info.name.strip_suffix(".weight").filter(|_| matches!(info.shape.len(), 2 | 3));
        tensors.push(match layer {
            Some(layer) => {
                let weight = dir.weight(layer)?;
                dir.check_scales(layer, &weight)?;
                let shape = match info.shape.len() {
                    2 => vec![weight.n, weight.k],
                    _ => vec![weight.n_experts, weight.n, weight.k],
                };
                of_weights(dir, info.name.clone(), shape, vec![weight])?
            }
            None => {
                let data = file.tensor_data(info)?;
                let ty = match info.dtype()? {
                    mlx_native::DType::F32 => GgmlType::F32,
                    mlx_native::DType::F16 => GgmlType::F16,
                    mlx_native::DType::BF16 => GgmlType::BF16,
                    other => {
                        let problem = format!("tensor `{}`: expected floats, found {other}", info.name);
                        return Err(ModelError::Quantize(problem));
                    }
                };
                let row_bytes = data.len() / info.shape.iter().rev().skip(1).product::<usize>().max(1);
                let read = move |row: usize, out: &mut [f32]| {
                    dequantize_row(ty, data.get(row * row_bytes..(row + 1) * row_bytes).unwrap_or_default(), out)
                };
                let (name, shape) = (info.name.clone(), info.shape.clone());
                InputTensor { name, shape, format: ty.into(), read: Box::new(read), raw: Some(data) }
            }
        });
    }
    Ok(tensors)
}

/// A stack of matrices that lie one by one.
fn stacked(dir: &MlxModelDir, stack: String) -> Result<InputTensor<'_>> {
    let mut weights = Vec::new();
    while let Some(name) = names::single_expert(&stack, weights.len())
        && dir.file().tensor(&name).is_some()
    {
        let weight = dir.weight(name.strip_suffix(".weight").unwrap_or(&name))?;
        let like: &MlxWeight<'_> = weights.first().unwrap_or(&weight);
        if (like.n, like.k, like.format) != (weight.n, weight.k, weight.format) {
            let problem = format!("tensor `{name}`: [{}, {}] {}", weight.n, weight.k, weight.format);
            return Err(ModelError::Quantize(format!(
                "{problem}, the first expert's has [{}, {}] {}",
                like.n, like.k, like.format
            )));
        }
        weights.push(weight);
    }
    let shape = weights.first().map_or(Vec::new(), |weight| vec![weights.len(), weight.n, weight.k]);
    of_weights(dir, stack, shape, weights)
}

/// Rows of several weights behind each other.
fn of_weights<'a>(
    dir: &'a MlxModelDir,
    name: String,
    shape: Vec<usize>,
    weights: Vec<MlxWeight<'a>>,
) -> Result<InputTensor<'a>> {
    let Some(format) = weights.first().map(|weight| weight.format) else {
        return Err(ModelError::Quantize(format!("tensor `{name}` has no experts")));
    };
    let raw = match (&weights[..], format) {
        ([weight], WeightFormat::Ggml(_)) => Some(dir.file().tensor_data(weight.weight)?),
        _ => None,
    };
    let rows_of_each = weights[0].n_experts * weights[0].n;
    let read = move |row: usize, out: &mut [f32]| {
        let weight = &weights[(row / rows_of_each).min(weights.len() - 1)];
        format.dequantize_row(dir.row(weight, row % rows_of_each)?, out)
    };
    Ok(InputTensor { name, shape, format, read: Box::new(read), raw })
}

/// In which direction a tensor changes its layout.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    Gguf,
    Directory,
}

/// The tensor under the other layout's name and conventions; `None` where that has no such tensor.
///
/// The two differ in three things. Llama's rotation pairs neighbours of a head's values in GGUF files, halves of the head in directories. Gemma's norms are
/// stored as the factors in GGUF files, less 1 in directories. The gate of a shared expert is a vector in GGUF files, a matrix of one row in directories.
pub(super) fn change_layout<'a>(tensor: InputTensor<'a>, config: &ModelConfig, to: To) -> Option<InputTensor<'a>> {
    let architecture = config.architecture.as_str();
    let (gguf_name, name) = match to {
        To::Gguf => {
            let own = tensor.name.strip_prefix("language_model.").unwrap_or(&tensor.name);
            let name = names::to_gguf(architecture, own)?;
            (name.clone(), name)
        }
        To::Directory => (tensor.name.clone(), names::to_mlx(architecture, &tensor.name)?),
    };
    let InputTensor { mut shape, format, read, raw, .. } = tensor;
    let part = gguf_name.rsplit_once('.').map_or("", |(part, _)| part);
    let is_rotated = architecture == "llama" && (part.ends_with(".attn_q") || part.ends_with(".attn_k"));
    let is_offset = architecture == "gemma3" && part.ends_with("_norm");
    if part.ends_with(".ffn_gate_inp_shexp") {
        shape = match to {
            To::Gguf => shape.into_iter().filter(|&dim| dim != 1).collect(),
            To::Directory => [&[1], &shape[..]].concat(),
        };
    }
    if is_rotated {
        let head_dim = config.head_dim;
        // Row of the source for a row of the result.
        let source = move |row: usize| {
            let (head, i) = (row / head_dim * head_dim, row % head_dim);
            head + match to {
                To::Gguf => i / 2 + i % 2 * (head_dim / 2),
                To::Directory => i % (head_dim / 2) * 2 + i / (head_dim / 2),
            }
        };
        let is_bias = shape.len() == 1;
        let read = move |row: usize, out: &mut [f32]| {
            if !is_bias {
                return read(source(row), out);
            }
            let mut values = vec![0.0; out.len()];
            read(row, &mut values)?;
            for (i, out) in out.iter_mut().enumerate() {
                *out = values.get(source(i)).copied().unwrap_or_default();
            }
            Ok(())
        };
        return Some(InputTensor { name, shape, format, read: Box::new(read), raw: None });
    }
    if is_offset {
        let offset = if to == To::Gguf { 1.0 } else { -1.0 };
        let read = move |row: usize, out: &mut [f32]| {
            read(row, out)?;
            out.iter_mut().for_each(|value| *value += offset);
            Ok(())
        };
        return Some(InputTensor { name, shape, format, read: Box::new(read), raw: None });
    }
    Some(InputTensor { name, shape, format, read, raw })
}
