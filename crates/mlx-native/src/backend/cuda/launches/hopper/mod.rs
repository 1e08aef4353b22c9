//! Products on Hopper (sm_90a): kernels that stream weights through the bulk copy engine and multiply on the tensor cores. They take the common
//! formats and contiguous f32 input; everything else keeps the portable kernels.

mod ahead;
mod chain;
mod columns;
mod experts;
mod layer;
mod matmul;
mod matvec;
mod route;

pub(super) use ahead::look;
pub(super) use chain::Chain;
pub(super) use experts::{matmul_id, matmul_ids};
pub(super) use layer::Layer;
pub(super) use matmul::{matmul, matmuls};

use crate::backend::cuda::driver::DeviceInfo;
use crate::backend::cuda::launches::args::ProductArgs;
use crate::backend::cuda::launches::matmul::{ROUTED_PRODUCTS, widened};
use crate::backend::cuda::launches::{Bound, Library, PipelineKey, Plan, Planner};
use crate::backend::gpu::args::{ArgType, args, render_struct};
use crate::backend::{CapabilityQuery, OpKind, Recorded};
use crate::buffer::View;
use crate::device::{Activations, DeviceOptions};
use crate::format::WeightFormat;
use crate::ops::{Input, Matmul, Op, WeightView};
use crate::{DType, GgmlType, MM_ID_ROUTING_THRESHOLD, MM_ROUTING_THRESHOLD, Result};

/// Products of one input that a launch has at most.
pub(super) const MATRICES: usize = 3;
/// Products of many rows that share what is made of their input at most.
const PREPARED: usize = 32;
/// The names of the kernels in reports.
pub(super) const ROWS: &str = "hopper_mv";
pub(super) const TILES: &str = "hopper_mm";
pub(super) const ROUTED_ROWS: &str = "hopper_mv_id";
pub(super) const ROUTED_TILES: &str = "hopper_mm_id";

args! {
    /// Few rows of input; the geometry of a stage.
    HopperRowArgs {
        /// Bytes of a weight row, floats from one input row to the next.
        w_row: u64,
        x_row: u64,
        m: u32,
        n: u32,
        k: u32,
        /// Units of k for a block: all, or its part when the blocks of a cluster share rows.
        slice: u32,
        /// Units and sets of 16 weight rows of a stage.
        span: u32,
        sets: u32,
        /// Tensor copies of a stage, none where rows are copied one by one, and the units of each of them.
        boxes: u32,
        piece: u32,
        /// Bytes from one row of a stage to the next: blocks or packed values, scales or biases.
        pitch: u32,
        side_pitch: u32,
        stage_bytes: u32,
        stages: u32,
        /// Stages whose memory first serves to convert the input.
        lent: u32,
        /// Buffers for the sums of warps.
        sums: u32,
        /// The first row of input and output.
        first: u32,
        /// Groups of rows that are a block's from the start; the rest is shared out.
        own: u32,
        /// As many where the launch asks for the weights of later ones, whose launches have done so before it.
        own_asking: u32,
        /// Stages on their way at once until the ring has been filled.
        flight: u32,
    }
}

args! {
    /// Many rows of input.
    HopperTileArgs {
        /// Floats from one input row to the next.
        x_row: u64,
        m: u32,
        n: u32,
        k: u32,
        /// k / 256, rounded up.
        units: u32,
        /// Whether a launch before moves the weights.
        moved: u32,
        /// Bytes of a weight row, where rows start anywhere.
        w_row: u32,
        /// Whether sums may leave by copies.
        staged: u32,
        /// Whether rows have a few values more than `units` units, which are copied beside the last one.
        tail: u32,
        /// Whether rows of the prepared input are in the order of tiles that are `TURNED`, and whole eights of them.
        turned: u32,
        pad: u32,
    }
}

args! {
    /// Few tokens with experts of their own.
    HopperExpertArgs {
        /// Bytes of a weight row, from one matrix to the next, floats from one input row to the next.
        w_row: u64,
        w_matrix: u64,
        x_row: u64,
        /// Tokens of the launch, and the first of them.
        m: u32,
        first: u32,
        n: u32,
        k: u32,
        n_experts: u32,
        top_k: u32,
        /// Warps that share a strip, and units of a stage.
        span: u32,
        piece: u32,
        /// Bytes from one row of a stage to the next: blocks or packed values, scales or biases.
        pitch: u32,
        side_pitch: u32,
        stage_bytes: u32,
        stages: u32,
        /// What a block would divide for before its first copy: teams of `span` warps, pieces of a row, barriers of a team, strips of a matrix.
        teams: u32,
        pieces: u32,
        depth: u32,
        strips: u32,
        /// 2^32 - 1 divided by these.
        inverse_top_k: u32,
        inverse_strips: u32,
        /// Whether a strip that one or two tokens want is summed as those of more are.
        wide: u32,
        pad: u32,
    }
}

