//! Argument structs that only CUDA's kernels have; the others are in `backend/gpu/args.rs`.

use crate::backend::gpu::args::{ArgType, args, render_struct};

args! {
    /// Products with weights, and rows of weights.
    ProductArgs {
        /// Bytes from one input row to the next.
        x_row: u64,
        /// Bytes from one input batch to the next.
        x_batch: u64,
        /// Bytes of a weight row.
        w_row: u64,
        /// Bytes from one matrix to the next: blocks or packed values, scales, biases.
        w_matrix: u64,
        s_matrix: u64,
        b_matrix: u64,
        /// Input rows (ids for rows of a weight, tokens of a routed product), output features, input features.
        m: u32,
        n: u32,
        k: u32,
        /// k rounded up to whole steps of the tile kernels.
        k_padded: u32,
        /// 0 for rows; else the input is [k / head_dim, m, head_dim].
        head_dim: u32,
        /// Values that share a scale, scales of a row (MLX formats).
        group_size: u32,
        groups: u32,
        /// Products that share a matrix.
        batch_ratio: u32,
        /// Experts of a token, experts.
        top_k: u32,
        n_experts: u32,
        /// Element types: 0 f32, 1 f16, 2 bf16.
        x_type: u32,
        y_type: u32,
        /// Warps that share a weight row: 1, 2 or 4.
        warps_per_row: u32,
        /// Factor on the rows of a weight.
        scale: f32,
    }
}

args! {
    /// Attention.
    PartArgs {
        n_heads: u32,
        n_kv_heads: u32,
        capacity: u32,
        head_dim: u32,
        /// Position of the first token.
        start: u32,
        /// Positions that a token sees, itself included; the capacity where there is no window.
        window: u32,
        scale: f32,
        /// 0 for none.
        soft_cap: f32,
        /// Parts that the positions are computed in.
        parts: u32,
        /// Whether every row of the caches starts at a multiple of 16 bytes.
        vectors: u32,
    }
}

args! {
    /// A draw, see [`SampleParams`](crate::SampleParams).
    SampleArgs {
        dim: u32,
        top_k: u32,
        temperature: f32,
        top_p: f32,
        min_p: f32,
        penalty: f32,
    }
}

args! {
    /// What differs from one draw to the next.
    SampleLive {
        /// The random number.
        uniform: f32,
        history_len: u32,
    }
}

args! {
    /// Moving matrices to where a kernel may read them.
    RealignArgs {
        /// Bytes of a matrix.
        bytes: u64,
        /// Bytes from one to the next, before and after.
        stride: u64,
        pitch: u64,
    }
}

/// Pairs of a [`RopeTable`].
pub(crate) const ROPE_PAIRS: usize = 256;

/// The turns that each pair makes in a position, as a float and what it leaves.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct RopeTable {
    pub turns: [[f32; 2]; ROPE_PAIRS],
}

impl RopeTable {
    /// The struct as source text.
    pub(crate) fn render() -> String {
        format!("struct RopeTable {{\n    float turns[{ROPE_PAIRS}][2];\n}};\n")
    }
}
