//! A layer's products from attention's output to the next layer's queries, keys and values as one launch, whose blocks wait for each other in between.

use super::matmul::route;
use super::matvec::{BOX_BYTES, THREADS, WARPS, boxed_rows};
use super::{Format, MATRICES, Product, key, pitch_of};
use crate::Result;
use crate::backend::Recorded;
use crate::backend::cuda::launches::{Bound, Launch, Plan, Planner};
use crate::backend::gpu::args::{ArgType, args, render_struct};
use crate::backend::gpu::fuse::{Together, adds, norms, same_input};
use crate::backend::gpu::u32_of;
use crate::buffer::View;
use crate::ops::{Activation, GatedActivation, InputLayout, Matmul, Op, RmsNorm};
use crate::{DType, MlxError};

/// Products that follow one another, `PHASES` in layer.cu.
const PHASES: usize = 4;
/// Rows of a group.
const HEIGHT: usize = 16;
/// Slots at most, and stages at least.
const MOST_SLOTS: usize = 24;
const LEAST_STAGES: usize = 3;
/// What `LayerLayout` has before the sums of x: barriers, shares of a norm, sums of warps, room to put values into a format's order.
const FIXED_BYTES: usize = 512 + 3 * WARPS * 128 + WARPS * 1024;
/// Slices of a row at most.
const MOST_SLICES: usize = 8;

args! {
    /// One of the products, and how it is cut.
    HopperProductArgs {
        /// Rows of its matrices.
        n: u32,
        n1: u32,
        n2: u32,
        k: u32,
        /// Groups of rows, and stages of each: one for each matrix of a gated pair.
        groups: u32,
        turns: u32,
        /// Units of a stage and of a slot, eight bytes from one slot's units to the next one's, bytes from one row of a slot to the next.
        span: u32,
        piece: u32,
        step: u32,
        pitch: u32,
        /// How far the first group is from the first block.
        turned: u32,
        /// Slices of a row, and of a row of the product before.
        slices: u32,
        parts: u32,
        /// `Becomes` in layer.cu.
        becomes: u32,
        /// 0 SiLU, 1 GELU by tanh.
        activation: u32,
        /// Which of the kernel's formats the weights have.
        format: u32,
        eps: f32,
        pad: u32,
    }
}

args! {
    /// The ring of slots.
    HopperLayerArgs {
        slot_bytes: u32,
        slots: u32,
    }
}

/// The structs that layer.cu needs.
pub(super) fn text() -> String {
    HopperProductArgs::render() + &HopperLayerArgs::render()
}

/// What becomes of the sums of a product, `Becomes` in layer.cu.
#[derive(Clone, Copy, PartialEq)]
enum Becomes {
    Outputs,
    Residual,
    Gated,
    Slices,
}

/// How a product's rows are cut.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cut {
    slices: usize,
    span: usize,
    piece: usize,
    pitch: usize,
}

impl Cut {
    /// In `slices` slices and `pieces` slots a stage; none where that leaves too many warps without a unit, or does not fit.
    fn new(product: &Product<'_>, slices: usize, pieces: usize) -> Option<Cut> {
        let unit = product.format.unit;
        // Slots begin at multiples of 16 bytes.
        let whole = (0..5).map(|i| 1 << i).find(|count| (count * unit).is_multiple_of(16))?;
        let units = product.units();
        let piece = units.div_ceil(slices * pieces).next_multiple_of(whole);
        let pitch = pitch_of(piece * unit);
        let fits = piece <= WARPS / pieces && pitch <= BOX_BYTES && piece * pieces * (slices - 1) < units;
        let busy = units * 3 >= slices * WARPS * 2;
        (fits && busy).then_some(Cut { slices, span: piece * pieces, piece, pitch })
    }

    fn slot_bytes(&self) -> usize {
        HEIGHT * self.pitch
    }
}

/// The operations of a layer, in their order.
pub(in crate::backend::cuda) struct Layer<'a> {
    output: &'a Matmul,
    feed_norm: &'a RmsNorm,
    gate: &'a Matmul,
    up: &'a Matmul,
    activation: &'a GatedActivation,
    down: &'a Matmul,
    next_norm: &'a RmsNorm,
    /// One to three products of one input and format.
    next: Vec<&'a Matmul>,
}

