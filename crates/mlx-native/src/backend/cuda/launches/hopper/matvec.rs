//! The geometry of the kernel for few rows.

use super::columns::{Columns, Part};
use super::{Format, HopperRowArgs, MATRICES, Product, Rows, UNIT, ahead, key, pitch_of, route};
use crate::Result;
use crate::backend::cuda::launches::{Bound, Launch};
use crate::backend::cuda::tensor_map::TensorMap;
use crate::backend::gpu::u32_of;
use crate::buffer::View;
use crate::device::DeviceOptions;
use crate::ops::{Activation, RmsNorm};

/// Warps that multiply, `WARPS` in units.cu; the first of 4 more issues copies, or all of them.
pub(super) const WARPS: usize = 16;
pub(super) const THREADS: u32 = (WARPS as u32 + 4) * 32;
/// Stages at most.
const MOST_STAGES: usize = 12;
/// Groups of rows of a block that are its own where that is all of them. With more, blocks that are done early do more.
const MOST_OWN: usize = 4;
/// Buffers for the sums of warps, `MOST_SUMS` in units.cu, and fewer where that leaves too few stages: sums are added up while the next group is computed, or,
/// where there are no more buffers than products of a group, at once.
const SUMS: [usize; 4] = [4, 3, 2, 1];
/// Stages that fewer than three buffers are not worth.
const ENOUGH_STAGES: usize = 4;
/// Stages at least.
const LEAST_STAGES: usize = 3;
/// Of five to eight rows, where a block's first groups that find no stage are fetched into L2: as many more than the ring holds as memory brings until operands are made.
const FETCHED_OWN: [usize; 2] = [3, 4];
/// As many where launches ask for the weights of later ones and a block has so many groups that sharing out the rest matters more: its first have been asked for.
const ASKING_OWN: usize = 2;
const ASKING_GROUPS: usize = 12;
/// Bytes on their way to a block at once until its ring has been filled, and stages at least, with operands as good as f32 and as halves: more only queue, and x behind them.
const FLIGHT: [(usize, usize); 2] = [(64 << 10, 2), (32 << 10, 1)];
/// Bytes of shared memory in which a warp brings five to eight rows of x to its lanes, `COLUMN_STAGING` in operands.cu, or four a unit.
const COLUMN_STAGING: usize = 2048;
const ROW_STAGING: usize = 512;
/// Blocks of a cluster at most.
const MOST_BLOCKS: usize = 8;
/// Tensor copies of a stage at most, and bytes of a row in each: 256 elements of eight bytes.
const MOST_BOXES: usize = 4;
pub(super) const BOX_BYTES: usize = 2048;
/// Values of a short tail at most, as in matvec.cu, and bytes of a row's units in a stage: with more the ring's fewer stages cost more than such a tail gains.
const SHORT_TAIL: usize = 64;
const SHORT_TAIL_BYTES: usize = 16 * 192;
/// Units of which a warp holds the input's operands: of several rows, and of one, which needs fewer registers, where rows of weights come strided.
const MOST_UNITS: usize = 2;
const MOST_UNITS_OF_ONE: usize = 3;

/// Where rows of weights start, `Starts` in matvec.cu.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Starts {
    Aligned,
    Anywhere,
    /// Every so-manieth row starts equally far from a multiple of 16 bytes, and as many rows are one of the tensor map.
    Every(usize),
}

impl Starts {
    fn of(products: &[Product<'_>]) -> Starts {
        if products.iter().all(Product::aligned) {
            return Starts::Aligned;
        }
        let strided = |every: usize| {
            products.iter().all(|product| {
                let whole = (every * product.w_row).is_multiple_of(16) && product.n.is_multiple_of(every);
                whole && product.format.side == 0 && product.weight.data.offset.is_multiple_of(16)
            })
        };
        [8, 16].into_iter().find(|every| strided(*every)).map_or(Starts::Anywhere, Starts::Every)
    }

    fn name(self) -> &'static str {
        match self {
            Starts::Aligned => "ALIGNED",
            Starts::Anywhere => "ANYWHERE",
            Starts::Every(8) => "EVERY_8TH",
            Starts::Every(_) => "EVERY_16TH",
        }
    }

