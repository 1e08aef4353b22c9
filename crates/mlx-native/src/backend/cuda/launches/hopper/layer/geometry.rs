//! How the products of a layer are cut into slots of shared memory.

use super::PHASES;
use crate::backend::cuda::launches::Bound;
use crate::backend::cuda::launches::hopper::matvec::{BOX_BYTES, WARPS, boxed_rows};
use crate::backend::cuda::launches::hopper::{Format, MATRICES, Product, STRIP, UNIT, pitch_of};

/// Slots at most, and stages at least.
pub(super) const MOST_SLOTS: usize = 24;
const LEAST_STAGES: usize = 3;
/// What `LayerLayout` has before the sums of x: barriers and shares of norms, sums of warps, room to put values into a format's order.
pub(super) const FIXED_BYTES: usize = 640 + 3 * WARPS * 128 + WARPS * 1024;
/// Slices of a row at most.
const MOST_SLICES: usize = 8;

/// How a product's rows are cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cut {
    pub(super) slices: usize,
    pub(super) span: usize,
    pub(super) piece: usize,
    pub(super) pitch: usize,
}

impl Cut {
    /// In `slices` slices and `pieces` slots a stage; none where that leaves too many warps without a unit, or does not fit.
    pub(super) fn new(product: &Product<'_>, slices: usize, pieces: usize) -> Option<Cut> {
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
        STRIP * self.pitch
    }
}

/// How all products are cut, and the ring of slots that their weights go through.
pub(super) struct Geometry {
    /// Slots of a stage.
    pub(super) pieces: usize,
    pub(super) cuts: [Cut; PHASES],
    pub(super) slot_bytes: usize,
    pub(super) slots: usize,
    pub(super) shared_bytes: usize,
}

impl Geometry {
    /// The first of the ways to cut that leaves the memory something to do; none where no way does.
    pub(super) fn of(phases: &[Vec<Product<'_>>; PHASES]) -> Option<Geometry> {
        [2, 4, 1].into_iter().find_map(|pieces| Geometry::new(phases, pieces))
    }

    fn new(phases: &[Vec<Product<'_>>; PHASES], pieces: usize) -> Option<Geometry> {
        let whole = |phase: usize| Cut::new(&phases[phase][0], 1, pieces);
        // Its rows are the longest: more units than a block has warps.
        let down = (1..=MOST_SLICES).find_map(|slices| Cut::new(&phases[2][0], slices, pieces))?;
        let cuts = [whole(0)?, whole(1)?, down, whole(3)?];
        let slot_bytes = cuts.iter().map(Cut::slot_bytes).max()?.next_multiple_of(128);
        let tables = phases.iter().flatten().map(|product| table(product.format)).max()? * WARPS;
        let room = phases[0][0].info.shared_bytes.saturating_sub(FIXED_BYTES + tables);
        // Each slot has warps of its own.
        let slots = (room / slot_bytes).min(MOST_SLOTS) / pieces * pieces;
        let shared_bytes = slots * slot_bytes + FIXED_BYTES + tables;
        (slots >= LEAST_STAGES * pieces).then_some(Geometry { pieces, cuts, slot_bytes, slots, shared_bytes })
    }

    /// Tensor maps over the weights, one for each matrix that a layer may have.
    pub(super) fn maps(&self, phases: &[Vec<Product<'_>>; PHASES]) -> Vec<Bound> {
        let mut maps = Vec::new();
        for (products, cut) in phases.iter().zip(&self.cuts) {
            let map = |product: &Product<'_>| {
                boxed_rows(&product.weight.data, 8, [product.w_row, product.n], [cut.pitch, STRIP])
            };
            maps.extend(products.iter().map(map));
        }
        // Products that are not there have no groups.
        let last = maps.last().cloned();
        maps.extend(last.into_iter().cycle().take(MATRICES - phases[3].len()));
        maps
    }
}

/// Bytes of a warp's sums of x, `layer_table` in layer_state.cu.
pub(super) fn table(format: Format) -> usize {
    match format {
        Format { folded: true, .. } => 512,
        Format { sums: false, .. } => 0,
        Format { sub, .. } => UNIT / sub * 8,
    }
}
