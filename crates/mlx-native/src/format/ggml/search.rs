//! The search for scales: what makes a quantizer good.
//!
//! A block stands for `x ≈ s · q` (or `s · q − m`) with q on a small grid. For given q the best s (and m) is a least-squares
//! solution in closed form; for a given s the best q is the nearest grid point. The searches below try a range of scales
//! around the one that maps the largest value to the grid's edge, solve each for its least squares, and keep the best.
//! Formats that quantize their scales a second time then choose the stored integers by the error that results from them.
//!
//! Sums run in eight f32 lanes, which the compiler makes vectors of. Squares do not overflow, since callers bound the values
//! by what an f16 scale can reach.

use half::f16;

/// The points that a quantized value can take.
pub(super) trait Grid {
    /// The lowest and the highest point.
    fn edges(&self) -> [f32; 2];

    /// The distance from each edge to its neighbour.
    fn edge_spacings(&self) -> [f32; 2];

    /// The point nearest to `v`.
    fn nearest(&self, v: f32) -> f32;
}

/// Consecutive integers.
pub(super) struct Integers {
    pub lowest: f32,
    pub highest: f32,
}

impl Grid for Integers {
    fn edges(&self) -> [f32; 2] {
        [self.lowest, self.highest]
    }

    fn edge_spacings(&self) -> [f32; 2] {
        [1.0, 1.0]
    }

    fn nearest(&self, v: f32) -> f32 {
        round_within(v, self.lowest, self.highest)
    }
}

/// Ascending codebook values.
pub(super) struct Codebook<'a>(pub &'a [i8; 16]);

impl Codebook<'_> {
    /// The index of the value nearest to `v`.
    pub fn index(&self, v: f32) -> usize {
        // The number of midpoints between neighbours that lie below v.
        self.0.windows(2).map(|pair| (2.0 * v > (pair[0] as i32 + pair[1] as i32) as f32) as usize).sum()
    }
}

impl Grid for Codebook<'_> {
    fn edges(&self) -> [f32; 2] {
        [self.0[0] as f32, self.0[15] as f32]
    }

    fn edge_spacings(&self) -> [f32; 2] {
        [self.0[1] as f32 - self.0[0] as f32, self.0[15] as f32 - self.0[14] as f32]
    }

    fn nearest(&self, v: f32) -> f32 {
        self.0[self.index(v)] as f32
    }
}

/// `v` rounded to an integer (ties to even) and clamped; the bounds are integers below 2^22.
pub(super) fn round_within(v: f32, lowest: f32, highest: f32) -> f32 {
    // Adding 1.5 · 2^23 leaves no bits for a fraction. f32::round_ties_even is a library call on baseline x86-64.
    const NO_FRACTION: f32 = 12_582_912.0;
    (v.clamp(lowest, highest) + NO_FRACTION) - NO_FRACTION
}

/// `1 / scale`, or 0 so that everything is rounded to zero.
pub(super) fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Values with the weights of their squared errors.
#[derive(Clone, Copy)]
pub(super) struct Weighted<'a> {
    pub x: &'a [f32],
    pub w: &'a [f32],
}

impl<'a> Weighted<'a> {
    /// Equal weights where no importance is given.
    pub fn new<const N: usize>(x: &'a [f32; N], importance: Option<&'a [f32; N]>) -> Self {
        const EQUAL: [f32; 256] = [1.0; 256];
        Weighted { x, w: importance.map_or(&EQUAL[..N], |w| w.as_slice()) }.or_negligible()
    }

    /// Values that do not matter at all still get the scale that suits them, at no cost to others.
    fn or_negligible(self) -> Self {
        // A power of two, so that the search goes as with equal weights.
        const NEGLIGIBLE: [f32; 256] = [1.0 / 4_294_967_296.0; 256];
        if self.w.iter().all(|&w| w == 0.0) { Weighted { w: &NEGLIGIBLE[..self.x.len()], ..self } } else { self }
    }

