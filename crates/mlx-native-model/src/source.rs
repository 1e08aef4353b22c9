//! Where a model's tensors come from, by GGUF's names whatever the source.

use mlx_native::format::dequantize_row;
use mlx_native::io::gguf::{GgufFile, TensorInfo};
use mlx_native::io::mlx_dir::{MlxModelDir, MlxWeight};
use mlx_native::io::safetensors::SafetensorsInfo;
use mlx_native::{DType, GgmlType, MlxBuffer, MlxDevice, MlxError, Weight, WeightFormat};

use crate::names;
use crate::{ModelError, Result};

/// The tensors of a file or a directory, checked against the shapes that the configuration implies.
pub(crate) enum Source<'a> {
    Gguf(&'a GgufFile),
    Mlx(MlxSource<'a>),
}

/// A directory in Hugging Face's layout.
pub(crate) struct MlxSource<'a> {
    dir: &'a MlxModelDir,
    architecture: &'a str,
    /// What stands before every name: `language_model.` in models that also see images.
    prefix: &'static str,
}

/// Finds tensors, checks their shapes and puts them on a device.
pub(crate) struct Loader<'a> {
    pub source: Source<'a>,
    pub device: &'a MlxDevice,
}

impl<'a> MlxSource<'a> {
    pub(crate) fn new(dir: &'a MlxModelDir, architecture: &'a str) -> MlxSource<'a> {
        let has = |prefix: &&str| dir.file().tensor(&format!("{prefix}model.embed_tokens.weight")).is_some();
        let prefix = ["", "language_model.", "model.language_model."].into_iter().find(has).unwrap_or("");
        MlxSource { dir, architecture, prefix }
    }

    /// The tensor's name in the directory.
    fn name(&self, name: &str) -> Result<String> {
        let mlx = names::to_mlx(self.architecture, name)
            .ok_or_else(|| ModelError::Config(format!("tensor `{name}` has no place in a model directory")))?;
        Ok(format!("{}{mlx}", self.prefix))
    }

    fn tensor(&self, name: &str) -> Option<&'a SafetensorsInfo> {
        self.dir.file().tensor(&self.name(name).ok()?)
    }

    /// The weight of a layer, whose scales are finite.
    fn weight(&self, name: &str) -> Result<MlxWeight<'a>> {
        let name = self.name(name)?;
        let layer = name.strip_suffix(".weight").unwrap_or(&name);
        let weight = self.dir.weight(layer)?;
        self.dir.check_scales(layer, &weight)?;
        Ok(weight)
    }

    /// Whether Gemma's norms are stored, which multiply by 1 + w.
    fn norms_are_offset(&self) -> bool {
        self.architecture == "gemma3"
    }
}

fn check_shape(name: &str, expected: &[usize], found: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(ModelError::TensorShape { name: name.into(), expected: expected.into(), found: found.into() })
}

fn gguf_shape(tensor: &TensorInfo<'_>) -> Vec<usize> {
    tensor.shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(usize::MAX)).collect()
}

/// The element type of a buffer for a GGML type; blocks are bytes.
fn element_type(ty: GgmlType) -> DType {
    match ty {
        GgmlType::F32 => DType::F32,
        GgmlType::F16 => DType::F16,
        GgmlType::BF16 => DType::BF16,
        _ => DType::U8,
    }
}

