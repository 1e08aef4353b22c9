//! Rotary position embedding.

use super::{Op, check};
use crate::buffer::View;
use crate::{CommandEncoder, DType, MlxBuffer, Result};

/// Which two values of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// 2i and 2i + 1.
    Interleaved,
    /// i and i + n_rot/2.
    NeoX,
}

/// Parameters of [`CommandEncoder::rope`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeParams {
    /// Tokens.
    pub n_tokens: usize,
    /// Heads of a token.
    pub n_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// The first `n_rot` values of a head turn; even, at most `head_dim`.
    pub n_rot: usize,
    /// θ: pair i turns by position · frequency_scale · θ^(−2i/n_rot) / `factor[i]`.
    pub base: f32,
    /// 1 / the linear scaling factor of the context.
    pub frequency_scale: f32,
    /// Which values pair up.
    pub style: RopeStyle,
}

/// A checked rotation; `positions` is i32 or u32 `[n_tokens]`, `frequency_factors` f32 `[n_rot/2]`.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    pub input: View,
    pub positions: View,
    pub frequency_factors: Option<View>,
    pub output: View,
    pub params: RopeParams,
}

impl CommandEncoder {
    /// Turns pair i of every head of token t by `positions[t]` · frequency_scale · base^(−2i/n_rot) / `frequency_factors[i]`
    /// (1 where there are none) radians. Input and output f32 `[n_tokens, n_heads, head_dim]`, positions u32 or i32 `[n_tokens]`. In
    /// place is fine.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) for wrong dtypes, zero or overflowing dimensions, an odd or too large `n_rot`, a base that is not positive, or buffers that are too small.
    pub fn rope(
        &mut self,
        input: &MlxBuffer,
        positions: &MlxBuffer,
        frequency_factors: Option<&MlxBuffer>,
        output: &mut MlxBuffer,
        params: &RopeParams,
    ) -> Result<()> {
        let RopeParams { n_tokens, n_heads, head_dim, n_rot, base, frequency_scale, style: _ } = *params;
        check::non_zero("rope", &[("n_tokens", n_tokens), ("n_heads", n_heads), ("n_rot", n_rot)])?;
        if !n_rot.is_multiple_of(2) || n_rot > head_dim {
            return check::invalid(format!("rope: n_rot must be even and at most head_dim {head_dim}, got {n_rot}"));
        }
        if !(base > 0.0 && base.is_finite() && frequency_scale.is_finite()) {
            return check::invalid(format!("rope: base {base} or frequency_scale {frequency_scale} is out of range"));
        }
        check::dtype("rope", "input", input, DType::F32)?;
        check::dtype("rope", "output", output, DType::F32)?;
        check::dtype_in("rope", "positions", positions, &[DType::U32, DType::I32])?;
        let bytes = check::bytes("rope", &[n_tokens, n_heads, head_dim], DType::F32)?;
        let device = self.device_id();
        let frequency_factors = match frequency_factors {
            None => None,
            Some(factors) => {
                check::dtype("rope", "frequency_factors", factors, DType::F32)?;
                Some(factors.read(device, "frequency_factors", n_rot / 2 * 4)?)
            }
        };
        self.record(Op::Rope(Rope {
            input: input.read(device, "input", bytes)?,
            positions: positions.read(device, "positions", n_tokens * 4)?,
            frequency_factors,
            output: output.write(device, "output", bytes)?,
            params: *params,
        }))
    }
}