    /// The `j`-th of `count` equal parts.
    pub fn part(self, j: usize, count: usize) -> Weighted<'a> {
        let len = self.x.len() / count;
        Weighted { x: &self.x[j * len..][..len], w: &self.w[j * len..][..len] }.or_negligible()
    }

    /// Sums over all values of the terms for (x, w). Blocks and their parts are multiples of eight values.
    fn sums<const TERMS: usize>(self, terms: impl Fn(f32, f32) -> [f32; TERMS]) -> [f64; TERMS] {
        let mut lanes = [[0.0; 8]; TERMS];
        for (x, w) in self.x.as_chunks::<8>().0.iter().zip(self.w.as_chunks::<8>().0) {
            for lane in 0..8 {
                let term = terms(x[lane], w[lane]);
                for (lanes, term) in lanes.iter_mut().zip(term) {
                    lanes[lane] += term;
                }
            }
        }
        lanes.map(|lanes| lanes.into_iter().sum::<f32>() as f64)
    }

    /// Σ w (x − scale · q)² with the nearest q.
    fn scale_error(self, scale: f32, grid: &impl Grid) -> f64 {
        let inverse = inverse(scale);
        let [error] = self.sums(|x, w| {
            let error = x - scale * grid.nearest(x * inverse);
            [w * error * error]
        });
        error
    }

    /// Σ w (x − (scale · q − min))² with the nearest q in 0 ..= `highest`.
    fn affine_error(self, scale: f32, min: f32, highest: f32) -> f64 {
        let inverse = inverse(scale);
        let [error] = self.sums(|x, w| {
            let error = x - (scale * round_within((x + min) * inverse, 0.0, highest) - min);
            [w * error * error]
        });
        error
    }
}

/// Σ w x q and Σ w q²: all that the least-squares scale needs.
#[derive(Clone, Copy, Default)]
pub(super) struct Moments {
    pub xq: f64,
    pub qq: f64,
}

impl Moments {
    fn of(data: Weighted<'_>, grid: &impl Grid, inverse: f32) -> Self {
        let [xq, qq] = data.sums(|x, w| {
            let q = grid.nearest(x * inverse);
            [w * x * q, w * q * q]
        });
        Moments { xq, qq }
    }

    pub fn scale(self) -> f64 {
        if self.qq > 0.0 { self.xq / self.qq } else { 0.0 }
    }

    /// By how much the scale lowers the error of an all-zero block.
    pub fn gain(self) -> f64 {
        self.scale() * self.xq
    }

    /// Σ w (x − scale · q)², less Σ w x².
    pub fn error(self, scale: f32) -> f64 {
        let scale = scale as f64;
        scale * (scale * self.qq - 2.0 * self.xq)
    }
}

/// Scales tried on each side, in steps of this part of the distance between the grid's points at its edge.
const STEPS: i32 = 9;
const STEP: f32 = 0.1;

/// The scale that minimizes Σ w (x − scale · q)².
pub(super) fn fit_scale(data: Weighted<'_>, grid: &impl Grid) -> f32 {
    let extreme = data.x.iter().fold(0.0, |extreme: f32, &x| if x.abs() > extreme.abs() { x } else { extreme });
    if extreme == 0.0 {
        return 0.0;
    }
    let mut best = Moments::default();
    for (edge, spacing) in grid.edges().into_iter().zip(grid.edge_spacings()) {
        for step in -STEPS..=STEPS {
            let inverse = (edge + edge.signum() * spacing * STEP * step as f32) / extreme;
            let moments = Moments::of(data, grid, inverse);
            if moments.gain() > best.gain() {
                best = moments;
            }
        }
    }
    // Rounding to the least-squares scale and solving again can only lower the error.
    for _ in 0..3 {
        let moments = Moments::of(data, grid, inverse(best.scale() as f32));
        if moments.gain() <= best.gain() {
            break;
        }
        best = moments;
    }
    best.scale() as f32
}

/// `scale · q − min`.
#[derive(Clone, Copy, Default)]
pub(super) struct Affine {
    pub scale: f32,
    pub min: f32,
}

/// Whether an affine minimum may be negative, which puts all values above zero.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Minimum {
    /// Any offset.
    Free,
    /// Stored without a sign.
    NotNegative,
}

