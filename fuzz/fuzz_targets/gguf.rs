//! Any bytes as a GGUF file: an error, or a file whose every value and tensor can be read and written again.
//!
//! ```text
//! cargo install cargo-fuzz
//! cargo +nightly fuzz run gguf fuzz/corpus/gguf crates/mlx-native/tests/golden/gguf -- -max_total_time=60 -max_len=4096
//! ```
//!
//! libFuzzer itself stops at a crash, at an allocation of more than 2 GB (`-rss_limit_mb`) and at an input that takes longer than
//! `-timeout` seconds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mlx_native::io::gguf::{GgufFile, GgufWriter, SPLIT_COUNT_KEY, SPLIT_NO_KEY, SPLIT_TENSORS_KEY};

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = GgufFile::parse(bytes) else { return };
    assert_eq!(file.metadata().count(), file.n_metadata());
    for (key, value) in file.metadata() {
        // As text, because NaN differs from itself.
        assert_eq!(file.get(key).map(|v| v.to_string()), Some(value.to_string()));
    }
    assert_eq!(file.tensors().count(), file.n_tensors());
    for tensor in file.tensors() {
        assert_eq!(file.tensor(tensor.name), Some(tensor));
        assert_eq!(file.tensor_data(&tensor).map(<[u8]>::len).ok(), Some(tensor.byte_len));
    }
    // Names longer than the specification allows can be read but not written.
    let Ok(writer) = GgufWriter::copy_of(&file) else { return };
    let mut written = Vec::new();
    writer.write_to(&mut written).expect("memory takes everything");
    let again = GgufFile::from_bytes(written).expect("what the writer writes is legal");
    for (a, b) in file.tensors().zip(again.tensors()) {
        assert_eq!((a.name, a.shape, a.ggml_type), (b.name, b.shape, b.ggml_type));
        assert_eq!(file.tensor_data(&a).ok(), again.tensor_data(&b).ok());
    }
    let split = [SPLIT_NO_KEY, SPLIT_COUNT_KEY, SPLIT_TENSORS_KEY];
    for (a, b) in file.metadata().filter(|(key, _)| !split.contains(key)).zip(again.metadata()) {
        assert_eq!((a.0, a.1.to_string()), (b.0, b.1.to_string()));
    }
});
