//! Expert-routed products with GGML weights.

use super::check;
use super::matmul::{GgmlSlabs, IdOperands, IdShape, ggml_view, matmul_id};
use crate::buffer::View;
use crate::device::DeviceId;
use crate::{CommandEncoder, DType, GgmlType, KernelRegistry, MlxBuffer, MlxDevice, Result};

/// Up to this many tokens a GPU goes row by row, above it through one token list per expert.
pub const MM_ID_ROUTING_THRESHOLD: u32 = 8;

/// Parameters of [`quantized_matmul_id_ggml`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlQuantizedMatmulIdParams {
    /// Input rows.
    pub n_tokens: u32,
    /// Experts of each token.
    pub top_k: u32,
    /// Output features of an expert.
    pub n: u32,
    /// Input features, whole blocks.
    pub k: u32,
    /// Experts in the weight.
    pub n_experts: u32,
    /// Bytes from one expert's matrix to the next, at least one matrix.
    pub expert_stride: u64,
    /// Format of the weight.
    pub ggml_type: GgmlType,
}

/// The lists that the pooled form reuses: how many slots each expert got, and which.
#[derive(Debug)]
pub struct IdMmScratch {
    /// u32 `[n_experts]`: slots of each expert.
    pub htpe: MlxBuffer,
    /// u32 `[max_n_tokens · n_experts]`: the slots t·top_k + s, expert after expert.
    pub hids: MlxBuffer,
}

impl IdMmScratch {
    /// Scratch for up to `max_n_tokens` tokens and any top_k ≤ n_experts.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) when a number is 0 or their product overflows; an allocation error.
    pub fn alloc(device: &MlxDevice, n_experts: u32, max_n_tokens: u32) -> Result<IdMmScratch> {
        let (n_experts, max_n_tokens) = (n_experts as usize, max_n_tokens as usize);
        check::non_zero("IdMmScratch::alloc", &[("n_experts", n_experts), ("max_n_tokens", max_n_tokens)])?;
        let slots = check::product("IdMmScratch::alloc", &[n_experts, max_n_tokens])?;
        Ok(IdMmScratch {
            htpe: device.alloc_buffer(n_experts * 4, DType::U32, vec![n_experts])?,
            hids: device.alloc_buffer(slots * 4, DType::U32, vec![n_experts, max_n_tokens])?,
        })
    }

    pub(super) fn views(
        &mut self,
        device: DeviceId,
        n_experts: usize,
        n_tokens: usize,
        top_k: usize,
    ) -> Result<[View; 2]> {
        if top_k > n_experts {
            return check::invalid(format!("scratch: top_k {top_k} exceeds n_experts {n_experts}"));
        }
        let wanted = check::product("scratch", &[n_experts, n_tokens])?;
        if self.hids.element_count() < wanted {
            return check::invalid(format!(
                "scratch.hids: {n_tokens} tokens and {n_experts} experts need {wanted} elements, got {}",
                self.hids.element_count()
            ));
        }
        let slots = check::product("scratch", &[n_tokens, top_k])?;
        Ok([
            self.htpe.write(device, "scratch.htpe", n_experts * 4)?,
            self.hids.write(device, "scratch.hids", slots * 4)?,
        ])
    }
}

/// `output[t·top_k + s][j]` = Σ_l dequant(`weight[e][j][l]`) · `input[t][l]` with e = `ids[t·top_k + s]`: input f32 `[n_tokens, k]`, weight `[n_experts]`
/// slabs of `[n, k]` blocks, `expert_stride` bytes apart, ids u32 `[n_tokens, top_k]`, output f32 `[n_tokens·top_k, n]`.
///
/// # Errors
///
/// [`InvalidArgument`](crate::MlxError::InvalidArgument) as for the dense product, and when the stride is shorter than a slab. An id ≥ n_experts reads nothing out of
/// bounds: its row is NaN, and the wait returns an error that names the first such slot.
#[allow(clippy::too_many_arguments)] // the published signature
pub fn quantized_matmul_id_ggml(
    encoder: &mut CommandEncoder,
    registry: &mut KernelRegistry,
    _device: &MlxDevice,
    input: &MlxBuffer,
    weight: &MlxBuffer,
    ids: &MlxBuffer,
    output: &mut MlxBuffer,
    params: &GgmlQuantizedMatmulIdParams,
) -> Result<()> {
    record(encoder, registry, weight, IdOperands { input, ids, output, scratch: None }, params)
}

/// [`quantized_matmul_id_ggml`] over the caller's scratch; allocates nothing on a device.
///
/// # Errors
///
/// As [`quantized_matmul_id_ggml`], and when the scratch is too small or top_k exceeds n_experts.
#[allow(clippy::too_many_arguments)] // the published signature
pub fn quantized_matmul_id_ggml_pooled(
    encoder: &mut CommandEncoder,
    registry: &mut KernelRegistry,
    _device: &MlxDevice,
    input: &MlxBuffer,
    weight: &MlxBuffer,
    ids: &MlxBuffer,
    output: &mut MlxBuffer,
    scratch: &mut IdMmScratch,
    params: &GgmlQuantizedMatmulIdParams,
) -> Result<()> {
    record(encoder, registry, weight, IdOperands { input, ids, output, scratch: Some(scratch) }, params)
}

fn record(
    encoder: &mut CommandEncoder,
    registry: &KernelRegistry,
    weight: &MlxBuffer,
    operands: IdOperands<'_>,
    params: &GgmlQuantizedMatmulIdParams,
) -> Result<()> {
    const OP: &str = "quantized_matmul_id_ggml";
    let [n_tokens, top_k, n, k, n_experts] =
        [params.n_tokens, params.top_k, params.n, params.k, params.n_experts].map(|dim| dim as usize);
    let dims = [("n_tokens", n_tokens), ("top_k", top_k), ("n", n), ("k", k), ("n_experts", n_experts)];
    check::non_zero(OP, &dims)?;
    let slabs = GgmlSlabs { ty: params.ggml_type, slabs: n_experts, n, k, stride: Some(params.expert_stride) };
    let weight = ggml_view(OP, encoder.device_id(), weight, &slabs)?;
    let op = matmul_id(encoder.device_id(), operands, weight, IdShape { n_tokens, top_k, n_experts, n, k })?;
    encoder.force(registry);
    encoder.record(op)
}
