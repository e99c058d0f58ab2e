//! The rows of a table from the f-gram model: made once ([`build_table`]), and made again to check them
//! ([`check_rows`]).

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use serde::Serialize;

use super::embedding::rows_of;
use super::{ModelDirectory, ModelError};
use crate::fgram::FgramSet;
use crate::table::{Contents, RowFormat, RowType, Table, TableWriter};

/// F-grams embedded at a time: the more there are, the more of them begin alike.
const CHUNK: usize = 8192;

/// Which rows of a table to build, of how many parts: `index` of `count`, from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which part.
    pub index: usize,
    /// Of how many.
    pub count: usize,
}

impl Shard {
    /// Everything.
    pub const WHOLE: Self = Self { index: 1, count: 1 };

    /// The ranks of this part of `len` rows; parts differ by one row at most.
    pub fn ranks(self, len: usize) -> Range<usize> {
        let start = |index: usize| (index as u128 * len as u128 / self.count.max(1) as u128) as usize;
        start(self.index.saturating_sub(1))..start(self.index)
    }
}

/// Runs the f-gram model of a directory, as its files hold it, over a whole set, or the part of it that `shard` says,
/// and writes the table, or that part of it, computed on `device`. A build that was killed is taken up where it was.
/// `progress` is told of every so many rows more.
///
/// On a CPU the file is the same, byte for byte, however often it was taken up and on how many threads; on a GPU rows may
/// differ from those by what f32 rounds away.
///
/// # Errors
/// Where the directory has no f-gram model, the set belongs to another tokenizer, or the disk refuses. Nothing is then
/// left under `output`.
pub fn build_table(
    directory: &ModelDirectory,
    set: &FgramSet,
    format: RowFormat,
    shard: Shard,
    output: &Path,
    device: &Device,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ModelError> {
    let contents = Contents::of_set(set);
    let identity = directory.identity(contents.sha256().to_owned())?;
    if let Some(scone) = directory.scone()
        && scone.fgrams_sha256 != identity.fgrams
    {
        return Err(ModelError::WrongSet { model: directory.path().to_owned() });
    }
    let model = directory.fgram_model(device)?;
    let tokens = directory.token_embedding(device)?;
    let ranks = shard.ranks(set.len());
    let mut writer = match shard {
        Shard::WHOLE => TableWriter::open(output, format, contents.clone(), &identity)?,
        _ => TableWriter::open_part(output, format, &contents, &identity, ranks.clone())?,
    };
    progress(writer.rows() as u64);
    let left: Vec<u32> = (ranks.start + writer.rows()..ranks.end).map(|rank| rank as u32).collect();
    // A chunk is encoded and written while the next is computed.
    let mut ready = Vec::new();
    for chunk in left.chunks(CHUNK) {
        let (written, rows) = std::thread::scope(|scope| {
            let written = scope.spawn(|| writer.push(&ready));
            let rows = rows_of(set.index(), &model, &tokens, chunk);
            (written.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), rows)
        });
        written?;
        progress((ready.len() / format.dim) as u64);
        ready = rows?;
    }
    writer.push(&ready)?;
    progress((ready.len() / format.dim) as u64);
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
            let difference = relative_difference(table.row_type(), computed, stored);
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
        // A fourteenth is usual; another row is off by about its own length.
        RowType::Int4 => 0.25,
    }
}

/// The largest difference of a number as a share of the row's largest. Of four bits, which cut the largest off, the
/// length of the difference as a share of the row's.
fn relative_difference(row_type: RowType, computed: &[f32], stored: &[f32]) -> f32 {
    let differences = || computed.iter().zip(stored).map(|(a, b)| (a - b).abs());
    if row_type == RowType::Int4 {
        let square = |sum: f32, x: f32| sum + x * x;
        let length = computed.iter().copied().fold(0.0, square).sqrt().max(f32::MIN_POSITIVE);
        return differences().fold(0.0, square).sqrt() / length;
    }
    let largest = computed.iter().fold(f32::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
    differences().fold(0f32, |max, x| if x > max || x.is_nan() { x } else { max }) / largest
}

/// The floating-point operations a second of a large f32 matrix product on this machine: the bound on building.
/// Takes about half a second.
///
/// # Errors
/// None in practice.
pub fn matmul_rate() -> Result<f64, ModelError> {
    const N: usize = 1024;
    let a = candle_core::Tensor::rand(-1f32, 1f32, (N, N), &Device::Cpu)?;
    let mut best = 0f64;
    for _ in 0..8 {
        let start = Instant::now();
        a.matmul(&a)?;
        best = best.max(2.0 * (N * N * N) as f64 / start.elapsed().as_secs_f64());
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ops::gpu::on_gpu;

    /// The first f-grams of the model in the repository, which are of every length.
    #[test]
    fn rows_made_on_a_gpu_are_those_of_the_cpu() {
        let directory = ModelDirectory::open(Path::new("model_cards/default")).unwrap();
        let table = directory.open_table(&directory.table_path().unwrap()).unwrap();
        let ranks: Vec<u32> = (0..60).chain((0..60).map(|i| 1000 * i + 999)).collect();
        let lengths: std::collections::BTreeSet<_> = ranks.iter().map(|&rank| table.length(rank)).collect();
        assert!(lengths.len() == 4, "{lengths:?}");
        let rows = |device: &Device| {
            let model = directory.fgram_model(device).unwrap();
            rows_of(table.index(), &model, &directory.token_embedding(device).unwrap(), &ranks).unwrap()
        };
        let (found, expected) = (on_gpu(rows), rows(&Device::Cpu));
        for (found, expected) in found.chunks_exact(table.dim()).zip(expected.chunks_exact(table.dim())) {
            let apart = relative_difference(RowType::F32, expected, found);
            assert!(apart < 1e-4, "{apart}");
        }
        assert!(
            found != expected || crate::gpu::testing::real().is_some(),
            "both were computed by the CPU's ops"
        );
    }
}
