//! Model directories that are broken in one way each: one clear sentence says what is wrong, and names the file or the tensor.

use std::fs;
use std::path::{Path, PathBuf};

use half::f16;
use mlx_native::io::safetensors::SafetensorsWriter;
use mlx_native::{DType, MlxDevice};
use mlx_native_model::{Model, ModelFile, SessionOptions};
use serde_json::{Value, json};

const HIDDEN: usize = 64;
const VOCABULARY: usize = 24;

/// What a directory is made of, to be changed before it is written.
struct Parts {
    config: Value,
    tokenizer: Value,
    /// Name, dtype, shape, bytes.
    tensors: Vec<(String, DType, Vec<usize>, Vec<u8>)>,
}

fn parts() -> Parts {
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 96, "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "vocab_size": VOCABULARY,
        "tie_word_embeddings": true, "eos_token_id": 2,
        "quantization": { "group_size": 32, "bits": 4 },
    });
    let vocabulary: serde_json::Map<String, Value> =
        (0..VOCABULARY as u8).map(|i| (char::from(b'a' + i).to_string(), i.into())).collect();
    let tokenizer = json!({
        "added_tokens": [], "normalizer": null, "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "use_regex": true },
        "post_processor": null, "decoder": { "type": "ByteLevel" },
        "model": { "type": "BPE", "vocab": vocabulary, "merges": ["a b"] },
    });
    let mut tensors = Vec::new();
    let mut norm =
        |name: &str| tensors.push((name.to_owned(), DType::F16, vec![HIDDEN], f16::ONE.to_le_bytes().repeat(HIDDEN)));
    norm("model.norm.weight");
    norm("model.layers.0.input_layernorm.weight");
    norm("model.layers.0.post_attention_layernorm.weight");
    for (layer, n, k) in [
        ("model.embed_tokens", VOCABULARY, HIDDEN),
        ("model.layers.0.self_attn.q_proj", HIDDEN, HIDDEN),
        ("model.layers.0.self_attn.k_proj", HIDDEN / 2, HIDDEN),
        ("model.layers.0.self_attn.v_proj", HIDDEN / 2, HIDDEN),
        ("model.layers.0.self_attn.o_proj", HIDDEN, HIDDEN),
        ("model.layers.0.mlp.gate_proj", 96, HIDDEN),
        ("model.layers.0.mlp.up_proj", 96, HIDDEN),
        ("model.layers.0.mlp.down_proj", HIDDEN, 96),
    ] {
        let packed: Vec<u8> = (0..n * k / 2).map(|i| (i * 37 % 251) as u8).collect();
        tensors.push((format!("{layer}.weight"), DType::U32, vec![n, k / 8], packed));
        for (part, value) in [("scales", 0.01), ("biases", -0.075)] {
            let bytes = f16::from_f32(value).to_le_bytes().repeat(n * k / 32);
            tensors.push((format!("{layer}.{part}"), DType::F16, vec![n, k / 32], bytes));
        }
    }
    Parts { config, tokenizer, tensors }
}

impl Parts {
    fn tensor(&mut self, name: &str) -> &mut (String, DType, Vec<usize>, Vec<u8>) {
        self.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap()
    }

    fn remove(&mut self, name: &str) {
        self.tensors.retain(|tensor| tensor.0 != name);
    }

    fn write(self, dir: &Path, max_bytes: u64) {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        fs::write(dir.join("tokenizer.json"), self.tokenizer.to_string()).unwrap();
        let mut writer = SafetensorsWriter::new();
        for (name, dtype, shape, bytes) in self.tensors {
            writer.tensor(&name, dtype, &shape, bytes).unwrap();
        }
        writer.write_dir(dir, max_bytes).unwrap();
    }
}

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("broken").join(name)
}

/// All that `mlxn run` does before it generates.
fn open(dir: &Path) -> Result<Model, String> {
    let file = ModelFile::open(dir).map_err(|e| e.to_string())?;
    let tokenizer = file.tokenizer().map_err(|e| e.to_string())?;
    file.chat_template(&tokenizer).map_err(|e| e.to_string())?;
    file.model(&MlxDevice::cpu().unwrap()).map_err(|e| e.to_string())
}

/// The error has each of the words, in one line.
fn says(name: &str, dir: &Path, words: &[&str]) {
    let error = open(dir).err().unwrap_or_else(|| panic!("{name}: it opens"));
    println!("{name}: {error}");
    for word in words {
        assert!(error.contains(word), "{name}: `{word}` is not in: {error}");
    }
    assert!(!error.contains('\n') && error.len() < 400, "{name}: {error}");
}

