//! Kernel speed, beside what the machine can do: `cargo test --release -p mlx-native --lib matmul::speed -- --ignored --nocapture`.
//!
//! `MLX_SPEED` restricts it: comma-separated words out of format names, instruction sets, `q8`, `exact`, `m=1`, `n=4096`, `k=14336` and `threads=2`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::tests::{Owned, Random, formats};
use super::*;

/// Runs `f(thread)` on threads that spin, so that a run of microseconds is not drowned by waking them.
struct Team {
    threads: usize,
}

impl Team {
    /// Seconds of the fastest and of the median of `repeat` runs.
    fn time(&self, repeat: usize, f: impl Fn(usize, &dyn Fn()) + Sync) -> (f64, f64) {
        let (arrived, turn) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let barrier = || {
            let now = turn.load(Ordering::Acquire);
            if arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
                arrived.store(0, Ordering::Relaxed);
                turn.store(now + 1, Ordering::Release);
            } else {
                while turn.load(Ordering::Acquire) == now {
                    std::hint::spin_loop();
                }
            }
        };
        let worker = |thread: usize| {
            (0..repeat)
                .map(|_| {
                    barrier();
                    let start = Instant::now();
                    f(thread, &barrier);
                    barrier();
                    start.elapsed().as_secs_f64()
                })
                .collect::<Vec<_>>()
        };
        let mut times = std::thread::scope(|scope| {
            for thread in 1..self.threads {
                let worker = &worker;
                scope.spawn(move || worker(thread));
            }
            worker(0)
        });
        times.sort_by(f64::total_cmp);
        (times[0], times[repeat / 2])
    }
}

/// Reads every byte.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn read_all(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::*;
    let mut sum = [_mm512_setzero_si512(); 4];
    for chunk in bytes.chunks_exact(256) {
        for (i, sum) in sum.iter_mut().enumerate() {
            // SAFETY: the chunk has 256 bytes.
            *sum = unsafe { _mm512_xor_si512(*sum, _mm512_loadu_si512(chunk.as_ptr().add(64 * i).cast())) };
        }
    }
    _mm512_reduce_add_epi64(_mm512_or_si512(_mm512_or_si512(sum[0], sum[1]), _mm512_or_si512(sum[2], sum[3]))) as u64
}

/// Independent int8 dot products from registers; returns their operations.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot_peak(rounds: usize) -> (f64, i32) {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); 16];
    let (a, b) = (_mm512_set1_epi32(rounds as i32), _mm512_set1_epi32(7));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    let all = sums.into_iter().fold(_mm512_setzero_si512(), |all, sum| _mm512_add_epi32(all, sum));
    ((rounds * 16 * 64 * 2) as f64, _mm512_reduce_add_epi32(all))
}

fn number(words: &[String], key: &str, all: &[usize]) -> Vec<usize> {
    let found: Vec<usize> = words.iter().filter_map(|w| w.strip_prefix(key)?.parse().ok()).collect();
    if found.is_empty() { all.to_vec() } else { found }
}

