//! Which operations that follow one another may run as one launch. What a backend makes of them still writes everything that they write, so that
//! nothing has to be known of who reads it later.

use crate::DType;
use crate::backend::Recorded;
use crate::ops::{GatedActivation, InputLayout, Matmul, MatmulId, Op, RmsNorm, Rope, StoreKv};

/// The first operations of a list, of which one launch may run several.
pub(crate) enum Together<'a> {
    /// Two products, and the activation of the first one times the second, where the first one was.
    Gated(&'a Matmul, &'a Matmul, &'a GatedActivation),
    /// Queries and keys are turned; keys and values are stored.
    RopeStore { q: &'a Rope, k: &'a Rope, k_store: &'a StoreKv, v_store: &'a StoreKv },
}

impl Together<'_> {
    /// Operations of the launch.
    #[cfg_attr(not(any(feature = "metal-host", target_os = "macos")), allow(dead_code))] // Metal alone asks, and a build may have none.
    pub(crate) fn count(&self) -> usize {
        match self {
            Together::Gated(..) => 3,
            Together::RopeStore { .. } => 4,
        }
    }

    /// What the list begins with. Operations whose kernel was asked for by name run alone.
    pub(crate) fn first(ops: &[Recorded]) -> Option<Together<'_>> {
        let by_choice = |count: usize| ops[..count].iter().all(|recorded| recorded.kernel.is_none());
        let found = match ops {
            [a, b, c, ..] if matches!(c.op, Op::GatedActivation(_)) => match (&a.op, &b.op, &c.op) {
                (Op::Matmul(gate), Op::Matmul(up), Op::GatedActivation(activation)) => {
                    is_gated(gate, up, activation).then_some(Together::Gated(gate, up, activation))
                }
                _ => None,
            },
            [a, b, c, d, ..] => match (&a.op, &b.op, &c.op, &d.op) {
                (Op::Rope(q), Op::Rope(k), Op::StoreKv(k_store), Op::StoreKv(v_store)) => {
                    is_rope_store(q, k, k_store, v_store).then_some(Together::RopeStore { q, k, k_store, v_store })
                }
                _ => None,
            },
            _ => None,
        };
        found.filter(|found| by_choice(found.count()))
    }
}

/// The products that a list begins with and that read the same input, `most` at most.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))] // CUDA alone makes such launches.
pub(crate) fn same_input(ops: &[Recorded], most: usize) -> Vec<&Matmul> {
    let mut found: Vec<&Matmul> = Vec::new();
    for recorded in ops.iter().take(most) {
        let Op::Matmul(op) = &recorded.op else { break };
        let alike = found.first().is_none_or(|first| reads_same(first, op));
        let apart = [&op.input.view].into_iter().chain(found.iter().map(|other| &other.output));
        let is_free = apart.chain(found.iter().flat_map(|other| other.weight.views())).all(|v| !op.output.overlaps(v));
        let weight_is_free = op.weight.views().all(|view| found.iter().all(|other| !other.output.overlaps(view)));
        if recorded.kernel.is_some() || !alike || !is_free || !weight_is_free {
            break;
        }
        found.push(op);
    }
    found
}

/// Whether two routed products give the same tokens the same experts.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))] // CUDA alone makes such launches.
pub(crate) fn same_experts(a: &MatmulId, b: &MatmulId) -> bool {
    (a.n_tokens, a.top_k, a.n_experts) == (b.n_tokens, b.top_k, b.n_experts) && a.ids.same_start(&b.ids)
}

/// The routed products that a list begins with and whose rows and experts are the same, `most` at most.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))] // CUDA alone makes such launches.
pub(crate) fn same_routes(ops: &[Recorded], most: usize) -> Vec<&MatmulId> {
    let mut found: Vec<&MatmulId> = Vec::new();
    for recorded in ops.iter().take(most) {
        let Op::MatmulId(op) = &recorded.op else { break };
        let alike = |first: &&MatmulId| {
            same_experts(first, op)
                && first.k == op.k
                && first.input.view.same_start(&op.input.view)
                && (first.input.dtype, first.input.layout) == (op.input.dtype, op.input.layout)
        };
        let read = || op.weight.views().chain([&op.input.view, &op.ids]);
        let reads_none = found.iter().all(|other| read().all(|view| !view.overlaps(&other.output)));
        let written = || found.iter().flat_map(|other| other.weight.views().chain([&other.output]));
        let is_free = [&op.input.view, &op.ids].into_iter().chain(written()).all(|view| !op.output.overlaps(view));
        if recorded.kernel.is_some()
            || op.scratch.is_some()
            || !found.first().is_none_or(alike)
            || !reads_none
            || !is_free
        {
            break;
        }
        found.push(op);
    }
    found
}

