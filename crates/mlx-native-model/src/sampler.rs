//! From logits to the next token.
//!
//! The stages, in this order:
//!
//! 1. **Repetition penalty**: the logit of each token among the last `repetition_window` ones is divided by the penalty if it is
//!    positive and multiplied by it if not.
//! 2. **Greedy choice**: at temperature 0 the token with the highest logit is the result.
//! 3. **Top-k**: the `top_k` tokens with the highest logits stay.
//! 4. **Top-p**: of these the most probable ones stay, as few as reach the probability `top_p` together.
//! 5. **Min-p**: of these the ones stay that are at least `min_p` times as probable as the most probable one.
//! 6. **Temperature**: logits are divided by it and become probabilities, by which one token is drawn.
//!
//! Stages 3 to 5 see the probabilities at temperature 1, as llama.cpp's default chain does, so what is cut off does not depend on
//! the temperature. Of equal logits the lower id goes first everywhere. Stages and random numbers ([`SampleParams::uniform`]) are those of
//! [`CommandEncoder::sample`](mlx_native::CommandEncoder::sample): where there is no penalty, the device can choose the same tokens.

use std::cmp::Ordering;
use std::collections::VecDeque;

use mlx_native::SampleParams;

/// How tokens are chosen; see the [module](self) for the order of the stages.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerConfig {
    /// 0 chooses the most probable token always, 1 draws by the model's own probabilities.
    pub temperature: f32,
    /// Tokens to choose from at most; 0 sets no limit.
    pub top_k: usize,
    /// Probability that the tokens to choose from reach together; 1 sets no limit.
    pub top_p: f32,
    /// Least probability of a token, as a share of the most probable one's; 0 sets no limit.
    pub min_p: f32,
    /// What makes tokens less probable that have been there before; 1 has no effect, more makes them less probable.
    pub repetition_penalty: f32,
    /// How many of the last tokens the penalty looks at.
    pub repetition_window: usize,
    /// Where the random numbers start.
    pub seed: u64,
}

impl Default for SamplerConfig {
    /// Temperature 0.8 over the 40 most probable tokens, cut at top-p 0.95 and min-p 0.05, without a penalty: llama.cpp's defaults.
    fn default() -> Self {
        SamplerConfig {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repetition_penalty: 1.0,
            repetition_window: 64,
            seed: 0,
        }
    }
}

impl SamplerConfig {
    /// The most probable token always.
    pub fn greedy() -> Self {
        SamplerConfig { temperature: 0.0, ..Default::default() }
    }
}

/// Why no token could be chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// A setting has no meaning.
    #[error("sampler: {name}: expected {expected}, found {found}")]
    Config {
        /// The field of [`SamplerConfig`].
        name: &'static str,
        /// The values that have a meaning.
        expected: &'static str,
        /// The setting.
        found: f32,
    },
    /// A logit is not a number, or positively infinite: the model's computation has failed.
    #[error("sampler: the logit of token {id} is {value}")]
    Logit {
        /// The token.
        id: usize,
        /// The logit.
        value: f32,
    },
    /// There are no logits, or all of them are negatively infinite.
    #[error("sampler: none of {n_tokens} tokens can be chosen")]
    NoToken {
        /// The number of logits.
        n_tokens: usize,
    },
}

/// Tokens that are put in order first: mostly enough of them.
const FRONT: usize = 256;

/// A token that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    logit: f32,
    id: u32,
}

impl Candidate {
    /// The highest logit first, then the lowest id. Logits are never NaN here.
    fn order(&self, other: &Self) -> Ordering {
        other.logit.partial_cmp(&self.logit).unwrap_or(Ordering::Equal).then(self.id.cmp(&other.id))
    }
}

/// Chooses tokens. Holds the number of draws and the tokens that a repetition penalty looks back at.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplerConfig,
    /// Draws so far.
    step: u64,
    /// At most `repetition_window` tokens, the latest at the back.
    history: VecDeque<u32>,
    /// Working memory.
    candidates: Vec<Candidate>,
    penalized: Vec<f32>,
}

impl Sampler {
    /// A sampler at the start of a sequence.
    ///
    /// # Errors
    /// [`SamplerError::Config`], naming the setting.
    pub fn new(config: SamplerConfig) -> Result<Self, SamplerError> {
        let check = |name, found: f32, expected, valid: bool| {
            if valid { Ok(()) } else { Err(SamplerError::Config { name, expected, found }) }
        };
        let SamplerConfig { temperature, top_p, min_p, repetition_penalty, .. } = config;
        check("temperature", temperature, "a finite number from 0", temperature.is_finite() && temperature >= 0.0)?;
        check("top_p", top_p, "more than 0, at most 1", top_p > 0.0 && top_p <= 1.0)?;
        check("min_p", min_p, "from 0 to 1", (0.0..=1.0).contains(&min_p))?;
        let penalty_is_valid = repetition_penalty.is_finite() && repetition_penalty > 0.0;
        check("repetition_penalty", repetition_penalty, "a finite number above 0", penalty_is_valid)?;
        Ok(Sampler { config, step: 0, history: VecDeque::new(), candidates: Vec::new(), penalized: Vec::new() })
    }

