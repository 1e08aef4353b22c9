//! Quantizing models: from a GGUF file or a model directory to either of them, tensor by tensor.
//!
//! A GGUF type gives a GGUF file, a format of MLX a model directory. What is written appears under its name when it is whole. Of the model, one tensor at
//! a time is in memory, as it comes out; the source stays in its mapped files.
//!
//! Matrices take the format; vectors, norms, and the routers of experts stay floats. Where a row is not whole blocks the next format that fits takes
//! its place, and the caller is told.

mod encode;
mod gguf;
mod mlx;
mod tensors;

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::Path;

use mlx_native::format::can_quantize;
use mlx_native::{AffineFormat, DType, FpMode, GgmlType};

use crate::{ModelError, ModelFile, Result};

/// What the matrices of a model become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A type of GGUF files, F16, BF16 and F32 among them.
    Ggml(GgmlType),
    /// MLX's affine groups.
    Affine {
        /// Bits of a value.
        bits: u32,
        /// Values that share a scale: 32, 64 or 128.
        group_size: u32,
    },
    /// MLX's floating-point groups.
    Fp(FpMode),
}

impl Target {
    /// Reads a name: a GGUF type in any case (`q4_k`), `affine4`, `affine4:32` (the group's size, 64 unless said), `mxfp4`, `mxfp8`, `nvfp4`.
    ///
    /// # Errors
    ///
    /// A text that says what is wrong with the name.
    pub fn parse(name: &str) -> std::result::Result<Target, String> {
        let name = name.to_ascii_lowercase();
        // MXFP4 is a type of GGUF files too; files of that kind of model come quantized.
        if let Some(mode) = FpMode::from_name(&name) {
            return Ok(Target::Fp(mode));
        }
        if let Some(rest) = name.strip_prefix("affine") {
            let (bits, group_size) = rest.split_once(':').unwrap_or((rest, "64"));
            let (Ok(bits), Ok(group_size)) = (bits.parse(), group_size.parse()) else {
                return Err(format!("{name}: expected affineBITS or affineBITS:GROUP, such as affine4:64"));
            };
            if !matches!(group_size, 32 | 64 | 128) {
                return Err(format!("{name}: expected groups of 32, 64 or 128"));
            }
            AffineFormat::new(bits, group_size, DType::F16).map_err(|e| e.to_string())?;
            return Ok(Target::Affine { bits, group_size });
        }
        match GgmlType::from_name(&name) {
            Some(ty) if can_quantize(ty) && ty.is_matmul_weight() => Ok(Target::Ggml(ty)),
            Some(ty) => Err(format!("writing {ty} is not supported; supported are {}", Target::names().join(", "))),
            None => Err(format!("no format is called {name}; there are {}", Target::names().join(", "))),
        }
    }

    /// The names that [`parse`](Self::parse) takes.
    pub fn names() -> Vec<String> {
        let writable = |ty: &GgmlType| can_quantize(*ty) && ty.is_matmul_weight();
        let fp = FpMode::ALL.iter().map(|mode| mode.name().to_owned());
        let is_fp = |name: &String| FpMode::from_name(name).is_some();
        let ggml =
            GgmlType::all().filter(writable).map(|ty| ty.name().to_ascii_lowercase()).filter(|name| !is_fp(name));
        ggml.chain([1, 2, 3, 4, 5, 6, 8].map(|bits| format!("affine{bits}[:GROUP]"))).chain(fp).collect()
    }

    /// Whether the result is a model directory; else it is a GGUF file.
    pub fn is_directory(&self) -> bool {
        !matches!(self, Target::Ggml(_))
    }
}

/// What [`quantize`] reports as it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// How many values there are in all; comes first.
    Total {
        /// Of all tensors.
        values: u64,
    },
    /// A tensor is done.
    Tensor {
        /// Its name in the result.
        name: String,
        /// Its values.
        values: u64,
    },
    /// Something that the user should know.
    Note(String),
}

/// Receives what happens; breaking ends the work, and nothing is left behind.
pub type Report<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// The report, shared by the callbacks that write tensors one after the other.
struct Shared<'a, 'b>(RefCell<&'a mut Report<'b>>);

impl Shared<'_, '_> {
    fn send(&self, progress: Progress) -> std::io::Result<()> {
        match (self.0.borrow_mut())(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(std::io::Error::other("interrupted")),
        }
    }

    fn note(&self, text: impl Into<String>) -> Result<()> {
        self.send(Progress::Note(text.into())).map_err(|e| ModelError::Quantize(e.to_string()))
    }
}

/// Writes `input` as `output` in the format `target`.
///
/// # Errors
///
/// `output` exists, or would be a directory with the name of a GGUF file; the source is malformed or of an architecture that cannot change its layout; a value is no number; writing fails.
pub fn quantize(input: &ModelFile, output: &Path, target: Target, report: &mut Report<'_>) -> Result<()> {
    if output.exists() {
        return Err(ModelError::Quantize(format!("{} exists: choose another name or delete it", output.display())));
    }
    if target.is_directory() && output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        let name = output.display();
        return Err(ModelError::Quantize(format!(
            "{name}: expected a directory's name for this format, found a GGUF file's"
        )));
    }
    let report = Shared(RefCell::new(report));
    match target {
        Target::Ggml(ty) => gguf::write(input, output, ty, &report),
        Target::Affine { .. } | Target::Fp(_) => mlx::write(input, output, target, &report),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_formats() {
        assert_eq!(Target::parse("q4_k"), Ok(Target::Ggml(GgmlType::Q4_K)));
        assert_eq!(Target::parse("BF16"), Ok(Target::Ggml(GgmlType::BF16)));
        assert_eq!(Target::parse("affine4"), Ok(Target::Affine { bits: 4, group_size: 64 }));
        assert_eq!(Target::parse("affine6:32"), Ok(Target::Affine { bits: 6, group_size: 32 }));
        assert_eq!(Target::parse("nvfp4"), Ok(Target::Fp(FpMode::Nvfp4)));
        for (name, problem) in [
            ("affine7", "bits"),
            ("affine4:48", "32, 64 or 128"),
            ("affine", "affineBITS"),
            ("q8_k", "not supported"),
            ("i32", "not supported"),
            ("q4", "no format is called q4; there are"),
        ] {
            let error = Target::parse(name).unwrap_err();
            assert!(error.contains(problem), "{name}: {error}");
        }
        for name in Target::names() {
            assert!(Target::parse(name.trim_end_matches("[:GROUP]")).is_ok(), "{name}");
        }
    }
}
