//! Attention of one token together with what makes its operands: norms and rotations of queries and keys, stores of keys and values.

use super::args::PartArgs;
use super::attention::{
    APART_BYTES, HEADS_THREADS, MOST_GROUPS, PartLaunches, frequencies, launches_of, part_args, parts_attention,
    rope_args, suits_heads, turns_fit,
};
use super::{Bound, Launch, Library, PipelineKey, Plan, Planner};
use crate::Result;
use crate::backend::Recorded;
use crate::backend::gpu::fuse::Together;
use crate::backend::gpu::u32_of;
use crate::buffer::View;
use crate::ops::{Attention, Op, RmsNorm, Rope, StoreKv};

/// Parts of a block of a cluster, and the widest heads that it has registers for.
const CLUSTER_PARTS: usize = 2;
const CLUSTER_DIM: usize = 128;

/// The operations of a step, in their order.
pub(super) struct Step<'a> {
    /// The norms of queries and keys.
    pub norms: Option<[&'a RmsNorm; 2]>,
    pub q: &'a Rope,
    pub k: &'a Rope,
    pub k_store: &'a StoreKv,
    pub v_store: &'a StoreKv,
    pub attention: &'a Attention,
}

impl<'a> Step<'a> {
    /// The step that a list begins with, and how many operations it has.
    pub(super) fn first(ops: &'a [Recorded]) -> Option<(Step<'a>, usize)> {
        let (norms, rest) = match ops {
            [a, b, rest @ ..] => match (&a.op, &b.op) {
                (Op::RmsNorm(q), Op::RmsNorm(k)) => (Some([q, k]), rest),
                _ => (None, ops),
            },
            _ => return None,
        };
        let Together::RopeStore { q, k, k_store, v_store } = Together::first(rest)? else { return None };
        let Op::Attention(attention) = &rest.get(4)?.op else { return None };
        let step = Step { norms, q, k, k_store, v_store, attention };
        let count = ops.len() - rest.len() + 5;
        (ops[..count].iter().all(|recorded| recorded.kernel.is_none()) && step.belongs_together())
            .then_some((step, count))
    }

    /// Queries, keys and values before anything happens to them.
    fn inputs(&self) -> [&'a View; 3] {
        let [q, k] = match self.norms {
            Some(norms) => norms.map(|norm| &norm.input),
            None => [&self.q.input, &self.k.input],
        };
        [q, k, &self.v_store.input]
    }

    /// Whether one launch may do it: blocks of a head read their queries, and a block its key and value, until all of them have ended.
    fn belongs_together(&self) -> bool {
        let (attention, store) = (self.attention, self.k_store);
        let one_token = [self.q.params.n_tokens, attention.params.n_tokens] == [1, 1];
        let attends = attention.q.same_start(&self.q.output)
            && attention.q.len == self.q.output.len
            && attention.k_cache.same_start(&store.cache)
            && attention.v_cache.same_start(&self.v_store.cache)
            && (attention.params.cache, attention.params.start) == (store.shape, store.start);
        let norms = self.norms.is_none_or(|norms| {
            let alike = norms[0].params.eps == norms[1].params.eps;
            alike && norms.iter().zip([self.q, self.k]).all(|(norm, rope)| norms_heads(norm, rope))
        });
        let inputs = self.inputs();
        let in_place = |input: &View, output: &View| input.same_start(output) || !input.overlaps(output);
        let written = [&self.q.output, &self.k.output, &store.cache, &self.v_store.cache, &attention.output];
        let apart = in_place(inputs[0], &self.q.output)
            && in_place(inputs[1], &self.k.output)
            && !inputs[0].overlaps(&self.k.output)
            && !inputs[1].overlaps(&self.q.output)
            && !inputs[2].overlaps(&self.q.output)
            && !inputs[2].overlaps(&self.k.output)
            && inputs.iter().all(|input| written[2..].iter().all(|view| !input.overlaps(view)))
            && written[..4].iter().all(|view| !view.overlaps(&attention.output))
            && !self.q.output.overlaps(&self.k.output);
        one_token && attends && norms && apart
    }

