use super::Progress;
use super::directory::RunDirectory;
use super::journal::Journal;
use super::keeper::Purpose;
use super::trainer::{Advanced, Trainer};
use crate::train::parallel::GroupError;
use crate::train::{Batches, HeldOut, TrainError};

/// A run under way: what is written and shown of each of its updates. In a group rank 0 alone has files.
pub(super) struct Course<'a> {
    pub(super) trainer: &'a mut Trainer,
    pub(super) directory: Option<&'a mut RunDirectory>,
    pub(super) journal: Option<Journal<'a>>,
    pub(super) observe: &'a mut dyn FnMut(&Progress),
}

impl Course<'_> {
    /// Validates what a trained model is before the first update: the first to beat.
    pub(super) fn begin(&mut self, batches: &Batches<'_>, held_out: &[HeldOut]) -> Result<(), TrainError> {
        let mut progress = Progress::start();
        let best = self.trainer.validate(batches, held_out, &mut progress)?;
        self.show(&progress)?;
        self.save(Purpose { best, checkpoint: false })
    }

    /// One update, and whether the run is to stop after it. `stop` says whether this process wants to, at a step.
    pub(super) fn advance(
        &mut self,
        batches: &Batches<'_>,
        held_out: &[HeldOut],
        stop: impl FnOnce(u64) -> bool,
    ) -> Result<bool, TrainError> {
        let advanced = self.trainer.advance(batches, held_out);
        if let Err(TrainError::Group(_)) = &advanced {
            // The weights are those of the last whole update: nothing of it needs to be lost with the process.
            self.save_now(false)?;
        }
        let Advanced { progress, best, lost } = advanced?;
        self.show(&progress)?;
        let agreed = match lost {
            Some(error) => Err(error.into()),
            None => self.trainer.agree(stop(progress.step)),
        };
        if let Err(TrainError::Group(GroupError::Lost { .. } | GroupError::OutOfStep { .. })) = &agreed {
            self.save_now(best)?;
        }
        let (stopping, checkpoint) = agreed?;
        self.save(Purpose { best, checkpoint })?;
        if stopping {
            self.wait()?;
        }
        Ok(stopping)
    }

    fn show(&mut self, progress: &Progress) -> Result<(), TrainError> {
        if let Some(journal) = &mut self.journal {
            journal.write(progress, &self.trainer.validation_model)?;
        }
        (self.observe)(progress);
        Ok(())
    }

    fn save(&mut self, purpose: Purpose) -> Result<(), TrainError> {
        if let Some(journal) = self.journal.as_ref().filter(|_| purpose.checkpoint) {
            journal.sync()?;
        }
        self.directory.as_mut().map_or(Ok(()), |directory| directory.save(self.trainer, purpose))
    }

    fn save_now(&mut self, best: bool) -> Result<(), TrainError> {
        self.save(Purpose { best, checkpoint: true })?;
        self.wait()
    }

    fn wait(&mut self) -> Result<(), TrainError> {
        self.directory.as_mut().map_or(Ok(()), |directory| directory.wait())
    }
}
