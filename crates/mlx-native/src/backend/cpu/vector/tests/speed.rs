//! Kernel speed beside what the machine can do: `cargo test --release -p mlx-native --lib vector::tests::speed -- --ignored --nocapture`.
//!
//! `MLX_SPEED` restricts it: comma-separated words out of instruction sets, operations and `threads=1`.

use std::sync::Mutex;
use std::time::Instant;

use super::super::simd::Simd;
use super::super::{OnIsa, Task};
use super::*;
use crate::backend::cpu::kernel::Kernel;
use crate::backend::cpu::pool::Pool;
use crate::{Activation, AttentionParams, KvCacheParams, RmsNormParams, RopeParams, RopeStyle, SampleParams};

/// Independent multiply-adds from registers.
struct Peak;

const PEAK_ROUNDS: usize = 100_000;

impl Task for Peak {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S, _phase: usize, _share: &Share<'_>) {
        let mut sums = [s.splat(0.0); 12];
        let factor = s.splat(std::hint::black_box(0.5));
        for _ in 0..PEAK_ROUNDS {
            for sum in &mut sums {
                *sum = s.mul_add(*sum, factor, factor);
            }
        }
        let mut all = sums[0];
        for sum in &sums[1..] {
            all = s.add(all, *sum);
        }
        std::hint::black_box(s.sum(all));
    }
}

/// Reads every value.
struct Read(Vec<f32>);

impl Task for Read {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S, _phase: usize, share: &Share<'_>) {
        let range = share.range(self.0.len(), 4096);
        let mut sums = [s.splat(0.0); 8];
        for values in self.0[range].chunks_exact(8 * S::LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the chunk has eight vectors.
                *sum = s.max(unsafe { s.load(values.as_ptr().add(i * S::LANES)) }, *sum);
            }
        }
        for sum in sums {
            std::hint::black_box(s.sum(sum));
        }
    }
}

/// Seconds of the fastest run of any of the kernels, all phases: what the least disturbed one takes.
fn time(pool: &Pool, kernels: &[Box<dyn Kernel>], repeat: usize) -> f64 {
    let best = Mutex::new(f64::INFINITY);
    for _ in 0..repeat {
        let faults = Faults::default();
        pool.run(&|team| {
            let share = Share { part: team.thread, parts: team.threads, faults: &faults };
            for kernel in kernels {
                team.barrier();
                let start = Instant::now();
                for phase in 0..kernel.phases() {
                    kernel.run(phase, &share);
                    team.barrier();
                }
                let seconds = start.elapsed().as_secs_f64();
                if team.thread == 0 {
                    let mut best = best.lock().unwrap();
                    *best = best.min(seconds);
                }
            }
        })
        .unwrap();
    }
    best.into_inner().unwrap()
}

