//! What must not be done: each misuse is the error that the contract names, with the words that help, and never a panic.

mod buffers;
mod devices;
mod operands;

use mlx_native::{DType, MlxBuffer, MlxDevice, MlxError, Result};

fn device() -> MlxDevice {
    MlxDevice::reference().unwrap()
}

/// Where what happens at run time is tested; what is refused when it is recorded is refused on every device alike.
fn devices() -> [MlxDevice; 2] {
    [device(), MlxDevice::cpu().unwrap()]
}

fn buffer(device: &MlxDevice, dtype: DType, len: usize) -> MlxBuffer {
    device.alloc_buffer(len * dtype.size_of(), dtype, vec![len]).unwrap()
}

/// The call is InvalidArgument, and its message has all of these words.
#[track_caller]
fn invalid<T>(result: Result<T>, words: &[&str]) {
    match result.map(|_| ()).unwrap_err() {
        MlxError::InvalidArgument(message) => {
            for word in words {
                assert!(message.contains(word), "`{word}` is missing in: {message}");
            }
        }
        other => panic!("expected InvalidArgument, got {other:?}"),
    }
}

#[track_caller]
fn pending<T>(result: Result<T>) {
    match result.map(|_| ()).unwrap_err() {
        MlxError::CommandBufferError(message) => assert!(message.contains("wait"), "{message}"),
        other => panic!("expected CommandBufferError, got {other:?}"),
    }
}
