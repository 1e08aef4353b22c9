//! Phase 1: x as the kernels read it.
//!
//! Integer layout: each row of x gives one column (three for exact activations, see [`quantize`]), and a column is one record for each step:
//! `lo` and `hi` codes (16·lanes bytes each), the activation scales (four equal f32 a lane), and one or two vectors of
//! what the kernel needs to know about the sums of codes (four equal values a lane), see [`Sums`].
//!
//! Float layout: rows of f32, each padded with zeros.

use half::{bf16, f16};

use super::XRows;
use crate::DType;
use crate::backend::cpu::isa::Isa;

/// The f32 kernels may read this many elements at once; rows of prepared floats are a multiple of it.
pub(super) const FLOAT_PAD: usize = 16;

/// What a record says about the sums of its codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Sums {
    /// −offset · Σ codes, i32: undoes the offset in the weights' codes.
    Offset(i32),
    /// Σ codes, f32: what a format's minimums are multiplied with.
    Plain,
}

/// How prepared x lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Layout {
    /// f32 rows of `row` elements.
    Floats {
        /// Elements of a row of x.
        k: usize,
        /// Elements from one row to the next.
        row: usize,
    },
    /// 8-bit codes in records.
    Codes {
        /// Elements of a row of x.
        k: usize,
        /// Blocks of 32 in a step.
        lanes: usize,
        /// Sums are kept for each 16 values instead of 32.
        halves: bool,
        /// Which sums.
        sums: Sums,
        /// Columns of a row: 1, or 3 for exact activations.
        planes: usize,
    },
}

impl Layout {
    /// The f32 layout for rows of `k`.
    pub(super) fn floats(k: usize) -> Layout {
        // One cache line more than a multiple of 8 lines keeps rows out of each other's cache sets.
        let row = k.next_multiple_of(FLOAT_PAD);
        Layout::Floats { k, row: row.next_multiple_of(8 * FLOAT_PAD) + FLOAT_PAD }
    }

    /// Columns of a row of x.
    pub(super) fn planes(&self) -> usize {
        match *self {
            Layout::Floats { .. } => 1,
            Layout::Codes { planes, .. } => planes,
        }
    }

    /// Records of a column.
    pub(super) fn steps(&self) -> usize {
        match *self {
            Layout::Floats { .. } => 0,
            Layout::Codes { k, lanes, .. } => k.div_ceil(32 * lanes),
        }
    }

    /// Bytes of a record.
    pub(super) fn record_bytes(&self) -> usize {
        match *self {
            Layout::Floats { .. } => 0,
            Layout::Codes { lanes, halves, .. } => (64 + if halves { 16 } else { 0 }) * lanes,
        }
    }

    /// Bytes from one column to the next.
    pub(super) fn column_bytes(&self) -> usize {
        match *self {
            Layout::Floats { row, .. } => row * size_of::<f32>(),
            Layout::Codes { .. } => {
                // Columns are read side by side: an odd multiple of 256 bytes spreads them over the cache's sets.
                let bytes = (self.steps() * self.record_bytes()).next_multiple_of(256);
                bytes + if bytes.is_multiple_of(512) { 256 } else { 0 }
            }
        }
    }

    /// Bytes of the prepared form of one row of x.
    pub(super) fn row_bytes(&self) -> usize {
        self.planes() * self.column_bytes()
    }
}

/// Part `part` of `parts` of [`Plan::prepare`](super::Plan::prepare), whose safety contract it has.
pub(super) unsafe fn prepare(
    isa: Isa,
    layout: Layout,
    x: XRows,
    m: usize,
    prepared: *mut u8,
    part: usize,
    parts: usize,
) {
    let work = Work { layout, x, m, prepared, part, parts };
    // SAFETY: the plan's maker found `isa` available; pointers are the caller's promise.
    unsafe {
        match isa {
            Isa::Portable => portable(&work),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2(&work),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512(&work),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => portable(&work),
        }
    }
}

struct Work {
    layout: Layout,
    x: XRows,
    m: usize,
    prepared: *mut u8,
    part: usize,
    parts: usize,
}

