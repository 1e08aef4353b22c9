//! Routing between the kernels, and the geometry of the one for many rows.

use super::columns::Part;
use super::{HopperTileArgs, MATRICES, Product, ROWS, Rows, TILES, UNIT, key, matvec, pitch_of};
use crate::backend::cuda::launches::args::ProductArgs;
use crate::backend::cuda::launches::{Bound, Launch, Plan, Planner};
use crate::backend::cuda::tensor_map::TensorMap;
use crate::backend::gpu::u32_of;
use crate::buffer::View;
use crate::device::Activations;
use crate::ops::Matmul;
use crate::{DType, MM_ROUTING_THRESHOLD, Result};

const PREPARE_THREADS: u32 = 512;
const ALIGN_THREADS: u32 = 128;

/// A block's tile: `groups` warpgroups with 64 `sets` weight rows each, `rows` of the input, blocks that share the input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    pub groups: usize,
    pub sets: usize,
    pub rows: usize,
    pub cluster: usize,
    /// Whether sums can go to the output through shared memory.
    pub staged: bool,
    /// Whether weight rows start anywhere.
    pub ragged: bool,
}

impl Tile {
    /// Wide tiles spend less on dequantization; narrow ones compute fewer rows that nobody wants. Up to 128 rows three warpgroups hide more of it than two with twice
    /// the rows.
    pub(super) fn choose(m: usize, format: super::Format) -> Tile {
        let tile =
            |groups, sets, rows, cluster| Tile { groups, sets, rows, cluster, staged: rows == 256, ragged: false };
        let narrow = m.div_ceil(128) * 128 * 5 <= m.div_ceil(256) * 256 * 4;
        match m {
            ..=64 => tile(4, 1, 64, 2),
            _ if narrow => tile(3, 1, 128, if format.paired { 2 } else { 1 }),
            _ => tile(2, 1, 256, 2),
        }
    }

    /// `TURNED` in matmul.cu.
    fn turned(self) -> bool {
        self.staged && self.ragged
    }

    /// Weight rows.
    pub(super) fn features(self) -> usize {
        64 * self.groups * self.sets
    }

    /// One warpgroup more issues copies.
    pub(super) fn threads(self) -> u32 {
        128 * (self.groups as u32 + 1)
    }

    /// The template arguments that the kernels have in common.
    pub(super) fn arguments(self) -> String {
        format!("{}, {}, {}", self.groups, self.sets, self.rows)
    }
}

/// Features in a row of a copy to the output.
const STORED: usize = 32;
/// Ragged rows that are a row of the weight's map, a multiple of 16 bytes: where a row has an even number of bytes, and where it has any.
const SORTS: [usize; 2] = [8, 16];
/// Values that need no unit of their own.
const TAIL_VALUES: usize = 64;
/// Rows of the input that change places where tiles are turned.
const TURNED: usize = 8;
/// Bytes of a swizzled row of a copy.
const LINE: usize = 128;

/// What the host needs of `MatMulLayout`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Bytes from one row of a unit to the next in a stage, and of its scales.
    pitch: usize,
    side_pitch: usize,
    /// Whether rows come as swizzled lines of `LINE` bytes, with nothing between them.
    swizzled: bool,
    /// Rows of the output that a copy takes from shared memory.
    piece: usize,
    pub shared_bytes: usize,
}

