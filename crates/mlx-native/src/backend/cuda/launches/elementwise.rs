//! Casts, sums, products, gated activations, the soft-cap.

use super::{Bound, Launch, Library, PipelineKey, Plan};
use crate::backend::gpu::args::ElementArgs;
use crate::backend::gpu::u32_of;
use crate::buffer::View;
use crate::ops::{Activation, Binary, BinaryOp, Cast, GatedActivation, SoftCap};
use crate::{DType, Result};

/// Threads of a block, an element each (`STEP` in elementwise.cu).
const THREADS: u32 = 256;
/// Elements from which four to a thread still fill a GPU.
const QUADS_FROM: u64 = 1 << 18;

fn launch(function: &str, bindings: Vec<Bound>, args: ElementArgs) -> Result<Plan> {
    launch_blocks(function, bindings, args, args.len)
}

fn launch_blocks(function: &str, mut bindings: Vec<Bound>, args: ElementArgs, threads: u64) -> Result<Plan> {
    bindings.push(Bound::value(&args));
    let grid = [u32_of("elements", (threads as usize).div_ceil(THREADS as usize))?, 1, 1];
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

/// y = a ∘ b for one of the structs of elementwise.cu, by fours where all operands allow it.
fn combine(with: &str, [a, b, y]: [&View; 3], args: ElementArgs) -> Result<Plan> {
    let bindings = [a, b, y].map(Bound::view).to_vec();
    let aligned = [a, b, y].iter().all(|view| view.offset.is_multiple_of(16));
    if aligned && args.b_len == args.len && args.len.is_multiple_of(4) && args.len >= QUADS_FROM {
        return launch_blocks(&format!("combine_quads<{with}>"), bindings, args, args.len / 4);
    }
    launch(&format!("combine<{with}>"), bindings, args)
}

pub(super) fn binary(op: &BinaryOp) -> Result<Plan> {
    let with = match op.kind {
        Binary::Add => "Add",
        Binary::Mul => "Mul",
    };
    combine(with, [&op.a, &op.b, &op.output], ElementArgs { b_len: op.b_len as u64, ..args(op.len) })
}

pub(super) fn gated_activation(op: &GatedActivation) -> Result<Plan> {
    let with = match op.activation {
        Activation::Silu => "SiluMul",
        Activation::GeluTanh => "GeluMul",
    };
    combine(with, [&op.gate, &op.up, &op.output], args(op.len))
}

pub(super) fn soft_cap(op: &SoftCap) -> Result<Plan> {
    let bindings = vec![Bound::view(&op.input), Bound::view(&op.output)];
    launch("soft_cap<>", bindings, ElementArgs { cap: op.cap, ..args(op.len) })
}
