//! A generation by the Metal backend's planning and kernels, run by metal-host with all checks on, beside the reference's.
#![cfg(feature = "metal-host")]

use mlx_native::format::quantize_row;
use mlx_native::io::gguf::{GgufFile, GgufWriter};
use mlx_native::{DType, DeviceOptions, GgmlType, MlxDevice, MlxError};
use mlx_native_model::{Model, SessionOptions};

const HIDDEN: usize = 256;
const FEED_FORWARD: usize = 512;
const VOCABULARY: usize = 160;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;

/// Values in -1..1 by a linear congruence, from the tensor's name.
fn values(name: &str, len: usize, scale: f32) -> Vec<f32> {
    let mut state = name.bytes().fold(17u64, |seed, byte| (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| scale * next()).collect()
}

/// Two layers of random weights, in formats whose libraries other tests compile too.
fn model() -> GgufFile {
    let mut writer = GgufWriter::new();
    writer.metadata("general.architecture", "llama").unwrap();
    for (key, value) in [
        ("block_count", 2),
        ("context_length", 64),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", FEED_FORWARD),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
    ] {
        writer.metadata(&format!("llama.{key}"), value as u32).unwrap();
    }
    writer.metadata("llama.attention.layer_norm_rms_epsilon", 1e-5f32).unwrap();
    let mut matrix = |name: &str, ty: GgmlType, n: usize, k: usize| {
        // Rows of unit length keep the activations' size from layer to layer.
        let values = values(name, n * k, (3.0 / k as f32).sqrt());
        let mut bytes = vec![0; n * ty.row_bytes(k).unwrap()];
        for (row, out) in values.chunks_exact(k).zip(bytes.chunks_exact_mut(ty.row_bytes(k).unwrap())) {
            quantize_row(ty, row, out).unwrap();
        }
        writer.tensor(&format!("{name}.weight"), &[n as u64, k as u64], ty, bytes).unwrap();
    };
    let kv = HIDDEN / HEADS * KV_HEADS;
    matrix("token_embd", GgmlType::Q8_0, VOCABULARY, HIDDEN);
    matrix("output", GgmlType::Q6_K, VOCABULARY, HIDDEN);
    for layer in 0..2 {
        for (name, ty, n, k) in [
            ("attn_q", GgmlType::Q4_K, HIDDEN, HIDDEN),
            ("attn_k", GgmlType::Q8_0, kv, HIDDEN),
            ("attn_v", GgmlType::Q6_K, kv, HIDDEN),
            ("attn_output", GgmlType::Q4_K, HIDDEN, HIDDEN),
            ("ffn_gate", GgmlType::Q8_0, FEED_FORWARD, HIDDEN),
            ("ffn_up", GgmlType::F16, FEED_FORWARD, HIDDEN),
            ("ffn_down", GgmlType::Q4_K, HIDDEN, FEED_FORWARD),
        ] {
            matrix(&format!("blk.{layer}.{name}"), ty, n, k);
        }
    }
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm", "blk.1.attn_norm", "blk.1.ffn_norm"] {
        let weight: Vec<u8> = values(name, HIDDEN, 0.2).iter().flat_map(|v| (1.0 + v).to_le_bytes()).collect();
        writer.tensor(&format!("{name}.weight"), &[HIDDEN as u64], GgmlType::F32, weight).unwrap();
    }
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).unwrap();
    GgufFile::from_bytes(bytes).unwrap()
}

/// Eight greedy tokens after a prompt of eleven, and by how much each was ahead of the next best.
fn generate(file: &GgufFile, device: &MlxDevice) -> (Vec<u32>, Vec<f32>) {
    let model = Model::from_gguf(file, device).unwrap();
    let mut session = model.session(SessionOptions { kv_dtype: DType::F16, ..Default::default() }).unwrap();
    let mut tokens: Vec<u32> = (0..11).map(|i| i * 53 % VOCABULARY as u32).collect();
    let (mut chosen, mut margins) = (Vec::new(), Vec::new());
    while chosen.len() < 8 {
        let logits = session.forward(&tokens).unwrap();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        margins.push(logits[order[0]] - logits[order[1]]);
        tokens = vec![order[0] as u32];
        chosen.extend(&tokens);
    }
    (chosen, margins)
}

#[test]
fn eight_tokens_are_the_references() {
    let file = model();
    let (expected, margins) = generate(&file, &MlxDevice::reference().unwrap());
    // Ties would be chance.
    assert!(margins.iter().all(|margin| *margin > 5e-3), "{margins:?}");
    for (name, batch_invariant) in [("metal-host", false), ("metal-host:tensor", false), ("metal-host", true)] {
        let options = DeviceOptions { batch_invariant, ..DeviceOptions::default() };
        let device = match MlxDevice::by_name(name, options) {
            Ok(device) => device,
            Err(MlxError::DeviceNotFound(why)) => return eprintln!("skipped: {why}"),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(generate(&file, &device).0, expected, "{name}, batch_invariant: {batch_invariant}");
    }
}
