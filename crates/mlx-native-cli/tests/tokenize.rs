//! `mlxn tokenize` on a small file with a byte-level vocabulary.

mod support;

use mlx_native::io::gguf::GgufWriter;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use support::{error_of, folder, mlxn};

/// A model file without tensors: tokens `h`, `i`, `hi` and the control token `<end>`.
fn vocabulary(folder: &Path) -> PathBuf {
    let path = folder.join("vocabulary.gguf");
    let mut writer = GgufWriter::new();
    let mut set = || -> mlx_native::Result<()> {
        writer.metadata("general.architecture", "llama")?;
        writer.metadata("tokenizer.ggml.model", "gpt2")?;
        writer.metadata("tokenizer.ggml.pre", "default")?;
        writer.metadata("tokenizer.ggml.tokens", &["h", "i", "hi", "<end>"][..])?;
        writer.metadata("tokenizer.ggml.token_type", &[1, 1, 1, 3][..])?;
        writer.metadata("tokenizer.ggml.merges", &["h i"][..])?;
        writer.metadata("tokenizer.ggml.eos_token_id", 3u32)?;
        Ok(())
    };
    set().expect("metadata");
    writer.write(&path).expect("a file");
    path
}

fn tokenize(file: &Path, text: &[u8], options: &[&str]) -> Output {
    let mut command = mlxn(file.parent().expect("its folder"), &["tokenize", file.to_str().expect("UTF-8")]);
    let mut child = command
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mlxn starts");
    child.stdin.take().expect("its input").write_all(text).expect("written");
    child.wait_with_output().expect("its output")
}

fn printed(file: &Path, text: &str, options: &[&str]) -> String {
    let output = tokenize(file, text.as_bytes(), options);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn ids() {
    let file = vocabulary(&folder("tokenize"));
    assert_eq!(printed(&file, "hih<end>", &["--json"]), "{\"ids\":[2,0,3]}\n");
    assert_eq!(printed(&file, "hih", &[]), "      2  \"hi\"\n      0  \"h\"\n");
    assert_eq!(printed(&file, "", &["--json"]), "{\"ids\":[]}\n");
    // The folder of the file is the model as well.
    assert_eq!(printed(file.parent().expect("its folder"), "hi", &["--json"]), "{\"ids\":[2]}\n");
}

#[test]
fn input_that_is_no_text() {
    let output = tokenize(&vocabulary(&folder("tokenize-bytes")), b"h\xff", &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not UTF-8"));
}

#[test]
fn models_that_are_none() {
    let cache = folder("tokenize-none");
    assert!(error_of(&mut mlxn(&cache, &["tokenize", "absent.gguf"])).contains("no such file"));
    let error = error_of(&mut mlxn(&cache, &["tokenize", "owner/repo"]));
    assert!(error.contains("mlxn pull owner/repo"), "{error}");
    let error = error_of(&mut mlxn(&cache, &["tokenize", cache.to_str().expect("UTF-8")]));
    assert!(error.contains("no GGUF file in this folder"), "{error}");
    let broken = cache.join("broken.gguf");
    std::fs::write(&broken, "GGUF").expect("written");
    assert!(error_of(&mut mlxn(&cache, &["tokenize", broken.to_str().expect("UTF-8")])).contains("broken.gguf"));
}
