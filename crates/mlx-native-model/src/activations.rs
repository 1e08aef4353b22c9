//! Hidden states and what becomes of them in a layer.

use mlx_native::{DType, MlxBuffer};

use crate::config::Experts;
use crate::{Model, Result};

/// What a forward pass begins with.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// `[n_tokens]`, u32
    pub ids: MlxBuffer,
    /// `[n_tokens]`, u32
    pub positions: MlxBuffer,
    /// `[1]`, f32: the logit of the one token that the pass before chose.
    pub logit: MlxBuffer,
}

/// The buffers of a forward pass for a fixed number of tokens, all f32.
#[derive(Debug)]
pub(crate) struct Activations {
    pub n_tokens: usize,
    /// `[n_tokens, hidden]`: the residual stream, and a second handle on it, through which it is updated in place.
    pub hidden: MlxBuffer,
    pub hidden_out: MlxBuffer,
    /// `[n_tokens, hidden]`: normed, ready for a product.
    pub normed: MlxBuffer,
    /// `[n_tokens, hidden]`: what a half of a layer adds to the residual stream, with a second handle as above.
    pub delta: MlxBuffer,
    pub delta_out: MlxBuffer,
    /// `[n_tokens, n_heads, head_dim]`, with a second handle
    pub q: MlxBuffer,
    pub q_out: MlxBuffer,
    /// `[n_tokens, n_kv_heads, head_dim]`, with a second handle
    pub k: MlxBuffer,
    pub k_out: MlxBuffer,
    /// `[n_tokens, n_kv_heads, head_dim]`, with a second handle
    pub v: MlxBuffer,
    pub v_out: MlxBuffer,
    /// `[n_tokens, n_heads, head_dim]`
    pub attended: MlxBuffer,
    /// Of feed-forward layers without experts.
    pub dense: Option<GatedActivations>,
    /// Of mixtures of experts.
    pub experts: Option<ExpertActivations>,
}

/// Between the halves of a gated feed-forward layer.
#[derive(Debug)]
pub(crate) struct GatedActivations {
    /// `[rows, feed_forward]`, with a second handle
    pub gate: MlxBuffer,
    pub gate_out: MlxBuffer,
    /// `[rows, feed_forward]`
    pub up: MlxBuffer,
}

/// In a mixture of experts.
#[derive(Debug)]
pub(crate) struct ExpertActivations {
    /// `[n_tokens, n_experts]`: logits.
    pub router: MlxBuffer,
    /// `[n_tokens · top_k]`, u32: the chosen experts.
    pub ids: MlxBuffer,
    /// `[n_tokens, top_k]`: what each counts for.
    pub shares: MlxBuffer,
    /// Rows are tokens times top_k.
    pub gated: GatedActivations,
    /// `[n_tokens · top_k, hidden]`
    pub outputs: MlxBuffer,
    pub shared: Option<SharedActivations>,
}

/// Of the expert that every token goes to.
#[derive(Debug)]
pub(crate) struct SharedActivations {
    pub gated: GatedActivations,
    /// `[n_tokens, hidden]`
    pub output: MlxBuffer,
    /// `[n_tokens, 2]`: its share and the complement, with a second handle.
    pub pair: MlxBuffer,
    pub pair_out: MlxBuffer,
    /// `[n_tokens, 1]`: its share.
    pub share: MlxBuffer,
    /// `[n_tokens, hidden]`: its output times its share.
    pub weighted: MlxBuffer,
}

/// A buffer of 4-byte elements `[rows, width]`.
fn buffer(model: &Model, dtype: DType, rows: usize, width: usize) -> Result<MlxBuffer> {
    Ok(model.device.alloc_buffer(rows * width * dtype.size_of(), dtype, vec![rows, width])?)
}

impl GatedActivations {
    fn new(model: &Model, rows: usize, width: usize) -> Result<GatedActivations> {
        let gate = buffer(model, DType::F32, rows, width)?;
        Ok(GatedActivations { gate_out: gate.clone(), gate, up: buffer(model, DType::F32, rows, width)? })
    }
}

impl ExpertActivations {
    fn new(model: &Model, n_tokens: usize, experts: &Experts) -> Result<ExpertActivations> {
        let hidden = model.config.hidden;
        let floats = |rows, width| buffer(model, DType::F32, rows, width);
        let slots = n_tokens * experts.top_k;
        let shared = match experts.shared {
            None => None,
            Some(length) => {
                let pair = floats(n_tokens, 2)?;
                Some(SharedActivations {
                    gated: GatedActivations::new(model, n_tokens, length)?,
                    output: floats(n_tokens, hidden)?,
                    pair_out: pair.clone(),
                    pair,
                    share: floats(n_tokens, 1)?,
                    weighted: floats(n_tokens, hidden)?,
                })
            }
        };
        Ok(ExpertActivations {
            router: floats(n_tokens, experts.n_experts)?,
            ids: buffer(model, DType::U32, slots, 1)?,
            shares: floats(n_tokens, experts.top_k)?,
            gated: GatedActivations::new(model, slots, experts.feed_forward)?,
            outputs: floats(slots, hidden)?,
            shared,
        })
    }
}

impl Inputs {
    pub(crate) fn new(model: &Model, n_tokens: usize) -> Result<Inputs> {
        Ok(Inputs {
            ids: buffer(model, DType::U32, n_tokens, 1)?,
            positions: buffer(model, DType::U32, n_tokens, 1)?,
            logit: buffer(model, DType::F32, 1, 1)?,
        })
    }

    /// Positions from `start` on.
    pub(crate) fn set_positions(&mut self, start: usize) -> Result<()> {
        let positions = self.positions.as_mut_slice::<u32>()?.iter_mut();
        positions.zip(start as u32..).for_each(|(position, at)| *position = at);
        Ok(())
    }
}

impl Activations {
    pub(crate) fn new(model: &Model, n_tokens: usize) -> Result<Activations> {
        let config = &model.config;
        let floats = |width: usize| buffer(model, DType::F32, n_tokens, width);
        let (hidden, delta) = (floats(config.hidden)?, floats(config.hidden)?);
        let q = floats(config.n_heads * config.head_dim)?;
        let k = floats(config.n_kv_heads * config.head_dim)?;
        let v = floats(config.n_kv_heads * config.head_dim)?;
        let has_dense = (0..config.n_layers).any(|layer| config.experts_of(layer).is_none());
        Ok(Activations {
            n_tokens,
            hidden_out: hidden.clone(),
            hidden,
            normed: floats(config.hidden)?,
            delta_out: delta.clone(),
            delta,
            q_out: q.clone(),
            q,
            k_out: k.clone(),
            k,
            v_out: v.clone(),
            v,
            attended: floats(config.n_heads * config.head_dim)?,
            dense: has_dense.then(|| GatedActivations::new(model, n_tokens, config.feed_forward)).transpose()?,
            experts: config.experts.as_ref().map(|e| ExpertActivations::new(model, n_tokens, e)).transpose()?,
        })
    }
}
