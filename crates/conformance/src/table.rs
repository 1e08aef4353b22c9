//! The table: every operation × format × shape that a device must get right.

use std::collections::BTreeMap;

use mlx_native::{
    Activation, AffineFormat, AttentionParams, Binary, CastDirection, DType, ExpertGateParams, FpMode, GgmlType,
    KvCacheParams, RmsNormParams, RopeParams, RopeStyle, SampleParams, WeightFormat,
};

use crate::generate::rng;
use crate::{AffineEntry, Case, Operation, Route, Shape, Values};

/// Input rows: each count that a kernel may have code of its own for, and tails of tiles.
pub const M: [usize; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33, 100];
/// Output features: tails of registers, tiles and threads.
pub const N: [usize; 6] = [1, 3, 31, 64, 65, 130];
const WIDTHS: [u32; 7] = [1, 2, 3, 4, 5, 6, 8];

/// Which part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of it: minutes.
    Full,
    /// For each operation × format × class of rows × kind of data one case, chosen by the seed: seconds.
    Sample {
        /// Chooses cases and data.
        seed: u64,
    },
}

/// The cases of a selection, the same ones in the same order every time.
pub fn cases(selection: Selection) -> impl Iterator<Item = Case> {
    let full = full();
    let chosen: Vec<Case> = match selection {
        Selection::Full => full,
        Selection::Sample { seed } => {
            let mut classes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
            for (i, case) in full.iter().enumerate() {
                classes.entry(class(case)).or_default().push(i);
            }
            let mut chosen: Vec<usize> =
                classes.iter().map(|(class, members)| members[rng(seed, class).usize(..members.len())]).collect();
            chosen.sort_unstable();
            chosen.into_iter().map(|i| Case { seed, ..full[i].clone() }).collect()
        }
    };
    chosen.into_iter()
}

/// Part `index` (from 0) of `of` parts of a list of cases, so that several processes share a table. Cases of one format stay together, because what is
/// compiled for a format serves them all; those without a format take turns.
pub fn part(cases: impl Iterator<Item = Case>, index: usize, of: usize) -> Vec<Case> {
    let mut formats: BTreeMap<String, usize> = BTreeMap::new();
    let mut without = 0;
    let mut place = |case: &Case| match case.format() {
        Some(format) => {
            let next = formats.len();
            *formats.entry(format.name().into_owned()).or_insert(next)
        }
        None => {
            without += 1;
            without
        }
    };
    cases.filter(|case| place(case) % of.max(1) == index).collect()
}

/// The name of the cases that exercise the same code.
fn class(case: &Case) -> String {
    let format = case.format().map(|format| format.name().into_owned()).unwrap_or_default();
    let rows = match case.shape().map_or(0, |shape| shape.m) {
        // Which rows meet special data does not matter, but that the data is met.
        _ if case.values != Values::Ordinary || case.offset => 0,
        m @ 0..=1 => m,
        2..=4 => 2,
        5..=8 => 5,
        _ => 9,
    };
    let variant = match &case.operation {
        Operation::Matmul { input, output, .. } => format!("{input}{output}"),
        Operation::Batched { strided, .. } => strided.to_string(),
        // The typed way meets every class of rows, the published functions one each.
        Operation::MatmulId { route: Route::Typed, bad_id, .. } => format!("typed{bad_id}"),
        Operation::MatmulId { route, bad_id, .. } => {
            return format!("matmul_id/{format}/{route:?}{bad_id}/{:?}/{}", case.values, case.offset);
        }
        // One entry point meets every group size and type of scales, the others every width.
        Operation::Affine { entry: AffineEntry::Plain, .. } if !case.offset => return format!("affine/{format}"),
        Operation::Affine { format, entry, .. } => return format!("affine/{}/{entry:?}/{rows}", format.bits),
        Operation::Embedding { bad_id, .. } => {
            return format!("embedding/{format}/{bad_id}/{:?}/{}", case.values, case.offset);
        }
        // The rest is small: all of it.
        _ if case.shape().is_none() => case.name(),
        _ => String::new(),
    };
    format!("{}/{format}/{rows}/{variant}/{:?}/{}", case.op(), case.values, case.offset)
}