/// Values of k that the kernels treat as one.
const UNIT: usize = 256;
/// Weight rows that are multiplied together.
const STRIP: usize = 16;

/// What the kernels know about a format.
#[derive(Clone, Copy, Debug)]
struct Format {
    /// The type in kernels/hopper/formats.cu or k_quants.cu.
    name: &'static str,
    /// Bytes of a unit, and of its scales (affine formats).
    unit: usize,
    side: usize,
    /// Values that share a scale.
    sub: usize,
    /// Whether sums of the input are needed beside it.
    sums: bool,
    /// Slices of a unit that widest tiles have as stages, and of one of ragged rows.
    slices: usize,
    ragged_slices: usize,
    /// `FETCHED` in formats.cu.
    fetched: bool,
    /// Whether launches of five to eight rows ask for the weights of later ones, as those of fewer rows do.
    asks: bool,
    /// Bytes of the weights of a routed product that the one before asks for: fewer or none where multiplying takes longer than reading.
    routed_ahead: usize,
    /// `FOLDED` in units.cu, for one row: minimums of sixteen groups are multiplied at once.
    folded: bool,
    /// Whether the last few values of a row may lie behind the unit before, instead of in one of their own.
    short_tails: bool,
    /// `TAIL` in formats.cu.
    tail: usize,
    /// Whether the blocks of narrow tiles share the input in pairs, as these weights leave L2 little time for it.
    paired: bool,
}

impl Format {
    const fn blocks(name: &'static str, unit: usize, sub: usize) -> Format {
        Format {
            name,
            unit,
            side: 0,
            sub,
            sums: true,
            slices: 1,
            ragged_slices: 1,
            fetched: false,
            asks: false,
            routed_ahead: ahead::AHEAD,
            folded: false,
            short_tails: false,
            tail: 0,
            paired: false,
        }
    }

    /// Blocks of 32 values.
    const fn short_blocks(name: &'static str, unit: usize) -> Format {
        Format { short_tails: true, tail: 48, ..Format::blocks(name, unit, 32) }
    }

