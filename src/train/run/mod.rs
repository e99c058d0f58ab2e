//! A run: its steps, and what its directory keeps of them.

mod checkpoint;
mod claim;
mod dead;
mod environment;
mod journal;
mod keeper;
mod log;
mod metrics;
mod samples;
mod signs;
mod trainer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use self::checkpoint::Snapshot;
use self::claim::Claim;
use self::dead::DeadFgrams;
use self::environment::Environment;
use self::journal::Journal;
use self::keeper::{Keeper, Purpose};
use self::trainer::Trainer;
use super::report::draw_curves;
use super::{AdamW, Corpora, JointModel, Parameters, RunConfig, TrainError, export, start};
use crate::corpus::Dataset;
use crate::new_file;

pub(super) use checkpoint::State;
pub use metrics::{CorpusProgress, Progress};

/// A run: models, optimizer and where it stands.
///
/// Its directory holds `config.toml`, `environment.json`, `metrics.jsonl`, `curves.svg`, `signs.jsonl` (what may be wrong with it),
/// `samples.jsonl` if prompts are configured, the newest checkpoints (`step-00000200.safetensors`, complete),
/// `best.safetensors` (the weights of the lowest validation loss) and at the end `model/`, made of the best. It belongs to
/// one process at a time.
pub struct Run {
    corpora: Corpora,
    dead: Option<DeadFgrams>,
    directory: PathBuf,
    trainer: Trainer,
    keeper: Keeper,
    _claim: Claim,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done and `model/` is written.
    Finished,
    /// It was asked to stop; `--resume` goes on.
    Stopped,
}

impl Run {
    /// Starts a run in `directory`, or continues the one that is there.
    ///
    /// # Errors
    /// Where the data do not fit the configuration, or the directory does not fit `resume`.
    pub fn open(config: &RunConfig, directory: &Path, resume: bool) -> Result<Self, TrainError> {
        let toml = directory.join("config.toml");
        if !resume && toml.exists() {
            return Err(TrainError::Exists(directory.to_owned()));
        }
        let corpora = Corpora::open(config)?;
        let dead = DeadFgrams::find(&corpora)?;
        let vocab_size = corpora.first().tokenizer().vocab_size();
        let max_n = corpora.set().map_or(2, |set| set.policy().max_n);
        let mut parameters = Parameters::new(config.seed, config.model.init_std);
        let model = JointModel::create(config, vocab_size, max_n, &mut parameters)?;
        let validation_model = JointModel::for_validation(config, vocab_size, max_n, &parameters)?;
        let mut optimizer = AdamW::new(&config.train);
        let claim = Claim::take(directory)?;
        let keeper = Keeper::new(directory, config.checkpoint.keep);
        if !resume && !keeper.is_empty()? {
            return Err(TrainError::Exists(directory.to_owned()));
        }
        let newest = if resume { keeper.newest()? } else { None };
        let text = config.to_toml();
        let (mut best, mut step) = (None, 0);
        let begins = newest.is_none();
        if let Some((path, snapshot)) = newest {
            (best, step) = (snapshot.state.best, snapshot.state.step);
            continues(config, &path, &snapshot.state)?;
            snapshot.restore(&path, &parameters, Some(&mut optimizer))?;
        } else {
            start::load(config, corpora.first(), &parameters)?;
        }
        new_file::write(&toml, text.as_bytes()).map_err(TrainError::io(&toml))?;
        Environment::new(&corpora, dead.clone()).record(&directory.join("environment.json"), step)?;
        let state = State { step, best, config: text };
        let config = config.clone();
        let trainer =
            Trainer { config, parameters, model, validation_model, optimizer, state, checkpoint_step: step };
        let directory = directory.to_owned();
        let mut run = Self { corpora, dead, directory, trainer, keeper, _claim: claim };
        // From the first moment on there is something to resume, and initial weights to compare with.
        if begins {
            save(&mut run.trainer, &mut run.keeper, Purpose { best: false, checkpoint: true })?;
            run.keeper.wait()?;
        }
        Ok(run)
    }

    /// Updates done so far.
    pub fn step(&self) -> u64 {
        self.trainer.state.step
    }

    /// The lowest validation loss so far, in nats a token, and its step.
    pub fn best(&self) -> Option<(f64, u64)> {
        self.trainer.state.best
    }

