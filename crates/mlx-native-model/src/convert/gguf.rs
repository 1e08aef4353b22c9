//! Writing a GGUF file.

use std::io;
use std::path::Path;

use mlx_native::io::gguf::{GgufFile, GgufWriter, SPLIT_COUNT_KEY, SPLIT_NO_KEY, SPLIT_TENSORS_KEY, TensorData};
use mlx_native::{Activation, GgmlType};

use super::encode::encode;
use super::tensors::{InputTensor, To, change_layout, of_directory, of_gguf};
use super::{Progress, Shared};
use crate::chat_template::template_in;
use crate::{ModelConfig, ModelError, ModelFile, QkNorm, Result};

/// Metadata that say how a file is quantized.
const FILE_TYPE: &str = "general.file_type";
const QUANTIZATION_VERSION: &str = "general.quantization_version";

/// `general.file_type` of files whose matrices mostly have a type; other types have no number of their own.
fn file_type(ty: GgmlType) -> Option<u32> {
    Some(match ty {
        GgmlType::F32 => 0,
        GgmlType::F16 => 1,
        GgmlType::Q4_0 => 2,
        GgmlType::Q4_1 => 3,
        GgmlType::Q8_0 => 7,
        GgmlType::Q5_0 => 8,
        GgmlType::Q5_1 => 9,
        GgmlType::Q2_K => 10,
        GgmlType::Q3_K => 11,
        GgmlType::Q4_K => 14,
        GgmlType::Q5_K => 16,
        GgmlType::Q6_K => 18,
        GgmlType::BF16 => 32,
        _ => return None,
    })
}

pub(super) fn write(input: &ModelFile, output: &Path, ty: GgmlType, report: &Shared<'_, '_>) -> Result<()> {
    let (mut writer, tensors) = match input {
        ModelFile::Gguf(file) => (copied_metadata(file)?, of_gguf(file)?),
        ModelFile::Directory { path, dir } => {
            let config = ModelConfig::from_config_json(dir.config())?;
            let mut writer = GgufWriter::new();
            metadata(&mut writer, &config)?;
            tokenizer(&mut writer, input)?;
            if let Some(template) = template_in(path)? {
                writer.metadata("tokenizer.chat_template", template)?;
            }
            let mut tensors = Vec::new();
            for tensor in of_directory(dir)? {
                let name = tensor.name.clone();
                match change_layout(tensor, &config, To::Gguf) {
                    Some(tensor) => tensors.push(tensor),
                    None => report.note(format!("tensor `{name}` has no place in a GGUF file and is left out"))?,
                }
            }
            if let Some(factors) = &config.frequency_factors {
                let bytes = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect::<Vec<u8>>();
                writer.tensor("rope_freqs.weight", &[factors.len() as u64], GgmlType::F32, bytes)?;
            }
            (writer, tensors)
        }
    };
    if let Some(number) = file_type(ty) {
        writer.metadata(FILE_TYPE, number)?;
    }
    writer.metadata(QUANTIZATION_VERSION, 2_u32)?;

    report.send(Progress::Total { values: tensors.iter().map(InputTensor::values).sum() }).map_err(ended)?;
    if !matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16) && tensors.iter().any(InputTensor::is_quantized) {
        report
            .note("the source is quantized already: quantizing it again loses more than from the original weights")?;
    }
    let has_output = tensors.iter().any(|tensor| tensor.name == "output.weight");
    for tensor in tensors {
        let wanted = wanted_type(&tensor, ty, has_output);
        let chosen = fitting_type(wanted, tensor.k());
        if chosen != wanted {
            report.note(format!(
                "tensor `{}`: rows of {} are no whole blocks of {wanted}: {chosen}",
                tensor.name,
                tensor.k()
            ))?;
        }
        let shape: Vec<u64> = tensor.shape.iter().map(|&dim| dim as u64).collect();
        let name = tensor.name.clone();
        let data = TensorData::stream(move |out| {
            match tensor.raw.filter(|_| tensor.format == chosen.into()) {
                Some(raw) => out.write_all(raw)?,
                None => out.write_all(&encode(&tensor, chosen.into()).map_err(io::Error::other)?.data)?,
            }
            report.send(Progress::Tensor { name: tensor.name.clone(), values: tensor.values() })
        });
        writer.tensor(&name, &shape, chosen, data)?;
    }
    Ok(writer.write(output)?)
}

