use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::new_file;
use crate::train::TrainError;

/// A file of JSON lines, each with a `step`, that a run adds to: `metrics.jsonl`, `signs.jsonl`, `samples.jsonl`.
pub(super) struct Log {
    path: PathBuf,
    file: File,
}

/// What every line has.
#[derive(Deserialize)]
struct Line {
    step: u64,
}

impl Log {
    /// Opens the log and drops what a killed run wrote after the checkpoint that it continues from: the lines of steps that
    /// do not stay. Returns those that do, too.
    pub(super) fn open(path: &Path, stays: impl Fn(u64) -> bool) -> Result<(Self, String), TrainError> {
        let mut kept = String::new();
        if path.exists() {
            let text = std::fs::read(path).map_err(TrainError::io(path))?;
            let stays = |line: &&str| serde_json::from_str::<Line>(line).is_ok_and(|line| stays(line.step));
            for line in String::from_utf8_lossy(&text).lines().filter(stays) {
                kept.push_str(line);
                kept.push('\n');
            }
            if kept.as_bytes() != text {
                new_file::write(path, kept.as_bytes()).map_err(TrainError::io(path))?;
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(TrainError::io(path))?;
        Ok((Self { path: path.to_owned(), file }, kept))
    }

    /// Waits until the disk has it all.
    pub(super) fn sync(&self) -> Result<(), TrainError> {
        self.file.sync_data().map_err(TrainError::io(&self.path))
    }

    /// Adds a line.
    pub(super) fn write(&mut self, line: &impl Serialize) -> Result<(), TrainError> {
        let mut line = serde_json::to_string(line).unwrap_or_default();
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(TrainError::io(&self.path))
    }
}
