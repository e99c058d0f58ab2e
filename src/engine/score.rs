use super::weights::{RUN, Weights, peaks};
use super::{NotANumber, Score};

/// The log-probability of `token` under `logits` (one a token id) and the `top` likeliest beside it.
///
/// # Errors
/// [`NotANumber`] if the logits define no distribution.
pub fn score(logits: &[f32], token: u32, top: usize) -> Result<Score, NotANumber> {
    let mut runs = Vec::new();
    let max = peaks(logits, &mut runs)?;
    let normaliser = f64::from(max) + Weights::new(max, 1.0).total(logits).ln();
    let logprob =
        |id: u32| logits.get(id as usize).map_or(f32::NEG_INFINITY, |&x| (f64::from(x) - normaliser) as f32);
    let mut top: Vec<(u32, f32)> =
        likeliest(logits, &runs, top).into_iter().map(|id| (id, logprob(id))).collect();
    if !top.iter().any(|&(id, _)| id == token) {
        top.push((token, logprob(token)));
    }
    Ok(Score { logprob: logprob(token), top })
}

/// The ids of the `count` largest logits in falling order, of equals the lower id first, given the largest of each run. One
/// pass with a short sorted list: `count` is at most a few dozen, and nearly every run fails the first comparison.
fn likeliest(logits: &[f32], peaks: &[f32], count: usize) -> Vec<u32> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for ((run, &peak), first) in logits.chunks(RUN).zip(peaks).zip((0..).step_by(RUN)) {
        let fails =
            |best: &[(u32, f32)], x| best.len() == count && best.last().is_none_or(|&(_, least)| x <= least);
        if fails(&best, peak) {
            continue;
        }
        for (id, &x) in (first..).zip(run) {
            if !fails(&best, x) {
                let place = best.partition_point(|&(_, other)| other >= x);
                best.insert(place, (id, x));
                best.truncate(count);
            }
        }
    }
    best.into_iter().map(|(id, _)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_sorting_everything(
            logits in prop::collection::vec((-40i8..40).prop_map(|x| f32::from(x) / 4.0), 1..200),
            token in any::<prop::sample::Index>(),
            top in 0usize..25,
        ) {
            let token = token.index(logits.len()) as u32;
            let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
            let mut all: Vec<(u32, f64)> = (0u32..).zip(logits.iter().map(|&x| (f64::from(x).exp() / sum).ln())).collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let own = all.iter().find(|x| x.0 == token).copied().unwrap();
            all.truncate(top);
            if !all.contains(&own) {
                all.push(own);
            }

            let found = score(&logits, token, top).unwrap();
            prop_assert!((f64::from(found.logprob) - own.1).abs() < 1e-5);
            prop_assert_eq!(found.top.iter().map(|x| x.0).collect::<Vec<_>>(), all.iter().map(|x| x.0).collect::<Vec<_>>());
            for (found, expected) in found.top.iter().zip(&all) {
                prop_assert!((f64::from(found.1) - expected.1).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn large_logits_neither_overflow_nor_lose_precision() {
        let found = score(&[1000.0, 999.0, -1000.0], 1, 1).unwrap();
        assert!((found.logprob - -1.313_261_7).abs() < 1e-6);
        assert_eq!(found.top[0].0, 0);
    }

    #[test]
    fn no_distribution_is_an_error() {
        for bad in [f32::NAN, f32::INFINITY] {
            assert_eq!(score(&[0.0, bad], 0, 1), Err(NotANumber));
        }
        assert_eq!(score(&[f32::NEG_INFINITY; 3], 0, 1), Err(NotANumber));
        assert_eq!(score(&[0.0, f32::NEG_INFINITY], 0, 1).unwrap().logprob, 0.0);
    }
}
