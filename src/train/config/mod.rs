mod data;
mod samples;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::{Config, FgramConfig};
use crate::train::{CardSection, TrainError};

pub use data::{CorpusConfig, DataConfig, Documents};
pub use samples::SamplesConfig;

/// A run, as its TOML file says it. `scone-train fit --print-config` shows it in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Fixes initial weights and the order of the data.
    #[serde(default)]
    pub seed: u64,
    /// What is trained on.
    pub data: DataConfig,
    /// The main model.
    #[serde(default)]
    pub model: ModelSection,
    /// How it is trained.
    #[serde(default)]
    pub train: OptimizerConfig,
    /// How progress is judged.
    #[serde(default)]
    pub validation: ValidationConfig,
    /// What is kept.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// What is shown of it.
    #[serde(default)]
    pub samples: SamplesConfig,
    /// The f-grams and their model. Left out: a baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fgram: Option<FgramSection>,
    /// What the model's card says that no run can know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<CardSection>,
}

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
            freeze: None,
        }
    }
}

/// `[validation]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValidationConfig {
    /// Steps between two validations; there is one more at the end.
    pub every: u64,
    /// About how many tokens of the validation split are scored, in windows spread evenly over it.
    pub tokens: usize,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self { every: 200, tokens: 50_000 }
    }
}

/// `[checkpoint]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between two checkpoints; there is one more at the end.
    pub every: u64,
    /// How many checkpoints stay: the newest.
    pub keep: usize,
    /// How the finished model's weights are stored: "f16", "bf16" or "f32".
    pub dtype: String,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 200, keep: 2, dtype: "f16".into() }
    }
}

/// `[fgram]`: the f-gram set and the model that embeds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FgramSection {
    /// A set that `scone-train mine` wrote and `scone-train tag` tagged the dataset with; relative to the TOML file.
    pub set: PathBuf,
    /// Blocks of the f-gram model.
    #[serde(default = "two")]
    pub layers: usize,
    /// Query, key and value heads; the main model's if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// The width inside its feed-forward layers; the main model's if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediate_size: Option<usize>,
    /// `x_n + gain * norm(h_n)` if true, `norm(h_n)` if false.
    #[serde(default = "yes")]
    pub residual_output: bool,
    /// Whether it reads token embeddings of its own instead of the main model's.
    #[serde(default)]
    pub own_embedding: bool,
    /// Its width, if it has embeddings of its own; the main model's if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_size: Option<usize>,
    /// Whether its weights start from chance even where `init_from` has an f-gram model.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
    /// The share of matches that are replaced by a shorter one at random, or none, in training.
    #[serde(default)]
    pub fallback: f64,
    /// The f-gram model's learning rate, as a share of the main model's. It works on the input of the whole network and
    /// bears less: at the baseline's best rate the gain was gone after two million tokens, at 0.3 of it it grew (see the
    /// card of `model_cards/default`).
    #[serde(default = "fgram_rate")]
    pub learning_rate_scale: f64,
}

pub(super) fn two() -> usize {
    2
}

fn yes() -> bool {
    true
}

fn fgram_rate() -> f64 {
    0.3
}

