//! A run: its steps, and what its directory keeps of them.

mod checkpoint;
mod claim;
mod course;
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

use candle_core::Device;

use self::course::Course;
use self::dead::DeadFgrams;
use self::directory::RunDirectory;
use self::environment::Environment;
use self::journal::Journal;
use self::trainer::Trainer;
use super::parallel::{Alone, Group, GroupError};
use super::{AdamW, Corpora, HeldOut, JointModel, Parameters, RunConfig, TrainError, start};
use crate::corpus::Dataset;
use crate::model::gpu_name;

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
    held_out: Vec<HeldOut>,
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
        Self::open_in(config, directory, resume, Box::new(Alone), &Device::Cpu)
    }

    /// As [`Run::open`], on a device and as one process of a group. Rank 0 alone reads and writes `directory`; the others begin with what
    /// it gives them, so they can neither miss a checkpoint nor take another.
    ///
    /// # Errors
    /// As [`Run::open`], and where processes are lost, differ in what they train, or cannot share an update evenly.
    pub fn open_in(
        config: &RunConfig,
        directory: &Path,
        resume: bool,
        mut group: Box<dyn Group>,
        device: &Device,
    ) -> Result<Self, TrainError> {
        if let Some(why) = config.train.precision.objection(device) {
            return Err(TrainError::Data(why));
        }
        let (world_size, accumulate) = (group.world_size(), config.train.accumulate);
        if !accumulate.is_multiple_of(world_size) {
            return Err(GroupError::Uneven { accumulate, world_size }.into());
        }
        let leads = group.rank() == 0;
        // What cannot be trained, by this process or another, leaves no directory behind.
        let begins = leads && RunDirectory::begins(directory, resume)?;
        let corpora = Corpora::open(config)?;
        corpora.training(config)?;
        let held_out = corpora.held_out(config)?;
        samples::prompts(config, corpora.first())?;
        let vocab_size = corpora.first().tokenizer().vocab_size();
        let max_n = corpora.set().map_or(2, |set| set.policy().max_n);
        let mut parameters = Parameters::new(config.seed, config.model.init_std, device);
        let model = JointModel::create(config, vocab_size, max_n, &mut parameters)?;
        let validation_model = JointModel::for_validation(config, vocab_size, max_n, &parameters)?;
        if begins {
            start::load(config, corpora.first(), &parameters)?;
        }
        follow::agree_on_files(&mut *group, config, &corpora)?;
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
        let mut run = Self { corpora, held_out, dead: None, trainer, directory };
        run.begin()?;
        Ok(run)
    }

    /// Sets weights and state to where the run begins or goes on, in all processes of the group.
    fn begin(&mut self) -> Result<(), TrainError> {
        let Self { corpora, dead, trainer, directory, .. } = self;
        let mut first = false;
        if let Some(directory) = directory {
            let Trainer { config, parameters, optimizer, .. } = trainer;
            match directory.restore(config, parameters, optimizer)? {
                Some(state) => trainer.state = state,
                None => {
                    first = true;
                    directory.keep_settings(config)?;
                }
            }
            trainer.checkpoint_step = trainer.state.step;
            *dead = DeadFgrams::find(corpora)?;
            directory.write_config(&trainer.state.config)?;
            let path = directory.path.join("environment.json");
            let processes = trainer.group.world_size();
            let gpu = gpu_name(trainer.parameters.device());
            Environment::new(corpora, dead.clone()).record(&path, trainer.state.step, processes, gpu)?;
        }
        trainer.follow()?;
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
    /// group, until either is so in any process. Where a process is lost, rank 0 writes a checkpoint before it fails. A run
    /// that has ended is left as it is: its model may have a table and a measured card by now.
    ///
    /// # Errors
    /// Where the run diverges or a file cannot be written.
    pub fn train(
        &mut self,
        most: Option<u64>,
        stop: &AtomicBool,
        observe: &mut dyn FnMut(&Progress),
    ) -> Result<Outcome, TrainError> {
        let Self { corpora, held_out, dead, trainer, directory } = self;
        let (steps, step) = (trainer.config.train.steps, trainer.state.step);
        let ended = step == steps && directory.as_ref().is_some_and(RunDirectory::has_model);
        if trainer.group.any(ended)? {
            return Ok(Outcome::Finished);
        }
        let end = most.map_or(steps, |most| step.saturating_add(most).min(steps));
        if trainer.group.any(step == end && end < steps)? {
            return Ok(Outcome::Stopped);
        }
        let open = |directory: &RunDirectory| {
            Journal::open(&directory.path, &trainer.config, step, corpora, dead.as_ref())
        };
        let journal = directory.as_ref().map(open).transpose()?;
        let batches = corpora.training(&trainer.config)?;
        let mut course = Course { trainer, directory: directory.as_mut(), journal, observe };
        if step == 0 && course.trainer.config.model.init_from.is_some() {
            course.begin(&batches, held_out)?;
        }
        while course.trainer.state.step < steps {
            let stop = |step| stop.load(Ordering::Relaxed) || step == end;
            if course.advance(&batches, held_out, stop)? && course.trainer.state.step < steps {
                return Ok(Outcome::Stopped);
            }
        }
        if let Some(directory) = directory {
            directory.export(trainer, corpora)?;
        }
        // Not before: a rank 0 that dies while it exports is started again with all others.
        trainer.group.barrier()?;
        Ok(Outcome::Finished)
    }
}
