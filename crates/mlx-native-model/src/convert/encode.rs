//! Rows of f32 in a format, on all processors.

use half::{bf16, f16};
use mlx_native::format::quantize_row;
use mlx_native::{AffineFormat, DType, FpMode, GgmlType, MlxError, Result, WeightFormat};

use super::tensors::InputTensor;

/// A whole tensor in its format; scales and biases are empty where that has none.
#[derive(Default)]
pub(super) struct Encoded {
    pub data: Vec<u8>,
    pub scales: Vec<u8>,
    pub biases: Vec<u8>,
}

/// Bytes of a row in each of the three parts.
fn row_bytes(format: WeightFormat, k: usize) -> Result<[usize; 3]> {
    let data = format.row_bytes(k)?;
    Ok(match format {
        WeightFormat::Ggml(_) => [data, 0, 0],
        WeightFormat::Affine(affine) => {
            let side = affine.groups(k)? * affine.scale_dtype.size_of();
            [data, side, side]
        }
        WeightFormat::Fp(mode) => [data, mode.groups(k), 0],
    })
}

/// Encodes every row.
pub(super) fn encode(tensor: &InputTensor<'_>, format: WeightFormat) -> Result<Encoded> {
    let (rows, k) = (tensor.rows(), tensor.k());
    let bytes = row_bytes(format, k)?;
    let [data, scales, biases] = bytes.map(|bytes| bytes.checked_mul(rows).map(|len| vec![0; len]));
    let (Some(data), Some(scales), Some(biases)) = (data, scales, biases) else {
        return Err(MlxError::InvalidArgument(format!("tensor `{}` exceeds the address space", tensor.name)));
    };
    let mut encoded = Encoded { data, scales, biases };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(rows.max(1));
    let band = rows.div_ceil(threads).max(1);
    let mut parts = [encoded.data.as_mut_slice(), encoded.scales.as_mut_slice(), encoded.biases.as_mut_slice()];
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for first in (0..rows).step_by(band) {
            let count = band.min(rows - first);
            let mine: [&mut [u8]; 3] = std::array::from_fn(|i| {
                let (head, tail) = std::mem::take(&mut parts[i]).split_at_mut(count * bytes[i]);
                parts[i] = tail;
                head
            });
            workers.push(scope.spawn(move || encode_rows(tensor, format, first, mine, bytes)));
        }
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| {
                Err(MlxError::InvalidArgument(format!("tensor `{}`: a thread that quantized it ended", tensor.name)))
            })
        })
    })?;
    Ok(encoded)
}

/// Encodes a band of rows.
fn encode_rows(
    tensor: &InputTensor<'_>,
    format: WeightFormat,
    first: usize,
    parts: [&mut [u8]; 3],
    bytes: [usize; 3],
) -> Result<()> {
    let [data, scales, biases] = parts;
    let mut values = vec![0f32; tensor.k()];
    for (i, data) in data.chunks_exact_mut(bytes[0].max(1)).enumerate() {
        let row = first + i;
        let failed =
            |problem: String| MlxError::InvalidArgument(format!("tensor `{}`, row {row}: {problem}", tensor.name));
        (tensor.read)(row, &mut values).map_err(|e| failed(e.to_string()))?;
        if let Some(i) = values.iter().position(|value| !value.is_finite()) {
            return Err(failed(format!("value {i} is {}", values[i])));
        }
        let scales = scales.get_mut(i * bytes[1]..(i + 1) * bytes[1]).unwrap_or_default();
        let biases = biases.get_mut(i * bytes[2]..(i + 1) * bytes[2]).unwrap_or_default();
        match format {
            WeightFormat::Ggml(ty) => quantize_row(ty, &values, data),
            WeightFormat::Affine(affine) => affine_row(affine, &values, [data, scales, biases]),
            WeightFormat::Fp(mode) => fp_row(mode, tensor, &values, data, scales),
        }
        .map_err(|e| failed(e.to_string()))?;
    }
    Ok(())
}

fn affine_row(format: AffineFormat, values: &[f32], [data, scales, biases]: [&mut [u8]; 3]) -> Result<()> {
    let groups = format.groups(values.len())?;
    let (mut wide_scales, mut wide_biases) = (vec![0f32; groups], vec![0f32; groups]);
    format.quantize_row(values, data, &mut wide_scales, &mut wide_biases)?;
    narrow(format.scale_dtype, &wide_scales, scales);
    narrow(format.scale_dtype, &wide_biases, biases);
    Ok(())
}

fn fp_row(mode: FpMode, tensor: &InputTensor<'_>, values: &[f32], data: &mut [u8], scales: &mut [u8]) -> Result<()> {
    let dtype = match tensor.format {
        WeightFormat::Ggml(GgmlType::F16) => DType::F16,
        WeightFormat::Ggml(GgmlType::BF16) => DType::BF16,
        _ => DType::F32,
    };
    mode.quantize_row(values, dtype, data, scales)
}

/// f32 as the little-endian bytes of a narrower or the same float.
fn narrow(dtype: DType, values: &[f32], out: &mut [u8]) {
    for (out, &value) in out.chunks_exact_mut(dtype.size_of()).zip(values) {
        match dtype {
            DType::F16 => out.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            DType::BF16 => out.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            _ => out.copy_from_slice(&value.to_le_bytes()),
        }
    }
}
