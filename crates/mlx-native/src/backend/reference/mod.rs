//! Every operation in f64, slow and obvious: what all other backends are compared with.
//!
//! Operands are widened to f64, the formula of `ops/` is evaluated with sums in index order, and a result is rounded once, to the
//! output's element type.

mod attention;
mod elementwise;
mod experts;
mod matmul;
mod operand;
mod rows;
mod sampling;
mod weight;

use std::sync::{Mutex, PoisonError};

use super::{Backend, Capability, CapabilityQuery, CommandList, Completed, Submission};
use crate::device::DeviceKind;
use crate::ops::Op;
use crate::{MlxError, Result};

/// The oracle.
#[derive(Default)]
pub(crate) struct ReferenceBackend {
    /// Lists run one after the other, so that two threads never meet in a buffer.
    running: Mutex<()>,
}

impl Backend for ReferenceBackend {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Reference
    }

    fn name(&self) -> String {
        "reference (f64)".into()
    }

    fn submit(&self, list: CommandList) -> Box<dyn Submission> {
        let _turn = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // What follows a bad id runs all the same: its row is NaN and goes on as NaN.
        let results: Vec<Result<()>> = list
            .ops()
            .iter()
            .map(|recorded| match recorded.kernel.as_deref() {
                None | Some(KERNEL) => run(&recorded.op),
                Some(other) => {
                    Err(MlxError::KernelNotFound(format!("{}: the reference has no `{other}`", recorded.op.name())))
                }
            })
            .collect();
        Box::new(Completed(results.into_iter().collect()))
    }

    fn capability(&self, _query: &CapabilityQuery) -> Capability {
        Capability { supported: true, kernel: KERNEL.into(), scratch_bytes: 0, why_not: None }
    }
}

/// The name of the only kernel.
const KERNEL: &str = "reference";

fn run(op: &Op) -> Result<()> {
    match op {
        Op::Matmul(op) => matmul::matmul(op),
        Op::MatmulId(op) => matmul::matmul_id(op),
        Op::Embedding(op) => matmul::embedding(op),
        Op::Cast(op) => elementwise::cast(op),
        Op::Binary(op) => elementwise::binary(op),
        Op::GatedActivation(op) => elementwise::gated_activation(op),
        Op::SoftCap(op) => elementwise::soft_cap(op),
        Op::RmsNorm(op) => rows::rms_norm(op),
        Op::Rope(op) => rows::rope(op),
        Op::Softmax(op) => rows::softmax(op),
        Op::StoreKv(op) => attention::store_kv(op),
        Op::Attention(op) => attention::attention(op),
        Op::ExpertGate(op) => experts::expert_gate(op),
        Op::ExpertSum(op) => experts::expert_sum(op),
        Op::ArgMax(op) => sampling::argmax(op),
        Op::Sample(op) => sampling::sample(op),
    }
}

/// The error of an operation that found a fault in its data.
fn faulted(message: Option<String>) -> Result<()> {
    message.map_or(Ok(()), |message| Err(MlxError::CommandBufferError(message)))
}
