//! The text of a library: prelude, argument structs, templates, and one line for each instantiation.

use std::fmt::Write;

use super::launches::args::{
    AttentionArgs, ElementArgs, ExpertArgs, FlashArgs, MatmulArgs, RopeArgs, RowArgs, SampleArgs, StoreArgs,
};
use super::launches::attention::{CACHE_TYPES, FLASH_HEADS, LANE_VALUES};
use super::launches::{Library, WeightText};
use crate::format::render::codebook;
use crate::format::{FpMode, Language, render};
use crate::{DType, GgmlType};

/// Name for reports and MSL text.
pub(crate) fn assemble(library: Library) -> (String, String) {
    let mut text = String::from(include_str!("kernels/prelude.metal"));
    match library {
        Library::Elementwise => {
            text += &ElementArgs::render();
            text += include_str!("kernels/elementwise.metal");
            let types = [("f32", "float"), ("f16", "half"), ("bf16", "bfloat")];
            for (from, from_type) in types {
                for (to, to_type) in types.iter().filter(|to| to.0 != from) {
                    instantiate(&mut text, &format!("cast_{from}_{to}"), &format!("cast<{from_type}, {to_type}>"));
                }
            }
            for (name, function) in [("add", "Add"), ("mul", "Mul"), ("silu_mul", "SiluMul"), ("gelu_mul", "GeluMul")] {
                instantiate(&mut text, name, &format!("combine<{function}>"));
            }
            ("elementwise.metal".into(), text)
        }
        Library::Rows => {
            text += &RowArgs::render();
            text += include_str!("kernels/rows.metal");
            instantiate(&mut text, "rms_norm", "rms_norm_rows<false>");
            instantiate(&mut text, "add_rms_norm", "rms_norm_rows<true>");
            ("rows.metal".into(), text)
        }
        Library::Attention => {
            for args in [StoreArgs::render(), AttentionArgs::render(), RopeArgs::render()] {
                text += &args;
            }
            text += include_str!("kernels/attention.metal");
            for (dtype, ty) in CACHE_TYPES {
                instantiate(&mut text, &format!("store_kv_{dtype}"), &format!("store_kv<{ty}>"));
                instantiate(&mut text, &format!("rope_store_{dtype}"), &format!("rope_store<{ty}>"));
                for values in LANE_VALUES {
                    let name = format!("attention_{dtype}_v{values}");
                    instantiate(&mut text, &name, &format!("attention<{ty}, {values}, false>"));
                }
                let widest = LANE_VALUES[LANE_VALUES.len() - 1];
                instantiate(&mut text, &format!("attention_{dtype}_wide"), &format!("attention<{ty}, {widest}, true>"));
            }
            ("attention.metal".into(), text)
        }
        Library::Choose => {
            text += &RowArgs::render();
            text += &ExpertArgs::render();
            text += include_str!("kernels/choose.metal");
            ("choose.metal".into(), text)
        }
        Library::Sample => {
            text += &RowArgs::render();
            text += &ExpertArgs::render();
            text += &SampleArgs::render();
            text += include_str!("kernels/choose.metal");
            text += include_str!("kernels/sample.metal");
            ("sample.metal".into(), text)
        }
        Library::Flash => {
            text += &FlashArgs::render();
            text += include_str!("kernels/flash.metal");
            for (matrices, _) in FLASH_HEADS {
                for (name, split) in [("flash", false), ("flash_split", true)] {
                    instantiate(&mut text, &format!("{name}_{matrices}"), &format!("flash<{matrices}, {split}>"));
                }
            }
            ("flash.metal".into(), text)
        }
        Library::MapExperts => {
            text += &MatmulArgs::render();
            text += include_str!("kernels/map_experts.metal");
            ("map_experts.metal".into(), text)
        }
        Library::Weight(weight) => weight_text(text, weight),
        Library::Tensor(weight) => tensor_text(text, weight),
        Library::Gated(weight) => {
            let (name, w) = begin_weight(&mut text, weight);
            text += include_str!("kernels/matvec.metal");
            text += include_str!("kernels/gated.metal");
            for (rows, columns) in PASSES {
                let function = format!("mv_gated<{w}, {rows}, {columns}>");
                instantiate(&mut text, &format!("mv_gated_r{rows}"), &function);
            }
            (format!("{name}_gated.metal"), text)
        }
    }
}

/// Columns that a team of lanes has at once, for each number of input rows that share a pass: registers for accumulators and decoded values
/// stay about the same.
pub(crate) const PASSES: [(u32, u32); 4] = [(1, 4), (2, 4), (4, 2), (8, 2)];

