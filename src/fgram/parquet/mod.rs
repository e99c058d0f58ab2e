//! F-gram sets as Parquet files.
//!
//! Two columns, sorted by rank: `tokens`, a list of unsigned 32-bit integers, and `count`, unsigned 64-bit. The policy is
//! in the file's key-value metadata (`scone.max_n`, `scone.special_tokens`, `scone.tokenizer_sha256`). The reader
//! also takes what other engines make of such a table: signed integers of 32 or 64 bits, nullable columns, rows in
//! another order, other codecs, no metadata.

mod rows;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use thiserror::Error;

use crate::new_file::NewFile;

use super::{FgramSet, Policy, SetError, rank_order};
use rows::{RowError, Rows};

const SCHEMA: &str = "message fgrams {
    required group tokens (LIST) { repeated group list { required int32 element (INTEGER(32, false)); } }
    required int64 count (INTEGER(64, false));
}";

/// F-grams in a row group.
const ROW_GROUP: usize = 1 << 20;

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
    let path = path.as_ref();
    let io = |source| FileError::Io { doing: "write", path: path.to_owned(), source };
    let mut file = NewFile::create(path).map_err(io)?;
    write_to(set, &mut file).map_err(|source| FileError::Parquet { path: path.to_owned(), source })?;
    file.commit().map_err(io)
}

fn write_to(set: &FgramSet, file: impl Write + Send) -> Result<(), ParquetError> {
    let policy = set.policy();
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
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties))?;
    let ranks: Vec<u32> = (0..set.len() as u32).collect();
    for ranks in ranks.chunks(ROW_GROUP) {
        let mut group = writer.next_row_group()?;
        let (mut elements, mut repetition) = (Vec::new(), Vec::new());
        for tokens in ranks.iter().filter_map(|&rank| set.tokens(rank)) {
            for (i, &token) in tokens.iter().enumerate() {
                repetition.push(i16::from(i > 0));
                elements.push(token as i32);
            }
        }
        if let Some(mut column) = group.next_column()? {
            let definition = vec![1; elements.len()];
            column.typed::<Int32Type>().write_batch(&elements, Some(&definition), Some(&repetition))?;
            column.close()?;
        }
        if let Some(mut column) = group.next_column()? {
            let counts: Vec<i64> = ranks.iter().map(|&rank| set.counts()[rank as usize] as i64).collect();
            column.typed::<Int64Type>().write_batch(&counts, None, None)?;
            column.close()?;
        }
        group.close()?;
    }
    writer.close()?;
    Ok(())
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
    let file =
        File::open(path).map_err(|source| FileError::Io { doing: "open", path: path.to_owned(), source })?;
    // The library panics on some damaged files (a negative offset, for one); that is an error like any other.
    let reading = std::panic::AssertUnwindSafe(|| {
        let reader = SerializedFileReader::new(file)?;
        let rows = Rows::read(&reader)?;
        Ok((reader, rows))
    });
    let outcome = std::panic::catch_unwind(reading)
        .unwrap_or_else(|_| Err(ParquetError::General("its metadata makes no sense".to_owned()).into()));
    let (reader, rows) = outcome.map_err(|error| match error {
        RowError::Parquet(source) => FileError::Parquet { path: path.to_owned(), source },
        RowError::Content(what) => FileError::Content { path: path.to_owned(), what },
    })?;
    let metadata = reader.metadata().file_metadata().key_value_metadata();
    let value = |key| {
        let pair = metadata?.iter().find(|pair| pair.key == key)?;
        pair.value.as_deref()
    };
    let policy = policy(value, default, rows.longest())
        .map_err(|what| FileError::Content { path: path.to_owned(), what })?;
    let mut ranked: Vec<(&[u32], u64)> = rows.iter().collect();
    if !ranked.is_sorted_by(|&a, &b| rank_order(a, b).is_le()) {
        ranked.sort_unstable_by(|&a, &b| rank_order(a, b));
    }
    FgramSet::from_ranked(policy, ranked).map_err(|source| FileError::Set { path: path.to_owned(), source })
}

fn policy<'a>(
    value: impl Fn(&'static str) -> Option<&'a str>,
    default: Option<&Policy>,
    longest: usize,
) -> Result<Policy, String> {
    let missing =
        |key: &str| format!("its metadata has no {key}, so the tokenizer it belongs to must be given");
    let max_n = match (value(MAX_N_KEY), default) {
        (Some(text), _) => text.parse().map_err(|_| format!("{MAX_N_KEY} is {text:?}"))?,
        (None, Some(_)) => longest.max(2),
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
