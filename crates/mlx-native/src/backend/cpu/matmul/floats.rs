//! The f32 kernels: for weights that are not small integers times a scale, and as the general path of every other format.
//!
//! Four weight rows at a time are widened to f32, [`K_BLOCK`] values each, and dotted with each row of x along k. The order of additions is
//! the same for every m.

use super::prepare::{FLOAT_PAD, Layout};
use super::simd::{MAX_LANES, Simd, array, four};
use super::source::Choice;
use super::tiles::AHEAD_BYTES_ONE;
use super::{Config, Job, Part, STREAMS, Weight};
use crate::backend::cpu::isa::Isa;
use crate::format::fp::e8m0_to_f32;
use crate::format::{FpMode, GgmlType, dequantize_row};
use half::{bf16, f16};

/// Values of k that are widened at once: whole blocks of every format.
const K_BLOCK: usize = 1024;
/// Weight rows that share a load of x.
const ROWS: usize = STREAMS;
/// Rows of x that share a load of weights.
const COLUMNS: usize = 4;
/// Most rows of x whose sums are kept at once.
const MAX_COLUMNS: usize = 256;

/// Bytes of scratch memory for m rows: widened weights, and partial sums.
pub(super) fn scratch_bytes(m: usize) -> usize {
    let sums = m.min(MAX_COLUMNS) * ROWS * 4 * MAX_LANES;
    (ROWS * K_BLOCK + sums) * size_of::<f32>() + 64
}