impl RunConfig {
    /// Reads a TOML file; paths in it become relative to where it lies.
    ///
    /// # Errors
    /// Where it cannot be read, has unknown fields, or its numbers do not fit each other or the model to start from.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        Self::read_with(path, |_| ())
    }

    /// Reads a TOML file that `change` changes before anything is checked: what flags say instead of it.
    ///
    /// # Errors
    /// As [`RunConfig::read`].
    pub fn read_with(path: &Path, change: impl FnOnce(&mut Self)) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path).map_err(TrainError::io(path))?;
        let error = |why: String| TrainError::Config { path: path.to_owned(), why };
        let mut config: Self = toml::from_str(&text).map_err(|e| error(e.to_string()))?;
        let base = path.parent().unwrap_or(Path::new(""));
        config.data.resolve(base);
        if let Some(fgram) = &mut config.fgram {
            fgram.set = base.join(&fgram.set);
        }
        if let Some(model) = &mut config.model.init_from {
            *model = base.join(&*model);
        }
        change(&mut config);
        config.take_shape()?;
        config.check().map_err(error)?;
        Ok(config)
    }

    /// The configuration of a run, from its directory. Paths in it are as `fit` had them: relative to where that was
    /// started, unless they are absolute.
    ///
    /// # Errors
    /// Where there is no run, or its `config.toml` was changed into what cannot be.
    pub fn of_run(directory: &Path) -> Result<Self, TrainError> {
        let path = directory.join("config.toml");
        let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path))?;
        let error = |why: String| TrainError::Config { path: path.clone(), why };
        let config: Self = toml::from_str(&text).map_err(|e| error(e.to_string()))?;
        config.check().map_err(error)?;
        Ok(config)
    }

    /// A complete configuration to start from, with every field at its default.
    pub fn example() -> Self {
        Self {
            seed: 0,
            data: DataConfig::of("dataset"),
            model: ModelSection::default(),
            train: OptimizerConfig::default(),
            validation: ValidationConfig::default(),
            checkpoint: CheckpointConfig::default(),
            samples: SamplesConfig::default(),
            fgram: Some(FgramSection {
                set: "fgrams.parquet".into(),
                layers: two(),
                heads: None,
                intermediate_size: None,
                residual_output: yes(),
                own_embedding: false,
                hidden_size: None,
                fresh: false,
                fallback: 0.0,
                learning_rate_scale: fgram_rate(),
            }),
            card: None,
        }
    }

    /// Whether runs of both take the same steps: what is kept and shown of them may differ.
    pub fn trains_like(&self, other: &Self) -> bool {
        let (checkpoint, samples) = (other.checkpoint.clone(), other.samples.clone());
        Self { checkpoint, samples, ..self.clone() } == *other
    }

    /// The file's text.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|e| format!("# cannot be shown: {e}"))
    }

    fn check(&self) -> Result<(), String> {
        self.model_config(2).check()?;
        if let Some(config) = self.fgram_config(2, crate::fgram::MAX_N) {
            config.decoder.check().map_err(|why| format!("[fgram] {why}"))?;
            if config.output_size.is_some() && !config.own_embedding {
                return Err("[fgram] hidden_size: another width needs own_embedding = true".into());
            }
        }
        self.data.check()?;
        let t = &self.train;
        let need = |ok: bool, what: &str| if ok { Ok(()) } else { Err(what.to_owned()) };
        need(
            t.steps > 0 && t.batch > 0 && t.accumulate > 0,
            "steps, batch and accumulate must be at least 1",
        )?;
        need(t.learning_rate > 0.0 && t.learning_rate.is_finite(), "learning_rate must be positive")?;
        need((0.0..=1.0).contains(&t.final_share), "final_share is a share: 0 to 1")?;
        need(
            (0.0..1.0).contains(&t.beta1) && (0.0..1.0).contains(&t.beta2),
            "beta1 and beta2 are 0 or more, below 1",
        )?;
        need(t.epsilon > 0.0 && t.clip > 0.0 && t.weight_decay >= 0.0, "epsilon and clip must be positive")?;
        let every = [self.validation.every, self.checkpoint.every, self.samples.every];
        need(every.iter().all(|every| *every > 0), "every must be at least 1")?;
        need(
            self.checkpoint.keep > 0,
            "keep must be at least 1: without a checkpoint nothing can be resumed",
        )?;
        need(self.samples.temperature >= 0.0, "temperature must not be negative")?;
        need(self.model.init_std > 0.0, "init_std must be positive")?;
        need(
            t.freeze.is_none() || (self.fgram.is_some() && self.model.init_from.is_some()),
            "freeze = \"main\" trains an f-gram model beside a trained main model: it needs an [fgram] section and \
             init_from in [model], or --init-from",
        )?;
        if let Some(fgram) = &self.fgram {
            need((0.0..=1.0).contains(&fgram.fallback), "fallback is a share: 0 to 1")?;
            let scale = fgram.learning_rate_scale;
            need(scale >= 0.0 && scale.is_finite(), "learning_rate_scale must not be negative")?;
        }
        need(["f16", "bf16", "f32"].contains(&self.checkpoint.dtype.as_str()), "dtype is f16, bf16 or f32")
    }

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

    /// The f-gram model's `config.json`; `None` for a baseline.
    pub fn fgram_config(&self, vocab_size: usize, max_n: usize) -> Option<FgramConfig> {
        let fgram = self.fgram.as_ref()?;
        let main = self.model_config(vocab_size);
        let heads = fgram.heads.unwrap_or(main.num_attention_heads);
        let kv_heads = if fgram.heads.is_some() { heads } else { main.kv_heads() };
        let width = fgram.hidden_size.unwrap_or(main.hidden_size);
        let output_size = (width != main.hidden_size).then_some(main.hidden_size);
        let decoder = Config {
            hidden_size: width,
            num_hidden_layers: fgram.layers,
            num_attention_heads: heads,
            num_key_value_heads: Some(kv_heads),
            head_dim: Some(width / heads.max(1)),
            intermediate_size: fgram.intermediate_size.unwrap_or(main.intermediate_size),
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
