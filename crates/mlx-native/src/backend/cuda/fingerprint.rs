//! What two runs of a list must have in common so that one captured graph serves both: everything but the live values.

use super::launches::attention::bucket;
use crate::DType;
use crate::format::WeightFormat;
use crate::ops::{Input, InputLayout, Op, WeightView};

/// A list as words; lists with the same words have the same launches.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint(Vec<u64>);

impl Fingerprint {
    fn words<const N: usize>(&mut self, words: [u64; N]) {
        self.0.extend_from_slice(&words);
    }

    fn sizes<const N: usize>(&mut self, sizes: [usize; N]) {
        self.0.extend(sizes.map(|size| size as u64));
    }

    fn floats<const N: usize>(&mut self, floats: [f32; N]) {
        self.0.extend(floats.map(|float| u64::from(float.to_bits())));
    }

    fn dtype(&mut self, dtype: DType) {
        self.words([dtype as u64]);
    }

    fn weight(&mut self, weight: &WeightView) {
        match weight.format {
            WeightFormat::Ggml(ty) => self.words([0, ty as u64]),
            WeightFormat::Affine(affine) => {
                self.words([1, u64::from(affine.bits), u64::from(affine.group_size), affine.scale_dtype as u64]);
            }
            WeightFormat::Fp(mode) => self.words([2, mode as u64]),
        }
        self.sizes(weight.strides);
        self.words([u64::from(weight.transposed)]);
    }

    fn input(&mut self, input: &Input) {
        self.dtype(input.dtype);
        match input.layout {
            InputLayout::Rows { row_bytes, batch_bytes } => self.sizes([0, row_bytes, batch_bytes]),
            InputLayout::Heads { head_dim } => self.sizes([1, head_dim]),
        }
    }

    /// Adds an operation whose views, reads before writes, lie at these addresses.
    pub(super) fn add(&mut self, op: &Op, addresses: &[u64]) {
        self.0.extend_from_slice(addresses);
        match op {
            Op::Matmul(op) => {
                self.sizes([0, op.batch, op.weight_batch, op.m, op.n, op.k]);
                self.dtype(op.output_dtype);
                self.weight(&op.weight);
                self.input(&op.input);
            }
            Op::MatmulId(op) => {
                self.sizes([1, op.n_tokens, op.top_k, op.n_experts, op.n, op.k, usize::from(op.scratch.is_some())]);
                self.weight(&op.weight);
                self.input(&op.input);
            }
            Op::Cast(op) => self.words([2, op.len as u64, op.direction as u64]),
            Op::Binary(op) => self.words([3, op.len as u64, op.b_len as u64, op.kind as u64]),
            Op::GatedActivation(op) => self.words([4, op.len as u64, op.activation as u64]),
            Op::SoftCap(op) => self.words([5, op.len as u64, u64::from(op.cap.to_bits())]),
            Op::RmsNorm(op) => {
                self.sizes([6, op.params.rows, op.params.dim, usize::from(op.residual.is_some())]);
                self.floats([op.params.eps]);
            }
            Op::Rope(op) => {
                let params = &op.params;
                self.sizes([7, params.n_tokens, params.n_heads, params.head_dim, params.n_rot]);
                self.floats([params.base, params.frequency_scale]);
                self.words([params.style as u64, op.positions.dtype as u64, u64::from(op.frequency_factors.is_some())]);
            }
            Op::Embedding(op) => {
                self.sizes([8, op.params.n_tokens, op.n, op.k]);
                self.floats([op.params.scale]);
                self.weight(&op.weight);
            }
            Op::Softmax(op) => {
                self.sizes([9, op.rows, op.dim]);
                self.floats([op.scale]);
            }
            Op::StoreKv(op) => {
                let shape = &op.shape;
                self.sizes([10, shape.n_kv_heads, shape.capacity, shape.head_dim, op.n_tokens]);
                self.dtype(op.cache.dtype);
            }
            Op::Attention(op) => {
                let (params, shape) = (&op.params, &op.params.cache);
                self.sizes([11, shape.n_kv_heads, shape.capacity, shape.head_dim, params.n_heads, params.n_tokens]);
                self.sizes([bucket(op), params.window.unwrap_or(usize::MAX)]);
                self.floats([params.scale, params.soft_cap.unwrap_or(0.0)]);
                self.dtype(op.k_cache.dtype);
            }
            Op::ExpertGate(op) => {
                let params = &op.params;
                self.sizes([12, params.n_tokens, params.n_experts, params.top_k, usize::from(params.normalize)]);
            }
            Op::ExpertSum(op) => self.sizes([13, op.n_tokens, op.top_k, op.n]),
            Op::ArgMax(op) => self.sizes([14, op.rows, op.dim]),
            Op::Sample(op) => {
                let params = &op.params;
                // The grid of the penalty grows with the history, in powers of two.
                let history = op.history.as_ref().map_or(0, |history| (history.len / 4).next_power_of_two());
                self.sizes([15, op.dim, params.top_k, history]);
                self.floats([params.temperature, params.top_p, params.min_p, params.repetition_penalty]);
            }
        }
    }
}
