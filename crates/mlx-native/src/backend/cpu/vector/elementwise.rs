//! Casts, sums, products, gated activations, the logit soft-cap.
// SAFETY of every unsafe block here: the rules of `vector`; indices come from the share's range of the operation's length.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::simd::{MAX_LANES, Simd};
use super::{GRAIN, Mem, Task, math};
use crate::backend::cpu::kernel::{Resolver, Share};
use crate::ops::{Activation, Binary, BinaryOp, Cast, CastDirection, GatedActivation, SoftCap};
use crate::{DType, Result};

/// `n` ≤ LANES values at `p`, then zeros.
#[inline(always)]
pub(super) unsafe fn load<S: Simd>(s: S, p: *const f32, n: usize) -> S::F {
    unsafe { if n == S::LANES { s.load(p) } else { s.load_n(p, n) } }
}

/// Puts the first `n` ≤ LANES places to `p`.
#[inline(always)]
pub(super) unsafe fn store<S: Simd>(s: S, p: *mut f32, v: S::F, n: usize) {
    unsafe { if n == S::LANES { s.store(p, v) } else { s.store_n(p, v, n) } }
}

/// Work on `n` ≤ LANES elements from element `i` on.
trait Lanewise {
    unsafe fn lanes<S: Simd>(&self, s: S, i: usize, n: usize);
}

#[inline(always)]
unsafe fn run_lanewise<S: Simd>(s: S, task: &impl Lanewise, len: usize, share: &Share<'_>) {
    let range = share.range(len, GRAIN);
    let mut i = range.start;
    while i + S::LANES <= range.end {
        unsafe { task.lanes(s, i, S::LANES) };
        i += S::LANES;
    }
    if i < range.end {
        unsafe { task.lanes(s, i, range.end - i) };
    }
}

/// Converts between element types, through f32, which holds all of them exactly.
pub(super) struct CastTask {
    input: Mem<u8>,
    output: Mem<u8>,
    len: usize,
    direction: CastDirection,
}

impl CastTask {
    pub(super) fn new(op: &Cast, resolver: &mut Resolver) -> Result<CastTask> {
        let (input, output) = (Mem::new(resolver, &op.input)?, Mem::new(resolver, &op.output)?);
        Ok(CastTask { input, output, len: op.len, direction: op.direction })
    }
}

/// The upper half of an f32, rounded to nearest, ties to even; NaN stays NaN.
#[inline(always)]
fn to_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    (if v.is_nan() { bits >> 16 | 0x40 } else { rounded }) as u16
}

impl Lanewise for CastTask {
    #[inline(always)]
    unsafe fn lanes<S: Simd>(&self, s: S, i: usize, n: usize) {
        let whole = n == S::LANES;
        let (from, to) = (self.direction.from(), self.direction.to());
        unsafe {
            let v = match from {
                DType::F16 => {
                    let p = self.input.0.cast::<u16>().add(i);
                    if whole { s.load_f16(p) } else { s.load_f16_n(p, n) }
                }
                DType::BF16 => {
                    let mut words = [0u16; MAX_LANES];
                    self.input.0.add(2 * i).copy_to_nonoverlapping(words.as_mut_ptr().cast(), 2 * n);
                    let mut floats = [0.0; MAX_LANES];
                    for (float, word) in floats.iter_mut().zip(words) {
                        *float = f32::from_bits(u32::from(word) << 16);
                    }
                    s.load(floats.as_ptr())
                }
                _ => load(s, self.input.0.cast::<f32>().add(i), n),
            };
            match to {
                DType::F16 => {
                    let p = self.output.0.cast::<u16>().add(i);
                    if whole { s.store_f16(p, v) } else { s.store_f16_n(p, v, n) }
                }
                DType::BF16 => {
                    let floats = s.to_array(v);
                    let mut words = [0u16; MAX_LANES];
                    for (word, float) in words.iter_mut().zip(floats) {
                        *word = to_bf16(float);
                    }
                    self.output.0.add(2 * i).copy_from_nonoverlapping(words.as_ptr().cast(), 2 * n);
                }
                _ => store(s, self.output.0.cast::<f32>().add(i), v, n),
            }
        }
    }
}

impl Task for CastTask {
    fn shares(&self, _phase: usize) -> usize {
        self.len.div_ceil(GRAIN)
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S, _phase: usize, share: &Share<'_>) {
        unsafe { run_lanewise(s, self, self.len, share) }
    }
}