/// The scale and minimum that minimize Σ w (x − (scale · q − min))² for q in 0 ..= `highest`.
pub(super) fn fit_affine(data: Weighted<'_>, highest: f32, minimum: Minimum) -> Affine {
    let ceiling = if minimum == Minimum::Free { f32::INFINITY } else { 0.0 };
    let least = data.x.iter().fold(ceiling, |least: f32, &x| least.min(x));
    let greatest = data.x.iter().fold(least, |greatest: f32, &x| greatest.max(x));
    let mut best = (f64::NEG_INFINITY, Affine { scale: 0.0, min: -least });
    if greatest == least {
        return best.1;
    }
    for step in -STEPS..=2 * STEPS {
        let scale = (greatest - least) / (highest + STEP * step as f32);
        let solved = solve_affine(data, Affine { scale, min: -least }, highest, minimum);
        if solved.0 > best.0 {
            best = solved;
        }
    }
    for _ in 0..3 {
        let solved = solve_affine(data, best.1, highest, minimum);
        if solved.0 <= best.0 {
            break;
        }
        best = solved;
    }
    best.1
}

/// The least-squares scale and minimum for the q that are nearest under `start`, and by how much they lower Σ w x².
fn solve_affine(data: Weighted<'_>, start: Affine, highest: f32, minimum: Minimum) -> (f64, Affine) {
    let inverse = inverse(start.scale);
    let [sw, sq, sqq, sx, sxq] = data.sums(|x, w| {
        let q = round_within((x + start.min) * inverse, 0.0, highest);
        [w, w * q, w * q * q, w * x, w * x * q]
    });
    let determinant = sw * sqq - sq * sq;
    let (mut scale, mut offset) = ((sw * sxq - sx * sq) / determinant, (sqq * sx - sq * sxq) / determinant);
    // Below this the q are equal but for rounding, and say nothing about an offset.
    let only_scale = determinant < 1e-6 * sw * sqq || minimum == Minimum::NotNegative && offset > 0.0;
    if only_scale {
        (scale, offset) = (if sqq > 0.0 { sxq / sqq } else { 0.0 }, 0.0);
    }
    (scale * sxq + offset * sx, Affine { scale: scale as f32, min: -offset as f32 })
}

/// Integer scales of equal parts of a block, and the scale of those: value = `d · scales[j] · q`.
#[derive(Clone, Copy)]
pub(super) struct SubScales<const PARTS: usize> {
    pub d: f16,
    pub scales: [i8; PARTS],
}

/// The two levels of scales that minimize the error, with integer scales in `lowest ..= highest`, the lowest being the larger.
pub(super) fn fit_sub_scales<const PARTS: usize>(
    data: Weighted<'_>,
    grid: &impl Grid,
    [lowest, highest]: [i8; 2],
) -> SubScales<PARTS> {
    let ideal: [f32; PARTS] = std::array::from_fn(|j| fit_scale(data.part(j, PARTS), grid));
    let widest = ideal.into_iter().fold(0.0, |widest: f32, s| if s.abs() > widest.abs() { s } else { widest });
    // The integers nearest to the ideal scales, or their neighbours, whichever leave the least error.
    let choose = |d: f16| {
        let (unit, mut total) = (d.to_f32(), 0.0);
        let scales = std::array::from_fn(|j| {
            let part = data.part(j, PARTS);
            let middle = round_within(ideal[j] * inverse(unit), lowest as f32, highest as f32) as i8;
            let candidates = middle.saturating_sub(1).max(lowest)..=middle.saturating_add(1).min(highest);
            let (error, scale) = least(candidates.map(|s| (part.scale_error(unit * s as f32, grid), s)), 0);
            total += error;
            scale
        });
        (total, SubScales { d, scales })
    };
    let d = f16::from_f32(widest / lowest as f32);
    let mut best = choose(d);
    // A coarse subnormal may lie so far below the ideal that the integers cannot make up for it; the next one does not.
    if !d.is_normal() {
        let next = choose(f16::from_bits(d.to_bits() + 1));
        if next.0 < best.0 {
            best = next;
        }
    }
    for _ in 0..2 {
        let SubScales { d, scales } = best.1;
        let mut sums = Moments::default();
        for (j, scale) in scales.into_iter().enumerate() {
            let part = Moments::of(data.part(j, PARTS), grid, inverse(d.to_f32() * scale as f32));
            sums.xq += part.xq * scale as f64;
            sums.qq += part.qq * (scale as f64).powi(2);
        }
        let next = choose(f16::from_f64(sums.scale()));
        if next.0 >= best.0 {
            break;
        }
        best = next;
    }
    best.1
}

