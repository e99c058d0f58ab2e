//! The rows of a table from the f-gram model: made once ([`build_table`]), and made again to check them
//! ([`check_rows`]).

use std::path::Path;

use candle_core::Device;
use serde::Serialize;

use super::embedding::rows_of;
use super::{ModelDirectory, ModelError};
use crate::fgram::FgramSet;
use crate::table::{RowType, Table, TableWriter};

/// F-grams embedded at a time: the more there are, the more of them begin alike.
const CHUNK: usize = 8192;

/// Runs the f-gram model of a directory, as its files hold it, over a whole set and writes the table. `progress` is
/// told of every so many rows more.
///
/// # Errors
/// Where the directory has no f-gram model, the set belongs to another tokenizer, or the disk refuses. Nothing is then
/// left under `output`.
pub fn build_table(
    directory: &ModelDirectory,
    set: &FgramSet,
    row_type: RowType,
    output: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ModelError> {
    let device = Device::Cpu;
    let identity = directory.identity(set.sha256())?;
    if let Some(scone) = directory.scone()
        && scone.fgrams_sha256 != identity.fgrams
    {
        return Err(ModelError::WrongSet { model: directory.path().to_owned() });
    }
    let model = directory.fgram_model(&device)?;
    let tokens = directory.token_embedding(&device)?;
    let dim = directory.config().hidden_size;
    let mut writer = TableWriter::create(output, row_type, dim, set, &identity)?;
    let ranks: Vec<u32> = (0..set.len() as u32).collect();
    // A chunk is encoded and written while the next is computed.
    let mut ready = Vec::new();
    for chunk in ranks.chunks(CHUNK) {
        let (written, rows) =
            rayon::join(|| writer.push(&ready), || rows_of(set.index(), &model, &tokens, chunk));
        written?;
        progress((ready.len() / dim) as u64);
        ready = rows?;
    }
    writer.push(&ready)?;
    progress((ready.len() / dim) as u64);
    Ok(writer.finish()?)
}

/// What [`check_rows`] found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RowCheck {
    /// Rows computed again.
    pub rows: usize,
    /// The largest difference of a number from what is stored, as a share of its row's largest number.
    pub max_difference: f32,
}

/// Computes about `sample` rows again, spread evenly over the ranks (all of them if there are no more), and compares
/// them with a table's, to within the precision of its type.
///
/// # Errors
/// Names the first row that differs.
pub fn check_rows(
    directory: &ModelDirectory,
    table: &Table,
    sample: usize,
    progress: &mut dyn FnMut(u64),
) -> Result<RowCheck, ModelError> {
    let model = directory.fgram_model(&Device::Cpu)?;
    let tokens = directory.token_embedding(&Device::Cpu)?;
    let (len, dim) = (table.len(), table.dim());
    let rows = sample.min(len);
    let ranks: Vec<u32> = (0..rows).map(|i| (i as u64 * len as u64 / rows as u64) as u32).collect();
    let mut max_difference = 0f32;
    for chunk in ranks.chunks(CHUNK) {
        let computed = rows_of(table.index(), &model, &tokens, chunk)?;
        let mut stored = vec![0f32; computed.len()];
        table.gather(chunk, &mut stored)?;
        for ((&rank, computed), stored) in
            chunk.iter().zip(computed.chunks_exact(dim)).zip(stored.chunks_exact(dim))
        {
            let difference = relative_difference(computed, stored);
            if difference.is_nan() || difference > tolerance(table.row_type()) {
                let table = table.path().to_owned();
                return Err(ModelError::Row { table, rank, difference });
            }
            max_difference = max_difference.max(difference);
        }
        progress(chunk.len() as u64);
    }
    Ok(RowCheck { rows, max_difference })
}

/// Half a step of the type, and as much again for another CPU's order of summation.
fn tolerance(row_type: RowType) -> f32 {
    match row_type {
        RowType::F32 => 1e-4,
        RowType::F16 => 1e-3,
        RowType::Bf16 => 8e-3,
        RowType::Int8 => 1.0 / 127.0,
    }
}

fn relative_difference(computed: &[f32], stored: &[f32]) -> f32 {
    let largest = computed.iter().fold(f32::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
    let difference = computed.iter().zip(stored).map(|(a, b)| (a - b).abs());
    difference.fold(0f32, |max, x| if x > max || x.is_nan() { x } else { max }) / largest
}
