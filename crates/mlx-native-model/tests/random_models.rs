//! Small random models of every architecture beside llama.cpp's logits, which `scripts/oracle/random_models.py` has recorded.
//!
//! The weights are t · 2^-e with small whole t, which many formats hold exactly: the same record serves for a GGUF file in F32, F16, Q8_0 and Q4_0, for
//! a model directory in MLX's layout with 4- and 8-bit groups, for one in bf16, and for what is converted from one to the other.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use mlx_native::format::affine;
use mlx_native::io::gguf::{GgufFile, GgufWriter};
use mlx_native::io::mlx_dir::MlxModelDir;
use mlx_native::io::safetensors::SafetensorsWriter;
use mlx_native::{Activations, AffineFormat, DType, DeviceOptions, GgmlType, MlxDevice};
use mlx_native_model::convert::{self, Target};
use mlx_native_model::{Model, ModelFile, SessionOptions};
use serde::Deserialize;
use serde_json::{Value, json};

const MODELS: &str = include_str!("golden/random/models.json");

#[derive(Deserialize)]
struct Golden {
    ids: Vec<u32>,
    models: Vec<Random>,
}

#[derive(Deserialize)]
struct Random {
    name: String,
    architecture: String,
    numbers: serde_json::Map<String, Value>,
    floats: serde_json::Map<String, Value>,
    config: Value,
    tensors: Vec<Tensor>,
}

/// Values offset + t · 2^-exponent.
#[derive(Deserialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    exponent: i32,
    offset: f32,
}

fn golden(name: &str) -> (Vec<u32>, Random) {
    let golden: Golden = serde_json::from_str(MODELS).unwrap();
    let model = golden.models.into_iter().find(|model| model.name == name).unwrap();
    (golden.ids, model)
}

impl Tensor {
    /// t in -7..=7 of each value: splitmix64 from the FNV-1a hash of the name, the upper 24 bits modulo 15.
    fn codes(&self) -> Vec<i8> {
        let hash = |seed: u64, byte: u8| (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let seed = self.name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
        let code = |i: u64| {
            let z = seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as i64 % 15 - 7
        };
        (0..self.shape.iter().product::<usize>() as u64).map(|i| code(i) as i8).collect()
    }

    fn scale(&self) -> f32 {
        (-self.exponent as f32).exp2()
    }

    fn f32(&self) -> Vec<u8> {
        self.codes().iter().flat_map(|&t| (self.offset + f32::from(t) * self.scale()).to_le_bytes()).collect()
    }

    /// Whether files hold it in the model's format; the router's matrix stays in f32.
    fn is_quantized(&self) -> bool {
        self.shape.len() > 1 && !self.name.contains("ffn_gate_inp")
    }

    fn ggml(&self, ty: GgmlType) -> Vec<u8> {
        let d = f16::from_f32(self.scale()).to_le_bytes();
        let codes = self.codes();
        match ty {
            GgmlType::F32 => self.f32(),
            GgmlType::F16 => {
                codes.iter().flat_map(|&t| f16::from_f32(f32::from(t) * self.scale()).to_le_bytes()).collect()
            }
            GgmlType::Q8_0 => codes
                .chunks_exact(32)
                .flat_map(|block| d.into_iter().chain(block.iter().map(|&t| t as u8)).collect::<Vec<u8>>())
                .collect(),
            // Value j in the lower half of byte j, value j + 16 in the upper one, 8 added.
            GgmlType::Q4_0 => codes
                .chunks_exact(32)
                .flat_map(|block| {
                    let byte = |j: usize| (block[j] + 8) as u8 | ((block[j + 16] + 8) as u8) << 4;
                    d.into_iter().chain((0..16).map(byte)).collect::<Vec<u8>>()
                })
                .collect(),
            other => panic!("{other}"),
        }
    }
}

impl Random {
    fn gguf(&self, ty: GgmlType) -> GgufFile {
        let mut writer = GgufWriter::new();
        writer.metadata("general.architecture", self.architecture.as_str()).unwrap();
        for (key, value) in &self.numbers {
            writer.metadata(&format!("{}.{key}", self.architecture), value.as_u64().unwrap() as u32).unwrap();
        }
        for (key, value) in &self.floats {
            writer.metadata(&format!("{}.{key}", self.architecture), value.as_f64().unwrap() as f32).unwrap();
        }
        for tensor in &self.tensors {
            let ty = if tensor.is_quantized() { ty } else { GgmlType::F32 };
            let shape: Vec<u64> = tensor.shape.iter().map(|&dim| dim as u64).collect();
            writer.tensor(&tensor.name, &shape, ty, tensor.ggml(ty)).unwrap();
        }
        let mut bytes = Vec::new();
        writer.write_to(&mut bytes).unwrap();
        GgufFile::from_bytes(bytes).unwrap()
    }

