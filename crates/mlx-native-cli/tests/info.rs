//! `mlxn info` on a small file.

mod support;

use mlx_native::GgmlType;
use mlx_native::io::gguf::GgufWriter;
use std::process::Stdio;
use support::{error_of, folder, mlxn, stdout_of};

#[test]
fn what_a_file_holds() {
    let folder = folder("info");
    let path = folder.join("small.gguf");
    let mut writer = GgufWriter::new();
    let (matrix, norm) = ([0u8; 64 * 18], [0u8; 256]);
    let mut fill = || -> mlx_native::Result<()> {
        writer.metadata("general.architecture", "llama")?;
        writer.metadata("general.name", "\x1b[2Jcleared")?;
        writer.metadata("llama.attention.layer_norm_rms_epsilon", 1e-5f32)?;
        writer.metadata("tokenizer.ggml.token_type", &[1i32; 100][..])?;
        writer.tensor("output.weight", &[64, 32], GgmlType::Q4_0, &matrix[..])?;
        writer.tensor("output_norm.weight", &[64], GgmlType::F32, &norm[..])?;
        Ok(())
    };
    fill().expect("a model");
    writer.write(&path).expect("a file");
    let path = path.to_str().expect("UTF-8");

    let info: serde_json::Value =
        serde_json::from_str(&stdout_of(&mut mlxn(&folder, &["info", path, "--json"]))).expect("JSON");
    assert_eq!(info["parameters"], 64 * 32 + 64);
    assert_eq!((&info["architecture"], &info["runs"]), (&"llama".into(), &true.into()));
    assert_eq!(info["metadata"]["llama.attention.layer_norm_rms_epsilon"], 1e-5);
    assert_eq!(info["metadata"]["tokenizer.ggml.token_type"]["length"], 100);
    assert_eq!(info["tensors"][0]["name"], "output.weight");
    assert_eq!(info["tensors"][0]["shape"], serde_json::json!([64, 32]));
    let formats = info["formats"].as_array().expect("formats");
    let q4_0 = formats.iter().find(|format| format["format"] == GgmlType::Q4_0.name()).expect("Q4_0");
    assert_eq!((&q4_0["tensors"], &q4_0["bytes"]), (&1.into(), &(64 * 18).into()));
    assert_eq!(q4_0["matmul"]["cpu"].as_array().expect("the CPU's kernels").len(), 2);
    let full = stdout_of(&mut mlxn(&folder, &["info", path, "--json", "--full"]));
    let full: serde_json::Value = serde_json::from_str(&full).expect("JSON");
    assert_eq!(full["metadata"]["tokenizer.ggml.token_type"].as_array().map(Vec::len), Some(100));

    let text = stdout_of(&mut mlxn(&folder, &["info", path]));
    for part in ["GGUF 3", "architecture llama", "output_norm.weight", "100 × i32", "\\u{1b}[2Jcleared"] {
        assert!(text.contains(part), "{part} in {text}");
    }

    let unread = mlxn(&folder, &["info", path]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut unread = unread.expect("mlxn starts");
    drop(unread.stdout.take());
    let output = unread.wait_with_output().expect("its output");
    assert!(output.status.success() && output.stderr.is_empty(), "a reader that goes is no failure");
}

#[test]
fn what_is_no_model() {
    let folder = folder("info-none");
    let path = folder.join("text.gguf");
    std::fs::write(&path, "not a model at all, but long enough for a header").expect("written");
    let error = error_of(&mut mlxn(&folder, &["info", path.to_str().expect("UTF-8")]));
    assert!(error.contains("text.gguf"), "{error}");
}
