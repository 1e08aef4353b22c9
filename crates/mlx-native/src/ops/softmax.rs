//! Softmax over rows.

use super::{Op, check};
use crate::buffer::View;
use crate::{CommandEncoder, DType, MlxBuffer, Result};

/// `output[r]` = softmax(scale · `input[r]`), row by row.
#[derive(Clone, Debug)]
pub(crate) struct Softmax {
    pub input: View,
    pub output: View,
    pub rows: usize,
    pub dim: usize,
    pub scale: f32,
}

impl CommandEncoder {
    /// `output[r][i]` = e^(`scale·input[r][i]` − max) / Σ; f32 `[rows, dim]` where rows = |input| / dim. In place is fine.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) for wrong dtypes, a `dim` that is 0 or does not divide the input, a scale that is not finite, or an output that is too small.
    pub fn softmax(&mut self, input: &MlxBuffer, output: &mut MlxBuffer, dim: usize, scale: f32) -> Result<()> {
        check::dtype("softmax", "input", input, DType::F32)?;
        check::dtype("softmax", "output", output, DType::F32)?;
        let len = input.element_count();
        check::non_zero("softmax", &[("dim", dim), ("input's length", len)])?;
        if !len.is_multiple_of(dim) || !scale.is_finite() {
            return check::invalid(format!(
                "softmax: {len} elements are no whole rows of {dim}, or scale {scale} is not finite"
            ));
        }
        let device = self.device_id();
        self.record(Op::Softmax(Softmax {
            input: input.read(device, "input", len * 4)?,
            output: output.write(device, "output", len * 4)?,
            rows: len / dim,
            dim,
            scale,
        }))
    }
}
