//! The TOML file of a run: a section a file.

mod checkpoint;
mod data;
mod fgram;
mod leaves;
mod model;
mod optimizer;
mod samples;
mod validation;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::fgram::MAX_N;
use crate::train::{CardSection, TrainError};

pub use checkpoint::CheckpointConfig;
pub use data::{CorpusConfig, DataConfig, Documents};
pub use fgram::FgramSection;
pub(super) use leaves::leaves;
pub use model::ModelSection;
pub use optimizer::{Freeze, OptimizerConfig};
pub use samples::SamplesConfig;
pub use validation::ValidationConfig;

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

impl RunConfig {
    /// Reads a TOML file; paths in it become relative to where it lies.
    ///
    /// # Errors
    /// Where it cannot be read, has unknown fields, or its numbers do not fit each other or the model to start from.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        Self::read_with(path, None, |_| ())
    }

    /// Reads a TOML file that `change` changes before anything is checked: what flags say instead of it. A run that goes on
    /// `before` needs the model no more that it started from.
    ///
    /// # Errors
    /// As [`RunConfig::read`].
    pub fn read_with(
        path: &Path,
        before: Option<&Self>,
        change: impl FnOnce(&mut Self),
    ) -> Result<Self, TrainError> {
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
        config.take_shape(before)?;
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
            fgram: Some(FgramSection::of("fgrams.parquet")),
            card: None,
        }
    }

    /// Whether runs of both take the same steps: what is kept, shown and said of them may differ.
    pub fn trains_like(&self, other: &Self) -> bool {
        self.keeping_like(other) == *other
    }

    /// This run, kept, shown and described as another.
    fn keeping_like(&self, other: &Self) -> Self {
        let (checkpoint, samples) = (other.checkpoint.clone(), other.samples.clone());
        Self { checkpoint, samples, card: other.card.clone(), ..self.clone() }
    }

    /// The first setting in which runs of both take other steps, with both values.
    pub fn first_difference(&self, other: &Self) -> Option<String> {
        let [ours, theirs] = [&self.keeping_like(other), other].map(|config| {
            let value = serde_json::to_value(config).unwrap_or_default();
            leaves(&value)
                .into_iter()
                .map(|(path, value)| (path, value.to_string()))
                .collect::<BTreeMap<_, _>>()
        });
        let paths = ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>();
        let path = paths.into_iter().find(|path| ours.get(*path) != theirs.get(*path))?;
        let text =
            |values: &BTreeMap<String, String>| values.get(path).map_or("left out", |value| value).to_owned();
        Some(format!("{path} was {}, is {}", text(&ours), text(&theirs)))
    }

    /// The file's text.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|e| format!("# cannot be shown: {e}"))
    }

    fn check(&self) -> Result<(), String> {
        self.model_config(2).check()?;
        need(self.model.init_std > 0.0, "init_std must be positive")?;
        if let Some(config) = self.fgram_config(2, MAX_N) {
            config.decoder.check().map_err(|why| format!("[fgram] {why}"))?;
        }
        self.fgram.as_ref().map_or(Ok(()), FgramSection::check)?;
        self.data.check()?;
        self.train.check()?;
        let every = [self.validation.every, self.checkpoint.every, self.samples.every];
        need(every.iter().all(|every| *every > 0), "every must be at least 1")?;
        need(
            self.checkpoint.keep > 0,
            "keep must be at least 1: without a checkpoint nothing can be resumed",
        )?;
        need(self.samples.temperature >= 0.0, "temperature must not be negative")?;
        need(
            self.train.freeze.is_none() || (self.fgram.is_some() && self.model.init_from.is_some()),
            "freeze = \"main\" trains an f-gram model beside a trained main model: it needs an [fgram] section and \
             init_from in [model], or --init-from",
        )
    }
}

fn need(ok: bool, what: &str) -> Result<(), String> {
    if ok { Ok(()) } else { Err(what.to_owned()) }
}
