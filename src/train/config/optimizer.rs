use serde::{Deserialize, Serialize};

use super::need;
use crate::train::Precision;

/// `[train]`: AdamW (Loshchilov and Hutter, arXiv 1711.05101) with warm-up and cosine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Updates of the weights.
    pub steps: u64,
    /// Windows of a forward pass.
    pub batch: usize,
    /// Forward passes whose gradients are added up for one update.
    pub accumulate: usize,
    /// The largest learning rate, reached after the warm-up.
    pub learning_rate: f64,
    /// The last learning rate, as a share of the largest.
    pub final_share: f64,
    /// Updates during which the learning rate grows from 0.
    pub warmup_steps: u64,
    /// Decay of the first moments.
    pub beta1: f64,
    /// Decay of the second moments.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, of matrices only.
    pub weight_decay: f64,
    /// The largest norm of all gradients together.
    pub clip: f64,
    /// Whether the backward pass computes each block again instead of keeping what is in it: the same gradients, bit for
    /// bit, in less memory and more time.
    pub recompute: bool,
    /// What activations and matrix products are computed in: "f32", or "bf16" on a GPU.
    pub precision: Precision,
    /// What is not trained: with "main" only the f-gram model is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Freeze>,
}

/// What a run leaves as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Freeze {
    /// The main model, its token embedding and head included.
    Main,
}

impl std::str::FromStr for Freeze {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "main" {
            Ok(Self::Main)
        } else {
            Err(format!("{text:?} cannot be frozen: only \"main\" can"))
        }
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch: 16,
            accumulate: 1,
            learning_rate: 3e-3,
            final_share: 0.1,
            warmup_steps: 100,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip: 1.0,
            recompute: false,
            precision: Precision::default(),
            freeze: None,
        }
    }
}

impl OptimizerConfig {
    pub(super) fn check(&self) -> Result<(), String> {
        need(
            self.steps > 0 && self.batch > 0 && self.accumulate > 0,
            "steps, batch and accumulate must be at least 1",
        )?;
        need(self.learning_rate > 0.0 && self.learning_rate.is_finite(), "learning_rate must be positive")?;
        need((0.0..=1.0).contains(&self.final_share), "final_share is a share: 0 to 1")?;
        let shares = [self.beta1, self.beta2];
        need(shares.iter().all(|beta| (0.0..1.0).contains(beta)), "beta1 and beta2 are 0 or more, below 1")?;
        need(self.epsilon > 0.0 && self.clip > 0.0, "epsilon and clip must be positive")?;
        need(self.weight_decay >= 0.0, "weight_decay must not be negative")
    }
}
