//! Files that are there whole or not at all.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::TableError;

/// A file that is written beside its final name and gets that name only when it is complete. Dropped before, it is
/// removed.
pub(super) struct NewFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl NewFile {
    pub(super) fn create(path: &Path) -> Result<Self, TableError> {
        // A rename onto a directory would fail only at the end of a long computation.
        if path.is_dir() {
            return Err(TableError::io("write", path)(io::ErrorKind::IsADirectory.into()));
        }
        let mut prefix = path.file_name().unwrap_or_default().to_owned();
        prefix.push(".");
        // tempfile would allow the owner only; this leaves it to the umask, as for any other file.
        let file = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".partial")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory(path))
            .map_err(TableError::io("create", path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// The final name.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the contents durable, then the name.
    pub(super) fn commit(self) -> Result<(), TableError> {
        let Self { file, path } = self;
        file.as_file().sync_all().map_err(TableError::io("write", &path))?;
        file.persist(&path).map_err(|e| TableError::io("rename to", &path)(e.error))?;
        File::open(directory(&path))
            .and_then(|directory| directory.sync_all())
            .map_err(TableError::io("sync the directory of", &path))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_file_mut().flush()
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
