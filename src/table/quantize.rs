use std::path::Path;

use super::{Contents, RowFormat, Table, TableError, TableWriter};

/// Numbers that are converted at a time.
const NUMBERS: usize = 4 << 20;

/// Writes a finished table again with its rows in another format, without its model. It goes on where a killed one
/// left off. `progress` is told of every so many rows more.
///
/// Rows that were rounded once are rounded a second time: from int8 to int4 the error is practically that of int4
/// alone, from int4 to anything else nothing is won.
///
/// # Errors
/// If the table turns out to be damaged, if a number is too large for the type, or if the file cannot be written.
pub fn quantize(
    table: &Table,
    path: &Path,
    format: RowFormat,
    progress: &mut dyn FnMut(u64),
) -> Result<(), TableError> {
    let mut writer = TableWriter::open(path, format, Contents::of_table(table), table.identity())?;
    let at_once = (NUMBERS / table.dim()).max(1);
    progress(writer.rows() as u64);
    while writer.rows() < table.len() {
        let end = table.len().min(writer.rows() + at_once);
        let ranks: Vec<u32> = (writer.rows()..end).map(|rank| rank as u32).collect();
        let mut rows = vec![0.0; ranks.len() * table.dim()];
        table.gather(&ranks, &mut rows)?;
        writer.push(&rows)?;
        progress(ranks.len() as u64);
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{RowType, testing};
    use super::*;

    #[test]
    fn is_the_table_that_would_have_been_written() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let set = testing::set(700, 3);
        testing::write(&at("exact"), RowType::F32, 19, &set);
        let exact = Table::open(at("exact")).unwrap();
        for (row_type, align) in
            [(RowType::F16, 1), (RowType::Bf16, 64), (RowType::Int8, 1), (RowType::Int4, 16)]
        {
            let format = RowFormat { align, ..RowFormat::packed(row_type, 19) };
            testing::write_as(&at("written"), format, &set);
            let mut told = 0;
            quantize(&exact, &at("quantized"), format, &mut |rows| told += rows).unwrap();
            assert_eq!(told, 700);
            assert!(fs::read(at("written")).unwrap() == fs::read(at("quantized")).unwrap(), "{row_type}");
            assert_eq!(Table::open(at("quantized")).unwrap().row_format().stride(), format.stride());
        }
    }
}
