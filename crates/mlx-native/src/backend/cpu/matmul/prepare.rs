//! Phase 1: x as the kernels read it.
//!
//! Integer layout: each row of x gives one column (more for more than 8 bits, see [`quantize`]), and a column is one record for each step:
//! `lo` and `hi` codes (16·lanes bytes each), the activation scales (an f32 a lane), and once or twice what the kernel needs to know about the sums
//! of codes (a value a lane), see [`Sums`].
//!
//! Float layout: rows of f32, each padded with zeros.

use std::mem::MaybeUninit;

use half::{bf16, f16};

use super::XRows;
use super::rowwise::{self, Rowwise};
use super::simd::{self, BIAS_BITS, ByRow, MAX_LANES, Simd};
use crate::DType;
use crate::backend::cpu::isa::Isa;

/// The f32 kernels may read this many elements at once; rows of prepared floats are a multiple of it.
pub(super) const FLOAT_PAD: usize = 16;

/// What a record says about the sums of its codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Sums {
    /// [`BIAS_BITS`] − offset · Σ codes, i32: undoes the offset in the weights' codes, and makes the sum the bits of a float.
    Offset(i32),
    /// The scale · Σ codes, f32: what a format's minimums are multiplied with.
    Plain,
}

/// How the codes of a record are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Order {
    /// The first sixteen codes of a block are those of its even values, the last sixteen those of its odd ones.
    pub pairs: bool,
    /// In each half, first all blocks' first dwords, then their second ones: for several columns, see [`Simd::ROWS_IN_LANES`]. There are four lanes.
    pub by_dword: bool,
}

/// Bytes of a record.
pub(super) const fn record_bytes(lanes: usize, halves: bool) -> usize {
    (40 + 4 * halves as usize) * lanes
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
        /// Of what codes.
        order: Order,
        /// Columns of a row: 8 bits each.
        planes: usize,
        /// A column is the row so many times, end to end: so many weight rows are read as one. See [`rows_in_one`].
        times: usize,
    },
    /// Rows as blocks of 256 values need them.
    Rowwise {
        /// Elements of a row.
        k: usize,
        /// In which form.
        form: Rowwise,
    },
}

/// Values of weight rows that are read as one: x, so many times, has to stay in the first-level cache, and longer rows gain little.
const MOST_IN_ONE: usize = 8192;

/// How many of n weight rows of k values, which lie end to end, are best read as one for one row of x: as many as end together with a step. The last step of each
/// row would otherwise be one that it has a part of.
pub(super) const fn rows_in_one(lanes: usize, n: usize, k: usize) -> usize {
    let mut rows = 1;
    while !(rows * k).is_multiple_of(32 * lanes) {
        rows *= 2;
        if rows > lanes || !n.is_multiple_of(rows) || rows * k > MOST_IN_ONE {
            return 1;
        }
    }
    rows
}

impl Layout {
    /// The f32 layout for rows of `k`.
    pub(super) fn floats(k: usize) -> Layout {
        // One cache line more than a multiple of 8 lines keeps rows out of each other's cache sets.
        let row = k.next_multiple_of(FLOAT_PAD);
        Layout::Floats { k, row: row.next_multiple_of(8 * FLOAT_PAD) + FLOAT_PAD }
    }

    /// The layout for products of `m` rows with one weight, of which as many as `times` says can be read as one; `rowwise` is what rows of 8 bits have instead.
    pub(super) fn of_rows(self, m: usize, times: usize, rowwise: Option<Rowwise>) -> Layout {
        match (self, rowwise) {
            (Layout::Codes { k, planes: 1, .. }, Some(form)) => Layout::Rowwise { k, form },
            (Layout::Codes { k, lanes, halves, sums, order, planes, .. }, None) if m * planes == 1 => {
                Layout::Codes { k, lanes, halves, sums, order: Order { by_dword: false, ..order }, planes, times }
            }
            (layout, _) => layout,
        }
    }

    /// How often a column repeats its row.
    pub(super) fn times(&self) -> usize {
        match *self {
            Layout::Floats { .. } | Layout::Rowwise { .. } => 1,
            Layout::Codes { times, .. } => times,
        }
    }

    /// See [`Order`].
    pub(super) fn by_dword(&self) -> bool {
        matches!(*self, Layout::Codes { order: Order { by_dword: true, .. }, .. })
    }

