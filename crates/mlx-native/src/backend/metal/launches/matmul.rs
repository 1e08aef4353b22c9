//! Products with weights and rows of weights: which kernel, how many lanes to a row, which grid.

use super::args::MatmulArgs;
use super::route::{Dense, DenseShape, Routed, Routing};
use super::{Access, Bound, Fault, Launch, Library, PipelineKey, Plan, u32_of};
use crate::backend::metal::source::PASSES;
use crate::format::WeightFormat;
use crate::ops::{Activation, Embedding, Input, InputLayout, Matmul, MatmulId, WeightView};
use crate::{DType, Result};

/// Simdgroups of a threadgroup that multiplies with single rows.
const SIMDGROUPS: u32 = 2;
/// Threads of a threadgroup that copies rows, each with sixteen values.
const EMBEDDING_THREADS: usize = 64;

/// Lanes that share a weight row of k values: as many as have a chunk of sixteen values each, 4 to 32. It depends on k alone, so that the order of
/// summation does not depend on m.
fn lanes(k: usize) -> u32 {
    match k.div_ceil(16) {
        0..8 => 4,
        8..16 => 8,
        16..32 => 16,
        _ => 32,
    }
}

/// Columns and rows of a tile, and its threads.
const TILE: [u32; 2] = [64, 32];
const TILE_THREADS: u32 = 128;
/// The same for the large tile, and its threadgroup memory: weights 64 of k deep in f16 and their scales; the result goes out through it.
const LARGE_TILE: [u32; 2] = [64, 128];
const LARGE_TILE_THREADS: u32 = 256;
const LARGE_TILE_BYTES: usize = 64 * 64 * 2 + 64 * 4;

/// What a function constant says of an element type.
fn type_code(dtype: DType) -> u32 {
    match dtype {
        DType::F16 => 1,
        DType::BF16 => 2,
        _ => 0,
    }
}

/// A kernel of one of the weight's libraries for these element types.
fn pipeline(library: Library, function: &str, x: DType, y: DType) -> PipelineKey {
    PipelineKey { library, function: function.into(), constants: vec![(0, type_code(x)), (1, type_code(y))] }
}

/// The library of the weight that has the kernel.
fn library(weight: &WeightView, is_tensor: bool) -> Library {
    if is_tensor { Library::Tensor(weight.format.into()) } else { Library::Weight(weight.format.into()) }
}

/// The weight's three buffers; a format without scales or biases binds its data, which nobody reads there.
fn weight_bindings(weight: &WeightView) -> Vec<Bound> {
    let side = |view: &Option<_>| Bound::read(view.as_ref().unwrap_or(&weight.data));
    vec![Bound::read(&weight.data), side(&weight.scales), side(&weight.biases)]
}

/// Arguments that the weight and the dimensions determine. `row` is the length of a stored row.
fn args(weight: &WeightView, [m, n, k]: [usize; 3], row: usize) -> Result<MatmulArgs> {
    let (group_size, groups) = match weight.format {
        WeightFormat::Ggml(_) => (1, 0),
        WeightFormat::Affine(affine) => (affine.group_size, affine.groups(row)?),
        WeightFormat::Fp(mode) => (mode.group_size(), mode.groups(row)),
    };
    let [w_matrix, s_matrix, b_matrix] = weight.strides.map(|stride| stride as u64);
    Ok(MatmulArgs {
        x_row: 0,
        x_batch: 0,
        w_row: weight.format.row_bytes(row)? as u64,
        w_matrix,
        s_matrix,
        b_matrix,
        m: u32_of("m", m)?,
        n: u32_of("n", n)?,
        k: u32_of("k", k)?,
        head_dim: 0,
        group_size,
        groups: u32_of("groups", groups)?,
        batch_ratio: 1,
        lanes: lanes(k),
        top_k: 1,
        n_experts: 1,
        scale: 1.0,
        pad: 0,
    })
}

fn with_input(args: MatmulArgs, input: &Input) -> Result<MatmulArgs> {
    Ok(match input.layout {
        InputLayout::Rows { row_bytes, batch_bytes } => {
            MatmulArgs { x_row: row_bytes as u64, x_batch: batch_bytes as u64, ..args }
        }
        InputLayout::Heads { head_dim } => MatmulArgs { head_dim: u32_of("head_dim", head_dim)?, ..args },
    })
}

/// Threadgroups for n columns when a team has so many at once.
fn column_groups(n: u32, lanes: u32, columns: u32) -> u32 {
    n.div_ceil(SIMDGROUPS * (32 / lanes) * columns)
}