/// The f32 kernel of an instruction set.
pub(super) fn choose(config: Config, k: usize) -> Choice {
    let (layout, rows_in_one, rowwise) = (Layout::floats(k), 1, None);
    match config.isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => Choice { kernel: avx512, layout, rows_in_one, rowwise, name: "avx512 f32" },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => Choice { kernel: avx2, layout, rows_in_one, rowwise, name: "avx2 f32" },
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => Choice { kernel: neon, layout, rows_in_one, rowwise, name: "neon f32" },
        Isa::Portable => Choice { kernel: portable, layout, rows_in_one, rowwise, name: "portable f32" },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2,fma,f16c")]
unsafe fn avx512(job: &Job) {
    // SAFETY: the caller's promise is the same.
    unsafe { run::<super::simd::avx512::Avx512>(job) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi2")]
unsafe fn avx2(job: &Job) {
    // SAFETY: the caller's promise is the same.
    unsafe { run::<super::simd::avx2::Avx2>(job) }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
unsafe fn neon(job: &Job) {
    // SAFETY: the caller's promise is the same.
    unsafe { run::<super::simd::neon::Neon>(job) }
}

unsafe fn portable(job: &Job) {
    // SAFETY: the caller's promise is the same.
    unsafe { run::<super::simd::portable::Portable>(job) }
}

/// Values `first..first + out.len()` of row `row` as f32. `first` is a multiple of [`K_BLOCK`].
#[inline(always)]
unsafe fn widen<S: Simd>(weight: &Weight, k: usize, row: usize, first: usize, out: &mut [f32]) {
    if let Weight::Fp { mode: FpMode::Mxfp8, packed, scales } = *weight {
        let pitch = FpMode::Mxfp8.row_bytes(k).unwrap_or(0);
        let groups = FpMode::Mxfp8.groups(k);
        let whole = out.len() / GROUP * GROUP;
        // SAFETY: the row's codes first..first + out.len() lie in the weight, and a group is whole vectors.
        unsafe {
            let codes = packed.as_ptr().add(row * pitch + first);
            for group in (0..whole).step_by(GROUP) {
                let scale = S::splat(FpMode::Mxfp8.scale(scales[row * groups + (first + group) / GROUP]));
                for l in (group..group + GROUP).step_by(4 * S::LANES) {
                    S::store_floats(out.as_mut_ptr().add(l), S::mul(S::load_e4m3(codes.add(l)), scale));
                }
            }
        }
        if whole < out.len() {
            widen_any(weight, k, row, first + whole, &mut out[whole..]);
        }
    } else if let Weight::Ggml { ty: GgmlType::F32, blocks } = *weight {
        // SAFETY: the row's elements first..first + out.len() lie in the weight, at any address.
        unsafe {
            let from = blocks.as_ptr().add((row * k + first) * size_of::<f32>());
            out.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(from, size_of_val(out));
        }
    } else if let Weight::Ggml { ty: GgmlType::F16 | GgmlType::BF16, blocks } = *weight {
        let width = 4 * S::LANES;
        let whole = out.len() / width * width;
        // SAFETY: the row's elements first..first + out.len() lie in the weight.
        unsafe {
            let from = blocks.as_ptr().cast::<u16>().add(row * k + first);
            let bf16 = matches!(weight, Weight::Ggml { ty: GgmlType::BF16, .. });
            for l in (0..whole).step_by(width) {
                let v = if bf16 { S::load_bf16(from.add(l)) } else { S::load_f16(from.add(l)) };
                S::store_floats(out.as_mut_ptr().add(l), v);
            }
        }
        if whole < out.len() {
            widen_any(weight, k, row, first + whole, &mut out[whole..]);
        }
    } else {
        widen_any(weight, k, row, first, out);
    }
}

/// Asks for the values `first..first + K_BLOCK` of a row of plain floats, or for what lies behind the row instead.
#[inline(always)]
unsafe fn prefetch_next<S: Simd>(weight: &Weight, k: usize, row: usize, first: usize) {
    if let Weight::Ggml { ty: ty @ (GgmlType::F32 | GgmlType::F16 | GgmlType::BF16), blocks } = *weight {
        let size = ty.block_bytes() as usize;
        // The four rows' neighbours follow the last of them.
        let at = if first < k { row * k + first } else { (row + ROWS) * k };
        // SAFETY: any address may be prefetched; the caller runs on S's instruction set.
        unsafe { S::prefetch_once([blocks.as_ptr().wrapping_add(at * size)], K_BLOCK * size) };
    }
}

/// [`widen`] for every format. `first` is a multiple of the format's block or group unit.
fn widen_any(weight: &Weight, k: usize, row: usize, first: usize, out: &mut [f32]) {
    let done = match *weight {
        Weight::Ggml { ty, blocks } => {
            let (values, bytes) = (ty.block_values() as usize, ty.block_bytes() as usize);
            let at = (row * (k / values) + first / values) * bytes;
            dequantize_row(ty, &blocks[at..at + out.len() / values * bytes], out)
        }
        Weight::Affine { format, packed, scales, biases } => {
            let pitch = format.row_bytes(k).unwrap_or(0);
            let row_bytes = &packed[row * pitch..(row + 1) * pitch];
            let group_size = format.group_size as usize;
            let groups = k.div_ceil(group_size);
            let mut done = 0;
            while done < out.len() {
                let l = first + done;
                let group = row * groups + l / group_size;
                let scale = element(format.scale_dtype, scales, group);
                let bias = element(format.scale_dtype, biases, group);
                let end = (done + group_size - l % group_size).min(out.len());
                for (l, out) in (l..).zip(&mut out[done..end]) {
                    let code = crate::format::affine::value_at(format.bits, row_bytes, l).unwrap_or(0);
                    *out = scale * code as f32 + bias;
                }
                done = end;
            }
            Ok(())
        }
        Weight::Fp { mode, packed, scales } => {
            let pitch = mode.row_bytes(k).unwrap_or(0);
            let groups = mode.groups(k);
            let bits = mode.bits() as usize;
            let size = mode.group_size() as usize;
            let packed =
                &packed[row * pitch..][first * bits / 8..(first + out.len()).next_multiple_of(32 / bits) * bits / 8];
            let scales = &scales[row * groups..][first / size..(first + out.len()).div_ceil(size)];
            mode.dequantize_row(packed, scales, out)
        }
    };
    debug_assert!(done.is_ok(), "{done:?}");
}

/// Element `i` of scales or biases.
pub(super) fn element(dtype: crate::DType, bytes: &[u8], i: usize) -> f32 {
    let two = || u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]);
    match dtype {
        crate::DType::F16 => f16::from_bits(two()).to_f32(),
        crate::DType::BF16 => bf16::from_bits(two()).to_f32(),
        _ => f32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]),
    }
}

/// A format whose values are loaded as f32, four vectors (16·LANES values) at a time.
trait Values<S: Simd> {
    /// Bytes of a value.
    const BYTES: usize;

    /// The first value of a row.
    unsafe fn row(&self, row: usize) -> *const u8;
    /// Values `l..l + 16·LANES` of the row, whose first value is at `p`; l is a multiple of 16·LANES.
    unsafe fn four(&self, row: usize, p: *const u8, l: usize) -> [S::Floats; 4];
    /// Asks for what else is needed a line ahead of the row's value l.
    #[inline(always)]
    unsafe fn prefetch_side(&self, _row: usize, _l: usize) {}
}

/// Plain values.
struct Plain<const TYPE: u8> {
    base: *const u8,
    k: usize,
}

const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

impl<const TYPE: u8> Plain<TYPE> {
    const BYTES: usize = if TYPE == F32 { 4 } else { 2 };
}

impl<S: Simd, const TYPE: u8> Values<S> for Plain<TYPE> {
    const BYTES: usize = Self::BYTES;

