//! The flags that say where a table's rows live, for every command that reads them.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use clap::builder::BoolishValueParser;

use super::bytes::parse_bytes;
use super::progress_bar;
use crate::model::{LiveTable, ModelDirectory};
use crate::table::{DirectReads, GpuPlace, Placement};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// In memory: all rows are read at the start into the page cache, one copy for all processes of the machine
    Ram,
    /// On the disk until used, then in the page cache while the system has room
    Mmap,
    /// On the disk, read past the page cache into a row cache of this process, for tables much larger than memory
    Direct,
    /// In a GPU's memory: for tables that fit beside model, keys and values
    Device,
    /// In locked memory of this process, which a GPU reads by itself over the bus
    Pinned,
}

/// Where rows live.
#[derive(Debug, clap::Args)]
pub(super) struct TableMode {
    /// Where the table's rows live; the index that finds them is always read into memory
    #[arg(long, value_enum, default_value_t = Mode::Mmap, value_name = "MODE", env = "SCONE_TABLE_MODE")]
    table_mode: Mode,
    /// direct: memory of the row cache; 0 reads every row every time
    #[arg(long, value_name = "SIZE", env = "SCONE_TABLE_CACHE", default_value = "4GiB", value_parser = parse_bytes)]
    table_cache: u64,
    /// mmap: so many bytes of the most frequent rows are read at the start
    #[arg(long, value_name = "SIZE", env = "SCONE_TABLE_PREFAULT", default_value = "256MiB", value_parser = parse_bytes)]
    table_prefault: u64,
    /// ram: rows in a private copy in huge pages, quicker to reach, instead of the page cache that processes share
    #[arg(long, env = "SCONE_TABLE_HUGE_PAGES", value_parser = BoolishValueParser::new())]
    table_huge_pages: bool,
    /// ram: lock the shared rows in memory, so that nothing drives them out (needs a sufficient `ulimit -l`)
    #[arg(long, env = "SCONE_TABLE_LOCK", value_parser = BoolishValueParser::new(), conflicts_with = "table_huge_pages")]
    table_lock: bool,
}

impl TableMode {
    fn placement(&self) -> Result<Placement> {
        let in_ram = self.table_mode == Mode::Ram;
        ensure!(in_ram || !self.table_huge_pages, "--table-huge-pages needs --table-mode ram");
        ensure!(in_ram || !self.table_lock, "--table-lock needs --table-mode ram");
        Ok(match self.table_mode {
            Mode::Ram => Placement::Ram { lock: self.table_lock, huge_pages: self.table_huge_pages },
            Mode::Mmap => Placement::Mmap { prefault: self.table_prefault },
            Mode::Direct => Placement::Direct {
                cache: self.table_cache,
                queue_depth: Placement::QUEUE_DEPTH,
                reads: DirectReads::Ring,
            },
            Mode::Device => Placement::Gpu(GpuPlace::Device),
            Mode::Pinned => Placement::Gpu(GpuPlace::Host),
        })
    }

    /// Opens the table at `table`, or else the directory's own if it has one, showing how far it is read.
    pub(super) fn open(
        &self,
        directory: &ModelDirectory,
        table: Option<&Path>,
    ) -> Result<Option<Arc<LiveTable>>> {
        let bar = progress_bar(
            0,
            "reading the table [{bar:40}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}",
        );
        let live = directory.live_table(table, self.placement()?, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        Ok(live)
    }
}