/// output[b][i][j]
pub(super) fn matmul(op: &Matmul, kernel: Option<&str>, routing: &Routing) -> Result<Plan> {
    let stored_row = if op.weight.transposed { op.n } else { op.k };
    let args = with_input(args(&op.weight, [op.m, op.n, op.k], stored_row)?, &op.input)?;
    let args = MatmulArgs { batch_ratio: u32_of("batch", op.batch / op.weight_batch)?, ..args };
    let batch = u32_of("batch", op.batch)?;
    let shape = DenseShape::of(op);
    let kernel = match kernel {
        Some(name) => Dense::named(name, &shape, routing)?,
        None => Dense::choose(&shape, routing),
    };
    let (grid, threads, threadgroup_bytes) = match kernel {
        Dense::Transposed => ([args.n.div_ceil(16), args.m, batch], 32, 0),
        Dense::Tile(operands) => {
            ([args.n.div_ceil(TILE[0]), args.m.div_ceil(TILE[1]), batch], TILE_THREADS, operands.tile_bytes())
        }
        Dense::Large { .. } => {
            let grid = [args.n.div_ceil(LARGE_TILE[0]), args.m.div_ceil(LARGE_TILE[1]), batch];
            (grid, LARGE_TILE_THREADS, LARGE_TILE_BYTES)
        }
        Dense::Qmv { .. } => ([args.n / 8, args.m, 1], SIMDGROUPS * 32, 0),
        Dense::Rows { rows, columns } => {
            ([column_groups(args.n, args.lanes, columns), args.m.div_ceil(rows), batch], SIMDGROUPS * 32, 0)
        }
    };
    let mut plan = Plan { launches: Vec::new(), scratch: Vec::new(), fault: None };
    let mut product = (Bound::read(&op.input.view), op.input.dtype, args);
    if let (Dense::Large { .. }, InputLayout::Heads { head_dim }) = (kernel, op.input.layout) {
        // The large tile reads floats: the same ones, in the same order, as if the caller had permuted.
        plan.launches.push(widen_heads(op, head_dim)?);
        plan.scratch.push(op.m * op.k * 4);
        let rows = MatmulArgs { x_row: op.k as u64 * 4, head_dim: 0, ..args };
        product = (Bound::Scratch(0, Access::Read), DType::F32, rows);
    }
    let (input, dtype, args) = product;
    let mut bindings = weight_bindings(&op.weight);
    bindings.extend([input, Bound::overwrite(&op.output), Bound::args(&args)]);
    plan.launches.push(Launch {
        pipeline: pipeline(library(&op.weight, kernel.is_tensor()), kernel.name(), dtype, op.output_dtype),
        bindings,
        grid,
        group: [threads, 1, 1],
        threadgroup_bytes,
    });
    Ok(plan)
}

/// gate = activation(x · gate weight) ∘ (x · up weight), up = x · up weight, as one launch, for three operations that
/// belong together; none where other kernels than those for rows run them.
pub(super) fn gated(gate: &Matmul, up: &Matmul, activation: Activation, routing: &Routing) -> Option<Result<Launch>> {
    let shape = DenseShape::of(gate);
    let Dense::Rows { rows, columns } = Dense::choose(&shape, routing) else { return None };
    let launch = || {
        let args = with_input(args(&gate.weight, [gate.m, gate.n, gate.k], gate.k)?, &gate.input)?;
        let mut bindings = weight_bindings(&gate.weight);
        bindings.extend([Bound::read(&gate.input.view), Bound::overwrite(&gate.output), Bound::args(&args)]);
        bindings.extend(weight_bindings(&up.weight));
        bindings.push(Bound::overwrite(&up.output));
        let code = match activation {
            Activation::Silu => 0,
            Activation::GeluTanh => 1,
        };
        let library = Library::Gated(gate.weight.format.into());
        let mut pipeline = pipeline(library, &format!("mv_gated_r{rows}"), gate.input.dtype, DType::F32);
        pipeline.constants.push((2, code));
        Ok(Launch {
            pipeline,
            bindings,
            grid: [column_groups(args.n, args.lanes, columns), args.m.div_ceil(rows), 1],
            group: [SIMDGROUPS * 32, 1, 1],
            threadgroup_bytes: 0,
        })
    };
    Some(launch())
}

