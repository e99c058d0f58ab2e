use std::collections::BTreeMap;
use std::time::Instant;

use super::{CorpusProgress, Progress, State};
use crate::train::parallel::{Alone, Group, GroupError, Pairwise, sum_gradients};
use crate::train::{
    AdamW, Batch, Batches, Gradients, HeldOut, JointModel, Parameters, RunConfig, TrainError, add_gradients,
    learning_rate, square_sums,
};

/// What changes from step to step, apart from the data that it reads.
pub(super) struct Trainer {
    pub(super) config: RunConfig,
    pub(super) parameters: Parameters,
    pub(super) model: JointModel,
    pub(super) validation_model: JointModel,
    pub(super) optimizer: AdamW,
    pub(super) state: State,
    pub(super) checkpoint_step: u64,
    pub(super) group: Box<dyn Group>,
}

/// What an update came to.
pub(super) struct Advanced {
    /// The line of metrics.
    pub(super) progress: Progress,
    /// Whether the weights are now the best so far.
    pub(super) best: bool,
    /// Why the group is no more: a process was lost in the validation.
    pub(super) lost: Option<GroupError>,
}

impl Trainer {
    /// One update, and the validation that is due after it. An error leaves weights and state as they were before.
    pub(super) fn advance(
        &mut self,
        batches: &Batches<'_>,
        held_out: &[HeldOut],
    ) -> Result<Advanced, TrainError> {
        let mut progress = self.update(batches)?;
        let step = self.state.step;
        if !step.is_multiple_of(self.config.validation.every) && step < self.config.train.steps {
            return Ok(Advanced { progress, best: false, lost: None });
        }
        match self.validate(batches, held_out, &mut progress) {
            Ok(best) => Ok(Advanced { progress, best, lost: None }),
            // An update without its validation is not whole, and alone the sum is the same.
            Err(TrainError::Group(lost)) if self.leads() => {
                self.group = Box::new(Alone);
                let best = self.validate(batches, held_out, &mut progress)?;
                Ok(Advanced { progress, best, lost: Some(lost) })
            }
            Err(error) => Err(error),
        }
    }

    /// Whether any process wants to stop after this step, and whether there is to be a checkpoint, which is made of weights
    /// that are the same in all.
    pub(super) fn agree(&mut self, stop: bool) -> Result<(bool, bool), TrainError> {
        let (step, every) = (self.state.step, self.config.checkpoint.every);
        let stopping = self.group.any(stop)?;
        let checkpoint = step.is_multiple_of(every) || step == self.config.train.steps || stopping;
        if checkpoint {
            self.check_group()?;
            self.checkpoint_step = step;
        }
        Ok((stopping, checkpoint))
    }

