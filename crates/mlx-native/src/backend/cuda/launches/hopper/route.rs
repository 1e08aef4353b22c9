//! Expert-routed products of few tokens: the geometry and the launches of `hopper_mv_id`.

use super::columns::{Columns, Part};
use super::matvec::{BOX_BYTES, THREADS, WARPS};
use super::{Format, HopperExpertArgs, Product, Rows, STRIP, UNIT, ahead, key, pitch_of};
use crate::Result;
use crate::backend::cuda::driver::DeviceInfo;
use crate::backend::cuda::launches::args::ProductArgs;
use crate::backend::cuda::launches::{Bound, Launch, Plan, Planner};
use crate::backend::cuda::tensor_map::TensorMap;
use crate::backend::gpu::{Fault, u32_of};
use crate::buffer::View;
use crate::ops::MatmulId;

/// `MOST_ROUTED_STAGES`, `MOST_PENDING` and `MOST_ROUTED_SLOTS` of experts.cu, and what lies before the operands.
const MOST_STAGES: usize = 24;
const MOST_PENDING: usize = 128;
const MOST_SLOTS: usize = 256;
const FIXED: usize = 8 * MOST_PENDING + 8 * MOST_STAGES + 4 * MOST_PENDING + 2 * 4 * MOST_SLOTS + 16;
/// A word of shared memory each.
const MOST_EXPERTS: usize = 1024;
/// Stages at least.
const LEAST_STAGES: usize = 3;
/// As many stages keep the memory busy where rows are copied one by one: shorter pieces mean more copies.
const ENOUGH_RAGGED_STAGES: usize = 4;
/// As many stages keep the memory busy; units of a piece that a warp has at least, so that its sums and its turn cost little beside them.
const ENOUGH_STAGES: usize = 6;
const UNITS_OF_A_WARP: usize = 2;

/// How a launch cuts the matrices.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Geometry {
    /// Units of a stage, and warps that share it.
    piece: usize,
    span: usize,
    pitch: usize,
    side_pitch: usize,
    stage_bytes: usize,
    stages: usize,
    /// Teams of `span` warps, pieces of a row, barriers of a team.
    teams: usize,
    pieces: usize,
    depth: usize,
    shared_bytes: usize,
}

/// What the geometry depends on.
#[derive(Clone, Copy)]
struct Shape {
    format: Format,
    k: usize,
    shared_bytes: usize,
    tokens: usize,
    exact: bool,
    n_experts: usize,
    /// Whether rows of weights do not all start at multiples of 16 bytes.
    ragged: bool,
}

impl Shape {
    fn enough_stages(self) -> usize {
        if self.ragged { ENOUGH_RAGGED_STAGES } else { ENOUGH_STAGES }
    }
}

/// The geometry with stages enough and the fewest pieces. None where k is too long.
fn geometry(shape: Shape) -> Option<Geometry> {
    let (format, units) = (shape.format, shape.k.div_ceil(UNIT));
    let whole =
        (0..5).map(|i| 1 << i).find(|count| shape.ragged || (count * format.unit).is_multiple_of(16)).unwrap_or(16);
    let columns = shape.tokens * if shape.exact { 2 } else { 1 };
    // Operands, sums of the input, what undoes its scaling, two strips' sums of every warp, a word for each expert.
    let sums = if format.sums { units * (UNIT / format.sub) * 32 } else { 0 };
    let fixed = FIXED + units * 512 * columns + sums + units * 32 + WARPS * 128 * shape.tokens + 4 * shape.n_experts;
    let room = shape.shared_bytes.checked_sub(fixed)?;
    let mut best: Option<Geometry> = None;
    for pieces in [1, 2, 3, 4, 6, 8, 12, 16] {
        let piece = units.div_ceil(pieces).next_multiple_of(whole);
        if pieces > 1 && piece >= units {
            continue;
        }
        let span = (0..5).map(|i| 1 << i).rev().find(|span| span * UNITS_OF_A_WARP <= piece).unwrap_or(1);
        let pitch = pitch_of(piece * format.unit + if shape.ragged { 16 } else { 0 });
        let sides = piece * format.side;
        let side_pitch = match sides {
            0 => 0,
            _ => pitch_of(if sides.is_multiple_of(16) { sides } else { sides + 8 }),
        };
        // A box has 256 elements at most: of eight bytes, of two for scales.
        if (!shape.ragged && pitch > BOX_BYTES) || side_pitch > 512 {
            continue;
        }
        let stage_bytes = (STRIP * (pitch + 2 * side_pitch)).next_multiple_of(128);
        let stages = (room / stage_bytes).min(MOST_STAGES);
        let (teams, pieces) = (WARPS / span, units.div_ceil(piece));
        let depth = stages.div_ceil(teams).next_multiple_of(pieces) + pieces;
        if stages < LEAST_STAGES || teams * depth > MOST_PENDING {
            continue;
        }
        let enough = shape.enough_stages();
        if best.is_none_or(|best| stages.min(enough) > best.stages.min(enough)) {
            let shared_bytes = fixed + stages * stage_bytes;
            let geometry =
                Geometry { piece, span, pitch, side_pitch, stage_bytes, stages, teams, pieces, depth, shared_bytes };
            best = Some(geometry);
        }
    }
    best
}

