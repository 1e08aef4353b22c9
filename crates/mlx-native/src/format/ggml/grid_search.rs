//! The search for grid points: what makes IQ1, IQ2 and IQ3 blocks of values.
//!
//! A block stands for `x ≈ unit · (2 · scale + 1) · ±point`: several values share a point of a grid, a part of the block shares an integer scale, and the
//! block its unit. Under a scale s the best point is that of the least `s² · Σ w point² − 2 s · Σ w x point`; both sums are made once for all points, and
//! the few points that are best under some scale are found first, so that a scale costs next to nothing. Scales are found as in [`search`](super::search):
//! some around the one that maps the largest value to the grid's edge, each solved for its least squares, then the integers by the error that results from them.
//!
//! So coarse a grid leaves errors of a third of the values, and least squares alone make all of them smaller than they were. Models suffer from that: errors of large
//! values therefore count more, as in llama.cpp.

use half::f16;

use super::search::{Moments, Weighted, inverse, least};

/// Values of a block.
const VALUES: usize = 256;
/// Values that share a byte of signs.
const SIGNED: usize = 8;
/// Scales tried for a part, beside those that bring its largest value to one of the grid's levels: that value comes to the edge times the first factor,
/// and each next is so many times as large.
const SCALES: i32 = 16;
const FIRST: f32 = 0.75;
const RATIO: f32 = 1.075;

/// Where the signs of values come from.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Signs {
    /// From the points.
    OfPoints,
    /// Each value has its own.
    Free,
    /// Of eight values an even number is negative.
    Even,
}

/// The points that `N` values can take together.
pub(super) struct Points<const N: usize> {
    /// The first coordinates of all points, then the second ones, and so on.
    coordinates: [Vec<f32>; N],
    /// The magnitudes of coordinates, ascending.
    levels: Vec<f32>,
    signs: Signs,
    /// Equal runs of points, one of which a part's points all come from.
    runs: usize,
}

/// A block's best points and scales.
pub(super) struct Fit<const PARTS: usize> {
    /// The unit as it is stored.
    pub d: f16,
    pub scales: [u8; PARTS],
    /// Which run of points each part has.
    pub runs: [usize; PARTS],
    /// The point of each `N` values, counted from the start of its run.
    pub points: Vec<usize>,
    /// Bit i of byte j set: value 8j + i is negative.
    pub signs: [u8; VALUES / SIGNED],
}

impl<const N: usize> Points<N> {
    pub fn new(points: impl Iterator<Item = [f32; N]> + Clone, signs: Signs, runs: usize) -> Self {
        let coordinates = std::array::from_fn(|i| points.clone().map(|point| point[i]).collect());
        let mut levels: Vec<f32> = points.flatten().map(f32::abs).collect();
        levels.sort_by(f32::total_cmp);
        levels.dedup();
        Points { coordinates, levels, signs, runs }
    }

    /// The magnitudes of a grid.
    pub fn of_grid(grid: &[[i8; N]], signs: Signs) -> Self {
        Points::new(grid.iter().map(|point| point.map(f32::from)), signs, 1)
    }

    /// The values without the signs that are stored apart, and those.
    fn oriented(&self, data: Weighted<'_>) -> ([f32; VALUES], [u8; VALUES / SIGNED]) {
        let mut values = [0.0; VALUES];
        values.copy_from_slice(data.x);
        let mut signs = [0u8; VALUES / SIGNED];
        if self.signs == Signs::OfPoints {
            return (values, signs);
        }
        let weights = data.w.as_chunks::<SIGNED>().0;
        for ((values, weights), signs) in values.as_chunks_mut::<SIGNED>().0.iter_mut().zip(weights).zip(&mut signs) {
            for (i, value) in values.iter_mut().enumerate() {
                *signs |= u8::from(*value < 0.0) << i;
                *value = value.abs();
            }
            if self.signs == Signs::Even && signs.count_ones() % 2 == 1 {
                // The value that matters least gets the wrong one.
                let (_, i) = least((0..SIGNED).map(|i| ((weights[i] * values[i] * values[i]) as f64, i)), 0);
                *signs ^= 1 << i;
                values[i] = -values[i];
            }
        }
        (values, signs)
    }

