//! What the processor can do at most: instructions on registers, and loads without anything else.

use std::hint::black_box;
use std::sync::Mutex;
use std::time::Instant;

use super::isa::Isa;
use super::pool::{Job, Pool, Team};
use crate::limits::Limits;
use crate::memory::{HostMemory, Memory};
use crate::{MlxError, Result};

/// Bytes that a reader takes at once, a multiple of every vector's.
const CHUNK: usize = 256;
/// Rounds of a sample of instructions: some 200 µs.
const ROUNDS: usize = 20_000;
/// Samples of instructions; the fastest counts, since nothing but a disturbance makes one slower.
const SAMPLES: usize = 3;
/// Independent sums, enough to hide the latency of one, and few enough for 16 registers.
const SUMS: usize = 12;

/// One instruction set's loops.
struct Loops {
    /// Reads whole [`CHUNK`]s.
    read: unsafe fn(&[u8]),
    /// [`SUMS`] vectors of 8-bit dot products, so many rounds.
    dot: unsafe fn(usize),
    /// [`SUMS`] vectors of f32 multiply-adds, so many rounds.
    multiply_add: unsafe fn(usize),
    /// Bytes of a vector.
    width: usize,
}

/// Loops of an instruction set, from its vector's zeros and operations. Every operation takes its own result as an operand, so that none can
/// be moved out of the loop.
macro_rules! loops {
    ($name:ident, $(#[$features:meta])? $width:literal, $zero:expr, $read:expr, $dot:expr, $one:expr, $multiply_add:expr) => {
        mod $name {
            use super::*;

            /// # Safety
            /// The machine has the instruction set.
            $(#[$features])?
            unsafe fn read(bytes: &[u8]) {
                let mut sums = [$zero; CHUNK / $width];
                for chunk in bytes.chunks_exact(CHUNK) {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: the chunk has CHUNK bytes, and the caller's promise.
                        *sum = unsafe { $read(*sum, chunk.as_ptr().add($width * i)) };
                    }
                }
                black_box(sums);
            }

            /// # Safety
            /// As above.
            $(#[$features])?
            unsafe fn dot(rounds: usize) {
                let mut sums = [black_box($zero); SUMS];
                for _ in 0..rounds {
                    for sum in &mut sums {
                        *sum = $dot(*sum);
                    }
                }
                black_box(sums);
            }

            /// # Safety
            /// As above.
            $(#[$features])?
            unsafe fn multiply_add(rounds: usize) {
                let factor = black_box($one);
                let mut sums = [factor; SUMS];
                for _ in 0..rounds {
                    for sum in &mut sums {
                        *sum = $multiply_add(*sum, factor);
                    }
                }
                black_box(sums);
            }

            pub(super) const LOOPS: Loops = Loops { read, dot, multiply_add, width: $width };
        }
    };
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
loops!(
    avx512,
    #[target_feature(enable = "avx512f,avx512vnni")]
    64,
    _mm512_setzero_si512(),
    |sum, p: *const u8| _mm512_xor_si512(sum, _mm512_loadu_si512(p.cast())),
    |sum| _mm512_dpbusd_epi32(sum, sum, sum),
    _mm512_set1_ps(0.5),
    |sum, factor| _mm512_fmadd_ps(sum, factor, factor)
);

// Without VNNI a dot product is two multiplications and an addition.
#[cfg(target_arch = "x86_64")]
loops!(
    avx2,
    #[target_feature(enable = "avx2,fma")]
    32,
    _mm256_setzero_si256(),
    |sum, p: *const u8| _mm256_xor_si256(sum, _mm256_loadu_si256(p.cast())),
    |sum| _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(sum, sum), _mm256_set1_epi16(1))),
    _mm256_set1_ps(0.5),
    |sum, factor| _mm256_fmadd_ps(sum, factor, factor)
);

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;

/// `sdot`, whose intrinsic is not stable yet.
///
/// # Safety
/// The machine has the dot-product extension.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
unsafe fn sdot(mut sum: int32x4_t) -> int32x4_t {
    // SAFETY: only registers, and the caller's promise.
    unsafe { std::arch::asm!("sdot {0:v}.4s, {0:v}.16b, {0:v}.16b", inout(vreg) sum, options(pure, nomem, nostack)) };
    sum
}

#[cfg(target_arch = "aarch64")]
loops!(
    neon,
    #[target_feature(enable = "neon,dotprod")]
    16,
    vdupq_n_s32(0),
    |sum, p: *const u8| veorq_s32(sum, vreinterpretq_s32_u8(vld1q_u8(p))),
    |sum| {
        // SAFETY: the caller's promise.
        unsafe { sdot(sum) }
    },
    vdupq_n_f32(0.5),
    |sum, factor| vfmaq_f32(factor, sum, factor)
);

// Arrays, of which the compiler makes whatever the architecture's baseline has.
loops!(
    portable,
    16,
    [0i32; 4],
    |sum: [i32; 4], p: *const u8| {
        let words = p.cast::<[i32; 4]>().read_unaligned();
        std::array::from_fn(|i| sum[i] ^ words[i])
    },
    |sum: [i32; 4]| -> [i32; 4] {
        std::array::from_fn(|i| {
            let bytes = sum[i].to_le_bytes();
            bytes.into_iter().fold(sum[i], |sum, byte| sum.wrapping_add(byte as i8 as i32 * byte as i8 as i32))
        })
    },
    [0.5f32; 4],
    |sum: [f32; 4], factor: [f32; 4]| -> [f32; 4] { std::array::from_fn(|i| sum[i] * factor[i] + factor[i]) }
);

fn loops(isa: Isa) -> &'static Loops {
    match isa {
        Isa::Portable => &portable::LOOPS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &avx2::LOOPS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => &avx512::LOOPS,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => &neon::LOOPS,
    }
}

/// A part for each thread, and the seconds until all have done theirs.
struct Timed<'a> {
    part: &'a (dyn Fn(usize) + Sync),
    seconds: Mutex<f64>,
}