impl Layout {
    pub(super) fn new(format: super::Format, tile: Tile) -> Layout {
        // Staged tiles have slices of units as stages.
        let slices = match (tile.staged, tile.ragged) {
            (false, _) => 1,
            (true, false) => format.slices,
            (true, true) => format.ragged_slices,
        };
        let slice = format.unit / slices;
        let past = match slice {
            _ if tile.ragged => 16,
            unit if unit.is_multiple_of(16) => 0,
            unit if unit.is_multiple_of(8) => 8,
            unit if unit.is_multiple_of(4) => 12,
            _ => 14,
        };
        let side_pitch = format.side.next_multiple_of(if tile.staged { 16 } else { 32 });
        let swizzled = !tile.ragged && slice.is_multiple_of(LINE);
        let (lines, pitch) = if swizzled { (slice / LINE, LINE) } else { (1, pitch_of(slice + past)) };
        let rows = tile.features();
        let chunk_bytes = tile.rows * 128;
        let w_bytes = (lines * rows * pitch).next_multiple_of(128) + 2 * rows * side_pitch;
        // A tail has room of its own unless a slice's stage is lent to it.
        let tail_bytes = if tile.staged && tile.ragged && slices == 1 { rows * format.tail } else { 0 };
        let room = SHARED_LIMIT - 512 - tail_bytes;
        // A stage of the input is 64 values of k, or a unit.
        let beside = |chunks: usize| (room - chunks * chunk_bytes) / w_bytes;
        let (x_bytes, many) = match tile.rows {
            ..=64 if beside(8) > 2 => (4 * chunk_bytes, beside(8).min(5)),
            ..=64 => (chunk_bytes, beside(6).min(5)),
            _ => (chunk_bytes, 0),
        };
        let (w_stages, x_stages) = if tile.staged {
            (slices + 1, 4)
        } else {
            let w_stages = if many > 2 { many } else { ((room - 6 * x_bytes) / w_bytes).clamp(2, 3) };
            (w_stages, ((room - w_stages * w_bytes) / x_bytes).min(8))
        };
        let stages = x_stages * x_bytes + w_stages * w_bytes;
        let piece = if room - stages >= 2 * tile.groups * 32 * 256 { 32 } else { 16 };
        let piece_bytes = tile.groups * piece * 256;
        let pieces = if tile.staged { ((room - stages) / piece_bytes).min(8) } else { 0 };
        // Two barriers for each stage, tail and piece, and one for the parts of each warpgroup.
        let barriers = 2 * (x_stages + w_stages + usize::from(tail_bytes > 0) + tile.groups * pieces) + tile.groups;
        Layout {
            pitch,
            side_pitch,
            swizzled,
            piece,
            shared_bytes: stages + pieces * piece_bytes + tail_bytes + 8 * barriers,
        }
    }
}
/// `SHARED_LIMIT` in units.cu.
const SHARED_LIMIT: usize = 232_448;