    /// Columns of a row of x.
    pub(super) fn planes(&self) -> usize {
        match *self {
            Layout::Floats { .. } | Layout::Rowwise { .. } => 1,
            Layout::Codes { planes, .. } => planes,
        }
    }

    /// Records of a column, or blocks of a row.
    pub(super) fn steps(&self) -> usize {
        match *self {
            Layout::Floats { .. } => 0,
            Layout::Codes { k, lanes, times, .. } => (times * k).div_ceil(32 * lanes),
            Layout::Rowwise { k, .. } => k / rowwise::VALUES,
        }
    }

    /// Bytes of a record, or of x for a block.
    pub(super) fn record_bytes(&self) -> usize {
        match *self {
            Layout::Floats { .. } => 0,
            Layout::Codes { lanes, halves, .. } => record_bytes(lanes, halves),
            Layout::Rowwise { .. } => Rowwise::BYTES,
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
            Layout::Rowwise { .. } => self.steps() * self.record_bytes(),
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
            Isa::Neon => neon(&work),
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
    unsafe { generic::<simd::portable::Portable>(work) }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
unsafe fn neon(work: &Work) {
    // SAFETY: the caller's promise is the same.
    unsafe { generic::<simd::neon::Neon>(work) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi2")]
unsafe fn avx2(work: &Work) {
    // SAFETY: the caller's promise is the same.
    unsafe { generic::<simd::avx2::Avx2>(work) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2,fma,f16c")]
unsafe fn avx512(work: &Work) {
    // SAFETY: the caller's promise is the same.
    unsafe { generic::<simd::avx512::Avx512>(work) }
}

/// One thread's share: whole steps of rows.
#[inline(always)]
unsafe fn generic<S: Simd>(work: &Work) {
    let units = match work.layout {
        Layout::Floats { row, .. } => row.div_ceil(UNIT),
        Layout::Codes { .. } | Layout::Rowwise { .. } => work.layout.steps(),
    };
    let all = work.m * units;
    let share = |part: usize| (all / work.parts) * part + (all % work.parts).min(part);
    let (first, end) = (share(work.part), share(work.part + 1));
    let (mut row, mut unit) = (first / units.max(1), first % units.max(1));
    for _ in first..end {
        // SAFETY: row and unit lie inside x and the prepared buffer, which the caller has promised to be valid.
        unsafe {
            match work.layout {
                Layout::Floats { k, row: stride } => widen(work, row, unit * UNIT, k, stride),
                Layout::Codes { .. } => quantize::<S>(work, row, unit),
                Layout::Rowwise { k, form } => block::<S>(work, row, k, form, unit),
            }
        }
        unit += 1;
        if unit == units {
            (row, unit) = (row + 1, 0);
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
        let run = if x.head_dim >= k { count } else { (count - done).min(x.head_dim - within) };
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

/// Brings block `i` of a row into its form.
#[inline(always)]
unsafe fn block<S: Simd>(work: &Work, row: usize, k: usize, form: Rowwise, i: usize) {
    let mut x = [0.0; rowwise::VALUES];
    // SAFETY: the block lies within the row, and its form in the prepared buffer. The layout is that of a set with these functions, which the caller runs on.
    unsafe {
        read(&work.x, row, i * x.len(), k, &mut x);
        let to = work.prepared.add(row * work.layout.row_bytes() + i * Rowwise::BYTES);
        match form {
            Rowwise::Ternary => S::ByRow::digits_of_x(x.as_ptr(), to.cast()),
            Rowwise::TwoBits => S::ByRow::fields_of_x(x.as_ptr(), to.cast(), rowwise::Sums::TWO_BITS),
            Rowwise::ThreeBits => S::ByRow::fields_of_x(x.as_ptr(), to.cast(), rowwise::Sums::THREE_BITS),
        }
    }
}

/// Fills one record of each column of row `i`.
///
/// A block of 32 values x is c₀·d + c₁·d/254 + c₂·d/254² with d = max|x| / 127 and integers −127 ≤ c ≤ 127: each is the rounded rest of the
/// one before, whose error is at most half a unit. 8 bits stop after c₀, 16 after c₁.
#[inline(always)]
unsafe fn quantize<S: Simd>(work: &Work, i: usize, step: usize) {
    let Layout::Codes { k, halves, sums, order, planes, times, .. } = work.layout else { return };
    let (column_bytes, record_bytes) = (work.layout.column_bytes(), work.layout.record_bytes());
    // Once more from the beginning, but not beyond the end of the last time.
    let at = |lane: usize| {
        let l = (step * S::LANES + lane) * 32;
        if times > 1 { l % k } else { l }
    };
    let (first, values) = (at(0), 32 * S::LANES);
    // SAFETY: a whole step lies contiguously there, or its beginning at the end of the row and the rest at the row's beginning, and its record in the prepared
    // buffer; the caller runs on S's instruction set.
    unsafe {
        if planes == 1 && work.x.head_dim >= k && work.x.dtype == DType::F32 && (first + values <= k || times > 1) {
            let row = work.x.data.cast::<f32>().wrapping_add(i * work.x.row_stride);
            let mut x = row.wrapping_add(first);
            let mut joined = MaybeUninit::<[f32; 32 * MAX_LANES]>::uninit();
            if first + values > k {
                let (to, end) = (joined.as_mut_ptr().cast::<u8>(), k - first);
                to.copy_from_nonoverlapping(x.cast(), 4 * end);
                to.add(4 * end).copy_from_nonoverlapping(row.cast(), 4 * (values - end));
                x = joined.as_ptr().cast();
            }
            let record = work.prepared.add(i * column_bytes + step * record_bytes);
            if S::quantize(x, record, halves, sums, order) {
                return;
            }
        }
    }
    for lane in 0..S::LANES {
        let mut x = [0.0f32; 32];
        let mut codes = [0u8; 32];
        // SAFETY: row i is below m, and elements from k on are not read; the record of (i·planes + plane, step) lies in the prepared buffer; the
        // caller runs on S's instruction set.
        unsafe {
            read(&work.x, i, at(lane), k, &mut x);
            let (mut scale, inverse) = scales(S::largest(&x));
            for x in &mut x {
                *x *= inverse;
            }
            if scale.is_nan() {
                x = [0.0; 32];
            }
            for plane in 0..planes {
                let half_sums = S::round(&mut x, &mut codes);
                let codes = if order.pairs { evens_first(codes) } else { codes };
                let record = work.prepared.add((i * planes + plane) * column_bytes + step * record_bytes);
                for (d, dword) in codes.as_chunks::<4>().0.iter().enumerate() {
                    let (half, d) = (d / 4, d % 4);
                    let at = if order.by_dword { 4 * (S::LANES * d + lane) } else { 16 * lane + 4 * d };
                    record.add(16 * S::LANES * half + at).cast::<[u8; 4]>().write_unaligned(*dword);
                }
                let notes = record.add(32 * S::LANES).cast::<u32>();
                notes.add(lane).write_unaligned(scale.to_bits());
                let note = |sum: i32| match sums {
                    Sums::Offset(offset) => (BIAS_BITS - offset * sum) as u32,
                    Sums::Plain => (sum as f32 * scale).to_bits(),
                };
                if halves {
                    notes.add(S::LANES + lane).write_unaligned(note(half_sums[0]));
                    notes.add(2 * S::LANES + lane).write_unaligned(note(half_sums[1]));
                } else {
                    notes.add(S::LANES + lane).write_unaligned(note(half_sums[0] + half_sums[1]));
                }
                if plane + 1 < planes {
                    for x in &mut x {
                        *x *= 254.0;
                    }
                    scale /= 254.0;
                }
            }
        }
    }
}

/// The largest power of two whose inverse is not subnormal: for smaller values 127 / largest would overflow.
pub(super) const INVERSE_MAX: f32 = 8.507_059e37;

/// The even places, then the odd ones.
#[inline(always)]
fn evens_first(codes: [u8; 32]) -> [u8; 32] {
    let mut sorted = [0; 32];
    for i in 0..16 {
        sorted[i] = codes[2 * i];
        sorted[16 + i] = codes[2 * i + 1];
    }
    sorted
}

/// (largest / 127, 127 / largest); NaN for the scale when a value is not finite, so that the whole row's results become NaN.
#[inline(always)]
fn scales(largest: f32) -> (f32, f32) {
    if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if largest * INVERSE_MAX < 127.0 {
        (1.0 / INVERSE_MAX, INVERSE_MAX)
    } else {
        (largest * (1.0 / 127.0), 127.0 / largest)
    }
}
