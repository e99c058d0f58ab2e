use std::io::{BufWriter, Write};

use safetensors::Dtype;

use super::super::{Table, TableError, header};
use super::{ExportType, metadata, numbers, tokens};
use crate::new_file::NewFile;

/// Rows converted at once.
const AT_ONCE: usize = 1024;

pub(super) fn write(table: &Table, file: NewFile, dtype: ExportType) -> Result<NewFile, TableError> {
    let (n, max_n) = (table.len(), table.policy().max_n);
    // The largest elements first, so that each tensor is aligned: some readers map the file.
    let mut tensors = Vec::new();
    header::append(&mut tensors, "count", Dtype::U64, &[n]);
    header::append(&mut tensors, "tokens", Dtype::U32, &[n, max_n]);
    let embeddings = match dtype {
        ExportType::F32 => Dtype::F32,
        ExportType::F16 => Dtype::F16,
    };
    header::append(&mut tensors, "embeddings", embeddings, &[n, table.dim()]);
    header::append(&mut tensors, "length", Dtype::U8, &[n]);
    let header = header::encode(&tensors, &metadata(table), 8)
        .expect("a header of four tensors and seven short strings is far below the limit");

    let path = file.path().to_owned();
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(TableError::io("write", &path));
    put(&header)?;
    for rank in 0..n as u32 {
        put(&table.count(rank).to_le_bytes())?;
    }
    let mut lengths = Vec::with_capacity(n);
    for rank in 0..n as u32 {
        let mut tokens = tokens(table, rank)?;
        lengths.push(tokens.len() as u8);
        tokens.resize(max_n, u32::MAX);
        put(bytemuck::cast_slice(&tokens))?;
    }
    for first in (0..n).step_by(AT_ONCE) {
        put(&numbers(table, first, n.min(first + AT_ONCE), dtype)?)?;
    }
    put(&lengths)?;
    out.into_inner().map_err(|e| TableError::io("write", &path)(e.into_error()))
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::super::super::{RowType, testing};
    use super::super::{Format, export};
    use super::*;

    #[test]
    fn holds_what_the_table_holds() {
        let directory = tempfile::tempdir().unwrap();
        let (path, exported) = (directory.path().join("table"), directory.path().join("export"));
        let set = testing::set(2_345, 4);
        testing::write(&path, RowType::Bf16, 11, &set);
        let table = Table::open(&path).unwrap();
        for dtype in [ExportType::F32, ExportType::F16] {
            export(&table, &exported, Format::Safetensors, dtype).unwrap();
            let bytes = std::fs::read(&exported).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let tensor = |name| file.tensor(name).unwrap();
            assert_eq!(tensor("tokens").shape(), [set.len(), 5]);
            assert_eq!(tensor("embeddings").shape(), [set.len(), 11]);
            let element = if dtype == ExportType::F32 { 4 } else { 2 };
            for rank in 0..set.len() {
                let mut tokens = set.tokens(rank as u32).unwrap();
                assert_eq!(usize::from(tensor("length").data()[rank]), tokens.len());
                tokens.resize(5, u32::MAX);
                assert_eq!(
                    tensor("tokens").data()[rank * 20..][..20],
                    *bytemuck::cast_slice::<u32, u8>(&tokens)
                );
                assert_eq!(tensor("count").data()[rank * 8..][..8], set.counts()[rank].to_le_bytes());
                let row = &tensor("embeddings").data()[rank * 11 * element..][..11 * element];
                for (x, bytes) in table.row(rank as u32).unwrap().iter().zip(row.chunks(element)) {
                    let y = match *bytes {
                        [a, b] => half::f16::from_le_bytes([a, b]).to_f32(),
                        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                        _ => unreachable!(),
                    };
                    let same = if element == 4 { *x } else { half::f16::from_f32(*x).to_f32() };
                    assert_eq!(y, same);
                }
            }
        }
    }
}
