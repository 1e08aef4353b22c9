//! Seconds of candle's product of random rows with a random quantized weight, as JSON lines.
//!
//! usage: candle-matmul N K FORMAT,… M,… SECONDS      (threads: RAYON_NUM_THREADS)

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use std::time::Instant;

/// Weights together at least as large, so that none is in a cache when its turn comes.
const ROTATED_BYTES: usize = 256 << 20;

fn dtype(name: &str) -> Option<GgmlDType> {
    Some(match name {
        "Q4_0" => GgmlDType::Q4_0,
        "Q4_1" => GgmlDType::Q4_1,
        "Q5_0" => GgmlDType::Q5_0,
        "Q5_1" => GgmlDType::Q5_1,
        "Q8_0" => GgmlDType::Q8_0,
        "Q2_K" => GgmlDType::Q2K,
        "Q3_K" => GgmlDType::Q3K,
        "Q4_K" => GgmlDType::Q4K,
        "Q5_K" => GgmlDType::Q5K,
        "Q6_K" => GgmlDType::Q6K,
        _ => return None,
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [n, k, formats, ms, seconds] = &args[..] else { return Err("usage: N K FORMAT,… M,… SECONDS".into()) };
    let (n, k, least): (usize, usize, f64) = (n.parse()?, k.parse()?, seconds.parse()?);
    let device = Device::Cpu;
    for name in formats.split(',') {
        let Some(dtype) = dtype(name) else { continue };
        let weight = Tensor::randn(0f32, 0.02, (n, k), &device)?;
        let bytes = n * k / dtype.block_size() * dtype.type_size();
        let copies = ROTATED_BYTES / bytes + 1;
        let first = QTensor::quantize(&weight, dtype)?;
        let data = first.data()?.into_owned();
        let shape = first.shape().clone();
        let mut weights = vec![QMatMul::from_qtensor(first)?];
        for _ in 1..copies {
            let storage = candle_core::quantized::QStorage::from_data(data.clone().into(), &device, dtype)?;
            weights.push(QMatMul::from_qtensor(QTensor::new(storage, shape.clone())?)?);
        }
        for m in ms.split(',') {
            let m: usize = m.parse()?;
            let input = Tensor::randn(0f32, 1.0, (m, k), &device)?;
            let mut times = Vec::new();
            let start = Instant::now();
            while times.len() < 8 || start.elapsed().as_secs_f64() < least {
                let before = Instant::now();
                let _ = weights[times.len() % weights.len()].forward(&input)?;
                times.push(before.elapsed().as_secs_f64());
            }
            // The first run faults pages in.
            let mut times = times.split_off(1);
            times.sort_by(f64::total_cmp);
            println!(
                "{}",
                serde_json::json!({"format": name, "m": m, "n": n, "k": k, "seconds": times[times.len() / 2], "best_seconds": times[0]})
            );
        }
    }
    Ok(())
}
