//! Operations: one file each with the argument struct, all validation, and the `Op` that it records.
//!
//! A backend receives ops whose sizes, alignment, support and aliasing have been checked here and nowhere else.

mod attention;
mod cast;
pub(crate) mod check;
mod elementwise;
mod embedding;
mod experts;
pub(crate) mod fault;
mod matmul;
mod norm;
pub mod quantized_matmul;
pub mod quantized_matmul_ggml;
pub mod quantized_matmul_id_ggml;
mod rope;
pub(crate) mod sampling;
mod softmax;

pub use attention::{AttentionParams, KvCacheParams};
pub use cast::{CastDirection, cast};
pub use elementwise::{Activation, Binary};
pub use embedding::EmbeddingParams;
pub use experts::ExpertGateParams;
pub use norm::RmsNormParams;
pub use rope::{RopeParams, RopeStyle};
pub use sampling::SampleParams;

use arrayvec::ArrayVec;

pub(crate) use attention::{Attention, StoreKv};
pub(crate) use cast::Cast;
pub(crate) use elementwise::{BinaryOp, GatedActivation, SoftCap};
pub(crate) use embedding::Embedding;
pub(crate) use experts::{ExpertGate, ExpertSum};
pub(crate) use matmul::{Input, InputLayout, Matmul, MatmulId, WeightView, scale_bytes};
pub(crate) use norm::RmsNorm;
pub(crate) use rope::Rope;
pub(crate) use sampling::{ArgMax, Sample};
pub(crate) use softmax::Softmax;

use crate::buffer::View;

/// A recorded operation: views of buffers and checked parameters.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Matmul(Matmul),
    MatmulId(MatmulId),
    Cast(Cast),
    Binary(BinaryOp),
    GatedActivation(GatedActivation),
    SoftCap(SoftCap),
    RmsNorm(RmsNorm),
    Rope(Rope),
    Embedding(Embedding),
    Softmax(Softmax),
    StoreKv(StoreKv),
    Attention(Attention),
    ExpertGate(ExpertGate),
    ExpertSum(ExpertSum),
    ArgMax(ArgMax),
    Sample(Sample),
}

/// The views of one operation, at most three of a weight and three more. Recording asks for them several times an operation: they take no allocation.
pub(crate) type Views<'a> = ArrayVec<&'a View, 6>;

impl Op {
    /// The operation's name in messages and reports.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Op::Matmul(_) => "matmul",
            Op::MatmulId(_) => "matmul_id",
            Op::Cast(_) => "cast",
            Op::Binary(_) => "binary",
            Op::GatedActivation(_) => "gated_activation",
            Op::SoftCap(_) => "soft_cap",
            Op::RmsNorm(_) => "rms_norm",
            Op::Rope(_) => "rope",
            Op::Embedding(_) => "embedding",
            Op::Softmax(_) => "softmax",
            Op::StoreKv(_) => "store_kv",
            Op::Attention(_) => "attention",
            Op::ExpertGate(_) => "expert_gate",
            Op::ExpertSum(_) => "expert_sum",
            Op::ArgMax(_) => "argmax",
            Op::Sample(_) => "sample",
        }
    }

    /// The views that the operation reads.
    pub(crate) fn reads(&self) -> Views<'_> {
        match self {
            Op::Matmul(op) => op.weight.views().chain([&op.input.view]).collect(),
            Op::MatmulId(op) => op.weight.views().chain([&op.input.view, &op.ids]).collect(),
            Op::Cast(op) => [&op.input].into_iter().collect(),
            Op::Binary(op) => [&op.a, &op.b].into_iter().collect(),
            Op::GatedActivation(op) => [&op.gate, &op.up].into_iter().collect(),
            Op::SoftCap(op) => [&op.input].into_iter().collect(),
            Op::RmsNorm(op) => [&op.input, &op.weight].into_iter().chain(&op.residual).collect(),
            Op::Rope(op) => [&op.input, &op.positions].into_iter().chain(&op.frequency_factors).collect(),
            Op::Embedding(op) => op.weight.views().chain([&op.ids]).collect(),
            Op::Softmax(op) => [&op.input].into_iter().collect(),
            Op::StoreKv(op) => [&op.input].into_iter().collect(),
            Op::Attention(op) => [&op.q, &op.k_cache, &op.v_cache].into_iter().collect(),
            Op::ExpertGate(op) => [&op.logits].into_iter().collect(),
            Op::ExpertSum(op) => [&op.input, &op.weights].into_iter().collect(),
            Op::ArgMax(op) => [&op.input].into_iter().collect(),
            Op::Sample(op) => [&op.logits].into_iter().chain(&op.history).collect(),
        }
    }

    /// The views that the operation writes.
    pub(crate) fn writes(&self) -> Views<'_> {
        match self {
            Op::Matmul(op) => [&op.output].into_iter().collect(),
            Op::MatmulId(op) => [&op.output].into_iter().chain(op.scratch.iter().flatten()).collect(),
            Op::Cast(op) => [&op.output].into_iter().collect(),
            Op::Binary(op) => [&op.output].into_iter().collect(),
            Op::GatedActivation(op) => [&op.output].into_iter().collect(),
            Op::SoftCap(op) => [&op.output].into_iter().collect(),
            Op::RmsNorm(op) => [&op.output].into_iter().chain(&op.sum).collect(),
            Op::Rope(op) => [&op.output].into_iter().collect(),
            Op::Embedding(op) => [&op.output].into_iter().collect(),
            Op::Softmax(op) => [&op.output].into_iter().collect(),
            Op::StoreKv(op) => [&op.cache].into_iter().collect(),
            Op::Attention(op) => [&op.output].into_iter().collect(),
            Op::ExpertGate(op) => [&op.ids, &op.weights].into_iter().collect(),
            Op::ExpertSum(op) => [&op.output].into_iter().collect(),
            Op::ArgMax(op) => [&op.output].into_iter().collect(),
            Op::Sample(op) => [&op.output].into_iter().collect(),
        }
    }

    /// Whether the operation is defined when an output is the very bytes of the input `read`, one of its [`reads`](Self::reads)
    /// (element i of the output depends on no other row's input than the one it replaces).
    pub(crate) fn in_place(&self, read: &View) -> bool {
        match self {
            Op::Binary(_) | Op::GatedActivation(_) | Op::SoftCap(_) | Op::Softmax(_) => true,
            // Every row reads the weight.
            Op::RmsNorm(op) => !std::ptr::eq(read, &op.weight),
            Op::Rope(op) => std::ptr::eq(read, &op.input),
            _ => false,
        }
    }
}
