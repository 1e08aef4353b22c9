//! The quantizers against llama.cpp's error and the gguf package's bytes (scripts/golden/make_golden.py).

use half::f16;
use mlx_native::GgmlType;
use mlx_native::format::{can_quantize, dequantize_row, quantize_row, quantize_row_weighted};

const DISTRIBUTIONS: [&str; 3] = ["gaussian", "laplace", "student"];
/// Values of each distribution.
const VALUES: usize = 16 * 1024;

fn input(distribution: &str) -> Vec<f32> {
    let index = DISTRIBUTIONS.iter().position(|name| *name == distribution).unwrap();
    let bytes = &include_bytes!("golden/quantize_inputs.bin")[2 * VALUES * index..][..2 * VALUES];
    bytes.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect()
}

/// What is left of `values` after quantizing, with weights when there are some.
fn round_trip(ty: GgmlType, values: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let mut bytes = vec![0; ty.row_bytes(values.len()).unwrap()];
    quantize_row_weighted(ty, values, importance, &mut bytes).unwrap();
    let mut out = vec![f32::NAN; values.len()];
    dequantize_row(ty, &bytes, &mut out).unwrap();
    out
}

fn mean_square_error(values: &[f32], found: &[f32], weights: &[f32]) -> f64 {
    let sum = |(i, x): (usize, &f32)| weights[i] as f64 * (*x as f64 - found[i] as f64).powi(2);
    values.iter().enumerate().map(sum).sum::<f64>() / values.len() as f64
}

#[test]
fn errors_are_at_most_two_percent_above_llama_cpp() {
    let mut compared = 0;
    let mut failures = Vec::new();
    for line in include_str!("golden/quantize_rmse.txt").lines() {
        let [distribution, name, expected] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let (ty, expected) = (GgmlType::from_name(name).unwrap(), expected.parse::<f64>().unwrap());
        let values = input(distribution);
        let found = mean_square_error(&values, &round_trip(ty, &values, None), &vec![1.0; VALUES]).sqrt();
        println!("{distribution:9} {name:7} {found:.4e} / {expected:.4e} = {:.4}", found / expected);
        if found > 1.02 * expected {
            failures.push(format!("{distribution} {name}: RMSE {found:e}, llama.cpp {expected:e}"));
        }
        compared += 1;
    }
    assert!(failures.is_empty(), "{failures:#?}");
    // F32 has no error to compare.
    assert_eq!(compared, 3 * (GgmlType::all().filter(|ty| can_quantize(*ty)).count() - 1));
}

#[test]
fn formats_with_fixed_rounding_are_written_as_by_others() {
    let data = include_bytes!("golden/quantize_exact.bin");
    let (count, data) = data.split_at(4);
    let count = u32::from_le_bytes(count.try_into().unwrap()) as usize;
    let (values, mut data) = data.split_at(4 * count);
    let values: Vec<f32> = values.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let from_llama_cpp = ["TQ1_0", "TQ2_0", "NVFP4", "Q1_0"];
    let mut compared = 0;
    for name in ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"].into_iter().chain(from_llama_cpp) {
        let ty = GgmlType::from_id(u32::from_le_bytes(data[..4].try_into().unwrap())).unwrap();
        assert_eq!(ty.name(), name);
        let (expected, rest) = data[4..].split_at(ty.row_bytes(count).unwrap());
        let mut found = vec![0xaa; expected.len()];
        quantize_row(ty, &values, &mut found).unwrap();
        let size = ty.block_bytes() as usize;
        for (i, (found, expected)) in found.chunks(size).zip(expected.chunks(size)).enumerate() {
            let first = i * ty.block_values() as usize;
            // llama.cpp makes zeros where the scale would be below 2^-10, and of 256 to 447 it makes 448.
            if ty == GgmlType::NVFP4 && expected[..4].iter().any(|scale| [0, 0x7e].contains(scale)) {
                continue;
            }
            compared += 1;
            assert_eq!(found, expected, "{name} block {i} {:?}", &values[first..][..ty.block_values() as usize]);
        }
        data = rest;
    }
    assert!(data.is_empty());
    println!("{compared} blocks");
    assert!(compared > 2 * count);
}

