//! What `hopper_layer` is told of each product: `LayerProduct` in layer_state.cu.

use crate::backend::cuda::launches::Bound;
use crate::backend::gpu::args::{ArgType, args, render_struct};
use crate::buffer::View;

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
        /// `Becomes` in layer_state.cu.
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

/// What becomes of the sums of a product, `Becomes` in layer_state.cu.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Becomes {
    Outputs,
    Residual,
    Gated,
    Slices,
}

/// What a product reads and writes, in the order of `LayerProduct`; null where there is nothing.
#[derive(Default)]
pub(super) struct Addresses {
    pub(super) x: Option<Bound>,
    /// What the slices of the product before left; their sum goes to `joined`, and x + it to `sums`.
    pub(super) parts: Option<Bound>,
    pub(super) joined: Option<Bound>,
    /// The factors of the norm of the input, and where it is kept.
    pub(super) norm: Option<Bound>,
    pub(super) normed: Option<Bound>,
    pub(super) outputs: [Option<Bound>; 3],
    /// What the outputs are added to, and where that sum goes.
    pub(super) residual: Option<Bound>,
    pub(super) sums: Option<Bound>,
}

/// Addresses of a record.
pub(super) const ADDRESSES: usize = 10;

impl Addresses {
    pub(super) fn bindings(self) -> [Bound; ADDRESSES] {
        let [first, second, third] = self.outputs;
        let (x, parts, joined, norm) = (self.x, self.parts, self.joined, self.norm);
        [x, parts, joined, norm, self.normed, first, second, third, self.residual, self.sums]
            .map(|bound| bound.unwrap_or_else(|| Bound::value(&0u64)))
    }
}

/// The address of a view that is there.
pub(super) fn at(view: &View) -> Option<Bound> {
    Some(Bound::view(view))
}