    fn every(self) -> usize {
        match self {
            Starts::Every(every) => every,
            _ => 1,
        }
    }
}

/// The last unit of a row, `Tail` in matvec.cu.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tail {
    Whole,
    Part,
    /// So few values that warps which have units of a row's last stage take them in turn.
    Short,
}

impl Tail {
    fn of(product: &Product<'_>, columns: Columns) -> Tail {
        let staged_bytes = (product.k / UNIT).min(WARPS) * product.format.unit;
        let one = columns == Columns::One && product.format.short_tails;
        match product.k % UNIT {
            0 => Tail::Whole,
            1..=SHORT_TAIL if one && product.k > UNIT && staged_bytes <= SHORT_TAIL_BYTES => Tail::Short,
            _ => Tail::Part,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Tail::Whole => "WHOLE",
            Tail::Part => "PART",
            Tail::Short => "SHORT",
        }
    }
}

/// How a launch cuts the matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Geometry {
    starts: Starts,
    tail: Tail,
    /// Units of a warp.
    units: usize,
    /// Blocks that share a row.
    cluster: usize,
    slice: usize,
    span: usize,
    sets: usize,
    /// Tensor copies of a stage, each of so many units; none where rows are copied one by one.
    boxes: usize,
    piece: usize,
    pitch: usize,
    side_pitch: usize,
    stage_bytes: usize,
    stages: usize,
    lent: usize,
    /// Stages on their way at once until the ring has been filled.
    flight: usize,
    /// Buffers for the sums of warps.
    sums: usize,
    grid: usize,
    /// Groups of rows of a block before any is shared out, and where the launch asks for the weights of later ones.
    own: usize,
    own_asking: usize,
    shared_bytes: usize,
}

impl Geometry {
    /// What the order of a row's sum depends on.
    fn order(&self) -> (Starts, Tail, [usize; 4]) {
        (self.starts, self.tail, [self.units, self.span, self.cluster, self.slice])
    }
}

/// Blocks that share a row of so many units, and the units of each but the last, a multiple of `whole`; none where a cluster has too few. Where they are
/// several anyway, a warp has one unit rather than two, whose operands take half as long to make, if most warps then have one.
fn slices(units: usize, whole: usize, most: usize) -> Option<(usize, usize)> {
    let fewest = units.div_ceil(WARPS * most).next_power_of_two();
    let slice = |blocks: usize| units.div_ceil(blocks).next_multiple_of(whole);
    // Every block has some.
    let suits = |blocks: usize| blocks <= MOST_BLOCKS && slice(blocks) * (blocks - 1) < units;
    let twice = 2 * fewest;
    let busy = fewest > 1 && units.div_ceil(twice) * 5 >= WARPS * 4;
    let blocks = if busy && suits(twice) { twice } else { fewest };
    suits(blocks).then(|| (blocks, slice(blocks)))
}

/// The fewest tensor copies that rows of `span` units can come in, with so many bytes more; each starts at a multiple of 16 bytes, or so that a unit is up to `past` bytes on.
fn boxes(unit: usize, span: usize, past: usize, more: usize) -> Option<usize> {
    let fits = |piece: usize| {
        let aligned = past > 0 || piece == span || (piece * unit).is_multiple_of(16);
        pitch_of(piece * unit + past + more) <= BOX_BYTES && aligned
    };
    (1..=MOST_BOXES).find(|boxes| span.is_multiple_of(*boxes) && fits(span / boxes))
}

/// Floats of a warp's sums, `strip_of` in units.cu.
fn strip(columns: Columns) -> usize {
    16 * columns.rows()
}