    fn of(format: WeightFormat) -> Option<Format> {
        Some(match format {
            WeightFormat::Ggml(ty) => match ty {
                GgmlType::Q4_0 => Format { slices: 2, fetched: true, ..Format::short_blocks("Q4_0", 144) },
                GgmlType::Q4_1 => Format { slices: 2, fetched: true, ..Format::short_blocks("Q4_1", 160) },
                GgmlType::Q5_0 => Format { fetched: true, tail: 64, ..Format::short_blocks("Q5_0", 176) },
                GgmlType::Q5_1 => Format { fetched: true, ..Format::short_blocks("Q5_1", 192) },
                GgmlType::Q8_0 => Format {
                    slices: 2,
                    ragged_slices: 2,
                    fetched: true,
                    tail: 80,
                    paired: true,
                    ..Format::short_blocks("Q8_0", 272)
                },
                GgmlType::IQ4_NL => Format { routed_ahead: 0, ..Format::short_blocks("IQ4_NL", 144) },
                GgmlType::IQ4_XS => Format { routed_ahead: 0, ..Format::blocks("IQ4_XS", 136, 32) },
                GgmlType::MXFP4 => Format {
                    sums: false,
                    fetched: true,
                    asks: true,
                    routed_ahead: 4 << 20,
                    ..Format::short_blocks("MXFP4", 136)
                },
                GgmlType::Q2_K => Format { folded: true, routed_ahead: 0, ..Format::blocks("Q2_K", 84, 16) },
                GgmlType::Q3_K => Format { routed_ahead: 0, ..Format::blocks("Q3_K", 110, 16) },
                GgmlType::Q4_K => Format { fetched: true, ..Format::blocks("Q4_K", 144, 32) },
                GgmlType::Q5_K => Format::blocks("Q5_K", 176, 32),
                GgmlType::Q6_K => Format::blocks("Q6_K", 210, 16),
                _ => return None,
            },
            WeightFormat::Affine(affine) => {
                let name = match (affine.bits, affine.group_size, affine.scale_dtype) {
                    (4, 32, DType::F16) => "Affine4<32, 2, false>",
                    (4, 64, DType::F16) => "Affine4<64, 2, false>",
                    (4, 128, DType::F16) => "Affine4<128, 2, false>",
                    (4, 32, DType::BF16) => "Affine4<32, 2, true>",
                    (4, 64, DType::BF16) => "Affine4<64, 2, true>",
                    (4, 128, DType::BF16) => "Affine4<128, 2, true>",
                    (4, 32, DType::F32) => "Affine4<32, 4, false>",
                    (4, 64, DType::F32) => "Affine4<64, 4, false>",
                    (4, 128, DType::F32) => "Affine4<128, 4, false>",
                    (8, 32, DType::F16) => "Affine8<32, 2, false>",
                    (8, 64, DType::F16) => "Affine8<64, 2, false>",
                    (8, 128, DType::F16) => "Affine8<128, 2, false>",
                    (8, 32, DType::BF16) => "Affine8<32, 2, true>",
                    (8, 64, DType::BF16) => "Affine8<64, 2, true>",
                    (8, 128, DType::BF16) => "Affine8<128, 2, true>",
                    (8, 32, DType::F32) => "Affine8<32, 4, false>",
                    (8, 64, DType::F32) => "Affine8<64, 4, false>",
                    (8, 128, DType::F32) => "Affine8<128, 4, false>",
                    _ => return None,
                };
                let side = UNIT / affine.group_size as usize * affine.scale_dtype.size_of();
                let sub = affine.group_size.min(64) as usize;
                let slices = if affine.bits == 8 { 2 } else { 1 };
                Format { side, slices, routed_ahead: 0, ..Format::blocks(name, UNIT * affine.bits as usize / 8, sub) }
            }
            WeightFormat::Fp(_) => return None,
        })
    }
}

/// Rows of f32, and floats from one to the next.
#[derive(Clone)]
struct Rows {
    at: Bound,
    stride: u64,
}

impl Rows {
    /// The input's rows, made f32 and contiguous first where they are not; `args` are those of the portable kernels.
    fn of(input: &Input, rows: usize, args: &ProductArgs, plan: &mut Plan) -> Result<Rows> {
        let mut args = *args;
        let at = widened(input, rows, &mut args, plan)?;
        Ok(Rows { at, stride: args.x_row / 4 })
    }
}

/// A product that these kernels can do.
#[derive(Clone, Copy)]
struct Product<'a> {
    format: Format,
    weight: &'a WeightView,
    info: &'a DeviceInfo,
    m: usize,
    n: usize,
    k: usize,
    /// Bytes of a weight row and of its scales.
    w_row: usize,
    side_row: usize,
}

impl<'a> Product<'a> {
    fn new(weight: &'a WeightView, [m, n, k]: [usize; 3], info: &'a DeviceInfo) -> Option<Product<'a>> {
        let format = Format::of(weight.format)?;
        if info.arch != 90 || weight.transposed || !k.is_multiple_of(32) {
            return None;
        }
        let side_row = match weight.format {
            WeightFormat::Affine(affine) => affine.groups(k).ok()? * affine.scale_dtype.size_of(),
            _ => 0,
        };
        // Scales and biases come through tensor maps, whose rows start at multiples of 16 bytes.
        let sides = [weight.scales.as_ref(), weight.biases.as_ref()];
        let aligned = |view: &View| view.offset.is_multiple_of(16) && side_row.is_multiple_of(16);
        if format.side > 0 && !sides.iter().all(|side| side.is_some_and(aligned)) {
            return None;
        }
        let w_row = weight.format.row_bytes(k).ok()?;
        Some(Product { format, weight, info, m, n, k, w_row, side_row })
    }

    fn of(op: &'a Matmul, planner: &Planner<'a>) -> Option<Product<'a>> {
        Product::new(&op.weight, [op.m, op.n, op.k], planner.info)
    }

    fn units(&self) -> usize {
        self.k.div_ceil(UNIT)
    }

    /// Whether every weight row starts at a multiple of 16 bytes.
    fn aligned(&self) -> bool {
        self.w_row.is_multiple_of(16) && self.weight.data.offset.is_multiple_of(16)
    }
}

