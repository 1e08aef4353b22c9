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

/// float4s of a row that a thread has in registers at most.
const QUADS: [usize; 3] = [1, 2, 4];

pub(super) fn rms_norm(op: &RmsNorm) -> Result<Plan> {
    let dim = op.params.dim;
    let args = Bound::value(&RowArgs { dim: dim as u64, eps: op.params.eps, scale: 1.0 });
    let mut bindings = vec![Bound::view(&op.input), Bound::view(&op.weight), Bound::view(&op.output), args];
    let adds = match (&op.residual, &op.sum) {
        (Some(residual), Some(sum)) => {
            bindings.extend([Bound::view(residual), Bound::view(sum)]);
            true
        }
        _ => {
            bindings.extend([Bound::value(&u64::zeroed()), Bound::value(&u64::zeroed())]);
            false
        }
    };
    let views = [Some(&op.input), Some(&op.weight), Some(&op.output), op.residual.as_ref(), op.sum.as_ref()];
    let aligned = dim.is_multiple_of(4) && views.into_iter().flatten().all(|view| view.offset.is_multiple_of(16));
    let function = match QUADS.into_iter().find(|quads| 4 * quads * threads(dim) as usize >= dim) {
        Some(quads) if aligned => format!("rms_norm_quads<{adds}, {quads}>"),
        _ => format!("rms_norm_rows<{adds}>"),
    };
    launch(&function, bindings, op.params.rows, dim)
}

pub(super) fn softmax(op: &Softmax) -> Result<Plan> {
    let args = Bound::value(&RowArgs { dim: op.dim as u64, eps: 0.0, scale: op.scale });
    launch("softmax<>", vec![Bound::view(&op.input), Bound::view(&op.output), args], op.rows, op.dim)
}
