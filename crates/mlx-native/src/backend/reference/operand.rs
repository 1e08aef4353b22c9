//! Operands as vectors: bytes are copied out of a view, widened, and results are rounded and copied back.

use half::{bf16, f16};

use crate::buffer::View;
use crate::{DType, MlxError, Result};

/// Bytes `offset .. offset + len` of a view.
pub(super) fn bytes(view: &View, offset: usize, len: usize) -> Result<Vec<u8>> {
    check_range(view, offset, len)?;
    let memory = view.storage.memory();
    let base = memory.host_ptr()?;
    let mut copy = vec![0u8; len];
    // SAFETY: `memory` is alive; the range is inside the view (checked above) and the view inside the memory (ops/ checked it).
    // Nobody writes it now: the list keeps the host away, and the backend runs one operation at a time.
    unsafe { base.add(view.offset + offset).copy_to_nonoverlapping(copy.as_mut_ptr(), len) };
    Ok(copy)
}

/// Replaces the view's bytes from `offset` on.
pub(super) fn store_bytes(view: &View, offset: usize, bytes: &[u8]) -> Result<()> {
    check_range(view, offset, bytes.len())?;
    let memory = view.storage.memory();
    let base = memory.host_ptr()?;
    // SAFETY: as in `bytes`; an output's memory is writable (`MlxBuffer::write` refuses read-only memory), and `bytes` is a vector
    // of this module's callers, so the two do not overlap.
    unsafe { base.add(view.offset + offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    Ok(())
}

fn check_range(view: &View, offset: usize, len: usize) -> Result<()> {
    if offset.checked_add(len).is_some_and(|end| end <= view.len) {
        return Ok(());
    }
    Err(MlxError::InvalidArgument(format!("reference: bytes {offset} to {offset} + {len} are not inside {view:?}")))
}

/// Floats of `dtype`, widened, from byte `offset` of a view on.
pub(super) fn floats_at(view: &View, offset: usize, dtype: DType, count: usize) -> Result<Vec<f64>> {
    let size = dtype.size_of();
    let bytes = bytes(view, offset, count * size)?;
    let half = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    let widen = |bytes: &[u8]| match dtype {
        DType::F16 => f16::from_bits(half(bytes)).to_f64(),
        DType::BF16 => bf16::from_bits(half(bytes)).to_f64(),
        _ => f64::from(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
    };
    Ok(bytes.chunks_exact(size).map(widen).collect())
}

/// The first `count` floats of a view.
pub(super) fn floats(view: &View, dtype: DType, count: usize) -> Result<Vec<f64>> {
    floats_at(view, 0, dtype, count)
}

/// The first `count` f32 of a view.
pub(super) fn f32s(view: &View, count: usize) -> Result<Vec<f64>> {
    floats(view, DType::F32, count)
}

/// The first `count` 32-bit words of a view.
pub(super) fn u32s(view: &View, count: usize) -> Result<Vec<u32>> {
    let bytes = bytes(view, 0, count * 4)?;
    Ok(bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect())
}

/// Rounds `values` to `dtype` and puts them from element `first` of the view on.
pub(super) fn store_at(view: &View, first: usize, dtype: DType, values: &[f64]) -> Result<()> {
    let mut bytes = Vec::with_capacity(values.len() * dtype.size_of());
    for &value in values {
        match dtype {
            DType::F16 => bytes.extend(f16::from_f32(round_to_odd(value)).to_le_bytes()),
            DType::BF16 => bytes.extend(bf16::from_f32(round_to_odd(value)).to_le_bytes()),
            _ => bytes.extend((value as f32).to_le_bytes()),
        }
    }
    store_bytes(view, first * dtype.size_of(), &bytes)
}

/// Puts `values` as f32 into the view.
pub(super) fn store_f32s(view: &View, values: &[f64]) -> Result<()> {
    store_at(view, 0, DType::F32, values)
}

/// Puts 32-bit words into the view.
pub(super) fn store_u32s(view: &View, values: &[u32]) -> Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    store_bytes(view, 0, &bytes)
}

/// The f32 next to `x` towards zero, with the last bit set unless it is exact: rounding that to a type of at most 22 bits of
/// precision gives what rounding `x` itself to the nearest would give, ties included.
fn round_to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    if f64::from(nearest) == x || !nearest.is_finite() {
        return nearest;
    }
    let below = if f64::from(nearest.abs()) > x.abs() { nearest.to_bits() - 1 } else { nearest.to_bits() };
    f32::from_bits(below | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrowing_rounds_once() {
        // Just above the tie between 1 and 1 + 2^-7 (bf16) or 1 + 2^-10 (f16): rounding to f32 first would land on the tie and go down.
        let above_tie = |ulp: i32| 1.0 + 2f64.powi(ulp - 1) + 2f64.powi(-40);
        assert_eq!(bf16::from_f32(round_to_odd(above_tie(-7))).to_f64(), 1.0 + 2f64.powi(-7));
        assert_eq!(f16::from_f32(round_to_odd(-above_tie(-10))).to_f64(), -1.0 - 2f64.powi(-10));
        assert_eq!(bf16::from_f32(round_to_odd(1.0 + 2f64.powi(-8))).to_f64(), 1.0);
        assert_eq!(round_to_odd(1e300), f32::INFINITY);
        assert!(round_to_odd(f64::NAN).is_nan());
        assert_eq!(f16::from_f32(round_to_odd(65519.9999999)).to_f64(), 65504.0);
        assert_eq!(f16::from_f32(round_to_odd(65520.0)), f16::INFINITY);
    }
}
