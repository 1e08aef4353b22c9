//! Logits, perplexity and greedy text of real models beside llama.cpp's, which `scripts/oracle/make_golden.py` has recorded.
//!
//! llama.cpp ran the same weights dequantized to F32, for the logits with a key-value cache in f32; perplexity was recorded of the quantized file too.

mod common;

use mlx_native::io::gguf::GgufFile;
use mlx_native::{Activations, DType, DeviceOptions, MlxDevice};
use mlx_native_model::tokenizer::{EncodeOptions, Tokenizer};
use mlx_native_model::{Model, Session, SessionOptions};

const TEXT: &str = include_str!("golden/text.txt");
const PROMPTS: &str = include_str!("golden/prompts.txt");

/// A model's records.
struct Golden {
    file: &'static str,
    /// Tokens of the text that were computed.
    tokens: usize,
    /// Every step-th position was recorded, and there the logits of [`COLUMNS`] tokens, evenly spaced.
    step: usize,
    logits: &'static [u8],
    /// For each prompt, `id:margin` of each greedy token; the margin is the distance to the runner-up's logit.
    greedy: &'static str,
    /// llama-perplexity's of the dequantized weights and of the quantized file.
    perplexity: &'static str,
}

const COLUMNS: usize = 1024;

const SMOLLM2: Golden = Golden {
    file: "smollm2.gguf",
    tokens: 256,
    step: 16,
    logits: include_bytes!("golden/smollm2.logits"),
    greedy: include_str!("golden/smollm2.greedy"),
    perplexity: include_str!("golden/smollm2.perplexity"),
};

/// 900 tokens reach beyond the sliding window of 512.
const GEMMA3: Golden = Golden {
    file: "gemma3-270m.gguf",
    tokens: 900,
    step: 50,
    logits: include_bytes!("golden/gemma3-270m.logits"),
    greedy: include_str!("golden/gemma3-270m.greedy"),
    perplexity: include_str!("golden/gemma3-270m.perplexity"),
};

struct Loaded {
    tokenizer: Tokenizer,
    model: Model,
}

fn load(golden: &Golden, activations: Activations) -> Option<Loaded> {
    load_with(golden, DeviceOptions { activations, ..Default::default() })
}

fn load_with(golden: &Golden, options: DeviceOptions) -> Option<Loaded> {
    let file = GgufFile::open(common::model(golden.file)?).unwrap();
    let device = MlxDevice::cpu_with(options).unwrap();
    Some(Loaded { tokenizer: Tokenizer::from_gguf(&file).unwrap(), model: Model::from_gguf(&file, &device).unwrap() })
}

impl Loaded {
    fn encode(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text, EncodeOptions::default()).unwrap()
    }

    fn session(&self, context: usize, batch: usize) -> Session<'_> {
        self.model.session(SessionOptions { context, kv_dtype: DType::F32, batch }).unwrap()
    }
}

/// Σ(ours − theirs)² / Σ theirs²
fn nmse(pairs: impl Iterator<Item = (f32, f32)>) -> f64 {
    let (mut error, mut power) = (0.0, 0.0);
    for (ours, theirs) in pairs {
        error += (f64::from(ours) - f64::from(theirs)).powi(2);
        power += f64::from(theirs).powi(2);
    }
    error / power
}

fn logits_agree(golden: &Golden, activations: Activations, bound: f64) {
    let Some(loaded) = load(golden, activations) else { return };
    let ids = &loaded.encode(TEXT)[..golden.tokens];
    let vocabulary = loaded.model.vocabulary();
    let stride = vocabulary / COLUMNS;
    let mut session = loaded.session(golden.tokens, 200);
    let mut ours = Vec::new();
    // Only the recorded positions' logits are computed: a row is as much work as the rest of a layer.
    for piece in ids.chunks(golden.step) {
        let logits = session.forward(piece).unwrap();
        if piece.len() == golden.step {
            ours.extend((0..COLUMNS).map(|column| logits[column * stride]));
        }
    }
    let theirs = golden.logits.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    assert_eq!(ours.len(), theirs.len());
    let nmse = nmse(ours.into_iter().zip(theirs));
    println!("{}: {} tokens, logits NMSE {nmse:.2e} with {activations:?}", golden.file, golden.tokens);
    assert!(nmse <= bound, "{}: NMSE {nmse:e} with {activations:?}", golden.file);
}

/// Greedy text agrees token by token, or diverges where llama.cpp's two best logits nearly tie.
fn greedy_text_agrees(golden: &Golden) {
    let Some(loaded) = load(golden, Activations::Exact) else { return };
    let mut session = loaded.session(128, 64);
    let mut diverged = Vec::new();
    for (prompt, steps) in PROMPTS.lines().zip(golden.greedy.lines()) {
        session.truncate(0);
        let mut next = loaded.encode(&prompt.replace("\\n", "\n"));
        for (i, step) in steps.split(' ').enumerate() {
            let (id, margin) = step.split_once(':').unwrap();
            let (id, margin): (u32, f32) = (id.parse().unwrap(), margin.parse().unwrap());
            let logits = session.forward(&next).unwrap();
            let best = (0..logits.len()).reduce(|a, b| if logits[b] > logits[a] { b } else { a }).unwrap() as u32;
            if best != id {
                let ours = logits[best as usize] - logits[id as usize];
                println!("{}: {prompt:?} diverges at token {i}: margin {margin} there, {ours} here", golden.file);
                assert!(margin < 0.01, "{prompt:?}: token {i} is {best}, llama.cpp's {id} by a margin of {margin}");
                diverged.push(prompt);
                break;
            }
            next = vec![id];
        }
    }
    let count = PROMPTS.lines().count();
    println!("{}: {} of {count} greedy texts agree in full", golden.file, count - diverged.len());
}

