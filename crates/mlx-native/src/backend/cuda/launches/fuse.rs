//! Operations that follow one another and run as one launch, or share what makes their operands.

use super::hopper::{self, Chain, Layer};
use super::step::Step;
use super::{Plan, Planner, attention, matmul};
use crate::Result;
use crate::backend::Recorded;
use crate::backend::gpu::fuse::{Together, adds, norms, same_input, same_routes};
use crate::ops::Op;

/// The plan of the first operations of a list together, and how many they are: one where the first runs alone. `planner` is that of the first;
/// none where there are no more.
pub(crate) fn plan(ops: &[Recorded], planner: &Planner<'_>) -> Option<(Result<Plan>, usize)> {
    let (mut plan, count) = together(ops, planner)?;
    if let Ok(plan) = &mut plan {
        hopper::look(plan, ops, planner);
    }
    Some((plan, count))
}

fn together(ops: &[Recorded], planner: &Planner<'_>) -> Option<(Result<Plan>, usize)> {
    let [first, ..] = ops else { return None };
    if let Some((step, count)) = Step::first(ops)
        && let Some(plan) = step.plan(planner)
    {
        // The norms, if any, come before what has live values.
        return Some((plan.map(|plan| Plan { live_from: count - 1, ..plan }), count));
    }
    if let Some(Together::RopeStore { q, k, k_store, v_store }) = Together::first(ops)
        && attention::turns_fit(q)
    {
        return Some((attention::rope_store(q, k, k_store, v_store), 4));
    }
    if let Some((layer, count)) = Layer::first(ops)
        && let Some(plan) = layer.plan(planner).transpose()
    {
        return Some((plan, count));
    }
    if let Some((plan, count)) = chain(ops, planner) {
        return Some((Ok(plan), count));
    }
    let mut products = same_input(ops, hopper::most_products(ops));
    while products.len() > 1 {
        match matmul::matmuls(&products, planner) {
            Ok(Some(plan)) => return Some((Ok(plan), products.len())),
            // Alone each has its own error.
            Ok(None) | Err(_) => drop(products.pop()),
        }
    }
    let mut routed = same_routes(ops, hopper::most_products(ops));
    while routed.len() > 1 {
        match matmul::matmul_ids(&routed, planner) {
            Ok(Some(plan)) => return Some((Ok(plan), routed.len())),
            Ok(None) | Err(_) => drop(routed.pop()),
        }
    }
    Some((super::plan(&first.op, planner), 1))
}