#[test]
fn importance_lowers_the_weighted_error() {
    // Every fourth channel counts a hundred times as much.
    let importance: Vec<f32> = (0..VALUES).map(|i| if i % 4 == 0 { 100.0 } else { 1.0 }).collect();
    let values = input("laplace");
    for ty in GgmlType::all().filter(|ty| can_quantize(*ty) && ty.block_values() > 1) {
        let plain = mean_square_error(&values, &round_trip(ty, &values, None), &importance);
        let weighted = mean_square_error(&values, &round_trip(ty, &values, Some(&importance)), &importance);
        match ty {
            GgmlType::Q8_0 | GgmlType::MXFP4 => assert_eq!(plain, weighted, "{ty}"),
            // One number for 128 values is all that can be chosen.
            GgmlType::Q1_0 => assert!(weighted < 0.99 * plain, "{ty}: {weighted:e} with importance, {plain:e} without"),
            _ => assert!(weighted < 0.97 * plain, "{ty}: {weighted:e} with importance, {plain:e} without"),
        }
    }
}

#[test]
fn extreme_inputs_are_errors_or_blocks_and_zeros_stay_zero() {
    for ty in GgmlType::all().filter(|ty| can_quantize(*ty)) {
        let largest = ty.block_format().largest_input().min(65504.0);
        for value in [0.0, -0.0, 1e-30, -1e-30, 1e-45, largest, -largest] {
            let mut values = vec![value; 512];
            round_trip(ty, &values, None);
            if value == 0.0 {
                assert!(round_trip(ty, &values, None).iter().all(|x| *x == 0.0), "{ty}");
            }
            values.iter_mut().skip(1).step_by(3).for_each(|x| *x = -*x / 3.0);
            round_trip(ty, &values, None);
            round_trip(ty, &values, Some(&vec![0.0; 512]));
        }
        for value in [1e30, f32::INFINITY, f32::NAN] {
            let mut bytes = vec![0; ty.row_bytes(256).unwrap()];
            let allowed = ty.block_values() == 1 || ty == GgmlType::MXFP4 && value == 1e30;
            assert_eq!(quantize_row(ty, &[value; 256], &mut bytes).is_ok(), allowed, "{ty} {value}");
        }
    }
}

#[test]
fn constant_rows_keep_their_value() {
    for ty in GgmlType::all().filter(|ty| can_quantize(*ty)) {
        for value in [1.0f32, -0.25, 0.003] {
            for x in round_trip(ty, &[value; 256], None) {
                // MXFP4 has one bit after the leading one, the others hold a constant up to the rounding of their scales, which have three of them in NVFP4.
                let tolerance = match ty {
                    GgmlType::MXFP4 => 0.25,
                    GgmlType::NVFP4 => 0.0625,
                    _ => 0.01,
                };
                assert!((x - value).abs() <= tolerance * value.abs(), "{ty}: {value} became {x}");
            }
        }
    }
}

#[test]
fn no_importance_anywhere_is_equal_importance() {
    let values = input("gaussian");
    for ty in GgmlType::all().filter(|ty| can_quantize(*ty)) {
        let (zeros, ones) = (vec![0.0; VALUES], vec![1.0; VALUES]);
        assert_eq!(round_trip(ty, &values, Some(&zeros)), round_trip(ty, &values, Some(&ones)), "{ty}");
    }
}

#[test]
fn quantizing_again_changes_nothing_where_the_extreme_is_kept() {
    use GgmlType::*;
    for distribution in DISTRIBUTIONS {
        let values = input(distribution);
        for ty in [F32, F16, BF16, Q4_0, Q5_0, Q8_0, MXFP4, TQ1_0, TQ2_0, Q1_0] {
            let once = round_trip(ty, &values, None);
            assert_eq!(round_trip(ty, &once, None), once, "{distribution} {ty}");
        }
    }
}
