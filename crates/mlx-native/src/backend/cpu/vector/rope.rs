//! Rotary position embedding.
// SAFETY of every unsafe block here: the rules of `vector`; a share has whole tokens, and a pair is read before it is written.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::sync::Arc;

use super::scratch::Scratch;
use super::simd::Simd;
use super::{GRAIN, Mem, Task};
use crate::backend::cpu::kernel::{Resolver, Share};
use crate::buffer::View;
use crate::ops::{Op, Rope, RopeParams, RopeStyle};
use crate::{DType, Result};

/// An angle takes as long as this many elements do.
const ANGLE_WORK: usize = 8;
/// Pairs whose sines and cosines are computed at once.
const CHUNK: usize = 64;

/// sin x = x + x³·S(x²) and cos x = 1 − x²/2 + x⁴·C(x²) for |x| ≤ π/4, to 2e-9 (fitted by reweighted least squares).
const SIN: [f32; 3] = [-0.166_666_51, 0.008_331_976, -1.949_529_3e-4];
const COS: [f32; 3] = [0.041_666_646, -0.001_388_736_4, 2.443_809e-5];

/// Cosines and sines of every token's pairs, `[n_tokens, 2, n_rot / 2]`, and what they follow from.
struct Angles {
    positions: View,
    factors: Option<View>,
    /// Tokens and n_rot.
    shape: [usize; 2],
    /// Bits of base and frequency scale.
    frequencies: [u32; 2],
    table: Arc<Scratch>,
}

impl Angles {
    fn serve(&self, op: &Rope) -> bool {
        let factors = match (&self.factors, &op.frequency_factors) {
            (None, None) => true,
            (Some(ours), Some(theirs)) => ours.same_start(theirs),
            _ => false,
        };
        factors
            && self.positions.same_start(&op.positions)
            && self.positions.dtype == op.positions.dtype
            && self.shape == [op.params.n_tokens, op.params.n_rot]
            && self.frequencies == [op.params.base.to_bits(), op.params.frequency_scale.to_bits()]
    }
}

/// Angles that a list's rotations have in common: those of queries and keys, in every layer.
#[derive(Default)]
pub(super) struct SharedAngles(Vec<Angles>);

impl SharedAngles {
    /// Angles of positions or factors that the operation writes are stale.
    pub(super) fn forget_written(&mut self, op: &Op) {
        if self.0.is_empty() {
            return;
        }
        let writes = op.writes();
        let stale = |view: &View| writes.iter().any(|write| write.overlaps(view));
        self.0.retain(|angles| !stale(&angles.positions) && !angles.factors.as_ref().is_some_and(stale));
    }
}

pub(super) struct RopeTask {
    input: Mem<f32>,
    output: Mem<f32>,
    params: RopeParams,
    table: Arc<Scratch>,
    /// The table is still to be filled.
    first: Option<Turns>,
}

/// What angles are made from.
struct Turns {
    positions: Mem<u32>,
    signed: bool,
    factors: Option<Mem<f32>>,
    /// Quarter turns per position of each pair, before its factor. In f64: a position of a million turns by thousands of radians.
    quarter_turns: Vec<f64>,
}

impl RopeTask {
    pub(super) fn new(op: &Rope, resolver: &mut Resolver, shared: &mut SharedAngles) -> Result<RopeTask> {
        let RopeParams { n_tokens, n_rot, base, frequency_scale, .. } = op.params;
        let (table, first) = match shared.0.iter().find(|angles| angles.serve(op)) {
            Some(angles) => (Arc::clone(&angles.table), None),
            None => {
                let table = Arc::new(Scratch::new(n_tokens * n_rot)?);
                shared.0.push(Angles {
                    positions: op.positions.clone(),
                    factors: op.frequency_factors.clone(),
                    shape: [n_tokens, n_rot],
                    frequencies: [base.to_bits(), frequency_scale.to_bits()],
                    table: Arc::clone(&table),
                });
                let quarter_turns = |pair: usize| {
                    let frequency = f64::from(base).powf(-((2 * pair) as f64) / n_rot as f64);
                    f64::from(frequency_scale) * frequency * std::f64::consts::FRAC_2_PI
                };
                let turns = Turns {
                    positions: Mem::new(resolver, &op.positions)?,
                    signed: op.positions.dtype == DType::I32,
                    factors: Mem::optional(resolver, &op.frequency_factors)?,
                    quarter_turns: (0..n_rot / 2).map(quarter_turns).collect(),
                };
                (table, Some(turns))
            }
        };
        let (input, output) = (Mem::new(resolver, &op.input)?, Mem::new(resolver, &op.output)?);
        Ok(RopeTask { input, output, params: op.params, table, first })
    }

    /// Where the cosines of a token's pairs are, and its sines.
    #[inline(always)]
    unsafe fn place(&self, token: usize) -> [*mut f32; 2] {
        let n_rot = self.params.n_rot;
        unsafe { [self.table.at(token * n_rot), self.table.at(token * n_rot + n_rot / 2)] }
    }

    /// Fills a token's row of the table.
    #[inline(always)]
    unsafe fn fill(&self, turns: &Turns, token: usize) {
        let position = unsafe { turns.positions.get(token) };
        let position = if turns.signed { f64::from(position as i32) } else { f64::from(position) };
        let pairs = self.params.n_rot / 2;
        let mut first = 0;
        while first < pairs {
            let n = (pairs - first).min(CHUNK);
            unsafe {
                let (cos, sin) = turns.angles(position, first, n);
                for (place, values) in self.place(token).into_iter().zip([cos, sin]) {
                    place.add(first).copy_from_nonoverlapping(values.as_ptr(), n);
                }
            }
            first += n;
        }
    }

