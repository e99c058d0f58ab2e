use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::log::Log;
use crate::corpus::Dataset;
use crate::fgram::FgramSet;
use crate::train::{JointModel, RunConfig, TrainError};

/// `samples.jsonl`: how the model continues the configured prompts, at validations.
///
/// Every new token costs a pass over all of its text, for nothing is cached: this is a look at a run, not a server.
pub(super) struct Samples<'a> {
    log: Log,
    dataset: &'a Dataset,
    set: Option<&'a FgramSet>,
    prompts: Vec<(String, Vec<u32>)>,
    config: RunConfig,
}

#[derive(Serialize)]
struct Sample<'a> {
    step: u64,
    prompt: &'a str,
    text: String,
}

impl<'a> Samples<'a> {
    /// Opens the file of a run that stands at `step`.
    ///
    /// # Errors
    /// Where a prompt cannot be tokenized or the file cannot be written.
    pub(super) fn open(
        path: &Path,
        config: &RunConfig,
        step: u64,
        dataset: &'a Dataset,
        set: Option<&'a FgramSet>,
    ) -> Result<Self, TrainError> {
        // What is shown before the first update is shown again.
        let (log, _) = Log::open(path, |line| line <= step && step > 0)?;
        Ok(Self { log, dataset, set, prompts: prompts(config, dataset)?, config: config.clone() })
    }

    /// Continues every prompt and writes a line for each, if this validation is one of those that do.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub(super) fn write(&mut self, step: u64, model: &JointModel) -> Result<(), TrainError> {
        let validation = step.div_ceil(self.config.validation.every);
        if !validation.is_multiple_of(self.config.samples.every) && step != self.config.train.steps {
            return Ok(());
        }
        let texts = self.continued(model)?;
        for ((prompt, tokens), text) in self.prompts.iter().zip(&texts) {
            let text = self.dataset.tokenizer().decode(&text[tokens.len()..]);
            self.log.write(&Sample { step, prompt, text })?;
        }
        Ok(())
    }

    /// See [`Log::sync`].
    pub(super) fn sync(&self) -> Result<(), TrainError> {
        self.log.sync()
    }

    /// The prompts' tokens and those that the model adds.
    fn continued(&self, model: &JointModel) -> candle_core::Result<Vec<Vec<u32>>> {
        let (context, eos) = (self.config.model.context, self.dataset.eos());
        let mut texts: Vec<Vec<u32>> = self.prompts.iter().map(|(_, tokens)| tokens.clone()).collect();
        let mut open: Vec<usize> = (0..texts.len()).collect();
        // The same numbers at every step: what differs between two samples is the model.
        let mut random: Vec<ChaCha8Rng> =
            (0..texts.len() as u64).map(|i| ChaCha8Rng::seed_from_u64(self.config.seed ^ i)).collect();
        for _ in 0..self.config.samples.tokens {
            if open.is_empty() {
                break;
            }
            let seen: Vec<&[u32]> =
                open.iter().map(|&i| &texts[i][texts[i].len().saturating_sub(context)..]).collect();
            let logits: Vec<Vec<f32>> = model.next_logits(&seen, self.set)?.to_vec2()?;
            for (&i, logits) in open.iter().zip(&logits) {
                texts[i].push(choose(logits, self.config.samples.temperature, &mut random[i]));
            }
            open.retain(|&i| texts[i].last() != Some(&eos));
        }
        Ok(texts)
    }
}

/// The configured prompts and their tokens.
///
/// # Errors
/// Where one cannot be tokenized.
pub(super) fn prompts(config: &RunConfig, dataset: &Dataset) -> Result<Vec<(String, Vec<u32>)>, TrainError> {
    let encode = |prompt: &String| {
        let refused = |e| TrainError::Data(format!("[samples] {prompt:?} cannot be tokenized: {e}"));
        let tokens = dataset.tokenizer().encode(prompt).map_err(refused)?;
        // Without a prompt a new document begins, as after the end of one.
        Ok((prompt.clone(), if tokens.is_empty() { vec![dataset.eos()] } else { tokens }))
    };
    config.samples.prompts.iter().map(encode).collect()
}

/// The most likely token at temperature 0, else one drawn: with Gumbel noise on it the largest is a draw from the softmax.
fn choose(logits: &[f32], temperature: f64, random: &mut ChaCha8Rng) -> u32 {
    let mut best = (0, f64::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        let value = if temperature > 0.0 {
            f64::from(logit) / temperature - (-(1.0 - random.random::<f64>()).ln()).ln()
        } else {
            f64::from(logit)
        };
        if value > best.1 {
            best = (id as u32, value);
        }
    }
    best.0
}