/// Every format that a product can read.
pub fn formats() -> impl Iterator<Item = WeightFormat> {
    let affine = WIDTHS.map(|bits| AffineFormat { bits, group_size: 64, scale_dtype: DType::BF16 });
    ggml().map(WeightFormat::Ggml).chain(affine.map(WeightFormat::Affine)).chain(FpMode::ALL.map(WeightFormat::Fp))
}

fn ggml() -> impl Iterator<Item = GgmlType> {
    GgmlType::all().filter(|ty| ty.is_matmul_weight())
}

/// Input features: one unit, odd numbers of units, many.
fn widths(format: WeightFormat) -> [usize; 4] {
    match format {
        WeightFormat::Ggml(ty) if ty.block_values() == 1 => [1, 7, 33, 4096],
        WeightFormat::Ggml(ty) => {
            let block = ty.block_values() as usize;
            [block, 3 * block, 5 * block, 4096]
        }
        // 200 is no multiple of the group, but whole bytes at every width.
        WeightFormat::Affine(_) => [64, 192, 200, 4096],
        WeightFormat::Fp(mode) => {
            let group = mode.group_size() as usize;
            [group, 3 * group, 5 * group, 4096]
        }
    }
}

/// Three units: long enough for a main loop and a tail, short enough to be run often.
fn short(format: WeightFormat) -> usize {
    match format {
        WeightFormat::Ggml(ty) if ty.block_values() == 1 => 77,
        _ => widths(format)[1],
    }
}

fn full() -> Vec<Case> {
    let mut table = Vec::new();
    for format in formats() {
        dense(&mut table, format);
        special(&mut table, format);
        routed(&mut table, format);
        embeddings(&mut table, format);
        for k in [short(format), widths(format)[3]] {
            table.push(Case::new(Operation::RowsAlone { format, n: 65, k }));
        }
        table.push(Case::new(Operation::RoutedRowsAlone { format, n: 33, k: short(format) }));
    }
    ggml().for_each(|ty| ggml_calls(&mut table, ty));
    affine(&mut table);
    elementwise(&mut table);
    by_rows(&mut table);
    attention(&mut table);
    choosing(&mut table);
    table
}

fn matmul(format: WeightFormat, shape: Shape) -> Case {
    Case::new(Operation::Matmul { format, shape, input: DType::F32, output: DType::F32 })
}

fn dense(table: &mut Vec<Case>, format: WeightFormat) {
    for k in widths(format) {
        for n in N {
            table.extend(M.map(|m| matmul(format, Shape { m, n, k })));
        }
    }
    for (input, output) in [(DType::F16, DType::F32), (DType::BF16, DType::F32), (DType::BF16, DType::BF16)] {
        for (m, n) in [(1, 65), (4, 31), (7, 64), (33, 65)] {
            let shape = Shape { m, n, k: short(format) };
            table.push(Case::new(Operation::Matmul { format, shape, input, output }));
        }
    }
}

/// Data that breaks shortcuts, and operands at odd places.
fn special(table: &mut Vec<Case>, format: WeightFormat) {
    for (m, n) in [(1, 31), (4, 65), (8, 64), (33, 65)] {
        let shape = Shape { m, n, k: short(format) };
        table
            .extend([Values::Large, Values::Huge, Values::TinyScales].map(|values| matmul(format, shape).with(values)));
        table.push(matmul(format, shape).at_odd_offsets());
        if m > 1 {
            table.push(matmul(format, shape).with(Values::NotFinite));
        }
    }
    if !matches!(format, WeightFormat::Ggml(_)) {
        for (m, n, k) in [(1, 64, 3), (5, 192, 96), (33, 64, 31)] {
            table.push(Case::new(Operation::Transposed { format, shape: Shape { m, n, k } }));
        }
    }
}

