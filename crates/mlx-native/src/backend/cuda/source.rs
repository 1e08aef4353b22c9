//! The text of a kernel: prelude, argument structs, formats, templates. NVRTC makes the instantiation that the pipeline's key names.

use std::fmt::Write;

use super::launches::args::{PartArgs, ProductArgs, RealignArgs, RopeTable, SampleArgs, SampleLive};
use super::launches::{Library, PipelineKey};
use crate::GgmlType;
use crate::backend::gpu::WeightText;
use crate::backend::gpu::args::{ElementArgs, ExpertArgs, RopeArgs, RowArgs, StoreArgs};
use crate::format::render::codebook;
use crate::format::{FpMode, Language, render};

/// A kernel's text.
pub(super) struct Source {
    /// For reports.
    pub name: String,
    pub text: String,
}

/// Assembles the text of a pipeline; `W` in it is the weight type of its format.
pub(super) fn assemble(key: &PipelineKey) -> Source {
    let (name, parts): (&str, Vec<String>) = match key.library {
        Library::Elementwise => {
            ("elementwise.cu", vec![ElementArgs::render(), include_str!("kernels/elementwise.cu").into()])
        }
        Library::Rows => ("rows.cu", vec![RowArgs::render(), include_str!("kernels/rows.cu").into()]),
        Library::Rope => {
            let args = [RopeArgs::render(), StoreArgs::render(), RopeTable::render()];
            (
                "rope.cu",
                vec![args.concat(), include_str!("kernels/turn.cu").into(), include_str!("kernels/rope.cu").into()],
            )
        }
        Library::Attention => {
            ("attention.cu", vec![StoreArgs::render(), PartArgs::render(), include_str!("kernels/attention.cu").into()])
        }
        Library::Heads => {
            let args = [PartArgs::render(), RopeArgs::render(), RopeTable::render()];
            (
                "heads.cu",
                vec![
                    args.concat(),
                    include_str!("kernels/turn.cu").into(),
                    include_str!("kernels/heads.cu").into(),
                    include_str!("kernels/turn_attend.cu").into(),
                ],
            )
        }
        Library::Flash => ("flash.cu", vec![PartArgs::render(), include_str!("kernels/flash.cu").into()]),
        Library::Choose => {
            ("choose.cu", vec![RowArgs::render(), ExpertArgs::render(), include_str!("kernels/choose.cu").into()])
        }
        Library::Sample => {
            ("sample.cu", vec![SampleArgs::render(), SampleLive::render(), include_str!("kernels/sample.cu").into()])
        }
        Library::MapExperts => {
            ("map_experts.cu", vec![ProductArgs::render(), include_str!("kernels/map_experts.cu").into()])
        }
        Library::Stage => ("stage.cu", vec![ProductArgs::render(), include_str!("kernels/stage.cu").into()]),
        Library::Realign => ("realign.cu", vec![RealignArgs::render(), include_str!("kernels/realign.cu").into()]),
        Library::Limits => ("limits.cu", vec![include_str!("kernels/limits.cu").into()]),
        Library::MatVec(weight) => ("matvec.cu", vec![weight_text(weight), include_str!("kernels/matvec.cu").into()]),
        Library::MatMat(weight) => ("matmat.cu", vec![weight_text(weight), include_str!("kernels/matmat.cu").into()]),
        Library::Hopper => ("hopper.cu", vec![super::launches::hopper::text()]),
    };
    let name = match key.library {
        Library::MatVec(weight) | Library::MatMat(weight) => format!("{}.{name}", weight_name(weight)),
        _ => name.to_string(),
    };
    // The kernels of Hopper have words of their own.
    let prelude = if key.library == Library::Hopper { "" } else { include_str!("kernels/prelude.cu") };
    Source { name, text: prelude.to_string() + &parts.concat() }
}