/// The geometry of a product, or of several with n rows in all. None where a row does not fit. It does not depend on the number of rows but by the columns' use, and
/// so neither does the order in which a row is summed.
fn geometry(product: &Product<'_>, starts: Starts, columns: Columns) -> Option<Geometry> {
    let strided = matches!(starts, Starts::Every(_));
    geometry_with(product, starts, columns)
        .or_else(|| strided.then(|| geometry_with(product, Starts::Anywhere, columns))?)
}

/// The geometry that keeps most warps busy, the longer rows of a stage first.
fn geometry_with(product: &Product<'_>, starts: Starts, columns: Columns) -> Option<Geometry> {
    let exact = columns.exact();
    let (format, ragged) = (product.format, starts != Starts::Aligned);
    let strided = matches!(starts, Starts::Every(_));
    let most_units = if strided && columns == Columns::One { MOST_UNITS_OF_ONE } else { MOST_UNITS };
    let processors = product.info.processors as usize;
    // Segments start at multiples of 16 bytes where rows do.
    let whole = (0..5).map(|i| 1 << i).find(|count| ragged || (count * format.unit).is_multiple_of(16)).unwrap_or(16);
    let tail = Tail::of(product, columns);
    // Units without a short tail, which takes place and operands beside them.
    let (all_units, more_units) = if tail == Tail::Short { (product.k / UNIT, 1) } else { (product.units(), 0) };
    let more = more_units * (product.k % UNIT) * format.unit / UNIT;
    let (cluster, slice) = slices(all_units, whole, most_units)?;
    // Clusters of more than two do not fit into every part of the GPU.
    let grid = (if cluster > 2 { processors * 15 / 16 } else { processors }) / cluster * cluster;
    let mut best: Option<(f64, Geometry)> = None;
    // Of equals the one whose warps have less to convert.
    for units in 1..=most_units {
        let least = match units {
            1 => slice,
            _ => slice.div_ceil(units).next_multiple_of(whole),
        };
        if units > 1 && least * (units - 1) >= slice && slice > 1 {
            continue;
        }
        // Beside the copies of scales and biases, a pair of boxes is slower than rows that take one copy each.
        let suits = |boxes: &usize| starts != Starts::Anywhere && (*boxes != 2 || format.side == 0);
        // How far past a multiple of 16 bytes rows start at most, an even number where eight of them are one.
        let past = match starts {
            Starts::Aligned => 0,
            Starts::Anywhere => 16,
            Starts::Every(8) => 14,
            Starts::Every(_) => 15,
        };
        let boxes = |span: usize| boxes(format.unit, span, past, more).filter(suits).unwrap_or(0);
        // Strided rows need boxes, if some warps have a unit less for that.
        let span = if strided { (least..=WARPS).find(|span| boxes(*span) > 0) } else { Some(least) };
        let Some(span) = span.filter(|span| *span <= WARPS) else { continue };
        let boxes = boxes(span);
        let piece = span / boxes.max(1);
        for sets in (1..=WARPS / span).rev() {
            let height = 16 * sets;
            let pitch = pitch_of(piece * format.unit + past + more);
            let sides = span * format.side;
            let side_pitch = match sides {
                0 => 0,
                _ => pitch_of(if sides.is_multiple_of(16) { sides } else { sides + 8 }),
            };
            // A box of a tensor map has 256 elements of two bytes at most.
            if side_pitch > 512 {
                continue;
            }
            let stage_bytes = (height * (boxes.max(1) * pitch + 2 * side_pitch)).next_multiple_of(128);
            let groups = product.n.div_ceil(height * starts.every()) * starts.every();
            let items = groups.div_ceil(grid / cluster);
            // As `MatVecLayout` has it: barriers, the ring, sums of the input, sums of the warps, those of a cluster.
            let tables = WARPS * (units + more_units) * (32 + if format.sums { UNIT / format.sub * 32 } else { 0 });
            let partial = if cluster > 1 { items * height * columns.rows() * 4 } else { 0 };
            let barriers = 16 * MOST_STAGES + 16 * SUMS[0];
            let fixed = |sums: usize| barriers + 128 + tables + sums * WARPS * 4 * strip(columns) + partial;
            let stages = |sums: usize| product.info.shared_bytes.saturating_sub(fixed(sums)) / stage_bytes;
            let with = |least: usize, among: &[usize]| among.iter().copied().find(|sums| stages(*sums) >= least);
            let sums = with(ENOUGH_STAGES, &SUMS[..2]).or_else(|| with(LEAST_STAGES, &SUMS));
            let Some(sums) = sums else { continue };
            let stages = stages(sums).min(MOST_STAGES);
            let fetched = !exact && cluster == 1 && boxes > 0 && format.fetched;
            let (flight_bytes, least_flight) = FLIGHT[usize::from(!exact)];
            let staging = WARPS * if exact { (units + more_units) * ROW_STAGING } else { COLUMN_STAGING };
            let lent = staging.div_ceil(stage_bytes);
            if stages < (lent + 1).max(LEAST_STAGES) {
                continue;
            }
            let busy = (span * sets) as f64 / WARPS as f64 * slice as f64 / (span * units) as f64;
            let waves =
                if groups < 8 * grid { groups as f64 / groups.next_multiple_of(grid / cluster) as f64 } else { 1.0 };
            let shallow = if stages < 5 && sets > 1 && span * format.unit > 2500 { 0.97 } else { 1.0 };
            let value = (busy * 1.5).min(1.0) * waves * shallow;
            let own = match fetched {
                _ if items <= MOST_OWN => items,
                true => (stages - lent).clamp(FETCHED_OWN[0], FETCHED_OWN[1]),
                false => 2,
            };
            let found = Geometry {
                starts,
                tail,
                units,
                cluster,
                slice,
                span,
                sets,
                boxes,
                piece,
                pitch,
                side_pitch,
                stage_bytes,
                stages,
                lent,
                flight: (flight_bytes / stage_bytes).max(least_flight),
                sums,
                grid,
                own,
                own_asking: if fetched && items >= ASKING_GROUPS { ASKING_OWN } else { own },
                shared_bytes: stages * stage_bytes + fixed(sums),
            };
            if best.is_none_or(|(most, _)| value > most) {
                best = Some((value, found));
            }
        }
    }
    best.map(|(_, geometry)| geometry)
}