/// Whether a norm of one row adds the product to its input, so that the product may be added as it is written.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))] // CUDA alone makes such launches.
pub(crate) fn adds(product: &Matmul, norm: &RmsNorm) -> bool {
    let (Some(residual), Some(sum)) = (&norm.residual, &norm.sum) else { return false };
    let read = || product.weight.views().chain([&product.input.view]);
    (norm.params.rows, norm.params.dim, product.batch, product.m) == (1, product.n, 1, 1)
        && product.output_dtype == DType::F32
        && residual.same_start(&product.output)
        && !product.output.overlaps(&norm.input)
        && !product.output.overlaps(&norm.weight)
        && read().all(|view| !sum.overlaps(view))
        // Element by element, or not at all.
        && (sum.same_start(&norm.input) || !sum.overlaps(&norm.input))
        && !sum.overlaps(&product.output)
}

/// Whether a norm of one row makes the product's input, and a launch that computes both leaves what the norm reads as it is.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))] // CUDA alone makes such launches.
pub(crate) fn norms(norm: &RmsNorm, product: &Matmul) -> bool {
    let read = [norm.sum.as_ref().unwrap_or(&norm.input), &norm.weight];
    let rows = matches!(product.input.layout, InputLayout::Rows { .. });
    (norm.params.rows, norm.params.dim, product.batch, product.m) == (1, product.k, 1, 1)
        && rows
        && product.input.dtype == DType::F32
        && product.input.view.same_start(&norm.output)
        && [&norm.output, &product.output].iter().all(|written| read.iter().all(|view| !written.overlaps(view)))
        && product.weight.views().all(|view| !view.overlaps(&norm.output))
}

/// Whether two products read the same rows.
fn reads_same(a: &Matmul, b: &Matmul) -> bool {
    (a.m, a.k, a.batch, b.batch) == (b.m, b.k, 1, 1)
        && a.input.view.same_start(&b.input.view)
        && (a.input.dtype, a.input.layout) == (b.input.dtype, b.input.layout)
}

fn is_gated(gate: &Matmul, up: &Matmul, activation: &GatedActivation) -> bool {
    let outputs = [&gate.output, &up.output];
    let alike = gate.n == up.n
        && reads_same(gate, up)
        && gate.weight.format == up.weight.format
        && !up.weight.transposed
        && !up.mlx_order
        && outputs.iter().all(|output| !output.overlaps(&gate.input.view))
        && !gate.output.overlaps(&up.output);
    // In place: what the first product wrote is gone, so it need not be written.
    let activates = activation.gate.same_start(&gate.output)
        && activation.up.same_start(&up.output)
        && activation.output.same_start(&gate.output)
        && activation.len == gate.m * gate.n
        && (gate.output_dtype, up.output_dtype) == (DType::F32, DType::F32);
    alike && activates
}

fn is_rope_store(q: &Rope, k: &Rope, k_store: &StoreKv, v_store: &StoreKv) -> bool {
    let same_turns = (q.params.n_rot, q.params.head_dim, q.params.style, q.params.n_tokens)
        == (k.params.n_rot, k.params.head_dim, k.params.style, k.params.n_tokens)
        && [q.params.base, q.params.frequency_scale] == [k.params.base, k.params.frequency_scale]
        && q.positions.same_start(&k.positions)
        && q.positions.dtype == k.positions.dtype
        && match (&q.frequency_factors, &k.frequency_factors) {
            (None, None) => true,
            (Some(a), Some(b)) => a.same_start(b),
            _ => false,
        };
    let stores_them = k_store.input.same_start(&k.output)
        && k_store.input.len == k.output.len
        && (k_store.start, k_store.n_tokens, k_store.shape) == (v_store.start, v_store.n_tokens, v_store.shape)
        && k_store.cache.dtype == v_store.cache.dtype
        && k_store.n_tokens == k.params.n_tokens
        && (k_store.shape.n_kv_heads, k_store.shape.head_dim) == (k.params.n_heads, k.params.head_dim);
    // The values and the queries are neither the keys nor each other.
    let apart = !q.output.overlaps(&k.input)
        && !q.output.overlaps(&k.output)
        && !q.input.overlaps(&k.output)
        && [&q.output, &k.output].iter().all(|written| !v_store.input.overlaps(written))
        && !k_store.cache.overlaps(&v_store.cache);
    same_turns && stores_them && apart
}
