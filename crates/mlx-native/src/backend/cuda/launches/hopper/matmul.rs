//! Routing between the kernels, and the geometry of the one for many rows.

use super::{HopperTileArgs, Product, ROWS, Rows, TILES, UNIT, key, matvec, pitch_of};
use crate::backend::cuda::driver::TensorMap;
use crate::backend::cuda::launches::args::ProductArgs;
use crate::backend::cuda::launches::{Bound, Launch, Plan, Planner};
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
}

impl Tile {
    /// Wide tiles spend less on dequantization; narrow ones compute fewer rows that nobody wants.
    pub(super) fn choose(m: usize) -> Tile {
        if m <= 64 {
            Tile { groups: 4, sets: 1, rows: 64, cluster: 2 }
        } else if m.div_ceil(128) * 128 * 5 <= m.div_ceil(256) * 256 * 4 {
            Tile { groups: 2, sets: 2, rows: 128, cluster: 1 }
        } else {
            Tile { groups: 2, sets: 1, rows: 256, cluster: 2 }
        }
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

/// As `MatMulLayout` has it: bytes from one row of a unit to the next in a stage, and the shared memory of a block.
pub(super) fn layout(format: super::Format, tile: Tile) -> (usize, usize, usize) {
    let past =
        [(16, 0), (8, 8), (4, 12), (2, 14)].iter().find(|(of, _)| format.unit.is_multiple_of(*of)).map_or(0, |p| p.1);
    let (pitch, side_pitch) = (pitch_of(format.unit + past), format.side.next_multiple_of(16));
    let rows = tile.features();
    let x_bytes = tile.rows * 128;
    let w_bytes = (rows * pitch).next_multiple_of(128) + 2 * rows * side_pitch;
    let room = SHARED_LIMIT - 512;
    let many = ((room - 6 * x_bytes) / w_bytes).min(5);
    let w_stages = if tile.rows <= 64 && many > 2 {
        many
    } else if 3 * w_bytes <= room && (room - 3 * w_bytes) / x_bytes >= 5 {
        3
    } else {
        2
    };
    let x_stages = ((room - w_stages * w_bytes) / x_bytes).min(8);
    (pitch, side_pitch, x_stages * x_bytes + w_stages * w_bytes + 16 * (x_stages + w_stages))
}
/// `SHARED_LIMIT` in matvec.cu.
const SHARED_LIMIT: usize = 232_448;

impl Product<'_> {
    /// Whether the tile kernel takes the product. Not so few features that the rounding of halves does not average out.
    pub(super) fn suits_tiles(&self) -> bool {
        self.n >= 64
    }

    /// The weight as tensor copies take it: where it lies, and bytes of a row. Rows that are no multiple of 16 bytes are moved apart first.
    fn aligned_weight(&self, plan: &mut Plan) -> Result<(Bound, usize)> {
        if self.aligned() {
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
        let (pitch, side_pitch, _) = layout(self.format, tile);
        let sides = [None, self.weight.scales.as_ref(), self.weight.biases.as_ref()];
        [0, 1, 2].map(|i| {
            let side = sides[i].filter(|_| self.format.side > 0);
            let (row, box_bytes) = if side.is_none() { (w_row, pitch) } else { (self.side_row, side_pitch) };
            let mut map = TensorMap {
                element_bytes: 2,
                dims: vec![row as u64 / 2, self.n as u64],
                strides: vec![row as u64],
                tile: vec![box_bytes as u32 / 2, tile.features() as u32],
                swizzled: false,
            };
            if let Some((count, strides)) = matrices {
                map.dims.push(count as u64);
                map.strides.push(strides[if self.format.side == 0 { 0 } else { i }] as u64);
                map.tile.push(1);
            }
            Bound::Tensor(map, Box::new(side.map_or_else(|| data.clone(), Bound::view)))
        })
    }

    /// The map of `rows` rows of prepared input.
    pub(super) fn input_map(&self, rows: usize, tile: Tile, at: Bound) -> Bound {
        let pitch = self.units() * UNIT * 2;
        let map = TensorMap {
            element_bytes: 2,
            dims: vec![pitch as u64 / 2, rows as u64],
            strides: vec![pitch as u64],
            tile: vec![64, (tile.rows / tile.cluster) as u32],
            swizzled: true,
        };
        Bound::Tensor(map, Box::new(at))
    }

    pub(super) fn tile_args(&self, input: &Rows) -> Result<HopperTileArgs> {
        Ok(HopperTileArgs {
            x_row: input.stride,
            m: u32_of("m", self.m)?,
            n: u32_of("n", self.n)?,
            k: u32_of("k", self.k)?,
            units: u32_of("units", self.units())?,
            moved: u32::from(!self.aligned()),
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
    if products.iter().any(|product| product.format.name != products[0].format.name) {
        return Ok(None);
    }
    let mut plan = Plan::default();
    let input = Rows::of(&op.input, op.m, args, &mut plan)?;
    let outputs: Vec<&View> = ops.iter().map(|op| &op.output).collect();
    if !rows {
        tiles(&products, &input, &outputs, planner, &mut plan)?;
        return Ok(Some(plan));
    }
    let exact = op.m <= matvec::EXACT_ROWS || planner.options.activations == Activations::Exact;
    let most = if exact { matvec::EXACT_ROWS } else { matvec::ROWS };
    let group = matvec::Group { products: &products, outputs: &outputs, norm: None, activation: None };
    for first in (0..op.m).step_by(most) {
        let part = matvec::Part { first, m: most.min(op.m - first), exact };
        let Some(input) = matvec::prepared(&products[0], &input, part, &mut plan)? else { return Ok(None) };
        let launch = match &products[..] {
            [product] => matvec::launch(product, &input, &op.output, part, None)?,
            _ => group.launch(&input, part)?,
        };
        let Some(launch) = launch else { return Ok(None) };
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
    let (m, name) = (product.m, product.format.name);
    let tile = Tile::choose(m);
    let (_, _, shared_bytes) = layout(product.format, tile);
    let prepared = plan.scratch(product.prepared_bytes(m));
    let inverse = plan.scratch(m * 4);
    let blocks = planner.info.processors as usize / tile.cluster * tile.cluster;
    let held = plan.scratch(blocks * tile.features() * tile.rows * 4);
    let args = product.tile_args(input)?;
    let bindings = vec![input.at.clone(), prepared.clone(), inverse.clone(), Bound::value(&args)];
    let prepare = Launch::new(key(format!("hopper_prepare<{name}>")), bindings, [args.m, 1, 1], PREPARE_THREADS);
    plan.launches.push(Launch { shared_bytes: product.units() * UNIT * 2, ..prepare });
    for (product, output) in products.iter().zip(outputs) {
        let data = product.aligned_weight(plan)?;
        let [w, scales, biases] = product.weight_maps(tile, data, None);
        let x = product.input_map(m, tile, prepared.clone());
        let args = Bound::value(&product.tile_args(input)?);
        let bindings = vec![w, x, scales, biases, inverse.clone(), Bound::view(output), held.clone(), args];
        let function = format!("hopper_mm<{name}, {}, {}>", tile.arguments(), tile.cluster);
        let launch = Launch::new(key(function), bindings, [blocks as u32, 1, 1], tile.threads());
        plan.launches.push(Launch { cluster: tile.cluster as u32, shared_bytes, ..launch });
    }
    Ok(())
}

/// Whether the kernel for few rows is asked for, or the one for many; None where neither is.
pub(super) fn route(op: &Matmul, planner: &Planner<'_>) -> Option<bool> {
    let whole = op.batch == 1 && op.output_dtype == DType::F32 && op.output.offset.is_multiple_of(4);
    let product = Product::of(op, planner)?;
    let few = op.m <= MM_ROUTING_THRESHOLD as usize;
    let rows = match planner.forced {
        Some(ROWS) => true,
        Some(TILES) => false,
        Some(_) => return None,
        None if !few && planner.options.activations == Activations::Exact => return None,
        None => few,
    };
    (whole && if rows { matvec::fits(&product) } else { product.suits_tiles() }).then_some(rows)
}
