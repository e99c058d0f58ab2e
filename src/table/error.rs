use std::path::{Path, PathBuf};

use thiserror::Error;

use super::RowType;

/// What can go wrong with a table, and what to do about it.
#[derive(Debug, Error)]
pub enum TableError {
    /// The operating system refused.
    #[error("cannot {action} {}: {why}", .path.display())]
    Io {
        /// "open", "write", ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What it said. No `source`: what prints an error with its causes would say it twice.
        why: std::io::Error,
    },
    /// Some other file.
    #[error("{} is not a scone table: {why}; `scone table build` makes one", .path.display())]
    NotATable {
        /// The file.
        path: PathBuf,
        /// What shows it.
        why: String,
    },
    /// A table of a version that this program does not know.
    #[error(
        "{} is a table of version {version}, and this program reads version 2: build it again with \
         `scone table build --fgrams FILE`, or use the program that wrote it", .path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: String,
    },
    /// Only some of a table's rows.
    #[error("{} is a part of a table: join all parts with `scone table merge`", .path.display())]
    Part {
        /// The file.
        path: PathBuf,
    },
    /// A table whose header contradicts itself or the format.
    #[error("the header of table {} is wrong: {why}; build it again with `scone table build`", .path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The field, and what is wrong with it.
        why: String,
    },
    /// The file is shorter or longer than its header says.
    #[error(
        "table {} has {actual} bytes, but by its header it should have {expected}: it was cut short or changed; \
         copy it again, or build it again with `scone table build`", .path.display()
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes by the header.
        expected: u64,
        /// Bytes there are.
        actual: u64,
    },
    /// The file was changed under its reader, or cannot be read any more.
    #[error(
        "table {} was changed while in use: {why}; put a whole file in its place, then reload it (SIGHUP or \
         POST /admin/table) or start again", .path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// What shows it.
        why: String,
    },
    /// The contents are not what was written, or not what the format allows.
    #[error(
        "table {} is damaged in {place}: {why}; copy it again, or build it again with `scone table build`",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The tensor, with byte offsets or a rank.
        place: String,
        /// What is wrong there.
        why: String,
    },
    /// The set that a table is to be made for cannot have one.
    #[error("cannot make a table of this: {0}")]
    Unfit(String),
    /// A row to be written has a NaN or an infinity.
    #[error(
        "the embedding of f-gram {rank} has {value} in column {column}: the f-gram model or its weights are broken"
    )]
    NotFinite {
        /// Which f-gram.
        rank: usize,
        /// Where in its row, from 0.
        column: usize,
        /// The number.
        value: f32,
    },
    /// A row to be written has a number too large for the table's type.
    #[error(
        "the embedding of f-gram {rank} has {value} in column {column}, too large for {row_type}: use another type"
    )]
    Overflow {
        /// Which f-gram.
        rank: usize,
        /// Where in its row, from 0.
        column: usize,
        /// The number.
        value: f32,
        /// The type of the table's rows.
        row_type: RowType,
    },
    /// Numbers that are no whole number of rows.
    #[error("{values} numbers are not {rows} rows of {dim}")]
    Shape {
        /// Numbers given or room for them.
        values: usize,
        /// How many rows they should be.
        rows: usize,
        /// The width of a row.
        dim: usize,
    },
    /// Other than N rows were written.
    #[error("{pushed} rows were given for a table of {rows} f-grams")]
    RowCount {
        /// Rows given.
        pushed: usize,
        /// N.
        rows: usize,
    },
    /// No such row.
    #[error("there is no row {rank} in table {}: it has {rows}", .path.display())]
    NoSuchRow {
        /// The file.
        path: PathBuf,
        /// The rank asked for.
        rank: u32,
        /// N.
        rows: usize,
    },
    /// A word that names no type or format.
    #[error("`{word}` is not one of {known}")]
    Word {
        /// The word.
        word: String,
        /// The words that would do.
        known: &'static str,
    },
}

impl TableError {
    /// For `map_err`: an error of the operating system on `path`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |why| Self::Io { action, path, why }
    }

    pub(super) fn changed(path: &Path, why: impl Into<String>) -> Self {
        Self::Changed { path: path.to_owned(), why: why.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_operating_system_said_is_said_once() {
        let error = TableError::io("open", Path::new("a"))(std::io::Error::from_raw_os_error(2));
        let printed = format!("{:#}", anyhow::Error::from(error));
        assert_eq!(printed.matches("os error 2").count(), 1, "{printed}");
    }
}
