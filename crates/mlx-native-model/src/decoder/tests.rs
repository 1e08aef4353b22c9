//! Tokens that the device chooses a step ahead, beside those that the host chooses.

use std::ops::ControlFlow;

use mlx_native::io::gguf::{GgufFile, GgufWriter};
use mlx_native::{DeviceOptions, GgmlType, MlxDevice};

use super::*;
use crate::generation::{Finish, Generated, GenerationOptions, generate_by};
use crate::sampler::SamplerError;
use crate::tokenizer::Tokenizer;
use crate::{Model, ModelError, SessionOptions};

/// As many tokens as values of a hidden state, so that an embedding is mostly one value.
const HIDDEN: usize = 32;
/// Several commits a step.
const LAYERS: usize = 5;
const END: u32 = 30;
const CONTEXT: usize = 40;
const BROKEN: usize = 8;

/// A file's model, in which token after token comes, from 0 to 30 and from 31 to 0; the layers are random, so that what is in context shows in the logits.
/// After token `BROKEN` the logits are NaN, or one is infinite, where they shall be.
fn file(broken: Option<f32>) -> GgufFile {
    let mut state = 1u64;
    let mut noise = |scale: f32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        scale * ((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
    };
    let matrix = |value: &mut dyn FnMut(usize, usize) -> f32| -> Vec<u8> {
        (0..HIDDEN * HIDDEN).flat_map(|i| value(i / HIDDEN, i % HIDDEN).to_le_bytes()).collect()
    };
    let embedding = matrix(&mut |row, column| match broken {
        Some(nan) if nan.is_nan() && (row, column) == (BROKEN, BROKEN) => nan,
        _ => f32::from(row == column),
    });
    let output = matrix(&mut |row, column| match broken {
        // Times a normed value of 5 it exceeds f32.
        Some(f32::INFINITY) if (row, column) == (HIDDEN - 1, BROKEN) => 1e38,
        _ => f32::from((column + 1) % HIDDEN == row),
    });
    let mut writer = GgufWriter::new();
    let fill = || -> mlx_native::Result<()> {
        writer.metadata("general.architecture", "llama")?;
        for (key, value) in [
            ("block_count", LAYERS as u32),
            ("context_length", CONTEXT as u32),
            ("embedding_length", HIDDEN as u32),
            ("feed_forward_length", HIDDEN as u32),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 2),
        ] {
            writer.metadata(&format!("llama.{key}"), value)?;
        }
        writer.metadata("tokenizer.ggml.model", "gpt2")?;
        writer.metadata("tokenizer.ggml.pre", "default")?;
        let tokens: Vec<String> = (0..HIDDEN as u32).map(|id| char::from_u32(65 + id).unwrap_or('?').into()).collect();
        writer.metadata("tokenizer.ggml.tokens", &tokens.iter().map(String::as_str).collect::<Vec<_>>()[..])?;
        let kinds: Vec<i32> = (0..HIDDEN as u32).map(|id| if id == END { 3 } else { 1 }).collect();
        writer.metadata("tokenizer.ggml.token_type", &kinds[..])?;
        writer.metadata("tokenizer.ggml.merges", &["A B"][..])?;
        writer.metadata("tokenizer.ggml.eos_token_id", END)?;
        writer.metadata("tokenizer.ggml.add_bos_token", false)?;
        let shape = [HIDDEN as u64; 2];
        writer.tensor("token_embd.weight", &shape, GgmlType::F32, embedding)?;
        writer.tensor("output.weight", &shape, GgmlType::F32, output)?;
        writer.tensor("output_norm.weight", &shape[..1], GgmlType::F32, 1f32.to_le_bytes().repeat(HIDDEN))?;
        for layer in 0..LAYERS {
            for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
                // No layer adds to the value that stands for the token.
                let random = matrix(&mut |row, _| if row == BROKEN { 0.0 } else { noise(0.05) });
                writer.tensor(&format!("blk.{layer}.{name}.weight"), &shape, GgmlType::F32, random)?;
            }
            for name in ["attn_norm", "ffn_norm"] {
                let ones = 1f32.to_le_bytes().repeat(HIDDEN);
                writer.tensor(&format!("blk.{layer}.{name}.weight"), &shape[..1], GgmlType::F32, ones)?;
            }
        }
        Ok(())
    };
    fill().unwrap();
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).unwrap();
    GgufFile::from_bytes(bytes).unwrap()
}

