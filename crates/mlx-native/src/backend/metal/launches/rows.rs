//! Operations with a threadgroup for each row: RMS norm, softmax.

use super::args::RowArgs;
use super::{Bound, Launch, Library, PipelineKey, u32_of};
use crate::Result;
use crate::ops::{RmsNorm, Softmax};

/// Threads for a row of `dim` values: about four values each, whole simdgroups, at most 256.
fn threads(dim: usize) -> u32 {
    (dim.div_ceil(4).div_ceil(32) * 32).min(256) as u32
}

fn launch(function: &str, bindings: Vec<Bound>, rows: usize, dim: usize) -> Result<Vec<Launch>> {
    Ok(vec![Launch {
        pipeline: PipelineKey::new(Library::Rows, function),
        bindings,
        grid: [u32_of("rows", rows)?, 1, 1],
        group: [threads(dim), 1, 1],
        threadgroup_bytes: 0,
    }])
}

pub(super) fn rms_norm(op: &RmsNorm) -> Result<Vec<Launch>> {
    let args = Bound::args(&RowArgs { dim: op.params.dim as u64, eps: op.params.eps, scale: 1.0 });
    let (input, weight, output) = (Bound::read(&op.input), Bound::read(&op.weight), Bound::overwrite(&op.output));
    let (function, bindings) = match (&op.residual, &op.sum) {
        (Some(residual), Some(sum)) => {
            ("add_rms_norm", vec![input, weight, output, args, Bound::read(residual), Bound::overwrite(sum)])
        }
        _ => ("rms_norm", vec![input, weight, output, args]),
    };
    launch(function, bindings, op.params.rows, op.params.dim)
}

pub(super) fn softmax(op: &Softmax) -> Result<Vec<Launch>> {
    let args = Bound::args(&RowArgs { dim: op.dim as u64, eps: 0.0, scale: op.scale });
    launch("softmax", vec![Bound::read(&op.input), Bound::overwrite(&op.output), args], op.rows, op.dim)
}