/// a ∘ b with b repeated.
pub(super) struct BinaryTask {
    a: Mem<f32>,
    b: Mem<f32>,
    output: Mem<f32>,
    len: usize,
    b_len: usize,
    kind: Binary,
}

impl BinaryTask {
    pub(super) fn new(op: &BinaryOp, resolver: &mut Resolver) -> Result<BinaryTask> {
        Ok(BinaryTask {
            a: Mem::new(resolver, &op.a)?,
            b: Mem::new(resolver, &op.b)?,
            output: Mem::new(resolver, &op.output)?,
            len: op.len,
            b_len: op.b_len,
            kind: op.kind,
        })
    }

    #[inline(always)]
    fn apply<S: Simd>(&self, s: S, a: S::F, b: S::F) -> S::F {
        match self.kind {
            Binary::Add => s.add(a, b),
            Binary::Mul => s.mul(a, b),
        }
    }

    /// `n` ≤ LANES values of b from element `i` of a on; the run ends with b at the latest, unless b is a single value.
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, s: S, i: usize, at: usize, n: usize) {
        unsafe {
            let b = if self.b_len == 1 { s.splat(self.b.get(0)) } else { load(s, self.b.at(at), n) };
            let v = self.apply(s, load(s, self.a.at(i), n), b);
            store(s, self.output.at(i), v, n);
        }
    }
}

impl Task for BinaryTask {
    fn shares(&self, _phase: usize) -> usize {
        self.len.div_ceil(GRAIN)
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S, _phase: usize, share: &Share<'_>) {
        let range = share.range(self.len, GRAIN);
        let period = if self.b_len == 1 { self.len } else { self.b_len };
        let mut i = range.start;
        while i < range.end {
            let first = i % period;
            let end = (i + period - first).min(range.end);
            let mut at = first;
            while i < end {
                let n = (end - i).min(S::LANES);
                unsafe { self.step(s, i, at, n) };
                i += n;
                at += n;
            }
        }
    }
}

/// activation(gate) · up
pub(super) struct GatedTask {
    gate: Mem<f32>,
    up: Mem<f32>,
    output: Mem<f32>,
    len: usize,
    activation: Activation,
}

impl GatedTask {
    pub(super) fn new(op: &GatedActivation, resolver: &mut Resolver) -> Result<GatedTask> {
        Ok(GatedTask {
            gate: Mem::new(resolver, &op.gate)?,
            up: Mem::new(resolver, &op.up)?,
            output: Mem::new(resolver, &op.output)?,
            len: op.len,
            activation: op.activation,
        })
    }
}

impl Lanewise for GatedTask {
    #[inline(always)]
    unsafe fn lanes<S: Simd>(&self, s: S, i: usize, n: usize) {
        unsafe {
            let (gate, up) = (load(s, self.gate.at(i), n), load(s, self.up.at(i), n));
            store(s, self.output.at(i), s.mul(math::activate(s, self.activation, gate), up), n);
        }
    }
}

impl Task for GatedTask {
    fn shares(&self, _phase: usize) -> usize {
        self.len.div_ceil(GRAIN)
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S, _phase: usize, share: &Share<'_>) {
        unsafe { run_lanewise(s, self, self.len, share) }
    }
}

/// cap · tanh(input / cap)
pub(super) struct SoftCapTask {
    input: Mem<f32>,
    output: Mem<f32>,
    len: usize,
    cap: f32,
}

impl SoftCapTask {
    pub(super) fn new(op: &SoftCap, resolver: &mut Resolver) -> Result<SoftCapTask> {
        let (input, output) = (Mem::new(resolver, &op.input)?, Mem::new(resolver, &op.output)?);
        Ok(SoftCapTask { input, output, len: op.len, cap: op.cap })
    }
}

impl Lanewise for SoftCapTask {
    #[inline(always)]
    unsafe fn lanes<S: Simd>(&self, s: S, i: usize, n: usize) {
        let cap = s.splat(self.cap);
        unsafe {
            let v = load(s, self.input.at(i), n);
            store(s, self.output.at(i), s.mul(cap, math::tanh(s, s.div(v, cap))), n);
        }
    }
}

impl Task for SoftCapTask {
    fn shares(&self, _phase: usize) -> usize {
        self.len.div_ceil(GRAIN)
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, s: S, _phase: usize, share: &Share<'_>) {
        unsafe { run_lanewise(s, self, self.len, share) }
    }
}
