//! `mlxn info`.

use anyhow::Result;
use indicatif::BinaryBytes;
use mlx_native::io::gguf::{GgufFile, MetadataValue, TensorInfo};
use mlx_native::{CapabilityQuery, DeviceOptions, GgmlType, MlxDevice, OpKind};
use mlx_native_model::ARCHITECTURES;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use crate::output;
use crate::store;

/// Say what is in a model file and what of it runs on which device.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mlxn info model.gguf
  mlxn info smollm2 --json | jq .formats")]
pub struct Args {
    /// A GGUF file, a folder with one, or an alias
    file: String,
    /// Print one object: {path, version, bytes, architecture, metadata, formats, devices, tensors, …}
    #[arg(long)]
    json: bool,
    /// Print long arrays of the metadata in full
    #[arg(long)]
    full: bool,
}

/// Devices that are asked what they run.
const DEVICES: [&str; 3] = ["cpu", "metal", "cuda"];
/// Rows of the products that are asked for: a generated token, and a prompt.
const ROWS: [usize; 2] = [1, 512];
/// Arrays up to this length are printed in full.
const SHORT_ARRAY: usize = 8;

#[derive(Serialize)]
struct Info<'a> {
    path: PathBuf,
    files: usize,
    bytes: u64,
    version: u32,
    alignment: u64,
    parameters: u64,
    architecture: Option<&'a str>,
    /// Whether `mlxn` runs models of that architecture.
    runs: bool,
    metadata: BTreeMap<&'a str, Metadata<'a>>,
    formats: Vec<Format<'a>>,
    devices: Vec<Device>,
    tensors: Vec<Tensor<'a>>,
}

/// What the tensors of one format have in common.
#[derive(Serialize)]
struct Format<'a> {
    format: &'a str,
    tensors: usize,
    values: u64,
    bytes: u64,
    /// Device → how it multiplies the largest matrix of this format; empty without a matrix.
    matmul: BTreeMap<&'static str, Vec<Kernel>>,
}

#[derive(Serialize)]
struct Kernel {
    rows: usize,
    kernel: Option<String>,
    why_not: Option<String>,
}

#[derive(Serialize)]
struct Device {
    device: &'static str,
    name: Option<String>,
    why_not: Option<String>,
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    shape: &'a [u64],
    format: &'a str,
    bytes: usize,
    part: usize,
    offset: usize,
}

/// Prints what a file holds.
pub fn run(args: Args) -> Result<()> {
    let path = store::resolve_model(&args.file)?;
    let file = GgufFile::open(&path)?;
    let tensors: Vec<TensorInfo> = file.tensors().collect();
    let opened: Vec<_> =
        DEVICES.iter().map(|&name| (name, MlxDevice::by_name(name, DeviceOptions::default()))).collect();
    let architecture = file.optional("general.architecture")?;
    let info = Info {
        path,
        files: file.maps().len(),
        bytes: file.maps().map(|map| map.len() as u64).sum(),
        version: file.version(),
        alignment: file.alignment(),
        parameters: tensors.iter().map(values).sum(),
        architecture,
        runs: architecture.is_some_and(|name| ARCHITECTURES.contains(&name)),
        metadata: file.metadata().map(|(key, value)| (key, Metadata { value, full: args.full })).collect(),
        formats: formats(&tensors, &opened),
        devices: opened
            .iter()
            .map(|(device, opened)| Device {
                device,
                name: opened.as_ref().ok().map(MlxDevice::name),
                why_not: opened.as_ref().err().map(ToString::to_string),
            })
            .collect(),
        tensors: tensors
            .iter()
            .map(|tensor| Tensor {
                name: tensor.name,
                shape: &tensor.shape,
                format: tensor.ggml_type.name(),
                bytes: tensor.byte_len,
                part: tensor.part,
                offset: tensor.offset,
            })
            .collect(),
    };
    if args.json { output::json(&info) } else { print(&info) }
}

fn values(tensor: &TensorInfo) -> u64 {
    tensor.shape.iter().product()
}

/// Sums up the tensors by format, and asks each device for the kernels of the largest matrix.
fn formats<'a>(
    tensors: &[TensorInfo<'a>],
    devices: &[(&'static str, mlx_native::Result<MlxDevice>)],
) -> Vec<Format<'a>> {
    let mut groups: BTreeMap<GgmlType, Vec<&TensorInfo>> = BTreeMap::new();
    for tensor in tensors {
        groups.entry(tensor.ggml_type).or_default().push(tensor);
    }
    let mut formats = Vec::new();
    for (ggml_type, tensors) in groups {
        let matrix = tensors.iter().filter(|tensor| tensor.shape.len() >= 2).max_by_key(|tensor| values(tensor));
        let mut matmul = BTreeMap::new();
        for (name, device) in devices {
            if let (Some(matrix), Ok(device)) = (matrix, device) {
                matmul.insert(*name, ROWS.map(|rows| kernel(device, matrix, rows)).into());
            }
        }
        formats.push(Format {
            format: ggml_type.name(),
            tensors: tensors.len(),
            values: tensors.iter().map(|tensor| values(tensor)).sum(),
            bytes: tensors.iter().map(|tensor| tensor.byte_len as u64).sum(),
            matmul,
        });
    }
    formats
}

/// What a device does with `rows` rows times a weight; one with three dimensions holds experts.
fn kernel(device: &MlxDevice, weight: &TensorInfo, rows: usize) -> Kernel {
    let dimension = |from_last: usize| {
        weight.shape.iter().rev().nth(from_last).and_then(|&dim| usize::try_from(dim).ok()).unwrap_or(0)
    };
    let op = if weight.shape.len() == 2 { OpKind::Matmul } else { OpKind::MatmulId };
    let query = CapabilityQuery { op, format: weight.ggml_type.into(), m: rows, n: dimension(1), k: dimension(0) };
    let answer = device.capability(&query);
    Kernel { rows, kernel: answer.supported.then_some(answer.kernel), why_not: answer.why_not }
}

/// A metadata value; long arrays are shortened unless it is to be shown in full.
struct Metadata<'a> {
    value: MetadataValue<'a>,
    full: bool,
}

