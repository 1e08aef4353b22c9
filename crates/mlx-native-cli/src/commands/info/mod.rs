//! `mlxn info`.

mod directory;
mod gguf;

use anyhow::Result;
use indicatif::BinaryBytes;
use mlx_native::{CapabilityQuery, DeviceOptions, MlxDevice, OpKind, WeightFormat};
use mlx_native_model::{ARCHITECTURES, ModelFile};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use crate::output;
use crate::store;

/// Say what is in a model file or directory and what of it runs on which device.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mlxn info model.gguf
  mlxn info Qwen3-4B-4bit
  mlxn info smollm2 --json | jq .formats")]
pub struct Args {
    /// A GGUF file, a model directory, or an alias
    file: OsString,
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

#[derive(Serialize)]
struct Info<'a> {
    path: PathBuf,
    /// The kind of model, and its version: `GGUF 3`.
    kind: String,
    files: usize,
    bytes: u64,
    version: Option<u32>,
    alignment: Option<u64>,
    parameters: u64,
    architecture: Option<&'a str>,
    /// Whether `mlxn` runs models of that architecture.
    runs: bool,
    metadata: BTreeMap<&'a str, Metadata<'a>>,
    formats: Vec<Format>,
    devices: Vec<Device>,
    tensors: Vec<Tensor<'a>>,
}

/// A value of the metadata.
#[derive(Serialize)]
#[serde(untagged)]
enum Metadata<'a> {
    Gguf(gguf::Metadata<'a>),
    Json(&'a serde_json::Value),
}

/// What the tensors of one format have in common.
#[derive(Serialize)]
struct Format {
    format: String,
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
    /// Of its values, whatever they are packed in.
    shape: Vec<u64>,
    format: String,
    /// Scales and biases are counted in.
    bytes: usize,
    part: usize,
    offset: usize,
    #[serde(skip)]
    weight: Option<WeightFormat>,
}

impl Tensor<'_> {
    fn values(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// Prints what a file holds.
pub fn run(args: Args) -> Result<()> {
    let path = store::resolve_model(&args.file)?;
    let file = ModelFile::open(&path)?;
    let opened: Vec<_> =
        DEVICES.iter().map(|&name| (name, MlxDevice::by_name(name, DeviceOptions::default()))).collect();
    let mut info = match &file {
        ModelFile::Gguf(file) => gguf::info(file, args.full)?,
        ModelFile::Directory { dir, .. } => directory::info(dir)?,
    };
    info.path = path;
    info.runs = info.architecture.is_some_and(|name| ARCHITECTURES.contains(&name));
    info.parameters = info.tensors.iter().map(Tensor::values).sum();
    info.formats = formats(&info.tensors, &opened);
    let device = |(device, opened): &(&'static str, mlx_native::Result<MlxDevice>)| Device {
        device,
        name: opened.as_ref().ok().map(MlxDevice::name),
        why_not: opened.as_ref().err().map(ToString::to_string),
    };
    info.devices = opened.iter().map(device).collect();
    if args.json { output::json(&info) } else { print(&info) }
}

/// Sums up the tensors by format, and asks each device for the kernels of the largest matrix.
fn formats(tensors: &[Tensor], devices: &[(&'static str, mlx_native::Result<MlxDevice>)]) -> Vec<Format> {
    let mut groups: BTreeMap<&str, Vec<&Tensor>> = BTreeMap::new();
    for tensor in tensors {
        groups.entry(&tensor.format).or_default().push(tensor);
    }
    let mut formats = Vec::new();
    for (format, tensors) in groups {
        let matrix = tensors.iter().filter(|tensor| tensor.shape.len() >= 2).max_by_key(|tensor| tensor.values());
        let mut matmul = BTreeMap::new();
        for (name, device) in devices {
            if let (Some(matrix), Ok(device)) = (matrix, device)
                && let Some(weight) = matrix.weight
            {
                matmul.insert(*name, ROWS.map(|rows| kernel(device, weight, &matrix.shape, rows)).into());
            }
        }
        formats.push(Format {
            format: format.to_owned(),
            tensors: tensors.len(),
            values: tensors.iter().map(|tensor| tensor.values()).sum(),
            bytes: tensors.iter().map(|tensor| tensor.bytes as u64).sum(),
            matmul,
        });
    }
    formats
}

/// What a device does with `rows` rows times a weight; one with three dimensions holds experts.
fn kernel(device: &MlxDevice, format: WeightFormat, shape: &[u64], rows: usize) -> Kernel {
    let dimension =
        |from_last: usize| shape.iter().rev().nth(from_last).and_then(|&dim| usize::try_from(dim).ok()).unwrap_or(0);
    let op = if shape.len() == 2 { OpKind::Matmul } else { OpKind::MatmulId };
    let query = CapabilityQuery { op, format, m: rows, n: dimension(1), k: dimension(0) };
    let answer = device.capability(&query);
    Kernel { rows, kernel: answer.supported.then_some(answer.kernel), why_not: answer.why_not }
}

impl Metadata<'_> {
    /// The value in one line.
    fn text(&self) -> String {
        match self {
            Metadata::Gguf(value) => value.text(),
            Metadata::Json(value) => value.to_string(),
        }
    }
}

fn print(info: &Info) -> Result<()> {
    let mut text = Vec::new();
    describe(info, &mut text)?;
    let text = String::from_utf8_lossy(&text);
    output::stdout().write_all(output::printable(&text).as_bytes())?;
    Ok(())
}

/// For people, line by line.
fn describe(info: &Info, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "{}", info.path.display())?;
    writeln!(
        out,
        "{}, {} in {} file(s), {} tensors, {:.1} M parameters",
        info.kind,
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
        writeln!(out, "  {format:16} {tensors:>5} tensors {:>12}", BinaryBytes(*bytes).to_string())?;
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
    let formats = info.tensors.iter().map(|tensor| tensor.format.len()).max().unwrap_or(0);
    for Tensor { name, shape, format, bytes, .. } in &info.tensors {
        let (shape, bytes) = (format!("{shape:?}"), BinaryBytes(*bytes as u64).to_string());
        writeln!(out, "  {name:width$}  {format:formats$} {shape:>16} {bytes:>12}")?;
    }
    Ok(())
}
