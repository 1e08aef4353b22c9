//! Writing a model directory.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use mlx_native::io::TensorData;
use mlx_native::io::gguf::GgufFile;
use mlx_native::io::safetensors::SafetensorsWriter;
use mlx_native::{AffineFormat, DType, GgmlType, MlxError, WeightFormat};
use serde_json::{Value, json};

use super::encode::{Encoded, encode};
use super::tensors::{InputTensor, To, change_layout, of_directory, of_gguf};
use super::{Progress, Shared, Target};
use crate::tokenizer::{Tokenizer, TokenizerData};
use crate::{ModelConfig, ModelError, ModelFile, Result};

/// Largest shard, as mlx-lm has it.
const MAX_SHARD_BYTES: u64 = 5 << 30;

pub(super) fn write(input: &ModelFile, output: &Path, target: Target, report: &Shared<'_, '_>) -> Result<()> {
    let partial = PartialDirectory::create(output)?;
    let (mut config, tensors) = match input {
        ModelFile::Gguf(file) => {
            let config = ModelConfig::from_gguf(file)?;
            write_tokenizer(file, &partial.path)?;
            of_gguf_as_directory(file, config)?
        }
        ModelFile::Directory { path, dir } => {
            copy_beside(path, &partial.path)?;
            (dir.config().clone(), of_directory(dir)?)
        }
    };
    // What the floats of the result are: the source's, f16 where that has others. Gemma's hidden states exceed f16's range.
    let has = |ty: GgmlType| tensors.iter().any(|tensor| tensor.format == ty.into());
    let is_gemma = config.get("model_type").and_then(Value::as_str).is_some_and(|kind| kind.starts_with("gemma"));
    let float = if has(GgmlType::BF16) || is_gemma { DType::BF16 } else { DType::F16 };

    report.send(Progress::Total { values: tensors.iter().map(InputTensor::values).sum() }).map_err(ended)?;
    if tensors.iter().any(InputTensor::is_quantized) {
        report
            .note("the source is quantized already: quantizing it again loses more than from the original weights")?;
    }
    let mut quantization = entry_of(target);
    let mut writer = SafetensorsWriter::new();
    writer.metadata("format", "mlx");
    for tensor in tensors {
        let format = format_of(&tensor, target, float)?;
        if let Some(layer) = tensor.name.strip_suffix(".weight").filter(|_| tensor.is_quantizable()) {
            match format {
                Some(WeightFormat::Affine(affine))
                    if target != (Target::Affine { bits: affine.bits, group_size: affine.group_size }) =>
                {
                    report.note(format!(
                        "tensor `{}`: rows of {} take groups of {}",
                        tensor.name,
                        tensor.k(),
                        affine.group_size
                    ))?;
                    quantization[layer] = json!({ "group_size": affine.group_size, "bits": affine.bits });
                }
                None => {
                    report.note(format!(
                        "tensor `{}`: rows of {} are no whole groups and stay {float}",
                        tensor.name,
                        tensor.k()
                    ))?;
                    quantization[layer] = false.into();
                }
                _ => {}
            }
        }
        match format {
            Some(format) => add_quantized(&mut writer, tensor, format, report)?,
            None => add_plain(&mut writer, tensor, float, report)?,
        }
    }
    config["quantization"] = quantization.clone();
    config["quantization_config"] = quantization;
    config["torch_dtype"] = (if float == DType::BF16 { "bfloat16" } else { "float16" }).into();
    if let Some(text) = config.get_mut("text_config").and_then(Value::as_object_mut) {
        text.remove("quantization");
    }
    write_json(&partial.path.join("config.json"), &config)?;
    writer.write_dir(&partial.path, MAX_SHARD_BYTES)?;
    partial.finish()
}

fn ended(error: io::Error) -> ModelError {
    ModelError::Quantize(error.to_string())
}