impl<'a> Layer<'a> {
    /// The layer that a list begins with, and how many operations it has.
    pub(in crate::backend::cuda) fn first(ops: &'a [Recorded]) -> Option<(Layer<'a>, usize)> {
        let [output, feed_norm, gated @ ..] = ops else { return None };
        let Some(Together::Gated(gate, up, activation)) = Together::first(gated) else { return None };
        let [down, next_norm, next @ ..] = gated.get(3..)? else { return None };
        let (Op::Matmul(output), Op::RmsNorm(feed_norm)) = (&output.op, &feed_norm.op) else { return None };
        let (Op::Matmul(down), Op::RmsNorm(next_norm)) = (&down.op, &next_norm.op) else { return None };
        let mut next = same_input(next, MATRICES);
        let alike = |op: &&&Matmul| norms(next_norm, op) && op.weight.format == next[0].weight.format;
        let count = next.iter().take_while(alike).count();
        next.truncate(count);
        let layer = Layer { output, feed_norm, gate, up, activation, down, next_norm, next };
        let count = 7 + count;
        let by_choice = ops[..count].iter().all(|recorded| recorded.kernel.is_none());
        (by_choice && layer.belongs_together()).then_some((layer, count))
    }

    /// Whether each operation reads what the one before wrote, and one launch may do them all: blocks copy weights before anything else, and read a
    /// product's input until the product after the next one begins.
    fn belongs_together(&self) -> bool {
        let (Some(middle), Some(end)) = (&self.feed_norm.sum, &self.next_norm.sum) else { return false };
        let down = &self.down.input;
        let follows = adds(self.output, self.feed_norm)
            && norms(self.feed_norm, self.gate)
            && norms(self.feed_norm, self.up)
            && adds(self.down, self.next_norm)
            && !self.next.is_empty()
            && self.next_norm.input.same_start(middle)
            && down.view.same_start(&self.activation.output)
            && [&self.output.input, down]
                .iter()
                .all(|input| input.dtype == DType::F32 && matches!(input.layout, InputLayout::Rows { .. }))
            && (self.down.k, self.feed_norm.params.dim) == (self.gate.n, self.next_norm.params.dim);
        // Each is itself, or a later content of the same memory.
        let stream = [&self.feed_norm.input, middle, end];
        let delta = [&self.output.output, &self.down.output];
        let normed = [&self.feed_norm.output, &self.next_norm.output];
        let others = [&self.output.input.view, &self.gate.output, &self.up.output];
        let read = [&self.feed_norm.weight, &self.next_norm.weight];
        let mut roles: Vec<Vec<&View>> = vec![stream.to_vec(), delta.to_vec(), normed.to_vec()];
        roles.extend(others.map(|view| vec![view]));
        roles.extend(self.next.iter().map(|op| vec![&op.output]));
        let written = roles.len();
        roles.extend(read.map(|view| vec![view]));
        roles.extend(self.products().flat_map(|op| op.weight.views()).map(|view| vec![view]));
        let clean = |role: &[&View]| {
            role.iter().all(|a| role.iter().all(|b| !a.overlaps(b) || (a.same_start(b) && a.len == b.len)))
        };
        let apart = |a: &[&View], b: &[&View]| a.iter().all(|a| b.iter().all(|b| !a.overlaps(b)));
        follows
            && roles[..written].iter().all(|role| clean(role))
            && (0..written).all(|i| roles[i + 1..].iter().all(|role| apart(&roles[i], role)))
    }

