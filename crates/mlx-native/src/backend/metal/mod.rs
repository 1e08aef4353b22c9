//! Apple GPUs: hand-written kernels in the Metal Shading Language, and planning in Rust that runs anywhere.
//!
//! [`launches`] turns an `Op` into [`launches::Launch`]es: which kernel, bound to what, over which grid; [`schedule`] orders those of a list. [`source`]
//! assembles the text of a kernel from the rendered formats, the argument structs and the templates in `kernels/`. Two devices run schedules: `device`
//! on an Apple GPU, and `host` on the CPU through the `metal-host` crate, every access checked, so that planning and kernel text are tested where
//! there is no GPU.

#[cfg(all(feature = "metal", target_os = "macos"))]
pub(crate) mod device;
#[cfg(feature = "metal-host")]
pub(crate) mod host;
mod launches;
mod schedule;
mod source;

use crate::backend::{Capability, CapabilityQuery, OpKind};
use crate::ops::{Input, Op, WeightView};
pub(crate) use launches::Routing;
use launches::route::{Dense, DenseShape, Routed, large_k};

/// Which kernel a product would run; nothing is opened. The lists of an expert-routed product are counted for one slot a token, because a query says
/// neither how many experts there are nor how many a token has.
pub(crate) fn capability(query: &CapabilityQuery, routing: &Routing) -> Capability {
    let (kernel, scratch_bytes) = match query.op {
        OpKind::Matmul | OpKind::MatmulPerm021 => {
            let shape = DenseShape { m: query.m, transposed: false, large: large_k(query.k), qmv: None };
            match Dense::choose(&shape, routing) {
                // Heads are widened to rows of f32 first.
                kernel @ Dense::Large { .. } if query.op == OpKind::MatmulPerm021 => {
                    (kernel.name(), query.m.saturating_mul(query.k).saturating_mul(4))
                }
                kernel => (kernel.name(), 0),
            }
        }
        OpKind::MatmulId => match Routed::choose(query.m, routing) {
            Routed::Rows => (Routed::Rows.name(), 0),
            tile => (tile.name(), query.m.saturating_mul(4)),
        },
        OpKind::Embedding => ("embedding", 0),
    };
    Capability { supported: true, kernel: kernel.into(), scratch_bytes, why_not: None }
}

/// Prints the routing decision behind a pipeline that is about to be made, where `MLX_NATIVE_LOG=kernels` asks for it.
fn log_pipeline(key: &launches::PipelineKey, op: &Op) {
    if !crate::backend::log_kernels() {
        return;
    }
    let product = |weight: &WeightView, input: &Input, [m, n, k]: [usize; 3]| {
        format!("{} {} [{m}, {k}] {} · [{n}, {k}]ᵀ", op.name(), weight.format, input.dtype)
    };
    let what = match op {
        Op::Matmul(op) => product(&op.weight, &op.input, [op.m, op.n, op.k]),
        Op::MatmulId(op) => product(&op.weight, &op.input, [op.n_tokens, op.n, op.k]),
        _ => op.name().to_owned(),
    };
    crate::backend::log(format_args!("{what}: {}", key.function));
}
