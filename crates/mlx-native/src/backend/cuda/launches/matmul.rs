//! Products with weights and rows of weights: which kernel, how much of k to a warp, which grid.

use super::args::{ProductArgs, RealignArgs};
use super::hopper::{self, Chain};
use super::{Bound, Launch, Library, PipelineKey, Plan, Planner};
use crate::backend::gpu::{Fault, u32_of};
use crate::buffer::View;
use crate::device::{Activations, DeviceOptions};
use crate::format::WeightFormat;
use crate::ops::{Embedding, Input, InputLayout, Matmul, MatmulId, WeightView};
use crate::{DType, MM_ID_ROUTING_THRESHOLD, MM_ROUTING_THRESHOLD, MlxError, Result};

/// Warps of a block of the kernels for few rows, `WARPS` in matvec.cu.
const WARPS: u32 = 4;
/// Weight rows that a warp has at once, by the input rows of a pass: registers for sums and decoded values stay about the same.
pub(crate) const PASSES: [(u32, u32); 4] = [(1, 8), (2, 4), (4, 4), (8, 2)];
/// Weight rows of a warp that has one input row, where there are too few of them to fill the GPU by eights.
pub(crate) const FEW_COLUMNS: u32 = 2;
/// Warps that fill a large GPU.
const MANY_WARPS: usize = 2048;
/// Values of k that a lane has at once.
const CHUNK: u32 = 16;
/// Columns of a tile, values of k of a step, threads: `TN`, `TK` and `THREADS` in matmat.cu.
const TILE_COLUMNS: usize = 128;
const TILE_K: usize = 64;
const TILE_THREADS: u32 = 256;
/// Halves of a row of a tile.
const TILE_PITCH: usize = TILE_K + 8;

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// f32 activations, eight rows to a pass at most.
    Rows,
    /// Tiles, both operands rounded to halves.
    Tiles,
    /// Tiles, both operands as sums of two halves.
    ExactTiles,
}

impl Route {
    /// The kernel's name in reports.
    pub(crate) const fn name(self, routed: bool) -> &'static str {
        match (self, routed) {
            (Route::Rows, false) => "mv",
            (Route::Tiles, false) => "mm",
            (Route::ExactTiles, false) => "mm_exact",
            (Route::Rows, true) => "mv_id",
            (Route::Tiles, true) => "mm_id",
            (Route::ExactTiles, true) => "mm_id_exact",
        }
    }

    /// The route for so many rows (tokens of a routed product). The tile kernels sum in another order than the row kernels, so with `batch_invariant`
    /// the row kernels run at every number.
    pub(crate) fn choose(rows: usize, routed: bool, options: &DeviceOptions) -> Route {
        let threshold = if routed { MM_ID_ROUTING_THRESHOLD } else { MM_ROUTING_THRESHOLD };
        if rows <= threshold as usize || options.batch_invariant {
            Route::Rows
        } else if options.activations == Activations::Exact {
            Route::ExactTiles
        } else {
            Route::Tiles
        }
    }

    fn forced(name: &str, routed: bool) -> Result<Route> {
        let routes = [Route::Rows, Route::Tiles, Route::ExactTiles];
        routes.into_iter().find(|route| route.name(routed) == name).ok_or_else(|| {
            MlxError::KernelNotFound(format!(
                "`{name}`: the CUDA backend has mv, mm, mm_exact and, routed, mv_id, mm_id, mm_id_exact; on Hopper, where they take the product, hopper_mv, hopper_mm, \
                 hopper_mv_id and hopper_mm_id"
            ))
        })
    }
}

/// Input rows that a pass over the weights serves, and weight rows of a warp.
fn pass(m: usize) -> (u32, u32) {
    PASSES.into_iter().find(|(rows, _)| m <= *rows as usize).unwrap_or(PASSES[PASSES.len() - 1])
}

/// Warps that share a weight row. It depends on n and k alone, so that the order of summation does not depend on m.
fn warps_per_row(n: usize, k: usize) -> u32 {
    let warps = n.div_ceil(PASSES[0].1 as usize);
    // Every lane of each has a chunk of sixteen values at least.
    let most = (k / (16 * 32)).max(1);
    [1, 2].into_iter().find(|split| warps * split >= MANY_WARPS || 2 * split > most).unwrap_or(WARPS as usize) as u32
}