    /// The block that is nearest to 256 values, whose unit is `d · unit_of_d` and whose integer scales are `0..=largest`.
    pub fn fit<const PARTS: usize>(&self, data: Weighted<'_>, unit_of_d: f32, largest: u8) -> Fit<PARTS> {
        let weights = emphasized(data);
        let data = Weighted { w: &weights, ..data };
        let (values, signs) = self.oriented(data);
        let parts: [Part; PARTS] = std::array::from_fn(|j| {
            let values = &values[VALUES / PARTS * j..][..VALUES / PARTS];
            let weights = data.part(j, PARTS).w;
            let extreme = values.iter().fold(0.0, |extreme: f32, value| extreme.max(value.abs()));
            let groups = values.chunks(N).zip(weights.chunks(N)).map(|(x, w)| self.corners(x, w, extreme));
            Part { groups: groups.collect(), runs: self.runs, extreme }
        });
        let ideal = parts.each_ref().map(|part| part.fit_scale(&self.levels));
        let widest = ideal.into_iter().fold(0.0, f32::max);
        let unit = |d: f16| d.to_f32() * unit_of_d;
        // The integers nearest to the ideal scales, or their neighbours, whichever leave the least error.
        let choose = |d: f16| {
            let mut total = 0.0;
            let scales = std::array::from_fn(|j| {
                let middle = ((ideal[j] * inverse(unit(d)) - 1.0) / 2.0).round().clamp(0.0, largest as f32) as u8;
                let candidates = middle.saturating_sub(1)..=(middle + 1).min(largest);
                let error = |scale: u8| parts[j].moments(unit(d) * odd(scale)).0.error(unit(d) * odd(scale));
                let (error, scale) = least(candidates.map(|scale| (error(scale), scale)), 0);
                total += error;
                scale
            });
            (total, d, scales)
        };
        let mut best = choose(f16::from_f32(widest / odd(largest) / unit_of_d));
        for _ in 0..2 {
            let (_, d, scales): (_, _, [u8; PARTS]) = best;
            let mut sums = Moments::default();
            for (part, scale) in parts.iter().zip(scales) {
                let (moments, _) = part.moments(unit(d) * odd(scale));
                sums.xq += moments.xq * odd(scale) as f64;
                sums.qq += moments.qq * (odd(scale) as f64).powi(2);
            }
            let next = choose(f16::from_f64(sums.scale() / unit_of_d as f64));
            if next.0 >= best.0 {
                break;
            }
            best = next;
        }
        let (_, d, scales) = best;
        let runs = std::array::from_fn(|j| parts[j].moments(unit(d) * odd(scales[j])).1);
        let points = |j: usize| {
            let scale = unit(d) * odd(scales[j]);
            parts[j].groups.iter().map(move |group| nearest(scale, &group[runs[j]]).point)
        };
        Fit { d, scales, runs, points: (0..PARTS).flat_map(points).collect(), signs }
    }

    /// For each run, the points that are nearest to values under some scale.
    fn corners(&self, values: &[f32], weights: &[f32], extreme: f32) -> Vec<Vec<Corner>> {
        let len = self.coordinates[0].len();
        let (mut xq, mut qq) = (vec![0.0; len], vec![0.0; len]);
        for ((coordinates, x), w) in self.coordinates.iter().zip(values).zip(weights) {
            for ((xq, qq), q) in xq.iter_mut().zip(&mut qq).zip(coordinates) {
                *xq += w * x * q;
                *qq += w * q * q;
            }
        }
        // From the scale that brings the largest value far beyond the edge to one that brings it well below the lowest level.
        let (lowest, edge) = (self.levels[0].max(f32::MIN_POSITIVE), self.levels[self.levels.len() - 1]);
        let scales = [extreme / (4.0 * edge), 2.0 * extreme / lowest];
        let of_run = |(xq, qq): (&[f32], &[f32])| Sums { xq, qq }.corners(scales);
        xq.chunks(len / self.runs).zip(qq.chunks(len / self.runs)).map(of_run).collect()
    }
}

/// The weights of a block's values times what a typical value and the value itself have together.
fn emphasized(data: Weighted<'_>) -> [f32; VALUES] {
    let mean_square = data.x.iter().map(|x| x * x).sum::<f32>() / VALUES as f32;
    std::array::from_fn(|i| data.w[i] * (mean_square + data.x[i] * data.x[i]).sqrt())
}

/// What an integer scale stands for, in units.
fn odd(scale: u8) -> f32 {
    (2 * scale + 1) as f32
}

/// A point and its moments.
#[derive(Clone, Copy)]
struct Corner {
    point: usize,
    moments: Moments,
}

