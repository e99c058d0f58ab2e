use serde::{Deserialize, Serialize};

use super::signs::{Kind, Sign};
use crate::corpus::{Dataset, Tags};
use crate::fgram::FgramSet;
use crate::train::{Corpora, TrainError};

/// Positions looked up at a time.
const CHUNK: usize = 1 << 16;
/// The share of the f-grams that ought to match, by their counts, of which it is a sign that they do not. Some never do in
/// good order: those that mostly occur inside of longer ones, and names that belong to one book.
const MISSING: f64 = 0.5;

/// How many f-grams of a set are matched in the validation split, whose tags say where; the rest are dead weight there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct DeadFgrams {
    /// F-grams that are the longest match nowhere.
    pub(super) count: u64,
    /// Their share of the set.
    pub(super) share: f64,
    /// The share that would be dead if the validation split were more of the mined text: that of f-grams which, as often
    /// as they were counted, do not happen to occur in so few tokens. Of a mixture nobody knows what was mined.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) expected_share: Option<f64>,
}

impl DeadFgrams {
    /// Looks at the whole validation split of each corpus; `None` for a baseline.
    ///
    /// # Errors
    /// Where a shard holds an impossible token.
    pub(super) fn find(corpora: &Corpora) -> Result<Option<Self>, TrainError> {
        let Some(set) = corpora.set() else { return Ok(None) };
        let mut alive = vec![false; set.len()];
        for corpus in corpora.iter() {
            if let Some(tags) = corpus.tags() {
                mark(&mut alive, corpus.dataset(), set, tags)?;
            }
        }
        let count = alive.iter().filter(|alive| !**alive).count();
        let all = set.len().max(1) as f64;
        let expected_share = (corpora.iter().len() == 1).then(|| {
            let [mined, seen] = [corpora.first().train().tokens, corpora.first().validation().tokens];
            let shrink = seen as f64 / mined.max(1) as f64;
            set.counts().iter().map(|&count| (-(count as f64) * shrink).exp()).sum::<f64>() / all
        });
        Ok(Some(Self { count: count as u64, share: count as f64 / all, expected_share }))
    }

    /// Whether that is a sign of trouble.
    pub(super) fn sign(&self) -> Option<Sign> {
        let expected = self.expected_share?;
        let limit = expected + MISSING * (1.0 - expected);
        (self.share > limit).then(|| Sign {
            step: 0,
            sign: Kind::DeadFgrams,
            value: self.share,
            limit,
            message: format!(
                "{self}. The validation text is of another kind than the mined text, or the set was mined elsewhere"
            ),
        })
    }
}

/// Marks the f-grams, by rank, that are the longest match somewhere in a validation split.
fn mark(alive: &mut [bool], dataset: &Dataset, set: &FgramSet, tags: &Tags) -> Result<(), TrainError> {
    let (reach, mut tokens) = (set.policy().max_n - 1, Vec::new());
    for (shard, tags) in dataset.validation().shards.iter().zip(tags.validation()) {
        for start in (0..tags.len()).step_by(CHUNK) {
            let end = tags.len().min(start + CHUNK);
            let before = start.min(reach);
            shard.read(start - before..end, &mut tokens)?;
            let ends = tags[start..end].iter().enumerate().filter(|(_, n)| **n >= 2);
            for (i, &n) in ends {
                let end = before + i + 1;
                let gram = tokens.get(end.wrapping_sub(usize::from(n))..end);
                if let Some(rank) = gram.and_then(|gram| set.index().rank(gram)) {
                    alive[rank as usize] = true;
                }
            }
        }
    }
    Ok(())
}

impl std::fmt::Display for DeadFgrams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (count, share) = (self.count, 100.0 * self.share);
        write!(f, "{count} f-grams ({share:.1} % of the set) never match in the validation split")?;
        match self.expected_share {
            Some(expected) => write!(f, "; by their counts {:.1} % would not", 100.0 * expected),
            None => Ok(()),
        }
    }
}