/// Devices that run a list at once and such that have a queue, those that are here.
fn devices() -> Vec<MlxDevice> {
    let threads = |threads| MlxDevice::cpu_with(DeviceOptions { threads, ..Default::default() }).unwrap();
    let mut devices = vec![threads(1), threads(2), MlxDevice::reference().unwrap()];
    let others = ["metal-host", "cuda"].map(|name| MlxDevice::by_name(name, DeviceOptions::default()));
    devices.extend(others.into_iter().flatten());
    devices
}

fn session(model: &Model) -> Session<'_> {
    model.session(SessionOptions::default()).unwrap()
}

/// The tokens after a prompt, and the session's length then.
fn tokens(session: &mut Session<'_>, prompt: &[u32], most: usize, steps_ahead: bool) -> (Vec<u32>, usize) {
    let mut decoder = Decoder::with_steps(session, SamplerConfig::greedy(), most, steps_ahead).unwrap();
    let mut tokens: Vec<u32> = decoder.first_token(prompt).unwrap().into_iter().collect();
    while let Some(id) = decoder.next_token().unwrap() {
        tokens.push(id);
    }
    (tokens, decoder.session().position())
}

#[test]
fn as_many_tokens_as_asked_for_and_as_fit() {
    let file = file(None);
    for device in devices() {
        let model = Model::from_gguf(&file, &device).unwrap();
        for most in [0, 1, 2, 3, 9, 100] {
            for steps_ahead in [false, true] {
                let (found, position) = tokens(&mut session(&model), &[0, 1, 2], most, steps_ahead);
                let count = most.min(CONTEXT - 3 + 1);
                let expected: Vec<u32> = (3..).map(|id| id % HIDDEN as u32).take(count).collect();
                assert_eq!(found, expected, "{}, {most} tokens, ahead: {steps_ahead}", device.name());
                assert_eq!(position, if most == 0 { 0 } else { 3 + count - 1 });
            }
        }
    }
}

#[test]
fn a_context_goes_on_where_it_was_left() {
    let file = file(None);
    for device in devices() {
        let model = Model::from_gguf(&file, &device).unwrap();
        for taken in 1..8 {
            let logits = [false, true].map(|steps_ahead| {
                let mut session = session(&model);
                let mut decoder = Decoder::with_steps(&mut session, SamplerConfig::greedy(), 20, steps_ahead).unwrap();
                decoder.first_token(&[4, 0, 1]).unwrap();
                (1..taken).for_each(|_| assert!(decoder.next_token().unwrap().is_some()));
                assert_eq!(decoder.session().position(), 3 + taken - 1);
                drop(decoder);
                // One token and several, and steps again.
                let mut logits = session.forward(&[7]).unwrap().to_vec();
                logits.extend_from_slice(session.forward(&[3, 9]).unwrap());
                assert_eq!(tokens(&mut session, &[11], 5, steps_ahead).0, [12, 13, 14, 15, 16]);
                logits.extend_from_slice(session.forward(&[2]).unwrap());
                logits
            });
            assert_eq!(logits[0], logits[1], "{}, {taken} tokens", device.name());
        }
    }
}

