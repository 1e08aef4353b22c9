//! Weights that later launches read, asked for by the products before them: memory would stand still otherwise from the last copy of a product to the
//! first of the next, and while rotations and attention run in between.

use bytemuck::Zeroable;

use super::matmul::route;
use super::{MATRICES, Product, matvec};
use crate::backend::Recorded;
use crate::backend::cuda::launches::{Bound, Plan, Planner};
use crate::backend::gpu::args::{ArgType, args, render_struct};
use crate::backend::gpu::fuse::Together;
use crate::buffer::View;
use crate::ops::{Matmul, Op};

/// Bytes of weights after a product's own that are asked for when it has asked for its own. Much more would drive itself out of L2 before it is read.
const AHEAD: usize = 12 << 20;
/// Weights that a launch asks for at most, `AHEAD_RANGES` in matvec.cu.
const RANGES: usize = MATRICES + 1;

args! {
    /// A part of a weight that is read early: so many bytes of each segment. The segments share the weight's groups of rows evenly.
    AheadRange {
        bytes: u32,
        segments: u32,
        groups: u32,
        group_bytes: u32,
    }
}

/// The text that `Ahead` of matvec.cu needs.
pub(super) fn text() -> String {
    format!("{}constexpr int AHEAD_RANGES = {RANGES};\n", AheadRange::render())
}

/// The last parameter of a kernel for few rows: an address and a range for each weight.
fn record(ranges: Vec<(View, AheadRange)>) -> Bound {
    let (views, mut ranges): (Vec<View>, Vec<AheadRange>) = ranges.into_iter().take(RANGES).unzip();
    ranges.resize(RANGES, AheadRange::zeroed());
    let mut fields: Vec<Bound> = views.into_iter().map(Bound::View).collect();
    fields.resize(RANGES, Bound::value(&0u64));
    fields.extend(ranges.iter().map(Bound::value));
    Bound::Record(fields)
}

/// The parameter of a launch after which nothing is known.
pub(super) fn nothing() -> Bound {
    record(Vec::new())
}

/// Products that a launch reads side by side.
struct Stream<'a> {
    ops: Vec<&'a Matmul>,
    bytes: usize,
}

/// The products of few rows that operations begin with, others between them: `own` products and then `AHEAD` bytes.
fn streams<'a>(ops: &'a [Recorded], planner: &Planner<'_>, own: usize) -> Vec<Stream<'a>> {
    let (mut found, mut count, mut ahead, mut index) = (Vec::new(), 0, 0, 0);
    while ahead < AHEAD
        && let Some(recorded) = ops.get(index)
    {
        let products = match (&recorded.op, Together::first(&ops[index..])) {
            (_, Some(Together::Gated(gate, up, _))) => vec![gate, up],
            (Op::Matmul(op), _) => vec![op],
            (Op::MatmulId(_), _) => break,
            _ => Vec::new(),
        };
        if products.iter().any(|op| route(op, planner) != Some(true)) {
            break;
        }
        index += products.len().max(1);
        if products.is_empty() {
            continue;
        }
        let bytes = products.iter().map(|op| op.weight.data.len).sum();
        ahead += if count < own { 0 } else { bytes };
        count += products.len();
        found.push(Stream { ops: products, bytes });
    }
    found
}

/// The part of a weight that comes `from..to` bytes after its start in the order of its rows.
fn range(op: &Matmul, from: usize, to: usize, planner: &Planner<'_>) -> Option<(View, AheadRange)> {
    let product = Product::of(op, planner)?;
    let order = matvec::order(&product, planner.options)?;
    let group_bytes = order.height * product.w_row;
    // What every segment has, and what there is of the last one, whose last group may have fewer rows.
    let each = order.groups / order.segments * group_bytes;
    let last = order.groups * (order.segments - 1) / order.segments * group_bytes;
    let most = each.min((product.n * product.w_row).saturating_sub(last));
    let (from, to) = ((from / order.segments).next_multiple_of(16), (to / order.segments).min(most) / 16 * 16);
    if !product.aligned() || from >= to {
        return None;
    }
    let view = op.weight.data.part(from, op.weight.data.len - from);
    let range = AheadRange {
        bytes: u32::try_from(to - from).ok()?,
        segments: u32::try_from(order.segments).ok()?,
        groups: u32::try_from(order.groups).ok()?,
        group_bytes: u32::try_from(group_bytes).ok()?,
    };
    Some((view, range))
}