    /// A directory as Hugging Face's libraries write it: bf16, each expert on its own.
    fn hugging_face_dir(&self) -> PathBuf {
        let dir = empty_dir(&format!("{}-hf", self.name));
        std::fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        std::fs::write(dir.join("tokenizer.json"), tokenizer().to_string()).unwrap();
        let mut writer = SafetensorsWriter::new();
        for tensor in &self.tensors {
            let name = self.mlx_name(&tensor.name);
            let offset = if self.architecture == "gemma3" { 0.0 } else { tensor.offset };
            let value = |&t: &i8| bf16::from_f32(offset + f32::from(t) * tensor.scale()).to_le_bytes();
            let bytes: Vec<u8> = self.mlx_rows(tensor).iter().flat_map(value).collect();
            let [n_experts, n, k] = tensor.shape[..] else {
                let shape = match tensor.name.contains("ffn_gate_inp_shexp") {
                    true => vec![1, tensor.shape[0]],
                    false => tensor.shape.clone(),
                };
                writer.tensor(&name, DType::BF16, &shape, bytes).unwrap();
                continue;
            };
            for (expert, bytes) in bytes.chunks_exact(bytes.len() / n_experts).enumerate() {
                let name = name.replace("switch_mlp", &format!("experts.{expert}"));
                let name = match self.config["model_type"] == "mixtral" {
                    true => name.replace("gate_proj", "w1").replace("down_proj", "w2").replace("up_proj", "w3"),
                    false => name,
                };
                writer.tensor(&name, DType::BF16, &[n, k], bytes.to_vec()).unwrap();
            }
        }
        writer.write_dir(&dir, 1 << 20).unwrap();
        dir
    }

    /// A directory as mlx-lm writes it.
    fn mlx_dir(&self, bits: u32, group_size: u32) -> PathBuf {
        let dir = empty_dir(&format!("{}-affine{bits}-g{group_size}", self.name));
        let mut config = self.config.clone();
        config["quantization"] = json!({ "group_size": group_size, "bits": bits });
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let format = AffineFormat::new(bits, group_size, DType::BF16).unwrap();
        let mut writer = SafetensorsWriter::new();
        for tensor in &self.tensors {
            let name = self.mlx_name(&tensor.name);
            let (&k, rows) = tensor.shape.split_last().unwrap();
            let codes = self.mlx_rows(tensor);
            if !tensor.is_quantized() {
                // Gemma's norms multiply by 1 + w, and a vector that is a product's weight is a matrix of one row.
                let is_gemma = self.architecture == "gemma3";
                let offset = if is_gemma { 0.0 } else { tensor.offset };
                let values =
                    codes.iter().flat_map(|&t| bf16::from_f32(offset + f32::from(t) * tensor.scale()).to_le_bytes());
                let shape = match tensor.name.contains("ffn_gate_inp_shexp") {
                    true => vec![1, k],
                    false => tensor.shape.clone(),
                };
                writer.tensor(&name, DType::BF16, &shape, values.collect::<Vec<u8>>()).unwrap();
                continue;
            }
            let layer = name.strip_suffix(".weight").unwrap();
            let mut packed = Vec::new();
            for row in codes.chunks_exact(k) {
                let codes: Vec<u8> = row.iter().map(|&t| (t + 7) as u8).collect();
                let mut out = vec![0; format.row_bytes(k).unwrap()];
                affine::pack(bits, &codes, &mut out).unwrap();
                packed.extend(out);
            }
            let groups = format.groups(k).unwrap() * rows.iter().product::<usize>();
            let constant = |value: f32| -> Vec<u8> { bf16::from_f32(value).to_le_bytes().repeat(groups) };
            let shape = |columns: usize| [rows, &[columns]].concat();
            let columns = format.row_bytes(k).unwrap() / 4;
            writer.tensor(&name, DType::U32, &shape(columns), packed).unwrap();
            let shape = shape(format.groups(k).unwrap());
            writer.tensor(&format!("{layer}.scales"), DType::BF16, &shape, constant(tensor.scale())).unwrap();
            writer.tensor(&format!("{layer}.biases"), DType::BF16, &shape, constant(-7.0 * tensor.scale())).unwrap();
        }
        writer.write_dir(&dir, u64::MAX).unwrap();
        dir
    }

