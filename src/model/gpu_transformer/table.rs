use std::sync::Arc;
use std::time::Instant;

use super::load::no_room;
use crate::gpu::{Buffer, Gpu, GpuError, Slice, Type, ops};
use crate::model::ModelError;
use crate::table::{GpuPlace, RowType, Table};

/// Bytes that are on their way to the GPU at a time; in tests few, so that there are several pieces.
const CHUNK: usize = if cfg!(test) { 1_000_000 } else { 64 << 20 };

/// A table whose rows the GPU reads by itself: the host says which, a number each.
pub(super) struct GpuTable {
    table: Arc<Table>,
    /// As they lie in the file.
    rows: Buffer,
    scales: Option<Buffer>,
}

impl GpuTable {
    /// Copies a table's rows to where the GPU reads them.
    ///
    /// # Errors
    /// Where there is no room for them, or they cannot be read.
    pub(super) fn load(gpu: &dyn Gpu, table: &Arc<Table>, place: GpuPlace) -> Result<Self, ModelError> {
        let start = Instant::now();
        let rows = match place {
            GpuPlace::Device => on_device(gpu, table)?,
            GpuPlace::Host => on_host(gpu, table)?,
        };
        let scales = if table.row_type().has_scales() {
            let scales: &[u8] = bytemuck::cast_slice(table.scales());
            let buffer = gpu.alloc(scales.len()).map_err(|error| no_room("the scales of a table", error))?;
            gpu.upload(scales, buffer.of(Type::U8))?;
            Some(buffer)
        } else {
            None
        };
        // Whatever was read of a file that was changed meanwhile is worth nothing.
        table.check()?;
        let bytes = rows.of(Type::U8).len();
        tracing::info!(
            "{bytes} bytes of rows are {} after {:.1} s",
            match place {
                GpuPlace::Device => "in the GPU's memory",
                GpuPlace::Host => "in locked memory, where the GPU reads them,",
            },
            start.elapsed().as_secs_f64()
        );
        Ok(Self { table: Arc::clone(table), rows, scales })
    }

    /// Whether the rows are those of this table.
    pub(super) fn is_of(&self, table: &Arc<Table>) -> bool {
        Arc::ptr_eq(&self.table, table)
    }

    /// Asks for the rows of `ranks`, which are on the GPU as well, in f32, `[ranks, d]`.
    ///
    /// # Errors
    /// Where a rank is not the table's, its file was changed, or the GPU fails.
    pub(super) fn read(
        &self,
        gpu: &dyn Gpu,
        (ranks, on_gpu): (&[u32], Slice<'_>),
        to: Slice<'_>,
    ) -> Result<(), ModelError> {
        let (start, count) = (Instant::now(), self.table.len());
        if let Some(rank) = ranks.iter().find(|&&rank| rank as usize >= count) {
            return Err(GpuError::operands("table-rows", format!("row {rank} of {count}")).into());
        }
        let rows = ops::TableRows {
            bytes: self.rows.of(Type::U8),
            scales: self.scales.as_ref().map_or(Slice::none(Type::F32), |scales| scales.of(Type::F32)),
            kind: kind(self.table.row_type()),
            row: self.table.row_type().bytes_per_row(self.table.dim()),
            stride: self.table.stride(),
            count,
        };
        ops::table_rows(gpu, rows, on_gpu, to, self.table.dim())?;
        Ok(self.table.read_elsewhere(ranks.len(), start.elapsed())?)
    }
}

fn kind(row_type: RowType) -> ops::RowKind {
    match row_type {
        RowType::F32 => ops::RowKind::F32,
        RowType::F16 => ops::RowKind::F16,
        RowType::Bf16 => ops::RowKind::Bf16,
        RowType::Int8 => ops::RowKind::Int8,
        RowType::Int4 => ops::RowKind::Int4,
    }
}

/// Through a piece of locked memory into the GPU's.
fn on_device(gpu: &dyn Gpu, table: &Table) -> Result<Buffer, ModelError> {
    let bytes = table.row_bytes_in_all();
    let rows =
        gpu.alloc(bytes).map_err(|error| no_room("a table's rows (--table-mode pinned or ram)", error))?;
    let mut staged = gpu.staging(bytes.min(CHUNK))?;
    for from in (0..bytes).step_by(CHUNK) {
        let part = &mut staged.bytes()[..(bytes - from).min(CHUNK)];
        table.read_rows(from, part)?;
        gpu.upload_staged(part, rows.of(Type::U8).part(from, part.len())?)?;
        gpu.wait()?;
    }
    Ok(rows)
}

const NOT_LOCKED: &str =
    "a table's rows cannot be locked in this machine's memory (--table-mode ram or mmap needs no lock)";

/// Into locked memory of exactly their size.
fn on_host(gpu: &dyn Gpu, table: &Table) -> Result<Buffer, ModelError> {
    let bytes = table.row_bytes_in_all();
    if crate::memory::available().is_some_and(|available| available < bytes as u64) {
        return Err(ModelError::Gpu(format!("{NOT_LOCKED}: {bytes} bytes are not to be had")));
    }
    let mut memory = gpu.staging(bytes).map_err(|error| ModelError::Gpu(format!("{NOT_LOCKED}: {error}")))?;
    for (i, part) in memory.bytes().chunks_mut(CHUNK).enumerate() {
        table.read_rows(i * CHUNK, part)?;
    }
    Ok(Buffer::of_host(memory))
}

#[cfg(test)]
mod tests;
