//! Multiplies with one tensor of a GGUF file, in place: `cargo run --release -p mlx-native --example gguf_matmul -- model.gguf blk.0.ffn_up.weight`.

use mlx_native::io::gguf::GgufFile;
use mlx_native::{DType, MlxDevice, MlxError, Weight};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(name)) = (args.next(), args.next()) else {
        return Err("usage: gguf_matmul MODEL.gguf TENSOR".into());
    };
    let file = GgufFile::open(path)?;
    let tensor = file.required_tensor(&name)?;
    let [n, k] = tensor.shape[..] else {
        return Err(MlxError::InvalidArgument(format!("{name} is no matrix: {:?}", tensor.shape)).into());
    };
    let (n, k) = (usize::try_from(n)?, usize::try_from(k)?);

    let device = MlxDevice::new()?;
    let (map, range) = file.tensor_map(&tensor)?;
    let bytes = range.len();
    let weight = Weight::ggml(tensor.ggml_type, n, k, device.buffer_from_map(&map, range, DType::U8, vec![bytes])?)?;

    let ones = vec![1.0f32; k];
    let x = device.buffer_from_slice(&ones, DType::F32, vec![1, k])?;
    let mut y = device.alloc_buffer(n * 4, DType::F32, vec![1, n])?;
    let mut encoder = device.command_encoder()?;
    encoder.matmul(&x, &weight, &mut y)?;
    encoder.commit_and_wait()?;

    let sums = y.as_slice::<f32>()?;
    println!("{name}: {} [{n}, {k}] on {}", tensor.ggml_type, device.name());
    println!("sums of the first rows: {:?}", &sums[..n.min(4)]);
    Ok(())
}