fn weight_name(weight: WeightText) -> String {
    match weight {
        WeightText::Ggml(ty) => ty.name().to_string(),
        WeightText::Affine { bits, scales } => format!("affine{bits}_{scales}"),
        WeightText::Fp(mode) => mode.to_string(),
    }
}

/// Argument struct, block struct, codebooks and decoder of a format, and its weight type as `W`.
fn weight_text(weight: WeightText) -> String {
    let mut text = ProductArgs::render();
    text += include_str!("kernels/formats/words.cu");
    let alias = match weight {
        WeightText::Ggml(ty) => {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "#define USES_{}", ty.name());
            text += &render(Language::Cuda, &[ty]);
            text += include_str!("kernels/formats/blocks.cu");
            text += include_str!("kernels/formats/codebooks.cu");
            ggml_type_name(ty)
        }
        WeightText::Affine { bits, scales } => {
            format!("Affine<{bits}, {}>", super::launches::type_name(scales))
        }
        WeightText::Fp(mode) => {
            text += "#define USES_FP\n";
            text += &codebook(Language::Cuda, "E2M1_DOUBLED").unwrap_or_default();
            let mode = match mode {
                FpMode::Mxfp4 => "Mxfp4",
                FpMode::Mxfp8 => "Mxfp8",
                FpMode::Nvfp4 => "Nvfp4",
            };
            format!("FloatGroups<{mode}>")
        }
    };
    text += include_str!("kernels/weights.cu");
    let _ = writeln!(text, "\ntypedef {alias} W;");
    text
}

/// The weight type of a GGML format in weights.cu.
fn ggml_type_name(ty: GgmlType) -> String {
    match ty {
        GgmlType::F32 => "Plain<float>".into(),
        GgmlType::F16 => "Plain<half>".into(),
        GgmlType::BF16 => "Plain<bfloat>".into(),
        GgmlType::Q8_0 | GgmlType::Q8_1 | GgmlType::Q8_K => {
            let block = ty.block_format();
            let align = 1 << block.bytes.trailing_zeros().min(2);
            format!("Blocks<Bytes<{}, {}, {align}>>", block.struct_name, block.values)
        }
        _ => format!("Blocks<{}>", ty.name()),
    }
}

