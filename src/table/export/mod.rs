//! Tables in forms that other tools read.
//!
//! Both have the same four parts, a line for each f-gram in order of rank: `tokens`, `length` (how many tokens),
//! `count` (in the mined corpus) and `embeddings`. In safetensors `tokens` is U32 `[N, K]`, left-aligned and padded with
//! `u32::MAX`, `length` U8 `[N]`, `count` U64 `[N]` and `embeddings` F32 or F16 `[N, d]`; in Parquet `tokens` and `embeddings`
//! are lists.

mod parquet;
mod safetensors;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::{Table, TableError};
use crate::new_file::NewFile;

/// The form of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A plain safetensors file: one line of Python opens it.
    Safetensors,
    /// A Parquet file, compressed with zstd: for data engines.
    Parquet,
}

/// The type of the numbers of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportType {
    /// 32-bit floats: as exact as the table.
    F32,
    /// IEEE half precision.
    F16,
}

/// Writes the table's contents to a new file at `path`, a few rows at a time; the file is there whole or not at all.
///
/// # Errors
/// If the table turns out to be damaged, if a number is too large for f16, or if the file cannot be written.
pub fn export(table: &Table, path: &Path, format: Format, dtype: ExportType) -> Result<(), TableError> {
    let file = NewFile::create(path).map_err(TableError::io("create", path))?;
    match format {
        Format::Safetensors => safetensors::write(table, file, dtype)?,
        Format::Parquet => parquet::write(table, file, dtype)?,
    }
    .commit()
    .map_err(TableError::io("write", path))
}

/// What an export says of its origin.
fn metadata(table: &Table) -> BTreeMap<&'static str, String> {
    let mut metadata = BTreeMap::from([
        ("format", "pt".to_owned()), // What the usual Python readers expect of a file of tensors.
        ("made_by", "scone table export".to_owned()),
        ("max_n", table.policy().max_n.to_string()),
    ]);
    metadata.extend(table.identity().parts().map(|(key, _, hash)| (key, hash.to_owned())));
    metadata
}

/// The tokens of an f-gram, or the error that there are none.
fn tokens(table: &Table, rank: u32) -> Result<Vec<u32>, TableError> {
    table.index().tokens(rank).ok_or_else(|| TableError::Damaged {
        path: table.path().to_owned(),
        place: format!("`keys`, f-gram {rank}"),
        why: "its tokens cannot be read".to_owned(),
    })
}

/// The rows from `first` up to `end`, in the export's type: little-endian bytes.
fn numbers(table: &Table, first: usize, end: usize, dtype: ExportType) -> Result<Vec<u8>, TableError> {
    let ranks: Vec<u32> = (first..end).map(|rank| rank as u32).collect();
    let mut rows = vec![0.0_f32; ranks.len() * table.dim()];
    table.gather(&ranks, &mut rows)?;
    let row_type = match dtype {
        ExportType::F32 => return Ok(bytemuck::cast_slice(&rows).to_vec()),
        ExportType::F16 => super::RowType::F16,
    };
    let mut bytes = vec![0; rows.len() * 2];
    let encoded = bytes.chunks_exact_mut(table.dim() * 2);
    for ((rank, row), out) in (first..end).zip(rows.chunks_exact(table.dim())).zip(encoded) {
        row_type.encode(row, out).map_err(|misfit| misfit.at(rank, row, row_type))?;
    }
    Ok(bytes)
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::Parquet => "parquet",
        })
    }
}

impl FromStr for Format {
    type Err = TableError;

    fn from_str(word: &str) -> Result<Self, TableError> {
        match word {
            "safetensors" => Ok(Self::Safetensors),
            "parquet" => Ok(Self::Parquet),
            _ => Err(TableError::Word { word: word.to_owned(), known: "safetensors, parquet" }),
        }
    }
}

impl fmt::Display for ExportType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        })
    }
}

impl FromStr for ExportType {
    type Err = TableError;

    fn from_str(word: &str) -> Result<Self, TableError> {
        match word {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            _ => Err(TableError::Word { word: word.to_owned(), known: "f32, f16" }),
        }
    }
}