fn ended(error: io::Error) -> ModelError {
    ModelError::Quantize(error.to_string())
}

/// The type that a tensor is meant to have. The last matrix decides over the next token directly and gets 6 bits at least, as llama.cpp's own
/// files have it; where it is the embedding too, that does.
fn wanted_type(tensor: &InputTensor<'_>, ty: GgmlType, has_output: bool) -> GgmlType {
    if !tensor.is_quantizable() {
        return GgmlType::F32;
    }
    let is_last = tensor.name == "output.weight" || (tensor.name == "token_embd.weight" && !has_output);
    let bits = |ty: GgmlType| ty.block_bytes() as f64 * 8.0 / ty.block_values() as f64;
    if is_last && bits(ty) < bits(GgmlType::Q6_K) { GgmlType::Q6_K } else { ty }
}

/// The type, or one with smaller blocks of no fewer bits where the rows are not whole blocks.
fn fitting_type(ty: GgmlType, k: usize) -> GgmlType {
    let fits = |ty: GgmlType| k.is_multiple_of(ty.block_values() as usize);
    if fits(ty) {
        return ty;
    }
    let smaller = match ty {
        GgmlType::Q6_K => GgmlType::Q8_0,
        GgmlType::Q5_K => GgmlType::Q5_1,
        GgmlType::Q4_K => GgmlType::Q5_0,
        _ => GgmlType::Q4_0,
    };
    if fits(smaller) { smaller } else { GgmlType::F16 }
}

/// Everything that a file says, less what its tensors' types and its parts change.
fn copied_metadata(file: &GgufFile) -> Result<GgufWriter<'_>> {
    let mut writer = GgufWriter::new();
    let changed = [FILE_TYPE, QUANTIZATION_VERSION, SPLIT_NO_KEY, SPLIT_COUNT_KEY, SPLIT_TENSORS_KEY];
    for (key, value) in file.metadata().filter(|(key, _)| !changed.contains(key)) {
        writer.metadata(key, value)?;
    }
    Ok(writer)
}

/// What [`ModelConfig::from_gguf`] reads.
fn metadata(writer: &mut GgufWriter<'_>, config: &ModelConfig) -> Result<()> {
    let architecture = config.architecture.as_str();
    writer.metadata("general.architecture", architecture)?;
    let mut numbers = vec![
        ("block_count", config.n_layers),
        ("context_length", config.context_length),
        ("embedding_length", config.hidden),
        ("attention.head_count", config.n_heads),
        ("attention.head_count_kv", config.n_kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.n_rot),
    ];
    let mut floats = vec![("attention.layer_norm_rms_epsilon", config.norm_eps), ("rope.freq_base", config.rope.base)];
    match &config.experts {
        None => numbers.push(("feed_forward_length", config.feed_forward)),
        Some(experts) => {
            let of_gguf = architecture == "qwen3moe" || (architecture == "llama" && config.qk_norm == QkNorm::None);
            if experts.normalize != of_gguf || !experts.dense_layers.is_empty() {
                let problem = "a GGUF file cannot say how this model chooses its experts, or which layers have none";
                return Err(ModelError::Quantize(problem.into()));
            }
            numbers.push(("expert_count", experts.n_experts));
            numbers.push(("expert_used_count", experts.top_k));
            match architecture {
                "llama" | "olmoe" => numbers.push(("feed_forward_length", experts.feed_forward)),
                _ => {
                    numbers.push(("feed_forward_length", config.feed_forward));
                    numbers.push(("expert_feed_forward_length", experts.feed_forward));
                }
            }
            if let Some(shared) = experts.shared {
                numbers.push(("expert_shared_feed_forward_length", shared));
            }
        }
    }
    if let Some(sliding) = &config.sliding {
        if sliding.global_every != 6 {
            return Err(ModelError::Quantize(format!(
                "global layers every {} have no place in a GGUF file",
                sliding.global_every
            )));
        }
        numbers.push(("attention.sliding_window", sliding.window));
        floats.push(("rope.freq_base_swa", sliding.rope.base));
    }
    if config.activation == Activation::GeluTanh && architecture != "gemma3" {
        return Err(ModelError::Quantize(format!("{architecture} with GELU has no place in a GGUF file")));
    }
    for (key, value) in numbers {
        let value = u32::try_from(value).map_err(|_| ModelError::Quantize(format!("{key} is {value}")))?;
        writer.metadata(&format!("{architecture}.{key}"), value)?;
    }
    for (key, value) in floats {
        writer.metadata(&format!("{architecture}.{key}"), value)?;
    }
    if config.rope.frequency_scale != 1.0 {
        writer.metadata(&format!("{architecture}.rope.scaling.type"), "linear")?;
        writer.metadata(&format!("{architecture}.rope.scaling.factor"), 1.0 / config.rope.frequency_scale)?;
    }
    Ok(())
}