/// Tells a plan's products what follows them in `ops`, which begins with the plan's own operations.
pub(in crate::backend::cuda) fn look(plan: &mut Plan, ops: &[Recorded], planner: &Planner<'_>) {
    let own = plan.launches.iter().map(|launch| launch.products).sum();
    if own == 0 {
        return;
    }
    let streams = streams(ops, planner, own);
    let mut rest = streams.as_slice();
    for launch in plan.launches.iter_mut().filter(|launch| launch.products > 0) {
        let (mut products, mut bytes) = (launch.products, 0);
        while let [first, others @ ..] = rest
            && products > 0
        {
            products = products.saturating_sub(first.ops.len());
            bytes += first.bytes;
            rest = others;
        }
        // What the product before has not asked for yet.
        let (mut from, mut to) = (AHEAD.saturating_sub(bytes), AHEAD);
        let mut ranges = Vec::new();
        for stream in rest {
            let share = |at: usize| at.min(stream.bytes) / stream.ops.len();
            ranges.extend(stream.ops.iter().filter_map(|op| range(op, share(from), share(to), planner)));
            (from, to) = (from.saturating_sub(stream.bytes), to.saturating_sub(stream.bytes));
        }
        if let Some(last) = launch.bindings.last_mut() {
            *last = record(ranges);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::driver::DeviceInfo;
    use crate::backend::cuda::launches::fuse;
    use crate::{DType, DeviceOptions, GgmlType, MlxDevice, Weight, WeightFormat};

    /// Bytes that the first of two products of m rows asks for, and the last.
    fn asked(m: usize, ty: GgmlType) -> [u64; 2] {
        let info = DeviceInfo::hopper();
        let planner = Planner { info: &info, options: &DeviceOptions::default(), forced: None, alone: true };
        let device = MlxDevice::reference().unwrap();
        let mut encoder = device.command_encoder().unwrap();
        let (n, k) = (4096, 8192);
        let buffer = |bytes: usize, dtype: DType| device.alloc_buffer(bytes, dtype, vec![]).unwrap();
        for _ in 0..2 {
            let blocks = buffer(n * WeightFormat::Ggml(ty).row_bytes(k).unwrap(), DType::U8);
            let weight = Weight::ggml(ty, n, k, blocks).unwrap();
            encoder.matmul(&buffer(4 * m * k, DType::F32), &weight, &mut buffer(4 * m * n, DType::F32)).unwrap();
        }
        let ops = encoder.list().ops();
        [ops, &ops[1..]].map(|ops| {
            let (plan, count) = fuse::plan(ops, &planner).unwrap();
            let plan = plan.unwrap();
            assert_eq!((count, plan.launches.len()), (1, 1));
            let Some(Bound::Record(fields)) = plan.launches[0].bindings.last() else { panic!("{plan:?}") };
            let ranges = fields.iter().filter_map(|field| match field {
                Bound::Value(bytes) if bytes.len() == size_of::<AheadRange>() => {
                    Some(bytemuck::pod_read_unaligned::<AheadRange>(bytes))
                }
                _ => None,
            });
            ranges.map(|range| u64::from(range.bytes) * u64::from(range.segments)).sum()
        })
    }

    /// All that is asked for lies in the next weight, and five to eight rows ask in the one format that gains.
    #[test]
    fn launches_ask_for_what_follows() {
        let ahead = AHEAD as u64;
        for ty in [GgmlType::Q4_0, GgmlType::MXFP4] {
            assert_eq!([1, 4].map(|m| asked(m, ty)), [[ahead, 0]; 2], "{ty:?}");
        }
        assert_eq!(asked(8, GgmlType::MXFP4), [ahead, 0]);
        assert_eq!(asked(8, GgmlType::Q4_0), [0, 0]);
    }
}