#[derive(Serialize)]
struct Shortened<'a> {
    array_of: &'a str,
    length: usize,
    first: Vec<Metadata<'a>>,
}

impl Serialize for Metadata<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let full = self.full;
        match self.value {
            MetadataValue::U8(value) => to.serialize_u8(value),
            MetadataValue::I8(value) => to.serialize_i8(value),
            MetadataValue::U16(value) => to.serialize_u16(value),
            MetadataValue::I16(value) => to.serialize_i16(value),
            MetadataValue::U32(value) => to.serialize_u32(value),
            MetadataValue::I32(value) => to.serialize_i32(value),
            MetadataValue::U64(value) => to.serialize_u64(value),
            MetadataValue::I64(value) => to.serialize_i64(value),
            MetadataValue::F32(value) => to.serialize_f32(value),
            MetadataValue::F64(value) => to.serialize_f64(value),
            MetadataValue::Bool(value) => to.serialize_bool(value),
            MetadataValue::String(value) => to.serialize_str(&value.to_string_lossy()),
            MetadataValue::Array(array) if full || array.len() <= SHORT_ARRAY => {
                to.collect_seq(array.iter().map(|value| Metadata { value, full }))
            }
            MetadataValue::Array(array) => Shortened {
                array_of: array.element_type().name(),
                length: array.len(),
                first: array.iter().take(SHORT_ARRAY).map(|value| Metadata { value, full }).collect(),
            }
            .serialize(to),
        }
    }
}

impl Metadata<'_> {
    /// The value in one line.
    fn text(&self) -> String {
        const LONGEST: usize = 100;
        let text = match self.value {
            MetadataValue::Array(array) if !self.full && array.len() > SHORT_ARRAY => {
                format!("{} × {}", array.len(), array.element_type().name())
            }
            value => value.to_string().replace('\n', "\\n"),
        };
        match text.char_indices().nth(LONGEST) {
            Some((end, _)) if !self.full => format!("{}…", &text[..end]),
            _ => text,
        }
    }
}

fn print(info: &Info) -> Result<()> {
    let mut out = output::stdout();
    writeln!(out, "{}", info.path.display())?;
    writeln!(
        out,
        "GGUF {}, {} in {} file(s), {} tensors, {:.1} M parameters",
        info.version,
        BinaryBytes(info.bytes),
        info.files,
        info.tensors.len(),
        info.parameters as f64 / 1e6
    )?;
    match info.architecture {
        Some(name) if info.runs => writeln!(out, "architecture {name}: mlxn runs it")?,
        Some(name) => {
            writeln!(out, "architecture {name}: mlxn does not run it, it knows {}", ARCHITECTURES.join(", "))?
        }
        None => writeln!(out, "no architecture: not a language model")?,
    }

    writeln!(out, "\nFormats")?;
    for Format { format, tensors, bytes, matmul, .. } in &info.formats {
        writeln!(out, "  {format:8} {tensors:>5} tensors {:>12}", BinaryBytes(*bytes).to_string())?;
        for (device, kernels) in matmul {
            for Kernel { rows, kernel, why_not } in kernels {
                let says = kernel.as_deref().or(why_not.as_deref()).unwrap_or("unknown");
                writeln!(out, "    {device}, {rows:>3} row(s): {says}")?;
            }
        }
    }

    writeln!(out, "\nDevices")?;
    for Device { device, name, why_not } in &info.devices {
        writeln!(out, "  {device:6} {}", name.as_deref().or(why_not.as_deref()).unwrap_or_default())?;
    }

    writeln!(out, "\nMetadata")?;
    let width = info.metadata.keys().map(|key| key.len()).max().unwrap_or(0);
    for (key, value) in &info.metadata {
        writeln!(out, "  {key:width$}  {}", value.text())?;
    }

    writeln!(out, "\nTensors")?;
    let width = info.tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0);
    for Tensor { name, shape, format, bytes, .. } in &info.tensors {
        let (shape, bytes) = (format!("{shape:?}"), BinaryBytes(*bytes as u64).to_string());
        writeln!(out, "  {name:width$}  {format:6} {shape:>16} {bytes:>12}")?;
    }
    Ok(())
}