struct Bench {
    pool: Pool,
    isa: Isa,
    words: Vec<String>,
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        let known = ["attention", "decode", "norm", "gated", "rope", "softmax", "argmax", "sample"];
        !self.words.iter().any(|w| known.contains(&w.as_str())) || self.words.iter().any(|w| w == name)
    }

    /// Times the operation: `copies` of it on operands of their own, so that these come from memory if they are large together.
    fn time(&self, copies: usize, operands: &[Operand], record: Record<'_>) -> f64 {
        let device = MlxDevice::reference().unwrap();
        let mut resolver = Resolver::default();
        let mut kernels = Vec::new();
        let mut encoders = Vec::new();
        for _ in 0..copies {
            let mut buffers = buffers(&device, operands);
            let mut encoder = device.command_encoder().unwrap();
            record(&mut encoder, &mut buffers).unwrap();
            for op in encoder.ops() {
                kernels.push(kernel(op, 0, &mut resolver, self.isa, &DeviceOptions::default()).unwrap());
            }
            encoders.push((encoder, buffers));
        }
        time(&self.pool, &kernels, 15)
    }

    fn attention(&self, name: &str, dtype: DType, heads: (usize, usize, usize), start: usize, n_tokens: usize) {
        let (n_heads, n_kv_heads, head_dim) = heads;
        let capacity = start + n_tokens;
        let params = AttentionParams {
            cache: KvCacheParams { n_kv_heads, capacity, head_dim },
            n_heads,
            n_tokens,
            start,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window: None,
            soft_cap: None,
        };
        let cache = random(1, n_kv_heads * capacity * head_dim);
        let cache = || if dtype == DType::F16 { f16s(&cache) } else { f32s(&cache) };
        let q = random(2, n_tokens * n_heads * head_dim);
        let operands = [f32s(&q), cache(), cache(), poison(q.len(), DType::F32)];
        let bytes = 2 * n_kv_heads * capacity * head_dim * dtype.size_of();
        // Short contexts are measured in the second-level cache.
        let copies = if bytes > 1 << 20 { (256 << 20) / bytes } else { 1 };
        let copies = if n_tokens < 64 { copies } else { 1 };
        let seconds = self.time(copies.clamp(1, 64), &operands, &|encoder, buffers| {
            let [q, k, v, output] = buffers else { unreachable!() };
            encoder.attention(q, k, v, output, &params)
        });
        let pairs: usize = (start + 1..=start + n_tokens).sum();
        let flops = 4.0 * (pairs * n_heads * head_dim) as f64;
        println!(
            "{name:<34} {:>9.1} µs {:>7.1} GFLOP/s {:>6.1} GB/s",
            seconds * 1e6,
            flops / seconds / 1e9,
            bytes as f64 / seconds / 1e9
        );
    }
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    let words: Vec<String> = std::env::var("MLX_SPEED").unwrap_or_default().split(',').map(String::from).collect();
    let threads = words.iter().find_map(|w| w.strip_prefix("threads=")?.parse().ok()).unwrap_or(0);
    let any_isa = Isa::available().any(|isa| words.iter().any(|w| w == isa.name()));
    for isa in Isa::available() {
        if if any_isa { words.iter().any(|w| w == isa.name()) } else { isa == Isa::best() } {
            measure(&Bench { pool: Pool::new(threads).unwrap(), isa, words: words.clone() });
        }
    }
}

