//! Files that are there whole or not at all: every layer that writes one writes it through here.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A file that is written beside its final name and gets that name only when it is complete. Dropped before, it is
/// removed.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl NewFile {
    /// Opens the file that will have this name.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        // A rename onto a directory would fail only at the end of a long computation.
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let mut prefix = path.file_name().unwrap_or_default().to_owned();
        prefix.push(".");
        // tempfile would allow the owner only; this leaves it to the umask, as for any other file.
        let file = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".partial")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory(path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// The final name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the contents durable, then the name.
    pub(crate) fn commit(self) -> io::Result<()> {
        let Self { file, path } = self;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        File::open(directory(&path))?.sync_all()
    }
}

/// Writes a whole file at once.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = NewFile::create(path)?;
    file.write_all(bytes)?;
    file.commit()
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_file_mut().flush()
    }
}

/// The directory that holds a file of this name.
pub(crate) fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn may_be_read_by_whom_other_new_files_may() {
        let directory = tempfile::tempdir().unwrap();
        let (ours, other) = (directory.path().join("ours"), directory.path().join("other"));
        let mut file = NewFile::create(&ours).unwrap();
        file.write_all(b"rows").unwrap();
        assert!(!ours.exists());
        file.commit().unwrap();
        fs::write(&other, b"rows").unwrap();
        assert_eq!(fs::read(&ours).unwrap(), b"rows");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&other));
    }

    #[test]
    fn a_bare_name_is_in_the_current_directory() {
        assert_eq!(directory(Path::new("table")), Path::new("."));
        assert_eq!(directory(Path::new("a/table")), Path::new("a"));
    }
}
