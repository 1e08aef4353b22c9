//! Every format on every instruction set of this machine against the formula in f64.

use super::*;
use crate::format::affine::Groups;
use crate::format::ggml::Scalar;
use crate::format::{GgmlType, dequantize_row};

/// A small generator (xorshift64*).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    /// Uniform in [low, high).
    fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * ((self.next() >> 40) as f32 / (1u64 << 24) as f32)
    }
    /// About normal: a sum of uniform values.
    fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.range(-1.0, 1.0)).sum::<f32>() * std::f32::consts::FRAC_1_SQRT_2
    }
}

/// A weight that owns its bytes.
struct Owned {
    format: WeightFormat,
    packed: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

impl Owned {
    /// Random codes with scales of ordinary size.
    fn random(format: WeightFormat, n: usize, k: usize, random: &mut Random) -> Owned {
        let mut packed: Vec<u8> = (0..format.matrix_bytes(n, k).unwrap()).map(|_| random.next() as u8).collect();
        let (mut scales, mut biases) = (Vec::new(), Vec::new());
        match format {
            WeightFormat::Ggml(ty) => tame(ty, &mut packed, random),
            WeightFormat::Affine(affine) => {
                for _ in 0..n * affine.groups(k).unwrap() {
                    let scale = random.range(0.01, 0.02) * if random.next().is_multiple_of(4) { -1.0 } else { 1.0 };
                    push(&mut scales, affine.scale_dtype, scale);
                    // The middle of a group's range lies near zero, as in a real weight.
                    let middle = 0.5 * (1u32 << affine.bits) as f32 * scale;
                    push(&mut biases, affine.scale_dtype, random.range(0.9, 1.1) * -middle);
                }
            }
            WeightFormat::Fp(mode) => {
                let base = if mode == FpMode::Nvfp4 { 0x20 } else { 120 };
                scales = (0..n * mode.groups(k)).map(|_| base + (random.next() % 8) as u8).collect();
                if mode == FpMode::Mxfp8 {
                    packed.iter_mut().filter(|code| **code & 0x7F == 0x7F).for_each(|code| *code = 0x38);
                }
            }
        }
        Owned { format, packed, scales, biases }
    }

    fn weight(&self) -> Weight<'_> {
        match self.format {
            WeightFormat::Ggml(ty) => Weight::Ggml { ty, blocks: &self.packed },
            WeightFormat::Affine(format) => {
                Weight::Affine { format, packed: &self.packed, scales: &self.scales, biases: &self.biases }
            }
            WeightFormat::Fp(mode) => Weight::Fp { mode, packed: &self.packed, scales: &self.scales },
        }
    }

    /// The matrix in f32, by the format's definition.
    fn dequantized(&self, n: usize, k: usize) -> Vec<f32> {
        let mut out = vec![0.0; n * k];
        let pitch = self.format.row_bytes(k).unwrap();
        for (j, out) in out.chunks_mut(k).enumerate() {
            let packed = &self.packed[j * pitch..(j + 1) * pitch];
            match self.format {
                WeightFormat::Ggml(ty) => dequantize_row(ty, packed, out).unwrap(),
                WeightFormat::Affine(affine) => {
                    let groups = affine.groups(k).unwrap();
                    let floats = |bytes: &[u8]| -> Vec<f32> {
                        (j * groups..(j + 1) * groups).map(|i| floats::element(affine.scale_dtype, bytes, i)).collect()
                    };
                    let (scales, biases) = (floats(&self.scales), floats(&self.biases));
                    affine.dequantize_row(packed, Groups { scales: &scales, biases: &biases }, out).unwrap();
                }
                WeightFormat::Fp(mode) => {
                    let groups = mode.groups(k);
                    mode.dequantize_row(packed, &self.scales[j * groups..(j + 1) * groups], out).unwrap();
                }
            }
        }
        out
    }
}

fn push(bytes: &mut Vec<u8>, dtype: DType, value: f32) {
    match dtype {
        DType::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
        DType::BF16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
        _ => bytes.extend(value.to_le_bytes()),
    }
}

