//! What only the data can tell: the texts of a wait's errors, the same on every device.

/// Slot `slot` (t·top_k + s) of an expert-routed product names an expert that does not exist.
pub(crate) fn bad_expert(slot: usize, id: u32, n_experts: usize) -> String {
    format!("matmul_id: slot {slot}: expert {id} of {n_experts}")
}

/// Token `token` names a row that the embedding does not have.
pub(crate) fn bad_row(token: usize, id: u32, n: usize) -> String {
    format!("embedding: token {token}: id {id} of {n}")
}

/// Nothing can be drawn from these logits.
pub(crate) fn nan_logit(index: usize) -> String {
    format!("sample: logit {index} is NaN")
}