#[test]
fn text_ends_alike_at_every_position() {
    let file = file(None);
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    for device in devices() {
        let model = Model::from_gguf(&file, &device).unwrap();
        let finish = |options: &GenerationOptions, interrupt_at: usize, steps_ahead: bool| {
            let mut session = session(&model);
            let decoder =
                Decoder::with_steps(&mut session, options.sampler.clone(), options.max_tokens, steps_ahead).unwrap();
            let mut text = String::new();
            let generated = generate_by(decoder, &tokenizer, &[2], options, |piece| {
                text.push_str(piece);
                if text.len() >= interrupt_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            let Generated { tokens, finish, .. } = generated.unwrap();
            let logits = session.forward(&[1]).unwrap().to_vec();
            (text, tokens, finish, session.position(), logits)
        };
        let greedy = || GenerationOptions { sampler: SamplerConfig::greedy(), ..Default::default() };
        let mut finishes = Vec::new();
        for at in 1..30u32 {
            let stop = vec![char::from_u32(65 + 2 + at).unwrap().to_string()];
            let ends = [
                (GenerationOptions { stop, ..greedy() }, usize::MAX),
                (GenerationOptions { max_tokens: at as usize, ..greedy() }, usize::MAX),
                (greedy(), at as usize),
            ];
            for (options, interrupt_at) in ends {
                let [host, ahead] = [false, true].map(|steps_ahead| finish(&options, interrupt_at, steps_ahead));
                assert_eq!(host, ahead, "{}, {at}", device.name());
                finishes.push(host.2);
            }
        }
        for kind in [Finish::StopText, Finish::Length, Finish::Interrupted, Finish::StopToken] {
            assert!(finishes.contains(&kind), "{kind:?}");
        }
    }
}

#[test]
fn broken_logits_are_the_samplers_error() {
    for broken in [f32::NAN, f32::INFINITY] {
        let file = file(Some(broken));
        for device in devices() {
            let model = Model::from_gguf(&file, &device).unwrap();
            let errors = [false, true].map(|steps_ahead| {
                let mut session = session(&model);
                let mut decoder = Decoder::with_steps(&mut session, SamplerConfig::greedy(), 20, steps_ahead).unwrap();
                assert_eq!(decoder.first_token(&[4]).unwrap(), Some(5));
                (6..9).for_each(|id| assert_eq!(decoder.next_token().unwrap(), Some(id)));
                let error = decoder.next_token().unwrap_err();
                assert_eq!(decoder.session().position(), 5, "the last token's logits were computed");
                assert!(matches!(error, ModelError::Sampler(SamplerError::Logit { .. })), "{error:?}");
                error.to_string()
            });
            assert_eq!(errors[0], errors[1], "{}, {broken}", device.name());
        }
    }
}

/// The host's tokens and those of a decoder that may leave the choice to the device.
fn both(model: &Model, config: &SamplerConfig) -> [Vec<u32>; 2] {
    [false, true].map(|steps_ahead| {
        let mut session = session(model);
        let mut decoder = Decoder::with_steps(&mut session, config.clone(), 20, steps_ahead).unwrap();
        assert_eq!(steps_ahead && config.repetition_penalty == 1.0, decoder.steps.is_some());
        let first = decoder.first_token(&[4, 5]).unwrap();
        first.into_iter().chain((1..20).map(|_| decoder.next_token().unwrap().unwrap())).collect()
    })
}

#[test]
fn what_the_device_cannot_choose_the_host_does() {
    let file = file(None);
    let model = Model::from_gguf(&file, &MlxDevice::cpu().unwrap()).unwrap();
    let [host, ahead] = both(&model, &SamplerConfig { repetition_penalty: 1.3, ..SamplerConfig::greedy() });
    assert_eq!(host, ahead);
}

#[test]
fn the_device_draws_what_the_host_draws() {
    let file = file(None);
    let settings = [
        SamplerConfig::default(),
        SamplerConfig { temperature: 3.0, top_k: 20, top_p: 0.98, min_p: 0.001, ..Default::default() },
        SamplerConfig { temperature: 2.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Default::default() },
    ];
    for device in devices() {
        let model = Model::from_gguf(&file, &device).unwrap();
        for config in &settings {
            let drawn: Vec<_> = (0..3)
                .map(|seed| {
                    let [host, ahead] = both(&model, &SamplerConfig { seed, ..config.clone() });
                    assert_eq!(host, ahead, "{}, {config:?}, seed {seed}", device.name());
                    ahead
                })
                .collect();
            // Other seeds, other tokens, where several are probable.
            assert!(config.temperature < 1.0 || drawn[0] != drawn[1] || drawn[1] != drawn[2], "{config:?}");
        }
    }
}
