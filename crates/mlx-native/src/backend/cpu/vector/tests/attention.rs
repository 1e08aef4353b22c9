//! Attention: masks, groups, chunks, both caches.

use super::*;
use crate::{AttentionParams, KvCacheParams};

struct Case {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    start: usize,
    n_tokens: usize,
    window: Option<usize>,
    soft_cap: Option<f32>,
}

fn operands(case: &Case, dtype: DType) -> (Vec<Operand>, AttentionParams) {
    let &Case { n_heads, n_kv_heads, head_dim, start, n_tokens, window, soft_cap } = case;
    let capacity = start + n_tokens + 3;
    let cache = KvCacheParams { n_kv_heads, capacity, head_dim };
    let params =
        AttentionParams { cache, n_heads, n_tokens, start, scale: 1.0 / (head_dim as f32).sqrt(), window, soft_cap };
    let filled = |seed| {
        let mut values = random(seed, n_kv_heads * capacity * head_dim);
        // What lies behind the last position is not looked at.
        for head in values.chunks_mut(capacity * head_dim) {
            head[(start + n_tokens) * head_dim..].fill(f32::NAN);
        }
        if dtype == DType::F16 { f16s(&values) } else { f32s(&values) }
    };
    let rows = n_tokens * n_heads * head_dim;
    (vec![f32s(&random(21, rows)), filled(22), filled(23), poison(rows, DType::F32)], params)
}

fn check_case(case: &Case) {
    for dtype in [DType::F16, DType::F32] {
        let (operands, params) = operands(case, dtype);
        check(&operands, &[3], EXACT, &|encoder, buffers| {
            let [q, k, v, output] = buffers else { unreachable!() };
            encoder.attention(q, k, v, output, &params)
        });
    }
}

#[test]
fn one_token_over_every_context() {
    for (n_heads, n_kv_heads) in [(1, 1), (9, 3), (4, 2), (8, 2), (7, 1)] {
        for start in [0, 2, 254, 255, 256, 700] {
            check_case(&Case { n_heads, n_kv_heads, head_dim: 64, start, n_tokens: 1, window: None, soft_cap: None });
        }
    }
}

#[test]
fn heads_of_every_size() {
    for head_dim in [1, 3, 31, 64, 65, 80, 128, 256] {
        for n_tokens in [1, 5, 19] {
            check_case(&Case {
                n_heads: 6,
                n_kv_heads: 2,
                head_dim,
                start: 250,
                n_tokens,
                window: None,
                soft_cap: None,
            });
        }
    }
}

#[test]
fn windows_and_caps() {
    for window in [Some(1), Some(7), Some(256), Some(300), Some(10_000), None] {
        for soft_cap in [None, Some(0.7)] {
            for (start, n_tokens) in [(0, 1), (600, 1), (0, 40), (500, 40)] {
                check_case(&Case { n_heads: 6, n_kv_heads: 2, head_dim: 32, start, n_tokens, window, soft_cap });
            }
        }
    }
}

#[test]
fn a_prompt_of_several_chunks() {
    for (start, n_tokens) in [(0, 300), (250, 270)] {
        check_case(&Case { n_heads: 4, n_kv_heads: 2, head_dim: 64, start, n_tokens, window: None, soft_cap: None });
    }
}

#[test]
fn a_row_does_not_see_later_values() {
    for (start, n_tokens) in [(0, 16), (240, 30)] {
        let case = Case { n_heads: 4, n_kv_heads: 2, head_dim: 48, start, n_tokens, window: Some(200), soft_cap: None };
        let (mut operands, params) = operands(&case, DType::F16);
        let infinite = f16::INFINITY.to_le_bytes();
        for head in 0..2 {
            // One value of the third last token, of both heads.
            let at = 2 * ((head * params.cache.capacity + start + n_tokens - 3) * 48 + 5);
            operands[2].bytes[at..at + 2].copy_from_slice(&infinite);
        }
        check(&operands, &[3], f64::INFINITY, &|encoder, buffers| {
            let [q, k, v, output] = buffers else { unreachable!() };
            encoder.attention(q, k, v, output, &params)
        });
        let record: Record<'_> = &|encoder, buffers| {
            let [q, k, v, output] = buffers else { unreachable!() };
            encoder.attention(q, k, v, output, &params)
        };
        for isa in Isa::available() {
            let (found, _) = run_kernel(isa, 2, &DeviceOptions::default(), &operands, record);
            let infinite = values(&found[3]).iter().filter(|v| !v.is_finite()).count();
            assert_eq!(infinite, 3 * case.n_heads, "{isa:?}");
        }
    }
}

/// One thread computes the chunks of a tile one after the other, several compute them apart.
#[test]
fn threads_change_no_bit() {
    for (start, n_tokens, window) in [(0, 600, None), (700, 40, None), (700, 40, Some(300)), (1000, 3, None)] {
        let case = Case { n_heads: 8, n_kv_heads: 2, head_dim: 40, start, n_tokens, window, soft_cap: None };
        let (operands, params) = operands(&case, DType::F16);
        let record: Record<'_> = &|encoder, buffers| {
            let [q, k, v, output] = buffers else { unreachable!() };
            encoder.attention(q, k, v, output, &params)
        };
        for isa in Isa::available() {
            let outputs = [1, 40].map(|threads| {
                let (buffers, result) = run_kernel(isa, threads, &DeviceOptions::default(), &operands, record);
                result.unwrap();
                buffers[3].as_slice::<u8>().unwrap().to_vec()
            });
            assert!(outputs[0] == outputs[1], "{isa:?}, {n_tokens} tokens from {start}, window {window:?}");
        }
    }
}

#[test]
fn batch_invariance_is_bit_for_bit() {
    let options = DeviceOptions { batch_invariant: true, ..DeviceOptions::default() };
    for window in [None, Some(90)] {
        let case = Case { n_heads: 6, n_kv_heads: 2, head_dim: 40, start: 235, n_tokens: 50, window, soft_cap: None };
        let (operands, params) = operands(&case, DType::F16);
        let row = case.n_heads * case.head_dim * 4;
        for isa in Isa::available() {
            let record: Record<'_> = &|encoder, buffers| {
                let [q, k, v, output] = buffers else { unreachable!() };
                encoder.attention(q, k, v, output, &params)
            };
            let (together, _) = run_kernel(isa, 3, &options, &operands, record);
            let together = together[3].as_slice::<u8>().unwrap();
            for token in [0, 1, 20, 21, 22, 49] {
                let params = AttentionParams { n_tokens: 1, start: case.start + token, ..params };
                let alone: Record<'_> = &|encoder, buffers| {
                    let [q, k, v, output] = buffers else { unreachable!() };
                    let q = q.slice_view((token * row) as u64, row / 4);
                    encoder.attention(&q, k, v, output, &params)
                };
                let (alone, _) = run_kernel(isa, 2, &options, &operands, alone);
                let alone = &alone[3].as_slice::<u8>().unwrap()[..row];
                assert_eq!(&together[token * row..(token + 1) * row], alone, "{isa:?}, token {token}");
            }
        }
    }
}