/// Replaces random floating-point fields by values of ordinary size.
fn tame(ty: GgmlType, bytes: &mut [u8], random: &mut Random) {
    let format = ty.block_format();
    for block in bytes.chunks_mut(format.bytes as usize) {
        for field in format.fields {
            let at = field.offset;
            // Minimums of 32-value blocks put the middle of the range near zero, as in a real weight.
            let value = if field.name == "m" { random.range(-0.2, -0.1) } else { random.range(0.005, 0.02) };
            match (field.scalar, ty) {
                (Scalar::F32, _) => block[at..at + 4].copy_from_slice(&random.normal().to_le_bytes()),
                (Scalar::BF16, _) => block[at..at + 2].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
                (Scalar::F16, _) => block[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
                (_, GgmlType::MXFP4) if field.name == "e" => block[at] = 118 + block[at] % 8,
                (_, GgmlType::NVFP4) if field.name == "d" => {
                    block[at..at + 4].iter_mut().for_each(|b| *b = 0x20 + *b % 16)
                }
                (_, GgmlType::IQ1_M) if field.name == "scales" => {
                    // The f16 lies in the top nibbles of four words.
                    for (i, nibble) in [0x6, 0x6, 0x0, 0x2].into_iter().enumerate() {
                        block[at + 2 * i + 1] = (block[at + 2 * i + 1] & 15) | (nibble << 4);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Both phases, phase 1 in three parts and phase 2 in the given pieces, of which products of one row get the last turns first; outputs start as NaN.
fn multiply(config: Config, w: &Owned, m: usize, n: usize, k: usize, x: &[f32], pieces: &[usize]) -> Vec<f32> {
    multiply_as(Plan::new(config, w.format, m, n, k), w, [m, n, k], x, pieces)
}

/// [`multiply`] by a plan, whose features may be several ones.
fn multiply_as(plan: Plan, w: &Owned, [m, n, k]: [usize; 3], x: &[f32], pieces: &[usize]) -> Vec<f32> {
    let mut prepared = vec![0xFFu8; plan.x_bytes()];
    let mut scratch = vec![0xFFu8; plan.thread_bytes()];
    let mut y = vec![f32::NAN; m * n];
    let rows = XRows { data: x.as_ptr().cast(), dtype: DType::F32, row_stride: k, head_dim: k, head_stride: 0 };
    for part in 0..3 {
        // SAFETY: x is [m, k], the buffer has the plan's size, parts run one after the other.
        unsafe { plan.prepare(rows, prepared.as_mut_ptr(), part, 3) };
    }
    let out = YRows { data: y.as_mut_ptr(), stride: n };
    let (mut start, ones) = (0, n / plan.features_in_one());
    for &piece in pieces.iter().chain([&ones]) {
        let whole = Part::all(start..(start + piece).min(ones));
        let middle = if plan.streams() { whole.turns.end / 3 } else { 0 };
        for (turns, again) in [(middle..whole.turns.end, start > 0), (0..middle, true)] {
            let part = Part { turns, again, ..whole.clone() };
            // SAFETY: all buffers have the plan's sizes and shapes.
            unsafe { plan.run(&w.weight(), prepared.as_ptr(), RowMap::All(m), out, part, scratch.as_mut_ptr()) };
        }
        start = whole.features.end;
    }
    y
}

/// Σ(y − ref)² / Σref² against the formula in f64.
fn nmse(y: &[f32], w: &[f32], x: &[f32], n: usize, k: usize) -> f64 {
    let (mut error, mut norm) = (0.0, 0.0);
    for (i, x) in x.chunks(k).enumerate() {
        for (j, w) in w.chunks(k).enumerate() {
            let reference: f64 = w.iter().zip(x).map(|(w, x)| *w as f64 * *x as f64).sum();
            error += (y[i * n + j] as f64 - reference).powi(2);
            norm += reference * reference;
        }
    }
    error / norm
}

fn affine(bits: u32, group_size: u32, scale_dtype: DType) -> WeightFormat {
    AffineFormat::new(bits, group_size, scale_dtype).unwrap().into_format()
}

trait IntoFormat {
    fn into_format(self) -> WeightFormat;
}

impl IntoFormat for AffineFormat {
    fn into_format(self) -> WeightFormat {
        WeightFormat::Affine(self)
    }
}

/// Every format that has a matmul, MLX's in some of its group sizes and scale types.
fn formats() -> Vec<WeightFormat> {
    let mut formats: Vec<WeightFormat> =
        GgmlType::all().filter(|ty| ty.is_matmul_weight()).map(WeightFormat::Ggml).collect();
    formats.extend(FpMode::ALL.map(WeightFormat::Fp));
    for (i, bits) in [1, 2, 3, 4, 5, 6, 8].into_iter().enumerate() {
        formats.push(affine(bits, 64, DType::BF16));
        formats.push(affine(bits, [32, 128, 40][i % 3], [DType::F16, DType::F32, DType::BF16][i % 3]));
    }
    formats
}

/// Lengths of rows: one block, an odd number of blocks, and more than one block of k of every kernel.
fn lengths(format: WeightFormat) -> Vec<usize> {
    match format {
        WeightFormat::Ggml(ty) if ty.block_values() == 1 => vec![1, 77, 1203],
        WeightFormat::Ggml(ty) if ty.block_values() < 256 => {
            let block = ty.block_values() as usize;
            vec![block, 3 * block, 1120usize.next_multiple_of(block)]
        }
        WeightFormat::Ggml(_) => vec![256, 1280],
        WeightFormat::Affine(_) => vec![32, 200, 1128],
        WeightFormat::Fp(_) => vec![32, 96, 1120],
    }
}

fn configs(batch_invariant: bool) -> impl Iterator<Item = Config> {
    Isa::available().flat_map(move |isa| {
        [Precision::Exact, Precision::Q8].map(|activations| Config { isa, activations, batch_invariant })
    })
}

#[test]
fn every_format_equals_the_formula() {
    let mut random = Random::new(1);
    let n = 71;
    for format in formats() {
        for k in lengths(format) {
            let w = Owned::random(format, n, k, &mut random);
            let dequantized = w.dequantized(n, k);
            let x: Vec<f32> = (0..17 * k).map(|_| random.normal()).collect();
            // Many columns have an order of sums for each.
            for (m, batch_invariant) in [(1, false), (2, false), (5, false), (8, false), (17, false), (17, true)] {
                for config in configs(batch_invariant) {
                    let x = &x[..m * k];
                    let bound = if config.activations == Precision::Exact { 1e-10 } else { 1e-4 };
                    let plan = Plan::new(config, format, m, n, k);
                    // Few rows may have a way of their own.
                    let plans = [plan, plan.of_one_weight()];
                    for plan in &plans[..if plans[0].x_key() == plans[1].x_key() { 1 } else { 2 }] {
                        let y = multiply_as(*plan, &w, [m, n, k], x, &[1, 3, 31]);
                        let error = nmse(&y, &dequantized, x, n, k);
                        assert!(error <= bound, "{format} k={k} m={m} {config:?}: NMSE {error:e}");
                    }
                }
            }
        }
    }
}

/// So many features that bands have an odd number of rows, more of them than there are.
#[test]
fn one_row_of_a_tall_matrix_equals_the_formula() {
    let mut random = Random::new(5);
    let (n, k) = (4 * ODD_TURNS - 3, 640);
    for format in [GgmlType::Q8_0.into(), GgmlType::F16.into(), affine(5, 64, DType::BF16), affine(4, 40, DType::BF16)]
    {
        let w = Owned::random(format, n, k, &mut random);
        let dequantized = w.dequantized(n, k);
        let x: Vec<f32> = (0..k).map(|_| random.normal()).collect();
        for config in configs(false) {
            let y = multiply(config, &w, 1, n, k, &x, &[]);
            let error = nmse(&y, &dequantized, &x, n, k);
            let bound = if config.activations == Precision::Exact { 1e-10 } else { 1e-4 };
            assert!(error <= bound, "{format} {config:?}: NMSE {error:e}");
        }
    }
}

/// Rows that end within a step are read several as one.
#[test]
fn rows_read_as_one_have_the_same_bits() {
    let mut random = Random::new(6);
    let mut most = 0;
    for format in formats() {
        for (n, k) in [(72, 544), (70, 576), (71, 576), (76, 608), (72, 640), (8 * ODD_TURNS + 2, 576)] {
            if format.row_bytes(k).is_err() || n > 8 * ODD_TURNS && format != GgmlType::Q4_0.into() {
                continue;
            }
            let w = Owned::random(format, n, k, &mut random);
            let x: Vec<f32> = (0..k).map(|_| random.normal()).collect();
            for config in configs(true) {
                let plan = Plan::new(config, format, 1, n, k);
                most = most.max(plan.of_one_weight().features_in_one());
                let expected = multiply_as(plan, &w, [1, n, k], &x, &[]);
                for pieces in [&[][..], &[1, 5]] {
                    let y = multiply_as(plan.of_one_weight(), &w, [1, n, k], &x, pieces);
                    let same = y.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{format} n={n} k={k} {config:?}");
                }
            }
        }
    }
    // Steps of one block end with every row.
    assert_eq!(most > 1, Isa::available().any(|isa| isa.name().starts_with("avx")));
}

/// One row of these formats has scales for other groups of values than several rows have.
#[test]
fn blocks_added_up_by_row_are_as_exact_as_others() {
    let mut random = Random::new(7);
    let (n, k, count) = (71, 2048, 8);
    for ty in [GgmlType::TQ1_0, GgmlType::Q2_K, GgmlType::Q3_K] {
        let w = Owned::random(ty.into(), n, k, &mut random);
        let dequantized = w.dequantized(n, k);
        let normal: Vec<f32> = (0..count * k).map(|_| random.normal()).collect();
        // The ratio of a normal value and one that may be near zero.
        let heavy: Vec<f32> = (0..count * k).map(|_| random.normal() / random.range(0.05, 1.0)).collect();
        for config in configs(false) {
            let plan = Plan::new(config, w.format, 1, n, k);
            for x in [&normal, &heavy] {
                let [other, by_row] = [plan, plan.of_one_weight()].map(|plan| {
                    let y = x.chunks(k).flat_map(|x| multiply_as(plan, &w, [1, n, k], x, &[]));
                    nmse(&y.collect::<Vec<f32>>(), &dequantized, x, n, k)
                });
                assert!(by_row <= 1.3 * other, "{ty} {config:?}: NMSE {by_row:e}, {other:e} of several rows");
            }
            let plan = plan.of_one_weight();
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = normal[..k].to_vec();
                x[k - 77] = bad;
                let y = multiply_as(plan, &w, [1, n, k], &x, &[]);
                assert!(y.iter().all(|y| !y.is_finite()), "{ty} {config:?} {bad}");
            }
            for factor in [1e34, 1e-34, 0.0] {
                let x: Vec<f32> = normal[..k].iter().map(|x| x * factor).collect();
                let y = multiply_as(plan, &w, [1, n, k], &x, &[]);
                assert!(y.iter().all(|y| y.is_finite() && (factor > 0.0 || *y == 0.0)), "{ty} {config:?} {factor}");
                let error = nmse(&y, &dequantized, &x, n, k);
                assert!(factor == 0.0 || error < 1e-4, "{ty} {config:?} {factor}: NMSE {error:e}");
            }
        }
    }
}

#[test]
fn a_rows_bits_do_not_depend_on_the_others() {
    let mut random = Random::new(2);
    // Enough for one column a row.
    let n = 67;
    for format in formats() {
        let k = lengths(format)[2 - usize::from(lengths(format).len() == 2)];
        let w = Owned::random(format, n, k, &mut random);
        let x: Vec<f32> = (0..33 * k).map(|_| random.normal()).collect();
        for config in configs(true) {
            for one_weight in [false, true] {
                let multiply = |m: usize, x: &[f32], pieces: &[usize]| {
                    let plan = Plan::new(config, format, m, n, k);
                    multiply_as(if one_weight { plan.of_one_weight() } else { plan }, &w, [m, n, k], x, pieces)
                };
                let all = multiply(33, &x, &[20]);
                for m in [1, 2, 3, 9] {
                    let y = multiply(m, &x[3 * k..(3 + m) * k], &[5]);
                    let same = y.iter().zip(&all[3 * n..]).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{format} m={m} one weight: {one_weight} {config:?}");
                }
            }
        }
    }
}

/// Both phases of a plan for rows of x in any layout.
fn multiply_rows(config: Config, w: &Owned, [m, n, k]: [usize; 3], x: XRows, rows: RowMap) -> Vec<f32> {
    let plan = Plan::new(config, w.format, m, n, k);
    let mut prepared = vec![0xFFu8; plan.x_bytes()];
    let mut scratch = vec![0xFFu8; plan.thread_bytes()];
    let mut y = vec![f32::NAN; m * n];
    let out = YRows { data: y.as_mut_ptr(), stride: n };
    // SAFETY: x has m rows of k values, the buffers have the plan's sizes, and rows are below m.
    unsafe {
        plan.prepare(x, prepared.as_mut_ptr(), 0, 1);
        plan.run(&w.weight(), prepared.as_ptr(), rows, out, Part::all(0..n), scratch.as_mut_ptr());
    }
    y
}

const SOME: [GgmlType; 4] = [GgmlType::Q8_0, GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::F16];

#[test]
fn extreme_and_non_finite_inputs_stay_in_their_rows() {
    let mut random = Random::new(3);
    let (m, n, k) = (3, 9, 512);
    for ty in SOME {
        let w = Owned::random(ty.into(), n, k, &mut random);
        let dequantized = w.dequantized(n, k);
        let ordinary: Vec<f32> = (0..m * k).map(|_| random.normal()).collect();
        for config in configs(true) {
            let expected = multiply(config, &w, m, n, k, &ordinary, &[]);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = ordinary.clone();
                x[k + 77] = bad;
                let y = multiply(config, &w, m, n, k, &x, &[]);
                assert!(y[n..2 * n].iter().all(|y| !y.is_finite()), "{ty} {config:?} {bad}");
                assert_eq!((&y[..n], &y[2 * n..]), (&expected[..n], &expected[2 * n..]), "{ty} {config:?} {bad}");
            }
            for factor in [1e30, 1e6, 1e-30, 0.0] {
                let x: Vec<f32> = ordinary.iter().map(|x| x * factor).collect();
                let y = multiply(config, &w, m, n, k, &x, &[]);
                assert!(y.iter().all(|y| y.is_finite()), "{ty} {config:?} {factor}");
                if factor > 0.0 {
                    let bound = if config.activations == Precision::Exact { 1e-10 } else { 1e-4 };
                    let error = nmse(&y, &dequantized, &x, n, k);
                    assert!(error <= bound, "{ty} {config:?} {factor}: NMSE {error:e}");
                }
            }
        }
    }
}

/// Where a row ends within a step, what lies behind it is another row's: whatever that is, it changes no bit.
#[test]
fn what_lies_behind_a_row_is_not_in_its_sums() {
    let mut random = Random::new(9);
    let n = 37;
    for format in formats() {
        let WeightFormat::Ggml(ty) = format else { continue };
        for k in lengths(format) {
            let w = Owned::random(format, n, k, &mut random);
            let row_bytes = ty.row_bytes(k).unwrap();
            let mut broken = Owned { packed: w.packed.clone(), scales: Vec::new(), biases: Vec::new(), format };
            // All ones are scales that are no numbers.
            broken.packed.chunks_exact_mut(row_bytes).skip(1).step_by(2).for_each(|row| row.fill(0xFF));
            let x: Vec<f32> = (0..33 * k).map(|_| random.normal()).collect();
            for (m, batch_invariant) in [(1, false), (3, false), (8, false), (18, false), (33, false), (33, true)] {
                for config in configs(batch_invariant) {
                    let [expected, y] = [&w, &broken].map(|w| multiply(config, w, m, n, k, &x[..m * k], &[]));
                    let even =
                        |y: &[f32]| y.chunks_exact(n).flat_map(|y| y.iter().step_by(2).map(|y| y.to_bits())).collect();
                    let [expected, y]: [Vec<u32>; 2] = [even(&expected), even(&y)];
                    assert_eq!(expected, y, "{format} k={k} m={m} {config:?}");
                }
            }
        }
    }
}

#[test]
fn permuted_bf16_and_gathered_rows_equal_plain_ones() {
    let mut random = Random::new(4);
    let (m, n, k, head_dim) = (5, 6, 512, 64);
    let bits: Vec<u16> = (0..m * k).map(|_| half::bf16::from_f32(random.normal()).to_bits()).collect();
    let at = |i: usize, l: usize| (l / head_dim * m + i) * head_dim + l % head_dim;
    let plain: Vec<f32> = (0..m * k).map(|p| half::bf16::from_bits(bits[at(p / k, p % k)]).to_f32()).collect();
    let permuted = XRows {
        data: bits.as_ptr().cast(),
        dtype: DType::BF16,
        row_stride: head_dim,
        head_dim,
        head_stride: m * head_dim,
    };
    let rows = XRows { data: plain.as_ptr().cast(), dtype: DType::F32, row_stride: k, head_dim: k, head_stride: 0 };
    for ty in SOME {
        let w = Owned::random(ty.into(), n, k, &mut random);
        for config in configs(true) {
            let expected = multiply_rows(config, &w, [m, n, k], rows, RowMap::All(m));
            assert_eq!(multiply_rows(config, &w, [m, n, k], permuted, RowMap::All(m)), expected, "{ty} {config:?}");
            let pairs = [(3, 0), (1, 4), (4, 2)];
            let gathered = multiply_rows(config, &w, [m, n, k], rows, RowMap::Pairs(&pairs));
            for (from, to) in pairs.map(|(from, to)| (from as usize, to as usize)) {
                assert_eq!(gathered[to * n..][..n], expected[from * n..][..n], "{ty} {config:?}");
            }
            assert!(gathered[n..2 * n].iter().all(|y| y.is_nan()), "{ty} {config:?}: a row that no pair names");
        }
    }
}