impl Job for Timed<'_> {
    fn run(&self, team: &Team<'_>, _from: usize) {
        team.barrier(1, || (), || false);
        let start = Instant::now();
        (self.part)(team.thread);
        team.barrier(1, || (), || false);
        if team.thread == 0
            && let Ok(mut seconds) = self.seconds.lock()
        {
            *seconds = start.elapsed().as_secs_f64();
        }
    }
}

/// Seconds until all threads have done their part.
fn time(pool: &Pool, part: &(dyn Fn(usize) + Sync)) -> Result<f64> {
    let timed = Timed { part, seconds: Mutex::new(0.0) };
    pool.run(&timed)?;
    timed.seconds.into_inner().map_err(|_| MlxError::CommandBufferError("measuring the processor failed".into()))
}

/// Several times the last-level cache of the machines that there are.
const PROBED_BYTES: usize = 256 << 20;

/// Memory to read.
pub(super) fn memory() -> Result<Box<dyn Memory>> {
    let memory = HostMemory::zeroed(PROBED_BYTES)?;
    // SAFETY: the allocation has so many bytes, and nobody else knows it. Zeros that were never written would all be one page of the operating system's.
    unsafe { memory.host_ptr()?.write_bytes(1, PROBED_BYTES) };
    Ok(Box::new(memory))
}

/// One sample of what `pool`'s threads reach with the instruction set, reading all of `memory`.
pub(super) fn measure(isa: Isa, pool: &Pool, memory: &dyn Memory) -> Result<Limits> {
    // SAFETY: so many bytes are readable as long as `memory` lives, and nobody writes them.
    let memory = unsafe { std::slice::from_raw_parts(memory.host_ptr()?, memory.byte_len()) };
    let Loops { read, dot, multiply_add, width } = *loops(isa);
    let parts = memory.len() / CHUNK / pool.threads() * CHUNK;
    // SAFETY: whoever holds an Isa has found it available.
    let reading = time(pool, &|thread| unsafe { read(&memory[parts * thread..][..parts]) })?;
    let fastest = |instructions: unsafe fn(usize)| -> Result<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..SAMPLES {
            // SAFETY: as above.
            best = best.min(time(pool, &|_| unsafe { instructions(ROUNDS) })?);
        }
        Ok(best)
    };
    // Two operations for each multiply-add.
    let vectors = (2 * SUMS * ROUNDS * pool.threads()) as f64;
    Ok(Limits {
        read_bytes_per_s: (parts * pool.threads()) as f64 / reading,
        int8_ops_per_s: Some(vectors * width as f64 / fastest(dot)?),
        f32_ops_per_s: Some(vectors * (width / size_of::<f32>()) as f64 / fastest(multiply_add)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_loop_is_removed() {
        let pool = Pool::new(1).unwrap();
        let memory = HostMemory::zeroed(1 << 20).unwrap();
        for isa in Isa::available() {
            let limits = measure(isa, &pool, &memory).unwrap();
            // A loop that the compiler removed would be faster than any processor: 2 vectors of 64 bytes at 8 GHz.
            let fastest = (2 * 2 * 8) as f64 * 1e9;
            let possible = |rate: f64, most: f64| assert!(rate > 1e6 && rate < most, "{isa:?}: {limits:?}");
            possible(limits.int8_ops_per_s.unwrap(), fastest * 64.0);
            possible(limits.f32_ops_per_s.unwrap(), fastest * 16.0);
            possible(limits.read_bytes_per_s, fastest * 64.0);
        }
    }
}