/// Every kernel that the backend can ask for, for tests that compile them all.
#[cfg(test)]
pub(super) fn all_pipelines() -> Vec<PipelineKey> {
    use super::launches::matmul::{FEW_COLUMNS, PASSES};
    use crate::DType;
    let mut keys = Vec::new();
    let mut add = |library, functions: &[&str]| keys.extend(functions.iter().map(|f| PipelineKey::new(library, *f)));
    let types = ["float", "half", "bfloat"];
    for from in types {
        for to in types.iter().filter(|to| **to != from) {
            add(Library::Elementwise, &[&format!("cast<{from}, {to}>")]);
        }
    }
    add(
        Library::Elementwise,
        &[
            "combine<Add>",
            "combine<Mul>",
            "combine<SiluMul>",
            "combine<GeluMul>",
            "combine_quads<SiluMul>",
            "soft_cap<>",
        ],
    );
    add(
        Library::Rows,
        &[
            "rms_norm_rows<false>",
            "rms_norm_rows<true>",
            "rms_norm_quads<true, 1>",
            "rms_norm_quads<false, 4>",
            "softmax<>",
        ],
    );
    add(Library::Rope, &["rope<1>", "rope_store<half, 1>", "rope_store<float, 8>"]);
    for ty in ["half", "float"] {
        add(Library::Attention, &[&format!("store_kv<{ty}>")]);
        for queries in [1, 2, 4, 8] {
            add(Library::Attention, &[&format!("attention<{ty}, {queries}>")]);
        }
    }
    add(Library::Attention, &["attention_combine<>"]);
    for head_dim in [64, 128, 256] {
        for queries in [1, 2, 4] {
            add(Library::Heads, &[&format!("attention_heads<{queries}, {head_dim}, true>")]);
        }
        add(Library::Heads, &[&format!("attention_heads<4, {head_dim}, false>"), &format!("join_heads<{head_dim}>")]);
        add(Library::Heads, &[&format!("attention_heads<3, {head_dim}, true>")]);
        for variant in ["1, {}, true, false", "3, {}, true, false", "4, {}, true, true", "4, {}, false, false"] {
            add(Library::Heads, &[&format!("turn_attend<{}>", variant.replace("{}", &head_dim.to_string()))]);
        }
    }
    for head_dim in [64, 80, 96, 128, 256] {
        add(Library::Flash, &[&format!("flash_attention<{head_dim}, {}>", if head_dim <= 128 { 64 } else { 32 })]);
    }
    add(Library::Choose, &["argmax<>", "expert_gate<>", "expert_sum<>"]);
    let draw =
        ["sample_copy<>", "sample_penalise<>", "sample_fronts<>", "sample_best<>", "sample_sort<>", "sample_draw<>"];
    add(Library::Sample, &draw);
    add(Library::MapExperts, &["map_experts<>"]);
    add(Library::Stage, &["widen<>", "stage<false>", "stage<true>"]);
    add(Library::Realign, &["realign<>"]);
    add(Library::Limits, &["read_all<>", "random_halves<>"]);
    let ggml = GgmlType::all().filter(|ty| ty.is_matmul_weight()).map(WeightText::Ggml);
    let scales = [DType::F32, DType::F16, DType::BF16];
    let affine =
        [1, 2, 3, 4, 5, 6, 8].into_iter().flat_map(|bits| scales.map(|scales| WeightText::Affine { bits, scales }));
    let fp = [FpMode::Mxfp4, FpMode::Mxfp8, FpMode::Nvfp4].map(WeightText::Fp);
    for weight in ggml.chain(affine).chain(fp) {
        for (rows, columns) in PASSES.into_iter().chain([(1, FEW_COLUMNS)]) {
            add(Library::MatVec(weight), &[&format!("mv<W, {rows}, {columns}>")]);
        }
        for columns in [PASSES[0].1, FEW_COLUMNS] {
            add(Library::MatVec(weight), &[&format!("mv_id<W, {columns}>")]);
        }
        add(Library::MatVec(weight), &["embedding<W>"]);
        if !matches!(weight, WeightText::Ggml(_)) {
            add(Library::MatVec(weight), &["vm<W>"]);
        }
        let tiles = ["mm<W, 64, false>", "mm<W, 128, false>", "mm<W, 64, true>", "mm<W, 32, true>"];
        add(Library::MatMat(weight), &tiles);
        add(Library::MatMat(weight), &["mm_id<W, 64, false>", "mm_id<W, 64, true>", "mm_id<W, 32, true>"]);
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::backend::cuda::launches;
    use crate::backend::cuda::nvrtc::{self, Program};

    /// Bytes that a hot kernel may spill: the few values that a loop only reads, as the tile kernel does to let two blocks share a processor. Plain weights
    /// take 48 on sm_80, quantized ones up to 16.
    const SPILL_LIMIT: u32 = 48;

    /// Kernels whose time is the time of a model: they must keep what their loops work on in registers. Codes that straddle bytes are slow anyway.
    fn is_hot(key: &PipelineKey) -> bool {
        match key.library {
            Library::MatVec(weight) | Library::MatMat(weight) => {
                !matches!(weight, WeightText::Affine { bits: 1 | 3 | 5 | 6, .. })
            }
            Library::Hopper => {
                let function = &key.function;
                function.contains("ONE_ROW")
                    || ["hopper_mm<", "hopper_mv_id<", "hopper_layer<"].iter().any(|name| function.starts_with(name))
            }
            library => matches!(library, Library::Flash | Library::Attention | Library::Heads),
        }
    }

    /// Bytes that the assembler spilled, from its report on the kernel.
    fn spilled(log: &str) -> u32 {
        let number = |words: &str| words.split_whitespace().next_back().and_then(|n| n.parse::<u32>().ok());
        log.split("bytes spill stores").filter_map(|before| number(before.trim_end())).max().unwrap_or(0)
    }

    /// The kernels of Hopper; those for tiles keep everything in registers, and the assembler serialises no wgmma (warnings C75xx).
    #[test]
    #[ignore = "takes minutes: CI runs it"]
    fn the_kernels_of_hopper_compile() {
        if nvrtc::version().is_err() {
            return;
        }
        let keys = launches::hopper::pipelines().into_iter().chain(launches::step::clusters());
        assert_compiles(&keys.map(|key| (key, 90)).collect::<Vec<_>>());
    }

    /// Compiles these kernels, with all processors; messages for what fails or spills.
    fn compile_all(keys: &[(PipelineKey, u32)]) -> Vec<String> {
        let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let worker = || {
            while let Some((key, arch)) = keys.get(next.fetch_add(1, Ordering::Relaxed)) {
                let source = assemble(key);
                let program = Program { name: &source.name, text: &source.text, kernel: &key.function, arch: *arch };
                let failure = match nvrtc::compile(&program) {
                    Err(error) => Some(error.to_string()),
                    Ok(binary) if is_hot(key) && spilled(&binary.log) > SPILL_LIMIT => Some(binary.log),
                    Ok(binary) if binary.log.contains("C75") => Some(binary.log),
                    Ok(_) => None,
                };
                if let Some(message) = failure {
                    failures.lock().unwrap().push(format!("{} {} sm_{arch}: {message}", source.name, key.function));
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(worker))));
        failures.into_inner().unwrap()
    }

    fn assert_compiles(keys: &[(PipelineKey, u32)]) {
        if let Err(error) = nvrtc::version() {
            eprintln!("skipped: {error}");
            return;
        }
        let failures = compile_all(keys);
        assert!(failures.is_empty(), "{} of {} kernels:\n{}", failures.len(), keys.len(), failures.join("\n"));
        println!("{} kernels compile", keys.len());
    }

    /// One kernel of each template, and the formats' decoders by turns, so that the whole set is covered every few kernels.
    #[test]
    fn a_sample_of_the_kernels_compiles() {
        let mut templates: BTreeMap<String, Vec<PipelineKey>> = BTreeMap::new();
        for key in all_pipelines() {
            templates.entry(key.function.clone()).or_default().push(key);
        }
        let sample = templates.into_values().enumerate().map(|(i, keys)| (keys[i % keys.len()].clone(), 80));
        assert_compiles(&sample.collect::<Vec<_>>());
    }

    /// The templates with every format for the oldest architecture. Of the instantiations that differ in rows alone, and of the scales' types, and of
    /// all for Hopper, a part: all of them take half an hour of processor time.
    #[test]
    #[ignore = "takes minutes: CI runs it"]
    fn every_template_compiles_with_every_format() {
        let is_main = |key: &PipelineKey| {
            let scales = !matches!(key.library, Library::MatVec(WeightText::Affine { scales, .. })
                | Library::MatMat(WeightText::Affine { scales, .. }) if scales != crate::DType::BF16);
            scales && ["mv<W, 1, 8>", "mm<W, 128, false>", "embedding<W>"].contains(&&key.function[..])
        };
        let all = all_pipelines();
        let plain = |key: &PipelineKey| !matches!(key.library, Library::MatVec(_) | Library::MatMat(_));
        let (main, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|key| plain(key) || is_main(key));
        let hopper = main.iter().step_by(9).map(|key| (key.clone(), 90)).collect::<Vec<_>>();
        let rest = rest.into_iter().step_by(23).map(|key| (key, 80));
        assert_compiles(&main.into_iter().map(|key| (key, 80)).chain(hopper).chain(rest).collect::<Vec<_>>());
    }
}