fn routed(table: &mut Vec<Case>, format: WeightFormat) {
    let k = short(format);
    let routes: &[Route] = match format {
        WeightFormat::Ggml(_) => &[Route::Typed, Route::Ggml { gap: 96 }, Route::Pooled],
        _ => &[Route::Typed],
    };
    for &route in routes {
        for (m, n, top_k, n_experts) in [
            (1, 31, 1, 3),
            (1, 64, 4, 8),
            (3, 65, 2, 4),
            (7, 31, 3, 4),
            (8, 64, 4, 4),
            (9, 65, 1, 1),
            (33, 31, 2, 8),
            (100, 65, 4, 8),
        ] {
            let shape = Shape { m, n, k };
            let case = Case::new(Operation::MatmulId { format, shape, top_k, n_experts, route, bad_id: false });
            if m == 33 {
                table.extend([Values::Large, Values::NotFinite].map(|values| case.clone().with(values)));
                table.push(case.clone().at_odd_offsets());
            }
            table.push(case);
        }
        for (m, n) in [(2, 31), (33, 64)] {
            let shape = Shape { m, n, k };
            table.push(Case::new(Operation::MatmulId { format, shape, top_k: 2, n_experts: 5, route, bad_id: true }));
        }
        if route != Route::Pooled {
            // More experts of a token than there are: some come twice.
            let shape = Shape { m: 9, n: 31, k };
            table.push(Case::new(Operation::MatmulId { format, shape, top_k: 4, n_experts: 3, route, bad_id: false }));
        }
    }
}

fn embeddings(table: &mut Vec<Case>, format: WeightFormat) {
    for k in widths(format) {
        for m in [1, 3, 33] {
            let case = Case::new(Operation::Embedding { format, shape: Shape { m, n: 67, k }, bad_id: false });
            if m == 3 {
                table.push(case.clone().with(Values::TinyScales));
                table.push(case.clone().at_odd_offsets());
            }
            table.push(case);
        }
    }
    let shape = Shape { m: 9, n: 31, k: short(format) };
    table.push(Case::new(Operation::Embedding { format, shape, bad_id: true }));
}

/// The published functions over GGML blocks that `dense` and `routed` do not go through.
fn ggml_calls(table: &mut Vec<Case>, ty: GgmlType) {
    let block = ty.block_values() as usize;
    for (batch, weight_batch) in [(3, 1), (4, 2), (5, 5)] {
        for m in [1, 4, 9] {
            for strided in [false, true] {
                let shape = Shape { m, n: 31, k: short(ty.into()) };
                table.push(Case::new(Operation::Batched { ty, shape, batch, weight_batch, strided }));
            }
        }
    }
    for head_dim in [32, 64, 96, 256] {
        // Whole blocks and whole heads, three heads at least.
        let k = (1..).map(|heads| heads * head_dim).find(|k| k % block == 0 && k / head_dim >= 3);
        for (m, n) in [(1, 31), (2, 65), (5, 64), (8, 3), (9, 130), (33, 65), (100, 31)] {
            let shape = Shape { m, n, k: k.unwrap_or(block) };
            table.push(Case::new(Operation::Perm021 { ty, shape, head_dim }));
        }
    }
}

/// The published affine functions, over every width, group size and type of scales.
fn affine(table: &mut Vec<Case>) {
    let mut push = |format: AffineFormat, m: usize, n: usize, k: usize, entry: AffineEntry| {
        let shape = Shape { m, n, k };
        let case = Case::new(Operation::Affine { format, shape, entry });
        if m == 9 {
            table.push(case.clone().at_odd_offsets());
        }
        table.push(case);
    };
    for bits in WIDTHS {
        for group_size in [32, 64, 128, 48, 1] {
            for scale_dtype in [DType::BF16, DType::F16, DType::F32] {
                let format = AffineFormat { bits, group_size, scale_dtype };
                for (m, n) in [(1, 3), (2, 65), (5, 31), (9, 64), (33, 130)] {
                    push(format, m, n, 264, AffineEntry::Plain);
                }
                // The shapes of MLX's fast kernels.
                for m in [1, 4, 9] {
                    push(format, m, 64, 512, AffineEntry::Simd);
                    push(format, m, 64, 512, AffineEntry::Bf16);
                }
                push(format, 5, 31, 264, AffineEntry::Simd);
                push(format, 5, 31, 264, AffineEntry::Bf16);
                if matches!(bits, 4 | 8) && group_size % 16 == 0 {
                    push(format, 1, 64, 512, AffineEntry::Bf16Expert);
                    push(format, 9, 72, 1024, AffineEntry::Bf16Expert);
                }
            }
        }
    }
}

const LENGTHS: [usize; 7] = [1, 3, 15, 33, 64, 1000, 4099];

