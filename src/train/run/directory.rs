use std::path::{Path, PathBuf};

use super::checkpoint::Snapshot;
use super::claim::Claim;
use super::keeper::{Keeper, Purpose};
use super::{State, Trainer};
use crate::model::copy_settings;
use crate::new_file;
use crate::train::export::Export;
use crate::train::{AdamW, Corpora, Parameters, RunConfig, TrainError};

/// What the model says of itself that the run started from.
const SETTINGS: &str = "settings";

/// The files of a run. In a group rank 0 alone has them.
pub(super) struct RunDirectory {
    pub(super) path: PathBuf,
    keeper: Keeper,
    _claim: Claim,
}

impl RunDirectory {
    /// Whether a run begins in this directory, instead of going on.
    ///
    /// # Errors
    /// Where it holds a run already and is not to `resume` it.
    pub(super) fn begins(path: &Path, resume: bool) -> Result<bool, TrainError> {
        let holds = Keeper::holds_any(path)?;
        if !resume && (holds || path.join("config.toml").exists()) {
            return Err(TrainError::Exists(path.to_owned()));
        }
        Ok(!holds)
    }

    /// Takes the directory for this process, making it where it is not there.
    ///
    /// # Errors
    /// Where another process trains there.
    pub(super) fn open(path: &Path, config: &RunConfig) -> Result<Self, TrainError> {
        let claim = Claim::take(path)?;
        let keeper = Keeper::new(path, config.checkpoint.keep);
        Ok(Self { path: path.to_owned(), keeper, _claim: claim })
    }

    /// Reads the newest checkpoint into parameters and optimizer; `None` where there is none.
    ///
    /// # Errors
    /// Where it is of another configuration, or all checkpoints are damaged.
    pub(super) fn restore(
        &self,
        config: &RunConfig,
        parameters: &Parameters,
        optimizer: &mut AdamW,
    ) -> Result<Option<State>, TrainError> {
        let Some((path, snapshot)) = self.keeper.newest()? else { return Ok(None) };
        continues(config, &path, &snapshot.state)?;
        let state = State { config: config.to_toml(), ..snapshot.state.clone() };
        snapshot.restore(&path, parameters, Some(optimizer))?;
        Ok(Some(state))
    }

    /// Writes `config.toml`.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(super) fn write_config(&self, text: &str) -> Result<(), TrainError> {
        let path = self.path.join("config.toml");
        new_file::write(&path, text.as_bytes()).map_err(TrainError::io(&path))
    }

    /// Keeps what the model that the run starts from says of itself besides its shape, for the model to be made: the one it
    /// started from may have gone away by then.
    ///
    /// # Errors
    /// Where a file cannot be read or written.
    pub(super) fn keep_settings(&self, config: &RunConfig) -> Result<(), TrainError> {
        let Some(source) = &config.model.init_from else { return Ok(()) };
        let kept = self.path.join(SETTINGS);
        std::fs::create_dir_all(&kept).map_err(TrainError::io(&kept))?;
        Ok(copy_settings(source, &kept)?)
    }

    /// Begins to write what an update has to leave behind, if anything.
    ///
    /// # Errors
    /// Where what was begun before could not be written.
    pub(super) fn save(&mut self, trainer: &Trainer, purpose: Purpose) -> Result<(), TrainError> {
        if !purpose.best && !purpose.checkpoint {
            return Ok(());
        }
        // Before the copy, not after it: there are never two at a time.
        self.keeper.wait()?;
        let optimizer = purpose.checkpoint.then_some(&trainer.optimizer);
        self.keeper.begin(Snapshot::take(&trainer.parameters, optimizer, &trainer.state)?, purpose)
    }

    /// Whether the run has ended: `model/` is there as a whole or not at all.
    pub(super) fn has_model(&self) -> bool {
        self.path.join("model").exists()
    }

    /// Writes a checkpoint and waits until it is there.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(super) fn save_now(&mut self, trainer: &Trainer) -> Result<(), TrainError> {
        self.save(trainer, Purpose { best: false, checkpoint: true })?;
        self.wait()
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// Where it could not be.
    pub(super) fn wait(&mut self) -> Result<(), TrainError> {
        self.keeper.wait()
    }

    /// Writes `model/` from the best weights; the run's own weights are the last again afterwards.
    ///
    /// # Errors
    /// Where a file cannot be read or written.
    pub(super) fn export(&mut self, trainer: &Trainer, corpora: &Corpora) -> Result<(), TrainError> {
        self.keeper.wait()?;
        let Trainer { config, parameters, state, .. } = trainer;
        let last = Snapshot::take(parameters, None, state)?;
        let (directory, best) = (self.path.join("model"), self.keeper.best());
        Snapshot::read(&best)?.restore(&best, parameters, None)?;
        let settings = Some(self.path.join(SETTINGS)).filter(|settings| settings.exists());
        let export = Export { config, settings, dataset: corpora.first(), set: corpora.set(), parameters };
        export.write(&directory, |weights| export.card(&self.path, weights).render())?;
        last.restore(&best, parameters, None)
    }
}

/// A checkpoint continues its own run only.
fn continues(config: &RunConfig, path: &Path, state: &State) -> Result<(), TrainError> {
    let before: Option<RunConfig> = toml::from_str(&state.config).ok();
    let differs = match &before {
        Some(before) if before.trains_like(config) => return Ok(()),
        Some(before) => before.first_difference(config).map_or_else(String::new, |what| format!(" ({what})")),
        None => String::new(),
    };
    let why = format!(
        "it belongs to another configuration{differs}: --resume continues a run unchanged ([checkpoint], [samples] and \
         [card] may change); for other settings start a new --output"
    );
    Err(TrainError::Checkpoint { path: path.to_owned(), why })
}