/// Products of one input that are planned together at most, by the first of them.
pub(super) fn most_products(ops: &[Recorded]) -> usize {
    match ops.first().map(|first| &first.op) {
        Some(Op::Matmul(op)) if op.m > MM_ROUTING_THRESHOLD as usize => PREPARED,
        Some(Op::MatmulId(op)) if op.n_tokens > MM_ID_ROUTING_THRESHOLD as usize => ROUTED_PRODUCTS,
        _ => MATRICES,
    }
}

/// The kernel that runs a product, if one of these does.
pub(crate) fn kernel_for(query: &CapabilityQuery, info: &DeviceInfo, options: &DeviceOptions) -> Option<&'static str> {
    let format = Format::of(query.format)?;
    if info.arch != 90 || !query.k.is_multiple_of(32) {
        return None;
    }
    let few = |threshold: u32| query.m <= threshold as usize || options.batch_invariant;
    let tiles = options.activations != Activations::Exact && query.n >= 64;
    let aligned = query.format.row_bytes(query.k).ok()?.is_multiple_of(16);
    match query.op {
        OpKind::Matmul | OpKind::MatmulPerm021 if few(MM_ROUTING_THRESHOLD) => Some(ROWS),
        OpKind::Matmul | OpKind::MatmulPerm021 if tiles => Some(TILES),
        OpKind::MatmulId if few(MM_ID_ROUTING_THRESHOLD) => {
            route::fits(format, query.k, info, [1, 1]).then_some(ROUTED_ROWS)
        }
        OpKind::MatmulId if tiles && aligned => Some(ROUTED_TILES),
        _ => None,
    }
}

/// A pitch of at least `bytes` that is 16 more than a multiple of 32: eight rows of four words fall into different banks.
fn pitch_of(bytes: usize) -> usize {
    let whole = bytes.next_multiple_of(16);
    if whole.is_multiple_of(32) { whole + 16 } else { whole }
}

fn key(function: String) -> PipelineKey {
    PipelineKey::new(Library::Hopper, function)
}

/// The text of all kernels of this module; a pipeline's key names the format.
pub(crate) fn text() -> String {
    [
        include_str!("../../kernels/hopper/ptx.cu"),
        &HopperRowArgs::render(),
        &HopperTileArgs::render(),
        &HopperExpertArgs::render(),
        &ahead::text(),
        &layer::text(),
        include_str!("../../kernels/hopper/async.cu"),
        include_str!("../../kernels/hopper/formats.cu"),
        include_str!("../../kernels/hopper/k_quants.cu"),
        include_str!("../../kernels/hopper/units.cu"),
        include_str!("../../kernels/hopper/operands.cu"),
        include_str!("../../kernels/hopper/digits.cu"),
        include_str!("../../kernels/hopper/matvec.cu"),
        include_str!("../../kernels/hopper/layer_state.cu"),
        include_str!("../../kernels/hopper/layer_operands.cu"),
        include_str!("../../kernels/hopper/layer.cu"),
        include_str!("../../kernels/hopper/experts.cu"),
        include_str!("../../kernels/hopper/wgmma.cu"),
        include_str!("../../kernels/hopper/prepare.cu"),
        include_str!("../../kernels/hopper/tiles.cu"),
        include_str!("../../kernels/hopper/sums.cu"),
        include_str!("../../kernels/hopper/matmul.cu"),
    ]
    .concat()
}

/// The formats that tests compile.
#[cfg(test)]
fn formats() -> impl Iterator<Item = Format> {
    use crate::format::AffineFormat;
    let affine =
        [4, 8].map(|bits| WeightFormat::Affine(AffineFormat { bits, group_size: 64, scale_dtype: DType::BF16 }));
    GgmlType::all().map(WeightFormat::Ggml).chain(affine).filter_map(Format::of)
}