    /// Llama's GGUF files pair neighbours of a head's values for the rotation, directories pair the halves.
    fn mlx_rows(&self, tensor: &Tensor) -> Vec<i8> {
        let codes = tensor.codes();
        let is_rotated = tensor.name.contains("attn_q.") || tensor.name.contains("attn_k.");
        if self.architecture != "llama" || !is_rotated {
            return codes;
        }
        let (k, head_dim) = (tensor.shape[1], self.config["head_dim"].as_u64().unwrap() as usize);
        let mut out = Vec::new();
        for row in 0..tensor.shape[0] {
            let (head, i) = (row / head_dim, row % head_dim);
            let from = head * head_dim + if i < head_dim / 2 { 2 * i } else { 2 * (i - head_dim / 2) + 1 };
            out.extend_from_slice(&codes[from * k..(from + 1) * k]);
        }
        out
    }

    fn mlx_name(&self, name: &str) -> String {
        let mixtral = self.config["model_type"] == "mixtral";
        let experts = if mixtral { "block_sparse_moe" } else { "mlp" };
        let before_feed_forward = match self.architecture.as_str() {
            "gemma3" => "pre_feedforward_layernorm",
            _ => "post_attention_layernorm",
        };
        let parts = [
            ("token_embd", "model.embed_tokens".to_owned()),
            ("output_norm", "model.norm".to_owned()),
            ("attn_norm", "input_layernorm".to_owned()),
            ("attn_output", "self_attn.o_proj".to_owned()),
            ("output", "lm_head".to_owned()),
            ("attn_q_norm", "self_attn.q_norm".to_owned()),
            ("attn_k_norm", "self_attn.k_norm".to_owned()),
            ("attn_q", "self_attn.q_proj".to_owned()),
            ("attn_k", "self_attn.k_proj".to_owned()),
            ("attn_v", "self_attn.v_proj".to_owned()),
            ("post_attention_norm", "post_attention_layernorm".to_owned()),
            ("post_ffw_norm", "post_feedforward_layernorm".to_owned()),
            ("ffn_norm", before_feed_forward.to_owned()),
            ("ffn_gate_inp_shexp", format!("{experts}.shared_expert_gate")),
            ("ffn_gate_inp", format!("{experts}.gate")),
            ("ffn_gate_exps", format!("{experts}.switch_mlp.gate_proj")),
            ("ffn_up_exps", format!("{experts}.switch_mlp.up_proj")),
            ("ffn_down_exps", format!("{experts}.switch_mlp.down_proj")),
            ("ffn_gate_shexp", format!("{experts}.shared_expert.gate_proj")),
            ("ffn_up_shexp", format!("{experts}.shared_expert.up_proj")),
            ("ffn_down_shexp", format!("{experts}.shared_expert.down_proj")),
            ("ffn_gate", "mlp.gate_proj".to_owned()),
            ("ffn_up", "mlp.up_proj".to_owned()),
            ("ffn_down", "mlp.down_proj".to_owned()),
        ];
        let (part, suffix) = name.rsplit_once('.').unwrap();
        let (layer, part) = match part.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, part)) => (format!("model.layers.{layer}."), part),
            None => (String::new(), part),
        };
        let part = &parts.iter().find(|(gguf, _)| *gguf == part).unwrap().1;
        format!("{layer}{part}.{suffix}")
    }
}

fn empty_dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// One that a GGUF file can have too.
fn tokenizer() -> Value {
    let vocabulary: serde_json::Map<String, Value> =
        (0..26u8).map(|i| (char::from(b'a' + i).to_string(), i.into())).collect();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": true });
    json!({ "added_tokens": [], "pre_tokenizer": bytes, "model": { "type": "BPE", "vocab": vocabulary, "merges": ["a b"] } })
}