/// Scratch 0 = the input's heads, bf16, as rows of f32.
fn widen_heads(op: &Matmul, head_dim: usize) -> Result<Launch> {
    let dims = [u32_of("m", op.m)?, u32_of("k", op.k)?, u32_of("head_dim", head_dim)?, 0];
    Ok(Launch {
        pipeline: PipelineKey::new(Library::Elementwise, "widen_heads"),
        bindings: vec![Bound::read(&op.input.view), Bound::Scratch(0, Access::Overwrite), Bound::args(&dims)],
        grid: [u32_of("k", op.k.div_ceil(256))?, dims[0], 1],
        group: [256, 1, 1],
        threadgroup_bytes: 0,
    })
}

/// output[slot] = weight[ids[slot]] · input[slot ÷ top_k]
pub(super) fn matmul_id(op: &MatmulId, kernel: Option<&str>, routing: &Routing) -> Result<Plan> {
    let args = with_input(args(&op.weight, [op.n_tokens, op.n, op.k], op.k)?, &op.input)?;
    let args = MatmulArgs { top_k: u32_of("top_k", op.top_k)?, n_experts: u32_of("n_experts", op.n_experts)?, ..args };
    let kernel = match kernel {
        Some(name) => Routed::named(name, op, routing)?,
        None => Routed::choose(op.n_tokens, routing),
    };
    let library = library(&op.weight, kernel.is_tensor());
    let pipeline = pipeline(library, kernel.name(), op.input.dtype, DType::F32);
    let slots = op.n_tokens * op.top_k;
    let mut bindings = weight_bindings(&op.weight);
    bindings.push(Bound::read(&op.input.view));
    let fault = Some(Fault { ids: op.ids.clone(), limit: Some(op.n_experts), words: ["matmul_id", "slot", "expert"] });
    let Routed::Tile(operands) = kernel else {
        bindings.extend([Bound::overwrite(&op.output), Bound::args(&args), Bound::read(&op.ids), Bound::Fault]);
        let launch = Launch {
            pipeline,
            bindings,
            grid: [column_groups(args.n, args.lanes, PASSES[0].1), u32_of("slots", slots)?, 1],
            group: [SIMDGROUPS * 32, 1, 1],
            threadgroup_bytes: 0,
        };
        return Ok(Plan { launches: vec![launch], scratch: Vec::new(), fault });
    };
    let output = || Bound::View(op.output.clone(), Access::ReadWrite);
    // The caller's lists, or the operation's own: a count for each expert, then the slots.
    let lists = |access: Access| match &op.scratch {
        Some(views) => views.clone().map(|view| Bound::View(view, access)),
        None => [Bound::Scratch(0, access), Bound::Scratch(1, access)],
    };
    let [counts, slot_lists] = lists(Access::ReadWrite);
    let map = Launch {
        pipeline: PipelineKey::new(Library::MapExperts, "map_experts"),
        bindings: vec![Bound::read(&op.ids), counts, slot_lists, output(), Bound::args(&args), Bound::Fault],
        grid: [1, 1, 1],
        group: [1024, 1, 1],
        threadgroup_bytes: 0,
    };
    bindings.extend([output(), Bound::args(&args)]);
    bindings.extend(lists(Access::Read));
    let tiles = u32_of("slots", slots / TILE[1] as usize + op.n_experts)?;
    let multiply = Launch {
        pipeline,
        bindings,
        grid: [args.n.div_ceil(TILE[0]), tiles, 1],
        group: [TILE_THREADS, 1, 1],
        threadgroup_bytes: operands.tile_bytes(),
    };
    let scratch = if op.scratch.is_some() { Vec::new() } else { vec![op.n_experts * 4, slots * 4] };
    Ok(Plan { launches: vec![map, multiply], scratch, fault })
}

