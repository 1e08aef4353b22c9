//! The sampler against hand-computed cases and against the distribution it should draw from.

use std::time::Instant;

use mlx_native_model::sampler::{Sampler, SamplerConfig, SamplerError};

/// Every stage off: draws by the softmax of the logits.
fn plain() -> SamplerConfig {
    SamplerConfig { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Default::default() }
}

fn logits_of(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

/// How often each token is drawn from the same logits.
fn draw(config: SamplerConfig, logits: &[f32], draws: usize) -> Vec<usize> {
    let mut sampler = Sampler::new(config).unwrap();
    let mut counts = vec![0; logits.len()];
    for _ in 0..draws {
        counts[sampler.sample(&mut logits.to_vec()).unwrap() as usize] += 1;
    }
    counts
}

/// Pearson's chi-square of the counts; tokens of probability 0 must not occur.
fn chi_square(counts: &[usize], probabilities: &[f64]) -> f64 {
    let draws: usize = counts.iter().sum();
    let term = |(&count, &p): (&usize, &f64)| {
        let expected = p * draws as f64;
        if p == 0.0 {
            assert_eq!(count, 0, "{counts:?}");
            return 0.0;
        }
        (count as f64 - expected).powi(2) / expected
    };
    counts.iter().zip(probabilities).map(term).sum()
}

/// Checks 10,000 draws against probabilities; 27.9 is exceeded by chance once in 1,000 times at 9 degrees of freedom, and fewer
/// tokens have fewer degrees.
fn check(config: SamplerConfig, logits: &[f32], probabilities: &[f64]) {
    let statistic = chi_square(&draw(config.clone(), logits, 10_000), probabilities);
    assert!(statistic < 27.9, "chi-square {statistic} for {config:?}");
}

const P: [f32; 6] = [0.1, 0.3, 0.05, 0.4, 0.05, 0.1];

#[test]
fn draws_follow_the_distribution() {
    for seed in 0..3 {
        check(SamplerConfig { seed, ..plain() }, &logits_of(&P), &P.map(f64::from));
    }
    // The same through the path that sorts.
    check(SamplerConfig { top_k: 5, ..plain() }, &logits_of(&P), &[0.1, 0.3, 0.05, 0.4, 0.0, 0.1].map(|p| p / 0.95));
}

#[test]
fn temperature_is_a_power() {
    let squares = P.map(|p| f64::from(p).powi(2));
    let total: f64 = squares.iter().sum();
    check(SamplerConfig { temperature: 0.5, ..plain() }, &logits_of(&P), &squares.map(|p| p / total));
    let roots = P.map(|p| f64::from(p).sqrt());
    let total: f64 = roots.iter().sum();
    check(SamplerConfig { temperature: 2.0, ..plain() }, &logits_of(&P), &roots.map(|p| p / total));
}

#[test]
fn each_stage_cuts_what_it_should() {
    let logits = logits_of(&P);
    // The two best.
    check(SamplerConfig { top_k: 2, ..plain() }, &logits, &[0.0, 3.0 / 7.0, 0.0, 4.0 / 7.0, 0.0, 0.0]);
    // 0.4 + 0.3 fall short of 0.75; of the two 0.1 the lower id joins.
    check(SamplerConfig { top_p: 0.75, ..plain() }, &logits, &[0.125, 0.375, 0.0, 0.5, 0.0, 0.0]);
    // At least half of 0.4.
    check(SamplerConfig { min_p: 0.5, ..plain() }, &logits, &[0.0, 3.0 / 7.0, 0.0, 4.0 / 7.0, 0.0, 0.0]);
    // Top-p sees the probabilities that top-k leaves: of 0.4, 0.3, 0.1 the first two are 0.7 / 0.8 = 0.875.
    check(SamplerConfig { top_k: 3, top_p: 0.87, ..plain() }, &logits, &[0.0, 3.0 / 7.0, 0.0, 4.0 / 7.0, 0.0, 0.0]);
    check(SamplerConfig { top_k: 3, top_p: 0.88, ..plain() }, &logits, &[0.125, 0.375, 0.0, 0.5, 0.0, 0.0]);
    // Top-p comes before min-p: 0.71 needs three tokens, of which min-p leaves two.
    check(SamplerConfig { top_p: 0.71, min_p: 0.5, ..plain() }, &logits, &[0.0, 3.0 / 7.0, 0.0, 4.0 / 7.0, 0.0, 0.0]);
    // One token is left at least.
    check(SamplerConfig { top_p: 1e-6, ..plain() }, &logits, &[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    check(SamplerConfig { min_p: 1.0, ..plain() }, &logits, &[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    check(SamplerConfig { top_k: 1, ..plain() }, &logits, &[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    // The cut does not depend on the temperature.
    check(SamplerConfig { temperature: 100.0, top_p: 0.7, ..plain() }, &logits, &[0.0, 0.499, 0.0, 0.501, 0.0, 0.0]);
}

#[test]
fn a_flat_distribution_takes_top_p_to_many_tokens() {
    // 3,000 of 4,000 equal tokens make 0.75: more than the first selection holds.
    let counts = draw(SamplerConfig { top_p: 0.75, ..plain() }, &vec![1.0; 4000], 3000);
    assert!(counts[3000..].iter().all(|&c| c == 0));
    // As many draws as tokens leave one in e out.
    assert!(counts[..3000].iter().filter(|&&c| c > 0).count() > 1700);
}

#[test]
fn greedy_takes_the_lowest_id_of_the_best() {
    let mut sampler = Sampler::new(SamplerConfig::greedy()).unwrap();
    assert_eq!(sampler.sample(&mut [1.0, 3.0, f32::NEG_INFINITY, 3.0]), Ok(1));
    assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY, f32::MIN]), Ok(1));
    assert_eq!(sampler.sample(&mut [-0.0, 0.0]), Ok(0));
    for best in [[0, 98], [17, 33], [96, 97], [40, 96]] {
        let mut logits = vec![-1.0; 99];
        for id in best {
            logits[id] = 2.0;
        }
        assert_eq!(sampler.sample(&mut logits), Ok(best[0] as u32));
    }
}

#[test]
fn the_penalty_looks_back_as_far_as_its_window() {
    let config = SamplerConfig { repetition_penalty: 2.0, repetition_window: 2, ..SamplerConfig::greedy() };
    let mut sampler = Sampler::new(config).unwrap();
    let row = [4.0, 3.0, 2.5, -1.0];
    // 4; then 4 / 2 < 3; then 3 / 2 < 2.5; then 0 is out of the window again.
    let ids: Vec<u32> = (0..4).map(|_| sampler.sample(&mut row.to_vec()).unwrap()).collect();
    assert_eq!(ids, [0, 1, 2, 0]);

    sampler.accept(3);
    sampler.accept(3);
    let mut logits = row;
    assert_eq!(sampler.sample(&mut logits), Ok(0));
    // Negative logits are multiplied, and a token that was there twice is penalized once.
    assert_eq!(logits, [4.0, 3.0, 2.5, -2.0]);
    sampler.accept(u32::MAX);
    assert_eq!(sampler.sample(&mut row.to_vec()), Ok(1));
}

#[test]
fn the_same_seed_gives_the_same_tokens_on_every_platform() {
    let logits = logits_of(&[0.25; 4]);
    let ids = |seed| {
        let mut sampler = Sampler::new(SamplerConfig { seed, ..plain() }).unwrap();
        (0..24).map(|_| sampler.sample(&mut logits.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(ids(7), ids(7));
    assert_ne!(ids(7), ids(8));
    // With four equal tokens an id is the two highest bits of a random number: of splitmix64's first ones from 0, e220a8397b1dcdaf, 6e789e6aa1b965f4,
    // 06c45d188009454f.
    assert_eq!(ids(0)[..3], [3, 1, 0]);
}

#[test]
fn failed_computations_and_empty_vocabularies_are_errors() {
    for config in [plain(), SamplerConfig::greedy(), SamplerConfig::default()] {
        let mut sampler = Sampler::new(config).unwrap();
        assert!(matches!(sampler.sample(&mut [0.0, f32::NAN]), Err(SamplerError::Logit { id: 1, .. })));
        assert!(matches!(sampler.sample(&mut [0.0, 1.0, f32::INFINITY]), Err(SamplerError::Logit { id: 2, .. })));
        for broken in [3, 50, 98] {
            let mut logits = vec![0.0; 99];
            logits[broken] = f32::NAN;
            assert!(matches!(sampler.sample(&mut logits), Err(SamplerError::Logit { id, .. }) if id == broken));
        }
        assert_eq!(sampler.sample(&mut []), Err(SamplerError::NoToken { n_tokens: 0 }));
        assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY; 3]), Err(SamplerError::NoToken { n_tokens: 3 }));
        // Tokens that are ruled out are never drawn.
        let mut ruled_out = vec![f32::NEG_INFINITY; 2000];
        ruled_out[1234] = -5.0;
        assert_eq!(sampler.sample(&mut ruled_out), Ok(1234));
    }
}

#[test]
fn settings_without_a_meaning_are_errors() {
    let configs = [
        SamplerConfig { temperature: -0.1, ..plain() },
        SamplerConfig { temperature: f32::NAN, ..plain() },
        SamplerConfig { temperature: f32::INFINITY, ..plain() },
        SamplerConfig { top_p: 0.0, ..plain() },
        SamplerConfig { top_p: 1.5, ..plain() },
        SamplerConfig { min_p: -0.5, ..plain() },
        SamplerConfig { min_p: f32::NAN, ..plain() },
        SamplerConfig { repetition_penalty: 0.0, ..plain() },
    ];
    for config in configs {
        assert!(matches!(Sampler::new(config.clone()), Err(SamplerError::Config { .. })), "{config:?}");
    }
    let error = Sampler::new(SamplerConfig { top_p: 2.0, ..plain() }).unwrap_err();
    assert_eq!(error.to_string(), "sampler: top_p: expected more than 0, at most 1, found 2");
}

/// Not a bound, a report: how long one token of a large vocabulary takes.
#[test]
fn a_large_vocabulary_is_quick() {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    // Bell-shaped around 0 with a few peaks, as logits are.
    let mut logits: Vec<f32> = (0..262_144).map(|_| (0..6).map(|_| uniform()).sum::<f32>() * 2.0 - 6.0).collect();
    for peak in 0..20 {
        logits[peak * 13_000] = 12.0 + uniform() * 4.0;
    }
    let configs = [
        ("greedy", SamplerConfig::greedy()),
        ("default", SamplerConfig::default()),
        ("top-p alone", SamplerConfig { top_p: 0.9, ..plain() }),
        ("min-p alone", SamplerConfig { min_p: 0.05, ..plain() }),
        ("no limits", plain()),
    ];
    for (name, config) in configs {
        let mut sampler = Sampler::new(config).unwrap();
        let start = Instant::now();
        for _ in 0..8 {
            sampler.sample(&mut logits).unwrap();
        }
        eprintln!("{name}: {:?} per token of 262144", start.elapsed() / 8);
    }
}
