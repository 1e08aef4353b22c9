//! Arrays on the host.

use half::{bf16, f16};
use mlx_native::{DType, MlxBuffer, MlxDevice, Result};

/// Values of one element type, as bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Element type.
    pub dtype: DType,
    /// Elements, little-endian.
    pub bytes: Vec<u8>,
}

impl Array {
    /// `values` rounded to a float type.
    pub fn floats(dtype: DType, values: &[f32]) -> Array {
        let bytes = match dtype {
            DType::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
            DType::BF16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        Array { dtype, bytes }
    }

    /// 32-bit words.
    pub fn words(values: &[u32]) -> Array {
        Array { dtype: DType::U32, bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect() }
    }

    /// Raw bytes.
    pub fn raw(bytes: Vec<u8>) -> Array {
        Array { dtype: DType::U8, bytes }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size_of()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether the elements are floats.
    pub fn is_float(&self) -> bool {
        matches!(self.dtype, DType::F32 | DType::F16 | DType::BF16)
    }

    /// The elements widened to f64.
    pub fn values(&self) -> Vec<f64> {
        let pair = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
        let quad = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let widen = |bytes: &[u8]| match self.dtype {
            DType::F16 => f16::from_bits(pair(bytes)).to_f64(),
            DType::BF16 => bf16::from_bits(pair(bytes)).to_f64(),
            DType::F32 => f64::from(f32::from_bits(quad(bytes))),
            DType::U32 => f64::from(quad(bytes)),
            DType::I32 => f64::from(quad(bytes) as i32),
            DType::U16 => f64::from(pair(bytes)),
            DType::U8 => f64::from(bytes[0]),
        };
        self.bytes.chunks_exact(self.dtype.size_of()).map(widen).collect()
    }

    /// Mean of the squares of the finite elements.
    pub fn mean_square(&self) -> f64 {
        let finite: Vec<f64> = self.values().into_iter().filter(|value| value.is_finite()).collect();
        finite.iter().map(|value| value * value).sum::<f64>() / finite.len().max(1) as f64
    }

    /// A copy on a device.
    ///
    /// # Errors
    ///
    /// Those of the allocation.
    pub fn upload(&self, device: &MlxDevice) -> Result<MlxBuffer> {
        device.buffer_from_slice(&self.bytes, self.dtype, vec![self.len()])
    }
}
