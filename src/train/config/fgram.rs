use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{RunConfig, need};
use crate::model::{Config, FgramConfig};

/// `[fgram]`: the f-gram set and the model that embeds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FgramSection {
    /// A set that `scone-train mine` wrote and `scone-train tag` tagged the dataset with; relative to the TOML file.
    pub set: PathBuf,
    /// Blocks of the f-gram model.
    #[serde(default = "one")]
    pub layers: usize,
    /// Query, key and value heads; the main model's if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// The width inside its feed-forward layers; if left out in proportion to the main model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediate_size: Option<usize>,
    /// Whether `norm(h_n)`, with a gain or through a projection that starts at 0, is added to `x_n` or stands alone.
    #[serde(default = "yes")]
    pub residual_output: bool,
    /// Whether it reads token embeddings of its own instead of the main model's.
    #[serde(default = "yes")]
    pub own_embedding: bool,
    /// Its width, if it has embeddings of its own; twice the main model's if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_size: Option<usize>,
    /// Whether its weights start from chance even where `init_from` has an f-gram model.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
    /// The share of matches that are replaced by a shorter one at random, or none, in training.
    #[serde(default)]
    pub fallback: f64,
    /// The f-gram model's learning rate, as a share of the main model's. It works on the input of the whole network and
    /// bears less (docs/recipe.md).
    #[serde(default = "fgram_rate")]
    pub learning_rate_scale: f64,
}

impl FgramSection {
    /// A section with every field at its default.
    pub(in crate::train) fn of(set: impl Into<PathBuf>) -> Self {
        Self {
            set: set.into(),
            layers: one(),
            heads: None,
            intermediate_size: None,
            residual_output: yes(),
            own_embedding: yes(),
            hidden_size: None,
            fresh: false,
            fallback: 0.0,
            learning_rate_scale: fgram_rate(),
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        need((0.0..=1.0).contains(&self.fallback), "fallback is a share: 0 to 1")?;
        let scale = self.learning_rate_scale;
        need(scale >= 0.0 && scale.is_finite(), "learning_rate_scale must not be negative")?;
        need(
            self.hidden_size.is_none() || self.own_embedding,
            "[fgram] hidden_size: another width needs own_embedding = true",
        )
    }
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn fgram_rate() -> f64 {
    0.2
}

impl RunConfig {
    /// The f-gram model's `config.json`; `None` for a baseline.
    pub fn fgram_config(&self, vocab_size: usize, max_n: usize) -> Option<FgramConfig> {
        let fgram = self.fgram.as_ref()?;
        let main = self.model_config(vocab_size);
        let heads = fgram.heads.unwrap_or(main.num_attention_heads);
        let kv_heads = if fgram.heads.is_some() { heads } else { main.kv_heads() };
        let widths = if fgram.own_embedding { 2 } else { 1 };
        let width = fgram.hidden_size.unwrap_or(widths * main.hidden_size);
        let inner = main.intermediate_size * width / main.hidden_size.max(1);
        let output_size = (width != main.hidden_size).then_some(main.hidden_size);
        let decoder = Config {
            hidden_size: width,
            num_hidden_layers: fgram.layers,
            num_attention_heads: heads,
            num_key_value_heads: Some(kv_heads),
            head_dim: Some(width / heads.max(1)),
            intermediate_size: fgram.intermediate_size.unwrap_or(inner),
            max_position_embeddings: max_n,
            ..main
        };
        Some(FgramConfig {
            decoder,
            residual_output: fgram.residual_output,
            own_embedding: fgram.own_embedding,
            output_size,
        })
    }
}