    fn products(&self) -> impl Iterator<Item = &'a Matmul> {
        [self.output, self.gate, self.up, self.down].into_iter().chain(self.next.iter().copied())
    }

    /// One launch; none where the kernel does not take it.
    pub(in crate::backend::cuda) fn plan(&self, planner: &Planner<'_>) -> Result<Option<Plan>> {
        let by_rows = |op: &Matmul| op.m == 1 && op.k.is_multiple_of(256) && route(op, planner) == Some(true);
        let aligned = |view: &View| view.offset.is_multiple_of(16);
        let read = [
            &self.output.input.view,
            &self.next_norm.input,
            &self.gate.output,
            &self.feed_norm.weight,
            &self.next_norm.weight,
        ];
        if !planner.alone || !self.products().all(by_rows) || !read.iter().all(|view| aligned(view)) {
            return Ok(None);
        }
        let Some(products) = self.products().map(|op| Product::of(op, planner)).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let [output, gate, up, down, next @ ..] = &products[..] else { return Ok(None) };
        let matrices: [&[Product<'_>]; PHASES] =
            [std::slice::from_ref(output), &[*gate, *up], std::slice::from_ref(down), next];
        if !products.iter().all(|product| product.aligned() && product.format.side == 0) {
            return Ok(None);
        }
        let cut = |pieces: usize| {
            let one = |product: &Product<'_>| Cut::new(product, 1, pieces);
            let down = (1..=MOST_SLICES).find_map(|slices| Cut::new(down, slices, pieces))?;
            Some([one(output)?, one(gate)?, down, one(&next[0])?])
        };
        let ring = |pieces: usize| {
            let cuts = cut(pieces)?;
            let slot = cuts.iter().map(Cut::slot_bytes).max()?.next_multiple_of(128);
            let tables = products.iter().map(|product| table(product.format)).max()? * WARPS;
            let slots = output.info.shared_bytes.saturating_sub(FIXED_BYTES + tables) / slot;
            // Each slot has warps of its own.
            let slots = slots.min(MOST_SLOTS) / pieces * pieces;
            (slots >= LEAST_STAGES * pieces).then_some((pieces, cuts, slot, slots, slots * slot + FIXED_BYTES + tables))
        };
        let Some((pieces, cuts, slot, slots, shared_bytes)) = [2, 4, 1].into_iter().find_map(ring) else {
            return Ok(None);
        };
        let mut formats: Vec<&str> = Vec::new();
        for product in &products {
            if !formats.contains(&product.format.name) {
                formats.push(product.format.name);
            }
        }
        let mut plan = Plan::default();
        let slices = cuts[2].slices;
        let parts = (slices > 1).then(|| plan.scratch(slices * down.n * 4));
        let grid = output.info.processors as usize;
        let mut turned = 0;
        let mut record = Vec::new();
        for (phase, (cut, matrices)) in cuts.iter().zip(matrices).enumerate() {
            let n = |i: usize| matrices.get(i).map_or(0, |product| product.n);
            let gated = phase == 1;
            let rows = if gated { n(0).div_ceil(HEIGHT) } else { (0..MATRICES).map(|i| n(i).div_ceil(HEIGHT)).sum() };
            let becomes = match phase {
                0 => Becomes::Residual,
                1 => Becomes::Gated,
                2 if parts.is_some() => Becomes::Slices,
                2 => Becomes::Residual,
                _ => Becomes::Outputs,
            };
            let name = matrices[0].format.name;
            let args = HopperProductArgs {
                n: u32_of("n", n(0))?,
                n1: u32_of("n", n(1))?,
                n2: u32_of("n", n(2))?,
                k: u32_of("k", matrices[0].k)?,
                groups: u32_of("n", rows)?,
                turns: if gated { 2 } else { 1 },
                span: cut.span as u32,
                piece: cut.piece as u32,
                step: (cut.piece * matrices[0].format.unit / 8) as u32,
                pitch: cut.pitch as u32,
                turned: if cut.slices > 1 { 0 } else { turned as u32 },
                slices: cut.slices as u32,
                parts: if phase == 3 && parts.is_some() { slices as u32 } else { 0 },
                becomes: becomes as u32,
                activation: u32::from(self.activation.activation == Activation::GeluTanh),
                format: formats.iter().position(|format| *format == name).unwrap_or(0) as u32,
                eps: if phase == 1 { self.feed_norm.params.eps } else { self.next_norm.params.eps },
                pad: 0,
            };
            if cut.slices == 1 {
                turned = (turned + grid - rows % grid) % grid;
            }
            record.extend(self.views(phase, parts.as_ref())?);
            record.push(Bound::value(&args));
        }
        let mut bindings = vec![
            Bound::Record(record),
            Bound::value(&HopperLayerArgs { slot_bytes: slot as u32, slots: slots as u32 }),
        ];
        for (matrices, cut) in matrices.into_iter().zip(&cuts) {
            let map = |product: &Product<'_>| {
                boxed_rows(&product.weight.data, 8, [product.w_row, product.n], [cut.pitch, HEIGHT])
            };
            bindings.extend(matrices.iter().map(map));
        }
        // Products that are not there have no groups.
        let last = bindings.last().cloned();
        bindings.extend(last.into_iter().cycle().take(MATRICES - next.len()));
        let function = format!("hopper_layer<{pieces}, {}>", formats.join(", "));
        let launch = Launch::new(key(function), bindings, [grid as u32, 1, 1], THREADS);
        plan.launches.push(Launch { shared_bytes, ..launch });
        Ok(Some(plan))
    }

    /// The addresses of a product's record, `LayerProduct` in layer.cu; `parts` is what the slices of the down product sum.
    fn views(&self, phase: usize, parts: Option<&Bound>) -> Result<[Bound; 10]> {
        let none = || Bound::value(&0u64);
        let view = Bound::view;
        let sum = |norm: &RmsNorm| norm.sum.as_ref().map_or_else(none, view);
        let next = |i: usize| self.next.get(i).map_or_else(none, |op| view(&op.output));
        let stream = &self.next_norm.input;
        // x, parts, their sum; norm, normed; outputs; residual, sum.
        Ok(match (phase, parts) {
            (0, _) => [
                view(&self.output.input.view),
                none(),
                none(),
                none(),
                none(),
                view(&self.output.output),
                none(),
                none(),
                view(&self.feed_norm.input),
                sum(self.feed_norm),
            ],
            (1, _) => [
                view(stream),
                none(),
                none(),
                view(&self.feed_norm.weight),
                view(&self.feed_norm.output),
                view(&self.gate.output),
                view(&self.up.output),
                none(),
                none(),
                none(),
            ],
            (2, parts) => [
                view(&self.down.input.view),
                none(),
                none(),
                none(),
                none(),
                parts.cloned().unwrap_or_else(|| view(&self.down.output)),
                none(),
                none(),
                view(stream),
                sum(self.next_norm),
            ],
            (3, parts) => [
                if parts.is_some() { view(stream) } else { sum(self.next_norm) },
                parts.cloned().unwrap_or_else(none),
                view(&self.down.output),
                view(&self.next_norm.weight),
                view(&self.next_norm.output),
                next(0),
                next(1),
                next(2),
                none(),
                sum(self.next_norm),
            ],
            _ => return Err(MlxError::CommandBufferError(format!("a layer has {PHASES} products, not {phase}"))),
        })
    }
}