    #[inline(always)]
    unsafe fn row(&self, row: usize) -> *const u8 {
        // SAFETY: the row exists.
        unsafe { self.base.add(row * self.k * Self::BYTES) }
    }
    #[inline(always)]
    unsafe fn four(&self, _: usize, p: *const u8, l: usize) -> [S::Floats; 4] {
        // SAFETY: the values lie within the row; the caller runs on S's instruction set.
        unsafe {
            four!(|i| {
                let l = l + 4 * S::LANES * i;
                match TYPE {
                    F32 => S::load_floats(p.cast::<f32>().add(l)),
                    F16 => S::load_f16(p.cast::<u16>().add(l)),
                    _ => S::load_bf16(p.cast::<u16>().add(l)),
                }
            })
        }
    }
}

/// MLX mxfp8: E4M3 numbers, and a power of two for each group of them.
struct Mxfp8 {
    packed: *const u8,
    pitch: usize,
    scales: *const u8,
    groups: usize,
}

/// Values of a group.
const GROUP: usize = FpMode::Mxfp8.group_size() as usize;

/// What each byte of scales stands for.
static POWERS: [f32; 256] = {
    let mut powers = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        powers[byte] = e8m0_to_f32(byte as u8);
        byte += 1;
    }
    powers
};

impl<S: Simd> Values<S> for Mxfp8 {
    const BYTES: usize = 1;

    #[inline(always)]
    unsafe fn row(&self, row: usize) -> *const u8 {
        // SAFETY: the row exists.
        unsafe { self.packed.add(row * self.pitch) }
    }
    #[inline(always)]
    unsafe fn four(&self, row: usize, p: *const u8, l: usize) -> [S::Floats; 4] {
        // SAFETY: the values and their groups exist; the caller runs on S's instruction set.
        unsafe {
            let values = S::load_e4m3_four(p.add(l));
            let scale = |i: usize| {
                let byte = *self.scales.add(row * self.groups + (l + 4 * S::LANES * i) / GROUP);
                S::splat(POWERS[byte as usize])
            };
            four!(|i| S::mul(values[i], scale(i)))
        }
    }
    #[inline(always)]
    unsafe fn prefetch_side(&self, row: usize, l: usize) {
        if l.is_multiple_of(64 * GROUP) {
            // SAFETY: any address may be prefetched; the caller runs on S's instruction set.
            unsafe { S::prefetch_once([self.scales.wrapping_add(row * self.groups + l / GROUP + 64)], 1) };
        }
    }
}

/// The one row of x of a job: weights go from memory into products without a stop. Bits are those of [`run`]'s general way.
#[inline(always)]
unsafe fn one<S: Simd, V: Values<S>>(job: &Job, values: &V, stride: usize) {
    let width = 4 * S::LANES;
    let whole = job.k / (4 * width) * (4 * width);
    let count = job.n.len();
    let band = Part::turns_of(count);
    let (x_row, y_row) = job.rows.get(0);
    // SAFETY: rows below n.end exist in the weight, x is padded to whole vectors, places in y exist.
    unsafe {
        let x = job.prepared.cast::<f32>().add(x_row * stride);
        for t in job.turns.clone() {
            // The last band may be shorter: its row is then the last one once more.
            let index: [usize; ROWS] = four!(|r| job.n.start + (t + r * band).min(count - 1));
            let rows: [*const u8; ROWS] = four!(|r| values.row(index[r]));
            let mut sum: [S::Floats; ROWS] = [S::splat(0.0); ROWS];
            for l in (0..whole).step_by(4 * width) {
                let ahead = rows.map(|row| row.wrapping_add(l * V::BYTES + AHEAD_BYTES_ONE));
                S::prefetch_once(ahead, 4 * width * V::BYTES);
                for row in index {
                    values.prefetch_side(row, l);
                }
                for r in 0..ROWS {
                    let values = values.four(index[r], rows[r], l);
                    for (i, v) in values.into_iter().enumerate() {
                        sum[r] = S::mul_add(v, S::load_floats(x.add(l + width * i)), sum[r]);
                    }
                }
            }
            if whole < job.k {
                let mut rest = [[0.0; 16 * MAX_LANES]; ROWS];
                for (rest, row) in rest.iter_mut().zip(index) {
                    widen::<S>(job.weight, job.k, row, whole, &mut rest[..job.k - whole]);
                }
                for l in (0..job.k - whole).step_by(width) {
                    let x = S::load_floats(x.add(whole + l));
                    sum = four!(|r| S::mul_add(S::load_floats(rest[r].as_ptr().add(l)), x, sum[r]));
                }
            }
            for (r, sum) in sum.into_iter().enumerate() {
                if t + r * band < count {
                    *job.y.data.add(y_row * job.y.stride + job.n.start + t + r * band) = S::sum(sum);
                }
            }
        }
    }
}