/// Input rows of a tile.
fn tile_rows(rows: usize, route: Route, planner: &Planner<'_>) -> usize {
    match route {
        Route::ExactTiles if tile_bytes(64, route) > planner.info.shared_bytes => 32,
        Route::ExactTiles => 64,
        _ if rows <= 64 => 64,
        _ => 128,
    }
}

/// The size of `Tiles` in matmat.cu.
fn tile_bytes(rows: usize, route: Route) -> usize {
    let (operands, stages) = if route == Route::ExactTiles { (2, 2) } else { (1, 3) };
    let halves = 2 * operands * TILE_COLUMNS * TILE_PITCH + stages * operands * rows * TILE_PITCH;
    halves * 2 + 2 * TILE_COLUMNS * 4 + rows * 8
}

/// What a kernel is told of an element type.
fn type_code(dtype: DType) -> u32 {
    match dtype {
        DType::F16 => 1,
        DType::BF16 => 2,
        _ => 0,
    }
}

/// What every address of a weight has to be a multiple of: what its blocks are a multiple of, 16 at most.
fn alignment(format: WeightFormat) -> [usize; 3] {
    match format {
        WeightFormat::Ggml(ty) => [1 << ty.block_bytes().trailing_zeros().min(4), 1, 1],
        WeightFormat::Affine(affine) => {
            let scale = affine.scale_dtype.size_of();
            [4, scale, scale]
        }
        WeightFormat::Fp(_) => [4, 1, 1],
    }
}

/// A weight's three operands as bindings. What lies where its kernels may not read is moved first.
fn weight_bindings(
    weight: &WeightView,
    matrices: usize,
    args: &mut ProductArgs,
    plan: &mut Plan,
) -> Result<Vec<Bound>> {
    let views = [Some(&weight.data), weight.scales.as_ref(), weight.biases.as_ref()];
    let mut strides = [args.w_matrix, args.s_matrix, args.b_matrix];
    let mut bindings = Vec::new();
    for (i, align) in alignment(weight.format).into_iter().enumerate() {
        // A format without scales or biases binds its data, which nobody reads there.
        let view: &View = views[i].unwrap_or(&weight.data);
        let is_aligned =
            view.offset.is_multiple_of(align) && (matrices == 1 || strides[i].is_multiple_of(align as u64));
        if views[i].is_none() || is_aligned {
            bindings.push(Bound::view(view));
            continue;
        }
        // The last matrix ends with the view.
        let bytes = (view.len as u64).saturating_sub((matrices as u64 - 1) * strides[i]);
        let realign = RealignArgs { bytes, stride: strides[i], pitch: bytes.next_multiple_of(16) };
        let target = plan.scratch(realign.pitch as usize * matrices);
        let grid = [u32_of("bytes", bytes.div_ceil(4096) as usize)?, u32_of("matrices", matrices)?, 1];
        let bound = vec![Bound::view(view), target.clone(), Bound::value(&realign)];
        plan.launches.push(Launch::new(PipelineKey::new(Library::Realign, "realign<>"), bound, grid, 256));
        strides[i] = realign.pitch;
        bindings.push(target);
    }
    [args.w_matrix, args.s_matrix, args.b_matrix] = strides;
    Ok(bindings)
}

/// Arguments that the weight and the dimensions determine. `row` is the length of a stored row.
fn args(weight: &WeightView, [m, n, k]: [usize; 3], row: usize) -> Result<ProductArgs> {
    let (group_size, groups) = match weight.format {
        WeightFormat::Ggml(_) => (1, 0),
        WeightFormat::Affine(affine) => (affine.group_size, affine.groups(row)?),
        WeightFormat::Fp(mode) => (mode.group_size(), mode.groups(row)),
    };
    let [w_matrix, s_matrix, b_matrix] = weight.strides.map(|stride| stride as u64);
    Ok(ProductArgs {
        x_row: 0,
        x_batch: 0,
        w_row: weight.format.row_bytes(row)? as u64,
        w_matrix,
        s_matrix,
        b_matrix,
        m: u32_of("m", m)?,
        n: u32_of("n", n)?,
        k: u32_of("k", k)?,
        k_padded: u32_of("k", k.next_multiple_of(TILE_K))?,
        head_dim: 0,
        group_size,
        groups: u32_of("groups", groups)?,
        batch_ratio: 1,
        top_k: 1,
        n_experts: 1,
        x_type: 0,
        y_type: 0,
        warps_per_row: warps_per_row(n, k),
        scale: 1.0,
    })
}

