//! Any bytes as a safetensors file: an error, or a file whose every tensor can be read.
//!
//! ```text
//! cargo +nightly fuzz run safetensors fuzz/corpus/safetensors crates/mlx-native/tests/golden/mlx/sharded -- -max_total_time=60 -max_len=4096
//! ```
#![no_main]

use libfuzzer_sys::fuzz_target;
use mlx_native::io::FileMap;
use mlx_native::io::safetensors::SafetensorsFile;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = SafetensorsFile::from_map(FileMap::from_bytes(bytes)) else { return };
    let mut total = 0;
    for tensor in file.tensors() {
        assert_eq!(file.tensor(&tensor.name), Some(tensor));
        let data = file.tensor_data(tensor).expect("inside the file");
        if let Ok(dtype) = tensor.dtype() {
            assert_eq!(tensor.shape.iter().product::<usize>() * dtype.size_of(), data.len());
        }
        total += data.len();
    }
    assert!(total <= bytes.len());
});
