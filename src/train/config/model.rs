use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::RunConfig;
use crate::model::Config;

/// `[model]`: the decoder that is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSection {
    /// d: the width of embeddings and residual stream.
    pub hidden_size: usize,
    /// The width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Tokens of a training window, and the context that is served.
    pub context: usize,
    /// The base of the rotary angles.
    pub rope_theta: f64,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// The standard deviation of initial weights.
    pub init_std: f64,
    /// Whether the output head is the token embedding.
    pub tied: bool,
    /// Features of a head; `hidden_size / heads` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Rows of the token embedding, where it has more of them than the tokenizer has tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<usize>,
    /// The context that is served, where it is longer than a training window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served_context: Option<usize>,
    /// A trained model to start from instead of chance: a model directory or a GGUF file; relative to the TOML file. The
    /// shape is then the model's, and so is that of `[fgram]` where it has an f-gram model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
}

impl Default for ModelSection {
    fn default() -> Self {
        Self {
            hidden_size: 128,
            intermediate_size: 384,
            layers: 4,
            heads: 4,
            kv_heads: 4,
            context: 256,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-5,
            init_std: 0.02,
            tied: true,
            head_dim: None,
            vocab_size: None,
            served_context: None,
            init_from: None,
        }
    }
}

impl RunConfig {
    /// The main model's `config.json`, for a tokenizer of so many tokens.
    pub fn model_config(&self, vocab_size: usize) -> Config {
        let m = &self.model;
        Config {
            model_type: "llama".into(),
            hidden_size: m.hidden_size,
            intermediate_size: m.intermediate_size,
            num_hidden_layers: m.layers,
            num_attention_heads: m.heads,
            num_key_value_heads: Some(m.kv_heads),
            head_dim: Some(m.head_dim.unwrap_or(m.hidden_size / m.heads.max(1))),
            vocab_size: m.vocab_size.map_or(vocab_size, |rows| rows.max(vocab_size)),
            max_position_embeddings: m.served_context.map_or(m.context, |served| served.max(m.context)),
            rms_norm_eps: m.rms_norm_eps,
            rope_theta: m.rope_theta,
            tie_word_embeddings: m.tied,
            attention_bias: false,
            rope_scaling: None,
        }
    }
}