/// output[t] = scale · weight[ids[t]]
pub(super) fn embedding(op: &Embedding) -> Result<Plan> {
    let args = MatmulArgs { scale: op.params.scale, ..args(&op.weight, [op.params.n_tokens, op.n, op.k], op.k)? };
    let mut bindings = weight_bindings(&op.weight);
    bindings.extend([Bound::read(&op.ids), Bound::overwrite(&op.output), Bound::args(&args), Bound::Fault]);
    let launch = Launch {
        pipeline: pipeline(Library::Weight(op.weight.format.into()), "embedding", DType::F32, DType::F32),
        bindings,
        grid: [u32_of("k", op.k.div_ceil(16).div_ceil(EMBEDDING_THREADS))?, args.m, 1],
        group: [EMBEDDING_THREADS as u32, 1, 1],
        threadgroup_bytes: 0,
    };
    let fault = Some(Fault { ids: op.ids.clone(), limit: Some(op.n), words: ["embedding", "token", "id"] });
    Ok(Plan { launches: vec![launch], scratch: Vec::new(), fault })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::metal::launches::{WeightText, plan};
    use crate::device::{Activations, DeviceOptions};
    use crate::{GgmlType, MlxDevice, MlxError, Weight};

    /// The launch of a product with a Q8_0 weight.
    fn product([m, n, k]: [usize; 3], kernel: Option<&str>, routing: &Routing) -> Result<Launch> {
        let device = MlxDevice::reference().unwrap();
        let buffer = |bytes, dtype| device.alloc_buffer(bytes, dtype, vec![]).unwrap();
        let weight = Weight::ggml(GgmlType::Q8_0, n, k, buffer(n * k / 32 * 34, DType::U8)).unwrap();
        let (x, mut y) = (buffer(m * k * 4, DType::F32), buffer(m * n * 4, DType::F32));
        let mut encoder = device.command_encoder().unwrap();
        encoder.matmul(&x, &weight, &mut y).unwrap();
        let op = encoder.ops().next().unwrap().clone();
        Ok(plan(&op, kernel, routing)?.launches.remove(0))
    }

    fn routing(options: DeviceOptions, tensor_ops: bool) -> Routing {
        Routing { options, tensor_ops }
    }

    #[test]
    fn rows_options_and_the_device_choose_the_kernel() {
        let plain = DeviceOptions::default();
        let invariant = routing(DeviceOptions { batch_invariant: true, ..plain }, true);
        let exact = routing(DeviceOptions { activations: Activations::Exact, ..plain }, true);
        let name = |m, routing: &Routing| product([m, 65, 64], None, routing).unwrap().pipeline.function;
        for (m, expected, alone, float) in [
            (1, "mv_r1", "mv_r1", "mv_r1"),
            (3, "mv_r4", "mv_r4", "mv_r4"),
            (8, "mv_r8", "mv_r8", "mv_r8"),
            (9, "mm", "mv_r8", "mm_f32"),
        ] {
            assert_eq!(name(m, &routing(plain, false)), expected);
            assert_eq!(name(m, &invariant), alone);
            assert_eq!(name(m, &exact), float);
        }
        assert_eq!(name(9, &routing(plain, true)), "mm_tensor");
    }

    #[test]
    fn a_kernel_is_forced_by_name_where_it_suits() {
        let without = routing(DeviceOptions::default(), false);
        for name in ["mv_r1", "mv_r4", "mv_r8", "mm", "mm_f32"] {
            assert_eq!(product([33, 65, 64], Some(name), &without).unwrap().pipeline.function, name);
        }
        for name in ["mm_tensor", "vm", "nonsense"] {
            let error = product([33, 65, 64], Some(name), &without).unwrap_err();
            assert!(matches!(&error, MlxError::KernelNotFound(text) if text.contains("`mm`")), "{error}");
        }
        let with = routing(DeviceOptions::default(), true);
        let launch = product([3, 65, 64], Some("mm_tensor"), &with).unwrap();
        assert_eq!(launch.pipeline.library, Library::Tensor(WeightText::Ggml(GgmlType::Q8_0)));
    }

    #[test]
    fn grids_cover_partial_tiles() {
        let plain = routing(DeviceOptions::default(), false);
        let launch = |shape| product(shape, None, &plain).unwrap();
        let tile = launch([33, 65, 64]);
        assert_eq!((tile.grid, tile.group, tile.threadgroup_bytes), ([2, 2, 1], [128, 1, 1], 8192));
        // Four chunks of sixteen, so four lanes a row, eight teams of four columns, two simdgroups.
        assert_eq!(launch([1, 65, 64]).grid, [2, 1, 1]);
        assert_eq!(launch([1, 65, 4096]).grid, [9, 1, 1]);
    }

    #[test]
    fn arguments_are_the_bytes_that_the_kernel_reads() {
        let launch = product([2, 3, 96], None, &routing(DeviceOptions::default(), false)).unwrap();
        let Bound::Bytes(bytes) = &launch.bindings[5] else { panic!("{:?}", launch.bindings) };
        let args: MatmulArgs = bytemuck::pod_read_unaligned(bytes);
        assert_eq!((args.m, args.n, args.k, args.x_row, args.w_row, args.w_matrix), (2, 3, 96, 384, 102, 306));
    }
}
