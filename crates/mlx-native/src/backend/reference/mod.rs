//! Every operation in f64, slow and obvious: what all other backends are compared with.

use super::{Backend, Capability, CapabilityQuery, CommandList, Completed, Submission};
use crate::MlxError;
use crate::device::DeviceKind;

/// The oracle.
pub(crate) struct ReferenceBackend;

impl Backend for ReferenceBackend {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Reference
    }

    fn name(&self) -> String {
        "reference (f64)".into()
    }

    fn submit(&self, list: CommandList) -> Box<dyn Submission> {
        let message = list.ops().first().map(|recorded| format!("{} has no reference yet", recorded.op.name()));
        Box::new(Completed(message.map_or(Ok(()), |message| Err(MlxError::CommandBufferError(message)))))
    }

    fn capability(&self, _query: &CapabilityQuery) -> Capability {
        Capability { supported: true, kernel: "reference".into(), scratch_bytes: 0, why_not: None }
    }
}
