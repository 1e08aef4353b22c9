//! Block structs and codebooks as source text for GPU kernels, so that each exists once.

use std::fmt::Write;

use super::ggml::codebooks::{TABLES, Table, TableData};
use super::ggml::{BlockFormat, Field, Scalar};
use crate::GgmlType;

/// The language of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    /// Metal Shading Language.
    Msl,
    /// CUDA C++, compiled by NVRTC or nvcc; the text needs `cuda_fp16.h` before it.
    Cuda,
}

impl Language {
    /// The name of an element type.
    pub const fn scalar(self, scalar: Scalar) -> &'static str {
        match (self, scalar) {
            (_, Scalar::F64) => "double",
            (_, Scalar::F32) => "float",
            (_, Scalar::F16) => "half",
            (Language::Msl, Scalar::BF16) => "bfloat",
            (Language::Cuda, Scalar::BF16) => "__nv_bfloat16",
            (_, Scalar::U16) => "unsigned short",
            (_, Scalar::U8) => "unsigned char",
            (Language::Msl, Scalar::I64) => "long",
            (Language::Cuda, Scalar::I64) => "long long",
            (_, Scalar::I32) => "int",
            (_, Scalar::I16) => "short",
            (_, Scalar::I8) => "signed char",
        }
    }

    /// What a constant of program scope is declared with. CUDA's constant memory is not used: it serves one address at a
    /// time, and codebooks are indexed by each lane's own weights.
    const fn constant(self) -> &'static str {
        match self {
            Language::Msl => "constant",
            Language::Cuda => "static __device__ const",
        }
    }

    const fn word64(self) -> &'static str {
        match self {
            Language::Msl => "ulong",
            Language::Cuda => "unsigned long long",
        }
    }
}

/// The block structs of these types and the codebooks that they need, each once.
///
/// A struct has the name, the fields and the bytes of the Rust one, `BlockQ4_K`, and asserts its size. Types whose
/// blocks are single values get no struct. Codebooks are as [`codebook`] says.
///
/// ```
/// use mlx_native::GgmlType;
/// use mlx_native::format::{Language, render};
///
/// let text = render(Language::Msl, &[GgmlType::IQ4_NL]);
/// assert!(text.starts_with("constant signed char IQ4_VALUES[16] = {"));
/// assert!(text.contains("struct BlockIQ4_NL {\n    half d;\n    unsigned char qs[16];\n};"));
/// ```
pub fn render(language: Language, types: &[GgmlType]) -> String {
    let mut seen: Vec<&str> = Vec::new();
    let mut first = |name| {
        let is_first = !seen.contains(&name);
        seen.extend(is_first.then_some(name));
        is_first
    };
    let mut text = String::new();
    for format in types.iter().map(|ty| ty.block_format()) {
        for name in format.codebooks {
            if first(name) {
                text += &codebook(language, name).unwrap_or_default();
            }
        }
        if format.values > 1 && first(format.struct_name) {
            text += &block_struct(language, format);
        }
    }
    text
}

/// The codebook of this name (see [`TABLES`]), `None` when there is none.
///
/// Plain lists are arrays of bytes; the points of a grid are words (`unsigned int` for four coordinates, 64 bits for
/// eight) with coordinate i, a signed byte, in bits 8i..8i + 8.
pub fn codebook(language: Language, name: &str) -> Option<String> {
    let Table { name, data } = TABLES.iter().find(|table| table.name == name)?;
    let constant = language.constant();
    let (ty, values): (&str, Vec<String>) = match data {
        TableData::Scalar(value) => return Some(format!("{constant} float {name} = {value:?}f;\n")),
        TableData::I8(values) => (language.scalar(Scalar::I8), values.iter().map(|x| x.to_string()).collect()),
        TableData::U8(values) => (language.scalar(Scalar::U8), values.iter().map(|x| x.to_string()).collect()),
        TableData::I8x4(points) => {
            let word = |point: &[i8; 4]| format!("{:#x}u", u32::from_le_bytes(point.map(|x| x as u8)));
            ("unsigned int", points.iter().map(word).collect())
        }
        TableData::I8x8(points) => {
            let suffix = if language == Language::Cuda { "ull" } else { "ul" };
            let word = |point: &[i8; 8]| format!("{:#x}{suffix}", u64::from_le_bytes(point.map(|x| x as u8)));
            (language.word64(), points.iter().map(word).collect())
        }
    };
    let mut text = format!("{constant} {ty} {name}[{}] = {{\n", values.len());
    for line in values.chunks(16) {
        text += "    ";
        text += &line.join(", ");
        text += ",\n";
    }
    text += "};\n";
    Some(text)
}

fn block_struct(language: Language, format: &BlockFormat) -> String {
    let BlockFormat { struct_name, bytes, .. } = format;
    let mut text = format!("struct {struct_name} {{\n");
    for Field { name, scalar, len, .. } in format.fields {
        let ty = language.scalar(*scalar);
        // Writing to a String cannot fail.
        let _ = match len {
            Some(len) => writeln!(text, "    {ty} {name}[{len}];"),
            None => writeln!(text, "    {ty} {name};"),
        };
    }
    let _ = writeln!(text, "}};\nstatic_assert(sizeof({struct_name}) == {bytes}, \"{struct_name} is {bytes} bytes\");");
    text
}
