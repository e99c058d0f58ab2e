use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use candle_core::Tensor;
use candle_core::backprop::GradStore;

use super::{Progress, State, checkpoint};
use crate::train::{AdamW, Batch, Batches, JointModel, Parameters, RunConfig, TrainError, learning_rate};

/// What changes from step to step, apart from the data that it reads.
pub(super) struct Trainer {
    pub(super) config: RunConfig,
    pub(super) directory: PathBuf,
    pub(super) parameters: Parameters,
    pub(super) model: JointModel,
    pub(super) validation_model: JointModel,
    pub(super) optimizer: AdamW,
    pub(super) state: State,
    pub(super) checkpoint_step: u64,
}

impl Trainer {
    /// One update of the weights.
    pub(super) fn update(&mut self, batches: &Batches<'_>) -> Result<Progress, TrainError> {
        let (train, step) = (&self.config.train, self.state.step + 1);
        let start = Instant::now();
        let (mut loss, mut gradients) = (0.0, None);
        for micro in 0..train.accumulate {
            let number = self.state.step * train.accumulate as u64 + micro as u64;
            let mut batch = batches.shuffled(number, train.batch)?;
            if let Some(fgram) = self.config.fgram.as_ref().filter(|fgram| fgram.fallback > 0.0) {
                batch.fall_back(fgram.fallback, self.config.seed ^ number);
            }
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
        for (name, var) in self.parameters.trained() {
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

    /// Adds a backward pass's gradients to those so far. Every parameter that is trained must have one.
    fn add_gradients(
        &self,
        sum: Option<BTreeMap<String, Tensor>>,
        store: &GradStore,
    ) -> Result<BTreeMap<String, Tensor>, TrainError> {
        let mut sum = sum.unwrap_or_default();
        for (name, var) in self.parameters.trained() {
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
    pub(super) fn validate(&mut self, batches: &[Batch]) -> Result<f64, TrainError> {
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
}