    /// Turns the pairs `first .. first + n` of the head that starts at element `head`.
    #[inline(always)]
    unsafe fn turn(&self, head: usize, first: usize, n: usize, cos: &[f32; CHUNK], sin: &[f32; CHUNK]) {
        let mut pairs = [0.0f32; 2 * CHUNK];
        match self.params.style {
            RopeStyle::Interleaved => unsafe {
                let at = head + 2 * first;
                self.input.at(at).cast::<u8>().copy_to_nonoverlapping(pairs.as_mut_ptr().cast(), 8 * n);
                for i in 0..CHUNK {
                    let (a, b) = (pairs[2 * i], pairs[2 * i + 1]);
                    pairs[2 * i] = a * cos[i] - b * sin[i];
                    pairs[2 * i + 1] = a * sin[i] + b * cos[i];
                }
                self.output.at(at).cast::<u8>().copy_from_nonoverlapping(pairs.as_ptr().cast(), 8 * n);
            },
            RopeStyle::NeoX => unsafe {
                let (at, far) = (head + first, head + first + self.params.n_rot / 2);
                let (a, b) = pairs.split_at_mut(CHUNK);
                self.input.at(at).cast::<u8>().copy_to_nonoverlapping(a.as_mut_ptr().cast(), 4 * n);
                self.input.at(far).cast::<u8>().copy_to_nonoverlapping(b.as_mut_ptr().cast(), 4 * n);
                for (i, (a, b)) in a.iter_mut().zip(b.iter_mut()).enumerate() {
                    (*a, *b) = (*a * cos[i] - *b * sin[i], *a * sin[i] + *b * cos[i]);
                }
                self.output.at(at).cast::<u8>().copy_from_nonoverlapping(a.as_ptr().cast(), 4 * n);
                self.output.at(far).cast::<u8>().copy_from_nonoverlapping(b.as_ptr().cast(), 4 * n);
            },
        }
    }
}

impl Turns {
    /// Cosines and sines of the pairs `first .. first + n` at a position.
    #[inline(always)]
    unsafe fn angles(&self, position: f64, first: usize, n: usize) -> ([f32; CHUNK], [f32; CHUNK]) {
        let mut turns = [0.0f64; CHUNK];
        for (i, turn) in turns[..n].iter_mut().enumerate() {
            *turn = position * self.quarter_turns[first + i];
        }
        if let Some(factors) = self.factors {
            for (i, turn) in turns[..n].iter_mut().enumerate() {
                *turn /= f64::from(unsafe { factors.get(first + i) });
            }
        }
        let (mut cos, mut sin) = ([0.0f32; CHUNK], [0.0f32; CHUNK]);
        for ((turn, cos), sin) in turns.iter().zip(&mut cos).zip(&mut sin) {
            // Whole quarters exchange sine and cosine and their signs; what remains is at most an eighth of a turn.
            let quarters = turn.round_ties_even();
            let x = ((turn - quarters) * std::f64::consts::FRAC_PI_2) as f32;
            let quadrant = quarters - 4.0 * (quarters * 0.25).floor();
            let z = x * x;
            let s = x + x * z * (SIN[0] + z * (SIN[1] + z * SIN[2]));
            let c = 1.0 - 0.5 * z + z * z * (COS[0] + z * (COS[1] + z * COS[2]));
            let odd = quadrant == 1.0 || quadrant == 3.0;
            let (c, s) = if odd { (s, c) } else { (c, s) };
            *cos = if quadrant == 1.0 || quadrant == 2.0 { -c } else { c };
            *sin = if quadrant >= 2.0 { -s } else { s };
        }
        (cos, sin)
    }
}

impl Task for RopeTask {
    fn phases(&self) -> usize {
        1 + usize::from(self.first.is_some())
    }

    fn shares(&self, phase: usize) -> usize {
        let RopeParams { n_tokens, n_heads, head_dim, n_rot, .. } = self.params;
        let row = if phase + 1 < self.phases() { ANGLE_WORK * n_rot } else { n_heads * head_dim };
        n_tokens.div_ceil(GRAIN.div_ceil(row))
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, _s: S, phase: usize, share: &Share<'_>) {
        let RopeParams { n_tokens, n_heads, head_dim, n_rot, .. } = self.params;
        if let (Some(turns), 0) = (&self.first, phase) {
            for token in share.range(n_tokens, GRAIN.div_ceil(ANGLE_WORK * n_rot)) {
                unsafe { self.fill(turns, token) };
            }
            return;
        }
        let row = n_heads * head_dim;
        for token in share.range(n_tokens, GRAIN.div_ceil(row)) {
            let [cosines, sines] = unsafe { self.place(token) };
            let mut first = 0;
            while first < n_rot / 2 {
                let n = (n_rot / 2 - first).min(CHUNK);
                let (mut cos, mut sin) = ([0.0f32; CHUNK], [0.0f32; CHUNK]);
                unsafe {
                    cos.as_mut_ptr().copy_from_nonoverlapping(cosines.add(first), n);
                    sin.as_mut_ptr().copy_from_nonoverlapping(sines.add(first), n);
                    for head in 0..n_heads {
                        self.turn(token * row + head * head_dim, first, n, &cos, &sin);
                    }
                }
                first += n;
            }
            if n_rot < head_dim && self.input.0 != self.output.0 {
                for head in 0..n_heads {
                    let rest = token * row + head * head_dim + n_rot;
                    unsafe {
                        let (from, to) = (self.input.at(rest), self.output.at(rest));
                        from.cast::<u8>().copy_to_nonoverlapping(to.cast(), 4 * (head_dim - n_rot));
                    }
                }
            }
        }
    }
}
