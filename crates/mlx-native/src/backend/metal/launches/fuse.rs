//! Operations that follow one another and run as one launch.

use super::{Plan, Routing, attention, matmul};
use crate::Result;
use crate::backend::Recorded;
use crate::backend::gpu::fuse::Together;

/// The plan of the first operations of a list together, and how many they are; none where the first runs alone.
pub(crate) fn plan(ops: &[Recorded], routing: &Routing) -> Option<(Result<Plan>, usize)> {
    let together = Together::first(ops)?;
    let launch = match together {
        Together::Gated(gate, up, activation) => matmul::gated(gate, up, activation.activation, routing)?,
        Together::RopeStore { q, k, k_store, v_store } => attention::rope_store(q, k, k_store, v_store)?,
    };
    let one = |launch| Plan { launches: vec![launch], scratch: Vec::new(), fault: None };
    Some((launch.map(one), together.count()))
}

#[cfg(test)]
mod tests {
    use crate::backend::metal::launches::Routing;
    use crate::backend::metal::schedule::Schedule;
    use crate::{
        Activation, Activations, AttentionParams, CommandEncoder, DType, DeviceOptions, GgmlType, KvCacheParams,
        MlxBuffer, MlxDevice, RmsNormParams, RopeParams, RopeStyle, Weight,
    };

    const HIDDEN: usize = 96;
    const FEED: usize = 160;

    /// A layer as a model records it, `m` tokens.
    fn record(encoder: &mut CommandEncoder, device: &MlxDevice, m: usize) {
        let f32s = |len: usize| device.alloc_buffer(4 * len, DType::F32, vec![len]).unwrap();
        let weight = |n: usize, k: usize| {
            Weight::ggml(GgmlType::Q8_0, n, k, device.alloc_buffer(n * k / 32 * 34, DType::U8, vec![]).unwrap())
                .unwrap()
        };
        let positions = device.alloc_buffer(4 * m, DType::U32, vec![m]).unwrap();
        let cache = KvCacheParams { n_kv_heads: 1, capacity: 64, head_dim: 32 };
        let caches: [MlxBuffer; 2] = [0, 1].map(|_| device.alloc_buffer(64 * 32 * 2, DType::F16, vec![]).unwrap());
        let [mut k_cache, mut v_cache] = caches;
        let (normed, hidden, norm) = (f32s(m * HIDDEN), f32s(m * HIDDEN), f32s(HIDDEN));
        let (q, k, v) = (f32s(m * 96), f32s(m * 32), f32s(m * 32));
        for (value, n) in [(&q, 96), (&k, 32), (&v, 32)] {
            encoder.matmul(&normed, &weight(n, HIDDEN), &mut value.clone()).unwrap();
        }
        for (value, n_heads) in [(&q, 3), (&k, 1)] {
            let params = RopeParams {
                n_tokens: m,
                n_heads,
                head_dim: 32,
                n_rot: 32,
                base: 1e4,
                frequency_scale: 1.0,
                style: RopeStyle::NeoX,
            };
            encoder.rope(value, &positions, None, &mut value.clone(), &params).unwrap();
        }
        encoder.store_kv(&k, &mut k_cache, &cache, 5, m).unwrap();
        encoder.store_kv(&v, &mut v_cache, &cache, 5, m).unwrap();
        let mut attended = f32s(m * 96);
        let params =
            AttentionParams { cache, n_heads: 3, n_tokens: m, start: 5, scale: 1.0, window: None, soft_cap: None };
        encoder.attention(&q, &k_cache, &v_cache, &mut attended, &params).unwrap();
        let (mut delta, mut normed) = (f32s(m * HIDDEN), normed);
        encoder.matmul(&attended, &weight(HIDDEN, 96), &mut delta).unwrap();
        let rows = RmsNormParams { rows: m, dim: HIDDEN, eps: 1e-5 };
        encoder.add_rms_norm(&hidden, (&delta, &mut hidden.clone()), &norm, &mut normed, &rows).unwrap();
        let (gate, mut up) = (f32s(m * FEED), f32s(m * FEED));
        encoder.matmul(&normed, &weight(FEED, HIDDEN), &mut gate.clone()).unwrap();
        encoder.matmul(&normed, &weight(FEED, HIDDEN), &mut up).unwrap();
        encoder.gated_activation(Activation::Silu, &gate, &up, &mut gate.clone()).unwrap();
        encoder.matmul(&gate, &weight(HIDDEN, FEED), &mut delta).unwrap();
        encoder.add_rms_norm(&hidden, (&delta, &mut hidden.clone()), &norm, &mut normed, &rows).unwrap();
    }

    fn stages(m: usize) -> Vec<Vec<String>> {
        let device = MlxDevice::reference().unwrap();
        let mut encoder = device.command_encoder().unwrap();
        record(&mut encoder, &device, m);
        let options = DeviceOptions { activations: Activations::Auto, ..DeviceOptions::default() };
        let schedule = Schedule::new(encoder.list(), &Routing { options, tensor_ops: false });
        assert_eq!(schedule.race(), None);
        assert_eq!(schedule.tasks.len(), encoder.ops().count());
        assert!(schedule.tasks.iter().all(Result::is_ok));
        schedule.stages.iter().map(|s| s.iter().map(|s| s.launch.pipeline.function.clone()).collect()).collect()
    }

    #[test]
    fn a_layer_of_one_token_is_ten_launches_in_eight_stages() {
        let expected: [&[&str]; 8] = [
            &["mv_r1"; 3],
            &["rope_store_f16"],
            &["flash_split_8"],
            &["mv_r1"],
            &["add_rms_norm"],
            &["mv_gated_r1"],
            &["mv_r1"],
            &["add_rms_norm"],
        ];
        assert_eq!(stages(1), expected);
    }

    #[test]
    fn tiles_leave_the_activation_to_itself() {
        let stages = stages(20);
        assert_eq!(stages.iter().map(Vec::len).sum::<usize>(), 12);
        assert!(stages.iter().flatten().any(|name| name == "silu_mul"), "{stages:?}");
    }
}
