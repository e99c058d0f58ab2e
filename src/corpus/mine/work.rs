//! The directory of files that a scan works in, and what of it a later process can go on from.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::survivors::Part;
use crate::corpus::Error;

const STATE: &str = "state.json";
const LOCK: &str = "lock";

/// What was done of a job. Written after each step that took long; whatever is not listed is done again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    /// Tokens that may be in an n-gram.
    pub(super) ordinary: u64,
    /// The scans that are counted, from n = 2.
    pub(super) scans: Vec<ScanState>,
    /// The ends of these scans are in files too: n, or 0 where none are.
    pub(super) followed: usize,
}

/// A scan that is counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ScanState {
    pub(super) candidates: u64,
    pub(super) parts: Vec<Part>,
    pub(super) effort: Effort,
}

/// What a scan took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Effort {
    /// Bytes of runs that did not fit in memory and were written to files.
    pub spilled_bytes: u64,
    /// Sorted runs.
    pub runs: u64,
    /// How often the runs were merged: once, or more often where they were too many to be read at once.
    pub merges: u64,
    /// Passes over the text after counting, to number the survivors; none after the last scan.
    pub passes: u64,
    /// Time for all of it.
    pub seconds: f64,
    /// Tokens of the text by that time.
    pub tokens_per_second: f64,
}

/// A directory that one process at a time works in.
///
/// Its name says what the job is, so that the same command finds it again after it was killed and goes on after the last
/// scan that was finished.
#[derive(Debug)]
pub struct WorkDirectory {
    path: PathBuf,
    /// Held as long as the directory is.
    _lock: File,
    state: State,
}

impl WorkDirectory {
    /// Opens or makes the directory of a job in `parent`. `job` is everything that the result depends on.
    pub(super) fn open(parent: &Path, job: &[u8]) -> Result<Self, Error> {
        let hash = Sha256::digest(job);
        let name: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let path = parent.join(format!("scone-mine-{name}"));
        std::fs::create_dir_all(&path).map_err(Error::io("make", &path))?;
        let lock_path = path.join(LOCK);
        let lock = File::create(&lock_path).map_err(Error::io("write", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what =
                    "another process is mining the same in it: wait for that, or choose another --temp-dir";
                return Err(Error::Busy { path, what });
            }
            Err(TryLockError::Error(source)) => return Err(Error::io("lock", &lock_path)(source)),
        }
        let state = read_state(&path)?;
        let mut work = Self { path, _lock: lock, state };
        work.sweep()?;
        Ok(work)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many scans an earlier process finished.
    pub fn finished_scans(&self) -> usize {
        self.state.scans.len()
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Writes the changed state, and removes files that are needed no more.
    pub(super) fn update(&mut self, change: impl FnOnce(&mut State)) -> Result<(), Error> {
        change(&mut self.state);
        let path = self.path.join(STATE);
        let json =
            serde_json::to_vec(&self.state).map_err(|error| Error::damaged(&path, error.to_string()))?;
        // Renamed, so that a killed process leaves the old state or the new one. Not made durable, for that would wait
        // for all of the ends and survivors to reach the disk: after a loss of power, checksums find what is missing.
        let new = self.path.join("state.json.partial");
        std::fs::write(&new, &json).map_err(Error::io("write", &new))?;
        std::fs::rename(&new, &path).map_err(Error::io("write", &path))?;
        self.sweep()
    }

    /// Removes every file of ours that the state does not list.
    fn sweep(&mut self) -> Result<(), Error> {
        let needed = |name: &str| {
            let parts = self.state.scans.iter().flat_map(|scan| &scan.parts);
            name == STATE
                || name == LOCK
                || name == format!("ends-{}", self.state.followed)
                || parts.into_iter().any(|part| part.file() == name)
        };
        for entry in std::fs::read_dir(&self.path).map_err(Error::io("read", &self.path))? {
            let entry = entry.map_err(Error::io("read", &self.path))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if needed(&name) {
                continue;
            }
            let path = entry.path();
            let ours = ["survivors-", "ends-", "runs-", "state.json."];
            if !ours.iter().any(|prefix| name.starts_with(prefix)) {
                let what = format!(
                    "{name} in it is not of mining: remove one or the other, or choose another --temp-dir"
                );
                return Err(Error::damaged(&self.path, what));
            }
            std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }

    /// Removes the directory, when the result is where it should be.
    ///
    /// # Errors
    /// Where it cannot be removed.
    pub fn remove(mut self) -> Result<(), Error> {
        let directory = self.path.clone();
        let remove = |name| {
            let path = directory.join(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::io("remove", &path)(error))
                }
                _ => Ok(()),
            }
        };
        // The state first, for it must list no file that is not there.
        remove(STATE)?;
        self.state = State::default();
        self.sweep()?;
        remove(LOCK)?;
        std::fs::remove_dir(&self.path).map_err(Error::io("remove", &self.path))
    }
}

fn read_state(directory: &Path) -> Result<State, Error> {
    let path = directory.join(STATE);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
            Error::damaged(&path, format!("{error}; remove the directory it is in to begin anew"))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(State::default()),
        Err(error) => Err(Error::io("read", &path)(error)),
    }
}

impl Effort {
    /// Adds the time of one of its steps, of a text of so many tokens.
    pub(super) fn add_time(&mut self, time: std::time::Duration, tokens: f64) {
        self.seconds += time.as_secs_f64();
        self.tokens_per_second = tokens / self.seconds.max(1e-9);
    }
}