    /// One update of the weights. Each process of the group computes its share of the batches.
    fn update(&mut self, batches: &Batches<'_>) -> Result<Progress, TrainError> {
        let (train, step) = (&self.config.train, self.state.step + 1);
        let start = Instant::now();
        let (mut losses, mut sums) = (vec![0.0; train.accumulate], Pairwise::default());
        let share = train.accumulate / self.group.world_size();
        let own = losses.iter_mut().enumerate().skip(share * self.group.rank()).take(share);
        for (micro, loss) in own {
            let number = self.state.step * train.accumulate as u64 + micro as u64;
            let mut batch = batches.shuffled(number, train.batch)?;
            if let Some(fgram) = self.config.fgram.as_ref().filter(|fgram| fgram.fallback > 0.0) {
                batch.fall_back(fgram.fallback, self.config.seed ^ number);
            }
            let (found, gradients) =
                self.model.gradients(&batch, &self.parameters, 1.0 / train.accumulate as f64)?;
            // Not before: a GPU that is asked for a number is waited for.
            *loss = f64::from(found.to_scalar::<f32>()?) / train.accumulate as f64;
            sums.push(gradients, add_gradients)?;
        }
        let mut gradients = sums.finish(add_gradients)?.unwrap_or_default();
        self.group.sum_f64(&mut losses)?;
        sum_gradients(&mut *self.group, &mut gradients)?;
        let loss = losses.iter().sum();
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
            corpora: BTreeMap::new(),
            learning_rate: rate,
            gradient_norm: norm,
            tokens_per_second: tokens as f64 / start.elapsed().as_secs_f64(),
        })
    }

    /// The norm of all gradients, in the order of the parameters' names; refuses what is not finite.
    fn gradient_norm(&self, gradients: &Gradients, loss: f64, step: u64) -> Result<f64, TrainError> {
        if !loss.is_finite() {
            // The parameter that broke first is the one to name, if there is one.
            let broken = self.parameters.iter().find(|(_, var)| {
                !var.sqr()
                    .and_then(|x| x.sum_all())
                    .and_then(|x| x.to_scalar::<f32>())
                    .is_ok_and(f32::is_finite)
            });
            let broken = broken.map_or("the loss".to_owned(), |(name, _)| format!("the parameter {name}"));
            return Err(self.diverged(step, &broken));
        }
        let mut sum = 0f64;
        let squares = square_sums(gradients.values())?;
        for (name, square) in gradients.keys().zip(squares) {
            if !square.is_finite() {
                return Err(self.diverged(step, &format!("the gradient of {name}")));
            }
            sum += square;
        }
        Ok(sum.sqrt())
    }

    /// Notes the validation loss, each corpus weighted by its share, and those of the corpora; and says whether it is the
    /// lowest so far.
    pub(super) fn validate(
        &mut self,
        batches: &Batches<'_>,
        held_out: &[HeldOut],
        progress: &mut Progress,
    ) -> Result<bool, TrainError> {
        let (step, train) = (self.state.step, &self.config.train);
        let epochs = batches.epochs(step * (train.batch * train.accumulate) as u64);
        let mut losses = Vec::with_capacity(held_out.len());
        for held_out in held_out {
            losses.push(self.mean_loss(&held_out.batches)?);
        }
        let loss: f64 = held_out.iter().zip(&losses).map(|(held_out, loss)| held_out.share * loss).sum();
        if !loss.is_finite() {
            return Err(self.diverged(step, "the validation loss"));
        }
        progress.validation_loss = Some(loss);
        // Of a single corpus that would say nothing more.
        if let [_, _, ..] = held_out {
            let corpora = held_out.iter().zip(epochs.into_iter().zip(losses));
            progress.corpora = corpora
                .map(|(held_out, (epochs, validation_loss))| {
                    (held_out.name.clone(), CorpusProgress { epochs, validation_loss })
                })
                .collect();
        }
        let best = self.state.best.is_none_or(|(best, _)| loss < best);
        if best {
            self.state.best = Some((loss, step));
        }
        Ok(best)
    }

    fn diverged(&self, step: u64, tensor: &str) -> TrainError {
        TrainError::Diverged { step, tensor: tensor.to_owned(), checkpoint: self.checkpoint_step }
    }

    /// The loss over all tokens of some batches, with the weights as they are. The processes of the group take the batches
    /// in turn, and the sum is in the batches' order.
    fn mean_loss(&mut self, batches: &[Batch]) -> Result<f64, TrainError> {
        let (rank, processes) = (self.group.rank(), self.group.world_size());
        let mut losses = vec![0.0; batches.len()];
        for (i, batch) in batches.iter().enumerate().skip(rank).step_by(processes) {
            let loss = self.validation_model.loss(batch)?.to_scalar::<f32>()?;
            losses[i] = f64::from(loss) * batch.inputs.len() as f64;
        }
        self.group.sum_f64(&mut losses)?;
        let tokens: usize = batches.iter().map(|batch| batch.inputs.len()).sum();
        Ok(losses.iter().sum::<f64>() / tokens as f64)
    }

    /// Whether this process is the one that reads and writes the run's files.
    pub(super) fn leads(&self) -> bool {
        self.group.rank() == 0
    }
}