fn with_input(args: ProductArgs, input: &Input) -> Result<ProductArgs> {
    let args = ProductArgs { x_type: type_code(input.dtype), ..args };
    Ok(match input.layout {
        InputLayout::Rows { row_bytes, batch_bytes } => {
            ProductArgs { x_row: row_bytes as u64, x_batch: batch_bytes as u64, ..args }
        }
        InputLayout::Heads { head_dim } => ProductArgs { head_dim: u32_of("head_dim", head_dim)?, ..args },
    })
}

/// The input of the row kernels: f32 rows of whole chunks that start at multiples of 16 bytes. Any other is made so first.
pub(super) fn widened(input: &Input, rows: usize, args: &mut ProductArgs, plan: &mut Plan) -> Result<Bound> {
    if let InputLayout::Rows { row_bytes, batch_bytes } = input.layout
        && input.dtype == DType::F32
        && args.k.is_multiple_of(CHUNK)
        && [input.view.offset, row_bytes, batch_bytes].iter().all(|bytes| bytes.is_multiple_of(16))
    {
        return Ok(Bound::view(&input.view));
    }
    let row_bytes = args.k_padded as usize * 4;
    let target = plan.scratch(rows * row_bytes);
    let bindings = vec![Bound::view(&input.view), target.clone(), Bound::value(args)];
    let grid = [u32_of("rows", rows)?, 1, 1];
    plan.launches.push(Launch::new(PipelineKey::new(Library::Stage, "widen<>"), bindings, grid, 256));
    (args.x_row, args.x_batch) = (row_bytes as u64, row_bytes as u64 * u64::from(args.m));
    Ok(target)
}

/// Rows of halves and their factors for the tile kernels: the operands `high`, `low` and `factors` of mm.
fn stage(input: &Input, rows: usize, args: &ProductArgs, route: Route, plan: &mut Plan) -> Result<[Bound; 3]> {
    let bytes = rows * args.k_padded as usize * 2;
    let high = plan.scratch(bytes);
    let split = route == Route::ExactTiles;
    let low = if split { plan.scratch(bytes) } else { high.clone() };
    let factors = plan.scratch(rows * 4);
    let bindings = vec![Bound::view(&input.view), high.clone(), low.clone(), factors.clone(), Bound::value(args)];
    let pipeline = PipelineKey::new(Library::Stage, format!("stage<{split}>"));
    plan.launches.push(Launch::new(pipeline, bindings, [u32_of("rows", rows)?, 1, 1], 256));
    Ok([high, low, factors])
}

/// Blocks for n weight rows.
fn column_blocks(args: &ProductArgs, columns: u32) -> u32 {
    args.n.div_ceil(WARPS / args.warps_per_row * columns)
}

/// Weight rows of a warp with one input row.
fn single_row_columns(args: &ProductArgs) -> u32 {
    let warps = (args.n.div_ceil(PASSES[0].1) * args.warps_per_row) as usize;
    if warps < MANY_WARPS / 2 { FEW_COLUMNS } else { PASSES[0].1 }
}

/// Several products of one input; none where each had better be planned alone.
pub(super) fn matmuls(ops: &[&Matmul], planner: &Planner<'_>) -> Result<Option<Plan>> {
    let [op, ..] = ops else { return Ok(None) };
    hopper::matmuls(ops, planner, &input_args(op)?)
}

/// Several routed products of the same rows and experts; none where each had better be planned alone.
pub(super) fn matmul_ids(ops: &[&MatmulId], planner: &Planner<'_>) -> Result<Option<Plan>> {
    let [op, ..] = ops else { return Ok(None) };
    hopper::matmul_ids(ops, planner, &routed_args(op)?)
}

/// Products with what is around them; none where all that had better be planned by itself.
pub(super) fn chain(chain: &Chain<'_>, planner: &Planner<'_>) -> Result<Option<Plan>> {
    let Some(op) = chain.before.or(chain.products.first().copied()) else { return Ok(None) };
    chain.plan(planner, &input_args(op)?)
}

fn input_args(op: &Matmul) -> Result<ProductArgs> {
    with_input(args(&op.weight, [op.m, op.n, op.k], op.k)?, &op.input)
}