    /// One launch, and a second where there are many parts. None where the kernel does not take it.
    pub(super) fn plan(&self, planner: &Planner<'_>) -> Option<Result<Plan>> {
        let op = self.attention;
        let aligned = |view: &&View| view.offset.is_multiple_of(16);
        let weights = self.norms.map(|norms| norms.map(|norm| &norm.weight));
        let views =
            self.inputs().into_iter().chain([&self.q.output, &self.k.output]).chain(weights.into_iter().flatten());
        if !suits_heads(op) || !turns_fit(self.q) || !views.into_iter().all(|view| aligned(&view)) {
            return None;
        }
        let args = part_args(op).ok()?;
        let PartLaunches { heads, queries, parts, joins } = launches_of(op, &args, planner).ok()?;
        let (blocks, head_dim) = (op.params.n_heads / queries, op.params.cache.head_dim);
        // A key has one block alone, and the blocks are counted.
        if !heads || queries != op.params.n_heads / op.params.cache.n_kv_heads || blocks > MOST_GROUPS {
            return None;
        }
        let norms = self.norms.is_some();
        if planner.info.arch >= 90 && joins && parts > 1 && head_dim <= CLUSTER_DIM {
            return Some(self.cluster([queries, parts], &args, planner));
        }
        Some(parts_attention(op, planner, args).and_then(|mut plan| {
            if let Some(launch) = plan.launches.first_mut() {
                launch.pipeline.function = format!("turn_attend<{queries}, {head_dim}, {joins}, {norms}>");
                // After queries and caches, which the record has.
                let rest = launch.bindings.split_off(3);
                launch.bindings = [vec![self.record()], rest, self.turns()?.to_vec()].concat();
            }
            Ok(plan)
        }))
    }

    /// The launch of clusters that put the parts together themselves.
    fn cluster(&self, [queries, parts]: [usize; 2], args: &PartArgs, planner: &Planner<'_>) -> Result<Plan> {
        let params = &self.attention.params;
        let (groups, head_dim) = (params.n_heads / queries, params.cache.head_dim);
        let cluster = parts.div_ceil(CLUSTER_PARTS).next_power_of_two();
        let function = format!("turn_attend_cluster<{queries}, {head_dim}, {}>", self.norms.is_some());
        let record = vec![self.record(), Bound::view(&self.attention.output), Bound::live(args)];
        let bindings = [record, self.turns()?.to_vec()].concat();
        let grid = [u32_of("parts", cluster)?, u32_of("heads", groups)?, 1];
        let threads = HEADS_THREADS * CLUSTER_PARTS as u32;
        let launch = Launch::new(PipelineKey::new(Library::Heads, function), bindings, grid, threads);
        // `PartSums` of each part, and room that keeps blocks apart as it does for those that are counted.
        let sums = CLUSTER_PARTS * (HEADS_THREADS as usize / 32) * queries * (head_dim * 4 + 8);
        let apart = if cluster * groups <= planner.info.processors as usize { APART_BYTES } else { 0 };
        Ok(Plan::of(vec![Launch { cluster: grid[0], shared_bytes: sums.max(apart), ..launch }]))
    }

    /// How queries and keys are turned.
    fn turns(&self) -> Result<[Bound; 2]> {
        Ok([Bound::value(&rope_args(self.q)?), Bound::value(&frequencies(self.q))])
    }

    /// `StepArgs` of turn_attend.cu.
    fn record(&self) -> Bound {
        let [q, k, v] = self.inputs().map(Bound::view);
        let none = || Bound::value(&0u64);
        let [q_norm, k_norm] = match self.norms {
            Some(norms) => norms.map(|norm| Bound::view(&norm.weight)),
            None => [none(), none()],
        };
        let eps = self.norms.map_or(0.0, |norms| norms[0].params.eps);
        let outputs = [&self.q.output, &self.k.output, &self.k_store.cache, &self.v_store.cache, &self.q.positions];
        let mut fields = vec![q, k, v];
        fields.extend(outputs.map(Bound::view));
        fields.push(self.q.frequency_factors.as_ref().map_or_else(none, Bound::view));
        fields.extend([q_norm, k_norm, Bound::value(&[eps, 0.0])]);
        Bound::Record(fields)
    }
}

/// Whether a norm, head by head, makes a rotation's input, which the rotation replaces.
fn norms_heads(norm: &RmsNorm, rope: &Rope) -> bool {
    let params = &rope.params;
    (norm.params.rows, norm.params.dim) == (params.n_tokens * params.n_heads, params.head_dim)
        && norm.residual.is_none()
        && norm.sum.is_none()
        && norm.output.same_start(&rope.input)
        && rope.input.same_start(&rope.output)
        && !norm.weight.overlaps(&rope.output)
}

/// Kernels of clusters, for tests that compile them: only sm_90 has clusters.
#[cfg(test)]
pub(crate) fn clusters() -> Vec<PipelineKey> {
    let shapes = [64, CLUSTER_DIM].into_iter().flat_map(|head_dim| [1, 2, 3, 4].map(|queries| (queries, head_dim)));
    let variants = shapes.flat_map(|(queries, head_dim)| [false, true].map(|norms| (queries, head_dim, norms)));
    let name = |(queries, head_dim, norms)| format!("turn_attend_cluster<{queries}, {head_dim}, {norms}>");
    variants.map(|variant| PipelineKey::new(Library::Heads, name(variant))).collect()
}
