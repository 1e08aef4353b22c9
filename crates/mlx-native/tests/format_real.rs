//! Tensors of a real model against the reference implementations, when MLX_NATIVE_REAL_CHECKS names a file that
//! scripts/golden/check_real.py wrote.

use mlx_native::GgmlType;
use mlx_native::format::{dequantize_row, quantize_row};
use mlx_native::io::gguf::GgufFile;

/// Values that the script quantized of each tensor.
const VALUES: usize = 64 * 1024;

fn decode(file: &GgufFile, name: &str) -> Vec<f32> {
    let tensor = file.required_tensor(name).unwrap();
    let bytes = file.tensor_data(&tensor).unwrap();
    let blocks = bytes.len() / tensor.ggml_type.block_bytes() as usize;
    let mut values = vec![f32::NAN; blocks * tensor.ggml_type.block_values() as usize];
    dequantize_row(tensor.ggml_type, bytes, &mut values).unwrap();
    values
}

#[test]
fn real_tensors() {
    let Some(path) = std::env::var_os("MLX_NATIVE_REAL_CHECKS") else {
        eprintln!("skipped: MLX_NATIVE_REAL_CHECKS names no file");
        return;
    };
    let checks = std::fs::read_to_string(path).unwrap();
    let mut lines = checks.lines();
    let file = GgufFile::open(lines.next().and_then(|line| line.strip_prefix("file ")).unwrap()).unwrap();
    let mut tensors = 0;
    for line in lines {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["tensor", name, expected] => {
                let sum = |sum: u64, (i, x): (usize, f32)| {
                    sum.wrapping_add((2 * i as u64 + 1).wrapping_mul(x.to_bits() as u64))
                };
                let found = decode(&file, name).into_iter().enumerate().fold(0, sum);
                assert_eq!(format!("{found:016x}"), expected, "{name}");
                tensors += 1;
            }
            ["quantize", name, format, expected] => {
                let (ty, expected) = (GgmlType::from_name(format).unwrap(), expected.parse::<f64>().unwrap());
                let values = &decode(&file, name)[..VALUES];
                let mut bytes = vec![0; ty.row_bytes(VALUES).unwrap()];
                quantize_row(ty, values, &mut bytes).unwrap();
                let mut out = vec![f32::NAN; VALUES];
                dequantize_row(ty, &bytes, &mut out).unwrap();
                let squares = values.iter().zip(&out).map(|(x, y)| (*x as f64 - *y as f64).powi(2));
                let found = (squares.sum::<f64>() / VALUES as f64).sqrt();
                println!("{name} {format} {found:.4e} / {expected:.4e} = {:.4}", found / expected);
                assert!(found <= 1.02 * expected, "{name} {format}: RMSE {found:e}, llama.cpp {expected:e}");
            }
            _ => panic!("{line}"),
        }
    }
    assert_eq!(tensors, file.n_tensors());
}
