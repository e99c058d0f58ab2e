//! What a finished run came to: `results.json`, and what its `metrics.jsonl` says of how it went.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::report::read_updates;
use super::{Costs, Progress, TrainError};
use crate::new_file;

/// `results.json`: what `scone-train measure` found out about a finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Of the program that measured.
    pub version: String,
    /// The run's.
    pub seed: u64,
    /// How the run went.
    #[serde(flatten)]
    pub history: History,
    /// Tokens of the training splits of all corpora together.
    pub corpus_tokens: u64,
    /// F-grams of the set; 0 for a baseline.
    pub fgrams: u64,
    /// K: tokens of the longest f-gram that there can be; 1 for a baseline.
    pub max_n: usize,
    /// How the table's rows are stored; `None` for a baseline.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub row_type: Option<String>,
    /// How large the models are.
    pub parameters: ParameterCounts,
    /// On the validation split.
    pub validation: ValidationResult,
    /// On each text, by the name that it was given.
    pub texts: BTreeMap<String, TextResult>,
    /// What the model and its run cost.
    pub costs: Costs,
}

/// How a run went, by its `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Updates done.
    pub steps: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds that the updates took, validations and checkpoints left out.
    pub seconds: f64,
    /// Tokens trained on in one of these seconds.
    pub tokens_per_second: f64,
    /// The step of the lowest validation loss, whose weights the model has.
    pub best_step: Option<u64>,
    /// That loss, in nats a token, as the run measured it.
    pub best_loss: Option<f64>,
}

/// Numbers in the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterCounts {
    /// Of the main model, its tied embedding and head counted once.
    pub main: usize,
    /// Of the f-gram model; 0 for a baseline.
    pub fgram: usize,
    /// Of the main model without the embedding.
    pub non_embedding: usize,
}

/// The served model on the windows on which the run validated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationResult {
    /// Tokens predicted.
    pub tokens: usize,
    /// The mean negative log-likelihood of a token, in nats.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// The share of tokens at which an f-gram ends.
    pub hit_rate: f64,
    /// The mean length of the longest match; a token that falls back counts 1, a special token 0.
    pub mean_match: f64,
}

/// The served model on a text, as `scone eval` scores it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextResult {
    /// The file's name.
    pub file: String,
    /// The file's hash.
    pub sha256: String,
    /// UTF-8 bytes.
    pub bytes: usize,
    /// Words between white space, and one for each line's end.
    pub words: usize,
    /// Tokens.
    pub tokens: usize,
    /// Tokens predicted: all but the first.
    pub predicted: usize,
    /// The mean negative log-likelihood of a predicted token, in nats.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// All the negative log-likelihood, in bits, over the bytes.
    pub bits_per_byte: f64,
    /// `exp` of all the negative log-likelihood over the words.
    pub word_perplexity: f64,
    /// The share of tokens at which an f-gram ends.
    pub hit_rate: f64,
    /// The mean length of the longest match.
    pub mean_match: f64,
    /// Tokens of a window.
    pub context: usize,
    /// Tokens from one window to the next.
    pub stride: usize,
}

/// Words as they are counted for WikiText's perplexity by the word: what stands between white space, and a line's end.
pub fn words_and_line_ends(text: &str) -> usize {
    text.split_whitespace().count() + text.lines().count()
}

impl Results {
    /// Reads a run's.
    ///
    /// # Errors
    /// Where there are none, or the file is damaged; the message says how they are made.
    pub fn read(run: &Path) -> Result<Self, TrainError> {
        let path = run.join("results.json");
        let text = std::fs::read(&path).map_err(TrainError::io(&path))?;
        serde_json::from_slice(&text).map_err(|e| TrainError::Config {
            why: format!("{e}; write it anew with `scone-train measure {}`", run.display()),
            path,
        })
    }

    /// Writes a run's.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn write(&self, run: &Path) -> Result<(), TrainError> {
        let path = run.join("results.json");
        let broken = |e: serde_json::Error| TrainError::Config { path: path.clone(), why: e.to_string() };
        let mut text = serde_json::to_string_pretty(self).map_err(broken)?;
        text.push('\n');
        new_file::write(&path, text.as_bytes()).map_err(TrainError::io(&path))
    }
}

impl History {
    /// Reads a run's `metrics.jsonl`.
    ///
    /// # Errors
    /// Where it is not there or holds no update; a line that a kill has cut is passed over.
    pub fn read(run: &Path) -> Result<Self, TrainError> {
        let path = run.join("metrics.jsonl");
        let lines = read_updates(&path)?;
        Self::of(&lines).ok_or(TrainError::Config { path, why: "there is no update in it".into() })
    }

    /// Of a run's lines; `None` where there is no update among them.
    pub(super) fn of(lines: &[Progress]) -> Option<Self> {
        let last = lines.iter().rfind(|line| line.loss.is_some())?;
        let update = last.tokens as f64 / last.step as f64;
        let seconds: f64 =
            lines.iter().filter(|line| line.loss.is_some()).map(|line| update / line.tokens_per_second).sum();
        let validated = lines.iter().filter_map(|line| Some((line.validation_loss?, line.step)));
        let best = validated.min_by(|a, b| a.0.total_cmp(&b.0));
        Some(Self {
            steps: last.step,
            tokens: last.tokens,
            seconds,
            tokens_per_second: last.tokens as f64 / seconds,
            best_step: best.map(|(_, step)| step),
            best_loss: best.map(|(loss, _)| loss),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_wikitext() {
        for (text, count) in [(" = A =\n \n two words\n", 8), ("no end", 3), ("", 0), ("a\n", 2)] {
            assert_eq!(words_and_line_ends(text), count, "{text:?}");
        }
    }

    #[test]
    fn a_history_adds_up_the_updates() {
        let line = |step: u64, validation_loss, tokens_per_second| Progress {
            step,
            tokens: 100 * step,
            loss: Some(1.0),
            validation_loss,
            learning_rate: 0.1,
            gradient_norm: 1.0,
            tokens_per_second,
            corpora: Default::default(),
        };
        let lines = [line(1, Some(3.0), 50.0), line(2, Some(2.0), 100.0), line(3, Some(2.5), 25.0)];
        let history = History::of(&lines).unwrap();
        assert_eq!((history.steps, history.tokens), (3, 300));
        assert_eq!((history.seconds, history.tokens_per_second), (7.0, 300.0 / 7.0));
        assert_eq!((history.best_step, history.best_loss), (Some(2), Some(2.0)));
        assert!(History::of(&[]).is_none());
        assert!(History::of(&[Progress { loss: None, ..line(0, Some(3.0), 0.0) }]).is_none());
    }
}