/// Whether the kernel takes products with k inputs, so many experts and slots of a token.
pub(super) fn fits(format: Format, k: usize, info: &DeviceInfo, [n_experts, top_k]: [usize; 2]) -> bool {
    let shared_bytes = info.shared_bytes;
    let shape = |tokens, exact| Shape { format, k, shared_bytes, tokens, exact, n_experts, ragged: true };
    n_experts <= MOST_EXPERTS
        && top_k <= MOST_SLOTS / Columns::Eight.rows()
        && [Columns::Eight, Columns::Four]
            .iter()
            .all(|columns| geometry(shape(columns.rows(), columns.exact())).is_some())
}

/// Where a launch's operands are.
struct Operands<'a> {
    input: &'a Rows,
    output: &'a View,
    ids: Option<&'a View>,
    /// Matrices, bytes from one to the next of data, scales and biases, and how many of them a token has.
    n_experts: usize,
    strides: [usize; 3],
    top_k: usize,
}

/// A launch for a part of the tokens. None where it does not fit, or has too few stages to be quick and has to be.
fn launch(product: &Product<'_>, operands: &Operands<'_>, part: Part, quick: bool) -> Result<Option<Launch>> {
    let Operands { input, output, ids, n_experts, strides, top_k } = operands;
    let (format, shared_bytes) = (product.format, product.info.shared_bytes);
    let aligned = product.aligned() && strides[0].is_multiple_of(16);
    let sides_aligned = format.side == 0 || strides[1..].iter().all(|stride| stride.is_multiple_of(16));
    let (k, exact, n_experts) = (product.k, part.columns.exact(), *n_experts);
    // Fewer tokens leave more room for weights, and other pieces of them add up in another order.
    let tokens = if part.invariant { part.columns.rows() } else { part.m };
    // Rows are copied one by one where they must, or where whole strips would be too large.
    let mut ways = [false, true].into_iter().filter(|ragged| *ragged || aligned);
    let found = ways.find_map(|ragged| {
        let shape = Shape { format, k, shared_bytes, tokens, exact, n_experts, ragged };
        geometry(shape).map(|found| (shape, found))
    });
    let enough = |shape: Shape, geometry: Geometry| !quick || geometry.stages >= shape.enough_stages();
    let Some((Shape { ragged, .. }, geometry)) = found.filter(|(shape, found)| sides_aligned && enough(*shape, *found))
    else {
        return Ok(None);
    };
    let strips = product.n.div_ceil(STRIP);
    let args = HopperExpertArgs {
        w_row: product.w_row as u64,
        w_matrix: strides[0] as u64,
        x_row: input.stride,
        m: u32_of("tokens", part.m)?,
        first: u32_of("first", part.first)?,
        n: u32_of("n", product.n)?,
        k: u32_of("k", product.k)?,
        n_experts: u32_of("n_experts", n_experts)?,
        top_k: u32_of("top_k", *top_k)?,
        span: geometry.span as u32,
        piece: geometry.piece as u32,
        pitch: geometry.pitch as u32,
        side_pitch: geometry.side_pitch as u32,
        stage_bytes: geometry.stage_bytes as u32,
        stages: geometry.stages as u32,
        teams: geometry.teams as u32,
        pieces: geometry.pieces as u32,
        depth: geometry.depth as u32,
        strips: strips as u32,
        inverse_top_k: u32::MAX / u32_of("top_k", *top_k)?.max(1),
        inverse_strips: u32::MAX / (strips as u32).max(1),
        wide: u32::from(part.invariant),
        pad: 0,
    };
    let map = |view: Option<&View>, i: usize, element_bytes: usize, row: usize, pitch: usize| {
        // A map that nobody reads is none.
        let Some(view) = view else { return Bound::value(&[0u64; 16]) };
        let map = TensorMap::rows(element_bytes, [row, product.n], [pitch, STRIP]).of_each(n_experts, strides[i]);
        Bound::Tensor(map, Box::new(Bound::view(view)))
    };
    let weight = product.weight;
    let sides = [&weight.scales, &weight.biases].map(|side| side.as_ref().filter(|_| format.side > 0));
    let mut bindings = vec![Bound::view(&weight.data), input.at.clone(), Bound::view(output), Bound::value(&args)];
    bindings.extend(match ids {
        Some(ids) => [Bound::view(ids), Bound::Fault],
        None => [Bound::value(&0u64), Bound::value(&0u64)],
    });
    bindings.extend([
        map(Some(&weight.data).filter(|_| !ragged), 0, 8, product.w_row, geometry.pitch),
        map(sides[0], 1, 2, product.side_row, geometry.side_pitch),
        map(sides[1], 2, 2, product.side_row, geometry.side_pitch),
        ahead::no_experts(),
        ahead::nothing(),
    ]);
    let parts = if exact { 2 } else { 1 };
    let (name, tail) = (format.name, !product.k.is_multiple_of(UNIT));
    let function = format!("hopper_mv_id<{name}, {parts}, {tail}, {ragged}>");
    let launch = Launch::new(key(function), bindings, [product.info.processors, 1, 1], THREADS);
    Ok(Some(Launch { shared_bytes: geometry.shared_bytes, ..launch }))
}