/// A whole job.
#[inline(always)]
unsafe fn run<S: Simd>(job: &Job) {
    let Layout::Floats { row: stride, .. } = job.layout else { return };
    let width = 4 * S::LANES;
    if job.rows.len() == 1 {
        let k = job.k;
        // SAFETY: the caller's promise is the same.
        unsafe {
            match *job.weight {
                Weight::Ggml { ty: GgmlType::F32, blocks } => {
                    return one::<S, _>(job, &Plain::<F32> { base: blocks.as_ptr(), k }, stride);
                }
                Weight::Ggml { ty: GgmlType::F16, blocks } => {
                    return one::<S, _>(job, &Plain::<F16> { base: blocks.as_ptr(), k }, stride);
                }
                Weight::Ggml { ty: GgmlType::BF16, blocks } => {
                    return one::<S, _>(job, &Plain::<BF16> { base: blocks.as_ptr(), k }, stride);
                }
                Weight::Fp { mode: mode @ FpMode::Mxfp8, packed, scales } => {
                    let (pitch, groups) = (mode.row_bytes(k).unwrap_or(0), mode.groups(k));
                    let values = Mxfp8 { packed: packed.as_ptr(), pitch, scales: scales.as_ptr(), groups };
                    return one::<S, _>(job, &values, stride);
                }
                _ => {}
            }
        }
    }
    // SAFETY: rows of x are padded to FLOAT_PAD ≥ `width` elements, scratch memory has the sizes that `scratch_bytes` counts.
    unsafe {
        let scratch = job.scratch.add(job.scratch.align_offset(64)).cast::<f32>();
        let sums = scratch.add(ROWS * K_BLOCK);
        // The last turn may have no features, where their number is odd.
        let firsts = job.turns.clone().map(|turn| job.n.start + turn * ROWS);
        for first in firsts.take_while(|&first| first < job.n.end) {
            let rows: [usize; ROWS] = four!(|r| (first + r).min(job.n.end - 1));
            for c0 in (0..job.rows.len()).step_by(MAX_COLUMNS) {
                let columns = (job.rows.len() - c0).min(MAX_COLUMNS);
                for place in 0..columns * ROWS {
                    S::store_floats(sums.add(place * width), S::splat(0.0));
                }
                for k0 in (0..job.k).step_by(K_BLOCK) {
                    let len = (job.k - k0).min(K_BLOCK);
                    for (r, &row) in rows.iter().enumerate() {
                        prefetch_next::<S>(job.weight, job.k, row, k0 + K_BLOCK);
                        let panel = std::slice::from_raw_parts_mut(scratch.add(r * K_BLOCK), K_BLOCK);
                        widen::<S>(job.weight, job.k, row, k0, &mut panel[..len]);
                        panel[len..len.next_multiple_of(FLOAT_PAD)].fill(0.0);
                    }
                    for c1 in (0..columns).step_by(COLUMNS) {
                        let x = |c: usize| {
                            let (row, _) = job.rows.get(c0 + c1 + c);
                            job.prepared.cast::<f32>().add(row * stride + k0)
                        };
                        let sums = sums.add(c1 * ROWS * width);
                        match columns - c1 {
                            1 => dots::<S, 1>(len, scratch, [x(0)], sums),
                            2 => dots::<S, 2>(len, scratch, [x(0), x(1)], sums),
                            3 => dots::<S, 3>(len, scratch, [x(0), x(1), x(2)], sums),
                            _ => dots::<S, COLUMNS>(len, scratch, [x(0), x(1), x(2), x(3)], sums),
                        }
                    }
                }
                for c in 0..columns {
                    let (_, y_row) = job.rows.get(c0 + c);
                    for r in 0..ROWS.min(job.n.end - first) {
                        let value = S::sum(S::load_floats(sums.add((c * ROWS + r) * width)));
                        *job.y.data.add(y_row * job.y.stride + first + r) = value;
                    }
                }
            }
        }
    }
}

/// Adds the products of four widened rows and C rows of x over `len` values to `sums[c][r]`.
#[inline(always)]
unsafe fn dots<S: Simd, const C: usize>(len: usize, panel: *const f32, x: [*const f32; C], sums: *mut f32) {
    let width = 4 * S::LANES;
    // SAFETY: the panel and x are readable up to `len` rounded up to FLOAT_PAD.
    unsafe {
        let mut sum: [[S::Floats; ROWS]; C] =
            array!(C, |c| four!(|r| S::load_floats(sums.add((c * ROWS + r) * width))));
        for l in (0..len).step_by(width) {
            let w: [S::Floats; ROWS] = four!(|r| S::load_floats(panel.add(r * K_BLOCK + l)));
            for c in 0..C {
                let x = S::load_floats(x[c].add(l));
                for r in 0..ROWS {
                    sum[c][r] = S::mul_add(w[r], x, sum[c][r]);
                }
            }
        }
        for (place, sum) in sum.into_iter().flatten().enumerate() {
            S::store_floats(sums.add(place * width), sum);
        }
    }
}
