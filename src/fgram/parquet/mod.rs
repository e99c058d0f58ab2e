//! F-gram sets as Parquet files.
//!
//! Two columns, sorted by rank: `tokens`, a list of unsigned 32-bit integers, and `count`, unsigned 64-bit. The policy is
//! in the file's key-value metadata (`scone.max_n`, `scone.special_tokens`, `scone.tokenizer_sha256`). The reader
//! also takes what other engines make of such a table: signed integers of 32 or 64 bits, nullable columns, rows in
//! another order, other codecs, no metadata.

mod rows;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use thiserror::Error;

use crate::new_file::NewFile;

use super::{FgramSet, Policy, SetBuilder, SetError, rank_order};
use rows::{RowError, Rows, Stream};

const SCHEMA: &str = "message fgrams {
    required group tokens (LIST) { repeated group list { required int32 element (INTEGER(32, false)); } }
    required int64 count (INTEGER(64, false));
}";

/// F-grams in a row group.
const ROW_GROUP: usize = 1 << 20;

/// Rows read at a time.
const BATCH: usize = 1 << 13;

const MAX_N_KEY: &str = "scone.max_n";
const SPECIAL_TOKENS_KEY: &str = "scone.special_tokens";
const TOKENIZER_KEY: &str = "scone.tokenizer_sha256";

/// What goes wrong with a file of f-grams.
#[derive(Debug, Error)]
pub enum FileError {
    /// The file cannot be read or written.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The file is not Parquet, is damaged, or cannot be written.
    #[error("{} cannot be used as Parquet", .path.display())]
    Parquet {
        /// Which file.
        path: PathBuf,
        /// What the library says.
        source: ParquetError,
    },
    /// The file is Parquet but no f-gram set.
    #[error("{} is not a file of f-grams: {what}", .path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The rows do not make a set.
    #[error("{} is not an f-gram set", .path.display())]
    Set {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: SetError,
    },
}

/// Writes a set, under a temporary name that is renamed once everything is on disk.
///
/// # Errors
/// Where the directory cannot be written.
pub fn write(set: &FgramSet, path: impl AsRef<Path>) -> Result<(), FileError> {
    let mut writer = Writer::create(path.as_ref(), set.policy())?;
    for (rank, &count) in (0..).zip(set.counts()) {
        if let Some(tokens) = set.tokens(rank) {
            writer.push(&tokens, count)?;
        }
    }
    writer.finish()
}

/// Reads a set that has its policy with it, as [`write()`] makes it.
///
/// # Errors
/// Where the file cannot be read, is damaged, has no policy, or its rows are no closed set.
pub fn read(path: impl AsRef<Path>) -> Result<FgramSet, FileError> {
    open(path.as_ref(), None)
}

/// Reads a set that may come from elsewhere. What the file does not say of its policy is taken from `default`,
/// except K, which is then the length of the longest f-gram.
///
/// # Errors
/// As [`read`], but the policy may be missing.
pub fn read_with(path: impl AsRef<Path>, default: &Policy) -> Result<FgramSet, FileError> {
    open(path.as_ref(), Some(default))
}

fn open(path: &Path, default: Option<&Policy>) -> Result<FgramSet, FileError> {
    let set_error = |source| FileError::Set { path: path.to_owned(), source };
    let mut reader = Reader::open(path)?;
    // What is in order of rank, as our files are, is never in memory as a whole.
    if reader.has_max_n() {
        let mut builder = SetBuilder::new(reader.policy(default)?, reader.len()).map_err(set_error)?;
        let outcome = reader.for_each(|tokens, count| builder.push(tokens, count))?;
        match outcome {
            Ok(()) => return Ok(builder.finish()),
            Err(SetError::Order { .. }) => {}
            Err(error) => return Err(set_error(error)),
        }
        reader = Reader::open(path)?;
    }
    let mut rows = Rows::default();
    while reader.append(&mut rows)? {}
    let mut policy = reader.policy(default)?;
    if !reader.has_max_n() {
        policy.max_n = rows.iter().map(|(tokens, _)| tokens.len()).max().unwrap_or(0).max(2);
    }
    let mut ranked: Vec<(&[u32], u64)> = rows.iter().collect();
    if !ranked.is_sorted_by(|&a, &b| rank_order(a, b).is_le()) {
        ranked.sort_unstable_by(|&a, &b| rank_order(a, b));
    }
    FgramSet::from_ranked(policy, ranked).map_err(set_error)
}

