//! A run: its steps, and what its directory keeps of them.

mod checkpoint;
mod claim;
mod dead;
mod directory;
mod environment;
mod follow;
mod journal;
mod keeper;
mod log;
mod metrics;
mod samples;
mod signs;
mod trainer;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use self::dead::DeadFgrams;
use self::directory::{Purpose, RunDirectory};
use self::environment::Environment;
use self::journal::Journal;
use self::trainer::Trainer;
use super::parallel::{Alone, Group, GroupError};
use super::{AdamW, Corpora, JointModel, Parameters, RunConfig, TrainError, start};
use crate::corpus::Dataset;

pub(super) use checkpoint::State;
pub use metrics::{CorpusProgress, Progress};

/// A run: models, optimizer and where it stands.
///
/// Its directory holds `config.toml`, `environment.json`, `metrics.jsonl`, `curves.svg`, `signs.jsonl` (what may be wrong
/// with it), `samples.jsonl` if prompts are configured, the newest checkpoints (`step-00000200.safetensors`, complete),
/// `best.safetensors` (the weights of the lowest validation loss) and at the end `model/`, made of the best. It belongs to
/// one process at a time.
pub struct Run {
    corpora: Corpora,
    dead: Option<DeadFgrams>,
    trainer: Trainer,
    directory: Option<RunDirectory>,
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
        Self::open_in(config, directory, resume, Box::new(Alone))
    }

    /// As [`Run::open`], as one process of a group. Rank 0 alone reads and writes `directory`; the others begin with what
    /// it gives them, so they can neither miss a checkpoint nor take another.
    ///
    /// # Errors
    /// As [`Run::open`], and where processes are lost, differ in what they train, or cannot share an update evenly.
    pub fn open_in(
        config: &RunConfig,
        directory: &Path,
        resume: bool,
        group: Box<dyn Group>,
    ) -> Result<Self, TrainError> {
        let (world_size, accumulate) = (group.world_size(), config.train.accumulate);
        if !accumulate.is_multiple_of(world_size) {
            return Err(GroupError::Uneven { accumulate, world_size }.into());
        }
        let leads = group.rank() == 0;
        let begins = leads && RunDirectory::begins(directory, resume)?;
        let corpora = Corpora::open(config)?;
        let vocab_size = corpora.first().tokenizer().vocab_size();
        let max_n = corpora.set().map_or(2, |set| set.policy().max_n);
        let mut parameters = Parameters::new(config.seed, config.model.init_std);
        let model = JointModel::create(config, vocab_size, max_n, &mut parameters)?;
        let validation_model = JointModel::for_validation(config, vocab_size, max_n, &parameters)?;
        if begins {
            start::load(config, corpora.first(), &parameters)?;
        }
        // What cannot be trained leaves no directory behind.
        let directory = leads.then(|| RunDirectory::open(directory, config)).transpose()?;
        let optimizer = AdamW::new(&config.train);
        let state = State { step: 0, best: None, config: config.to_toml() };
        let config = config.clone();
        let trainer = Trainer {
            config,
            parameters,
            model,
            validation_model,
            optimizer,
            state,
            checkpoint_step: 0,
            group,
        };
        let mut run = Self { corpora, dead: None, trainer, directory };
        run.begin()?;
        Ok(run)
    }

    /// Sets weights and state to where the run begins or goes on, in all processes of the group.
    fn begin(&mut self) -> Result<(), TrainError> {
        let Self { corpora, dead, trainer, directory } = self;
        let mut first = false;
        if let Some(directory) = directory {
            let Trainer { config, parameters, optimizer, .. } = trainer;
            match directory.restore(config, parameters, optimizer)? {
                Some(state) => trainer.state = state,
                None => first = true,
            }
            trainer.checkpoint_step = trainer.state.step;
            *dead = DeadFgrams::find(corpora)?;
            directory.write_config(&trainer.state.config)?;
            Environment::new(corpora, dead.clone())
                .record(&directory.path.join("environment.json"), trainer.state.step)?;
        }
        trainer.follow(&identity(&trainer.state.config, corpora))?;
        // From the first moment on there is something to resume, and initial weights to compare with.
        match directory.as_mut().filter(|_| first) {
            Some(directory) => directory.save_now(trainer),
            None => Ok(()),
        }
    }

    /// Whether this process is the one that reads and writes the run's files: the only one, or rank 0.
    pub fn leads(&self) -> bool {
        self.directory.is_some()
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

    /// Trains to the last step, or for `most` updates, or until `stop` is set, which is looked at after every update; in a
    /// group, until it is set in any process. Where a process is lost, rank 0 writes a checkpoint before it fails.
    ///
    /// # Errors
    /// Where the run diverges or a file cannot be written.
    pub fn train(
        &mut self,
        most: Option<u64>,
        stop: &AtomicBool,
        observe: &mut dyn FnMut(&Progress),
    ) -> Result<Outcome, TrainError> {
        let Self { corpora, dead, trainer, directory } = self;
        let batches = corpora.training(&trainer.config)?;
        let held_out = corpora.held_out(&trainer.config)?;
        let (steps, step) = (trainer.config.train.steps, trainer.state.step);
        let open = |directory: &RunDirectory| {
            Journal::open(&directory.path, &trainer.config, step, corpora, dead.as_ref())
        };
        let mut journal = directory.as_ref().map(open).transpose()?;
        let end = most.map_or(steps, |most| step.saturating_add(most).min(steps));
        if step == end && end < steps {
            return Ok(Outcome::Stopped);
        }
        if step == 0 && trainer.config.model.init_from.is_some() {
            // What a trained model is before the first update is the first to beat.
            let progress = Progress::start(trainer.validate(&held_out)?.0);
            if let (Some(journal), Some(directory)) = (&mut journal, directory.as_mut()) {
                journal.write(&progress, &trainer.validation_model)?;
                directory.save(trainer, Purpose { best: true, checkpoint: false })?;
            }
            observe(&progress);
        }
        while trainer.state.step < steps {
            let (progress, best) = match trainer.advance(corpora, &batches, &held_out) {
                // The weights are those of the last whole update: nothing of it needs to be lost with the process.
                Err(error @ TrainError::Group(_)) => {
                    directory.as_mut().map_or(Ok(()), |directory| directory.save_now(trainer))?;
                    return Err(error);
                }
                advanced => advanced?,
            };
            let (step, last) = (trainer.state.step, trainer.state.step == steps);
            if let Some(journal) = &mut journal {
                journal.write(&progress, &trainer.validation_model)?;
            }
            observe(&progress);
            let stopping = trainer.group.any(stop.load(Ordering::Relaxed))? || step == end;
            let checkpoint = step.is_multiple_of(trainer.config.checkpoint.every) || last || stopping;
            if checkpoint {
                trainer.check_group()?;
                trainer.checkpoint_step = step;
            }
            if let Some(directory) = directory {
                directory.save(trainer, Purpose { best, checkpoint })?;
            }
            if stopping && !last {
                directory.as_mut().map_or(Ok(()), RunDirectory::wait)?;
                return Ok(Outcome::Stopped);
            }
        }
        if let Some(directory) = directory {
            directory.export(trainer, corpora)?;
        }
        Ok(Outcome::Finished)
    }
}

/// What a run is made of, for processes to compare.
fn identity(config: &str, corpora: &Corpora) -> String {
    let mut identity = format!("{config}\n{:?}", corpora.set().map(crate::fgram::FgramSet::sha256));
    for corpus in corpora.iter() {
        let (tokenizer, tokens) = (corpus.dataset().tokenizer().sha256(), corpus.dataset().train().tokens);
        identity.push_str(&format!("\n{tokenizer} {tokens} {}", corpus.dataset().validation().tokens));
    }
    identity
}
