//! Elementwise conversion between f32, f16 and bf16.

use super::{Op, check};
use crate::buffer::View;
use crate::{CommandEncoder, DType, KernelRegistry, MlxBuffer, MlxDevice, Result};

/// From which element type to which.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CastDirection {
    F32ToF16,
    F16ToF32,
    F32ToBF16,
    BF16ToF32,
    F16ToBF16,
    BF16ToF16,
}

impl CastDirection {
    /// All directions.
    pub const ALL: [CastDirection; 6] = [
        CastDirection::F32ToF16,
        CastDirection::F16ToF32,
        CastDirection::F32ToBF16,
        CastDirection::BF16ToF32,
        CastDirection::F16ToBF16,
        CastDirection::BF16ToF16,
    ];

    /// The element type read.
    pub const fn from(self) -> DType {
        match self {
            CastDirection::F32ToF16 | CastDirection::F32ToBF16 => DType::F32,
            CastDirection::F16ToF32 | CastDirection::F16ToBF16 => DType::F16,
            CastDirection::BF16ToF32 | CastDirection::BF16ToF16 => DType::BF16,
        }
    }

    /// The element type written.
    pub const fn to(self) -> DType {
        match self {
            CastDirection::F16ToF32 | CastDirection::BF16ToF32 => DType::F32,
            CastDirection::F32ToF16 | CastDirection::BF16ToF16 => DType::F16,
            CastDirection::F32ToBF16 | CastDirection::F16ToBF16 => DType::BF16,
        }
    }
}

/// A checked cast of `len` elements, rounding to nearest, ties to even; out of range is infinite.
#[derive(Clone, Debug)]
pub(crate) struct Cast {
    pub input: View,
    pub output: View,
    pub len: usize,
    pub direction: CastDirection,
}

/// Converts the first `n_elements` elements of `input` into `output`, rounding to nearest, ties to even.
///
/// # Errors
///
/// [`InvalidArgument`](crate::MlxError::InvalidArgument) when `n_elements` is 0, a buffer is too small, or its dtype is neither the direction's nor raw bytes.
pub fn cast(
    encoder: &mut CommandEncoder,
    _registry: &mut KernelRegistry,
    _device: &MlxDevice,
    input: &MlxBuffer,
    output: &mut MlxBuffer,
    n_elements: usize,
    direction: CastDirection,
) -> Result<()> {
    check::non_zero("cast", &[("n_elements", n_elements)])?;
    let (from, to) = (direction.from(), direction.to());
    check::dtype_in("cast", "input", input, &[from, DType::U8])?;
    check::dtype_in("cast", "output", output, &[to, DType::U8])?;
    let device = encoder.device_id();
    encoder.record(Op::Cast(Cast {
        input: input.read(device, "input", check::bytes("cast", &[n_elements], from)?)?,
        output: output.write(device, "output", check::bytes("cast", &[n_elements], to)?)?,
        len: n_elements,
        direction,
    }))
}

impl CommandEncoder {
    /// Converts all of `input` into `output`; the buffers' dtypes say the direction.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) when no cast leads from one dtype to the other or `output` is too small.
    pub fn cast(&mut self, input: &MlxBuffer, output: &mut MlxBuffer) -> Result<()> {
        let (from, to) = (input.dtype(), output.dtype());
        let Some(direction) = CastDirection::ALL.into_iter().find(|d| d.from() == from && d.to() == to) else {
            return check::invalid(format!("cast: no conversion from {from} to {to}"));
        };
        let device = self.device_id();
        let len = input.element_count();
        check::non_zero("cast", &[("n_elements", len)])?;
        self.record(Op::Cast(Cast {
            input: input.read(device, "input", len * from.size_of())?,
            output: output.write(device, "output", check::bytes("cast", &[len], to)?)?,
            len,
            direction,
        }))
    }
}