fn measure(bench: &Bench) {
    let isa = bench.isa;
    let peak = time(&bench.pool, &[Box::new(OnIsa { task: Peak, isa })], 9);
    let lanes = match isa.name() {
        "avx512" => 16,
        "neon" => 4,
        _ => 8,
    };
    let flops = (bench.pool.threads() * PEAK_ROUNDS * 12 * 2 * lanes) as f64;
    let data = vec![1.0; 64 << 20];
    let read = time(&bench.pool, &[Box::new(OnIsa { task: Read(data), isa })], 9);
    println!(
        "{}, {} threads: multiply-add peak {:.0} GFLOP/s, reading {:.1} GB/s",
        isa.name(),
        bench.pool.threads(),
        flops / peak / 1e9,
        (256 << 20) as f64 / read / 1e9
    );
    if bench.wants("decode") {
        for (name, dtype, heads) in [
            ("decode 4096 32/8 heads of 128 f16", DType::F16, (32, 8, 128)),
            ("decode 4096 32/8 heads of 128 f32", DType::F32, (32, 8, 128)),
            ("decode 4096 9/3 heads of 64 f16", DType::F16, (9, 3, 64)),
            ("decode 4096 8/8 heads of 128 f16", DType::F16, (8, 8, 128)),
            ("decode 4096 8/4 heads of 256 f16", DType::F16, (8, 4, 256)),
            ("decode 4096 64/8 heads of 128 f16", DType::F16, (64, 8, 128)),
        ] {
            bench.attention(name, dtype, heads, 4095, 1);
        }
        bench.attention("decode 1024 4/1 heads of 128 f16", DType::F16, (4, 1, 128), 1023, 1);
        bench.attention("decode 1024 8/1 heads of 128 f16", DType::F16, (8, 1, 128), 1023, 1);
        bench.attention("decode 1024 1/1 heads of 128 f16", DType::F16, (1, 1, 128), 1023, 1);
        bench.attention("decode 100 9/3 heads of 64 f16", DType::F16, (9, 3, 64), 99, 1);
        bench.attention("verify 4 at 4096 32/8 of 128 f16", DType::F16, (32, 8, 128), 4092, 4);
    }
    if bench.wants("attention") {
        for (name, dtype, heads) in [
            ("4/1 heads of 128 f16", DType::F16, (4, 1, 128)),
            ("4/1 heads of 128 f32", DType::F32, (4, 1, 128)),
            ("3/1 heads of 64 f16", DType::F16, (3, 1, 64)),
            ("2/1 heads of 256 f16", DType::F16, (2, 1, 256)),
        ] {
            bench.attention(&format!("prefill 256 {name}"), dtype, heads, 0, 256);
            bench.attention(&format!("prefill 128 at 1920 {name}"), dtype, heads, 1920, 128);
        }
    }
    let rate = |name: &str, seconds: f64, bytes: usize| {
        println!("{name:<34} {:>9.2} µs {:>6.1} GB/s", seconds * 1e6, bytes as f64 / seconds / 1e9);
    };
    if bench.wants("norm") {
        for (rows, dim) in [(1, 576), (1, 4096), (512, 4096)] {
            let params = RmsNormParams { rows, dim, eps: 1e-6 };
            let operands = [f32s(&random(1, rows * dim)), f32s(&random(2, dim)), poison(rows * dim, DType::F32)];
            let seconds = bench.time(8, &operands, &|encoder, buffers| {
                let [input, weight, output] = buffers else { unreachable!() };
                encoder.rms_norm(input, weight, output, &params)
            });
            rate(&format!("rms_norm {rows} × {dim}"), seconds, 8 * rows * dim);
        }
    }
    if bench.wants("gated") {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            for len in [1536, 14_336, 512 * 14_336] {
                let operands = [f32s(&random(1, len)), f32s(&random(2, len)), poison(len, DType::F32)];
                let seconds = bench.time(4, &operands, &|encoder, buffers| {
                    let [gate, up, output] = buffers else { unreachable!() };
                    encoder.gated_activation(activation, gate, up, output)
                });
                rate(&format!("{activation:?} {len}"), seconds, 12 * len);
            }
        }
    }
    if bench.wants("rope") {
        for style in [RopeStyle::NeoX, RopeStyle::Interleaved] {
            for n_tokens in [1, 512] {
                let (n_heads, head_dim) = (32, 128);
                let params =
                    RopeParams { n_tokens, n_heads, head_dim, n_rot: head_dim, base: 1e4, frequency_scale: 1.0, style };
                let positions: Vec<u32> = (1000..).take(n_tokens).collect();
                let operands = [f32s(&random(1, n_tokens * n_heads * head_dim)), u32s(&positions)];
                let seconds = bench.time(4, &operands, &|encoder, buffers| {
                    let mut output = buffers[0].clone();
                    encoder.rope(&buffers[0], &buffers[1], None, &mut output, &params)
                });
                rate(&format!("rope {style:?} {n_tokens} × 32 × 128"), seconds, 8 * n_tokens * n_heads * head_dim);
            }
        }
    }
    let vocabulary = random(1, 151_936);
    if bench.wants("softmax") {
        let seconds = bench.time(1, &[f32s(&vocabulary)], &|encoder, buffers| {
            let mut output = buffers[0].clone();
            encoder.softmax(&buffers[0], &mut output, vocabulary.len(), 1.0)
        });
        rate("softmax 151936", seconds, 8 * vocabulary.len());
    }
    if bench.wants("argmax") {
        let seconds = bench.time(1, &[f32s(&vocabulary), poison(1, DType::U32)], &|encoder, buffers| {
            let [input, output] = buffers else { unreachable!() };
            encoder.argmax(input, output, vocabulary.len())
        });
        rate("argmax 151936", seconds, 4 * vocabulary.len());
    }
    if bench.wants("sample") {
        // As peaked as a model's.
        let vocabulary: Vec<f32> = vocabulary.iter().map(|v| v * 4.0).collect();
        let plain = SampleParams { temperature: 0.8, ..SampleParams::default() };
        for params in [
            SampleParams::default(),
            plain,
            SampleParams { top_k: 40, ..plain },
            SampleParams { top_k: 40, top_p: 0.95, min_p: 0.05, ..plain },
            SampleParams { top_p: 0.9, ..plain },
        ] {
            let seconds = bench.time(1, &[f32s(&vocabulary), poison(1, DType::U32)], &|encoder, buffers| {
                let [input, output] = buffers else { unreachable!() };
                encoder.sample(input, None, output, &params)
            });
            let SampleParams { temperature, top_k, top_p, .. } = params;
            rate(&format!("sample t={temperature} k={top_k} p={top_p}"), seconds, 4 * vocabulary.len());
        }
    }
}
