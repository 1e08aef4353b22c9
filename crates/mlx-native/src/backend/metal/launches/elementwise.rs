//! Casts, sums, products, gated activations, the soft-cap.

use super::args::ElementArgs;
use super::{Bound, Launch, Library, PipelineKey, u32_of};
use crate::Result;
use crate::ops::{Activation, Binary, BinaryOp, Cast, GatedActivation, SoftCap};

/// Threads of a threadgroup, and elements that it covers (`SPAN` in elementwise.metal).
const THREADS: u32 = 256;
const SPAN: usize = 1024;

fn launch(function: String, mut bindings: Vec<Bound>, args: ElementArgs) -> Result<Vec<Launch>> {
    bindings.push(Bound::args(&args));
    Ok(vec![Launch {
        pipeline: PipelineKey::new(Library::Elementwise, function),
        bindings,
        grid: [u32_of("elements", (args.len as usize).div_ceil(SPAN))?, 1, 1],
        group: [THREADS, 1, 1],
        threadgroup_bytes: 0,
    }])
}

fn args(len: usize) -> ElementArgs {
    ElementArgs { len: len as u64, b_len: len as u64, cap: 0.0, pad: 0 }
}

pub(super) fn cast(op: &Cast) -> Result<Vec<Launch>> {
    let function = format!("cast_{}_{}", op.direction.from(), op.direction.to());
    launch(function, vec![Bound::read(&op.input), Bound::overwrite(&op.output)], args(op.len))
}

pub(super) fn binary(op: &BinaryOp) -> Result<Vec<Launch>> {
    let function = match op.kind {
        Binary::Add => "add",
        Binary::Mul => "mul",
    };
    let bindings = vec![Bound::read(&op.a), Bound::read(&op.b), Bound::overwrite(&op.output)];
    launch(function.into(), bindings, ElementArgs { b_len: op.b_len as u64, ..args(op.len) })
}

pub(super) fn gated_activation(op: &GatedActivation) -> Result<Vec<Launch>> {
    let function = match op.activation {
        Activation::Silu => "silu_mul",
        Activation::GeluTanh => "gelu_mul",
    };
    launch(
        function.into(),
        vec![Bound::read(&op.gate), Bound::read(&op.up), Bound::overwrite(&op.output)],
        args(op.len),
    )
}

pub(super) fn soft_cap(op: &SoftCap) -> Result<Vec<Launch>> {
    let bindings = vec![Bound::read(&op.input), Bound::overwrite(&op.output)];
    launch("soft_cap".into(), bindings, ElementArgs { cap: op.cap, ..args(op.len) })
}