/// The entry `quantization` for a format.
fn entry_of(target: Target) -> Value {
    match target {
        Target::Affine { bits, group_size } => json!({ "group_size": group_size, "bits": bits, "mode": "affine" }),
        Target::Fp(mode) => json!({ "group_size": mode.group_size(), "bits": mode.bits(), "mode": mode.name() }),
        Target::Ggml(_) => Value::Null,
    }
}

/// The format of a tensor; `None` leaves it a float.
fn format_of(tensor: &InputTensor<'_>, target: Target, float: DType) -> Result<Option<WeightFormat>> {
    if !tensor.is_quantizable() {
        return Ok(None);
    }
    let fits = |group: u32| tensor.k().is_multiple_of(group as usize);
    Ok(match target {
        Target::Affine { bits, group_size } => {
            let group_size = [group_size, 64, 32].into_iter().find(|&group| group <= group_size && fits(group));
            let format = group_size.map(|group_size| AffineFormat::new(bits, group_size, float)).transpose()?;
            format.map(WeightFormat::Affine)
        }
        Target::Fp(mode) => fits(mode.group_size()).then_some(WeightFormat::Fp(mode)),
        Target::Ggml(_) => None,
    })
}

/// Adds packed values, scales and biases; they are made when the first is written, and kept until the last is.
fn add_quantized<'a>(
    writer: &mut SafetensorsWriter<'a>,
    tensor: InputTensor<'a>,
    format: WeightFormat,
    report: &'a Shared<'_, '_>,
) -> Result<()> {
    let layer = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name).to_owned();
    let shape = |columns: usize| [&tensor.shape[..tensor.shape.len() - 1], &[columns]].concat();
    let packed = shape(format.row_bytes(tensor.k())? / DType::U32.size_of());
    let (groups, dtype, has_biases) = match format {
        WeightFormat::Affine(affine) => (affine.groups(tensor.k())?, affine.scale_dtype, true),
        WeightFormat::Fp(mode) => (mode.groups(tensor.k()), DType::U8, false),
        WeightFormat::Ggml(ty) => return Err(MlxError::InvalidArgument(format!("{ty} in a model directory")).into()),
    };
    let side = shape(groups);
    let encoded = Rc::new(RefCell::new(Encoded::default()));
    let (first, second, third) = (encoded.clone(), encoded.clone(), encoded);
    let name = tensor.name.clone();
    let data = TensorData::stream(move |out| {
        let mut made = encode(&tensor, format).map_err(io::Error::other)?;
        out.write_all(&std::mem::take(&mut made.data))?;
        first.replace(made);
        report.send(Progress::Tensor { name: tensor.name.clone(), values: tensor.values() })
    });
    writer.tensor(&name, DType::U32, &packed, data)?;
    let scales = TensorData::stream(move |out| out.write_all(&std::mem::take(&mut second.borrow_mut().scales)));
    writer.tensor(&format!("{layer}.scales"), dtype, &side, scales)?;
    if has_biases {
        let biases = TensorData::stream(move |out| out.write_all(&std::mem::take(&mut third.borrow_mut().biases)));
        writer.tensor(&format!("{layer}.biases"), dtype, &side, biases)?;
    }
    Ok(())
}

fn add_plain<'a>(
    writer: &mut SafetensorsWriter<'a>,
    tensor: InputTensor<'a>,
    float: DType,
    report: &'a Shared<'_, '_>,
) -> Result<()> {
    let ty = if float == DType::BF16 { GgmlType::BF16 } else { GgmlType::F16 };
    let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
    let data = TensorData::stream(move |out| {
        match tensor.raw.filter(|_| tensor.format == ty.into()) {
            Some(raw) => out.write_all(raw)?,
            None => out.write_all(&encode(&tensor, ty.into()).map_err(io::Error::other)?.data)?,
        }
        report.send(Progress::Tensor { name: tensor.name.clone(), values: tensor.values() })
    });
    writer.tensor(&name, float, &shape, data)?;
    Ok(())
}

