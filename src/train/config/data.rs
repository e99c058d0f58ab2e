use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// A directory that `scone-train prepare` wrote; relative to the TOML file. Its tokenizer is the model's.
    pub dataset: PathBuf,
    /// How much of what is trained on comes from it, beside the weights of `corpora`.
    #[serde(default = "one")]
    pub weight: f64,
    /// Whether a token sees what is before its document.
    #[serde(default)]
    pub documents: Documents,
    /// `[[data.corpora]]`: more datasets of the same tokenizer, mixed with the first window by window.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub corpora: Vec<CorpusConfig>,
}

/// `[[data.corpora]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusConfig {
    /// A directory that `scone-train prepare` wrote with the first one's tokenizer; relative to the TOML file.
    pub dataset: PathBuf,
    /// How much of what is trained on comes from it; only how the weights relate counts.
    #[serde(default = "one")]
    pub weight: f64,
}

/// How documents that share a window are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Documents {
    /// A token attends to all of its window before it, over the ends of documents.
    #[default]
    Together,
    /// Attention and positions start anew at each end-of-document token.
    Apart,
}

fn one() -> f64 {
    1.0
}

impl DataConfig {
    /// One dataset by itself.
    pub fn of(dataset: impl Into<PathBuf>) -> Self {
        Self { dataset: dataset.into(), weight: one(), documents: Documents::default(), corpora: Vec::new() }
    }

    /// All datasets and their weights, the first one first.
    pub fn weighted(&self) -> impl Iterator<Item = (&Path, f64)> {
        let more = self.corpora.iter().map(|corpus| (corpus.dataset.as_path(), corpus.weight));
        std::iter::once((self.dataset.as_path(), self.weight)).chain(more)
    }

    /// Makes the paths relative to `base`.
    pub(super) fn resolve(&mut self, base: &Path) {
        let more = self.corpora.iter_mut().map(|corpus| &mut corpus.dataset);
        for path in std::iter::once(&mut self.dataset).chain(more) {
            *path = base.join(&*path);
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let mut seen = Vec::new();
        for (path, weight) in self.weighted() {
            if !(weight > 0.0 && weight.is_finite()) {
                return Err(format!("[data] the weight of {} must be positive", path.display()));
            }
            if seen.contains(&path) {
                return Err(format!("[data] {} is listed twice: give it one weight", path.display()));
            }
            seen.push(path);
        }
        Ok(())
    }
}
