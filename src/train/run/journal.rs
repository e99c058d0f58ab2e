use std::path::{Path, PathBuf};

use super::Progress;
use super::dead::DeadFgrams;
use super::log::Log;
use super::samples::Samples;
use super::signs::{Kind, Sign, Watch};
use crate::train::report::draw_curves;
use crate::train::{Corpora, JointModel, RunConfig, TrainError};

/// What a run writes about itself as it goes: `metrics.jsonl`, `signs.jsonl` and, where prompts are configured,
/// `samples.jsonl`.
pub(super) struct Journal<'a> {
    directory: PathBuf,
    metrics: Log,
    signs: Log,
    watch: Watch,
    samples: Option<Samples<'a>>,
}

impl<'a> Journal<'a> {
    /// Opens the files of a run that stands at `step`.
    ///
    /// # Errors
    /// Where a file cannot be read or written, or a prompt cannot be tokenized.
    pub(super) fn open(
        directory: &Path,
        config: &RunConfig,
        step: u64,
        corpora: &'a Corpora,
        dead: Option<&DeadFgrams>,
    ) -> Result<Self, TrainError> {
        // What is measured before the first update is measured again.
        let (metrics, seen) = Log::open(&directory.join("metrics.jsonl"), |line| line <= step && step > 0)?;
        let (signs, said) = Log::open(&directory.join("signs.jsonl"), |line| line <= step)?;
        let mut watch = Watch::new(&config.train);
        // The signs of these are in the file already: a resumed run neither forgets nor repeats.
        for progress in seen.lines().filter_map(|line| serde_json::from_str(line).ok()) {
            watch.see(&progress);
        }
        let samples = (!config.samples.prompts.is_empty())
            .then(|| {
                Samples::open(&directory.join("samples.jsonl"), config, step, corpora.first(), corpora.set())
            })
            .transpose()?;
        let mut journal = Self { directory: directory.to_owned(), metrics, signs, watch, samples };
        let mut said = said.lines().filter_map(|line| serde_json::from_str::<Sign>(line).ok());
        if !said.any(|sign| sign.sign == Kind::DeadFgrams) {
            match (dead, dead.and_then(DeadFgrams::sign)) {
                (_, Some(sign)) => journal.say(&sign)?,
                (Some(dead), None) => tracing::info!("{dead}"),
                (None, None) => {}
            }
        }
        Ok(journal)
    }

    /// Writes down an update, and what it and the validation after it show.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub(super) fn write(&mut self, progress: &Progress, model: &JointModel) -> Result<(), TrainError> {
        self.metrics.write(progress)?;
        for sign in self.watch.see(progress) {
            self.say(&sign)?;
        }
        if progress.validation_loss.is_none() {
            return Ok(());
        }
        draw_curves(&self.directory)?;
        match &mut self.samples {
            Some(samples) => samples.write(progress.step, model),
            None => Ok(()),
        }
    }

    /// Waits until the disk has it all, so that no checkpoint is ahead of it.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub(super) fn sync(&self) -> Result<(), TrainError> {
        let samples = self.samples.as_ref().map_or(Ok(()), Samples::sync);
        self.metrics.sync().and(self.signs.sync()).and(samples)
    }

    fn say(&mut self, sign: &Sign) -> Result<(), TrainError> {
        tracing::warn!("step {}: {}", sign.step, sign.message);
        self.signs.write(sign)
    }
}