/// Writes rows as they come, under a temporary name: a set, or the counts of n-grams.
pub struct Writer {
    path: PathBuf,
    writer: SerializedFileWriter<NewFile>,
    elements: Vec<i32>,
    repetition: Vec<i16>,
    counts: Vec<i64>,
}

impl Writer {
    /// Begins a file.
    ///
    /// # Errors
    /// Where the directory cannot be written.
    pub fn create(path: &Path, policy: &Policy) -> Result<Self, FileError> {
        let file = NewFile::create(path).map_err(|source| FileError::Io {
            doing: "write",
            path: path.to_owned(),
            source,
        })?;
        let special: Vec<String> = policy.special_tokens.iter().map(u32::to_string).collect();
        let metadata = vec![
            KeyValue::new(MAX_N_KEY.to_owned(), policy.max_n.to_string()),
            KeyValue::new(SPECIAL_TOKENS_KEY.to_owned(), special.join(",")),
            KeyValue::new(TOKENIZER_KEY.to_owned(), policy.tokenizer_sha256.clone()),
        ];
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_key_value_metadata(Some(metadata))
            .build();
        let writer = parse_message_type(SCHEMA)
            .and_then(|schema| SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)))
            .map_err(|source| FileError::Parquet { path: path.to_owned(), source })?;
        let path = path.to_owned();
        Ok(Self { path, writer, elements: Vec::new(), repetition: Vec::new(), counts: Vec::new() })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub fn push(&mut self, tokens: &[u32], count: u64) -> Result<(), FileError> {
        for (i, &token) in tokens.iter().enumerate() {
            self.repetition.push(i16::from(i > 0));
            self.elements.push(token as i32);
        }
        self.counts.push(count as i64);
        if self.counts.len() == ROW_GROUP { self.end_group() } else { Ok(()) }
    }

    fn end_group(&mut self) -> Result<(), FileError> {
        self.write_group().map_err(|source| FileError::Parquet { path: self.path.clone(), source })?;
        self.elements.clear();
        self.repetition.clear();
        self.counts.clear();
        Ok(())
    }

    fn write_group(&mut self) -> Result<(), ParquetError> {
        let mut group = self.writer.next_row_group()?;
        if let Some(mut column) = group.next_column()? {
            let definition = vec![1; self.elements.len()];
            let (elements, repetition) = (&self.elements, &self.repetition);
            column.typed::<Int32Type>().write_batch(elements, Some(&definition), Some(repetition))?;
            column.close()?;
        }
        if let Some(mut column) = group.next_column()? {
            column.typed::<Int64Type>().write_batch(&self.counts, None, None)?;
            column.close()?;
        }
        group.close()?;
        Ok(())
    }

    /// Writes what is left, makes the file durable and gives it its name.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub fn finish(mut self) -> Result<(), FileError> {
        if !self.counts.is_empty() {
            self.end_group()?;
        }
        let Self { path, writer, .. } = self;
        let file = writer.into_inner().map_err(|source| FileError::Parquet { path: path.clone(), source })?;
        file.commit().map_err(|source| FileError::Io { doing: "write", path, source })
    }
}

/// Reads rows as they stand, some thousands at a time.
pub struct Reader {
    path: PathBuf,
    stream: Stream,
    rows: Rows,
    at: usize,
}