fn routed_args(op: &MatmulId) -> Result<ProductArgs> {
    let args = with_input(args(&op.weight, [op.n_tokens, op.n, op.k], op.k)?, &op.input)?;
    Ok(ProductArgs { top_k: u32_of("top_k", op.top_k)?, n_experts: u32_of("n_experts", op.n_experts)?, ..args })
}

/// output[b][i][j]
pub(super) fn matmul(op: &Matmul, planner: &Planner<'_>) -> Result<Plan> {
    let stored_row = if op.weight.transposed { op.n } else { op.k };
    let args = with_input(args(&op.weight, [op.m, op.n, op.k], stored_row)?, &op.input)?;
    if let Some(plan) = hopper::matmul(op, planner, &args)? {
        return Ok(plan);
    }
    let route = match planner.forced {
        Some(name) => Route::forced(name, false)?,
        None => Route::choose(op.m, false, planner.options),
    };
    let ratio = u32_of("batch", op.batch / op.weight_batch)?;
    let mut args = ProductArgs { batch_ratio: ratio, y_type: type_code(op.output_dtype), ..args };
    let batch = u32_of("batch", op.batch)?;
    let mut plan = Plan::default();
    let mut bindings = weight_bindings(&op.weight, op.weight_batch, &mut args, &mut plan)?;
    let text = op.weight.format.into();
    let y = Bound::view(&op.output);
    if op.weight.transposed {
        let x = widened(&op.input, op.batch * op.m, &mut args, &mut plan)?;
        bindings.extend([x, y, Bound::value(&args)]);
        let grid = [args.n.div_ceil(16), args.m, batch];
        plan.launches.push(Launch::new(PipelineKey::new(Library::MatVec(text), "vm<W>"), bindings, grid, 32));
        return Ok(plan);
    }
    if route == Route::Rows {
        let (rows, columns) = match pass(op.m) {
            (1, _) => (1, single_row_columns(&args)),
            pass => pass,
        };
        let x = widened(&op.input, op.batch * op.m, &mut args, &mut plan)?;
        bindings.extend([x, y, Bound::value(&args)]);
        let grid = [column_blocks(&args, columns), args.m.div_ceil(rows), batch];
        let pipeline = PipelineKey::new(Library::MatVec(text), format!("mv<W, {rows}, {columns}>"));
        plan.launches.push(Launch::new(pipeline, bindings, grid, 32 * WARPS));
        return Ok(plan);
    }
    bindings.extend(stage(&op.input, op.batch * op.m, &args, route, &mut plan)?);
    bindings.extend([y, Bound::value(&args)]);
    let rows = tile_rows(op.m, route, planner);
    let grid = [u32_of("m", op.m.div_ceil(rows))?, u32_of("n", op.n.div_ceil(TILE_COLUMNS))?, batch];
    let function = format!("mm<W, {rows}, {}>", route == Route::ExactTiles);
    let launch = Launch::new(PipelineKey::new(Library::MatMat(text), function), bindings, grid, TILE_THREADS);
    plan.launches.push(Launch { shared_bytes: tile_bytes(rows, route), ..launch });
    Ok(plan)
}

/// output[slot] = weight[ids[slot]] · input[slot ÷ top_k]
pub(super) fn matmul_id(op: &MatmulId, planner: &Planner<'_>) -> Result<Plan> {
    let mut args = routed_args(op)?;
    if let Some(plan) = hopper::matmul_id(op, planner, &args)? {
        return Ok(plan);
    }
    let route = match planner.forced {
        Some(name) => Route::forced(name, true)?,
        None => Route::choose(op.n_tokens, true, planner.options),
    };
    let slots = op.n_tokens * op.top_k;
    let fault = Fault { ids: op.ids.clone(), limit: Some(op.n_experts), words: ["matmul_id", "slot", "expert"] };
    let mut plan = Plan { fault: Some(fault), ..Plan::default() };
    let mut bindings = weight_bindings(&op.weight, op.n_experts, &mut args, &mut plan)?;
    let text = op.weight.format.into();
    let (ids, y) = (Bound::view(&op.ids), Bound::view(&op.output));
    if route == Route::Rows {
        // Every slot has its own warps: few columns each still fill the GPU.
        let columns = if slots * op.n < MANY_WARPS * 8 { FEW_COLUMNS } else { PASSES[0].1 };
        let x = widened(&op.input, op.n_tokens, &mut args, &mut plan)?;
        bindings.extend([x, y, Bound::value(&args), ids, Bound::Fault]);
        let grid = [column_blocks(&args, columns), u32_of("slots", slots)?, 1];
        let pipeline = PipelineKey::new(Library::MatVec(text), format!("mv_id<W, {columns}>"));
        plan.launches.push(Launch::new(pipeline, bindings, grid, 32 * WARPS));
        return Ok(plan);
    }
    let rows = match route {
        Route::ExactTiles => tile_rows(64, route, planner),
        _ => 64,
    };
    let Experts { n_tiles, tiles, lists, .. } = map_experts(op, &[], &args, rows, &mut plan)?;
    bindings.extend(stage(&op.input, op.n_tokens, &args, route, &mut plan)?);
    bindings.extend([y, Bound::value(&args), lists, tiles]);
    let grid = [u32_of("n", op.n.div_ceil(TILE_COLUMNS))?, n_tiles, 1];
    let function = format!("mm_id<W, {rows}, {}>", route == Route::ExactTiles);
    let launch = Launch::new(PipelineKey::new(Library::MatMat(text), function), bindings, grid, TILE_THREADS);
    plan.launches.push(Launch { shared_bytes: tile_bytes(rows, route), ..launch });
    Ok(plan)
}

