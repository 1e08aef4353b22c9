//! Functions of vectors: exp, tanh, the activations.

use super::simd::Simd;
use crate::ops::Activation;

/// ln 2 in two parts; the upper one has few enough bits that its product with an exponent is exact.
const LN2_UPPER: f32 = 355.0 / 512.0;
const LN2_LOWER: f32 = -2.121_944_4e-4;
/// Of the polynomial s in eʳ = 1 + r + r²·s(r) for |r| ≤ ln 2 / 2; its largest error there is 3.2e-9 (fitted by reweighted least squares).
const EXP: [f32; 5] = [0.5, 0.166_665_18, 0.041_666_206, 0.008_368_918, 0.001_395_054];

/// x = n·ln 2 + r with an integral n and |r| ≤ ln 2 / 2: n, and eʳ − 1.
#[inline(always)]
fn reduced_exp<S: Simd>(s: S, x: S::F) -> (S::F, S::F) {
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.mul_add(n, s.splat(-LN2_UPPER), x);
    let r = s.mul_add(n, s.splat(-LN2_LOWER), r);
    let poly = s.splat(EXP[4]);
    let poly = s.mul_add(poly, r, s.splat(EXP[3]));
    let poly = s.mul_add(poly, r, s.splat(EXP[2]));
    let poly = s.mul_add(poly, r, s.splat(EXP[1]));
    let poly = s.mul_add(poly, r, s.splat(EXP[0]));
    (n, s.mul_add(s.mul(r, r), poly, r))
}

/// eˣ to 2 units in the last place; too small for a normal number is 0 or nearly, NaN stays.
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // Beyond these the result is 0 or infinite. `min` and `max` give their second argument where it is NaN.
    let x = s.max(s.splat(-104.0), s.min(s.splat(89.0), x));
    let (n, em1) = reduced_exp(s, x);
    // 2ⁿ may lie outside the range of one factor.
    let half = s.round(s.mul(n, s.splat(0.5)));
    s.mul(s.mul(s.add(em1, s.splat(1.0)), s.pow2(half)), s.pow2(s.sub(n, half)))
}

/// eˣ for x ≤ 0, with a result below 2⁻¹²⁵ given as 0: what a softmax needs, in fewer steps. NaN stays.
#[inline(always)]
pub(super) fn exp_negative<S: Simd>(s: S, x: S::F) -> S::F {
    let floor = s.splat(-86.0);
    let (n, em1) = reduced_exp(s, s.max(floor, x));
    let power = s.pow2(n);
    s.select_ge(floor, x, s.splat(0.0), s.mul_add(em1, power, power))
}

/// tanh x = (e²ˣ − 1) / (e²ˣ + 1), to a few units in the last place at either end.
#[inline(always)]
pub(super) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    // From |x| = 20 on the result is ±1.
    let x = s.max(s.splat(-20.0), s.min(s.splat(20.0), x));
    let (n, em1) = reduced_exp(s, s.add(x, x));
    let power = s.pow2(n);
    let em1 = s.mul_add(em1, power, s.sub(power, s.splat(1.0)));
    s.div(em1, s.add(em1, s.splat(2.0)))
}

/// x · σ(x), or the tanh form of GELU, which is x · σ(2·√(2/π)·(x + 0.044715·x³)).
#[inline(always)]
pub(super) fn activate<S: Simd>(s: S, kind: Activation, x: S::F) -> S::F {
    let minus_t = match kind {
        Activation::Silu => s.sub(s.splat(0.0), x),
        Activation::GeluTanh => {
            const FACTOR: f32 = -1.595_769; // −2·√(2/π)
            let inner = s.mul_add(s.mul(x, x), s.splat(0.044_715), s.splat(1.0));
            s.mul(s.mul(x, s.splat(FACTOR)), inner)
        }
    };
    s.div(x, s.add(s.splat(1.0), exp(s, minus_t)))
}
