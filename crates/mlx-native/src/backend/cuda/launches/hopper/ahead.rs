//! Weights that later launches read, asked for by the products before them: memory would stand still otherwise from the last copy of a product to the
//! first of the next, and while rotations and attention run in between.

use bytemuck::Zeroable;

use super::columns::Columns;
use super::matmul::route;
use super::{Format, MATRICES, Product, matvec};
use crate::backend::Recorded;
use crate::backend::cuda::launches::{Bound, Launch, Plan, Planner};
use crate::backend::gpu::args::{ArgType, args, render_struct};
use crate::backend::gpu::fuse::{Together, same_experts};
use crate::buffer::View;
use crate::ops::{Matmul, MatmulId, Op};

/// Bytes of weights after a product's own that are asked for when it has asked for its own. Much more would drive itself out of L2 before it is read.
pub(super) const AHEAD: usize = 12 << 20;
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

args! {
    /// The matrices of a routed product that are read early: so many bytes of each wanted expert's, `matrix` bytes apart, `most` in all.
    RoutedRange {
        matrix: u64,
        bytes: u32,
        most: u32,
    }
}

/// The text that `Ahead` of matvec.cu and `RoutedAhead` of experts.cu need.
pub(super) fn text() -> String {
    format!("{}{}constexpr int AHEAD_RANGES = {RANGES};\n", AheadRange::render(), RoutedRange::render())
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

/// The parameter of a routed launch after which no product has the same experts.
pub(super) fn no_experts() -> Bound {
    Bound::Record(vec![Bound::value(&0u64), Bound::value(&RoutedRange::zeroed())])
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

/// What is asked for of the bytes `from..to` of products in turn.
fn ranges(streams: &[Stream<'_>], mut from: usize, mut to: usize, planner: &Planner<'_>) -> Bound {
    let mut ranges = Vec::new();
    for stream in streams {
        let share = |at: usize| at.min(stream.bytes) / stream.ops.len();
        ranges.extend(stream.ops.iter().filter_map(|op| range(op, share(from), share(to), planner)));
        (from, to) = (from.saturating_sub(stream.bytes), to.saturating_sub(stream.bytes));
    }
    record(ranges)
}

/// What a launch with the same experts asks for of a routed product's matrices. Few of them come in less time than the rest of a launch takes.
fn matrices(op: &MatmulId) -> Option<Bound> {
    let most = Format::of(op.weight.format)?.routed_ahead;
    let (view, matrix) = (&op.weight.data, op.weight.strides[0]);
    let bytes = op.n * op.weight.format.row_bytes(op.k).ok()? / 16 * 16;
    if !view.offset.is_multiple_of(16) || !matrix.is_multiple_of(16) || op.n_tokens * op.top_k * bytes < 2 * AHEAD {
        return None;
    }
    let range = RoutedRange { matrix: matrix as u64, bytes: u32::try_from(bytes).ok()?, most: most as u32 };
    Some(Bound::Record(vec![Bound::view(view), Bound::value(&range)]))
}

/// Tells a routed launch what the product after it reads: of `ops`, which come after its own.
fn look_routed(launch: &mut Launch, op: &MatmulId, ops: &[Recorded], planner: &Planner<'_>) {
    let is_product = |recorded: &Recorded| matches!(recorded.op, Op::Matmul(_) | Op::MatmulId(_));
    let [.., experts, dense] = launch.bindings.as_mut_slice() else { return };
    match ops.iter().position(is_product).map(|index| (&ops[index].op, &ops[index..])) {
        Some((Op::MatmulId(next), _)) if same_experts(op, next) => *experts = matrices(next).unwrap_or_else(no_experts),
        // As products of more rows ask for nothing themselves.
        Some((Op::Matmul(next), rest)) if next.m <= Columns::Four.rows() => {
            *dense = ranges(&streams(rest, planner, 0), 0, AHEAD, planner)
        }
        _ => {}
    }
}

/// Tells a plan's products what follows them in `ops`, which begins with the plan's own operations.
pub(in crate::backend::cuda) fn look(plan: &mut Plan, ops: &[Recorded], planner: &Planner<'_>) {
    let own = plan.launches.iter().map(|launch| launch.products).sum();
    if own == 0 {
        return;
    }
    if let (Some(Recorded { op: Op::MatmulId(op), .. }), [launch]) = (ops.first(), plan.launches.as_mut_slice()) {
        return look_routed(launch, op, &ops[1..], planner);
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
        if let Some(last) = launch.bindings.last_mut() {
            *last = ranges(rest, AHEAD.saturating_sub(bytes), AHEAD, planner);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Pod;

    use super::*;
    use crate::backend::cuda::driver::DeviceInfo;
    use crate::backend::cuda::launches::fuse;
    use crate::{CommandEncoder, DType, DeviceOptions, GgmlType, MlxBuffer, MlxDevice, Weight, WeightFormat};

    fn buffer(device: &MlxDevice, bytes: usize) -> MlxBuffer {
        device.alloc_buffer(bytes, DType::U8, vec![]).unwrap()
    }

    fn floats(device: &MlxDevice, count: usize) -> MlxBuffer {
        device.alloc_buffer(4 * count, DType::F32, vec![]).unwrap()
    }

    /// What the launch of each operation asks for, as its last parameter but `back` says.
    fn asked<T: Pod>(encoder: &CommandEncoder, back: usize) -> Vec<Vec<T>> {
        let info = DeviceInfo::hopper();
        let planner = Planner { info: &info, options: &DeviceOptions::default(), forced: None, alone: true };
        let ops = encoder.list().ops();
        let of = |index: usize| {
            let (plan, count) = fuse::plan(&ops[index..], &planner).unwrap();
            let plan = plan.unwrap();
            assert_eq!((count, plan.launches.len()), (1, 1));
            let Some(Bound::Record(fields)) = plan.launches[0].bindings.iter().nth_back(back) else { return vec![] };
            let range = |field: &Bound| match field {
                Bound::Value(bytes) if bytes.len() == size_of::<T>() => Some(bytemuck::pod_read_unaligned(bytes)),
                _ => None,
            };
            fields.iter().filter_map(range).collect()
        };
        (0..ops.len()).map(of).collect()
    }

    /// Bytes of dense products that each launch asks for.
    fn dense(encoder: &CommandEncoder) -> Vec<u64> {
        let bytes = |range: AheadRange| u64::from(range.bytes) * u64::from(range.segments);
        asked(encoder, 0).into_iter().map(|ranges| ranges.into_iter().map(bytes).sum()).collect()
    }

    fn product(device: &MlxDevice, encoder: &mut CommandEncoder, m: usize, ty: GgmlType) {
        let (n, k) = (4096, 8192);
        let blocks = buffer(device, n * WeightFormat::Ggml(ty).row_bytes(k).unwrap());
        let weight = Weight::ggml(ty, n, k, blocks).unwrap();
        encoder.matmul(&floats(device, m * k), &weight, &mut floats(device, m * n)).unwrap();
    }

    /// All that is asked for lies in the next weight, and five to eight rows ask in the one format that gains.
    #[test]
    fn launches_ask_for_what_follows() {
        let device = MlxDevice::reference().unwrap();
        let asked = |m: usize, ty: GgmlType| {
            let mut encoder = device.command_encoder().unwrap();
            (0..2).for_each(|_| product(&device, &mut encoder, m, ty));
            dense(&encoder)
        };
        let ahead = AHEAD as u64;
        for ty in [GgmlType::Q4_0, GgmlType::MXFP4] {
            assert_eq!([1, 4].map(|m| asked(m, ty)), [[ahead, 0]; 2], "{ty:?}");
        }
        assert_eq!(asked(8, GgmlType::MXFP4), [ahead, 0]);
        assert_eq!(asked(8, GgmlType::Q4_0), [0, 0]);
    }

    /// Routed products ask for the next one's matrices if it has the same experts, and for dense weights.
    #[test]
    fn routed_launches_ask_for_what_follows() {
        let device = MlxDevice::reference().unwrap();
        let (experts, top, n, k) = (8, 4, 2048, 1024);
        let ty = GgmlType::Q4_K;
        let matrix = n * WeightFormat::Ggml(ty).row_bytes(k).unwrap();
        let asked = |tokens: usize, routes: [usize; 3]| {
            let mut encoder = device.command_encoder().unwrap();
            let ids = [0, 1].map(|_| device.alloc_buffer(4 * tokens * top, DType::U32, vec![]).unwrap());
            for route in routes {
                let weight = Weight::stack(ty.into(), experts, n, k, buffer(&device, experts * matrix), None, None);
                let (x, mut y) = (floats(&device, tokens * k), floats(&device, tokens * top * n));
                encoder.matmul_id(&x, &weight.unwrap(), &ids[route], &mut y, None).unwrap();
            }
            product(&device, &mut encoder, 1, ty);
            let routed: Vec<Vec<RoutedRange>> = self::asked(&encoder, 1)[..3].to_vec();
            let range = |ranges: &Vec<RoutedRange>| (ranges[0].matrix, ranges[0].bytes, ranges[0].most);
            (routed.iter().map(range).collect::<Vec<_>>(), dense(&encoder))
        };
        let (all, none, ahead) = ((matrix as u64, matrix as u32, AHEAD as u32), (0, 0, 0), AHEAD as u64);
        assert_eq!(asked(8, [0, 0, 1]), (vec![all, none, none], vec![0, 0, ahead, 0]));
        assert_eq!(asked(8, [0, 1, 1]), (vec![none, all, none], vec![0, 0, ahead, 0]));
        // One token's four matrices are too few.
        assert_eq!(asked(1, [0, 0, 0]), (vec![none; 3], vec![0, 0, ahead, 0]));
    }
}