impl Product<'_> {
    /// Whether the tile kernel takes the product. Not so few features that the rounding of halves does not average out.
    pub(super) fn suits_tiles(&self) -> bool {
        self.n >= 64
    }

    /// How many rows that are no multiple of 16 bytes are a row of the map if they can be copied as they lie.
    fn sorts(&self) -> Option<usize> {
        let whole = |sorts: usize| (sorts * self.w_row).is_multiple_of(16) && self.n.is_multiple_of(sorts);
        let apart = self.aligned() || !self.weight.data.offset.is_multiple_of(16) || self.format.side > 0;
        if apart { None } else { SORTS.into_iter().find(|&sorts| whole(sorts)) }
    }

    /// Whether rows of all sixteen sorts start in different places.
    fn anywhere(&self) -> bool {
        self.sorts() == Some(SORTS[1])
    }

    /// The format in the names of kernels: rows that start anywhere are read as they lie.
    fn format_name(&self) -> String {
        let name = self.format.name;
        if self.anywhere() { format!("Unrotated<{name}>") } else { name.into() }
    }

    /// The tile, which is not of an odd number of warpgroups where two share rows of all sorts.
    fn tile(&self) -> Tile {
        let tile = Tile { ragged: self.sorts().is_some(), ..Tile::choose(self.m, self.format) };
        Tile { groups: if self.anywhere() { tile.groups & !1 } else { tile.groups }, ..tile }
    }

    /// Whether the last values of ragged rows are copied apart instead of in a unit of their own, where they fit.
    fn has_tail(&self, tile: Tile) -> bool {
        let (whole, tail) = (self.k / UNIT, self.k % UNIT);
        // Rows start at multiples of this past a multiple of 16 bytes.
        let step = 1 << (16 | self.w_row | (whole * self.format.unit)).trailing_zeros();
        let fits = tail * self.format.unit / UNIT + 16 - step <= self.format.tail;
        tile.staged && tile.ragged && whole >= 4 && (1..=TAIL_VALUES).contains(&tail) && fits
    }

    /// The map of those values of a copy's rows.
    fn tail_map(&self, tile: Tile) -> Bound {
        let sorts = self.sorts().unwrap_or(1);
        let map = TensorMap::rows(2, [sorts * self.w_row, self.n / sorts], [self.format.tail, tile.features() / sorts]);
        Bound::Tensor(map, Box::new(Bound::view(&self.weight.data)))
    }

    /// Where rows start: `TileRows` of tiles.cu.
    fn starts(&self) -> &'static str {
        match (self.format.unit % 4, self.w_row % 4) {
            _ if self.sorts().is_none() => "ON_16",
            _ if self.anywhere() => "ON_BYTES",
            (0, 0) => "ON_WORDS",
            (0, _) => "BY_TURNS",
            _ => "ON_EVEN",
        }
    }

    /// The weight as tensor copies take it: where it lies, and bytes of a row. Other rows that are no multiple of 16 bytes are moved apart first.
    fn aligned_weight(&self, plan: &mut Plan) -> Result<(Bound, usize)> {
        if self.aligned() || self.sorts().is_some() {
            return Ok((Bound::view(&self.weight.data), self.w_row));
        }
        let pitch = self.w_row.next_multiple_of(16);
        let target = plan.scratch(self.n * pitch);
        let bytes = [self.w_row as u64, pitch as u64].map(|bytes| Bound::value(&bytes));
        let bindings = [vec![Bound::view(&self.weight.data), target.clone()], bytes.to_vec()].concat();
        let grid = [u32_of("n", self.n)?, 1, 1];
        plan.launches.push(Launch::new(key("hopper_align<>".into()), bindings, grid, ALIGN_THREADS));
        Ok((target, pitch))
    }

    /// The maps of the weight, its scales and its biases, boxes of a tile's rows. Formats without sides bind the weight, which nobody reads there.
    pub(super) fn weight_maps(
        &self,
        tile: Tile,
        (data, w_row): (Bound, usize),
        matrices: Option<(usize, [usize; 3])>,
    ) -> [Bound; 3] {
        let Layout { pitch, side_pitch, swizzled, .. } = Layout::new(self.format, tile);
        let sides = [None, self.weight.scales.as_ref(), self.weight.biases.as_ref()];
        [0, 1, 2].map(|i| {
            let side = sides[i].filter(|_| self.format.side > 0);
            let (row, box_bytes) = if side.is_none() { (w_row, pitch) } else { (self.side_row, side_pitch) };
            let (together, box_rows) = self
                .sorts()
                .filter(|_| tile.ragged)
                .map_or((1, tile.features()), |sorts| (sorts, tile.features() / sorts));
            let mut map = TensorMap::rows(2, [together * row, self.n / together], [box_bytes, box_rows]);
            map.swizzled = swizzled && i == 0;
            if let Some((count, strides)) = matrices {
                map = map.of_each(count, strides[if self.format.side == 0 { 0 } else { i }]);
            }
            Bound::Tensor(map, Box::new(side.map_or_else(|| data.clone(), Bound::view)))
        })
    }

    /// The map of `rows` rows of prepared input.
    pub(super) fn input_map(&self, rows: usize, tile: Tile, at: Bound) -> Bound {
        let pitch = self.units() * UNIT * 2;
        let map = TensorMap { swizzled: true, ..TensorMap::rows(2, [pitch, rows], [LINE, tile.rows / tile.cluster]) };
        Bound::Tensor(map, Box::new(at))
    }

    /// The map of the output as copies from shared memory take it, or none where its rows do not start at multiples of 16 bytes.
    fn output_map(&self, tile: Tile, output: &View) -> Option<Bound> {
        if !tile.staged || !self.n.is_multiple_of(STORED) || !output.offset.is_multiple_of(16) {
            return None;
        }
        let map = TensorMap {
            element_bytes: 4,
            dims: vec![STORED as u64, self.m as u64, (self.n / STORED) as u64],
            strides: vec![self.n as u64 * 4, STORED as u64 * 4],
            tile: vec![STORED as u32, Layout::new(self.format, tile).piece as u32, 64 / STORED as u32],
            swizzled: true,
        };
        Some(Bound::Tensor(map, Box::new(Bound::view(output))))
    }

    pub(super) fn tile_args(&self, input: &Rows) -> Result<HopperTileArgs> {
        Ok(HopperTileArgs {
            x_row: input.stride,
            m: u32_of("m", self.m)?,
            n: u32_of("n", self.n)?,
            k: u32_of("k", self.k)?,
            units: u32_of("units", self.units())?,
            moved: u32::from(!self.aligned() && self.sorts().is_none()),
            w_row: u32_of("16 weight rows", SORTS[1] * self.w_row)? / SORTS[1] as u32,
            staged: 0,
            tail: 0,
            turned: 0,
            pad: 0,
        })
    }

    pub(super) fn prepared_bytes(&self, rows: usize) -> usize {
        rows * self.units() * UNIT * 2
    }
}

