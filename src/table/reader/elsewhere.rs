//! For who keeps a copy of a table's rows, as a GPU does.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::Table;
use crate::table::TableError;
use crate::table::metrics::Tally;
use crate::table::rows::forget;

impl Table {
    /// Reads a part of [`Table::row_bytes_in_all`], from the byte `from` on, past the mapping; the page cache is told to
    /// forget it.
    ///
    /// # Errors
    /// Where the file ends before, or cannot be read.
    pub(crate) fn read_rows(&self, from: usize, out: &mut [u8]) -> Result<(), TableError> {
        let at = (self.geometry().start + from) as u64;
        self.file.read_exact_at(out, at).map_err(TableError::io("read", &self.path))?;
        forget(&self.file, at, out.len());
        Ok(())
    }

    /// Bytes from the start of one row to the start of the next.
    pub(crate) fn stride(&self) -> usize {
        self.dimensions.stride
    }

    /// Says that so many rows were read from a copy of the table's, and how long it took; and whether the file is still
    /// as it was, as [`Table::check`].
    ///
    /// # Errors
    /// As [`Table::check`].
    pub(crate) fn read_elsewhere(&self, rows: usize, time: Duration) -> Result<(), TableError> {
        self.check()?;
        let tally = Tally { memory: rows as u64, ..Tally::default() };
        self.metrics.gathered(tally, (rows * self.geometry().bytes) as u64, time);
        Ok(())
    }
}