/// Whether the kernel takes the product.
pub(super) fn fits(product: &Product<'_>) -> bool {
    let starts = Starts::of(&[*product]);
    [Columns::Four, Columns::Eight].iter().all(|columns| geometry(product, starts, *columns).is_some())
}

/// The arguments of a launch for m rows, from row `first` on.
fn args(product: &Product<'_>, geometry: &Geometry, x_row: u64, [first, m]: [usize; 2]) -> Result<HopperRowArgs> {
    Ok(HopperRowArgs {
        w_row: product.w_row as u64,
        x_row,
        m: u32_of("m", m)?,
        n: u32_of("n", product.n)?,
        k: u32_of("k", product.k)?,
        slice: geometry.slice as u32,
        span: geometry.span as u32,
        sets: geometry.sets as u32,
        boxes: geometry.boxes as u32,
        piece: geometry.piece as u32,
        pitch: geometry.pitch as u32,
        side_pitch: geometry.side_pitch as u32,
        stage_bytes: geometry.stage_bytes as u32,
        stages: geometry.stages as u32,
        lent: geometry.lent as u32,
        sums: geometry.sums as u32,
        first: u32_of("first", first)?,
        own: geometry.own as u32,
        own_asking: geometry.own_asking as u32,
        flight: geometry.flight as u32,
    })
}

/// The map of a weight whose rows come in boxes; one that nobody reads otherwise.
fn map(product: &Product<'_>, geometry: &Geometry) -> Bound {
    if geometry.boxes == 0 {
        return Bound::value(&[0u64; 16]);
    }
    let every = geometry.starts.every();
    let rows = [every * product.w_row, product.n / every];
    boxed_rows(&product.weight.data, 8, rows, [geometry.pitch, 16 * geometry.sets])
}

