//! Elementwise operations.

use super::operand::{f32s, floats, store_at, store_f32s};
use crate::Result;
use crate::ops::{Activation, Binary, BinaryOp, Cast, GatedActivation, SoftCap};

pub(super) fn cast(op: &Cast) -> Result<()> {
    store_at(&op.output, 0, op.direction.to(), &floats(&op.input, op.direction.from(), op.len)?)
}

/// output[i] = a[i] ∘ b[i mod b_len]
pub(super) fn binary(op: &BinaryOp) -> Result<()> {
    let (a, b) = (f32s(&op.a, op.len)?, f32s(&op.b, op.b_len)?);
    let apply = |(a, b): (&f64, &f64)| match op.kind {
        Binary::Add => a + b,
        Binary::Mul => a * b,
    };
    store_f32s(&op.output, &a.iter().zip(b.iter().cycle()).map(apply).collect::<Vec<f64>>())
}

/// output[i] = activation(gate[i]) · up[i]
pub(super) fn gated_activation(op: &GatedActivation) -> Result<()> {
    let (gate, up) = (f32s(&op.gate, op.len)?, f32s(&op.up, op.len)?);
    let activation = |x: f64| match op.activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
    };
    store_f32s(&op.output, &gate.iter().zip(&up).map(|(&gate, up)| activation(gate) * up).collect::<Vec<f64>>())
}

/// output[i] = cap · tanh(input[i] / cap)
pub(super) fn soft_cap(op: &SoftCap) -> Result<()> {
    let cap = f64::from(op.cap);
    let input = f32s(&op.input, op.len)?;
    store_f32s(&op.output, &input.iter().map(|x| cap * (x / cap).tanh()).collect::<Vec<f64>>())
}