/// The launches of a routed product, up to eight tokens each. None where it does not fit.
pub(super) fn rows(
    op: &MatmulId,
    product: &Product<'_>,
    planner: &Planner<'_>,
    args: &ProductArgs,
) -> Result<Option<Plan>> {
    if !fits(product.format, op.k, product.info, [op.n_experts, op.top_k]) {
        return Ok(None);
    }
    let fault = Fault { ids: op.ids.clone(), limit: Some(op.n_experts), words: ["matmul_id", "slot", "expert"] };
    let mut plan = Plan { fault: Some(fault), ..Plan::default() };
    let input = Rows::of(&op.input, op.n_tokens, args, &mut plan)?;
    let operands = Operands {
        input: &input,
        output: &op.output,
        ids: Some(&op.ids),
        n_experts: op.n_experts,
        strides: op.weight.strides,
        top_k: op.top_k,
    };
    for part in Part::all(op.n_tokens, planner.options) {
        let Some(launch) = launch(product, &operands, part, false)? else { return Ok(None) };
        plan.launches.push(launch);
    }
    // Tokens of another launch have experts of their own.
    if let [launch] = plan.launches.as_mut_slice() {
        launch.products = 1;
    }
    Ok(Some(plan))
}

/// A launch for a product whose rows are too long for one block's registers, as that of a single expert: its operands lie in shared memory. None where that leaves
/// too little for weights.
pub(super) fn long_rows(product: &Product<'_>, input: &Rows, output: &View, part: Part) -> Result<Option<Launch>> {
    if !part.columns.exact() {
        return Ok(None);
    }
    let strides = [product.w_row, product.side_row, product.side_row].map(|row| (row * product.n).next_multiple_of(16));
    let operands = Operands { input, output, ids: None, n_experts: 1, strides, top_k: 1 };
    launch(product, &operands, part, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::launches::plan;
    use crate::device::{Activations, DeviceOptions};
    use crate::{DType, GgmlType, MlxDevice, Weight};

    fn info() -> DeviceInfo {
        DeviceInfo::hopper()
    }

    #[test]
    fn geometries_fit_the_block() {
        let info = info();
        for ty in [GgmlType::Q4_0, GgmlType::Q8_0, GgmlType::MXFP4, GgmlType::Q2_K, GgmlType::Q3_K, GgmlType::Q6_K] {
            let format = Format::of(crate::format::WeightFormat::Ggml(ty)).unwrap();
            for k in (256..=8192).step_by(256) {
                assert!(fits(format, k, &info, [256, 8]), "{} {k}", ty.name());
                for (tokens, exact, ragged) in [(8, false, false), (8, false, true), (4, true, true), (1, true, false)]
                {
                    let shape =
                        Shape { format, k, shared_bytes: info.shared_bytes, tokens, exact, n_experts: 128, ragged };
                    // Strips of long rows may be too large for tensor copies.
                    let Some(found) = geometry(shape) else {
                        assert!(!ragged && k > 4096, "{} {k}", ty.name());
                        continue;
                    };
                    let fits = found.shared_bytes <= info.shared_bytes && found.stages >= LEAST_STAGES;
                    assert!(fits, "{} {k}: {found:?}", ty.name());
                    assert!(WARPS.is_multiple_of(found.span) && found.span <= found.piece);
                    assert!(ragged || (found.piece * format.unit).is_multiple_of(16) || found.piece * UNIT >= k);
                }
            }
            assert!(!fits(format, 1 << 20, &info, [256, 8]));
        }
    }

    /// The kernels of a product of tokens with two of four experts each.
    fn kernels(tokens: usize, options: &DeviceOptions, forced: Option<&str>) -> Vec<String> {
        let device = MlxDevice::reference().unwrap();
        let buffer = |bytes: usize, dtype| device.alloc_buffer(bytes, dtype, vec![]).unwrap();
        let (n, k) = (128, 256);
        let weight =
            Weight::stack(GgmlType::Q4_0.into(), 4, n, k, buffer(4 * n * k / 32 * 18, DType::U8), None, None).unwrap();
        let (x, ids) = (buffer(tokens * k * 4, DType::F32), buffer(tokens * 2 * 4, DType::U32));
        let mut y = buffer(tokens * 2 * n * 4, DType::F32);
        let mut encoder = device.command_encoder().unwrap();
        encoder.matmul_id(&x, &weight, &ids, &mut y, None).unwrap();
        let op = encoder.ops().next().unwrap().clone();
        let plan = plan(&op, &Planner { info: &info(), options, forced, alone: true }).unwrap();
        assert!(plan.fault.is_some());
        plan.launches.into_iter().map(|launch| launch.pipeline.function).collect()
    }

    #[test]
    fn few_tokens_are_columns_of_one_launch() {
        let options = DeviceOptions::default();
        let exact = DeviceOptions { activations: Activations::Exact, ..options };
        assert_eq!(kernels(1, &options, None), ["hopper_mv_id<Q4_0, 2, false, false>"]);
        assert_eq!(kernels(8, &options, None), ["hopper_mv_id<Q4_0, 1, false, false>"]);
        assert_eq!(kernels(8, &exact, None), ["hopper_mv_id<Q4_0, 2, false, false>"; 2]);
        assert_eq!(kernels(9, &options, None).len(), 3);
        assert_eq!(kernels(9, &options, Some("hopper_mv_id")).len(), 2);
        assert!(kernels(1, &options, Some("mv_id"))[0].starts_with("mv_id"));
    }

    /// Columns of one kind, in passes, whatever the number of tokens.
    #[test]
    fn invariant_tokens_have_one_kernel() {
        let options = DeviceOptions { batch_invariant: true, ..DeviceOptions::default() };
        let exact = DeviceOptions { activations: Activations::Exact, ..options };
        for tokens in [1, 4, 5, 8, 9, 33] {
            assert_eq!(
                kernels(tokens, &options, None),
                vec!["hopper_mv_id<Q4_0, 1, false, false>"; tokens.div_ceil(8)]
            );
            assert_eq!(kernels(tokens, &exact, None), vec!["hopper_mv_id<Q4_0, 2, false, false>"; tokens.div_ceil(4)]);
        }
    }
}
