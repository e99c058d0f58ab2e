use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use super::checkpoint::Snapshot;
use crate::train::TrainError;

/// What a snapshot is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Purpose {
    /// As the weights of the lowest validation loss.
    pub(super) best: bool,
    /// As what the run can be continued from.
    pub(super) checkpoint: bool,
}

/// The checkpoints of a run: `step-00000200.safetensors` and so on, the newest few of them, and `best.safetensors`, the
/// weights of the lowest validation loss.
///
/// They are written by a thread of their own, one snapshot at a time, while the run goes on. What went wrong is told at
/// the next [`Keeper::wait`].
pub(super) struct Keeper {
    directory: PathBuf,
    /// How many checkpoints stay.
    keep: usize,
    writing: Option<JoinHandle<Result<(), TrainError>>>,
}

impl Keeper {
    pub(super) fn new(directory: &Path, keep: usize) -> Self {
        Self { directory: directory.to_owned(), keep, writing: None }
    }

    /// Where the best weights are.
    pub(super) fn best(&self) -> PathBuf {
        self.directory.join("best.safetensors")
    }

    /// Whether a directory holds a checkpoint; none does where there is no directory.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub(super) fn holds_any(directory: &Path) -> Result<bool, TrainError> {
        Ok(directory.exists() && !checkpoints(directory)?.is_empty())
    }

    /// The newest checkpoint that is whole, and its file; `None` where there is none at all. Newer ones that are damaged
    /// are set aside under another name, and a warning says so.
    ///
    /// # Errors
    /// Where a file cannot be read, or there are checkpoints and all of them are damaged.
    pub(super) fn newest(&self) -> Result<Option<(PathBuf, Snapshot)>, TrainError> {
        let mut damaged: Vec<(PathBuf, TrainError)> = Vec::new();
        for (step, path) in checkpoints(&self.directory)?.into_iter().rev() {
            match Snapshot::read(&path) {
                Ok(snapshot) => {
                    for (path, error) in damaged {
                        let aside = path.with_extension("safetensors.damaged");
                        tracing::warn!(
                            "{error}; it is now called {}, and the run goes on after step {step} instead",
                            aside.display()
                        );
                        std::fs::rename(&path, aside).map_err(TrainError::io(&path))?;
                    }
                    return Ok(Some((path, snapshot)));
                }
                Err(error @ TrainError::Checkpoint { .. }) => damaged.push((path, error)),
                Err(error) => return Err(error),
            }
        }
        match damaged.into_iter().next() {
            Some((_, newest)) => Err(newest),
            None => Ok(None),
        }
    }

    /// Waits for the snapshot that is being written, if there is one.
    ///
    /// # Errors
    /// Where it could not be written.
    pub(super) fn wait(&mut self) -> Result<(), TrainError> {
        let Some(thread) = self.writing.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| {
            let why = std::io::Error::other("the thread that writes checkpoints has panicked");
            Err(TrainError::io(&self.directory)(why))
        })
    }

    /// Begins to write a snapshot. The best weights come first: a checkpoint that names them never lies there without them.
    ///
    /// # Errors
    /// Where the snapshot before could not be written, or no thread can be started.
    pub(super) fn begin(&mut self, snapshot: Snapshot, purpose: Purpose) -> Result<(), TrainError> {
        self.wait()?;
        let (best, directory, keep) = (self.best(), self.directory.clone(), self.keep);
        let write = move || {
            if purpose.best {
                snapshot.write(&best, false)?;
            }
            if purpose.checkpoint {
                let name = format!("step-{:08}.safetensors", snapshot.state.step);
                snapshot.write(&directory.join(name), true)?;
                remove_oldest(&directory, keep)?;
            }
            Ok(())
        };
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(write);
        self.writing = Some(thread.map_err(TrainError::io(&self.directory))?);
        Ok(())
    }
}

impl Drop for Keeper {
    /// A run that ends early, by an error, leaves its last snapshot whole.
    fn drop(&mut self) {
        if let Err(error) = self.wait() {
            tracing::error!("{error}");
        }
    }
}

/// The checkpoints there are, by step.
fn checkpoints(directory: &Path) -> Result<Vec<(u64, PathBuf)>, TrainError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(TrainError::io(directory))? {
        let entry = entry.map_err(TrainError::io(directory))?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|name| name.strip_prefix("step-")?.strip_suffix(".safetensors"));
        if let Some(step) = step.and_then(|step| step.parse().ok()) {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

fn remove_oldest(directory: &Path, keep: usize) -> Result<(), TrainError> {
    let found = checkpoints(directory)?;
    for (_, path) in &found[..found.len().saturating_sub(keep)] {
        std::fs::remove_file(path).map_err(TrainError::io(path))?;
    }
    Ok(())
}
