//! A layer's products from attention's output to the next layer's queries, keys and values as one launch, whose blocks wait for each other in between.

mod geometry;
mod record;

use geometry::Geometry;
use record::{Addresses, Becomes, HopperLayerArgs, HopperProductArgs, at};

use super::matmul::route;
use super::matvec::THREADS;
use super::{MATRICES, Product, STRIP, UNIT, key};
use crate::backend::Recorded;
use crate::backend::cuda::launches::{Bound, Launch, Plan, Planner};
use crate::backend::gpu::fuse::{Together, adds, norms, same_input};
use crate::backend::gpu::u32_of;
use crate::buffer::View;
use crate::ops::{Activation, GatedActivation, InputLayout, Matmul, Op, RmsNorm};
use crate::{DType, Result};

/// Products that follow one another, `PHASES` in layer_state.cu.
const PHASES: usize = 4;

/// The structs that layer.cu needs.
pub(super) fn text() -> String {
    HopperProductArgs::render() + &HopperLayerArgs::render()
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
        let Some(phases) = self.phases(planner) else { return Ok(None) };
        let Some(geometry) = Geometry::of(&phases) else { return Ok(None) };
        let mut formats: Vec<&str> = Vec::new();
        for product in phases.iter().flatten() {
            if !formats.contains(&product.format.name) {
                formats.push(product.format.name);
            }
        }
        let mut plan = Plan::default();
        let slices = geometry.cuts[2].slices;
        let parts = (slices > 1).then(|| plan.scratch(slices * self.down.n * 4));
        let ring = HopperLayerArgs { slot_bytes: geometry.slot_bytes as u32, slots: geometry.slots as u32 };
        let record = self.record(&phases, &geometry, &formats, parts.as_ref())?;
        let mut bindings = vec![Bound::Record(record), Bound::value(&ring)];
        bindings.extend(geometry.maps(&phases));
        let function = format!("hopper_layer<{}, {}>", geometry.pieces, formats.join(", "));
        let launch = Launch::new(key(function), bindings, [planner.info.processors, 1, 1], THREADS);
        plan.launches.push(Launch { shared_bytes: geometry.shared_bytes, ..launch });
        Ok(Some(plan))
    }

    /// The products of each phase, where all are of the kind that the kernel does and it has the GPU to itself.
    fn phases<'p>(&self, planner: &Planner<'p>) -> Option<[Vec<Product<'p>>; PHASES]>
    where
        'a: 'p,
    {
        let by_rows = |op: &Matmul| op.m == 1 && op.k.is_multiple_of(UNIT) && route(op, planner) == Some(true);
        let read = [
            &self.output.input.view,
            &self.next_norm.input,
            &self.gate.output,
            &self.feed_norm.weight,
            &self.next_norm.weight,
        ];
        let aligned = read.iter().all(|view| view.offset.is_multiple_of(16));
        // It has code for one row alone.
        if planner.options.batch_invariant || !planner.alone || !aligned || !self.products().all(by_rows) {
            return None;
        }
        let products = |ops: &[&'a Matmul]| {
            let product = |op: &&'a Matmul| Product::of(op, planner).filter(|it| it.aligned() && it.format.side == 0);
            ops.iter().map(product).collect::<Option<Vec<_>>>()
        };
        Some([
            products(&[self.output])?,
            products(&[self.gate, self.up])?,
            products(&[self.down])?,
            products(&self.next)?,
        ])
    }

    /// The record of every phase; `parts` is what the slices of the down product sum.
    fn record(
        &self,
        phases: &[Vec<Product<'_>>; PHASES],
        geometry: &Geometry,
        formats: &[&str],
        parts: Option<&Bound>,
    ) -> Result<Vec<Bound>> {
        let grid = phases[0][0].info.processors as usize;
        let mut turned = 0;
        let mut record = Vec::new();
        let addresses = self.addresses(parts);
        for (phase, ((products, cut), addresses)) in phases.iter().zip(&geometry.cuts).zip(addresses).enumerate() {
            let n = |i: usize| products.get(i).map_or(0, |product| product.n);
            let gated = phase == 1;
            let groups = if gated { n(0).div_ceil(STRIP) } else { (0..MATRICES).map(|i| n(i).div_ceil(STRIP)).sum() };
            let becomes = match phase {
                1 => Becomes::Gated,
                2 if parts.is_some() => Becomes::Slices,
                0 | 2 => Becomes::Residual,
                _ => Becomes::Outputs,
            };
            let Product { format, k, .. } = products[0];
            let args = HopperProductArgs {
                n: u32_of("n", n(0))?,
                n1: u32_of("n", n(1))?,
                n2: u32_of("n", n(2))?,
                k: u32_of("k", k)?,
                groups: u32_of("n", groups)?,
                turns: if gated { 2 } else { 1 },
                span: cut.span as u32,
                piece: cut.piece as u32,
                step: (cut.piece * format.unit / 8) as u32,
                pitch: cut.pitch as u32,
                turned: if cut.slices > 1 { 0 } else { turned as u32 },
                slices: cut.slices as u32,
                parts: if phase == 3 && parts.is_some() { geometry.cuts[2].slices as u32 } else { 0 },
                becomes: becomes as u32,
                activation: u32::from(self.activation.activation == Activation::GeluTanh),
                format: formats.iter().position(|name| *name == format.name).unwrap_or(0) as u32,
                eps: if gated { self.feed_norm.params.eps } else { self.next_norm.params.eps },
                pad: 0,
            };
            if cut.slices == 1 {
                turned = (turned + grid - groups % grid) % grid;
            }
            record.extend(addresses.bindings());
            record.push(Bound::value(&args));
        }
        Ok(record)
    }

    fn addresses(&self, parts: Option<&Bound>) -> [Addresses; PHASES] {
        let sum = |norm: &RmsNorm| norm.sum.as_ref().and_then(at);
        let stream = at(&self.next_norm.input);
        let output = Addresses {
            x: at(&self.output.input.view),
            outputs: [at(&self.output.output), None, None],
            residual: at(&self.feed_norm.input),
            sums: sum(self.feed_norm),
            ..Addresses::default()
        };
        let gated = Addresses {
            x: stream.clone(),
            norm: at(&self.feed_norm.weight),
            normed: at(&self.feed_norm.output),
            outputs: [at(&self.gate.output), at(&self.up.output), None],
            ..Addresses::default()
        };
        let down = Addresses {
            x: at(&self.down.input.view),
            outputs: [parts.cloned().or_else(|| at(&self.down.output)), None, None],
            residual: stream.clone(),
            sums: sum(self.next_norm),
            ..Addresses::default()
        };
        let next = Addresses {
            // Whoever adds up the slices also adds what they are added to.
            x: if parts.is_some() { stream } else { sum(self.next_norm) },
            parts: parts.cloned(),
            joined: at(&self.down.output),
            norm: at(&self.next_norm.weight),
            normed: at(&self.next_norm.output),
            outputs: [0, 1, 2].map(|i| self.next.get(i).and_then(|op| at(&op.output))),
            sums: sum(self.next_norm),
            ..Addresses::default()
        };
        [output, gated, down, next]
    }
}

/// What this file and layer.cu must agree on, for a test that compiles it.
#[cfg(test)]
pub(super) fn assertions() -> String {
    let tables = super::formats().filter(|format| format.side == 0).map(|format| {
        let bytes = geometry::table(format);
        format!("static_assert(layer_table<{}>() == {bytes}, \"sums of x\");\n", format.name)
    });
    let layout = format!(
        "static_assert(PHASES == {PHASES} && MOST_SLOTS == {} && LayerLayout::TABLES == {} && sizeof(LayerProduct) == {}, \"layers\");\n",
        geometry::MOST_SLOTS,
        geometry::FIXED_BYTES,
        record::ADDRESSES * size_of::<u64>() + size_of::<HopperProductArgs>()
    );
    tables.collect::<String>() + &layout
}

#[cfg(test)]
mod tests {
    use super::geometry::Cut;
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
        let info = DeviceInfo::hopper();
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
        // The small case of tests/cuda_layer.rs.
        assert_eq!(kernels(6144, GgmlType::Q2_K, true, false), ["hopper_layer", "hopper_layer<2, Q4_K, Q2_K>"]);
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
        let info = DeviceInfo::hopper();
        let device = MlxDevice::reference().unwrap();
        let cut = |ty: GgmlType, k: usize, slices: usize| {
            let bytes = k / ty.block_values() as usize * ty.block_bytes() as usize;
            let weight = Weight::ggml(ty, 1, k, device.alloc_buffer(bytes, DType::U8, vec![]).unwrap()).unwrap();
            let view = weight.matrix_view(device.id(), "matmul").unwrap();
            Cut::new(&Product::new(&view, [1, 1, k], &info).unwrap(), slices, 2)
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