impl Loader<'_> {
    /// Whether there is such a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        match &self.source {
            Source::Gguf(file) => file.tensor(name).is_some(),
            Source::Mlx(mlx) => mlx.tensor(name).is_some(),
        }
    }

    /// The error for a tensor that has to be there.
    pub(crate) fn missing(&self, name: &str) -> ModelError {
        match &self.source {
            Source::Gguf(_) => MlxError::GgufParseError(format!("tensor `{name}` is missing")).into(),
            Source::Mlx(mlx) => {
                let name = mlx.name(name).unwrap_or_else(|_| name.into());
                MlxError::SafetensorsError(format!("tensor `{name}` is missing")).into()
            }
        }
    }

    /// The rows of a matrix.
    pub(crate) fn rows(&self, name: &str) -> Result<usize> {
        let shape = match &self.source {
            Source::Gguf(file) => gguf_shape(&file.required_tensor(name)?),
            Source::Mlx(mlx) => mlx.dir.file().required_tensor(&mlx.name(name)?)?.shape.clone(),
        };
        match shape[..] {
            [rows, _] => Ok(rows),
            _ => Err(ModelError::TensorShape { name: name.into(), expected: vec![0, 0], found: shape }),
        }
    }

    /// A matrix `[n, k]` in the source's own format.
    pub(crate) fn matrix(&self, name: &str, n: usize, k: usize) -> Result<Weight> {
        match &self.source {
            Source::Gguf(file) => self.gguf_weight(file, name, &[n, k]),
            Source::Mlx(mlx) => self.mlx_weight(mlx, mlx.weight(name)?, &[n, k]),
        }
    }

    /// `n_experts` matrices `[n, k]`.
    pub(crate) fn stack(&self, name: &str, n_experts: usize, n: usize, k: usize) -> Result<Weight> {
        match &self.source {
            Source::Gguf(file) => self.gguf_weight(file, name, &[n_experts, n, k]),
            Source::Mlx(mlx) => {
                let stacked = mlx.name(name)?;
                match names::single_expert(&stacked, 0).filter(|_| mlx.tensor(name).is_none()) {
                    Some(first) if mlx.dir.file().tensor(&first).is_some() => {
                        self.joined(mlx, &stacked, &[n_experts, n, k])
                    }
                    _ => self.mlx_weight(mlx, mlx.weight(name)?, &[n_experts, n, k]),
                }
            }
        }
    }

    fn gguf_weight(&self, file: &GgufFile, name: &str, shape: &[usize]) -> Result<Weight> {
        let tensor = file.required_tensor(name)?;
        check_shape(name, shape, &gguf_shape(&tensor))?;
        let (map, range) = file.tensor_map(&tensor)?;
        let dtype = element_type(tensor.ggml_type);
        let (n_experts, n, k) = dims(shape);
        let columns = range.len() / (n_experts * n) / dtype.size_of();
        let buffer = self.device.buffer_from_map(&map, range, dtype, vec![n_experts * n, columns])?;
        Ok(Weight::stack(tensor.ggml_type.into(), n_experts, n, k, buffer, None, None)?)
    }

    fn mlx_weight(&self, mlx: &MlxSource<'_>, weight: MlxWeight<'_>, shape: &[usize]) -> Result<Weight> {
        let (n_experts, n, k) = dims(shape);
        if (weight.n_experts, weight.n, weight.k) != (n_experts, n, k) {
            let found = match weight.n_experts {
                1 if shape.len() == 2 => vec![weight.n, weight.k],
                experts => vec![experts, weight.n, weight.k],
            };
            check_shape(&weight.weight.name, shape, &found)?;
        }
        let buffer = |tensor: &SafetensorsInfo| self.tensor_buffer(mlx, tensor);
        let scales = weight.scales.map(buffer).transpose()?;
        let biases = weight.biases.map(buffer).transpose()?;
        Ok(Weight::stack(weight.format, n_experts, n, k, buffer(weight.weight)?, scales, biases)?)
    }

    /// A tensor where it lies in the file; one that is not aligned to its type is copied.
    fn tensor_buffer(&self, mlx: &MlxSource<'_>, tensor: &SafetensorsInfo) -> Result<MlxBuffer> {
        let (map, range) = mlx.dir.file().tensor_map(tensor)?;
        let (dtype, shape) = (tensor.dtype()?, tensor.shape.clone());
        Ok(match tensor.is_aligned() {
            true => self.device.buffer_from_map(&map, range, dtype, shape)?,
            false => self.device.buffer_from_slice(&map[range], dtype, shape)?,
        })
    }

    /// The matrices of experts that lie one by one, copied behind each other.
    fn joined(&self, mlx: &MlxSource<'_>, stacked: &str, shape: &[usize]) -> Result<Weight> {
        let (n_experts, n, k) = dims(shape);
        let mut bytes = Vec::new();
        let mut format = None;
        for expert in 0..n_experts {
            let name = names::single_expert(stacked, expert).unwrap_or_default();
            let weight = mlx.dir.weight(name.strip_suffix(".weight").unwrap_or(&name))?;
            check_shape(&name, &[n, k], &[weight.n, weight.k])?;
            let WeightFormat::Ggml(ty) = *format.get_or_insert(weight.format) else {
                return Err(ModelError::Config(format!(
                    "tensor `{name}`: single experts are quantized only in stacks"
                )));
            };
            if weight.format != ty.into() {
                let problem = format!("tensor `{name}` is {}, the experts before it {ty}", weight.format);
                return Err(ModelError::Config(problem));
            }
            bytes.extend_from_slice(mlx.dir.file().tensor_data(weight.weight)?);
        }
        let Some(WeightFormat::Ggml(ty)) = format else { return Err(self.missing(stacked)) };
        let buffer = self.device.buffer_from_slice(&bytes, element_type(ty), vec![n_experts, n, k])?;
        Ok(Weight::stack(ty.into(), n_experts, n, k, buffer, None, None)?)
    }

    /// The values of a vector, or of a matrix with one row.
    pub(crate) fn values(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let mut values = vec![0f32; len];
        match &self.source {
            Source::Gguf(file) => {
                let tensor = file.required_tensor(name)?;
                let shape = gguf_shape(&tensor);
                check_shape(name, &[len], shape.strip_prefix(&[1]).unwrap_or(&shape))?;
                dequantize_row(tensor.ggml_type, file.tensor_data(&tensor)?, &mut values)?;
            }
            Source::Mlx(mlx) => {
                let full = mlx.name(name)?;
                let tensor = mlx.dir.file().required_tensor(&full)?;
                if let [_] = tensor.shape[..] {
                    check_shape(&full, &[len], &tensor.shape)?;
                    mlx.dir.plain_values(tensor, &mut values)?;
                } else {
                    let weight = mlx.weight(name)?;
                    check_shape(&full, &[1, 1, len], &[weight.n_experts, weight.n, weight.k])?;
                    weight.format.dequantize_row(mlx.dir.row(&weight, 0)?, &mut values)?;
                }
            }
        }
        Ok(values)
    }

    /// A vector in f32, whatever its type in the source.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<MlxBuffer> {
        self.f32_buffer(&self.values(name, len)?)
    }

    /// The factors of a norm.
    pub(crate) fn norm(&self, name: &str, len: usize) -> Result<MlxBuffer> {
        let mut values = self.values(name, len)?;
        if let Source::Mlx(mlx) = &self.source
            && mlx.norms_are_offset()
        {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        self.f32_buffer(&values)
    }

    /// Values as a buffer.
    pub(crate) fn f32_buffer(&self, values: &[f32]) -> Result<MlxBuffer> {
        Ok(self.device.buffer_from_slice(values, DType::F32, vec![values.len()])?)
    }
}

/// Experts, rows and columns of a matrix or a stack.
fn dims(shape: &[usize]) -> (usize, usize, usize) {
    match *shape {
        [n_experts, n, k] => (n_experts, n, k),
        [n, k] => (1, n, k),
        _ => (0, 0, 0),
    }
}
