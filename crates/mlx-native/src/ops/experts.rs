//! The expert router's selection and the weighted sum of the experts' outputs.

use super::{Op, check};
use crate::buffer::View;
use crate::{CommandEncoder, DType, MlxBuffer, Result};

/// Parameters of [`CommandEncoder::expert_gate`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertGateParams {
    /// Tokens.
    pub n_tokens: usize,
    /// Experts, the width of a row of logits.
    pub n_experts: usize,
    /// Experts that each token goes to; at most `n_experts`.
    pub top_k: usize,
    /// Whether the chosen probabilities are divided by their sum (equal to a softmax over the chosen logits).
    pub normalize: bool,
}

/// The top_k largest probabilities of softmax(`logits[t]`), descending, equal ones by ascending id.
#[derive(Clone, Debug)]
pub(crate) struct ExpertGate {
    pub logits: View,
    pub ids: View,
    pub weights: View,
    pub params: ExpertGateParams,
}

/// `output[t][j]` = Σ_s `weights[t][s]` · `input[t·top_k + s][j]`
#[derive(Clone, Debug)]
pub(crate) struct ExpertSum {
    pub input: View,
    pub weights: View,
    pub output: View,
    pub n_tokens: usize,
    pub top_k: usize,
    pub n: usize,
}

impl CommandEncoder {
    /// Chooses experts: the `top_k` largest of softmax(`logits[t]`), largest first, equal ones by ascending id. logits f32
    /// `[n_tokens, n_experts]`, ids u32 and weights f32 `[n_tokens, top_k]`.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) for wrong dtypes, zero or overflowing dimensions, top_k above n_experts, or buffers that are too small.
    pub fn expert_gate(
        &mut self,
        logits: &MlxBuffer,
        ids: &mut MlxBuffer,
        weights: &mut MlxBuffer,
        params: &ExpertGateParams,
    ) -> Result<()> {
        let ExpertGateParams { n_tokens, n_experts, top_k, normalize: _ } = *params;
        check::non_zero("expert_gate", &[("n_tokens", n_tokens), ("n_experts", n_experts), ("top_k", top_k)])?;
        if top_k > n_experts {
            return check::invalid(format!("expert_gate: top_k {top_k} exceeds n_experts {n_experts}"));
        }
        check::dtype("expert_gate", "logits", logits, DType::F32)?;
        check::dtype("expert_gate", "ids", ids, DType::U32)?;
        check::dtype("expert_gate", "weights", weights, DType::F32)?;
        let logit_bytes = check::bytes("expert_gate", &[n_tokens, n_experts], DType::F32)?;
        let chosen_bytes = check::bytes("expert_gate", &[n_tokens, top_k], DType::F32)?;
        let device = self.device_id();
        self.record(Op::ExpertGate(ExpertGate {
            logits: logits.read(device, "logits", logit_bytes)?,
            ids: ids.write(device, "ids", chosen_bytes)?,
            weights: weights.write(device, "weights", chosen_bytes)?,
            params: *params,
        }))
    }

    /// `output[t][j]` = Σ_s `weights[t][s]` · `input[t·top_k + s][j]`, all f32: input `[n_tokens·top_k, n]`, weights `[n_tokens, top_k]`, output
    /// `[n_tokens, n]`.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) for wrong dtypes, zero or overflowing dimensions, or buffers that are too small.
    pub fn expert_sum(
        &mut self,
        input: &MlxBuffer,
        weights: &MlxBuffer,
        output: &mut MlxBuffer,
        n_tokens: usize,
        top_k: usize,
        n: usize,
    ) -> Result<()> {
        check::non_zero("expert_sum", &[("n_tokens", n_tokens), ("top_k", top_k), ("n", n)])?;
        for (name, buffer) in [("input", input), ("weights", weights), ("output", &*output)] {
            check::dtype("expert_sum", name, buffer, DType::F32)?;
        }
        let device = self.device_id();
        self.record(Op::ExpertSum(ExpertSum {
            input: input.read(device, "input", check::bytes("expert_sum", &[n_tokens, top_k, n], DType::F32)?)?,
            weights: weights.read(device, "weights", check::bytes("expert_sum", &[n_tokens, top_k], DType::F32)?)?,
            output: output.write(device, "output", check::bytes("expert_sum", &[n_tokens, n], DType::F32)?)?,
            n_tokens,
            top_k,
            n,
        }))
    }
}
