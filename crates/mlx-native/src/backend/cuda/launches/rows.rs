//! Operations with a block for each row: RMS norm, softmax.

use bytemuck::Zeroable;

use super::{Bound, Launch, Library, PipelineKey, Plan};
use crate::Result;
use crate::backend::gpu::args::RowArgs;
use crate::backend::gpu::u32_of;
use crate::ops::{RmsNorm, Softmax};

/// Threads for a row of `dim` values: about four values each, whole warps.
fn threads(dim: usize) -> u32 {
    (dim.div_ceil(4).div_ceil(32) * 32).min(1024) as u32
}

fn launch(function: &str, bindings: Vec<Bound>, rows: usize, dim: usize) -> Result<Plan> {
    let grid = [u32_of("rows", rows)?, 1, 1];
    Ok(Plan::of(vec![Launch::new(PipelineKey::new(Library::Rows, function), bindings, grid, threads(dim))]))
}

pub(super) fn rms_norm(op: &RmsNorm) -> Result<Plan> {
    let args = Bound::value(&RowArgs { dim: op.params.dim as u64, eps: op.params.eps, scale: 1.0 });
    let mut bindings = vec![Bound::view(&op.input), Bound::view(&op.weight), Bound::view(&op.output), args];
    let function = match (&op.residual, &op.sum) {
        (Some(residual), Some(sum)) => {
            bindings.extend([Bound::view(residual), Bound::view(sum)]);
            "rms_norm_rows<true>"
        }
        _ => {
            bindings.extend([Bound::value(&u64::zeroed()), Bound::value(&u64::zeroed())]);
            "rms_norm_rows<false>"
        }
    };
    launch(function, bindings, op.params.rows, op.params.dim)
}

pub(super) fn softmax(op: &Softmax) -> Result<Plan> {
    let args = Bound::value(&RowArgs { dim: op.dim as u64, eps: 0.0, scale: op.scale });
    launch("softmax<>", vec![Bound::view(&op.input), Bound::view(&op.output), args], op.rows, op.dim)
}