/// Σ w x q and Σ w q² of values that share a point, for all points q.
struct Sums<'a> {
    xq: &'a [f32],
    qq: &'a [f32],
}

impl Sums<'_> {
    /// The point of the least error under a scale.
    fn nearest(&self, scale: f32) -> Corner {
        let error = |xq: f32, qq: f32| scale * qq - 2.0 * xq;
        // Minimums by lane first, which the compiler makes vectors of.
        let mut lanes = [f32::INFINITY; 8];
        for (xq, qq) in self.xq.as_chunks::<8>().0.iter().zip(self.qq.as_chunks::<8>().0) {
            for lane in 0..8 {
                lanes[lane] = lanes[lane].min(error(xq[lane], qq[lane]));
            }
        }
        let lowest = lanes.into_iter().fold(f32::INFINITY, f32::min);
        let point = self.xq.iter().zip(self.qq).position(|(xq, qq)| error(*xq, *qq) == lowest).unwrap_or(0);
        Corner { point, moments: Moments { xq: self.xq[point] as f64, qq: self.qq[point] as f64 } }
    }

    /// The points that are nearest under scales from one to another.
    fn corners(&self, scales: [f32; 2]) -> Vec<Corner> {
        let [first, last] = scales.map(|scale| self.nearest(scale));
        let mut corners = vec![first];
        // Errors are straight lines over the scale: between two points that are nearest somewhere, where their lines meet, is one below both, or none.
        let mut open = vec![last];
        while let Some(next) = open.pop() {
            let here = corners[corners.len() - 1];
            let (rise, run) = (next.moments.xq - here.moments.xq, next.moments.qq - here.moments.qq);
            let between = (open.len() < 64 && run < 0.0).then(|| self.nearest((2.0 * rise / run) as f32));
            let known = [here.point, next.point];
            match between {
                Some(corner) if !known.contains(&corner.point) && is_below(corner, here, next) => {
                    open.extend([next, corner]);
                }
                _ => corners.push(next),
            }
        }
        corners
    }
}

/// Whether a point's error is less than that of two others where theirs are equal; a line between them bounds the rounding that would find them again and again.
fn is_below(corner: Corner, first: Corner, last: Corner) -> bool {
    let (run, rise) = (last.moments.qq - first.moments.qq, last.moments.xq - first.moments.xq);
    let on_line = first.moments.xq + rise * (corner.moments.qq - first.moments.qq) / run;
    corner.moments.xq > on_line + 1e-6 * on_line.abs()
}

/// The nearest of some points under a scale; there is one at least.
fn nearest(scale: f32, corners: &[Corner]) -> Corner {
    let (_, corner) = least(corners.iter().map(|corner| (corner.moments.error(scale), *corner)), corners[0]);
    corner
}

/// Values that share a scale.
struct Part {
    /// For each group of values that share a point, and for each run, the points that may be theirs.
    groups: Vec<Vec<Vec<Corner>>>,
    runs: usize,
    /// The largest magnitude.
    extreme: f32,
}

impl Part {
    /// The moments of the nearest points under a scale, and which run they are from.
    fn moments(&self, scale: f32) -> (Moments, usize) {
        let of_run = |run: usize| {
            self.groups.iter().fold(Moments::default(), |sum, group| {
                let moments = nearest(scale, &group[run]).moments;
                Moments { xq: sum.xq + moments.xq, qq: sum.qq + moments.qq }
            })
        };
        let candidates = (0..self.runs).map(|run| (of_run(run), run));
        candidates.min_by(|a, b| a.0.error(scale).total_cmp(&b.0.error(scale))).unwrap_or_default()
    }

    /// The scale of the least error.
    fn fit_scale(&self, levels: &[f32]) -> f32 {
        let edge = levels.last().map_or(1.0, |edge| edge * FIRST);
        let places = (0..SCALES).map(|step| edge * RATIO.powi(step)).chain(levels.iter().copied());
        let mut best = Moments::default();
        for place in places {
            let (moments, _) = self.moments(self.extreme / place);
            if moments.gain() > best.gain() {
                best = moments;
            }
        }
        // Choosing points anew under the least-squares scale and solving again can only lower the error.
        for _ in 0..3 {
            let (moments, _) = self.moments(best.scale() as f32);
            if moments.gain() <= best.gain() {
                break;
            }
            best = moments;
        }
        best.scale() as f32
    }
}
