//! Reading the two columns, whatever types they were written with.

use std::fs::File;

use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::DataType;
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};

/// Why rows cannot be read.
pub(super) enum RowError {
    Parquet(ParquetError),
    Content(String),
}

impl From<ParquetError> for RowError {
    fn from(error: ParquetError) -> Self {
        Self::Parquet(error)
    }
}

impl From<String> for RowError {
    fn from(what: String) -> Self {
        Self::Content(what)
    }
}

/// The rows of a file, flat.
#[derive(Default)]
pub(super) struct Rows {
    tokens: Vec<u32>,
    /// Where each row's tokens end.
    ends: Vec<usize>,
    counts: Vec<u64>,
}

impl Rows {
    pub(super) fn read(reader: &SerializedFileReader<File>) -> Result<Self, RowError> {
        let mut rows = Self::default();
        for group in 0..reader.num_row_groups() {
            rows.append(&*reader.get_row_group(group)?)?;
        }
        Ok(rows)
    }

    fn append(&mut self, group: &dyn RowGroupReader) -> Result<(), RowError> {
        let metadata = group.metadata();
        let (tokens, counts) = (leaf(metadata, "tokens", 1)?, leaf(metadata, "count", 0)?);
        for column in [metadata.column(tokens), metadata.column(counts)] {
            // Checked here, for the library panics on it.
            let offsets = [Some(column.data_page_offset()), column.dictionary_page_offset()];
            if column.compressed_size() < 0 || offsets.into_iter().flatten().any(|offset| offset < 0) {
                return Err("a column's place in the file is negative".to_owned().into());
            }
        }
        let full = metadata.column(tokens).column_descr().max_def_level();
        let before = self.ends.len();
        match group.get_column_reader(tokens)? {
            ColumnReader::Int32ColumnReader(reader) => {
                self.lists(reader, full, |id| u32::try_from(id).ok())?;
            }
            ColumnReader::Int64ColumnReader(reader) => {
                self.lists(reader, full, |id| u32::try_from(id).ok())?;
            }
            _ => return Err("the elements of `tokens` must be integers of 32 or 64 bits".to_owned().into()),
        }
        match group.get_column_reader(counts)? {
            ColumnReader::Int32ColumnReader(reader) => {
                self.counts(reader, |n| u64::try_from(n).ok())?;
            }
            ColumnReader::Int64ColumnReader(reader) => {
                self.counts(reader, |n| u64::try_from(n).ok())?;
            }
            _ => return Err("`count` must be an integer of 32 or 64 bits".to_owned().into()),
        }
        if self.ends.len() != self.counts.len() || (self.ends.len() - before) as i64 != metadata.num_rows() {
            let what = format!("{} rows of tokens, {} of counts", self.ends.len(), self.counts.len());
            return Err(what.into());
        }
        Ok(())
    }

    fn lists<T: DataType>(
        &mut self,
        mut reader: ColumnReaderImpl<T>,
        full: i16,
        token: impl Fn(T::T) -> Option<u32>,
    ) -> Result<(), RowError> {
        let (mut definition, mut repetition, mut values) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            definition.clear();
            repetition.clear();
            values.clear();
            let (records, _, levels) =
                reader.read_records(1 << 16, Some(&mut definition), Some(&mut repetition), &mut values)?;
            if records == 0 && levels == 0 {
                return Ok(());
            }
            if values.len() != repetition.len() || definition.iter().any(|&level| level != full) {
                return Err(format!("`tokens` is null or empty near row {}", self.ends.len()).into());
            }
            for (value, &level) in values.drain(..).zip(&repetition) {
                if level == 0 {
                    self.ends.push(self.tokens.len());
                }
                let row = self.ends.len();
                let Some(end) = self.ends.last_mut() else {
                    return Err("`tokens` does not begin with a row".to_owned().into());
                };
                self.tokens
                    .push(token(value).ok_or_else(|| format!("row {row} has a negative or huge token"))?);
                *end = self.tokens.len();
            }
        }
    }

    fn counts<T: DataType>(
        &mut self,
        mut reader: ColumnReaderImpl<T>,
        count: impl Fn(T::T) -> Option<u64>,
    ) -> Result<(), RowError> {
        let (mut definition, mut values) = (Vec::new(), Vec::new());
        loop {
            definition.clear();
            values.clear();
            let (records, _, _) = reader.read_records(1 << 16, Some(&mut definition), None, &mut values)?;
            if records == 0 {
                return Ok(());
            }
            if values.len() != records {
                return Err(format!("`count` is null near row {}", self.counts.len()).into());
            }
            for value in values.drain(..) {
                let row = self.counts.len();
                self.counts.push(count(value).ok_or_else(|| format!("row {row} has a negative count"))?);
            }
        }
    }

    pub(super) fn longest(&self) -> usize {
        self.iter().map(|(tokens, _)| tokens.len()).max().unwrap_or(0)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u32], u64)> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let lists = starts.zip(&self.ends).map(|(start, &end)| &self.tokens[start..end]);
        lists.zip(self.counts.iter().copied())
    }
}

/// The place of the one leaf column under `name`, which must be repeated so often.
fn leaf(group: &RowGroupMetaData, name: &str, repeated: i16) -> Result<usize, RowError> {
    let is_it = |descr: &parquet::schema::types::ColumnDescriptor| {
        descr.path().parts().first().is_some_and(|part| part == name) && descr.max_rep_level() == repeated
    };
    group.columns().iter().position(|column| is_it(column.column_descr())).ok_or_else(|| {
        let kind = if repeated == 1 { "list" } else { "plain" };
        format!("there is no {kind} column `{name}`").into()
    })
}