#[cfg(target_arch = "x86_64")]
#[test]
#[ignore = "a measurement"]
fn speed() {
    let words: Vec<String> = std::env::var("MLX_SPEED").unwrap_or_default().split(',').map(String::from).collect();
    let has = |word: &str| words.iter().any(|w| w.eq_ignore_ascii_case(word));
    let chosen: Vec<WeightFormat> = formats();
    let any_format = chosen.iter().any(|f| has(&f.name()));
    let any_isa = Isa::available().any(|isa| has(isa.name()));
    let repeat = number(&words, "repeat=", &[15])[0];
    let threads = number(&words, "threads=", &[2])[0];
    let team = Team { threads };
    let bytes: Vec<u8> = vec![1; 256 << 20];
    let read = team.time(9, |t, _| {
        let half = bytes.len() / threads;
        // SAFETY: the machine that this is run on has AVX-512.
        std::hint::black_box(unsafe { read_all(&bytes[t * half..(t + 1) * half]) });
    });
    let peak = team.time(9, |_, _| {
        // SAFETY: as above.
        std::hint::black_box(unsafe { dot_peak(20_000) });
    });
    let peak = threads as f64 * (20_000 * 16 * 64 * 2) as f64 / peak.0;
    println!(
        "read {:.1} GB/s, int8 peak {:.0} Gop/s, {threads} threads",
        bytes.len() as f64 / read.0 / 1e9,
        peak / 1e9
    );
    drop(bytes);
    let mut random = Random::new(7);
    for format in chosen.into_iter().filter(|f| !any_format || has(&f.name())) {
        for k in number(&words, "k=", &[14336]) {
            for n in number(&words, "n=", &[4096]) {
                let w = Owned::random_repeated(format, n, k, &mut random);
                for isa in Isa::available().filter(|isa| if any_isa { has(isa.name()) } else { *isa == Isa::best() }) {
                    for activations in [Precision::Q8, Precision::Exact] {
                        if has("exact") != (activations == Precision::Exact) {
                            continue;
                        }
                        let config = Config { isa, activations, batch_invariant: false };
                        print!("{format:<20} {:<9} {activations:?} n={n} k={k}", isa.name());
                        for m in number(&words, "m=", &[1, 8, 128]) {
                            measure(&team, config, &w, [m, n, k], repeat, peak, &mut random);
                        }
                        println!();
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn measure(
    team: &Team,
    config: Config,
    w: &Owned,
    [m, n, k]: [usize; 3],
    repeat: usize,
    peak: f64,
    random: &mut Random,
) {
    let plan = Plan::new(config, w.format(), m, n, k);
    let x: Vec<f32> = (0..m * k).map(|_| random.normal()).collect();
    let mut prepared = vec![0u8; plan.x_bytes() + 64];
    let prepared = prepared.as_mut_ptr() as usize;
    let prepared = prepared.next_multiple_of(64);
    let mut scratch: Vec<Vec<u8>> = (0..team.threads).map(|_| vec![0u8; plan.thread_bytes()]).collect();
    let scratch: Vec<usize> = scratch.iter_mut().map(|s| s.as_mut_ptr() as usize).collect();
    let mut y = vec![0f32; m * n];
    let y = y.as_mut_ptr() as usize;
    let x = x.as_ptr() as usize;
    let chunk = plan.chunk(team.threads);
    let bands = chunk * team.threads >= n;
    let next = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let round = AtomicUsize::new(0);
    let work = |thread: usize, barrier: &dyn Fn()| {
        let x = XRows { data: x as *const u8, dtype: DType::F32, row_stride: k, head_dim: k, head_stride: 0 };
        let y = YRows { data: y as *mut f32, stride: n };
        // SAFETY: buffers have the plan's sizes; pieces of n are disjoint.
        unsafe {
            plan.prepare(x, prepared as *mut u8, thread, team.threads);
            barrier();
            let now = round.load(Ordering::Relaxed);
            loop {
                let start = if bands { thread * chunk } else { next[now % 2].fetch_add(chunk, Ordering::Relaxed) };
                let range = start.min(n)..(start + chunk).min(n);
                if range.is_empty() {
                    break;
                }
                plan.run(&w.weight(), prepared as *const u8, RowMap::All(m), y, range, scratch[thread] as *mut u8);
                if bands {
                    break;
                }
            }
            barrier();
            if thread == 0 {
                next[now % 2].store(0, Ordering::Relaxed);
                round.store(now + 1, Ordering::Relaxed);
            }
        }
    };
    let (best, median) = team.time(repeat, work);
    let (phase_1, _) = team.time(repeat, |thread, _| {
        let x = XRows { data: x as *const u8, dtype: DType::F32, row_stride: k, head_dim: k, head_stride: 0 };
        // SAFETY: as above.
        unsafe { plan.prepare(x, prepared as *mut u8, thread, team.threads) }
    });
    let phase_1 = 100.0 * phase_1 / best;
    let flops = 2.0 * (m * n * k) as f64;
    let bytes = w.bytes() as f64;
    if m == 1 {
        let packed = w.packed();
        let half = packed.len() / team.threads;
        let (read, read_median) = team.time(repeat, |t, _| {
            // SAFETY: the machine that this is run on has AVX-512.
            std::hint::black_box(unsafe { read_all(&packed[t * half..(t + 1) * half]) });
        });
        print!(
            " | m=1 {:.1} µs {:.0} GF {:.1} GB/s = {:.0} % of reading (median {:.1}, {:.0} %), x {phase_1:.0} %",
            best * 1e6,
            flops / best / 1e9,
            bytes / best / 1e9,
            100.0 * read / best,
            bytes / median / 1e9,
            100.0 * read_median / median
        );
    } else {
        print!(
            " | m={m} {:.0} GF = {:.0} % (median {:.0}), x {phase_1:.0} %",
            flops / best / 1e9,
            100.0 * flops / best / peak,
            flops / median / 1e9
        );
    }
}
