use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{
    ByteArray, DataType, FixedLenByteArray, FixedLenByteArrayType, FloatType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use super::super::{Table, TableError};
use super::{ExportType, metadata, numbers, tokens};
use crate::new_file::NewFile;

/// About how many numbers of embeddings a row group has: it is held in memory while it is written.
const GROUP: usize = 8 << 20;

pub(super) fn write(table: &Table, file: NewFile, dtype: ExportType) -> Result<NewFile, TableError> {
    let path = file.path().to_owned();
    let failed = |e: ParquetError| TableError::io("write", &path)(into_io(e));
    let element = match dtype {
        ExportType::F32 => "float element",
        ExportType::F16 => "fixed_len_byte_array (2) element (FLOAT16)",
    };
    let schema = format!(
        "message fgrams {{
            required group tokens (LIST) {{ repeated group list {{ required int32 element (INTEGER(32, false)); }} }}
            required int32 length (INTEGER(8, false));
            required int64 count (INTEGER(64, false));
            required group embeddings (LIST) {{ repeated group list {{ required {element}; }} }}
        }}"
    );
    let schema = parse_message_type(&schema).map_err(failed)?;
    let origin = metadata(table).into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value));
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        // Embeddings hardly repeat: a dictionary of them would be built in vain.
        .set_column_dictionary_enabled(ColumnPath::from("embeddings.list.element"), false)
        .set_key_value_metadata(Some(origin.collect()))
        .build();
    let mut out = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)).map_err(failed)?;
    let rows = (GROUP / table.dim()).clamp(1, 1 << 20);
    for first in (0..table.len()).step_by(rows) {
        let columns = Columns::read(table, first, table.len().min(first + rows), dtype)?;
        let mut group = out.next_row_group().map_err(failed)?;
        columns.write(&mut group).map_err(failed)?;
        group.close().map_err(failed)?;
    }
    // Writes the footer first.
    out.into_inner().map_err(failed)
}

/// Some rows of the table, by column.
struct Columns {
    tokens: Vec<i32>,
    lengths: Vec<i32>,
    counts: Vec<i64>,
    embeddings: Vec<u8>,
    dim: usize,
    dtype: ExportType,
}

impl Columns {
    fn read(table: &Table, first: usize, end: usize, dtype: ExportType) -> Result<Self, TableError> {
        let embeddings = numbers(table, first, end, dtype)?;
        let (mut all, mut lengths, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for rank in first as u32..end as u32 {
            let tokens = tokens(table, rank)?;
            lengths.push(tokens.len() as i32);
            // Parquet's unsigned numbers are signed ones with the same bits.
            counts.push(table.count(rank) as i64);
            all.extend(tokens.into_iter().map(|token| token as i32));
        }
        Ok(Self { tokens: all, lengths, counts, embeddings, dim: table.dim(), dtype })
    }

    /// In the order of the schema.
    fn write(self, group: &mut SerializedRowGroupWriter<'_, NewFile>) -> Result<(), ParquetError> {
        let lengths: Vec<usize> = self.lengths.iter().map(|&n| n as usize).collect();
        put::<Int32Type>(group, &self.tokens, Some(&lengths))?;
        put::<Int32Type>(group, &self.lengths, None)?;
        put::<Int64Type>(group, &self.counts, None)?;
        let widths = vec![self.dim; self.lengths.len()];
        match self.dtype {
            ExportType::F32 => {
                let floats = self.embeddings.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                put::<FloatType>(group, &floats.collect::<Vec<f32>>(), Some(&widths))
            }
            ExportType::F16 => {
                // Views of one buffer, not an allocation a number.
                let bytes = ByteArray::from(self.embeddings);
                let halves: Vec<FixedLenByteArray> =
                    (0..bytes.len()).step_by(2).map(|at| bytes.slice(at, 2).into()).collect();
                put::<FixedLenByteArrayType>(group, &halves, Some(&widths))
            }
        }
    }
}

/// Writes the next column: plain values, or lists of the given lengths (none of them 0).
fn put<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, NewFile>,
    values: &[T::T],
    lists: Option<&[usize]>,
) -> Result<(), ParquetError> {
    let missing = || ParquetError::General("the schema has fewer columns than are written".to_owned());
    let mut column = group.next_column()?.ok_or_else(missing)?;
    match lists {
        None => column.typed::<T>().write_batch(values, None, None)?,
        Some(lists) => {
            // Repetition 0 starts a list and 1 goes on with it; definition 1 is a value, 0 would be an empty list.
            let repetition: Vec<i16> =
                lists.iter().flat_map(|&len| (0..len).map(|i| i16::from(i > 0))).collect();
            let definition = vec![1; repetition.len()];
            column.typed::<T>().write_batch(values, Some(&definition), Some(&repetition))?
        }
    };
    column.close()
}

/// The system's own error where there is one below, so that a full disk reads as one.
fn into_io(error: ParquetError) -> std::io::Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(io) => *io,
            Err(other) => std::io::Error::other(other),
        },
        other => std::io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::{Field, ListAccessor, RowAccessor};

    use super::super::super::{RowType, testing};
    use super::super::{Format, export};
    use super::*;

    #[test]
    fn holds_what_the_table_holds() {
        let directory = tempfile::tempdir().unwrap();
        let (path, exported) = (directory.path().join("table"), directory.path().join("export"));
        let set = testing::set(321, 4);
        testing::write(&path, RowType::F16, 9, &set);
        let table = Table::open(&path).unwrap();
        for dtype in [ExportType::F32, ExportType::F16] {
            export(&table, &exported, Format::Parquet, dtype).unwrap();
            let reader = SerializedFileReader::new(std::fs::File::open(&exported).unwrap()).unwrap();
            let mut rank = 0;
            for row in reader.get_row_iter(None).unwrap() {
                let row = row.unwrap();
                let tokens = set.tokens(rank).unwrap();
                let list = row.get_list(0).unwrap();
                assert_eq!((0..list.len()).map(|i| list.get_uint(i).unwrap()).collect::<Vec<_>>(), tokens);
                assert_eq!(usize::from(row.get_ubyte(1).unwrap()), tokens.len());
                assert_eq!(row.get_ulong(2).unwrap(), set.counts()[rank as usize]);
                let numbers: Vec<f32> = row.get_list(3).unwrap().elements().iter().map(number).collect();
                // The table has f16 rows, so both types hold its numbers exactly.
                assert_eq!(numbers, table.row(rank).unwrap());
                rank += 1;
            }
            assert_eq!(rank as usize, set.len());
        }
    }

    fn number(field: &Field) -> f32 {
        match field {
            Field::Float(x) => *x,
            Field::Float16(x) => x.to_f32(),
            other => panic!("{other} is no number"),
        }
    }
}
