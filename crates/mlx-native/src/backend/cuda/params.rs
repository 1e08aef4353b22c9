//! What a launch is given: addresses, values and tensor maps as the driver takes them.

use std::collections::HashMap;
use std::ffi::c_void;

use super::launches::Bound;
use super::memory::{CudaMapped, CudaMemory};
use super::tensor_map::EncodedTensorMap;
use crate::buffer::{SharedMemory, View};
use crate::{MlxError, Result};

/// The address of a view, for work that reads it, and writes it when `writes`.
pub(super) fn address(view: &View, memory: &SharedMemory, writes: bool) -> Result<u64> {
    let any = memory.as_any();
    let base = if let Some(memory) = any.downcast_ref::<CudaMemory>() {
        memory.device_address(writes)?
    } else if let Some(memory) = any.downcast_ref::<CudaMapped>() {
        memory.device_address()?
    } else {
        return Err(MlxError::CommandBufferError("cuda: a buffer that is not the device's".into()));
    };
    Ok(base + view.offset as u64)
}

/// The address of a view or of scratch memory.
fn bound_address(bound: &Bound, scratch: &[u64]) -> Result<u64> {
    match bound {
        // What the host wrote was sent before, and who writes was noted.
        Bound::View(view) => address(view, &view.storage.memory(), false),
        Bound::Scratch(index) => scratch.get(*index).copied().ok_or_else(|| {
            MlxError::CommandBufferError(format!("cuda: scratch memory {index} is not part of the plan"))
        }),
        _ => Err(MlxError::CommandBufferError("cuda: a binding without an address".into())),
    }
}

/// A struct of addresses and values.
fn record_bytes(fields: &[Bound], scratch: &[u64]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for field in fields {
        match field {
            Bound::Value(value) => bytes.extend_from_slice(value),
            _ => bytes.extend_from_slice(&bound_address(field, scratch)?.to_ne_bytes()),
        }
    }
    Ok(bytes)
}

/// The parameters of a launch: bytes of each, at an offset that suits every type.
#[derive(Default)]
pub(super) struct Params {
    words: Vec<[u64; 2]>,
    /// First word of each parameter.
    starts: Vec<usize>,
    tensors: Vec<EncodedTensorMap>,
    /// For each parameter that is a tensor map, its index.
    tensor_at: HashMap<usize, usize>,
}

impl Params {
    /// A parameter that depends on the plan alone; `scratch` has the addresses of its scratch memories.
    pub(super) fn bind(&mut self, bound: &Bound, scratch: &[u64]) -> Result<()> {
        match bound {
            Bound::Value(value) => self.bytes(value),
            Bound::Record(fields) => self.bytes(&record_bytes(fields, scratch)?),
            Bound::Tensor(map, of) => self.tensor(map.encode(bound_address(of, scratch)?)?),
            _ => self.address(bound_address(bound, scratch)?),
        }
        Ok(())
    }

    pub(super) fn address(&mut self, address: u64) {
        self.bytes(&address.to_ne_bytes());
    }

    pub(super) fn value<T: bytemuck::Pod>(&mut self, value: &T) {
        self.bytes(bytemuck::bytes_of(value));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.starts.push(self.words.len());
        for chunk in bytes.chunks(16) {
            let mut word = [0u8; 16];
            word[..chunk.len()].copy_from_slice(chunk);
            self.words.push(bytemuck::cast(word));
        }
    }

    fn tensor(&mut self, map: EncodedTensorMap) {
        self.tensor_at.insert(self.starts.len(), self.tensors.len());
        self.starts.push(self.words.len());
        self.tensors.push(map);
    }

    /// A pointer to each parameter, good until the next change.
    pub(super) fn pointers(&mut self) -> Vec<*mut c_void> {
        let words = self.words.as_mut_ptr();
        let tensors = self.tensors.as_mut_ptr();
        let pointers = self.starts.iter().enumerate().map(|(i, &start)| match self.tensor_at.get(&i) {
            Some(&tensor) => tensors.wrapping_add(tensor).cast(),
            None => words.wrapping_add(start).cast(),
        });
        pointers.collect()
    }
}
