use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::ModelError;
use crate::table::{Identity, Placement, Table};

/// What a table must be to fit a model.
#[derive(Clone, Debug)]
pub struct TableFit {
    pub(super) model: PathBuf,
    pub(super) identity: Identity,
    /// Of the tables of adapters, which fit as well.
    pub(super) adapters: Vec<Identity>,
    /// False where the f-gram model was left out, as serving allows: then it is not compared.
    pub(super) has_fgram_model: bool,
    /// The width of the model.
    pub(super) dim: usize,
}

/// The table of a model that is being served. Its file can be exchanged for another that fits while it is in use:
/// whoever holds the old one reads on in it, and it goes when the last is done.
#[derive(Debug)]
pub struct LiveTable {
    current: RwLock<Arc<Table>>,
    fit: TableFit,
    placement: Placement,
    /// How often it has been exchanged.
    generation: AtomicU64,
    /// Held by who exchanges the table: one at a time.
    exchange: Mutex<()>,
}

impl TableFit {
    /// What fits a model of which no more is known than this.
    pub fn of_identity(identity: Identity, dim: usize) -> Self {
        Self { model: PathBuf::new(), identity, adapters: Vec::new(), has_fgram_model: true, dim }
    }

    /// # Errors
    /// Where the table was made for another model; the message says what differs.
    pub fn check(&self, table: &Table) -> Result<(), ModelError> {
        if self.adapters.contains(table.identity()) && table.dim() == self.dim {
            return Ok(());
        }
        let mut expected = self.identity.clone();
        if !self.has_fgram_model {
            expected.fgram_model.clone_from(&table.identity().fgram_model);
        }
        let mut differs = expected.differences(table.identity());
        if table.dim() != self.dim {
            differs.push("width");
        }
        if differs.is_empty() {
            return Ok(());
        }
        Err(ModelError::TableMismatch {
            table: table.path().to_owned(),
            model: self.model.clone(),
            differs: differs.join(", "),
        })
    }

    /// Opens a table that fits; one that does not is refused before its rows are read.
    ///
    /// # Errors
    /// Where there is none, it is damaged, or it does not fit.
    pub fn open(
        &self,
        path: &Path,
        placement: Placement,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Table, ModelError> {
        self.check(&self.open_plain(path)?)?;
        let table = Table::open_with(path, placement, progress)?;
        // Again: in the meantime another file may have taken the path.
        self.check(&table)?;
        Ok(table)
    }

    pub(super) fn open_plain(&self, path: &Path) -> Result<Table, ModelError> {
        if !path.exists() {
            return Err(ModelError::NoTable { table: path.to_owned(), model: self.model.clone() });
        }
        Ok(Table::open(path)?)
    }
}

impl LiveTable {
    /// Opens the table at `path`. `progress` is told of the bytes read, as by [`Table::open_with`].
    ///
    /// # Errors
    /// As [`TableFit::open`].
    pub fn open(
        path: &Path,
        fit: TableFit,
        placement: Placement,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, ModelError> {
        let table = fit.open(path, placement, progress)?;
        Ok(Self {
            current: RwLock::new(Arc::new(table)),
            fit,
            placement,
            generation: AtomicU64::new(0),
            exchange: Mutex::default(),
        })
    }

    /// The table now. A step takes it once and keeps to it.
    pub fn get(&self) -> Arc<Table> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts the exchanges. It changes when [`LiveTable::get`] gives the new table already: who reads the number first
    /// and then the table may take the new one for the old, and never the old one for the new.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Where its rows are kept.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Opens the file at `path`, or again at the path that the table has, and uses it from now on. While it is being
    /// opened the old table serves, so for that time both take memory. Counters go on.
    ///
    /// # Errors
    /// Where the file is not there, damaged or does not fit; the old table then stays.
    pub fn reload(&self, path: Option<&Path>) -> Result<Arc<Table>, ModelError> {
        let _alone = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.get();
        let table = self.fit.open(path.unwrap_or(old.path()), self.placement, &mut |_, _| ())?;
        let table = Arc::new(table.with_metrics(Arc::clone(old.metrics())));
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&table);
        self.generation.fetch_add(1, Ordering::SeqCst);
        tracing::info!("now serving table {}: {} rows", table.path().display(), table.len());
        Ok(table)
    }
}
