//! Expert-routed products: which kernel, and tiles of the tokens of one expert each.

use super::matmul::{Layout, Tile};
use super::{HopperTileArgs, Product, ROUTED_ROWS, ROUTED_TILES, Rows, key, route};
use crate::backend::cuda::launches::args::ProductArgs;
use crate::backend::cuda::launches::matmul::{Experts, map_experts};
use crate::backend::cuda::launches::{Bound, Launch, Plan, Planner};
use crate::backend::gpu::{Fault, u32_of};
use crate::device::Activations;
use crate::ops::MatmulId;
use crate::{MM_ID_ROUTING_THRESHOLD, Result};

/// Plans a routed product, or leaves it to the portable kernels. `args` are the portable kernels' arguments, which those that make the lists take.
pub(in crate::backend::cuda) fn matmul_id(
    op: &MatmulId,
    planner: &Planner<'_>,
    args: &ProductArgs,
) -> Result<Option<Plan>> {
    matmul_ids(&[op], planner, args)
}

/// Plans routed products of the same rows and experts: lists are made and the input is prepared once. None where they differ in what that takes, or other kernels run them.
pub(in crate::backend::cuda) fn matmul_ids(
    ops: &[&MatmulId],
    planner: &Planner<'_>,
    args: &ProductArgs,
) -> Result<Option<Plan>> {
    let [op, others @ ..] = ops else { return Ok(None) };
    let slots = op.n_tokens * op.top_k;
    // The kernel of tiles sums in another order.
    let few = op.n_tokens <= MM_ID_ROUTING_THRESHOLD as usize || planner.options.batch_invariant;
    let by_rows = match planner.forced {
        Some(ROUTED_ROWS) => true,
        Some(ROUTED_TILES) if !planner.options.batch_invariant => false,
        Some(_) => return Ok(None),
        None if !few && planner.options.activations == Activations::Exact => return Ok(None),
        None => few,
    };
    let mut products = Vec::with_capacity(ops.len());
    for op in ops {
        let dims = [op.n_tokens, op.n, op.k];
        let Some(product) = Product::new(&op.weight, dims, planner.info) else { return Ok(None) };
        products.push(product);
    }
    let product = products[0];
    if by_rows {
        return if others.is_empty() { route::rows(op, &product, planner, args) } else { Ok(None) };
    }
    let suits = |(product, op): (&Product<'_>, &&MatmulId)| {
        let strides_aligned = op.weight.strides.iter().all(|stride| stride.is_multiple_of(16));
        product.format.name == products[0].format.name && product.suits_tiles() && product.aligned() && strides_aligned
    };
    if !products.iter().zip(ops).all(suits) {
        return Ok(None);
    }
    // About so many slots an expert has, and few experts more than that by two and a half times its square root.
    let each = slots.div_ceil(op.n_experts.min(slots));
    let rows = match each {
        ..=20 => 32,
        21..=33 => 48,
        34..=96 => 64,
        _ => 128,
    };
    let tile = Tile { groups: 2, sets: 2, rows, cluster: 1, staged: false, ragged: false };
    let shared_bytes = Layout::new(product.format, tile).shared_bytes;
    let fault = Fault { ids: op.ids.clone(), limit: Some(op.n_experts), words: ["matmul_id", "slot", "expert"] };
    let mut plan = Plan { fault: Some(fault), ..Plan::default() };
    let input = Rows::of(&op.input, op.n_tokens, args, &mut plan)?;
    let Experts { n_tiles, tiles, lists, places } = map_experts(op, others, args, tile.rows, &mut plan)?;
    let args = HopperTileArgs { m: u32_of("slots", slots)?, ..product.tile_args(&input)? };
    let prepared = plan.scratch(product.prepared_bytes(slots));
    let inverse = plan.scratch(slots * 4);
    let blocks = planner.info.processors as usize;
    let held = plan.scratch(blocks * tile.features() * tile.rows * 4);
    let top_k = u32_of("top_k", op.top_k)?;
    let bindings =
        vec![input.at.clone(), prepared.clone(), inverse.clone(), Bound::value(&args), places, Bound::value(&top_k)];
    let function = format!("hopper_prepare_id<{}>", product.format.name);
    let prepare = Launch::new(key(function), bindings, [u32_of("tokens", op.n_tokens)?, 1, 1], 512);
    plan.launches.push(Launch { shared_bytes: product.prepared_bytes(1), ..prepare });
    for (product, op) in products.iter().zip(ops) {
        let data = (Bound::view(&op.weight.data), product.w_row);
        let [w, scales, biases] = product.weight_maps(tile, data, Some((op.n_experts, op.weight.strides)));
        let x = product.input_map(slots, tile, prepared.clone());
        let args = HopperTileArgs { m: args.m, ..product.tile_args(&input)? };
        let of_tiles = [Bound::value(&args), tiles.clone(), lists.clone(), Bound::value(&n_tiles)];
        let of_sums = [inverse.clone(), Bound::view(&op.output), held.clone()];
        let bindings = [vec![w, x, scales, biases], of_sums.to_vec(), of_tiles.to_vec()].concat();
        let function = format!("hopper_mm_id<{}, {}>", product.format.name, tile.arguments());
        let launch = Launch::new(key(function), bindings, [blocks as u32, 1, 1], tile.threads());
        plan.launches.push(Launch { shared_bytes, ..launch });
    }
    Ok(Some(plan))
}