/// Products of few rows with the norm before them, the product before that, or the activation after them.
fn chain(ops: &[Recorded], planner: &Planner<'_>) -> Option<(Plan, usize)> {
    let op = |index: usize| ops.get(index).filter(|recorded| recorded.kernel.is_none()).map(|recorded| &recorded.op);
    let before = match (op(0), op(1)) {
        (Some(Op::Matmul(before)), Some(Op::RmsNorm(norm))) if adds(before, norm) => Some(before),
        _ => None,
    };
    let start = usize::from(before.is_some());
    let norm = match op(start) {
        Some(Op::RmsNorm(norm)) if norm.residual.is_some() == before.is_some() => Some(norm),
        _ => None,
    };
    let start = start + usize::from(norm.is_some());
    let mut products = same_input(ops.get(start..)?, hopper::MATRICES);
    products.truncate(products.iter().take_while(|op| norm.is_none_or(|norm| norms(norm, op))).count());
    let gated = match Together::first(&ops[start..]) {
        Some(Together::Gated(gate, up, activation)) if products.len() >= 2 => Some(([gate, up], activation.activation)),
        _ => None,
    };
    if let Some((products, activation)) = gated {
        let chain = Chain { before, norm, products: &products, activation: Some(activation) };
        if let Ok(Some(plan)) = matmul::chain(&chain, planner) {
            return Some((plan, start + 3));
        }
    }
    // Products alone have no need of a chain.
    while norm.is_some() && !products.is_empty() {
        if let Ok(Some(plan)) = matmul::chain(&Chain { before, norm, products: &products, activation: None }, planner) {
            return Some((plan, start + products.len()));
        }
        products.pop();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::driver::DeviceInfo;
    use crate::backend::cuda::launches::{Bound, live_values};
    use crate::{
        Activation, AttentionParams, CommandEncoder, DType, DeviceOptions, GgmlType, KvCacheParams, MlxBuffer,
        MlxDevice, RmsNormParams, RopeParams, RopeStyle, Weight, WeightFormat,
    };

    const HIDDEN: usize = 512;
    const FEED: usize = 1024;

    /// A layer as a model records it, `m` tokens from position 300 on, the norm of the layer before first; `v` in its own format.
    fn record(encoder: &mut CommandEncoder, device: &MlxDevice, m: usize, v_type: GgmlType) {
        let f32s = |len: usize| device.alloc_buffer(4 * len, DType::F32, vec![len]).unwrap();
        let weight = |ty: GgmlType, n: usize, k: usize| {
            let bytes = n * k / ty.block_values() as usize * ty.block_bytes() as usize;
            Weight::ggml(ty, n, k, device.alloc_buffer(bytes, DType::U8, vec![]).unwrap()).unwrap()
        };
        let q4 = |n: usize, k: usize| weight(GgmlType::Q4_K, n, k);
        let positions = device.alloc_buffer(4 * m, DType::U32, vec![m]).unwrap();
        let cache = KvCacheParams { n_kv_heads: 2, capacity: 1024, head_dim: 64 };
        let caches: [MlxBuffer; 2] =
            [0, 1].map(|_| device.alloc_buffer(2 * 1024 * 64 * 2, DType::F16, vec![]).unwrap());
        let [mut k_cache, mut v_cache] = caches;
        let (normed, hidden, norm) = (f32s(m * HIDDEN), f32s(m * HIDDEN), f32s(HIDDEN));
        let (q, k, v) = (f32s(m * 512), f32s(m * 128), f32s(m * 128));
        let rows = RmsNormParams { rows: m, dim: HIDDEN, eps: 1e-5 };
        encoder.rms_norm(&hidden, &norm, &mut normed.clone(), &rows).unwrap();
        for (value, weight) in [(&q, q4(512, HIDDEN)), (&k, q4(128, HIDDEN)), (&v, weight(v_type, 128, HIDDEN))] {
            encoder.matmul(&normed, &weight, &mut value.clone()).unwrap();
        }
        for (value, n_heads) in [(&q, 8), (&k, 2)] {
            let (head_dim, base, style) = (64, 1e4, RopeStyle::NeoX);
            let params =
                RopeParams { n_tokens: m, n_heads, head_dim, n_rot: head_dim, base, frequency_scale: 1.0, style };
            encoder.rope(value, &positions, None, &mut value.clone(), &params).unwrap();
        }
        encoder.store_kv(&k, &mut k_cache, &cache, 300, m).unwrap();
        encoder.store_kv(&v, &mut v_cache, &cache, 300, m).unwrap();
        let mut attended = f32s(m * 512);
        let params =
            AttentionParams { cache, n_heads: 8, n_tokens: m, start: 300, scale: 1.0, window: None, soft_cap: None };
        encoder.attention(&q, &k_cache, &v_cache, &mut attended, &params).unwrap();
        let (mut delta, mut normed) = (f32s(m * HIDDEN), normed);
        encoder.matmul(&attended, &q4(HIDDEN, 512), &mut delta).unwrap();
        encoder.add_rms_norm(&hidden, (&delta, &mut hidden.clone()), &norm, &mut normed, &rows).unwrap();
        let (gate, mut up) = (f32s(m * FEED), f32s(m * FEED));
        encoder.matmul(&normed, &q4(FEED, HIDDEN), &mut gate.clone()).unwrap();
        encoder.matmul(&normed, &q4(FEED, HIDDEN), &mut up).unwrap();
        encoder.gated_activation(Activation::Silu, &gate, &up, &mut gate.clone()).unwrap();
        encoder.matmul(&gate, &q4(HIDDEN, FEED), &mut delta).unwrap();
        encoder.add_rms_norm(&hidden, (&delta, &mut hidden.clone()), &norm, &mut normed, &rows).unwrap();
        encoder.matmul(&normed, &q4(640, HIDDEN), &mut f32s(m * 640)).unwrap();
    }

    /// The kernels of a layer on a GPU of this architecture, without what their templates are made for.
    fn kernels(arch: u32, m: usize, v_type: GgmlType, options: &DeviceOptions) -> Vec<String> {
        let info = DeviceInfo { arch, ..DeviceInfo::hopper() };
        let planner = Planner { info: &info, options, forced: None, alone: true };
        let device = MlxDevice::reference().unwrap();
        let mut encoder = device.command_encoder().unwrap();
        record(&mut encoder, &device, m, v_type);
        let mut rest = encoder.list().ops();
        let mut names = Vec::new();
        while let Some((plan, count)) = plan(rest, &planner) {
            let plan = plan.unwrap();
            // What a replay writes is what the launches were planned with.
            let bindings = plan.launches.iter().flat_map(|launch| &launch.bindings);
            let live: Vec<_> =
                bindings.filter_map(|b| if let Bound::Live(value) = b { Some(value) } else { None }).collect();
            if plan.is_live() {
                let values = live_values(&rest[plan.live_from].op, &planner).unwrap();
                assert_eq!(values.iter().collect::<Vec<_>>(), live);
            }
            let name = |function: &str| function.split('<').next().unwrap_or_default().to_string();
            names.extend(plan.launches.iter().map(|launch| name(&launch.pipeline.function)));
            rest = &rest[count..];
        }
        names
    }

    #[test]
    fn a_layer_of_one_token_is_five_launches() {
        let expected =
            ["hopper_mv_group", "turn_attend_cluster", "hopper_mv", "hopper_mv_gated", "hopper_mv", "hopper_mv_group"];
        assert_eq!(kernels(90, 1, GgmlType::Q4_K, &DeviceOptions::default()), expected);
    }

    #[test]
    fn values_of_another_format_have_a_launch_of_their_own() {
        let names = kernels(90, 1, GgmlType::Q6_K, &DeviceOptions::default());
        assert_eq!(names[..3], ["hopper_mv_group", "hopper_mv", "turn_attend_cluster"]);
        assert_eq!(names.len(), 7);
    }

    #[test]
    fn many_rows_are_prepared_once_for_several_products() {
        let names = kernels(90, 20, GgmlType::Q4_K, &DeviceOptions::default());
        let count = |name: &str| names.iter().filter(|other| *other == name).count();
        assert_eq!((count("hopper_prepare"), count("hopper_mm"), count("combine")), (5, 8, 1), "{names:?}");
    }

    #[test]
    fn routed_products_of_one_input_share_its_lists() {
        let info = DeviceInfo::hopper();
        let options = DeviceOptions::default();
        let planner = Planner { info: &info, options: &options, forced: None, alone: true };
        let device = MlxDevice::reference().unwrap();
        let buffer = |bytes: usize, dtype: DType| device.alloc_buffer(bytes, dtype, vec![]).unwrap();
        let (m, n, k, experts, top) = (20, 128, 256, 8, 2);
        let count = |outputs: &[usize], tokens: &[usize]| {
            let mut encoder = device.command_encoder().unwrap();
            let inputs = [m, m].map(|rows| buffer(rows * k * 4, DType::F32));
            let ids = buffer(m * top * 4, DType::U32);
            let buffers: Vec<MlxBuffer> = (0..3).map(|_| buffer(m * top * n * 4, DType::F32)).collect();
            for (&output, &input) in outputs.iter().zip(tokens) {
                let data = buffer(experts * n * k / 256 * 144, DType::U8);
                let weight =
                    Weight::stack(WeightFormat::Ggml(GgmlType::Q4_K), experts, n, k, data, None, None).unwrap();
                encoder.matmul_id(&inputs[input], &weight, &ids, &mut buffers[output].clone(), None).unwrap();
            }
            let (mut rest, mut names) = (encoder.list().ops(), Vec::new());
            while let Some((plan, count)) = plan(rest, &planner) {
                names.extend(plan.unwrap().launches.iter().map(|launch| launch.pipeline.function.clone()));
                rest = &rest[count..];
            }
            ["map_experts", "hopper_prepare_id", "hopper_mm_id"]
                .map(|name| names.iter().filter(|other| other.split('<').next() == Some(name)).count())
        };
        assert_eq!(count(&[0, 1, 2], &[0, 0, 0]), [1, 1, 3]);
        // The second writes where the first did, the third reads other rows.
        assert_eq!(count(&[0, 0, 1], &[0, 0, 1]), [3, 3, 3]);
    }

    #[test]
    fn portable_kernels_run_operation_by_operation() {
        let names = kernels(80, 1, GgmlType::Q4_K, &DeviceOptions::default());
        assert!(!names.iter().any(|name| name.starts_with("hopper")), "{names:?}");
        assert_eq!(names.iter().filter(|name| *name == "mv").count(), 8, "{names:?}");
    }

    /// Products of one input and of a gated pair are summed as they are alone; a norm is not.
    #[test]
    fn invariant_rows_fuse_what_gives_the_same_bits() {
        let options = DeviceOptions { batch_invariant: true, ..DeviceOptions::default() };
        let (norm, group, gated, product) = ("rms_norm_quads", "hopper_mv_group", "hopper_mv_gated", "hopper_mv");
        let expected = [norm, group, "turn_attend_cluster", product, norm, gated, product, norm, product];
        assert_eq!(kernels(90, 1, GgmlType::Q4_K, &options), expected);
        let names = kernels(90, 20, GgmlType::Q4_K, &options);
        let count = |name: &str| names.iter().filter(|other| *other == name).count();
        assert_eq!([group, gated, product].map(count), [3, 3, 9], "{names:?}");
    }
}