/// A GGUF file's tensors in a directory's conventions, and the configuration to go with them.
fn of_gguf_as_directory(file: &GgufFile, config: ModelConfig) -> Result<(Value, Vec<InputTensor<'_>>)> {
    let mut tensors = Vec::new();
    let mut factors = None;
    for tensor in of_gguf(file)? {
        if tensor.name == "rope_freqs.weight" {
            let mut values = vec![0.0; tensor.k()];
            (tensor.read)(0, &mut values)?;
            factors = Some(values);
            continue;
        }
        let name = tensor.name.clone();
        let tensor = change_layout(tensor, &config, To::Directory)
            .ok_or_else(|| ModelError::Quantize(format!("tensor `{name}` has no place in a model directory")))?;
        tensors.push(tensor);
    }
    let rows = |name: &str| tensors.iter().find(|tensor| tensor.name == name).map(InputTensor::rows);
    let has = |part: &str| tensors.iter().any(|tensor| tensor.name.ends_with(part));
    let mut json = config.to_config_json(factors.as_deref())?;
    json["vocab_size"] = rows("model.embed_tokens.weight").into();
    json["tie_word_embeddings"] = rows("lm_head.weight").is_none().into();
    if config.architecture == "llama" {
        json["attention_bias"] = has("self_attn.o_proj.bias").into();
    }
    let data = TokenizerData::from_gguf(file)?;
    let ends: Vec<u32> = Tokenizer::new(&data)?.end_of_generation().iter().copied().collect();
    json["bos_token_id"] = data.bos.into();
    json["eos_token_id"] = ends.into();
    Ok((json, tensors))
}

/// The tokenizer of a GGUF file as the files of a directory.
fn write_tokenizer(file: &GgufFile, dir: &Path) -> Result<()> {
    let template: Option<&str> = file.optional("tokenizer.chat_template")?;
    let (tokenizer, config) = TokenizerData::from_gguf(file)?.to_huggingface(template)?;
    write_json(&dir.join("tokenizer.json"), &tokenizer)?;
    write_json(&dir.join("tokenizer_config.json"), &config)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let failed = |e: io::Error| MlxError::io(path, e);
    let text = serde_json::to_vec_pretty(value).map_err(|e| failed(e.into()))?;
    Ok(fs::write(path, text).map_err(failed)?)
}

/// Copies what lies beside the weights of a directory: tokenizer, templates, generation settings.
fn copy_beside(from: &Path, to: &Path) -> Result<()> {
    let failed = |e: io::Error| MlxError::io(from, e);
    for entry in fs::read_dir(from).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        let is_weights = name == "config.json" || name.ends_with(".safetensors") || name.ends_with(".index.json");
        let is_wanted = [".json", ".jinja", ".model", ".txt"].iter().any(|suffix| name.ends_with(suffix));
        if path.is_file() && is_wanted && !is_weights {
            fs::copy(&path, to.join(&name)).map_err(|e| MlxError::io(&path, e))?;
        }
    }
    Ok(())
}

/// A directory under a temporary name, removed unless it is finished.
struct PartialDirectory {
    path: PathBuf,
    output: PathBuf,
}

impl PartialDirectory {
    fn create(output: &Path) -> Result<Self> {
        let name = output.file_name().map(|name| name.to_string_lossy().into_owned());
        let name =
            name.ok_or_else(|| ModelError::Quantize(format!("{} is no name for a directory", output.display())))?;
        let path = output.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        fs::create_dir_all(&path).map_err(|e| MlxError::io(output, e))?;
        Ok(PartialDirectory { path, output: output.to_owned() })
    }

    fn finish(self) -> Result<()> {
        Ok(fs::rename(&self.path, &self.output).map_err(|e| MlxError::io(&self.output, e))?)
    }
}

impl Drop for PartialDirectory {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        let _ = fs::remove_dir_all(&self.path);
    }
}
