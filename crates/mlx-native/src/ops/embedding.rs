//! Rows of a (quantized) matrix, chosen by id.

use super::{Op, WeightView, check};
use crate::buffer::View;
use crate::{CommandEncoder, DType, MlxBuffer, Result, Weight};

/// Parameters of [`CommandEncoder::embedding`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmbeddingParams {
    /// Ids.
    pub n_tokens: usize,
    /// Factor on every value; Gemma's is √k.
    pub scale: f32,
}

/// `output[t]` = scale · dequant(`weight[ids[t]]`); an id ≥ n gives a row of NaN and an error from the wait.
#[derive(Clone, Debug)]
pub(crate) struct Embedding {
    pub weight: WeightView,
    pub ids: View,
    pub output: View,
    pub n: usize,
    pub k: usize,
    pub params: EmbeddingParams,
}

impl CommandEncoder {
    /// `output[t][l]` = scale · dequant(`weight[ids[t]][l]`). ids u32 `[n_tokens]`, output f32 `[n_tokens, k]`. An id that is no row of the
    /// weight writes NaN to its row and makes the wait return an error that names the token.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) for wrong dtypes, no tokens, a scale that is not finite, a stacked weight, or buffers that are too small.
    pub fn embedding(
        &mut self,
        weight: &Weight,
        ids: &MlxBuffer,
        output: &mut MlxBuffer,
        params: &EmbeddingParams,
    ) -> Result<()> {
        check::non_zero("embedding", &[("n_tokens", params.n_tokens)])?;
        check::dtype("embedding", "ids", ids, DType::U32)?;
        check::dtype("embedding", "output", output, DType::F32)?;
        if !params.scale.is_finite() {
            return check::invalid(format!("embedding: scale {} is not finite", params.scale));
        }
        let device = self.device_id();
        let output_bytes = check::bytes("embedding", &[params.n_tokens, weight.k()], DType::F32)?;
        self.record(Op::Embedding(Embedding {
            weight: weight.matrix_view(device, "embedding")?,
            ids: ids.read(device, "ids", params.n_tokens * 4)?,
            output: output.write(device, "output", output_bytes)?,
            n: weight.n(),
            k: weight.k(),
            params: *params,
        }))
    }
}