/// Pieces of 512 tokens, each on its own, the second half scored, as llama-perplexity does it: within `bound` of the dequantized weights' perplexity there.
fn perplexity_agrees(golden: &Golden, activations: Activations, bound: f64) {
    const PIECE: usize = 512;
    let Some(loaded) = load(golden, activations) else { return };
    let ids = loaded.encode(TEXT);
    let bos = loaded.tokenizer.bos().filter(|_| loaded.tokenizer.adds_bos());
    let mut session = loaded.model.session(SessionOptions { context: PIECE, ..Default::default() }).unwrap();
    let (mut sum, mut scored) = (0.0f64, 0usize);
    for piece in ids.chunks_exact(PIECE) {
        let mut piece = piece.to_vec();
        piece[0] = bos.unwrap_or(piece[0]);
        session.truncate(0);
        session.forward(&piece[..PIECE / 2]).unwrap();
        for at in (PIECE / 2..PIECE - 1).step_by(51) {
            let end = (at + 51).min(PIECE - 1);
            let logits = session.forward_all(&piece[at..end]).unwrap();
            for (row, &next) in logits.chunks_exact(loaded.model.vocabulary()).zip(&piece[at + 1..]) {
                let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let total: f64 = row.iter().map(|logit| f64::from(logit - most).exp()).sum();
                sum -= f64::from(row[next as usize] - most) - total.ln();
                scored += 1;
            }
        }
    }
    let ours = (sum / scored as f64).exp();
    let (theirs, quantized) = golden.perplexity.trim().split_once(' ').unwrap();
    println!(
        "{}: perplexity {ours:.4} with {activations:?}; llama.cpp {theirs}, on the quantized file {quantized}",
        golden.file
    );
    let theirs: f64 = theirs.parse().unwrap();
    assert!((ours / theirs - 1.0).abs() <= bound, "{}: perplexity {ours}, llama.cpp's {theirs}", golden.file);
}

#[test]
fn smollm2_logits() {
    logits_agree(&SMOLLM2, Activations::Exact, 1e-6);
}

#[test]
fn smollm2_greedy_text() {
    greedy_text_agrees(&SMOLLM2);
}

#[test]
fn smollm2_perplexity() {
    perplexity_agrees(&SMOLLM2, Activations::Exact, 0.0002);
    perplexity_agrees(&SMOLLM2, Activations::Q8, 0.005);
}

#[test]
fn gemma3_logits_beyond_the_sliding_window() {
    logits_agree(&GEMMA3, Activations::Exact, 1e-6);
}

#[test]
fn gemma3_greedy_text() {
    greedy_text_agrees(&GEMMA3);
}

#[test]
fn gemma3_perplexity() {
    perplexity_agrees(&GEMMA3, Activations::Q8, 0.005);
}

/// The NMSE of llama.cpp's own 8-bit activations, on the quantized file, against the same record.
const SMOLLM2_LLAMA_CPP_Q8: f64 = 7.49e-4;
const GEMMA3_LLAMA_CPP_Q8: f64 = 1.349e-3;

#[test]
fn logits_with_8_bit_activations_are_within_twice_llama_cpps_noise() {
    logits_agree(&SMOLLM2, Activations::Q8, 2.0 * SMOLLM2_LLAMA_CPP_Q8);
    logits_agree(&GEMMA3, Activations::Q8, 2.0 * GEMMA3_LLAMA_CPP_Q8);
}

/// With batch invariance the split of a prompt changes no bit, before, across and beyond the sliding window of 512.
#[test]
fn gemma3_batches_are_bit_identical() {
    let options = DeviceOptions { activations: Activations::Q8, batch_invariant: true, ..Default::default() };
    let Some(loaded) = load_with(&GEMMA3, options) else { return };
    let ids = &loaded.encode(TEXT)[..540];
    let mut session = loaded.session(ids.len(), 512);
    // What follows the last token sees the whole cache, so one row is enough.
    let whole = session.forward(ids).unwrap().to_vec();
    for (start, batch) in [(0, 64), (500, 7), (530, 1)] {
        session.truncate(start);
        let mut last = Vec::new();
        for piece in ids[start..].chunks(batch) {
            last = session.forward(piece).unwrap().to_vec();
        }
        let differing = last.iter().zip(&whole).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(differing, 0, "batches of {batch} from position {start}");
    }
}

/// How many tokens are computed together changes nothing that matters.
#[test]
fn batches_of_any_size_agree() {
    let Some(loaded) = load(&SMOLLM2, Activations::Exact) else { return };
    let ids = &loaded.encode(TEXT)[..96];
    let whole = loaded.session(96, 96).forward(ids).unwrap().to_vec();
    for batch in [1, 7, 64] {
        let logits = loaded.session(96, batch).forward(ids).unwrap().to_vec();
        let nmse = nmse(logits.into_iter().zip(whole.iter().copied()));
        assert!(nmse <= 1e-10, "batches of {batch}: NMSE {nmse:e}");
    }
}
