//! Choosing a token from logits on the device.

use super::{Op, check};
use crate::buffer::View;
use crate::{CommandEncoder, DType, MlxBuffer, Result};

/// Parameters of [`CommandEncoder::sample`].
///
/// The stages run in this order: repetition penalty (a positive logit of a token in the history is divided by it, a negative one
/// multiplied), top-k, temperature, softmax, top-p (the fewest most probable tokens whose sum reaches p), min-p (tokens at least p times as
/// probable as the best), and the draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleParams {
    /// 0 chooses the largest logit after the penalty.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: usize,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub min_p: f32,
    /// 1 changes nothing.
    pub repetition_penalty: f32,
    /// With `step`, determines the draw; the same seed and step give the same token on every device whose logits agree.
    pub seed: u64,
    /// Which draw of the sequence this is.
    pub step: u64,
}

impl Default for SampleParams {
    fn default() -> Self {
        SampleParams { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0, step: 0 }
    }
}

/// output[r] = the smallest index of the largest input[r]; NaN never wins unless all are NaN, then 0.
#[derive(Clone, Debug)]
pub(crate) struct ArgMax {
    pub input: View,
    pub output: View,
    pub rows: usize,
    pub dim: usize,
}

/// One draw; `history` is u32.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub logits: View,
    pub history: Option<View>,
    pub output: View,
    pub dim: usize,
    pub params: SampleParams,
}

impl CommandEncoder {
    /// output[r] = the index of the largest value of row r, the smallest of equals. input f32 `[rows, dim]`, output u32 `[rows]`.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) for wrong dtypes, a `dim` that is 0, exceeds u32 or does not divide the input, or an output that is too small.
    pub fn argmax(&mut self, input: &MlxBuffer, output: &mut MlxBuffer, dim: usize) -> Result<()> {
        check::dtype("argmax", "input", input, DType::F32)?;
        check::dtype("argmax", "output", output, DType::U32)?;
        let len = input.element_count();
        check::non_zero("argmax", &[("dim", dim), ("input's length", len)])?;
        if !len.is_multiple_of(dim) || u32::try_from(dim).is_err() {
            return check::invalid(format!("argmax: {len} elements are no whole rows of {dim}"));
        }
        let device = self.device_id();
        self.record(Op::ArgMax(ArgMax {
            input: input.read(device, "input", len * 4)?,
            output: output.write(device, "output", len / dim * 4)?,
            rows: len / dim,
            dim,
        }))
    }

    /// Draws one token from all of `logits` (f32), see [`SampleParams`]; `history` holds the u32 ids that the repetition penalty
    /// concerns; the id goes to output[0] (u32). A logit that is NaN makes the wait return an error.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) for wrong dtypes, empty logits, or parameters out of range.
    pub fn sample(
        &mut self,
        logits: &MlxBuffer,
        history: Option<&MlxBuffer>,
        output: &mut MlxBuffer,
        params: &SampleParams,
    ) -> Result<()> {
        check::dtype("sample", "logits", logits, DType::F32)?;
        check::dtype("sample", "output", output, DType::U32)?;
        let dim = logits.element_count();
        check::non_zero("sample", &[("logits' length", dim)])?;
        let p = params;
        let in_range = (p.temperature >= 0.0 && p.temperature.is_finite())
            && (p.top_p > 0.0 && p.top_p <= 1.0)
            && (0.0..=1.0).contains(&p.min_p)
            && (p.repetition_penalty > 0.0 && p.repetition_penalty.is_finite());
        if !in_range || u32::try_from(dim).is_err() {
            return check::invalid(format!("sample: a parameter is out of range: {params:?}, {dim} logits"));
        }
        let device = self.device_id();
        let history = match history {
            None => None,
            Some(history) => {
                check::dtype("sample", "history", history, DType::U32)?;
                Some(history.read(device, "history", history.byte_len())?)
            }
        };
        self.record(Op::Sample(Sample {
            logits: logits.read(device, "logits", dim * 4)?,
            history,
            output: output.write(device, "output", 4)?,
            dim,
            params: *params,
        }))
    }
}
