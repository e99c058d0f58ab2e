use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::train::TrainError;

/// How long a lock may outlive the run that held it: a program that this one is just starting has it too, for a moment.
const PATIENCE: Duration = Duration::from_millis(500);

/// A run directory that this process alone writes to. The lock goes with the process, however that ends.
pub(super) struct Claim {
    _lock: File,
}

impl Claim {
    /// Makes the directory, locks it, and removes what a killed process left half written.
    ///
    /// # Errors
    /// Where another process trains there, or the directory cannot be written.
    pub(super) fn take(directory: &Path) -> Result<Self, TrainError> {
        std::fs::create_dir_all(directory).map_err(TrainError::io(directory))?;
        let path = directory.join(".lock");
        let lock = File::create(&path).map_err(TrainError::io(&path))?;
        let start = Instant::now();
        let mut tried = lock.try_lock();
        while matches!(tried, Err(TryLockError::WouldBlock)) && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
            tried = lock.try_lock();
        }
        match tried {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(TrainError::Busy(directory.to_owned())),
            // Not every network file system has locks: there it is up to the user.
            Err(TryLockError::Error(error)) => {
                tracing::debug!("{} cannot be locked: {error}", path.display());
            }
        }
        for entry in std::fs::read_dir(directory).map_err(TrainError::io(directory))? {
            let path = entry.map_err(TrainError::io(directory))?.path();
            if path.extension().is_some_and(|extension| extension == "partial") && path.is_file() {
                std::fs::remove_file(&path).map_err(TrainError::io(&path))?;
            }
        }
        Ok(Self { _lock: lock })
    }
}