/// What this file and layer.cu must agree on, for a test that compiles it.
#[cfg(test)]
pub(super) fn assertions() -> String {
    let tables = super::formats().filter(|format| format.side == 0).map(|format| {
        let bytes = table(format);
        format!("static_assert(layer_table<{}>() == {bytes}, \"sums of x\");\n", format.name)
    });
    let layout = format!(
        "static_assert(PHASES == {PHASES} && MOST_SLOTS == {MOST_SLOTS} && LayerLayout::TABLES == {FIXED_BYTES} && sizeof(LayerProduct) == {}, \"layers\");\n",
        10 * size_of::<u64>() + size_of::<HopperProductArgs>()
    );
    tables.collect::<String>() + &layout
}

/// Bytes of a warp's sums of x, `layer_table` in layer.cu.
fn table(format: Format) -> usize {
    match format {
        format if !format.sums => 0,
        // Minimums of sixteen groups, multiplied at once.
        format if format.name == "Q2_K" => 512,
        format => 256 / format.sub * 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::driver::DeviceInfo;
    use crate::backend::cuda::launches::{Library, fuse};
    use crate::{DeviceOptions, GgmlType, MlxBuffer, MlxDevice, RmsNormParams, Weight};

    const HIDDEN: usize = 3072;

    /// What runs a layer: kernels without what their templates are made for. `reused` makes the products' output attention's memory.
    fn kernels(feed: usize, down: GgmlType, alone: bool, reused: bool) -> Vec<String> {
        let device = MlxDevice::reference().unwrap();
        let f32s = |len: usize| device.alloc_buffer(4 * len, DType::F32, vec![len]).unwrap();
        let weight = |ty: GgmlType, n: usize, k: usize| {
            let bytes = n * k / ty.block_values() as usize * ty.block_bytes() as usize;
            Weight::ggml(ty, n, k, device.alloc_buffer(bytes, DType::U8, vec![]).unwrap()).unwrap()
        };
        let q4 = |n: usize, k: usize| weight(GgmlType::Q4_K, n, k);
        let mut encoder = device.command_encoder().unwrap();
        let rows = RmsNormParams { rows: 1, dim: HIDDEN, eps: 1e-5 };
        let (attended, hidden, norm, mut normed) = (f32s(HIDDEN), f32s(HIDDEN), f32s(HIDDEN), f32s(HIDDEN));
        let mut delta: MlxBuffer = f32s(HIDDEN);
        let (gate, mut up) = (f32s(feed), f32s(feed));
        encoder.matmul(&attended, &q4(HIDDEN, HIDDEN), &mut delta).unwrap();
        encoder.add_rms_norm(&hidden, (&delta, &mut hidden.clone()), &norm, &mut normed, &rows).unwrap();
        encoder.matmul(&normed, &q4(feed, HIDDEN), &mut gate.clone()).unwrap();
        encoder.matmul(&normed, &q4(feed, HIDDEN), &mut up).unwrap();
        encoder.gated_activation(Activation::Silu, &gate, &up, &mut gate.clone()).unwrap();
        encoder.matmul(&gate, &weight(down, HIDDEN, feed), &mut delta).unwrap();
        encoder.add_rms_norm(&hidden, (&delta, &mut hidden.clone()), &norm, &mut normed, &rows).unwrap();
        let mut q = if reused { attended.clone() } else { f32s(HIDDEN) };
        encoder.matmul(&normed, &q4(HIDDEN, HIDDEN), &mut q).unwrap();
        encoder.matmul(&normed, &q4(1024, HIDDEN), &mut f32s(1024)).unwrap();
        let info = DeviceInfo { name: String::new(), arch: 90, processors: 132, shared_bytes: 227 << 10 };
        let options = DeviceOptions::default();
        let planner = Planner { info: &info, options: &options, forced: None, alone };
        let (mut rest, mut names) = (encoder.list().ops(), Vec::new());
        while let Some((plan, count)) = fuse::plan(rest, &planner) {
            for launch in plan.unwrap().launches {
                assert!(launch.pipeline.library == Library::Hopper && launch.shared_bytes <= info.shared_bytes);
                names.push(launch.pipeline.function.split(['<']).next().unwrap_or_default().to_string());
                if launch.pipeline.function.starts_with("hopper_layer") {
                    assert_eq!(launch.bindings.len(), 9, "a record, the ring and seven maps");
                    names.push(launch.pipeline.function);
                }
            }
            rest = &rest[count..];
        }
        names
    }

    #[test]
    fn a_layer_is_one_launch_where_the_gpu_is_nobody_elses() {
        assert_eq!(kernels(8192, GgmlType::Q4_K, true, false), ["hopper_layer", "hopper_layer<2, Q4_K>"]);
        assert_eq!(kernels(8192, GgmlType::Q6_K, true, false), ["hopper_layer", "hopper_layer<2, Q4_K, Q6_K>"]);
        let apart = ["hopper_mv", "hopper_mv_gated", "hopper_mv", "hopper_mv_group"];
        assert_eq!(kernels(8192, GgmlType::Q4_K, false, false), apart);
        // Blocks may still read attention's output when others have the next layer's queries.
        assert_eq!(kernels(8192, GgmlType::Q4_K, true, true), apart);
        // A format whose rows the kernel does not take.
        assert_eq!(kernels(8192, GgmlType::IQ4_XS, true, false)[0], "hopper_layer");
        assert_eq!(kernels(8192 + 32, GgmlType::Q4_0, true, false).len(), 4);
    }

    #[test]
    fn rows_are_cut_so_that_most_warps_have_a_unit() {
        let info = DeviceInfo { name: String::new(), arch: 90, processors: 132, shared_bytes: 227 << 10 };
        let (options, device) = (DeviceOptions::default(), MlxDevice::reference().unwrap());
        let cut = |ty: GgmlType, k: usize, slices: usize| {
            let bytes = k / ty.block_values() as usize * ty.block_bytes() as usize;
            let weight = Weight::ggml(ty, 1, k, device.alloc_buffer(bytes, DType::U8, vec![]).unwrap()).unwrap();
            let view = weight.matrix_view(device.id(), "matmul").unwrap();
            Cut::new(&Product::new(&view, [1, 1, k], &info, &options).unwrap(), slices, 2)
        };
        let found = cut(GgmlType::Q4_K, 14336, 4).unwrap();
        assert_eq!(found, Cut { slices: 4, span: 14, piece: 7, pitch: 1008 });
        assert_eq!(cut(GgmlType::Q4_K, 14336, 3), None, "more units than warps");
        assert_eq!(cut(GgmlType::Q4_K, 14336, 7), None, "too few units");
        assert_eq!(cut(GgmlType::Q4_K, 4096, 1).map(|cut| cut.span), Some(16));
        assert_eq!(cut(GgmlType::Q4_K, 2048, 1), None, "half of the warps");
        // Seven units of 210 bytes are no multiple of 16 bytes.
        assert_eq!(cut(GgmlType::Q6_K, 14336, 4).map(|cut| cut.piece), Some(8));
        assert_eq!(cut(GgmlType::Q8_0, 4096, 1), None, "more bytes than a copy takes");
    }
}
