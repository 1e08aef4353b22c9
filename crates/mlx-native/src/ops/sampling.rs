//! Choosing a token from logits on the device.

use super::{Op, check};
use crate::buffer::View;
use crate::{CommandEncoder, DType, MlxBuffer, Result};

/// Parameters of [`CommandEncoder::sample`].
///
/// The stages run in this order:
///
/// 1. repetition penalty: a positive logit of a token in the history is divided by it, any other multiplied, once however often
///    the token occurs; history ids that are no index of the logits count for nothing;
/// 2. top-k: the k largest logits, of equal ones the smaller ids; their probabilities are p ∝ e^logit;
/// 3. top-p: the fewest most probable tokens whose probabilities, summed, reach it;
/// 4. min-p: of these, the tokens at least that many times as probable as the best;
/// 5. the draw by weights e^(logit / temperature): with u = [`uniform`](Self::uniform), the first token, by falling weight, at which the running sum
///    exceeds u times the sum of what is kept.
///
/// So what is cut off does not depend on the temperature, as in llama.cpp's default chain and in MLX's sampler.
///
/// A largest logit that is infinite is chosen whatever the temperature.
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

impl SampleParams {
    /// Whether tokens are cut off by their probabilities.
    pub(crate) fn cuts(&self) -> bool {
        self.top_p < 1.0 || self.min_p > 0.0
    }

    /// The random number of the draw, in [0, 1) with 24 bits, the same on every device: output number `step` of the generator splitmix64
    /// that starts at `seed` (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), its upper 24 bits.
    pub fn uniform(&self) -> f32 {
        let state = self.seed.wrapping_add(self.step.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1 << 24) as f32
    }
}

/// `output[r]` = the smallest index of the largest `input[r]`; NaN never wins unless all are NaN, then 0.
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
    /// `output[r]` = the index of the largest value of row r, the smallest of equals. input f32 `[rows, dim]`, output u32 `[rows]`.
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
    /// concerns; the id goes to `output[0]` (u32). A logit that is NaN makes the wait return an error.
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

#[cfg(test)]
mod tests {
    use super::SampleParams;

    #[test]
    fn draws_follow_splitmix64() {
        // First outputs of splitmix64 from state 0: e220a8397b1dcdaf, 6e789e6aa1b965f4, 06c45d188009454f.
        let of = |word: u64| (word >> 40) as f32 / 16_777_216.0;
        let uniform = |seed, step| SampleParams { seed, step, ..Default::default() }.uniform();
        assert_eq!(uniform(0, 0), of(0xe220_a839_7b1d_cdaf));
        assert_eq!(uniform(0, 1), of(0x6e78_9e6a_a1b9_65f4));
        assert_eq!(uniform(0, 2), of(0x06c4_5d18_8009_454f));
        let mean = (0..1000).map(|step| uniform(7, step)).sum::<f32>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.03, "{mean}");
        assert!(uniform(u64::MAX, u64::MAX) < 1.0);
    }
}