/// The map of a view's rows, see [`TensorMap::rows`].
pub(super) fn boxed_rows(view: &View, element_bytes: usize, rows: [usize; 2], stage: [usize; 2]) -> Bound {
    Bound::Tensor(TensorMap::rows(element_bytes, rows, stage), Box::new(Bound::view(view)))
}

/// A launch of so many products. Those of five to eight rows of most formats ask for no weights of later ones: their first groups wait for operands anyway.
fn launch_of(
    (function, format): (String, Format),
    mut bindings: Vec<Bound>,
    geometry: &Geometry,
    part: Part,
    products: usize,
) -> Launch {
    bindings.push(ahead::nothing());
    let products = if part.columns.exact() || format.asks { products } else { 0 };
    let launch = Launch::new(key(function), bindings, [geometry.grid as u32, 1, 1], THREADS);
    Launch { cluster: geometry.cluster as u32, shared_bytes: geometry.shared_bytes, products, ..launch }
}

/// In which order a launch reads a weight: groups of `height` rows, of which so many segments are read side by side.
pub(super) struct Order {
    pub height: usize,
    pub groups: usize,
    pub segments: usize,
}

/// The order of a product alone, or of one of several in a launch, which reads them as one.
pub(super) fn order(product: &Product<'_>, options: &DeviceOptions) -> Option<Order> {
    let part = Part::all(product.m, options).next()?;
    let geometry = geometry(product, Starts::of(&[*product]), part.columns)?;
    let height = 16 * geometry.sets;
    let segments = if geometry.cluster > 1 { geometry.grid / geometry.cluster } else { 1 };
    Some(Order { height, groups: product.n.div_ceil(height), segments })
}

/// What a launch adds its product to, and where that sum goes.
#[derive(Clone, Copy)]
pub(super) struct Residual<'a> {
    pub input: &'a View,
    pub sum: &'a View,
}

/// A launch for a part of the input's rows.
pub(super) fn launch(
    product: &Product<'_>,
    input: &Rows,
    output: &View,
    part: Part,
    residual: Option<Residual<'_>>,
) -> Result<Option<Launch>> {
    let Some(geometry) = geometry(product, Starts::of(&[*product]), part.columns) else { return Ok(None) };
    // A few units more than a block's leave half the warps of a cluster idle.
    if geometry.cluster > 1
        && !part.invariant
        && !product.aligned()
        && residual.is_none()
        && let Some(launch) = route::long_rows(product, input, output, part)?
    {
        return Ok(Some(launch));
    }
    let format = product.format;
    let args = args(product, &geometry, input.stride, [part.first, part.m])?;
    let mut bindings =
        vec![Bound::view(&product.weight.data), input.at.clone(), Bound::view(output), Bound::value(&args)];
    bindings.extend(match residual {
        Some(residual) => [Bound::view(residual.input), Bound::view(residual.sum)],
        None => [Bound::value(&0u64), Bound::value(&0u64)],
    });
    bindings.push(map(product, &geometry));
    let mut name = "hopper_mv";
    if format.side > 0 {
        name = "hopper_mv_affine";
        let [rows, stage] = [[product.side_row, product.n], [geometry.side_pitch, 16 * geometry.sets]];
        let sides = [product.weight.scales.as_ref(), product.weight.biases.as_ref()];
        bindings.extend(sides.into_iter().flatten().map(|side| boxed_rows(side, 2, rows, stage)));
    }
    let function = format!(
        "{name}<{}, {}, {}, {}, {}, {}>",
        format.name,
        geometry.units,
        part.columns.name(),
        geometry.cluster > 1,
        geometry.tail.name(),
        geometry.starts.name()
    );
    Ok(Some(launch_of((function, format), bindings, &geometry, part, 1)))
}

