//! Elementwise operations on f32: sums, products, gated activations, the logit soft-cap.

use super::{Op, check};
use crate::buffer::View;
use crate::{CommandEncoder, DType, MlxBuffer, Result};

/// A binary operation on f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// a + b
    Add,
    /// a · b
    Mul,
}

/// The activation of a gated feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x · σ(x) = x / (1 + e⁻ˣ)
    Silu,
    /// x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³)))
    GeluTanh,
}

/// `output[i]` = `a[i]` ∘ `b[i mod b_len]`; `b_len` divides `len`.
#[derive(Clone, Debug)]
pub(crate) struct BinaryOp {
    pub a: View,
    pub b: View,
    pub output: View,
    pub len: usize,
    pub b_len: usize,
    pub kind: Binary,
}

/// `output[i]` = activation(`gate[i]`) · `up[i]`
#[derive(Clone, Debug)]
pub(crate) struct GatedActivation {
    pub gate: View,
    pub up: View,
    pub output: View,
    pub len: usize,
    pub activation: Activation,
}

/// `output[i]` = cap · tanh(`input[i]` / cap)
#[derive(Clone, Debug)]
pub(crate) struct SoftCap {
    pub input: View,
    pub output: View,
    pub len: usize,
    pub cap: f32,
}

impl CommandEncoder {
    /// `output[i]` = `a[i]` ∘ `b[i mod |b|]` over all of `a`, all f32. `output` may be a handle on the very bytes of `a`.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) when a dtype is not f32, b's length does not divide a's, or `output` is too small.
    pub fn binary(&mut self, kind: Binary, a: &MlxBuffer, b: &MlxBuffer, output: &mut MlxBuffer) -> Result<()> {
        for (name, buffer) in [("a", a), ("b", b), ("output", &*output)] {
            check::dtype("binary", name, buffer, DType::F32)?;
        }
        let (len, b_len) = (a.element_count(), b.element_count());
        check::non_zero("binary", &[("a's length", len), ("b's length", b_len)])?;
        if !len.is_multiple_of(b_len) {
            return check::invalid(format!("binary: b has {b_len} elements, which do not divide a's {len}"));
        }
        let device = self.device_id();
        self.record(Op::Binary(BinaryOp {
            a: a.read(device, "a", len * 4)?,
            b: b.read(device, "b", b_len * 4)?,
            output: output.write(device, "output", len * 4)?,
            len,
            b_len,
            kind,
        }))
    }

    /// `output[i]` = activation(`gate[i]`) · `up[i]` over all of `gate`, all f32. `output` may be a handle on the bytes of `gate` or `up`.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) when a dtype is not f32 or a buffer is smaller than `gate`.
    pub fn gated_activation(
        &mut self,
        activation: Activation,
        gate: &MlxBuffer,
        up: &MlxBuffer,
        output: &mut MlxBuffer,
    ) -> Result<()> {
        for (name, buffer) in [("gate", gate), ("up", up), ("output", &*output)] {
            check::dtype("gated_activation", name, buffer, DType::F32)?;
        }
        let len = gate.element_count();
        check::non_zero("gated_activation", &[("gate's length", len)])?;
        let device = self.device_id();
        self.record(Op::GatedActivation(GatedActivation {
            gate: gate.read(device, "gate", len * 4)?,
            up: up.read(device, "up", len * 4)?,
            output: output.write(device, "output", len * 4)?,
            len,
            activation,
        }))
    }

    /// `output[i]` = cap · tanh(`input[i]` / cap) over all of `input`, all f32; in place is fine.
    ///
    /// # Errors
    ///
    /// [`InvalidArgument`](crate::MlxError::InvalidArgument) when a dtype is not f32, `output` is too small, or `cap` is not a positive number.
    pub fn soft_cap(&mut self, input: &MlxBuffer, output: &mut MlxBuffer, cap: f32) -> Result<()> {
        for (name, buffer) in [("input", input), ("output", &*output)] {
            check::dtype("soft_cap", name, buffer, DType::F32)?;
        }
        if !(cap > 0.0 && cap.is_finite()) {
            return check::invalid(format!("soft_cap: cap must be positive and finite, got {cap}"));
        }
        let len = input.element_count();
        check::non_zero("soft_cap", &[("input's length", len)])?;
        let device = self.device_id();
        self.record(Op::SoftCap(SoftCap {
            input: input.read(device, "input", len * 4)?,
            output: output.write(device, "output", len * 4)?,
            len,
            cap,
        }))
    }
}