    /// The settings.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// What a device needs to choose the token after `ahead` further ones, where the sampler does not [look back](Self::looks_back).
    pub(crate) fn params(&self, ahead: u64) -> SampleParams {
        let SamplerConfig { temperature, top_k, top_p, min_p, seed, .. } = self.config;
        SampleParams { temperature, top_k, top_p, min_p, repetition_penalty: 1.0, seed, step: self.step + ahead }
    }

    /// Counts a token that a device has chosen.
    pub(crate) fn count_draw(&mut self) {
        self.step += 1;
    }

    /// Whether the choice depends on the tokens before.
    pub(crate) fn looks_back(&self) -> bool {
        self.config.repetition_penalty != 1.0 && self.config.repetition_window > 0
    }

    /// Tells the repetition penalty of a token that was not chosen here, such as one of the prompt's.
    pub fn accept(&mut self, id: u32) {
        if !self.looks_back() {
            return;
        }
        while self.history.len() >= self.config.repetition_window {
            self.history.pop_front();
        }
        self.history.push_back(id);
    }

    /// Chooses a token by `logits`, one for each token of the vocabulary, and remembers it as [`Self::accept`] does. The repetition
    /// penalty changes `logits` in place.
    ///
    /// # Errors
    /// [`SamplerError::Logit`] and [`SamplerError::NoToken`]; the sampler is then unchanged.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<u32, SamplerError> {
        self.penalize(logits);
        self.choose(logits)
    }

    /// [`sample`](Self::sample) that leaves the logits as they are.
    pub(crate) fn sample_from(&mut self, logits: &[f32]) -> Result<u32, SamplerError> {
        if self.history.is_empty() {
            return self.choose(logits);
        }
        let mut penalized = std::mem::take(&mut self.penalized);
        penalized.clear();
        penalized.extend_from_slice(logits);
        let id = self.sample(&mut penalized);
        self.penalized = penalized;
        id
    }

    /// Chooses by logits that are as the penalty leaves them.
    fn choose(&mut self, logits: &[f32]) -> Result<u32, SamplerError> {
        let best = best(logits)?;
        let id = if self.config.temperature == 0.0 { best.id } else { self.draw(logits, best.logit) };
        self.count_draw();
        self.accept(id);
        Ok(id)
    }

    /// Applies the repetition penalty, once to each token.
    fn penalize(&self, logits: &mut [f32]) {
        let penalty = self.config.repetition_penalty;
        let mut seen: Vec<u32> = self.history.iter().copied().collect();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    /// Draws a token; `max` is the highest logit and finite.
    fn draw(&mut self, logits: &[f32], max: f32) -> u32 {
        let SamplerConfig { temperature, top_k, top_p, min_p, .. } = self.config;
        let uniform = f64::from(self.params(0).uniform());
        let weight = |logit: f32| weight(logit - max, temperature);
        if (1..logits.len()).contains(&top_k) || top_p < 1.0 || min_p > 0.0 {
            self.cut(logits, max);
            let total: f64 = self.candidates.iter().map(|c| weight(c.logit)).sum();
            return self.reaching(uniform * total, weight).unwrap_or_else(|last| last);
        }
        let total: f64 = logits.iter().map(|&logit| weight(logit)).sum();
        let mut k = FRONT.min(logits.len());
        loop {
            select(logits, k, f32::NEG_INFINITY, &mut self.candidates);
            match self.reaching(uniform * total, weight) {
                Err(_) if k < logits.len() => k = k.saturating_mul(8).min(logits.len()),
                Ok(id) | Err(id) => return id,
            }
        }
    }

    /// The first of the ordered candidates at which the sum of their weights exceeds `target`, or as an error the last one that has a weight.
    fn reaching(&self, target: f64, weight: impl Fn(f32) -> f64) -> Result<u32, u32> {
        let (mut sum, mut last) = (0.0, 0);
        for candidate in &self.candidates {
            let weight = weight(candidate.logit);
            sum += weight;
            if sum > target {
                return Ok(candidate.id);
            }
            if weight > 0.0 {
                last = candidate.id;
            }
        }
        Err(last)
    }

    /// Fills `candidates` with the tokens that top-k, top-p and min-p leave, in order.
    fn cut(&mut self, logits: &[f32], max: f32) {
        let SamplerConfig { top_k, top_p, min_p, .. } = self.config;
        let candidates = &mut self.candidates;
        let floor = if min_p > 0.0 { max + min_p.ln() } else { f32::NEG_INFINITY };
        let limits_k = (1..logits.len()).contains(&top_k);
        let limits_p = top_p < 1.0;
        let sum = |candidates: &[Candidate]| candidates.iter().map(|c| weight(c.logit - max, 1.0)).sum::<f64>();

        match (limits_k, limits_p) {
            (_, false) => select(logits, if limits_k { top_k } else { logits.len() }, floor, candidates),
            (true, true) => {
                select(logits, top_k, f32::NEG_INFINITY, candidates);
                let goal = f64::from(top_p) * sum(candidates);
                keep_probable(candidates, goal, max);
            }
            (false, true) => {
                let total: f64 = logits.iter().map(|&logit| weight(logit - max, 1.0)).sum();
                // Few tokens mostly suffice: ever more are put in order until they do.
                let mut k = FRONT.min(logits.len());
                select(logits, k, f32::NEG_INFINITY, candidates);
                while !keep_probable(candidates, f64::from(top_p) * total, max) && k < logits.len() {
                    k = k.saturating_mul(8).min(logits.len());
                    select(logits, k, f32::NEG_INFINITY, candidates);
                }
            }
        }
        candidates.retain(|c| c.logit >= floor);
    }
}

