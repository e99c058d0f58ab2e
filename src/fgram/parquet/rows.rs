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

/// Some rows of a file, flat.
#[derive(Default)]
pub(super) struct Rows {
    tokens: Vec<u32>,
    /// Where each row's tokens end.
    ends: Vec<usize>,
    counts: Vec<u64>,
}

impl Rows {
    pub(super) fn clear(&mut self) {
        self.tokens.clear();
        self.ends.clear();
        self.counts.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn get(&self, row: usize) -> Option<(&[u32], u64)> {
        let start = row.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        Some((&self.tokens[start..*self.ends.get(row)?], *self.counts.get(row)?))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u32], u64)> {
        (0..self.len()).filter_map(|row| self.get(row))
    }

    /// Appends up to `most` lists; gives how many.
    fn lists<T: DataType>(
        &mut self,
        reader: &mut ColumnReaderImpl<T>,
        (most, full): (usize, i16),
        token: impl Fn(T::T) -> Option<u32>,
    ) -> Result<usize, RowError> {
        let (mut definition, mut repetition, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let mut done = 0;
        while done < most {
            definition.clear();
            repetition.clear();
            values.clear();
            let (records, _, levels) = reader.read_records(
                most - done,
                Some(&mut definition),
                Some(&mut repetition),
                &mut values,
            )?;
            if records == 0 && levels == 0 {
                break;
            }
            done += records;
            if values.len() != repetition.len() || definition.iter().any(|&level| level != full) {
                return Err("`tokens` is null or empty".to_owned().into());
            }
            for (value, &level) in values.drain(..).zip(&repetition) {
                if level == 0 {
                    self.ends.push(self.tokens.len());
                }
                let Some(end) = self.ends.last_mut() else {
                    return Err("`tokens` does not begin with a row".to_owned().into());
                };
                self.tokens.push(token(value).ok_or_else(|| "a token is negative or huge".to_owned())?);
                *end = self.tokens.len();
            }
        }
        Ok(done)
    }

    /// Appends up to `most` counts.
    fn counts<T: DataType>(
        &mut self,
        reader: &mut ColumnReaderImpl<T>,
        most: usize,
        count: impl Fn(T::T) -> Option<u64>,
    ) -> Result<(), RowError> {
        let (mut definition, mut values, mut done) = (Vec::new(), Vec::new(), 0);
        while done < most {
            definition.clear();
            values.clear();
            let (records, _, _) =
                reader.read_records(most - done, Some(&mut definition), None, &mut values)?;
            if records == 0 {
                break;
            }
            done += records;
            if values.len() != records {
                return Err("`count` is null".to_owned().into());
            }
            for value in values.drain(..) {
                self.counts.push(count(value).ok_or_else(|| "a count is negative".to_owned())?);
            }
        }
        Ok(())
    }
}

/// Reads a file from front to back.
pub(super) struct Stream {
    reader: SerializedFileReader<File>,
    next_group: usize,
    open: Option<Group>,
    /// Rows given so far.
    done: u64,
    /// The file's size.
    bytes: usize,
}

/// The two columns of the row group that is being read.
struct Group {
    tokens: ColumnReader,
    counts: ColumnReader,
    /// The definition level of a token that is there.
    full: i16,
    /// Rows that were not given yet.
    left: i64,
}

impl Stream {
    pub(super) fn new(file: File) -> Result<Self, RowError> {
        let bytes = file.metadata().map_or(0, |metadata| metadata.len() as usize);
        Ok(Self { reader: SerializedFileReader::new(file)?, next_group: 0, open: None, done: 0, bytes })
    }

    /// How many rows the file says it has, as far as its size can be true.
    pub(super) fn len(&self) -> usize {
        let rows = self.reader.metadata().file_metadata().num_rows();
        usize::try_from(rows).unwrap_or(0).min(self.bytes)
    }

    /// A value of the file's metadata.
    pub(super) fn value(&self, key: &str) -> Option<&str> {
        let pairs = self.reader.metadata().file_metadata().key_value_metadata()?;
        pairs.iter().find(|pair| pair.key == key)?.value.as_deref()
    }

    /// Appends up to `most` rows of one row group; gives whether there were any.
    pub(super) fn append(&mut self, rows: &mut Rows, most: usize) -> Result<bool, RowError> {
        loop {
            if let Some(group) = &mut self.open
                && group.left > 0
            {
                let before = (rows.ends.len(), rows.counts.len());
                let place = |error| match error {
                    RowError::Content(what) => {
                        RowError::Content(format!("{what} in one of the {most} rows from {} on", self.done))
                    }
                    error => error,
                };
                let most = most.min(usize::try_from(group.left).unwrap_or(most));
                group.append(rows, most).map_err(place)?;
                let (tokens, counts) = (rows.ends.len() - before.0, rows.counts.len() - before.1);
                if tokens != counts || tokens == 0 {
                    return Err(format!("{tokens} rows of tokens, {counts} of counts").into());
                }
                group.left -= tokens as i64;
                self.done += tokens as u64;
                return Ok(true);
            }
            if self.next_group == self.reader.num_row_groups() {
                return Ok(false);
            }
            self.open = Some(Group::open(&*self.reader.get_row_group(self.next_group)?)?);
            self.next_group += 1;
        }
    }
}

impl Group {
    fn open(group: &dyn RowGroupReader) -> Result<Self, RowError> {
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
        let (tokens, counts) = (group.get_column_reader(tokens)?, group.get_column_reader(counts)?);
        Ok(Self { tokens, counts, full, left: metadata.num_rows() })
    }

    fn append(&mut self, rows: &mut Rows, most: usize) -> Result<(), RowError> {
        let wanted = (most, self.full);
        let done = match &mut self.tokens {
            ColumnReader::Int32ColumnReader(reader) => {
                rows.lists(reader, wanted, |id| u32::try_from(id).ok())?
            }
            ColumnReader::Int64ColumnReader(reader) => {
                rows.lists(reader, wanted, |id| u32::try_from(id).ok())?
            }
            _ => return Err("the elements of `tokens` must be integers of 32 or 64 bits".to_owned().into()),
        };
        match &mut self.counts {
            ColumnReader::Int32ColumnReader(reader) => rows.counts(reader, done, |n| u64::try_from(n).ok()),
            ColumnReader::Int64ColumnReader(reader) => rows.counts(reader, done, |n| u64::try_from(n).ok()),
            _ => Err("`count` must be an integer of 32 or 64 bits".to_owned().into()),
        }
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