impl Reader {
    /// Opens a file of rows.
    ///
    /// # Errors
    /// Where it cannot be read or is not Parquet.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(|source| FileError::Io {
            doing: "open",
            path: path.to_owned(),
            source,
        })?;
        let stream = guard(path, || Stream::new(file))?;
        Ok(Self { path: path.to_owned(), stream, rows: Rows::default(), at: 0 })
    }

    /// The policy; what the file does not say of it is taken from `default`.
    ///
    /// # Errors
    /// Where it is said nowhere, or makes no sense.
    pub fn policy(&self, default: Option<&Policy>) -> Result<Policy, FileError> {
        policy(|key| self.stream.value(key), default)
            .map_err(|what| FileError::Content { path: self.path.clone(), what })
    }

    /// Whether the file says its K.
    pub fn has_max_n(&self) -> bool {
        self.stream.value(MAX_N_KEY).is_some()
    }

    /// How many rows the file says it has.
    fn len(&self) -> usize {
        self.stream.len()
    }

    /// The next row; `None` after the last.
    ///
    /// # Errors
    /// Where the file is damaged, or its columns are not those of n-grams and counts.
    pub fn next_row(&mut self) -> Result<Option<(&[u32], u64)>, FileError> {
        if self.at == self.rows.len() {
            let mut rows = std::mem::take(&mut self.rows);
            rows.clear();
            self.at = 0;
            let more = self.append(&mut rows);
            self.rows = rows;
            if !more? {
                return Ok(None);
            }
        }
        self.at += 1;
        Ok(self.rows.get(self.at - 1))
    }

    fn for_each<E>(
        &mut self,
        mut take: impl FnMut(&[u32], u64) -> Result<(), E>,
    ) -> Result<Result<(), E>, FileError> {
        while let Some((tokens, count)) = self.next_row()? {
            if let Err(error) = take(tokens, count) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    fn append(&mut self, rows: &mut Rows) -> Result<bool, FileError> {
        guard(&self.path, || self.stream.append(rows, BATCH))
    }
}

/// The library panics on some damaged files (a negative offset, for one); that is an error like any other.
fn guard<T>(path: &Path, read: impl FnOnce() -> Result<T, RowError>) -> Result<T, FileError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(ParquetError::General("its metadata makes no sense".to_owned()).into()))
        .map_err(|error| match error {
            RowError::Parquet(source) => FileError::Parquet { path: path.to_owned(), source },
            RowError::Content(what) => FileError::Content { path: path.to_owned(), what },
        })
}

