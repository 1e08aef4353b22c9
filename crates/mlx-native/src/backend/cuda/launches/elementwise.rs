//! Casts, sums, products, gated activations, the soft-cap.

use super::{Bound, Launch, Library, PipelineKey, Plan};
use crate::backend::gpu::args::ElementArgs;
use crate::backend::gpu::u32_of;
use crate::ops::{Activation, Binary, BinaryOp, Cast, GatedActivation, SoftCap};
use crate::{DType, Result};

/// Threads of a block, an element each (`STEP` in elementwise.cu).
const THREADS: u32 = 256;

fn launch(function: &str, mut bindings: Vec<Bound>, args: ElementArgs) -> Result<Plan> {
    bindings.push(Bound::value(&args));
    let grid = [u32_of("elements", (args.len as usize).div_ceil(THREADS as usize))?, 1, 1];
    Ok(Plan::of(vec![Launch::new(PipelineKey::new(Library::Elementwise, function), bindings, grid, THREADS)]))
}

fn args(len: usize) -> ElementArgs {
    ElementArgs { len: len as u64, b_len: len as u64, cap: 0.0, pad: 0 }
}

/// The name of an element type in a kernel's text.
pub(crate) fn type_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "half",
        DType::BF16 => "bfloat",
        _ => "float",
    }
}

pub(super) fn cast(op: &Cast) -> Result<Plan> {
    let function = format!("cast<{}, {}>", type_name(op.direction.from()), type_name(op.direction.to()));
    launch(&function, vec![Bound::view(&op.input), Bound::view(&op.output)], args(op.len))
}

pub(super) fn binary(op: &BinaryOp) -> Result<Plan> {
    let function = match op.kind {
        Binary::Add => "combine<Add>",
        Binary::Mul => "combine<Mul>",
    };
    let bindings = vec![Bound::view(&op.a), Bound::view(&op.b), Bound::view(&op.output)];
    launch(function, bindings, ElementArgs { b_len: op.b_len as u64, ..args(op.len) })
}

pub(super) fn gated_activation(op: &GatedActivation) -> Result<Plan> {
    let function = match op.activation {
        Activation::Silu => "combine<SiluMul>",
        Activation::GeluTanh => "combine<GeluMul>",
    };
    let bindings = vec![Bound::view(&op.gate), Bound::view(&op.up), Bound::view(&op.output)];
    launch(function, bindings, args(op.len))
}

pub(super) fn soft_cap(op: &SoftCap) -> Result<Plan> {
    let bindings = vec![Bound::view(&op.input), Bound::view(&op.output)];
    launch("soft_cap<>", bindings, ElementArgs { cap: op.cap, ..args(op.len) })
}
