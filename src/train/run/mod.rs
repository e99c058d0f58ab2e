//! A run: its steps, and what its directory keeps of them.

mod checkpoint;
mod metrics;
mod trainer;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use self::metrics::Log;
use self::trainer::Trainer;
use super::{AdamW, Batches, JointModel, Parameters, RunConfig, TrainError, export, start};
use crate::corpus::{Dataset, Tags};
use crate::fgram::{FgramSet, parquet};
use crate::new_file;

pub(super) use checkpoint::State;
pub use metrics::Progress;

/// A run: models, optimizer and where it stands.
///
/// Its directory holds `config.toml`, `metrics.jsonl`, `last.safetensors` (the newest checkpoint, complete),
/// `best.safetensors` (the weights of the lowest validation loss) and at the end `model/`, made of the best.
pub struct Run {
    dataset: Dataset,
    set: Option<(FgramSet, Tags)>,
    trainer: Trainer,
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
        let last = directory.join("last.safetensors");
        let toml = directory.join("config.toml");
        if !resume && toml.exists() {
            return Err(TrainError::Exists(directory.to_owned()));
        }
        let dataset = Dataset::open(&config.data.dataset)?;
        let set = config.fgram.as_ref().map(|fgram| open_set(&dataset, &fgram.set)).transpose()?;
        let vocab_size = dataset.tokenizer().vocab_size();
        let max_n = set.as_ref().map_or(2, |(set, _)| set.policy().max_n);
        let mut parameters = Parameters::new(config.seed, config.model.init_std);
        let model = JointModel::create(config, vocab_size, max_n, &mut parameters)?;
        let validation_model = JointModel::for_validation(config, vocab_size, max_n, &parameters)?;
        if !(resume && last.exists()) {
            start::load(config, &dataset, &parameters)?;
        }
        let mut optimizer = AdamW::new(&config.train);
        std::fs::create_dir_all(directory).map_err(TrainError::io(directory))?;
        let text = config.to_toml();
        let state = if resume && last.exists() {
            checkpoint::load(&last, &parameters, Some(&mut optimizer), &text)?
        } else {
            new_file::write(&toml, text.as_bytes()).map_err(TrainError::io(&toml))?;
            State { step: 0, best: None, config: text }
        };
        let checkpoint_step = state.step;
        let mut trainer = Trainer {
            config: config.clone(),
            directory: directory.to_owned(),
            parameters,
            model,
            validation_model,
            optimizer,
            state,
            checkpoint_step,
        };
        // From the first moment on there is something to resume, and initial weights to compare with.
        if !last.exists() {
            trainer.save()?;
        }
        Ok(Self { dataset, set, trainer })
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

    /// The corpus.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
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
        let trainer = &mut self.trainer;
        let tags = self.set.as_ref().map(|(_, tags)| tags);
        let (context, seed) = (trainer.config.model.context, trainer.config.seed);
        let batches = Batches::new(&self.dataset, tags, false, context, seed)?;
        let validation = Batches::new(&self.dataset, tags, true, context, seed)?
            .spread(trainer.config.validation.tokens, trainer.config.train.batch)?;
        let mut log = Log::open(&trainer.directory.join("metrics.jsonl"), trainer.state.step)?;
        let steps = trainer.config.train.steps;
        let end = most.map_or(steps, |most| trainer.state.step.saturating_add(most).min(steps));
        if trainer.state.step == end && end < steps {
            return Ok(Outcome::Stopped);
        }
        // What a trained model is before the first update is the first to beat.
        if trainer.state.step == 0 && trainer.config.model.init_from.is_some() {
            let progress = Progress::start(trainer.validate(&validation)?);
            log.write(&progress)?;
            observe(&progress);
        }
        while trainer.state.step < steps {
            let mut progress = trainer.update(&batches)?;
            let (step, last) = (trainer.state.step, trainer.state.step == steps);
            if step.is_multiple_of(trainer.config.validation.every) || last {
                progress.validation_loss = Some(trainer.validate(&validation)?);
            }
            log.write(&progress)?;
            observe(&progress);
            let stopping = stop.load(Ordering::Relaxed) || step == end;
            if step.is_multiple_of(trainer.config.checkpoint.every) || last || stopping {
                trainer.save()?;
            }
            if stopping && !last {
                return Ok(Outcome::Stopped);
            }
        }
        trainer.export(&self.dataset, self.set.as_ref().map(|(set, _)| set))?;
        Ok(Outcome::Finished)
    }
}

impl Trainer {
    fn save(&mut self) -> Result<(), TrainError> {
        let last = self.directory.join("last.safetensors");
        checkpoint::save(&last, &self.parameters, Some(&self.optimizer), &self.state)?;
        self.checkpoint_step = self.state.step;
        Ok(())
    }

    /// Writes `model/` from the best weights; the run's own weights are the last again afterwards.
    fn export(&mut self, dataset: &Dataset, set: Option<&FgramSet>) -> Result<(), TrainError> {
        let best = self.directory.join("best.safetensors");
        checkpoint::load(&best, &self.parameters, None, &self.state.config)?;
        export::write(
            &self.directory.join("model"),
            &self.config,
            dataset,
            set,
            &self.parameters,
            &export::card(&self.config, dataset, &self.state),
        )?;
        let last = self.directory.join("last.safetensors");
        checkpoint::load(&last, &self.parameters, None, &self.state.config)?;
        Ok(())
    }
}

fn open_set(dataset: &Dataset, path: &Path) -> Result<(FgramSet, Tags), TrainError> {
    let set = parquet::read(path)?;
    if set.policy().tokenizer_sha256 != dataset.tokenizer().sha256() {
        return Err(TrainError::Data(format!(
            "{} was mined with another tokenizer than that of {}: mine this dataset",
            path.display(),
            dataset.directory().display()
        )));
    }
    let tags = Tags::open(dataset, &set.sha256())?;
    Ok((set, tags))
}