fn policy<'a>(
    value: impl Fn(&'static str) -> Option<&'a str>,
    default: Option<&Policy>,
) -> Result<Policy, String> {
    let missing =
        |key: &str| format!("its metadata has no {key}, so the tokenizer it belongs to must be given");
    let max_n = match (value(MAX_N_KEY), default) {
        (Some(text), _) => text.parse().map_err(|_| format!("{MAX_N_KEY} is {text:?}"))?,
        (None, Some(default)) => default.max_n,
        (None, None) => return Err(missing(MAX_N_KEY)),
    };
    let special_tokens = match (value(SPECIAL_TOKENS_KEY), default) {
        (Some(text), _) => {
            let mut ids = text
                .split(',')
                .filter(|id| !id.is_empty())
                .map(|id| id.parse().map_err(|_| format!("{SPECIAL_TOKENS_KEY} is {text:?}")))
                .collect::<Result<Vec<u32>, _>>()?;
            ids.sort_unstable();
            ids
        }
        (None, Some(default)) => default.special_tokens.clone(),
        (None, None) => return Err(missing(SPECIAL_TOKENS_KEY)),
    };
    let tokenizer_sha256 = match (value(TOKENIZER_KEY), default) {
        (Some(text), _) => text.to_owned(),
        (None, Some(default)) => default.tokenizer_sha256.clone(),
        (None, None) => return Err(missing(TOKENIZER_KEY)),
    };
    Ok(Policy { max_n, special_tokens, tokenizer_sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(max_n: usize) -> Policy {
        Policy { max_n, special_tokens: vec![0, 7], tokenizer_sha256: "a tokenizer".to_owned() }
    }

    /// Runs of one token: `(1 1 1)` needs `(1 1)` only, so any depth is closed.
    fn rows(tokens: u32, depth: usize) -> Vec<(Vec<u32>, u64)> {
        let mut rows: Vec<_> = (10..10 + tokens)
            .flat_map(|token| (2..=depth).map(move |n| (vec![token; n], u64::from(token) * 100 - n as u64)))
            .collect();
        rows.sort_by(|a, b| rank_order((&a.0, a.1), (&b.0, b.1)));
        rows
    }

    fn set(tokens: u32, depth: usize) -> FgramSet {
        let rows = rows(tokens, depth);
        FgramSet::from_ranked(policy(depth), rows.iter().map(|(t, c)| (t.as_slice(), *c))).unwrap()
    }

    /// What another engine writes: nullable columns of another type, no metadata of ours.
    fn foreign(rows: &[(Vec<u32>, u64)], integer: &str, compression: Compression) -> Vec<u8> {
        let schema = format!(
            "message m {{ optional {integer} count; optional group tokens (LIST) {{ repeated group list {{ \
             optional {integer} element; }} }} }}"
        );
        let properties = WriterProperties::builder().set_compression(compression).build();
        let schema = Arc::new(parse_message_type(&schema).unwrap());
        let mut file = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut file, schema, Arc::new(properties)).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let counts: Vec<i64> = rows.iter().map(|row| row.1 as i64).collect();
        let tokens: Vec<i64> = rows.iter().flat_map(|row| row.0.iter().map(|&id| id as i32 as i64)).collect();
        let repetition: Vec<i16> =
            rows.iter().flat_map(|row| (0..row.0.len()).map(|i| i16::from(i > 0))).collect();
        for (values, level, repetition) in [(&counts, 1, None), (&tokens, 3, Some(&repetition[..]))] {
            let mut column = group.next_column().unwrap().unwrap();
            let definition = vec![level; values.len()];
            if integer == "int32" {
                let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
                column.typed::<Int32Type>().write_batch(&values, Some(&definition), repetition).unwrap();
            } else {
                column.typed::<Int64Type>().write_batch(values, Some(&definition), repetition).unwrap();
            }
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
        file
    }

    fn read_bytes(bytes: &[u8]) -> Result<FgramSet, FileError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("foreign.parquet");
        std::fs::write(&path, bytes).unwrap();
        read_with(path, &policy(16))
    }

    #[test]
    fn a_set_survives_writing_and_reading() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("set.parquet");
        for (tokens, depth) in [(0, 2), (1, 2), (30_000, 5)] {
            let set = set(tokens, depth);
            write(&set, &path).unwrap();
            let again = read(&path).unwrap();
            assert_eq!((again.policy(), again.counts()), (set.policy(), set.counts()));
            assert_eq!(again.sha256(), set.sha256());
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_other_engines_write_is_read() {
        let mut rows = rows(50, 4);
        rows.reverse();
        let zstd = Compression::ZSTD(ZstdLevel::default());
        for integer in ["int32", "int64"] {
            for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd] {
                let read = read_bytes(&foreign(&rows, integer, compression)).unwrap();
                assert_eq!((read.sha256(), read.counts()), (set(50, 4).sha256(), set(50, 4).counts()));
            }
        }
    }

    #[test]
    fn what_is_no_set_is_named() {
        let say = |rows: &[(Vec<u32>, u64)]| {
            let error = read_bytes(&foreign(rows, "int64", Compression::SNAPPY)).unwrap_err();
            format!("{:#}", anyhow::Error::from(error))
        };
        let twice = say(&[(vec![1, 1], 5), (vec![1, 1], 5)]);
        assert!(
            twice.contains("foreign.parquet is not an f-gram set") && twice.contains("or the same"),
            "{twice}"
        );
        assert!(say(&[(vec![1, 1, 1], 5)]).contains("its prefix is not"));
        assert!(say(&[(vec![1, 7], 5)]).contains("a special token"));
        assert!(say(&[(vec![1, u32::MAX], 5)]).contains("negative"));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("foreign.parquet");
        std::fs::write(&path, foreign(&rows(2, 3), "int64", Compression::SNAPPY)).unwrap();
        assert!(read(path).unwrap_err().to_string().contains("metadata has no scone.max_n"));
    }

    /// Every truncation and many changed bytes: an error, or a set; no panic.
    #[test]
    fn damaged_files_are_errors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("set.parquet");
        write(&set(20, 4), &path).unwrap();
        let ours = std::fs::read(&path).unwrap();
        for good in [ours, foreign(&rows(20, 4), "int64", Compression::UNCOMPRESSED)] {
            read_bytes(&good).unwrap();
            for len in 0..good.len() {
                assert!(read_bytes(&good[..len]).is_err(), "{len} bytes of {}", good.len());
            }
            for at in 0..good.len() {
                for flip in [1, 0x80] {
                    let mut bad = good.clone();
                    bad[at] ^= flip;
                    drop(read_bytes(&bad));
                }
            }
        }
    }
}