/// What every text with a weight begins with: the name of its format, and its type in weights.metal.
fn begin_weight(text: &mut String, weight: WeightText) -> (String, String) {
    *text += &MatmulArgs::render();
    let named = match weight {
        WeightText::Ggml(ty) => {
            let name = ty.name();
            let _ = writeln!(text, "#define USES_{name}");
            *text += &render(Language::Msl, &[ty]);
            *text += include_str!("kernels/formats/blocks.metal");
            *text += include_str!("kernels/formats/codebooks.metal");
            (name.to_string(), ggml_type_name(ty))
        }
        WeightText::Affine { bits, scales } => {
            (format!("affine{bits}_{scales}"), format!("Affine<{bits}, {}>", scalar_name(scales)))
        }
        WeightText::Fp(mode) => {
            *text += "#define USES_FP\n";
            *text += &codebook(Language::Msl, "E2M1_DOUBLED").unwrap_or_default();
            let w = match mode {
                FpMode::Mxfp4 => "FloatGroups<Mxfp4>",
                FpMode::Mxfp8 => "FloatGroups<Mxfp8>",
                FpMode::Nvfp4 => "FloatGroups<Nvfp4>",
            };
            (format!("fp_{mode}"), w.to_string())
        }
    };
    *text += include_str!("kernels/weights.metal");
    *text += include_str!("kernels/operands.metal");
    named
}

fn weight_text(mut text: String, weight: WeightText) -> (String, String) {
    let (name, w) = begin_weight(&mut text, weight);
    text += include_str!("kernels/matvec.metal");
    text += include_str!("kernels/tile.metal");
    text += include_str!("kernels/matmat.metal");
    text += include_str!("kernels/large.metal");
    for (rows, columns) in PASSES {
        instantiate(&mut text, &format!("mv_r{rows}"), &format!("mv<{w}, {rows}, {columns}>"));
    }
    instantiate(&mut text, "mv_id", &format!("mv_id<{w}, {}>", PASSES[0].1));
    for (suffix, operand) in [("", "half"), ("_f32", "float")] {
        instantiate(&mut text, &format!("mm{suffix}"), &format!("mm<{w}, {operand}>"));
        instantiate(&mut text, &format!("mm_id{suffix}"), &format!("mm_id<{w}, {operand}>"));
    }
    instantiate(&mut text, "mm_large", &format!("mm_large<{w}>"));
    if let WeightText::Affine { bits: bits @ (4 | 8), scales } = weight {
        text += include_str!("kernels/qmv.metal");
        for values in [8, 16] {
            let function = format!("qmv<{bits}, {}, {values}>", scalar_name(scales));
            instantiate(&mut text, &format!("qmv_{values}"), &function);
        }
    }
    instantiate(&mut text, "embedding", &format!("embedding<{w}>"));
    if !matches!(weight, WeightText::Ggml(_)) {
        instantiate(&mut text, "vm", &format!("vm<{w}>"));
    }
    (format!("{name}.metal"), text)
}

/// A text of its own: its headers are new in Metal 4.
fn tensor_text(text: String, weight: WeightText) -> (String, String) {
    let mut text = format!("{TENSOR_HEADERS}{text}");
    let (name, w) = begin_weight(&mut text, weight);
    text += include_str!("kernels/tile.metal");
    text += include_str!("kernels/large.metal");
    text += include_str!("kernels/tensor.metal");
    for function in TENSOR_KERNELS {
        instantiate(&mut text, function, &format!("{function}<{w}>"));
    }
    (format!("{name}_tensor.metal"), text)
}

/// The functions of a library of tensor operations.
pub(crate) const TENSOR_KERNELS: [&str; 3] = ["mm_tensor", "mm_id_tensor", "mm_large_tensor"];

const TENSOR_HEADERS: &str = "#include <metal_stdlib>\n#include <metal_tensor>\n\
     #include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>\n";

/// The weight type of a GGML format in weights.metal.
fn ggml_type_name(ty: GgmlType) -> String {
    match ty {
        GgmlType::F32 => "Plain<float>".into(),
        GgmlType::F16 => "Plain<half>".into(),
        GgmlType::BF16 => "Plain<bfloat>".into(),
        GgmlType::Q8_0 | GgmlType::Q8_1 | GgmlType::Q8_K => {
            let block = ty.block_format();
            format!("Blocks<Bytes<{}, {}>>", block.struct_name, block.values)
        }
        _ => format!("Blocks<{}>", ty.name()),
    }
}

fn scalar_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "half",
        DType::BF16 => "bfloat",
        _ => "float",
    }
}

/// Makes a kernel of a template under a name.
fn instantiate(text: &mut String, name: &str, function: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "template [[host_name(\"{name}\")]] [[kernel]] decltype({function}) {function};");
}
