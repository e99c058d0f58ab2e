//! What a table will take, before anybody spends it.

use serde::Serialize;

use super::RowFormat;
use super::TableError;
use super::format::{BLOCK, Dimensions, Layout, PAGE};

/// The sizes of a table that does not exist yet, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The file.
    pub disk: u64,
    /// Its rows.
    pub rows: u64,
    /// Keys, slots and scales: what every lookup needs in memory, whatever becomes of the rows.
    pub index: u64,
    /// Memory while it is built: the f-gram set and its index.
    pub building: u64,
}

/// Plans the table of so many f-grams. Counts are taken to be of 100,000 different values; they are the only thing
/// that depends on the set.
///
/// # Errors
/// Where there can be no such table.
pub fn plan(rows: usize, format: RowFormat) -> Result<Plan, TableError> {
    let stride = format.stride().map_err(TableError::Unfit)?;
    let RowFormat { row_type, dim, .. } = format;
    let dimensions = Dimensions { row_type, rows, dim, stride, runs: rows.min(100_000), part: None };
    if let Some(problem) = dimensions.problem() {
        return Err(TableError::Unfit(problem));
    }
    let layout = Layout::new(dimensions);
    let counts = 8 * rows;
    let index = layout.keys.len() + layout.scales.len() + layout.slots.len();
    Ok(Plan {
        disk: (PAGE + layout.checksums.end) as u64,
        rows: layout.rows.len() as u64,
        index: index as u64,
        building: (layout.keys.len() + layout.slots.len() + counts + 16 * BLOCK) as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{RowType, testing};
    use super::*;

    #[test]
    fn a_table_has_the_size_that_was_planned() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.safetensors");
        let set = testing::set(3000, 1);
        for (row_type, align) in [(RowType::F32, 1), (RowType::Int8, 64), (RowType::Int4, 1)] {
            let format = RowFormat { align, ..RowFormat::packed(row_type, 40) };
            testing::write_as(&path, format, &set);
            let (planned, size) = (plan(set.len(), format).unwrap(), path.metadata().unwrap().len());
            // The counts of so small a set are not known from its size.
            assert!(planned.disk.abs_diff(size) <= 12 * set.len() as u64, "{planned:?} {size}");
            assert_eq!(planned.rows, (format.stride().unwrap() * set.len()) as u64);
        }
        assert!(plan(0, RowFormat::packed(RowType::F32, 4)).is_err());
        assert!(plan(usize::MAX, RowFormat::packed(RowType::F32, usize::MAX)).is_err());
    }

    #[test]
    fn the_index_keeps_within_twenty_bytes_a_key() {
        for rows in [1_000_000, 10_000_000, 1_000_000_000, 4_000_000_000] {
            let plan = plan(rows, RowFormat::packed(RowType::F16, 64)).unwrap();
            assert!(plan.index <= 15 * rows as u64, "{rows}: {plan:?}");
        }
    }
}