fn elementwise(table: &mut Vec<Case>) {
    let mut push = |operation: Operation| table.push(Case::new(operation));
    for len in LENGTHS {
        CastDirection::ALL.into_iter().for_each(|direction| push(Operation::Cast { direction, len }));
        for in_place in [false, true] {
            for kind in [Binary::Add, Binary::Mul] {
                push(Operation::Binary { kind, len, b_len: len, in_place });
                push(Operation::Binary { kind, len: 3 * len, b_len: len, in_place });
            }
            for activation in [Activation::Silu, Activation::GeluTanh] {
                push(Operation::GatedActivation { activation, len, in_place });
            }
            push(Operation::SoftCap { len, in_place });
        }
    }
    let (len, in_place) = (1000, false);
    for operation in [
        Operation::Binary { kind: Binary::Add, len, b_len: len, in_place },
        Operation::GatedActivation { activation: Activation::Silu, len, in_place },
        Operation::GatedActivation { activation: Activation::GeluTanh, len, in_place },
        Operation::SoftCap { len, in_place },
    ] {
        let case = Case::new(operation);
        table.extend([Values::Large, Values::NotFinite].map(|values| case.clone().with(values)));
        table.push(case.at_odd_offsets());
    }
}

fn by_rows(table: &mut Vec<Case>) {
    for (rows, dim) in [(1, 1), (1, 576), (3, 33), (9, 64), (2, 4099), (33, 640)] {
        for residual in [false, true] {
            let params = RmsNormParams { rows, dim, eps: 1e-6 };
            table.push(Case::new(Operation::RmsNorm { params, residual }));
        }
        for scale in [1.0, 0.125] {
            table.push(Case::new(Operation::Softmax { rows, dim, scale }));
        }
    }
    let params = RmsNormParams { rows: 3, dim: 640, eps: 1e-6 };
    for case in [
        Case::new(Operation::RmsNorm { params, residual: true }),
        Case::new(Operation::RmsNorm { params, residual: false }),
        Case::new(Operation::Softmax { rows: 3, dim: 640, scale: 1.0 }),
    ] {
        table.extend([Values::Large, Values::NotFinite].map(|values| case.clone().with(values)));
        table.push(case.at_odd_offsets());
    }
    for style in [RopeStyle::Interleaved, RopeStyle::NeoX] {
        for (n_tokens, n_heads, head_dim, n_rot, factors) in [
            (1, 1, 2, 2, false),
            (1, 9, 64, 64, false),
            (5, 3, 80, 32, true),
            (17, 4, 256, 256, false),
            (3, 2, 66, 66, true),
        ] {
            let (base, frequency_scale) = if factors { (500_000.0, 1.0) } else { (10_000.0, 0.125) };
            let params = RopeParams { n_tokens, n_heads, head_dim, n_rot, base, frequency_scale, style };
            let case = Case::new(Operation::Rope { params, factors });
            table.push(case.clone());
            table.push(case.at_odd_offsets());
        }
    }
}

fn attention(table: &mut Vec<Case>) {
    for dtype in [DType::F16, DType::F32] {
        for (n_heads, n_kv_heads, head_dim) in [(1, 1, 32), (9, 3, 64), (4, 1, 256), (8, 8, 80), (4, 2, 33)] {
            for (start, n_tokens, capacity) in
                [(0, 1, 1), (0, 9, 64), (37, 1, 38), (130, 1, 256), (5, 33, 100), (300, 2, 515)]
            {
                let cache = KvCacheParams { n_kv_heads, capacity, head_dim };
                let scale = 1.0 / (head_dim as f32).sqrt();
                let params = AttentionParams { cache, n_heads, n_tokens, start, scale, window: None, soft_cap: None };
                table.push(Case::new(Operation::Attention { dtype, params }));
                for (window, soft_cap) in
                    [(Some(4), None), (Some(1), Some(2.0)), (Some(1000), None), (None, Some(50.0))]
                {
                    let params = AttentionParams { window, soft_cap, ..params };
                    table.push(Case::new(Operation::Attention { dtype, params }));
                }
                table.push(Case::new(Operation::Attention { dtype, params }).at_odd_offsets());
                if n_tokens > 1 {
                    table.push(Case::new(Operation::TokensAlone { dtype, params }));
                }
            }
        }
        for (n_kv_heads, capacity, head_dim, start, n_tokens) in
            [(1, 1, 1, 0, 1), (3, 64, 64, 0, 9), (3, 64, 80, 31, 33), (8, 10, 33, 9, 1)]
        {
            let cache = KvCacheParams { n_kv_heads, capacity, head_dim };
            let case = Case::new(Operation::StoreKv { dtype, cache, start, n_tokens });
            table.push(case.clone());
            table.push(case.at_odd_offsets());
        }
    }
}

