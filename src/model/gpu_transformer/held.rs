use std::sync::Arc;

use super::table::GpuTable;
use crate::gpu::{Gpu, GpuError};
use crate::model::{ModelError, gpu_memory};
use crate::table::{GpuPlace, Table};

/// The table whose rows the GPU reads by itself, whichever that is at the time.
#[derive(Default)]
pub(super) struct Held {
    table: Option<GpuTable>,
    /// How much of the GPU's memory tables have had.
    room: u64,
    /// One that took its place and could not be held: the host gathers its rows.
    left_out: Option<Arc<Table>>,
}

impl Held {
    /// The table.
    ///
    /// # Errors
    /// Where there is none.
    pub(super) fn table(&self) -> Result<&GpuTable, GpuError> {
        self.table.as_ref().ok_or_else(|| GpuError::operands("table-rows", "no table is held"))
    }

    /// Puts a table's rows where the GPU reads them.
    ///
    /// # Errors
    /// Where there is no room, or they cannot be read.
    pub(super) fn hold(
        &mut self,
        gpu: &dyn Gpu,
        table: &Arc<Table>,
        place: GpuPlace,
    ) -> Result<(), ModelError> {
        // The old ones first: there may be no room for both. A step may still read them.
        gpu.wait()?;
        self.table = None;
        self.table = Some(GpuTable::load(gpu, table, place)?);
        self.room = self.room.max(gpu_memory::table_bytes(table, place));
        self.left_out = None;
        Ok(())
    }

    /// Whether the rows of this table are held. Where it has taken the place of the one that was, they are brought, if besides there is
    /// left what a step needs with so many tokens; where there is no room for them, that is logged once.
    pub(super) fn holds(
        &mut self,
        gpu: &dyn Gpu,
        table: &Arc<Table>,
        place: GpuPlace,
        vocabulary: usize,
    ) -> bool {
        if self.table.as_ref().is_some_and(|held| held.is_of(table)) {
            return true;
        }
        if self.left_out.as_ref().is_some_and(|known| Arc::ptr_eq(known, table)) {
            return false;
        }
        let held = self.check_room(gpu, table, place, vocabulary).and_then(|()| self.hold(gpu, table, place));
        if let Err(error) = &held {
            tracing::warn!("{}: {error}; the CPU gathers its rows instead", table.path().display());
            // What was held is nobody's any more.
            self.table = None;
            self.left_out = Some(Arc::clone(table));
        }
        held.is_ok()
    }

    /// That a table leaves a step what the plan at the start did: it is larger than those before it by no more than is free besides.
    fn check_room(
        &self,
        gpu: &dyn Gpu,
        table: &Table,
        place: GpuPlace,
        vocabulary: usize,
    ) -> Result<(), ModelError> {
        let [free, total] = gpu.memory()?;
        let room = self.room + free.saturating_sub(gpu_memory::reserve(total, 0, vocabulary));
        let needed = gpu_memory::table_bytes(table, place);
        if needed <= room {
            return Ok(());
        }
        let why =
            format!("{needed} bytes of it do not fit: beside what a step needs the GPU has {room} for it");
        Err(ModelError::Gpu(why))
    }
}
