use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::new_file;
use crate::train::TrainError;

/// One line of `metrics.jsonl`: an update, or a validation after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Updates done.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// The training loss of this update, in nats a token.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loss: Option<f64>,
    /// The validation loss after it, in nats a token.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation_loss: Option<f64>,
    /// The learning rate of this update.
    pub learning_rate: f64,
    /// The norm of all gradients together, before clipping.
    pub gradient_norm: f64,
    /// Training tokens a second, validation left out.
    pub tokens_per_second: f64,
}

impl Progress {
    /// Before the first update: the validation loss of what the run starts from.
    pub(super) fn start(validation_loss: f64) -> Self {
        Self {
            step: 0,
            tokens: 0,
            loss: None,
            validation_loss: Some(validation_loss),
            learning_rate: 0.0,
            gradient_norm: 0.0,
            tokens_per_second: 0.0,
        }
    }
}

/// `metrics.jsonl`.
pub(super) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log and drops what a killed run wrote after `step`, the step of the checkpoint it continues from, and
    /// what it will write again.
    pub(super) fn open(path: &Path, step: u64) -> Result<Self, TrainError> {
        if path.exists() {
            let text = std::fs::read_to_string(path).map_err(TrainError::io(path))?;
            let kept: Vec<&str> = text
                .lines()
                .filter(|line| {
                    serde_json::from_str::<Progress>(line).is_ok_and(|line| line.step <= step && step > 0)
                })
                .collect();
            let kept: String = kept.iter().flat_map(|line| [*line, "\n"]).collect();
            new_file::write(path, kept.as_bytes()).map_err(TrainError::io(path))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(TrainError::io(path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    pub(super) fn write(&mut self, progress: &Progress) -> Result<(), TrainError> {
        let line = serde_json::to_string(progress).unwrap_or_default();
        writeln!(self.file, "{line}").map_err(TrainError::io(&self.path))
    }
}