/// The kernels of some formats and geometries, for tests that compile them.
#[cfg(test)]
pub(crate) fn pipelines() -> Vec<PipelineKey> {
    let mut keys = ["hopper_align<>", "hopper_layer<2, Q4_K, Q6_K>", "hopper_mm<Q8_0, 3, 1, 128, 2, ON_16>"]
        .map(|function| key(function.into()))
        .to_vec();
    for format in formats() {
        let (name, mv) = (format.name, if format.side > 0 { "hopper_mv_affine" } else { "hopper_mv" });
        for geometry in [
            "2, ONE_ROW, false, WHOLE, ALIGNED",
            "2, FOUR_ROWS, false, WHOLE, ALIGNED",
            "2, EIGHT_ROWS, false, WHOLE, ALIGNED",
            "1, ONE_ROW, false, PART, ANYWHERE",
            "2, ONE_ROW, false, PART, EVERY_8TH",
            "2, ONE_ROW, false, SHORT, EVERY_16TH",
            "2, ONE_ROW, true, WHOLE, ALIGNED",
            "1, ONE_ROW, true, WHOLE, ALIGNED",
        ] {
            if geometry.contains("SHORT") && !format.short_tails {
                continue;
            }
            keys.push(key(format!("{mv}<{name}, {geometry}>")));
        }
        if format.side == 0 {
            keys.push(key(format!("hopper_layer<2, {name}>")));
            keys.push(key(format!("hopper_mv_group<{name}, 1, ONE_ROW, WHOLE, ALIGNED, true>")));
            keys.push(key(format!("hopper_mv_gated<{name}, 2, ONE_ROW, WHOLE, ALIGNED, true>")));
            keys.push(key(format!("hopper_mv_gated<{name}, 2, EIGHT_ROWS, WHOLE, ALIGNED, false>")));
        }
        for geometry in ["1, false, false", "2, false, false", "1, true, true"] {
            keys.push(key(format!("hopper_mv_id<{name}, {geometry}>")));
        }
        let ragged: &[&str] = match (format.side, format.unit % 4) {
            // Blocks of 32 values that are no whole words.
            (0, 0) if format.short_tails && format.unit % 32 != 0 => {
                &["2, 1, 256, 2, ON_WORDS", "2, 1, 256, 2, BY_TURNS"]
            }
            (0, 0) => &["2, 1, 256, 2, ON_WORDS"],
            (0, _) => &["2, 1, 256, 2, ON_EVEN"],
            _ => &[],
        };
        for tile in ["2, 1, 256, 2, ON_16", "3, 1, 128, 1, ON_16", "4, 1, 64, 2, ON_16"].iter().chain(ragged) {
            keys.push(key(format!("hopper_mm<{name}, {tile}>")));
        }
        // Blocks of an odd number of bytes.
        if format.unit % 16 == 8 && format.short_tails {
            for tile in ["2, 1, 256, 2", "2, 1, 128, 1", "4, 1, 64, 2"] {
                keys.push(key(format!("hopper_mm<Unrotated<{name}>, {tile}, ON_BYTES>")));
            }
            keys.push(key(format!("hopper_prepare<Unrotated<{name}>>")));
        }
        for rows in [32, 48, 64] {
            keys.push(key(format!("hopper_mm_id<{name}, 2, 2, {rows}>")));
        }
        keys.push(key(format!("hopper_prepare<{name}>")));
        keys.push(key(format!("hopper_prepare_id<{name}>")));
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels count bytes of units themselves; the format table is where they come from.
    #[test]
    fn units_are_256_values_of_the_format() {
        let known = GgmlType::all().filter_map(|ty| Some((ty, Format::of(WeightFormat::Ggml(ty))?)));
        let mut count = 0;
        for (ty, format) in known {
            let bytes = (UNIT as u32 / ty.block_values() * ty.block_bytes()) as usize;
            assert_eq!(format.unit, bytes, "{}", ty.name());
            let text = format!("struct {} :", format.name);
            let (_, body) = text_of_formats().split_once(&text).expect(&text);
            let body = &body[..body.find("\n};").unwrap_or(body.len())];
            assert_eq!(body.contains("FETCHED = true"), format.fetched, "{text}");
            // Blocks of more values leave no tail.
            assert_eq!(format.short_tails, ty.block_values() == 32, "{text}");
            count += 1;
        }
        assert_eq!(count, 13);
    }

    fn text_of_formats() -> &'static str {
        concat!(include_str!("../../kernels/hopper/formats.cu"), include_str!("../../kernels/hopper/k_quants.cu"))
    }

    #[test]
    fn rows_of_a_stage_fall_into_different_banks() {
        for bytes in 1..4096 {
            let pitch = pitch_of(bytes);
            assert!(pitch >= bytes && pitch < bytes + 32 && pitch % 32 == 16, "{bytes}: {pitch}");
        }
    }
}