unsafe fn portable(work: &Work) {
    // SAFETY: the caller's promise is the same.
    unsafe { generic(work) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(work: &Work) {
    // SAFETY: the caller's promise is the same.
    unsafe { generic(work) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn avx512(work: &Work) {
    // SAFETY: the caller's promise is the same.
    unsafe { generic(work) }
}

/// Plain Rust that the compiler vectorizes for the caller's instruction set.
#[inline(always)]
unsafe fn generic(work: &Work) {
    let units = match work.layout {
        Layout::Floats { row, .. } => row.div_ceil(UNIT),
        Layout::Codes { .. } => work.layout.steps(),
    };
    let all = work.m * units;
    let share = |part: usize| (all / work.parts) * part + (all % work.parts).min(part);
    for unit in share(work.part)..share(work.part + 1) {
        // SAFETY: row and unit lie inside x and the prepared buffer, which the caller has promised to be valid.
        unsafe {
            match work.layout {
                Layout::Floats { k, row } => widen(work, unit / units, unit % units * UNIT, k, row),
                Layout::Codes { .. } => quantize(work, unit / units, unit % units),
            }
        }
    }
}

/// Elements of a row that one unit of float preparation copies.
const UNIT: usize = 512;

/// Copies `UNIT` elements of row `i` from element `first` on as f32, zeros behind element k.
#[inline(always)]
unsafe fn widen(work: &Work, i: usize, first: usize, k: usize, row: usize) {
    for l in (first..(first + UNIT).min(row)).step_by(FLOAT_PAD) {
        let mut values = [0.0; FLOAT_PAD];
        // SAFETY: reads elements below k of a row of x, writes elements below `row` of a prepared row.
        unsafe {
            read(&work.x, i, l, k, &mut values);
            work.prepared.cast::<f32>().add(i * row + l).cast::<[f32; FLOAT_PAD]>().write_unaligned(values);
        }
    }
}

/// Elements `first..` of row `i` of x as f32; `values` stays zero from element k on.
#[inline(always)]
unsafe fn read<const N: usize>(x: &XRows, i: usize, first: usize, k: usize, values: &mut [f32; N]) {
    let mut done = 0;
    let count = k.saturating_sub(first).min(N);
    while done < count {
        let l = first + done;
        let (head, within) = if x.head_dim >= k { (0, l) } else { (l / x.head_dim, l % x.head_dim) };
        let run = (count - done).min(x.head_dim.max(1) - within.min(x.head_dim.max(1) - 1));
        let at = i * x.row_stride + head * x.head_stride + within;
        // SAFETY: elements l..l + run of row i lie contiguously at `at`; the caller has promised that they are readable.
        unsafe {
            if run == N {
                match x.dtype {
                    DType::F16 => {
                        let bits = x.data.cast::<[u16; N]>().byte_add(2 * at).read_unaligned();
                        *values = bits.map(|h| f16::from_bits(h).to_f32());
                    }
                    DType::BF16 => {
                        let bits = x.data.cast::<[u16; N]>().byte_add(2 * at).read_unaligned();
                        *values = bits.map(|h| bf16::from_bits(h).to_f32());
                    }
                    _ => *values = x.data.cast::<[f32; N]>().byte_add(4 * at).read_unaligned(),
                }
            } else {
                for j in 0..run {
                    values[done + j] = match x.dtype {
                        DType::F16 => x.data.cast::<f16>().add(at + j).read_unaligned().to_f32(),
                        DType::BF16 => x.data.cast::<bf16>().add(at + j).read_unaligned().to_f32(),
                        _ => x.data.cast::<f32>().add(at + j).read_unaligned(),
                    };
                }
            }
        }
        done += run;
    }
}

/// Fills one record of each column of row `i`.
///
/// A block of 32 values x is c₀·d + c₁·d/254 + c₂·d/254² with d = max|x| / 127 and integers −127 ≤ c ≤ 127: each is the rounded rest of the
/// one before, whose error is at most half a unit. Q8 stops after c₀.
#[inline(always)]
unsafe fn quantize(work: &Work, i: usize, step: usize) {
    let Layout::Codes { k, lanes, halves, sums, planes } = work.layout else { return };
    for lane in 0..lanes {
        let mut x = [0.0f32; 32];
        // SAFETY: row i is below m, elements from k on are not read.
        unsafe { read(&work.x, i, (step * lanes + lane) * 32, k, &mut x) };
        let (mut scale, inverse) = scales(&x);
        let mut rest = [0.0; 32];
        if !scale.is_nan() {
            for (rest, x) in rest.iter_mut().zip(x) {
                *rest = x * inverse;
            }
        }
        for plane in 0..planes {
            let mut codes = [0; 32];
            let mut bytes = [0; 32];
            let mut half_sums = [0; 2];
            for j in 0..32 {
                codes[j] = round(rest[j]);
                bytes[j] = codes[j] as u8;
                half_sums[j / 16] += codes[j];
            }
            // SAFETY: the record of (i·planes + plane, step) lies in the prepared buffer, and `lane < lanes`.
            unsafe {
                let column = work.prepared.add((i * planes + plane) * work.layout.column_bytes());
                let record = column.add(step * work.layout.record_bytes());
                let (lo, hi) = bytes.split_at(16);
                record.add(16 * lane).copy_from_nonoverlapping(lo.as_ptr(), 16);
                record.add(16 * (lanes + lane)).copy_from_nonoverlapping(hi.as_ptr(), 16);
                let quads = record.add(32 * lanes).cast::<[u32; 4]>();
                quads.add(lane).write_unaligned([scale.to_bits(); 4]);
                let note = |sum: i32| match sums {
                    Sums::Offset(offset) => [(-offset * sum) as u32; 4],
                    Sums::Plain => [(sum as f32).to_bits(); 4],
                };
                if halves {
                    quads.add(lanes + lane).write_unaligned(note(half_sums[0]));
                    quads.add(2 * lanes + lane).write_unaligned(note(half_sums[1]));
                } else {
                    quads.add(lanes + lane).write_unaligned(note(half_sums[0] + half_sums[1]));
                }
            }
            for (rest, code) in rest.iter_mut().zip(codes) {
                *rest = (*rest - code as f32) * 254.0;
            }
            scale /= 254.0;
        }
    }
}

/// The nearest integer of |v| ≤ 127.5, ties to even: adding 1.5·2²³ leaves it in the low bits.
#[inline(always)]
fn round(v: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    (v + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32
}

/// (max|x| / 127, 127 / max|x|); NaN for the scale when a value is not finite, so that the whole row's results become NaN.
#[inline(always)]
fn scales(x: &[f32; 32]) -> (f32, f32) {
    let magnitude = |x: f32| x.to_bits() & 0x7FFF_FFFF;
    let mut largest = [0u32; 16];
    for (j, largest) in largest.iter_mut().enumerate() {
        *largest = magnitude(x[j]).max(magnitude(x[j + 16]));
    }
    let largest = f32::from_bits(largest.iter().copied().fold(0, u32::max));
    /// The largest power of two whose inverse is not subnormal: below it, 127 / max|x| would overflow.
    const INVERSE_MAX: f32 = 8.507_059e37;
    if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if largest * INVERSE_MAX < 127.0 {
        (1.0 / INVERSE_MAX, INVERSE_MAX)
    } else {
        (largest / 127.0, 127.0 / largest)
    }
}