/// A token's probability as a share of the most probable one's, from the distance of its logit to that one's.
fn weight(distance: f32, temperature: f32) -> f64 {
    (f64::from(distance) / f64::from(temperature)).exp()
}

/// Keeps as few of the ordered candidates as weigh `goal` together. False, and all are kept, if they do not weigh that much.
fn keep_probable(candidates: &mut Vec<Candidate>, goal: f64, max: f32) -> bool {
    let mut sum = 0.0;
    let last = candidates.iter().position(|c| {
        sum += weight(c.logit - max, 1.0);
        sum >= goal
    });
    if let Some(last) = last {
        candidates.truncate(last + 1);
    }
    last.is_some()
}

/// The token with the highest logit, the lowest id of equals.
fn best(logits: &[f32]) -> Result<Candidate, SamplerError> {
    // Lanes that do not depend on each other become vector instructions.
    let mut highest = [f32::NEG_INFINITY; 16];
    let mut broken = [false; 16];
    let (blocks, rest) = logits.as_chunks::<16>();
    for block in blocks {
        for lane in 0..16 {
            highest[lane] = if block[lane] > highest[lane] { block[lane] } else { highest[lane] };
            broken[lane] |= block[lane].is_nan();
        }
    }
    let highest = highest.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    if highest == f32::INFINITY || broken.contains(&true) || rest.iter().any(|logit| logit.is_nan()) {
        let is_broken = |&(_, &logit): &(usize, &f32)| logit.is_nan() || logit == f32::INFINITY;
        if let Some((id, &value)) = logits.iter().enumerate().find(is_broken) {
            return Err(SamplerError::Logit { id, value });
        }
    }
    match logits.iter().position(|&logit| logit == highest) {
        Some(id) if highest > f32::NEG_INFINITY => Ok(Candidate { logit: highest, id: id as u32 }),
        _ => Err(SamplerError::NoToken { n_tokens: logits.len() }),
    }
}

/// Fills `out` with the `k` highest logits that are at least `floor`, in order.
///
/// Candidates gather in a buffer; when it is full, all but the best `k` go, and from then on only logits above the worst of those
/// get in. That is one pass over the logits with few comparisons beyond the first.
fn select(logits: &[f32], k: usize, floor: f32, out: &mut Vec<Candidate>) {
    out.clear();
    let room = k.saturating_mul(2).max(1024);
    // Negatively infinite logits stand for tokens that must not be chosen.
    let mut least = floor.max(f32::MIN);
    let mut inclusive = true;
    for (&logit, id) in logits.iter().zip(0..) {
        // Later ids lose against equal logits, so once `k` are there only higher ones matter.
        if logit > least || (inclusive && logit == least) {
            out.push(Candidate { logit, id });
            if out.len() >= room && out.len() > k {
                out.select_nth_unstable_by(k - 1, Candidate::order);
                out.truncate(k);
                least = out[k - 1].logit;
                inclusive = false;
            }
        }
    }
    if out.len() > k {
        out.select_nth_unstable_by(k - 1, Candidate::order);
        out.truncate(k);
    }
    out.sort_unstable_by(Candidate::order);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The random number `step`, with 24 bits.
    fn random(step: u64) -> u64 {
        (f64::from(SampleParams { step, ..Default::default() }.uniform()) * f64::from(1 << 24)) as u64
    }

    #[test]
    fn selection_equals_sorting() {
        let mut logits: Vec<f32> = (0..5000).map(|i| (random(i) % 700) as f32).collect();
        logits[17] = f32::NEG_INFINITY;
        let mut sorted: Vec<Candidate> = logits.iter().zip(0..).map(|(&logit, id)| Candidate { logit, id }).collect();
        sorted.sort_by(Candidate::order);
        let mut out = Vec::new();
        for k in [1, 2, 40, 511, 512, 513, 2000, 4999, 5000] {
            select(&logits, k, f32::NEG_INFINITY, &mut out);
            assert_eq!(out, sorted[..k.min(4999)], "k = {k}");
            select(&logits, k, 690.0, &mut out);
            let above: Vec<_> = sorted.iter().copied().filter(|c| c.logit >= 690.0).take(k).collect();
            assert_eq!(out, above, "k = {k}");
        }
    }
}