    /// The trained parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.trainer.parameters
    }

    /// The corpora that it trains on.
    pub fn corpora(&self) -> &Corpora {
        &self.corpora
    }

    /// The first corpus, whose tokenizer is the model's.
    pub fn dataset(&self) -> &Dataset {
        self.corpora.first()
    }

    /// Trains to the last step, or for `most` updates, or until `stop` is set, which is looked at after every update.
    ///
    /// # Errors
    /// Where the run diverges or a file cannot be written.
    pub fn train(
        &mut self,
        most: Option<u64>,
        stop: &AtomicBool,
        observe: &mut dyn FnMut(&Progress),
    ) -> Result<Outcome, TrainError> {
        let trainer = &self.trainer;
        let batches = self.corpora.training(&trainer.config)?;
        let held_out = self.corpora.held_out(&trainer.config)?;
        let (config, step) = (&trainer.config, trainer.state.step);
        let mut journal = Journal::open(&self.directory, config, step, &self.corpora, self.dead.as_ref())?;
        let steps = trainer.config.train.steps;
        let end = most.map_or(steps, |most| trainer.state.step.saturating_add(most).min(steps));
        if trainer.state.step == end && end < steps {
            return Ok(Outcome::Stopped);
        }
        // What a trained model is before the first update is the first to beat.
        if step == 0 && config.model.init_from.is_some() {
            let trainer = &mut self.trainer;
            let progress = Progress::start(trainer.validate(&held_out)?.0);
            journal.write(&progress, &trainer.validation_model)?;
            observe(&progress);
            save(trainer, &mut self.keeper, Purpose { best: true, checkpoint: false })?;
        }
        while self.trainer.state.step < steps {
            let trainer = &mut self.trainer;
            let mut progress = trainer.update(&batches)?;
            let (step, last) = (trainer.state.step, trainer.state.step == steps);
            let validates = step.is_multiple_of(trainer.config.validation.every) || last;
            let mut best = false;
            if validates {
                let (loss, losses, lowest) = trainer.validate(&held_out)?;
                let windows = step * (trainer.config.train.batch * trainer.config.train.accumulate) as u64;
                progress.validation_loss = Some(loss);
                progress.corpora = self.corpora.progress(&batches.epochs(windows), &losses);
                best = lowest;
            }
            journal.write(&progress, &trainer.validation_model)?;
            if validates {
                draw_curves(&self.directory)?;
            }
            observe(&progress);
            let stopping = stop.load(Ordering::Relaxed) || step == end;
            let checkpoint = step.is_multiple_of(trainer.config.checkpoint.every) || last || stopping;
            save(trainer, &mut self.keeper, Purpose { best, checkpoint })?;
            if stopping && !last {
                self.keeper.wait()?;
                return Ok(Outcome::Stopped);
            }
        }
        self.keeper.wait()?;
        self.export()?;
        Ok(Outcome::Finished)
    }

    /// Writes `model/` from the best weights; the run's own weights are the last again afterwards.
    fn export(&self) -> Result<(), TrainError> {
        let Trainer { config, parameters, state, .. } = &self.trainer;
        let last = Snapshot::take(parameters, None, state)?;
        let (directory, best) = (self.directory.join("model"), self.keeper.best());
        Snapshot::read(&best)?.restore(&best, parameters, None)?;
        let (dataset, set) = (self.corpora.first(), self.corpora.set());
        let card = export::card(config, dataset, state);
        export::write(&directory, config, dataset, set, parameters, &card)?;
        last.restore(&best, parameters, None)
    }
}

/// Begins to write what an update has to leave behind, if anything.
fn save(trainer: &mut Trainer, keeper: &mut Keeper, purpose: Purpose) -> Result<(), TrainError> {
    if !purpose.best && !purpose.checkpoint {
        return Ok(());
    }
    // Before the copy, not after it: there are never two at a time.
    keeper.wait()?;
    let optimizer = purpose.checkpoint.then_some(&trainer.optimizer);
    keeper.begin(Snapshot::take(&trainer.parameters, optimizer, &trainer.state)?, purpose)?;
    if purpose.checkpoint {
        trainer.checkpoint_step = trainer.state.step;
    }
    Ok(())
}

/// A checkpoint continues its own run only.
fn continues(config: &RunConfig, path: &Path, state: &State) -> Result<(), TrainError> {
    let before: Option<RunConfig> = toml::from_str(&state.config).ok();
    if before.is_some_and(|before| before.trains_like(config)) {
        return Ok(());
    }
    let why = "it belongs to another configuration: --resume continues a run unchanged ([checkpoint] and [samples] may \
               change); for other settings start a new --output";
    Err(TrainError::Checkpoint { path: path.to_owned(), why: why.to_owned() })
}