/// What `map_experts` leaves for the kernels that multiply tiles.
pub(super) struct Experts {
    /// The most tiles that there can be.
    pub n_tiles: u32,
    /// Which slots of which expert a tile has.
    pub tiles: Bound,
    /// The slots, expert after expert, and where each slot is in them.
    pub lists: Bound,
    pub places: Bound,
}

/// Warps of that launch and experts that it takes at once, `MAP_WARPS` and `RANGE` in map_experts.cu.
const MAP_WARPS: usize = 32;
const MAP_RANGE: usize = 512;
/// Products that share lists at most, `MOST_OUTPUTS` there.
pub(super) const ROUTED_PRODUCTS: usize = 16;

/// Appends the launch that lists the slots by expert and cuts the lists into tiles of `rows`, for products of the same slots and experts.
pub(super) fn map_experts(
    op: &MatmulId,
    others: &[&MatmulId],
    args: &ProductArgs,
    rows: usize,
    plan: &mut Plan,
) -> Result<Experts> {
    let slots = op.n_tokens * op.top_k;
    // There are at most so many whole tiles, and one partial one an expert.
    let n_tiles = slots / rows + op.n_experts.min(slots);
    let tiles = plan.scratch(n_tiles * 16);
    let n_tiles = u32_of("tiles", n_tiles)?;
    // The caller's lists, or the operation's own: a count for each expert, then the slots.
    let [counts, lists] = match &op.scratch {
        Some(views) => views.clone().map(Bound::View),
        None => [plan.scratch(op.n_experts * 4), plan.scratch(slots * 4)],
    };
    let places = plan.scratch(slots * 4);
    let ops = || [op].into_iter().chain(others.iter().copied()).take(ROUTED_PRODUCTS);
    let mut outputs: Vec<Bound> = ops().map(|op| Bound::view(&op.output)).collect();
    outputs.resize(ROUTED_PRODUCTS, Bound::value(&0u64));
    outputs.extend(ops().map(|op| u32_of("n", op.n).map(|n| Bound::value(&n))).collect::<Result<Vec<_>>>()?);
    outputs.resize(2 * ROUTED_PRODUCTS, Bound::value(&0u32));
    let bindings = vec![
        Bound::view(&op.ids),
        counts,
        lists.clone(),
        places.clone(),
        tiles.clone(),
        Bound::Record(outputs),
        Bound::value(args),
        Bound::value(&n_tiles),
        Bound::value(&(rows as u32)),
        Bound::Fault,
    ];
    let pipeline = PipelineKey::new(Library::MapExperts, "map_experts<>");
    // A word for each warp and expert of a range.
    let shared_bytes = MAP_WARPS * 4 * op.n_experts.min(MAP_RANGE);
    plan.launches.push(Launch { shared_bytes, ..Launch::new(pipeline, bindings, [1, 1, 1], 32 * MAP_WARPS as u32) });
    Ok(Experts { n_tiles, tiles, lists, places })
}