fn breaks(name: &str, words: &[&str], change: impl FnOnce(&mut Parts)) {
    let dir = place(name);
    let mut parts = parts();
    change(&mut parts);
    parts.write(&dir, u64::MAX);
    says(name, &dir, words);
}

/// Broken after it was written, in shards.
fn breaks_files(name: &str, words: &[&str], change: impl FnOnce(&Path)) {
    let dir = place(name);
    parts().write(&dir, 8192);
    change(&dir);
    says(name, &dir, words);
}

fn change_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn unbroken() {
    for (name, max_bytes) in [("whole", u64::MAX), ("shards", 8192)] {
        let dir = place(name);
        parts().write(&dir, max_bytes);
        let model = open(&dir).unwrap();
        let mut session = model.session(SessionOptions::default()).unwrap();
        assert!(session.forward(&[0, 1, 2]).unwrap().iter().all(|logit| logit.is_finite()));
    }
    assert!(place("shards").join("model.safetensors.index.json").exists());
}

#[test]
fn configuration() {
    breaks("no_hidden_size", &["config.json", "`hidden_size` is missing"], |parts| {
        parts.config.as_object_mut().unwrap().remove("hidden_size");
    });
    breaks("text_for_a_number", &["`num_attention_heads`", "whole number", "\"two\""], |parts| {
        parts.config["num_attention_heads"] = "two".into();
    });
    breaks("unknown_architecture", &["`mamba` is not supported", "qwen3moe"], |parts| {
        parts.config["model_type"] = "mamba".into();
    });
    breaks("heads_that_do_not_divide", &["2 query heads", "no multiple"], |parts| {
        parts.config["num_key_value_heads"] = 3.into();
    });
    breaks("no_experts_used", &["0 of 8 experts"], |parts| {
        parts.config["model_type"] = "mixtral".into();
        parts.config["num_local_experts"] = 8.into();
        parts.config["num_experts_per_tok"] = 0.into();
    });
    breaks("rope_scaling", &["rope scaling `yarn` is not supported"], |parts| {
        parts.config["rope_scaling"] = json!({ "rope_type": "yarn", "factor": 4.0 });
    });
    breaks_files("bad_json", &["config.json", "line 1"], |dir| {
        fs::write(dir.join("config.json"), "{\"model_type\":").unwrap()
    });
    breaks_files("no_config", &["config.json", "No such file"], |dir| {
        fs::remove_file(dir.join("config.json")).unwrap()
    });
}

#[test]
fn quantization() {
    breaks("group_size", &["model.embed_tokens", "groups", "bytes"], |parts| {
        parts.config["quantization"]["group_size"] = 64.into();
    });
    breaks("bits", &["config.json", "bits must be", "7"], |parts| parts.config["quantization"]["bits"] = 7.into());
    breaks("mode", &["quantization.mode", "mxfp4", "\"fp5\""], |parts| {
        parts.config["quantization"]["mode"] = "fp5".into()
    });
    breaks("not_said", &["model.embed_tokens", "does not say how"], |parts| {
        parts.config.as_object_mut().unwrap().remove("quantization");
    });
    breaks("nan_scale", &["q_proj.scales", "group 1 of row 5", "not a finite number"], |parts| {
        let scales = &mut parts.tensor("model.layers.0.self_attn.q_proj.scales").3;
        scales[22..24].copy_from_slice(&f16::NAN.to_le_bytes());
    });
    breaks("no_biases", &["o_proj.biases", "no such tensor"], |parts| {
        parts.remove("model.layers.0.self_attn.o_proj.biases")
    });
    breaks("no_scales", &["o_proj.weight", "u32"], |parts| parts.remove("model.layers.0.self_attn.o_proj.scales"));
    breaks("scales_of_other_rows", &["up_proj", "scales of [96] rows", "[95, 2]"], |parts| {
        let scales = parts.tensor("model.layers.0.mlp.up_proj.scales");
        scales.2 = vec![95, 2];
        scales.3.truncate(95 * 4);
    });
    breaks("scales_of_mxfp4", &["embed_tokens", "u8 scales for mxfp4", "F16"], |parts| {
        parts.config["quantization"] = json!({ "mode": "mxfp4", "group_size": 32, "bits": 4 });
    });
}