/// Plans a product, or leaves it to the portable kernels.
pub(in crate::backend::cuda) fn matmul(op: &Matmul, planner: &Planner<'_>, args: &ProductArgs) -> Result<Option<Plan>> {
    matmuls(&[op], planner, args)
}

/// Plans products that read the same input, whose portable arguments are `args`, as one launch or with the input prepared once. None where they
/// differ in what that takes, or other kernels run them.
pub(in crate::backend::cuda) fn matmuls(
    ops: &[&Matmul],
    planner: &Planner<'_>,
    args: &ProductArgs,
) -> Result<Option<Plan>> {
    let [op, others @ ..] = ops else { return Ok(None) };
    let Some(rows) = route(op, planner) else { return Ok(None) };
    if others.iter().any(|other| route(other, planner) != Some(rows)) {
        return Ok(None);
    }
    let products: Option<Vec<Product<'_>>> = ops.iter().map(|op| Product::of(op, planner)).collect();
    let Some(products) = products else { return Ok(None) };
    // Weights that are moved take memory, each its own. Ragged rows may want the input in another order.
    let moved = |product: &Product<'_>| !product.aligned() && product.sorts().is_none();
    if !rows && products.iter().any(|product| product.sorts() != products[0].sorts()) {
        return Ok(None);
    }
    if products.iter().any(|product| product.format.name != products[0].format.name)
        || products.len() > MATRICES && products.iter().any(moved)
    {
        return Ok(None);
    }
    let mut plan = Plan::default();
    let input = Rows::of(&op.input, op.m, args, &mut plan)?;
    let outputs: Vec<&View> = ops.iter().map(|op| &op.output).collect();
    if !rows {
        tiles(&products, &input, &outputs, planner, &mut plan)?;
        return Ok(Some(plan));
    }
    let group = matvec::Group { products: &products, outputs: &outputs, norm: None, activation: None };
    for part in Part::all(op.m, planner.options) {
        let launch = match &products[..] {
            [product] => matvec::launch(product, &input, &op.output, part, None)?,
            _ => group.launch(&input, part)?,
        };
        let Some(launch) = launch else { return Ok(None) };
        // The launch before reads the same weights again.
        plan.launches.iter_mut().for_each(|launch| launch.products = 0);
        plan.launches.push(launch);
    }
    Ok(Some(plan))
}

