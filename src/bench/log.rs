use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::new_file::NewFile;

use super::{BenchError, Load, Pass, Sent};

/// The log of single requests: JSONL, written beside its final name and renamed when the run is complete.
#[derive(Debug)]
pub(super) struct RequestLog {
    path: PathBuf,
    file: BufWriter<NewFile>,
}

#[derive(Serialize)]
struct Line<'a> {
    target: &'a str,
    load: Load,
    repetition: usize,
    #[serde(flatten)]
    sent: &'a Sent,
}

impl RequestLog {
    /// Opens the file that will have this name.
    pub(super) fn create(path: &Path) -> Result<Self, BenchError> {
        let file = NewFile::create(path).map_err(|source| BenchError::Log { path: path.into(), source })?;
        Ok(Self { path: path.into(), file: BufWriter::new(file) })
    }

    /// Writes the requests of one pass, numbered from repetition 0.
    pub(super) fn write(
        &mut self,
        target: &str,
        load: Load,
        repetition: usize,
        pass: &Pass,
    ) -> Result<(), BenchError> {
        let mut write = || {
            for sent in &pass.requests {
                serde_json::to_writer(&mut self.file, &Line { target, load, repetition, sent })?;
                self.file.write_all(b"\n")?;
            }
            Ok(())
        };
        write().map_err(|source| BenchError::Log { path: self.path.clone(), source })
    }

    /// Gives the file its name.
    pub(super) fn finish(self) -> Result<(), BenchError> {
        let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error);
        file.and_then(NewFile::commit).map_err(|source| BenchError::Log { path: self.path.clone(), source })
    }
}
