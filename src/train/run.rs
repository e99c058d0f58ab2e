use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::Tensor;
use candle_core::backprop::GradStore;

use super::checkpoint::{self, State};
use super::metrics::Log;
use super::{
    AdamW, Batch, Batches, JointModel, Parameters, Progress, RunConfig, TrainError, export, learning_rate,
};
use crate::corpus::{Dataset, Tags};
use crate::fgram::{FgramSet, parquet};
use crate::new_file;

/// A run: models, optimizer and where it stands.
///
/// Its directory holds `config.toml`, `metrics.jsonl`, `last.safetensors` (the newest checkpoint, complete),
/// `best.safetensors` (the weights of the lowest validation loss) and at the end `model/`, made of the best.
pub struct Run {
    dataset: Dataset,
    set: Option<(FgramSet, Tags)>,
    trainer: Trainer,
}

/// What changes from step to step, apart from the data that it reads.
struct Trainer {
    config: RunConfig,
    directory: PathBuf,
    parameters: Parameters,
    model: JointModel,
    validation_model: JointModel,
    optimizer: AdamW,
    state: State,
    checkpoint_step: u64,
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
    /// One update of the weights.
    fn update(&mut self, batches: &Batches<'_>) -> Result<Progress, TrainError> {
        let (train, step) = (&self.config.train, self.state.step + 1);
        let start = Instant::now();
        let (mut loss, mut gradients) = (0.0, None);
        for micro in 0..train.accumulate {
            let number = self.state.step * train.accumulate as u64 + micro as u64;
            let batch = batches.shuffled(number, train.batch)?;
            let value = self.model.loss(&batch)?;
            loss += f64::from(value.to_scalar::<f32>()?) / train.accumulate as f64;
            let store = (value / train.accumulate as f64)?.backward()?;
            gradients = Some(self.add_gradients(gradients, &store)?);
        }
        let gradients = gradients.unwrap_or_default();
        let norm = self.gradient_norm(&gradients, loss, step)?;
        let rate = learning_rate(train, step);
        let scale = if norm > train.clip { train.clip / norm } else { 1.0 };
        let fgram_scale = self.config.fgram.as_ref().map_or(1.0, |fgram| fgram.learning_rate_scale);
        for (name, var) in self.parameters.iter() {
            let rate = if name.starts_with("fgram/") { rate * fgram_scale } else { rate };
            self.optimizer.update(name, var, &gradients[name], step, rate, scale)?;
        }
        self.state.step = step;
        let tokens = (train.batch * train.accumulate * self.config.model.context) as u64;
        Ok(Progress {
            step,
            tokens: step * tokens,
            loss: Some(loss),
            validation_loss: None,
            learning_rate: rate,
            gradient_norm: norm,
            tokens_per_second: tokens as f64 / start.elapsed().as_secs_f64(),
        })
    }

    /// Adds a backward pass's gradients to those so far. Every parameter must have one.
    fn add_gradients(
        &self,
        sum: Option<BTreeMap<String, Tensor>>,
        store: &GradStore,
    ) -> Result<BTreeMap<String, Tensor>, TrainError> {
        let mut sum = sum.unwrap_or_default();
        for (name, var) in self.parameters.iter() {
            let gradient = store.get(var).ok_or_else(|| TrainError::NoGradient(name.to_owned()));
            let gradient = match (gradient, sum.get(name)) {
                (Ok(gradient), Some(sum)) => (sum + gradient)?,
                (Ok(gradient), None) => gradient.clone(),
                // A batch in which no f-gram occurs says nothing about the f-gram model.
                (Err(_), sum) if name.starts_with("fgram/") => match sum {
                    Some(sum) => sum.clone(),
                    None => var.zeros_like()?,
                },
                (Err(error), _) => return Err(error),
            };
            sum.insert(name.to_owned(), gradient);
        }
        Ok(sum)
    }

    /// The norm of all gradients, in the order of the parameters' names; refuses what is not finite.
    fn gradient_norm(
        &self,
        gradients: &BTreeMap<String, Tensor>,
        loss: f64,
        step: u64,
    ) -> Result<f64, TrainError> {
        let diverged = |tensor: &str| TrainError::Diverged {
            step,
            tensor: tensor.to_owned(),
            checkpoint: self.checkpoint_step,
        };
        if !loss.is_finite() {
            // The parameter that broke first is the one to name, if there is one.
            let broken = self.parameters.iter().find(|(_, var)| {
                !var.sqr()
                    .and_then(|x| x.sum_all())
                    .and_then(|x| x.to_scalar::<f32>())
                    .is_ok_and(f32::is_finite)
            });
            return Err(diverged(
                &broken.map_or("the loss".to_owned(), |(name, _)| format!("the parameter {name}")),
            ));
        }
        let mut sum = 0f64;
        for (name, gradient) in gradients {
            let square = f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
            if !square.is_finite() {
                return Err(diverged(&format!("the gradient of {name}")));
            }
            sum += square;
        }
        Ok(sum.sqrt())
    }

    /// The loss over the validation windows; keeps the weights if it is the lowest so far.
    fn validate(&mut self, batches: &[Batch]) -> Result<f64, TrainError> {
        let (mut sum, mut tokens) = (0.0, 0);
        for batch in batches {
            let loss = self.validation_model.loss(batch)?.to_scalar::<f32>()?;
            sum += f64::from(loss) * batch.inputs.len() as f64;
            tokens += batch.inputs.len();
        }
        let loss = sum / tokens as f64;
        if self.state.best.is_none_or(|(best, _)| loss < best) {
            self.state.best = Some((loss, self.state.step));
            checkpoint::save(&self.directory.join("best.safetensors"), &self.parameters, None, &self.state)?;
        }
        Ok(loss)
    }

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
