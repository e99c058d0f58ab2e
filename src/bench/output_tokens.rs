use std::fmt;
use std::str::FromStr;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Serialize, Serializer};

/// How many tokens requests ask for: all the same, or each a number of its own from a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputTokens {
    least: u32,
    most: u32,
}

impl OutputTokens {
    /// The same for every request; none of 0, for a completion has one token at least.
    pub fn exactly(tokens: u32) -> Option<Self> {
        (tokens > 0).then_some(Self { least: tokens, most: tokens })
    }

    /// That of request number `request`: uniform over the range, and for a seed always the same.
    pub fn of(self, request: usize, seed: u64) -> u32 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        // A stream of its own, so that a number does not depend on how many were drawn before.
        random.set_stream(request as u64);
        random.random_range(self.least..=self.most)
    }
}

impl FromStr for OutputTokens {
    type Err = String;

    /// Reads `64` or `16..128`, both ends included.
    fn from_str(text: &str) -> Result<Self, String> {
        let (least, most) = text.split_once("..").unwrap_or((text, text));
        let number = |text: &str| text.trim().parse::<u32>().ok();
        match (number(least), number(most)) {
            (Some(least), Some(most)) if 0 < least && least <= most => Ok(Self { least, most }),
            _ => Err("it must be a number of tokens above 0, or two as in 16..128".to_owned()),
        }
    }
}

impl fmt::Display for OutputTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least, most } = self;
        if least == most { write!(f, "{least}") } else { write!(f, "{least}..{most}") }
    }
}

/// A number where all are the same, or else the range's text.
impl Serialize for OutputTokens {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.least == self.most {
            serializer.serialize_u32(self.least)
        } else {
            serializer.collect_str(self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fill_the_range_and_are_those_of_their_seed() {
        let range: OutputTokens = "16..18".parse().unwrap();
        let draw = |seed| (0..200).map(|request| range.of(request, seed)).collect::<Vec<_>>();
        let drawn = draw(7);
        assert_eq!(drawn, draw(7));
        assert_ne!(drawn, draw(8));
        for tokens in 16..=18 {
            assert!(drawn.iter().filter(|&&drawn| drawn == tokens).count() > 40, "{tokens} in {drawn:?}");
        }
        assert!(drawn.iter().all(|tokens| (16..=18).contains(tokens)));
        assert_eq!("64".parse::<OutputTokens>().unwrap().of(3, 1), 64);
    }

    #[test]
    fn a_range_is_read_and_said_alike_or_refused() {
        for text in ["64", "16..128"] {
            assert_eq!(text.parse::<OutputTokens>().unwrap().to_string(), text);
        }
        for bad in ["0", "0..4", "5..4", "", "..", "four"] {
            assert!(bad.parse::<OutputTokens>().is_err(), "{bad}");
        }
    }
}
