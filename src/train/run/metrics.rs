use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One line of `metrics.jsonl`: an update, or a validation after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Updates done.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// The training loss of this update, in nats a token.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loss: Option<f64>,
    /// The validation loss after it, in nats a token.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation_loss: Option<f64>,
    /// Of a mixture, with the validation loss: where each corpus stands, by its name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub corpora: BTreeMap<String, CorpusProgress>,
    /// The learning rate of this update.
    pub learning_rate: f64,
    /// The norm of all gradients together, before clipping.
    pub gradient_norm: f64,
    /// Training tokens a second, validation left out.
    pub tokens_per_second: f64,
}

/// Where one corpus of a mixture stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CorpusProgress {
    /// How often it has been gone through.
    pub epochs: f64,
    /// The loss over its own validation split, in nats a token.
    pub validation_loss: f64,
}

impl Progress {
    /// Before the first update.
    pub(super) fn start() -> Self {
        Self {
            step: 0,
            tokens: 0,
            loss: None,
            validation_loss: None,
            learning_rate: 0.0,
            gradient_norm: 0.0,
            tokens_per_second: 0.0,
            corpora: Default::default(),
        }
    }
}