#[test]
fn tensors() {
    breaks("missing", &["v_proj.weight", "no such tensor"], |parts| {
        parts.remove("model.layers.0.self_attn.v_proj.weight")
    });
    breaks("shape_of_a_norm", &["post_attention_layernorm.weight", "[64]", "[32]"], |parts| {
        let norm = parts.tensor("model.layers.0.post_attention_layernorm.weight");
        norm.2 = vec![HIDDEN / 2];
        norm.3.truncate(HIDDEN);
    });
    breaks("shape_of_a_matrix", &["down_proj.weight", "[64, 96]", "[64, 64]"], |parts| {
        for (part, columns) in [("weight", 8), ("scales", 2), ("biases", 2)] {
            let tensor = parts.tensor(&format!("model.layers.0.mlp.down_proj.{part}"));
            tensor.2 = vec![HIDDEN, columns];
            let bytes = HIDDEN * columns * tensor.1.size_of();
            tensor.3.truncate(bytes);
        }
    });
    breaks("type", &["norm.weight", "u32"], |parts| {
        let norm = parts.tensor("model.norm.weight");
        norm.1 = DType::U32;
        norm.3 = vec![0; 4 * HIDDEN];
    });
}

#[test]
fn files() {
    let first = |dir: &Path| {
        let mut shards: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        shards.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        shards.sort();
        shards[0].clone()
    };
    let index = |dir: &Path| dir.join("model.safetensors.index.json");
    breaks_files("missing_shard", &["model-00001-of-", "No such file"], |dir| fs::remove_file(first(dir)).unwrap());
    breaks_files("truncated", &["model-00001-of-", "bytes of data, found"], |dir| {
        let bytes = fs::read(first(dir)).unwrap();
        fs::write(first(dir), &bytes[..bytes.len() - 7]).unwrap();
    });
    breaks_files("empty", &["model-00001-of-", "found 0 bytes"], |dir| fs::write(first(dir), []).unwrap());
    breaks_files("header_length", &["model-00001-of-", "does not fit"], |dir| {
        let mut bytes = fs::read(first(dir)).unwrap();
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(first(dir), bytes).unwrap();
    });
    breaks_files("absent_tensor", &["index.json", "`lm_head.weight` is not in model-00001-of-"], |dir| {
        let shard = first(dir).file_name().unwrap().to_string_lossy().into_owned();
        change_json(&index(dir), |json| json["weight_map"]["lm_head.weight"] = shard.into());
    });
    breaks_files("shard_outside", &["index.json", "../elsewhere.safetensors", "beside the index"], |dir| {
        change_json(&index(dir), |json| json["weight_map"]["lm_head.weight"] = "../elsewhere.safetensors".into());
    });
    breaks_files("bad_index", &["model.safetensors.index.json", "weight_map"], |dir| {
        fs::write(index(dir), "{}").unwrap()
    });
    breaks_files("overlap", &["model-00001-of-", "offset"], |dir| {
        let bytes = fs::read(first(dir)).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        // Two tensors of one size, the second where the first is.
        let at = header["model.norm.weight"]["data_offsets"].clone();
        header["model.layers.0.input_layernorm.weight"]["data_offsets"] = at;
        let header = header.to_string();
        let out = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + length..]].concat();
        fs::write(first(dir), out).unwrap();
    });
}

#[test]
fn tokenizer_and_template() {
    breaks_files("no_tokenizer", &["tokenizer.json", "the tokenizer is missing"], |dir| {
        fs::remove_file(dir.join("tokenizer.json")).unwrap();
    });
    breaks("unigram", &["tokenizer.json", "expected BPE, found `Unigram`"], |parts| {
        parts.tokenizer["model"]["type"] = "Unigram".into();
    });
    breaks("merges", &["`model.merges`", "two tokens at index 0", "\"ab\""], |parts| {
        parts.tokenizer["model"]["merges"] = json!(["ab"]);
    });
    breaks("huge_id", &["token id 4000000000 among 25 tokens"], |parts| {
        parts.tokenizer["model"]["vocab"]["z"] = 4_000_000_000u32.into();
    });
    breaks("normalizer", &["`normalizer`: `Lowercase` is not supported"], |parts| {
        parts.tokenizer["normalizer"] = json!({ "type": "Lowercase" });
    });
    breaks("pattern", &["pattern", "(?<=a)b"], |parts| {
        let split =
            json!({ "type": "Split", "pattern": { "Regex": "(?<=a)b" }, "behavior": "Isolated", "invert": false });
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": false });
        parts.tokenizer["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [split, bytes] });
    });
    breaks_files("template", &["chat template, line 1"], |dir| {
        fs::write(dir.join("chat_template.jinja"), "{% if %}").unwrap();
    });
}