/// The model in another format.
fn quantized(input: &Path, name: &str, format: &str) -> ModelFile {
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_file(&output);
    let _ = std::fs::remove_dir_all(&output);
    let file = ModelFile::open(input).unwrap();
    let report = &mut |_| ControlFlow::Continue(());
    convert::quantize(&file, &output, Target::parse(format).unwrap(), report).unwrap();
    ModelFile::open(&output).unwrap()
}

fn device(activations: Activations) -> MlxDevice {
    MlxDevice::cpu_with(DeviceOptions { activations, ..Default::default() }).unwrap()
}

/// Prompt and decode beside the record: Σ(ours − theirs)² / Σ theirs².
fn agrees(what: &str, model: &Model, ids: &[u32], logits: &[u8], bound: f64) {
    const PROMPT: usize = 24;
    let theirs: Vec<f32> = logits.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let mut session =
        model.session(SessionOptions { context: 64, kv_dtype: DType::F32, ..Default::default() }).unwrap();
    let mut ours = session.forward_all(&ids[..PROMPT]).unwrap();
    for &id in &ids[PROMPT..] {
        ours.extend_from_slice(session.forward(&[id]).unwrap());
    }
    assert_eq!(ours.len(), theirs.len());
    let split = PROMPT * model.vocabulary();
    for (part, ours, theirs) in
        [("prompt", &ours[..split], &theirs[..split]), ("decode", &ours[split..], &theirs[split..])]
    {
        let error: f64 = ours.iter().zip(theirs).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
        let nmse = error / theirs.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>();
        println!("{what}, {part}: logits NMSE {nmse:.2e}");
        assert!(nmse <= bound, "{what}, {part}: NMSE {nmse:e}");
    }
}

/// Exact activations, in formats that hold the weights exactly: at most 2e-12, and for Gemma 1.3e-8. There llama.cpp is as far from mlx-lm, which is within 2e-13
/// of ours.
const EXACT: f64 = 1e-7;

fn check(name: &str, logits: &[u8]) {
    let (ids, random) = golden(name);
    let exact = device(Activations::Exact);
    for ty in [GgmlType::F32, GgmlType::F16, GgmlType::Q8_0, GgmlType::Q4_0] {
        let model = Model::from_gguf(&random.gguf(ty), &exact).unwrap();
        agrees(&format!("{name} {ty}"), &model, &ids, logits, EXACT);
    }
    for (bits, group_size) in [(4, 64), (8, 32)] {
        let dir = MlxModelDir::open(random.mlx_dir(bits, group_size)).unwrap();
        let model = Model::from_mlx(&dir, &exact).unwrap();
        agrees(&format!("{name} affine{bits} g{group_size}"), &model, &ids, logits, EXACT);
    }
}

/// From a directory of single experts, through a GGUF file that holds the weights exactly, to a quantized directory.
fn check_conversions(name: &str, logits: &[u8]) {
    let (ids, random) = golden(name);
    let exact = device(Activations::Exact);
    let source = random.hugging_face_dir();
    let model = ModelFile::open(&source).unwrap().model(&exact).unwrap();
    agrees(&format!("{name} bf16 directory"), &model, &ids, logits, EXACT);
    let file = quantized(&source, &format!("{name}-bf16.gguf"), "bf16");
    agrees(&format!("{name} bf16 file of it"), &file.model(&exact).unwrap(), &ids, logits, EXACT);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-bf16.gguf"));
    let dir = quantized(&path, &format!("{name}-affine8"), "affine8:32");
    // Rounding to 8 bits can choose another expert where two nearly tie.
    agrees(&format!("{name} affine8 directory of that"), &dir.model(&exact).unwrap(), &ids, logits, 2e-2);
}

macro_rules! random_models {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                let logits = include_bytes!(concat!("golden/random/", $name, ".logits"));
                check($name, logits);
                check_conversions($name, logits);
            }
        )*
    };
}

random_models! {
    llama: "llama",
    qwen2: "qwen2",
    qwen3: "qwen3",
    gemma3: "gemma3",
    mixtral_one_expert: "mixtral-top1",
    mixtral: "mixtral",
    qwen2_moe_with_a_shared_expert: "qwen2moe",
    qwen3_moe: "qwen3moe",
    olmoe: "olmoe",
}
