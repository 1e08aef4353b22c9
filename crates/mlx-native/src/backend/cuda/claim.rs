//! Who may fill a GPU with blocks that wait for each other: two such launches at once, each with half of the GPU, would wait for ever.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// GPUs that a device of this process has claimed.
static CLAIMED: Mutex<Option<HashSet<usize>>> = Mutex::new(None);

/// A device's claim on its GPU: the first of the process has it, until it is dropped. Other processes take turns with this one, but where NVIDIA's
/// multi-process service runs them side by side; nobody has it there.
pub(super) struct Claim {
    index: usize,
    pub(super) granted: bool,
}

impl Claim {
    pub(super) fn new(index: usize) -> Claim {
        let shared = std::env::var_os("CUDA_MPS_PIPE_DIRECTORY").is_some() || Path::new("/tmp/nvidia-mps").exists();
        Claim { index, granted: !shared && with(|claimed| claimed.insert(index)) }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.granted {
            with(|claimed| claimed.remove(&self.index));
        }
    }
}

fn with<T>(change: impl FnOnce(&mut HashSet<usize>) -> T) -> T {
    change(CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_device_at_a_time_has_a_gpu_to_itself() {
        // A GPU that no machine has, as other tests may open real ones.
        let first = Claim::new(1 << 20);
        if !first.granted {
            return; // the service runs here
        }
        assert!(!Claim::new(1 << 20).granted);
        assert!(Claim::new(1 << 20 | 1).granted);
        drop(first);
        assert!(Claim::new(1 << 20).granted);
    }
}