/// The launches of products of many rows: the input is prepared once.
fn tiles(
    products: &[Product<'_>],
    input: &Rows,
    outputs: &[&View],
    planner: &Planner<'_>,
    plan: &mut Plan,
) -> Result<()> {
    let product = &products[0];
    let (m, name, tile) = (product.m, product.format_name(), product.tile());
    let rows = if tile.turned() { m.next_multiple_of(TURNED) } else { m };
    let prepared = plan.scratch(product.prepared_bytes(rows));
    let inverse = plan.scratch(rows * 4);
    let blocks = planner.info.processors as usize / tile.cluster * tile.cluster;
    // A block has two parts of tiles at most.
    let held = plan.scratch(2 * blocks * tile.features() * tile.rows * 4);
    let args = HopperTileArgs { m: u32_of("m", rows)?, turned: u32::from(tile.turned()), ..product.tile_args(input)? };
    let bindings = vec![input.at.clone(), prepared.clone(), inverse.clone(), Bound::value(&args)];
    let prepare =
        Launch::new(key(format!("hopper_prepare<{name}>")), bindings, [u32_of("m", m)?, 1, 1], PREPARE_THREADS);
    plan.launches.push(Launch { shared_bytes: product.units() * UNIT * 2, ..prepare });
    for (product, output) in products.iter().zip(outputs) {
        let shared_bytes = Layout::new(product.format, tile).shared_bytes;
        let data = product.aligned_weight(plan)?;
        let [w, mut scales, biases] = product.weight_maps(tile, data, None);
        let x = product.input_map(rows, tile, prepared.clone());
        let y = product.output_map(tile, output);
        let mut args = HopperTileArgs { staged: u32::from(y.is_some()), ..product.tile_args(input)? };
        if product.has_tail(tile) {
            (args.units, args.tail, scales) = (args.units - 1, 1, product.tail_map(tile));
        }
        // Where nothing is staged nobody reads that map.
        let y = y.unwrap_or_else(|| w.clone());
        let bindings =
            vec![w, x, scales, biases, y, inverse.clone(), Bound::view(output), held.clone(), Bound::value(&args)];
        let function = format!("hopper_mm<{name}, {}, {}, {}>", tile.arguments(), tile.cluster, product.starts());
        let launch = Launch::new(key(function), bindings, [blocks as u32, 1, 1], tile.threads());
        plan.launches.push(Launch { cluster: tile.cluster as u32, shared_bytes, ..launch });
    }
    Ok(())
}

/// Whether the kernel for few rows is asked for, or the one for many; None where neither is.
pub(super) fn route(op: &Matmul, planner: &Planner<'_>) -> Option<bool> {
    let whole = op.batch == 1 && op.output_dtype == DType::F32 && op.output.offset.is_multiple_of(4);
    let product = Product::of(op, planner)?;
    // The tile kernel sums in another order.
    let few = op.m <= MM_ROUTING_THRESHOLD as usize || planner.options.batch_invariant;
    let rows = match planner.forced {
        Some(ROWS) => true,
        Some(TILES) if !planner.options.batch_invariant => false,
        Some(_) => return None,
        None if !few && planner.options.activations == Activations::Exact => return None,
        None => few,
    };
    (whole && if rows { matvec::fits(&product) } else { product.suits_tiles() }).then_some(rows)
}

#[cfg(test)]
mod tests {
    use super::super::{formats, layer, text};
    use super::*;
    use crate::backend::cuda::nvrtc::{self, Program};

    /// Both sides lay shared memory out by themselves: the compiler compares.
    #[test]
    fn the_host_and_the_kernels_agree_on_layouts() {
        if let Err(error) = nvrtc::version() {
            eprintln!("skipped: {error}");
            return;
        }
        let mut text = text();
        for format in formats() {
            for (groups, sets, rows) in
                [(2, 1, 256), (2, 2, 128), (3, 1, 128), (4, 1, 64), (4, 1, 48), (2, 2, 48), (2, 2, 64), (4, 1, 32)]
            {
                for ragged in [false, format.side == 0] {
                    let tile = Tile { groups, sets, rows, cluster: 1, staged: rows == 256, ragged };
                    let Layout { pitch, side_pitch, swizzled, piece, shared_bytes } = Layout::new(format, tile);
                    let name =
                        format!("MatMulLayout<{}, {}, {}, {ragged}>", format.name, tile.arguments(), tile.staged);
                    text += &format!(
                        "static_assert({name}::PITCH == {pitch} && {name}::SIDE_PITCH == {side_pitch} \
                         && {name}::SWIZZLED == {swizzled} && {name}::PIECE == {piece} && {name}::BYTES == {shared_bytes}, \"{name}\");\n"
                    );
                }
            }
        }
        text += &layer::assertions();
        let program = Program { name: "layouts.cu", text: &text, kernel: "hopper_align<>", arch: 90 };
        nvrtc::compile(&program).unwrap();
    }
}
