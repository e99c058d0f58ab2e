//! Passes over all logits of a position, a few values at a time.
//!
//! A vocabulary has up to some 150,000 tokens. All that is done with each of them is done here; the rest of sampling sees
//! the few that are left. Arithmetic is in one order everywhere, so equal seeds give equal tokens on every machine.

use pulp::Arch;

use super::NotANumber;

/// Tokens of a run: what is known of a run decides whether its tokens are looked at.
pub(super) const RUN: usize = 64;

const LANES: usize = 16;

/// Puts the largest logit of each run of [`RUN`] into `peaks` and returns the largest of all.
///
/// # Errors
/// [`NotANumber`] if a logit is none or infinite, or all are minus infinity.
pub(super) fn peaks(logits: &[f32], peaks: &mut Vec<f32>) -> Result<f32, NotANumber> {
    peaks.clear();
    let is_number = Arch::new().dispatch(
        #[inline(always)]
        || {
            let mut is_number = true;
            peaks.extend(logits.chunks(RUN).map(|run| {
                let mut largest = [f32::NEG_INFINITY; LANES];
                let mut unequal = [0u32; LANES];
                let (whole, rest) = run.as_chunks::<LANES>();
                for values in whole {
                    for ((largest, unequal), &x) in largest.iter_mut().zip(&mut unequal).zip(values) {
                        *largest = if x > *largest { x } else { *largest };
                        *unequal |= u32::from(x.is_nan());
                    }
                }
                let rest_peak = rest.iter().fold(f32::NEG_INFINITY, |a, &x| if x > a { x } else { a });
                is_number &= unequal.iter().all(|&x| x == 0) && !rest.iter().any(|x| x.is_nan());
                largest.iter().fold(rest_peak, |a, &x| if x > a { x } else { a })
            }));
            is_number
        },
    );
    let max = peaks.iter().fold(f32::NEG_INFINITY, |a, &x| if x > a { x } else { a });
    if is_number && max.is_finite() { Ok(max) } else { Err(NotANumber) }
}

/// The lowest id with the largest logit.
pub(super) fn likeliest(logits: &[f32], peaks: &[f32], max: f32) -> u32 {
    let run = peaks.iter().position(|&peak| peak == max).unwrap_or(0);
    let within = logits[run * RUN..].iter().position(|&x| x == max).unwrap_or(0);
    (run * RUN + within) as u32
}

/// The ids and logits that are at least `floor`, by id.
pub(super) fn at_least<'a>(
    logits: &'a [f32],
    peaks: &'a [f32],
    floor: f32,
) -> impl Iterator<Item = (u32, f32)> + 'a {
    let runs = logits.chunks(RUN).zip(peaks).enumerate().filter(move |(_, (_, peak))| **peak >= floor);
    let ids = runs.flat_map(|(i, (run, _))| ((i * RUN) as u32..).zip(run.iter().copied()));
    ids.filter(move |&(_, x)| x >= floor)
}

/// Logits as weights: proportional to probabilities at a temperature, that of the likeliest token being 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weights {
    max: f32,
    scale: f32,
}

impl Weights {
    pub(super) fn new(max: f32, temperature: f64) -> Self {
        // Within what f32 can hold: no temperature overflows, and minus infinity keeps its weight of nothing.
        let scale = (1.0 / temperature).clamp(f64::from(f32::MIN_POSITIVE), 1e30);
        Self { max, scale: scale as f32 }
    }

    /// The weight of a logit.
    #[inline(always)]
    pub(super) fn of(self, logit: f32) -> f32 {
        exp((logit - self.max) * self.scale)
    }

    /// No logit below this has more than `weight`, but for rounding.
    pub(super) fn floor(self, weight: f64) -> f32 {
        ((f64::from(self.max) + weight.ln() / f64::from(self.scale)) as f32).next_down()
    }

    /// The sum of a run's weights.
    #[inline(always)]
    fn sum(self, run: &[f32]) -> f64 {
        let mut sums = [0f32; LANES];
        let (whole, rest) = run.as_chunks::<LANES>();
        for values in whole {
            for (sum, &x) in sums.iter_mut().zip(values) {
                *sum += self.of(x);
            }
        }
        for (sum, &x) in sums.iter_mut().zip(rest) {
            *sum += self.of(x);
        }
        sums.iter().map(|&x| f64::from(x)).sum()
    }

    /// Puts the sum of the weights of each run of [`RUN`] into `sums` and returns the sum of all.
    pub(super) fn sums(self, logits: &[f32], sums: &mut Vec<f64>) -> f64 {
        sums.clear();
        Arch::new().dispatch(
            #[inline(always)]
            || sums.extend(logits.chunks(RUN).map(|run| self.sum(run))),
        );
        sums.iter().sum()
    }

    /// The sum of all weights.
    pub(super) fn total(self, logits: &[f32]) -> f64 {
        Arch::new().dispatch(
            #[inline(always)]
            || logits.chunks(RUN).map(|run| self.sum(run)).sum(),
        )
    }
}

/// `e^x` for x up to 0, to about one part in ten million; 0 where that is below 2^-125.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with r within half of ln 2, whose high part has few enough bits for n times it to be exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding it leaves no bits for a fraction, and the whole number in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let is_nothing = x < -86.0;
    let x = if is_nothing { -86.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let series = 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let series = series * r + 1.0;
    let series = series * r + 1.0;
    // The low bits of the sum are n; added to the exponent they multiply by 2^n.
    let power = f32::from_bits(series.to_bits().wrapping_add(shifted.to_bits() << 23));
    if is_nothing { 0.0 } else { power }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_exponential_is_right() {
        for i in 0..100_000 {
            let x = -(i as f32) * 1e-3;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                (found - expected).abs() <= 3e-7 * expected.max(1e-30) || x < -85.9,
                "{x}: {found} {expected}"
            );
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY)), (1.0, 0.0));
    }

    proptest! {
        #[test]
        fn passes_agree_with_the_obvious(
            logits in prop::collection::vec((-40i8..40).prop_map(|x| f32::from(x) / 4.0), 1..300),
            temperature in 0.1f64..3.0,
            floor in -12.0f32..12.0,
        ) {
            let (mut tops, mut sums) = (Vec::new(), Vec::new());
            let max = peaks(&logits, &mut tops).unwrap();
            let sorted = logits.iter().copied().max_by(f32::total_cmp).unwrap();
            prop_assert_eq!(max, sorted);
            let first = logits.iter().position(|&x| x == max).unwrap();
            prop_assert_eq!(likeliest(&logits, &tops, max), first as u32);
            let found: Vec<_> = at_least(&logits, &tops, floor).collect();
            let all: Vec<_> = (0u32..).zip(logits.iter().copied()).filter(|&(_, x)| x >= floor).collect();
            prop_assert_eq!(found, all);
            let weights = Weights::new(max, temperature);
            let expected: f64 = logits.iter().map(|&x| ((f64::from(x) - f64::from(max)) / temperature).exp()).sum();
            prop_assert!((weights.sums(&logits, &mut sums) - expected).abs() < 1e-5 * expected);
            prop_assert!((weights.total(&logits) - expected).abs() < 1e-5 * expected);
        }
    }
}