fn choosing(table: &mut Vec<Case>) {
    let mut push = |operation: Operation| table.push(Case::new(operation));
    for (n_tokens, n_experts, top_k) in [(1, 1, 1), (1, 8, 2), (9, 60, 4), (33, 128, 8), (3, 5, 5)] {
        for normalize in [false, true] {
            push(Operation::ExpertGate(ExpertGateParams { n_tokens, n_experts, top_k, normalize }));
        }
    }
    for (n_tokens, top_k, n) in [(1, 1, 1), (1, 8, 576), (9, 2, 33), (33, 4, 100)] {
        push(Operation::ExpertSum { n_tokens, top_k, n });
    }
    for (rows, dim) in [(1, 1), (1, 3), (1, 49_152), (5, 1000), (33, 31), (2, 262_147)] {
        push(Operation::ArgMax { rows, dim });
    }
    let greedy = SampleParams::default();
    let warm = SampleParams { temperature: 0.8, seed: 42, step: 7, ..greedy };
    for dim in [1, 50, 49_152] {
        for params in [
            greedy,
            SampleParams { repetition_penalty: 1.3, ..greedy },
            warm,
            SampleParams { step: 8, ..warm },
            SampleParams { top_k: 40, ..warm },
            SampleParams { top_p: 0.9, ..warm },
            SampleParams { min_p: 0.05, ..warm },
            SampleParams {
                temperature: 1.7,
                top_k: 100,
                top_p: 0.95,
                min_p: 0.02,
                repetition_penalty: 1.1,
                seed: 9,
                ..warm
            },
        ] {
            push(Operation::Sample { dim, params, history: 0 });
            push(Operation::Sample { dim, params, history: 64 });
        }
    }
    let nan = Case::new(Operation::Sample { dim: 50, params: warm, history: 0 }).with(Values::NotFinite);
    table.push(nan);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names = BTreeSet::new();
        for case in cases(Selection::Full) {
            assert!(names.insert(case.name()), "{case} stands twice");
        }
        assert!(names.len() > 10_000, "{}", names.len());
    }

    #[test]
    fn a_sample_touches_every_operation_and_format() {
        let touched = |selection| -> BTreeSet<String> {
            cases(selection)
                .map(|case| format!("{}/{:?}", case.op(), case.format().map(|format| format.name().into_owned())))
                .collect()
        };
        let sample = Selection::Sample { seed: 5 };
        assert_eq!(touched(sample), touched(Selection::Full));
        let names = |seed| cases(Selection::Sample { seed }).map(|case| case.name()).collect::<Vec<_>>();
        assert_eq!(names(5), names(5));
        assert_ne!(names(5), names(6));
        assert!(names(5).len() < 4000, "{}", names(5).len());
    }

    #[test]
    fn parts_are_the_whole() {
        let sample = || cases(Selection::Sample { seed: 5 });
        let mut names: Vec<String> = (0..3).flat_map(|i| part(sample(), i, 3)).map(|case| case.name()).collect();
        let mut all: Vec<String> = sample().map(|case| case.name()).collect();
        assert!((0..3).all(|i| part(sample(), i, 3).len() > all.len() / 6));
        names.sort();
        all.sort();
        assert_eq!(names, all);
    }

    #[test]
    fn shapes_have_every_tail() {
        let shapes: BTreeSet<(usize, usize, usize)> = cases(Selection::Full)
            .filter(|case| case.op() == "matmul" && case.format() == Some(GgmlType::Q4_K.into()))
            .filter_map(|case| case.shape())
            .map(|shape| (shape.m, shape.n, shape.k))
            .collect();
        for m in M {
            for n in N {
                assert!([256, 768, 4096].iter().all(|k| shapes.contains(&(m, n, *k))), "{m} {n}");
            }
        }
    }
}
