use proptest::prelude::*;

use super::*;
use crate::engine::Penalties;

/// The distribution that a sampler should draw from, from the definition: in f64, everything sorted.
fn distribution(logits: &[f32], sampling: &Sampling, prompt: &[u32], generated: &[u32]) -> Vec<f64> {
    let Penalties { repetition, frequency, presence } = sampling.penalties;
    let mut logits: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    for &(id, bias) in &sampling.logit_bias {
        logits[id as usize] += f64::from(bias);
    }
    for (id, logit) in (0u32..).zip(&mut logits) {
        let count = generated.iter().filter(|&&other| other == id).count() as f64;
        if prompt.contains(&id) || count > 0.0 {
            let repetition = f64::from(repetition);
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        }
        *logit -= f64::from(frequency) * count + if count > 0.0 { f64::from(presence) } else { 0.0 };
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let weight = |i: usize| ((logits[i] - logits[order[0]]) / sampling.temperature).exp();
    let mut order: Vec<(usize, f64)> = order.iter().map(|&i| (i, weight(i))).collect();
    order.retain(|(_, weight)| *weight >= sampling.min_p);
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let total: f64 = order.iter().map(|(_, weight)| weight).sum();
    let mut kept = 0.0;
    let mut probabilities = vec![0.0; logits.len()];
    for (i, weight) in order {
        probabilities[i] = weight / total;
        kept += weight / total;
        if kept >= sampling.top_p {
            break;
        }
    }
    probabilities.iter().map(|p| p / kept).collect()
}

/// Multiples of a number that is no round one, so that hardly ever rounding decides what is left.
fn logits(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec((-60i8..60).prop_map(|x| f32::from(x) / 13.0), count)
}

fn sampling() -> impl Strategy<Value = Sampling> {
    let penalties =
        (0.7f32..1.6, 0.0f32..0.8, -0.5f32..0.8, prop::bool::ANY).prop_map(|(a, b, c, is_any)| {
            if is_any { Penalties { repetition: a, frequency: b, presence: c } } else { Penalties::NONE }
        });
    let cuts = (0.05f64..1.3, prop_oneof![Just(0), 1usize..40], prop_oneof![Just(0.0), 0.001f64..0.7]);
    let bias = prop::collection::hash_map(0u32..5, -3f32..3.0, 0..3);
    (0.3f64..2.0, cuts, penalties, bias, any::<u64>()).prop_map(
        |(temperature, (top_p, top_k, min_p), penalties, bias, seed)| Sampling {
            temperature,
            top_p: top_p.min(1.0),
            top_k,
            min_p,
            penalties,
            logit_bias: bias.into_iter().collect(),
            seed: Some(seed),
            stream: 0,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Pearson's statistic against the definition. With a fixed number of draws it has about as many degrees of
    /// freedom as tokens; eight standard deviations above that mean the wrong distribution, not bad luck.
    #[test]
    fn draws_from_the_distribution(logits in logits(5..200), sampling in sampling()) {
        let (prompt, generated) = ([0, 1, 1], [1, 2, 2, 2, 3]);
        let mut sampler = Sampler::new(sampling.clone(), &prompt);
        generated.iter().for_each(|&id| sampler.edits.note(id));
        let expected = distribution(&logits, &sampling, &prompt, &generated);
        let draws = 20_000;
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..draws {
            let mut row = logits.clone();
            sampler.edits.apply(&mut row, &[]);
            counts[sampler.choose(&row).unwrap() as usize] += 1.0;
            sampler.edits.undo(&mut row);
            prop_assert_eq!(&row, &logits);
        }
        let (mut statistic, mut cells, mut outside) = (0.0, 0.0, 0.0);
        for (count, p) in counts.iter().zip(expected) {
            let expected = p * draws as f64;
            outside += if p > 0.0 { 0.0 } else { *count };
            if expected >= 5.0 {
                statistic += (count - expected).powi(2) / expected;
                cells += 1.0;
            }
        }
        // At a boundary that rounding decides, either side is right.
        let lowest = sampler.candidates.iter().map(|c| c.weight).fold(1.0, f64::min);
        prop_assert!(outside <= 1.5 * lowest * draws as f64 && outside < 0.2 * draws as f64, "tokens outside the cut were drawn");
        if outside == 0.0 {
            prop_assert!(statistic <= cells + 8.0 * (2.0 * f64::max(cells, 1.0)).sqrt(), "{statistic} over {cells} cells");
        }
    }

    #[test]
    fn what_is_left_is_that_of_the_definition(logits in logits(1..500), mut sampling in sampling()) {
        sampling.penalties = Penalties::NONE;
        sampling.logit_bias.clear();
        sampling.top_p = sampling.top_p.min(0.99);
        let mut sampler = Sampler::new(sampling.clone(), &[]);
        sampler.choose(&logits).unwrap();
        if sampling.top_k == 1 {
            return Ok(());
        }
        let expected = distribution(&logits, &sampling, &[], &[]);
        let inside = expected.iter().filter(|&&p| p > 0.0).count();
        // At a boundary that rounding decides, either side is right.
        prop_assert!(inside.abs_diff(sampler.candidates.len()) <= 1);
        prop_assert!(!sampler.candidates.is_empty());
        let outside = sampler.candidates.iter().filter(|c| expected[c.id as usize] == 0.0).count();
        prop_assert!(outside <= 1);
    }
}

fn sample(sampler: &mut Sampler, logits: &[f32]) -> Result<u32, NotANumber> {
    sampler.sample(&mut logits.to_vec(), &[])
}

#[test]
fn seeds_and_streams_repeat_and_differ() {
    let logits = vec![0.0; 1000];
    let tokens = |seed, stream| -> Vec<u32> {
        let sampling = Sampling { temperature: 1.0, seed, stream, ..Sampling::GREEDY };
        let mut sampler = Sampler::new(sampling, &[]);
        (0..8).map(|_| sample(&mut sampler, &logits).unwrap()).collect()
    };
    assert_eq!(tokens(Some(7), 0), tokens(Some(7), 0));
    assert_ne!(tokens(Some(7), 0), tokens(Some(7), 1));
    assert_ne!(tokens(Some(7), 0), tokens(Some(8), 0));
    assert_ne!(tokens(None, 0), tokens(None, 0));
}

#[test]
fn greedy_takes_the_lowest_of_equals_and_what_is_not_banned() {
    let mut sampler = Sampler::new(Sampling::GREEDY, &[]);
    assert_eq!(sample(&mut sampler, &[1.0, 3.0, 3.0, 2.0]), Ok(1));
    let mut logits = [1.0, 3.0, 3.0, 2.0];
    assert_eq!(sampler.sample(&mut logits, &[1, 2, 9]), Ok(3));
    assert_eq!(logits, [1.0, 3.0, 3.0, 2.0]);
}

#[test]
fn what_was_chosen_counts_for_the_penalties() {
    let penalties = Penalties { repetition: 1.0, frequency: 1.0, presence: 0.5 };
    let mut sampler = Sampler::new(Sampling { penalties, ..Sampling::GREEDY }, &[0]);
    let logits = [5.0, 4.0, 0.0];
    let chosen: Vec<_> = (0..6).map(|_| sample(&mut sampler, &logits).unwrap()).collect();
    assert_eq!(chosen, [0, 1, 0, 0, 1, 0]);
}

#[test]
fn extreme_settings_still_sample() {
    for temperature in [1e-300, 1e-3, 1e300] {
        let sampling = Sampling { temperature, top_p: 0.0, seed: Some(1), ..Sampling::GREEDY };
        let mut sampler = Sampler::new(sampling, &[]);
        assert_eq!(sample(&mut sampler, &[-1e30, 5.0, f32::NEG_INFINITY, 4.0]), Ok(1));
    }
    let sampling = Sampling { temperature: 1e300, seed: Some(1), ..Sampling::GREEDY };
    let mut sampler = Sampler::new(sampling.clone(), &[]);
    let drawn: Vec<_> =
        (0..50).map(|_| sample(&mut sampler, &[9.0, f32::NEG_INFINITY, -9.0]).unwrap()).collect();
    assert!(drawn.contains(&0) && drawn.contains(&2) && !drawn.contains(&1));
    let mut sampler = Sampler::new(Sampling { temperature: 1.0, top_p: 0.0, ..Sampling::GREEDY }, &[]);
    assert_eq!(sample(&mut sampler, &[2.0; 7]), Ok(0));
}

#[test]
fn no_distribution_is_an_error() {
    for temperature in [0.0, 1.0] {
        let mut sampler = Sampler::new(Sampling { temperature, ..Sampling::GREEDY }, &[]);
        assert_eq!(sample(&mut sampler, &[0.0, f32::NAN]), Err(NotANumber));
        assert_eq!(sample(&mut sampler, &[0.0, f32::INFINITY]), Err(NotANumber));
        assert_eq!(sample(&mut sampler, &[f32::NEG_INFINITY; 2]), Err(NotANumber));
    }
}