/// Products of one input in one launch.
pub(super) struct Group<'a> {
    pub products: &'a [Product<'a>],
    pub outputs: &'a [&'a View],
    /// The norm that makes the input, of one row.
    pub norm: Option<&'a RmsNorm>,
    /// The first of two products becomes its activation times the second.
    pub activation: Option<Activation>,
}

impl Group<'_> {
    /// The launch for a part of the input's rows; none where weights differ in format or k, rows take several blocks, or scales lie apart.
    pub(super) fn launch(&self, input: &Rows, part: Part) -> Result<Option<Launch>> {
        let (products, outputs) = (self.products, self.outputs);
        let [product, others @ ..] = products else { return Ok(None) };
        // As one matrix with the rows of all, or of each of a gated pair.
        let n = match self.activation {
            Some(_) => product.n,
            None => products.iter().map(|product| product.n).sum(),
        };
        let whole = Product { n, ..*product };
        let Some(geometry) = geometry(&whole, Starts::of(products), part.columns) else { return Ok(None) };
        let format = product.format;
        let alike = |other: &Product<'_>| other.format.name == format.name && other.k == product.k;
        let fits = match self.activation {
            Some(_) => products.len() == 2 && others[0].n == product.n && geometry.sums >= products.len(),
            None => products.len() <= MATRICES,
        };
        if !fits || !others.iter().all(alike) || format.side > 0 || geometry.cluster > 1 {
            return Ok(None);
        }
        // Alone each has to be summed in the same order.
        let as_alone = |product: &Product<'_>| {
            let alone = self::geometry(product, Starts::of(&[*product]), part.columns);
            alone.is_some_and(|alone| alone.order() == geometry.order())
        };
        if part.invariant && !products.iter().all(as_alone) {
            return Ok(None);
        }
        let args = Bound::value(&args(product, &geometry, input.stride, [part.first, part.m])?);
        // Matrices that are not there have no rows.
        let of = |i: usize| products.get(i).map_or((product, 0), |product| (product, product.n));
        let (name, count) = match self.activation {
            Some(_) => ("hopper_mv_gated", 2),
            None => ("hopper_mv_group", MATRICES),
        };
        let mut bindings: Vec<Bound> = (0..count).map(|i| Bound::view(&of(i).0.weight.data)).collect();
        bindings.push(input.at.clone());
        bindings.extend((0..count).map(|i| Bound::view(outputs.get(i).unwrap_or(&outputs[0]))));
        bindings.push(args);
        match self.activation {
            Some(Activation::Silu) => bindings.push(Bound::value(&0u32)),
            Some(Activation::GeluTanh) => bindings.push(Bound::value(&1u32)),
            None => {
                for i in 1..MATRICES {
                    bindings.push(Bound::value(&u32_of("n", of(i).1)?));
                }
            }
        }
        bindings.extend(match self.norm {
            Some(norm) => [Bound::view(&norm.weight), Bound::view(&norm.output), Bound::value(&norm.params.eps)],
            None => [Bound::value(&0u64), Bound::value(&0u64), Bound::value(&0f32)],
        });
        bindings.extend((0..count).map(|i| map(of(i).0, &geometry)));
        let function = format!(
            "{name}<{}, {}, {}, {}, {}, {}>",
            format.name,
            geometry.units,
            part.columns.name(),
            geometry.tail.name(),
            geometry.starts.name(),
            self.norm.is_some()
        );
        Ok(Some(launch_of((function, format), bindings, &geometry, part, products.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::driver::DeviceInfo;
    use crate::device::DeviceOptions;
    use crate::format::{AffineFormat, WeightFormat};
    use crate::{DType, GgmlType, MlxDevice, Weight};

    /// k = 8192 is what the registers of a block's warps hold.
    #[test]
    fn every_format_takes_rows_of_8192() {
        let info = DeviceInfo::hopper();
        let options = DeviceOptions::default();
        let device = MlxDevice::reference().unwrap();
        let buffer = |bytes: usize, dtype| device.alloc_buffer(bytes, dtype, vec![]).unwrap();
        let (n, k) = (16, 8192);
        let affine = |bits| WeightFormat::Affine(AffineFormat { bits, group_size: 64, scale_dtype: DType::BF16 });
        let mut count = 0;
        for format in GgmlType::all().map(WeightFormat::Ggml).chain([4, 8].map(affine)) {
            let side = || matches!(format, WeightFormat::Affine(_)).then(|| buffer(n * k / 64 * 2, DType::BF16));
            let data = buffer(n * format.row_bytes(k).unwrap(), DType::U8);
            // Some formats have no products.
            let Ok(weight) = Weight::stack(format, 1, n, k, data, side(), side()) else { continue };
            let view = weight.matrix_view(device.id(), "matmul").unwrap();
            let Some(product) = Product::new(&view, [8, n, k], &info) else { continue };
            assert!(fits(&product), "{format:?}");
            count += 1;
            for m in 1..=Columns::Eight.rows() {
                let columns = Part::all(m, &options).next().unwrap().columns;
                let found = geometry(&product, Starts::Aligned, columns).unwrap();
                assert!(
                    found.stages >= LEAST_STAGES && found.shared_bytes <= info.shared_bytes,
                    "{format:?}: {found:?}"
                );
            }
        }
        assert_eq!(count, 15);
    }

    /// A few values more than 8192 leave a row its geometry, where a unit of their own would take every warp's third.
    #[test]
    fn short_tails_are_no_units() {
        let info = DeviceInfo::hopper();
        let options = DeviceOptions::default();
        let device = MlxDevice::reference().unwrap();
        let geometry_of = |ty, k: usize, m| {
            let (format, n) = (WeightFormat::Ggml(ty), 64);
            let data = device.alloc_buffer(n * format.row_bytes(k).unwrap(), DType::U8, vec![]).unwrap();
            let weight = Weight::stack(format, 1, n, k, data, None, None).unwrap();
            let view = weight.matrix_view(device.id(), "matmul").unwrap();
            let product = Product::new(&view, [m, n, k], &info).unwrap();
            geometry(&product, Starts::of(&[product]), Part::all(m, &options).next().unwrap().columns).unwrap()
        };
        let cut = |found: &Geometry| (found.tail, found.units, found.span, found.cluster);
        for ty in [GgmlType::Q4_0, GgmlType::MXFP4] {
            assert_eq!(cut(&geometry_of(ty, 8224, 1)), (Tail::Short, 2, 16, 1), "{ty:?}");
            assert_eq!(cut(&geometry_of(ty, 2112, 1)), (Tail::Short, 1, 8, 1), "{ty:?}");
            assert_eq!(geometry_of(ty, 2144, 1).tail, Tail::Part);
            assert_eq!(geometry_of(ty, 2112, 2).tail, Tail::Part);
            assert_eq!(geometry_of(ty, 2048, 1).tail, Tail::Whole);
        }
        // Stages of longer rows are too few beside it.
        assert_eq!(geometry_of(GgmlType::Q8_0, 2080, 1).tail, Tail::Short);
        assert_eq!(geometry_of(GgmlType::Q8_0, 4128, 1).tail, Tail::Part);
    }

    #[test]
    fn long_rows_are_shared_by_blocks_that_all_have_some() {
        let found = [1, 32, 33, 56, 64, 112, 128, 256, 257].map(|units| slices(units, 1, MOST_UNITS));
        let expected = [(1, 1), (1, 32), (2, 17), (4, 14), (4, 16), (8, 14), (8, 16), (8, 32)];
        assert_eq!(found[..8], expected.map(Some));
        assert_eq!(found[8], None);
        for (units, whole) in (1..=256).flat_map(|units| [1, 2, 4, 8].map(|whole| (units, whole))) {
            if let Some((blocks, slice)) = slices(units, whole, MOST_UNITS) {
                assert!(slice * (blocks - 1) < units && slice * blocks >= units, "{units}, {whole}");
            }
        }
    }
}
