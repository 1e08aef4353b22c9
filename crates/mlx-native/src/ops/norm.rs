//! Root-mean-square normalisation.

use super::{Op, check};
use crate::buffer::View;
use crate::{CommandEncoder, DType, MlxBuffer, Result};

/// Parameters of [`CommandEncoder::rms_norm`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNormParams {
    /// Rows.
    pub rows: usize,
    /// Values of a row.
    pub dim: usize,
    /// Added to the mean square.
    pub eps: f32,
}

/// s = input (+ residual); sum = s where asked for; output = s / √(mean(s²) + eps) · weight, row by row.
#[derive(Clone, Debug)]
pub(crate) struct RmsNorm {
    pub input: View,
    pub residual: Option<View>,
    pub sum: Option<View>,
    pub weight: View,
    pub output: View,
    pub params: RmsNormParams,
}

impl CommandEncoder {
    /// `output[r][i]` = `input[r][i]` / √(mean(`input[r]`²) + eps) · `weight[i]`; all f32, input and output `[rows, dim]`, weight `[dim]`.
    /// In place is fine.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) for wrong dtypes, zero or overflowing dimensions, a negative eps, or buffers that are too small.
    pub fn rms_norm(
        &mut self,
        input: &MlxBuffer,
        weight: &MlxBuffer,
        output: &mut MlxBuffer,
        params: &RmsNormParams,
    ) -> Result<()> {
        self.norm(input, None, weight, output, params)
    }

    /// sum = input + residual; output = RMS norm of sum · weight: the residual connection and the norm that follows it in one pass.
    /// `sum` may be a handle on the very bytes of `input` or `residual`.
    ///
    /// # Errors
    ///
    /// As [`rms_norm`](Self::rms_norm).
    pub fn add_rms_norm(
        &mut self,
        input: &MlxBuffer,
        residual: (&MlxBuffer, &mut MlxBuffer),
        weight: &MlxBuffer,
        output: &mut MlxBuffer,
        params: &RmsNormParams,
    ) -> Result<()> {
        self.norm(input, Some(residual), weight, output, params)
    }

    fn norm(
        &mut self,
        input: &MlxBuffer,
        residual: Option<(&MlxBuffer, &mut MlxBuffer)>,
        weight: &MlxBuffer,
        output: &mut MlxBuffer,
        params: &RmsNormParams,
    ) -> Result<()> {
        let RmsNormParams { rows, dim, eps } = *params;
        check::non_zero("rms_norm", &[("rows", rows), ("dim", dim)])?;
        for (name, buffer) in [("input", input), ("weight", weight), ("output", &*output)] {
            check::dtype("rms_norm", name, buffer, DType::F32)?;
        }
        if !(eps >= 0.0 && eps.is_finite()) {
            return check::invalid(format!("rms_norm: eps must be finite and not negative, got {eps}"));
        }
        let bytes = check::bytes("rms_norm", &[rows, dim], DType::F32)?;
        let device = self.device_id();
        let (residual, sum) = match residual {
            None => (None, None),
            Some((residual, sum)) => {
                check::dtype("rms_norm", "residual", residual, DType::F32)?;
                check::dtype("rms_norm", "sum", sum, DType::F32)?;
                (Some(residual.read(device, "residual", bytes)?), Some(sum.write(device, "sum", bytes)?))
            }
        };
        self.record(Op::RmsNorm(RmsNorm {
            input: input.read(device, "input", bytes)?,
            residual,
            sum,
            weight: weight.read(device, "weight", dim * 4)?,
            output: output.write(device, "output", bytes)?,
            params: *params,
        }))
    }
}