/// What [`TokenizerData::from_gguf`](crate::tokenizer::TokenizerData::from_gguf) reads. A vocabulary smaller than the embedding is filled up, as other programs count tokens by it.
fn tokenizer(writer: &mut GgufWriter<'_>, input: &ModelFile) -> Result<()> {
    let mut data = input.tokenizer_data()?;
    if let Some(pattern) = data.patterns.first() {
        let problem = format!("tokenizer: GGUF files have no name for the pre-tokenizer `{pattern}`");
        return Err(ModelError::Quantize(problem));
    }
    if let ModelFile::Directory { dir, .. } = input
        && let Some(rows) =
            of_directory(dir)?.iter().find(|t| t.name.ends_with("embed_tokens.weight")).map(InputTensor::rows)
    {
        for id in data.tokens.len()..rows {
            data.tokens.push(format!("[PAD{id}]").into_bytes());
            data.kinds.push(crate::tokenizer::TokenKind::Unused);
            if !data.scores.is_empty() {
                data.scores.push(f32::NEG_INFINITY);
            }
        }
    }
    let texts: Vec<String> = data.tokens.iter().map(|token| String::from_utf8_lossy(token).into_owned()).collect();
    writer.metadata("tokenizer.ggml.model", data.model.as_str())?;
    if let Some(pre) = &data.pre {
        writer.metadata("tokenizer.ggml.pre", pre.as_str())?;
    }
    writer.metadata("tokenizer.ggml.tokens", texts)?;
    let kinds: Vec<i32> = data.kinds.iter().map(|&kind| kind as i32).collect();
    writer.metadata("tokenizer.ggml.token_type", kinds)?;
    if !data.scores.is_empty() {
        // Other programs merge whatever has a score, and know no infinite ones.
        let scores: Vec<f32> = data.scores.iter().map(|score| score.max(-1e9)).collect();
        writer.metadata("tokenizer.ggml.scores", scores)?;
    }
    if !data.merges.is_empty() {
        let merges: Vec<String> = data.merges.iter().map(|merge| String::from_utf8_lossy(merge).into_owned()).collect();
        writer.metadata("tokenizer.ggml.merges", merges)?;
    }
    for (key, id) in [
        ("bos_token_id", data.bos),
        ("eos_token_id", data.eos),
        ("unknown_token_id", data.unk),
        ("padding_token_id", data.pad),
    ] {
        if let Some(id) = id {
            writer.metadata(&format!("tokenizer.ggml.{key}"), id)?;
        }
    }
    for (key, flag) in
        [("add_bos_token", data.add_bos), ("add_eos_token", data.add_eos), ("add_space_prefix", data.add_space_prefix)]
    {
        if let Some(flag) = flag {
            writer.metadata(&format!("tokenizer.ggml.{key}"), flag)?;
        }
    }
    Ok(())
}