/// output[t] = scale · weight[ids[t]]
pub(super) fn embedding(op: &Embedding) -> Result<Plan> {
    let args = args(&op.weight, [op.params.n_tokens, op.n, op.k], op.k)?;
    let mut args = ProductArgs { scale: op.params.scale, ..args };
    let fault = Fault { ids: op.ids.clone(), limit: Some(op.n), words: ["embedding", "token", "id"] };
    let mut plan = Plan { fault: Some(fault), ..Plan::default() };
    let mut bindings = weight_bindings(&op.weight, 1, &mut args, &mut plan)?;
    bindings.extend([Bound::view(&op.ids), Bound::view(&op.output), Bound::value(&args), Bound::Fault]);
    let grid = [u32_of("k", op.k.div_ceil(16).div_ceil(64))?, args.m, 1];
    let pipeline = PipelineKey::new(Library::MatVec(op.weight.format.into()), "embedding<W>");
    plan.launches.push(Launch::new(pipeline, bindings, grid, 64));
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::driver::DeviceInfo;
    use crate::backend::cuda::launches::plan;
    use crate::{GgmlType, MlxDevice, Weight};

    const INFO: DeviceInfo = DeviceInfo { name: String::new(), arch: 80, processors: 108, shared_bytes: 163 << 10 };

    /// The plan of a product with a Q8_0 weight, `offset` bytes into its buffer.
    fn product(m: usize, n: usize, k: usize, offset: usize, options: &DeviceOptions) -> Plan {
        let device = MlxDevice::reference().unwrap();
        let buffer = |bytes, dtype| device.alloc_buffer(bytes, dtype, vec![]).unwrap();
        let bytes = n * k / 32 * 34;
        let data = buffer(offset + bytes, DType::U8).slice_view(offset as u64, bytes);
        let weight = Weight::ggml(GgmlType::Q8_0, n, k, data).unwrap();
        let (x, mut y) = (buffer(m * k * 4, DType::F32), buffer(m * n * 4, DType::F32));
        let mut encoder = device.command_encoder().unwrap();
        encoder.matmul(&x, &weight, &mut y).unwrap();
        let op = encoder.ops().next().unwrap().clone();
        plan(&op, &Planner { info: &INFO, options, forced: None, alone: true }).unwrap()
    }

    fn functions(plan: &Plan) -> Vec<&str> {
        plan.launches.iter().map(|launch| launch.pipeline.function.as_str()).collect()
    }

    #[test]
    fn the_number_of_rows_chooses_the_kernels() {
        let default = DeviceOptions::default();
        let invariant = DeviceOptions { batch_invariant: true, ..default };
        let exact = DeviceOptions { activations: Activations::Exact, ..default };
        assert_eq!(functions(&product(1, 65, 64, 0, &default)), ["mv<W, 1, 2>"]);
        assert_eq!(functions(&product(3, 65, 64, 0, &default)), ["mv<W, 4, 4>"]);
        assert_eq!(functions(&product(9, 65, 64, 0, &default)), ["stage<false>", "mm<W, 64, false>"]);
        assert_eq!(functions(&product(65, 65, 64, 0, &default)), ["stage<false>", "mm<W, 128, false>"]);
        assert_eq!(functions(&product(9, 65, 64, 0, &exact)), ["stage<true>", "mm<W, 64, true>"]);
        assert_eq!(functions(&product(9, 65, 64, 0, &invariant)), ["mv<W, 8, 2>"]);
    }

    #[test]
    fn weights_at_odd_addresses_are_moved_first() {
        let plan = product(1, 65, 64, 1, &DeviceOptions::default());
        assert_eq!(functions(&plan), ["realign<>", "mv<W, 1, 2>"]);
        assert!(matches!(plan.launches[1].bindings[0], Bound::Scratch(0)), "{:?}", plan.launches[1].bindings);
        assert!(plan.scratch[0].bytes >= 65 * 68);
    }

    #[test]
    fn the_order_of_a_sum_does_not_depend_on_the_rows() {
        let split = |m| {
            let plan = product(m, 4096, 4096, 0, &DeviceOptions::default());
            let Bound::Value(bytes) = &plan.launches[0].bindings[5] else { panic!("{:?}", plan.launches[0].bindings) };
            let args: ProductArgs = bytemuck::pod_read_unaligned(bytes);
            (args.warps_per_row, plan.launches[0].grid)
        };
        assert_eq!(split(1), (4, [512, 1, 1]));
        assert_eq!(split(8), (4, [2048, 1, 1]));
    }
}
