//! `mlxn quantize` on small models, and what the other commands make of the results.

mod support;

use mlx_native::io::gguf::{GgufFile, GgufWriter};
use mlx_native::io::mlx_dir::MlxModelDir;
use mlx_native::{GgmlType, MlxDevice};
use mlx_native_model::{Model, SessionOptions};
use std::path::{Path, PathBuf};
use support::{error_of, folder, mlxn, run, stdout_of};

/// A llama of one layer, 96 wide, whose weights are small waves.
fn write_model(path: &Path, change: impl Fn(&str, &mut [f32])) {
    const HIDDEN: u64 = 96;
    let mut writer = GgufWriter::new();
    writer.metadata("general.architecture", "llama").expect("a key");
    for (key, value) in [
        ("block_count", 1_u32),
        ("context_length", 64),
        ("embedding_length", 96),
        ("feed_forward_length", 128),
        ("attention.head_count", 3),
        ("attention.head_count_kv", 3),
    ] {
        writer.metadata(&format!("llama.{key}"), value).expect("a key");
    }
    let tokens: Vec<String> = ["<unk>", "<s>", "</s>"].iter().map(|text| text.to_string()).collect();
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let tokens: Vec<String> = tokens.into_iter().chain(bytes).collect();
    let n_tokens = tokens.len();
    let kinds: Vec<i32> = (0..n_tokens).map(|id| [2, 3, 3].get(id).copied().unwrap_or(6)).collect();
    writer.metadata("tokenizer.ggml.model", "llama").expect("a key");
    writer.metadata("tokenizer.ggml.tokens", tokens).expect("a key");
    writer.metadata("tokenizer.ggml.scores", vec![0f32; n_tokens]).expect("a key");
    writer.metadata("tokenizer.ggml.token_type", kinds).expect("a key");
    let mut tensor = |name: &str, shape: &[u64]| {
        let count = shape.iter().product::<u64>();
        let mut values: Vec<f32> = match shape.len() {
            1 => vec![1.0; count as usize],
            _ => (0..count).map(|i| (i as f32 * 0.37 + name.len() as f32).sin() * 0.1).collect(),
        };
        change(name, &mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.tensor(name, shape, GgmlType::F32, bytes).expect("a tensor");
    };
    tensor("token_embd.weight", &[n_tokens as u64, HIDDEN]);
    tensor("output_norm.weight", &[HIDDEN]);
    tensor("blk.0.attn_norm.weight", &[HIDDEN]);
    tensor("blk.0.ffn_norm.weight", &[HIDDEN]);
    for part in ["attn_q", "attn_k", "attn_v", "attn_output"] {
        tensor(&format!("blk.0.{part}.weight"), &[HIDDEN, HIDDEN]);
    }
    tensor("blk.0.ffn_gate.weight", &[128, HIDDEN]);
    tensor("blk.0.ffn_up.weight", &[128, HIDDEN]);
    tensor("blk.0.ffn_down.weight", &[HIDDEN, 128]);
    writer.write(path).expect("the model");
}

struct Fixture {
    folder: PathBuf,
    source: String,
}

fn fixture(test: &str) -> Fixture {
    let folder = folder(test);
    let source = folder.join("model.gguf");
    write_model(&source, |_, _| {});
    Fixture { source: source.to_string_lossy().into_owned(), folder }
}

impl Fixture {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// Quantizes and returns what the program says on standard error.
    fn quantize(&self, from: &str, to: &str, format: &str) -> String {
        let mut command = mlxn(&self.folder, &["quantize", from, to, "--format", format]);
        let output = run(&mut command);
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(output.status.success(), "{format}: {stderr}");
        assert_eq!(String::from_utf8(output.stdout).expect("UTF-8").trim_end(), to);
        stderr
    }

    /// What a model computes for a few tokens.
    fn logits(&self, model: &str) -> Vec<f32> {
        let model = Model::open(model, &MlxDevice::cpu().expect("a device")).expect("a model");
        let mut session = model.session(SessionOptions::default()).expect("a session");
        session.forward_all(&[1, 70, 71, 40, 100, 3]).expect("logits")
    }

    /// The same but for the noise of the format, which these waves amplify: Σ(a − b)² / Σ b². A layout that is wrong gives 1.
    fn agree(&self, model: &str, source: &str, bound: f64) {
        let (a, b) = (self.logits(model), self.logits(source));
        let error: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let nmse = error / b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>();
        println!("{model}: NMSE {nmse:.1e}");
        assert!(nmse <= bound, "{model}: NMSE {nmse:e}");
    }
}

#[test]
fn a_directory_and_back_is_the_same_model() {
    let fixture = fixture("quantize-round-trip");
    // 96 is no multiple of 64, so that most matrices take groups of 32.
    let said = fixture.quantize(&fixture.source, &fixture.path("dir"), "affine8");
    assert!(said.contains("rows of 96 take groups of 32"), "{said}");
    let dir = MlxModelDir::open(fixture.path("dir")).expect("a directory");
    let name = |layer: &str| dir.weight(layer).expect("a weight").format.name().into_owned();
    assert_eq!(name("model.layers.0.self_attn.q_proj"), "affine8_g32_f16");
    assert_eq!(name("model.layers.0.mlp.down_proj"), "affine8_g64_f16");
    assert_eq!(name("model.embed_tokens"), "affine8_g32_f16");
    fixture.agree(&fixture.path("dir"), &fixture.source, 5e-3);

    let said = fixture.quantize(&fixture.path("dir"), &fixture.path("back.gguf"), "bf16");
    assert!(!said.contains("again"), "{said}");
    let back = GgufFile::open(fixture.path("back.gguf")).expect("a file");
    assert_eq!(back.required_tensor("blk.0.attn_q.weight").expect("a tensor").ggml_type, GgmlType::BF16);
    assert_eq!(back.required_tensor("blk.0.attn_norm.weight").expect("a tensor").ggml_type, GgmlType::F32);
    fixture.agree(&fixture.path("back.gguf"), &fixture.path("dir"), 1e-4);

    let said = fixture.quantize(&fixture.path("dir"), &fixture.path("again"), "mxfp8");
    assert!(said.contains("the source is quantized already"), "{said}");
    fixture.agree(&fixture.path("again"), &fixture.path("dir"), 1e-1);
    let args = ["run", &fixture.path("again"), "--raw", "abc", "-n", "4", "--device", "cpu", "-q"];
    stdout_of(&mut mlxn(&fixture.folder, &args));
    let listed = std::fs::read_dir(&fixture.folder).expect("the folder").flatten();
    let left: Vec<_> = listed.filter(|entry| entry.file_name().to_string_lossy().contains("partial.")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn formats_of_gguf_files() {
    let fixture = fixture("quantize-gguf");
    let to = fixture.path("q4_k.gguf");
    let said = fixture.quantize(&fixture.source, &to, "q4_k");
    assert!(said.contains("blk.0.ffn_up.weight`: rows of 96 are no whole blocks of Q4_K: Q5_0"), "{said}");
    let file = GgufFile::open(&to).expect("a file");
    let ty = |name: &str| file.required_tensor(name).expect("a tensor").ggml_type;
    assert_eq!(ty("blk.0.ffn_up.weight"), GgmlType::Q5_0);
    // The last matrix, here the embedding, is to have 6 bits, whose blocks do not fit either.
    assert_eq!(ty("token_embd.weight"), GgmlType::Q8_0);
    assert_eq!(ty("output_norm.weight"), GgmlType::F32);
    assert_eq!(file.u32("general.file_type").expect("a number"), 14);
    fixture.agree(&to, &fixture.source, 1e-2);

    let to = fixture.path("q8_0.gguf");
    fixture.quantize(&fixture.source, &to, "q8_0");
    fixture.agree(&to, &fixture.source, 1e-2);
    let info = stdout_of(&mut mlxn(&fixture.folder, &["info", &to]));
    assert!(info.contains("Q8_0"), "{info}");
}

#[test]
fn information_about_a_directory() {
    let fixture = fixture("quantize-info");
    let to = fixture.path("dir");
    fixture.quantize(&fixture.source, &to, "mxfp4");
    let info = stdout_of(&mut mlxn(&fixture.folder, &["info", &to, "--json"]));
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["architecture"], "llama");
    assert_eq!(info["runs"], true);
    assert_eq!(info["metadata"]["quantization"]["mode"], "mxfp4");
    let tensors = info["tensors"].as_array().expect("tensors");
    let up = tensors.iter().find(|tensor| tensor["name"] == "model.layers.0.mlp.up_proj.weight").expect("a tensor");
    assert_eq!((&up["shape"], &up["format"]), (&serde_json::json!([128, 96]), &"mxfp4".into()));
    let text = stdout_of(&mut mlxn(&fixture.folder, &["info", &to]));
    assert!(text.contains("architecture llama: mlxn runs it"), "{text}");
    for part in ["model.safetensors", "config.json"] {
        let part = format!("{to}/{part}");
        let error = error_of(&mut mlxn(&fixture.folder, &["info", &part]));
        assert!(error.contains(&format!("the model directory is {to}")), "{error}");
    }
}

#[test]
fn what_cannot_be_quantized_is_said() {
    let fixture = fixture("quantize-errors");
    let quantize = |from: &str, to: &str, format: &str| {
        let mut command = mlxn(&fixture.folder, &["quantize", from, to, "--format", format]);
        run(&mut command)
    };
    let output = quantize(&fixture.source, &fixture.path("x"), "q9");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no format is called q9"));

    std::fs::create_dir(fixture.path("there")).expect("a folder");
    let error = error_of(&mut mlxn(
        &fixture.folder,
        &["quantize", &fixture.source, &fixture.path("there"), "--format", "affine4"],
    ));
    assert!(error.contains("there exists: choose another name"), "{error}");
    assert!(!error.contains("configuration"), "{error}");
    for (to, format, problem) in [
        ("name.gguf", "affine4", "name.gguf: expected a directory's name"),
        ("none/out.gguf", "q8_0", "none/out.gguf: No such file"),
    ] {
        let to = fixture.path(to);
        let error = error_of(&mut mlxn(&fixture.folder, &["quantize", &fixture.source, &to, "--format", format]));
        assert!(error.contains(problem), "{error}");
    }

    let broken = fixture.path("broken.gguf");
    write_model(broken.as_ref(), |name, values| {
        if name == "blk.0.attn_k.weight" {
            values[100] = f32::NAN;
        }
    });
    for (to, format) in [("out.gguf", "q4_0"), ("out", "affine4:32")] {
        let to = fixture.path(to);
        let error = error_of(&mut mlxn(&fixture.folder, &["quantize", &broken, &to, "--format", format]));
        assert!(error.contains("attn_k") || error.contains("k_proj"), "{error}");
        assert!(error.contains("row 1: value 4 is NaN") || error.contains("NaN"), "{error}");
        assert!(!Path::new(&to).exists(), "what is not whole has no name");
    }
}
