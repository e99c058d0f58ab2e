use std::time::Duration;

/// How many tokens cost as much as a step costs whatever is in it, as long as nothing has been measured.
const FIXED: f64 = 16.0;

/// Between these bounds measurements are believed.
const BELIEVED: (f64, f64) = (2.0, 256.0);

/// How much a new step counts beside those before it, once there are some.
const WEIGHT: f64 = 0.125;

/// So many steps with drafts are looked at before what they seem to cost is believed: the first ones touch memory for the
/// first time, and one that the machine held up would turn speculation off for long.
const ENOUGH: u32 = 8;

/// What steps cost, as measured: a part that every step costs (reading the weights) and a part for each token.
///
/// What counts is only how the two compare, which differs tenfold between models, encodings and machines. So it is the line
/// through two points that follow the steps of late: those that only decode, and those that read prompts. Drafts have a
/// point of their own: they are few, and unlike a prompt's tokens each needs its logits.
#[derive(Debug, Default)]
pub(super) struct Cost {
    decoding: Option<Point>,
    drafting: Option<Point>,
    reading: Option<Point>,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A token of each sequence, and nothing else.
    Decoding,
    /// The same, and drafts.
    Drafting,
    /// Tokens of prompts, whatever else.
    Reading,
}

#[derive(Debug, Clone, Copy)]
struct Point {
    steps: u32,
    tokens: f64,
    seconds: f64,
}

impl Cost {
    /// Notes a step of so many tokens.
    pub(super) fn note(&mut self, tokens: usize, kind: Kind, time: Duration) {
        let point = match kind {
            Kind::Decoding => &mut self.decoding,
            Kind::Drafting => &mut self.drafting,
            Kind::Reading => &mut self.reading,
        };
        let new = Point { steps: 0, tokens: tokens as f64, seconds: time.as_secs_f64() };
        let old = point.unwrap_or(new);
        // A step in which the machine did something else counts little.
        let seconds = new.seconds.min(3.0 * old.seconds.max(1e-6));
        let steps = old.steps.saturating_add(1);
        let weight = WEIGHT.max(1.0 / f64::from(steps));
        *point = Some(Point {
            steps,
            tokens: old.tokens + weight * (new.tokens - old.tokens),
            seconds: old.seconds + weight * (seconds - old.seconds),
        });
    }

    /// How many tokens cost as much as a step costs whatever is in it.
    pub(super) fn fixed(&self) -> f64 {
        let (Some(few), Some(many)) = (self.decoding, self.reading) else { return FIXED };
        let each = (many.seconds - few.seconds) / (many.tokens - few.tokens);
        let fixed = few.seconds / each - few.tokens;
        if each > 0.0 && fixed.is_finite() { fixed.clamp(BELIEVED.0, BELIEVED.1) } else { FIXED }
    }
}

impl Cost {
    /// What a draft costs where so many sequences decode, if a token that it saves one of them is worth 1.
    pub(super) fn draft(&self, decoding: usize) -> f64 {
        let sequences = decoding as f64;
        let from_prompts = sequences / (self.fixed() + sequences);
        let (Some(plain), Some(more)) = (self.decoding, self.drafting) else { return from_prompts };
        if more.steps < ENOUGH {
            return from_prompts;
        }
        let drafts = more.tokens - plain.tokens;
        let each = (more.seconds - plain.seconds) / drafts;
        let price = sequences * each / plain.seconds;
        // Steps with as few drafts as that say nothing.
        if drafts > 0.5 && price.is_finite() { price.max(from_prompts / 4.0) } else { from_prompts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_line_whatever_is_decoded() {
        let mut cost = Cost::default();
        assert_eq!(cost.fixed(), FIXED);
        let time = |tokens: usize| Duration::from_micros(20_000 + 500 * tokens as u64);
        for i in 0..100 {
            let (decoding, prompt) = (1 + i % 3, [0, 30, 64][i % 3]);
            let tokens = decoding + prompt;
            cost.note(tokens, if prompt > 0 { Kind::Reading } else { Kind::Decoding }, time(tokens));
        }
        assert!((cost.fixed() - 40.0).abs() < 1.0, "{}", cost.fixed());
    }

    #[test]
    fn steps_that_make_no_line_are_not_believed() {
        let mut cost = Cost::default();
        cost.note(10, Kind::Decoding, Duration::from_millis(5));
        cost.note(10, Kind::Reading, Duration::from_millis(5));
        assert_eq!(cost.fixed(), FIXED);
        cost.note(100, Kind::Reading, Duration::from_millis(1));
        assert_eq!(cost.fixed(), FIXED);
    }

    #[test]
    fn a_draft_costs_what_drafts_are_seen_to_cost() {
        let mut cost = Cost::default();
        cost.note(2, Kind::Decoding, Duration::from_millis(10));
        assert_eq!(cost.draft(2), 2.0 / (FIXED + 2.0));
        for _ in 1..ENOUGH {
            cost.note(6, Kind::Drafting, Duration::from_millis(18));
            assert_eq!(cost.draft(2), 2.0 / (FIXED + 2.0));
        }
        cost.note(6, Kind::Drafting, Duration::from_millis(18));
        assert!((cost.draft(2) - 2.0 * 2.0 / 10.0).abs() < 1e-9, "{}", cost.draft(2));
    }
}