/// Integer scales and minimums of equal parts of a block, and the scales of those: value = `d · scales[j] · q − dmin · mins[j]`.
#[derive(Clone, Copy)]
pub(super) struct SubAffine<const PARTS: usize> {
    pub d: f16,
    pub dmin: f16,
    pub scales: [u8; PARTS],
    pub mins: [u8; PARTS],
}

/// The two levels of scales and minimums that minimize the error for q in 0 ..= `highest`, with integers in 0 ..= `largest`.
pub(super) fn fit_sub_affine<const PARTS: usize>(data: Weighted<'_>, highest: f32, largest: u8) -> SubAffine<PARTS> {
    let ideal: [Affine; PARTS] =
        std::array::from_fn(|j| fit_affine(data.part(j, PARTS), highest, Minimum::NotNegative));
    let widest = ideal.into_iter().fold(Affine::default(), |widest, part| Affine {
        scale: widest.scale.max(part.scale),
        min: widest.min.max(part.min),
    });
    let choose = |d: f16, dmin: f16| {
        let (unit, min_unit, mut total) = (d.to_f32(), dmin.to_f32(), 0.0);
        let pairs: [(u8, u8); PARTS] = std::array::from_fn(|j| {
            let part = data.part(j, PARTS);
            let around = |ideal: f32, unit: f32| {
                let middle = round_within(ideal * inverse(unit), 0.0, largest as f32) as u8;
                (middle, middle.saturating_sub(1)..=(middle + 1).min(largest))
            };
            let error = |scale: u8, min: u8| part.affine_error(unit * scale as f32, min_unit * min as f32, highest);
            let (scale, scales) = around(ideal[j].scale, unit);
            let (min, mins) = around(ideal[j].min, min_unit);
            let (_, scale) = least(scales.map(|scale| (error(scale, min), scale)), scale);
            let (error, pair) = least(mins.map(|min| (error(scale, min), (scale, min))), (scale, min));
            total += error;
            pair
        });
        (total, SubAffine { d, dmin, scales: pairs.map(|pair| pair.0), mins: pairs.map(|pair| pair.1) })
    };
    let largest = largest as f32;
    let mut best = choose(f16::from_f32(widest.scale / largest), f16::from_f32(widest.min / largest));
    for _ in 0..2 {
        let (d, dmin) = solve_units(data, &best.1, highest);
        let next = choose(f16::from_f64(d), f16::from_f64(dmin));
        if next.0 >= best.0 {
            break;
        }
        best = next;
    }
    best.1
}

/// The least-squares `d` and `dmin` for the integers of `fit`, all parts together.
fn solve_units<const PARTS: usize>(data: Weighted<'_>, fit: &SubAffine<PARTS>, highest: f32) -> (f64, f64) {
    // x ≈ d · u · q − dmin · v, u and v the integers of the part.
    let (mut suu, mut suv, mut svv, mut sxu, mut sxv) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for j in 0..PARTS {
        let (scale, min) = (fit.d.to_f32() * fit.scales[j] as f32, fit.dmin.to_f32() * fit.mins[j] as f32);
        let (inverse, v) = (inverse(scale), fit.mins[j] as f64);
        let [w, wq, wqq, wx, wxq] = data.part(j, PARTS).sums(|x, w| {
            let q = round_within((x + min) * inverse, 0.0, highest);
            [w, w * q, w * q * q, w * x, w * x * q]
        });
        let u = fit.scales[j] as f64;
        suu += u * u * wqq;
        suv += u * v * wq;
        svv += v * v * w;
        sxu += u * wxq;
        sxv += v * wx;
    }
    let determinant = suu * svv - suv * suv;
    if determinant > 0.0 {
        ((sxu * svv - sxv * suv) / determinant, (sxu * suv - sxv * suu) / determinant)
    } else if suu > 0.0 {
        (sxu / suu, 0.0)
    } else {
        (fit.d.to_f64(), fit.dmin.to_f64())
    }
}

/// The candidate with the least error; `fallback` when no error is a number.
pub(super) fn least<T>(candidates: impl Iterator<Item = (f64, T)>, fallback: T) -> (f64, T) {
    candidates.fold((f64::INFINITY, fallback), |best, next| if next.0 < best.0 { next } else { best })
}
