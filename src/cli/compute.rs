use std::sync::Arc;

use anyhow::{Context, Result};

use super::dtype::DtypeFlag;
use super::serve::at_least_one;
use crate::kernels::{KvType, Pool};
use crate::model::{ModelDirectory, Runtime};

/// How a model is run: the flags that serve, generate and eval have in common.
#[derive(Debug, clap::Args)]
pub(super) struct Compute {
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N", env = "SCONE_THREADS", value_parser = at_least_one)]
    threads: Option<usize>,
    #[command(flatten)]
    dtype: DtypeFlag,
    /// How keys and values are held: f16 takes half the memory of f32 and half the time to read, and changes logits by
    /// about a thousandth; auto is f32 for models of f32 and f16 for all others
    #[arg(long, value_name = "TYPE", env = "SCONE_KV_DTYPE", default_value = "auto")]
    kv_dtype: KvDtype,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum KvDtype {
    Auto,
    F32,
    F16,
}

/// For how many positions there is to be room.
#[derive(Clone, Copy, Debug)]
pub(super) enum Room {
    /// As many as that.
    Positions(usize),
    /// As many as so many sequences of the whole context have, or as fit into so many bytes.
    Sequences {
        /// Sequences that run at a time.
        most: usize,
        /// Bytes of keys and values; a quarter of the machine's memory if None.
        memory: Option<u64>,
    },
}

impl Compute {
    /// The threads, and room for keys and values.
    pub(super) fn runtime(&self, directory: &ModelDirectory, room: Room) -> Result<Runtime> {
        let threads = match self.threads {
            Some(threads) => threads,
            None => {
                std::thread::available_parallelism().context("cannot count the cores; say --threads")?.get()
            }
        };
        let pool = Pool::new(threads).context("cannot start the threads that compute")?;
        let config = directory.config();
        let positions = match room {
            Room::Positions(positions) => positions,
            Room::Sequences { most, .. } => most.saturating_mul(config.max_position_embeddings),
        };
        let mut runtime = Runtime::new(Arc::new(pool), positions);
        runtime.dtype = self.dtype.encoding();
        runtime.kv_type = match self.kv_dtype {
            KvDtype::F32 => KvType::F32,
            KvDtype::F16 => KvType::F16,
            KvDtype::Auto => directory.kv_type(runtime.dtype),
        };
        if let Room::Sequences { memory, .. } = room {
            let bytes = directory.kv_shape().block_bytes(runtime.kv_type) as u64;
            let most = memory.unwrap_or_else(|| machine_memory() / 4) / bytes;
            runtime.kv_blocks = runtime.kv_blocks.min(usize::try_from(most).unwrap_or(usize::MAX));
        }
        Ok(runtime)
    }
}

/// The machine's memory in bytes; where it does not say, 8 GiB.
fn machine_memory() -> u64 {
    const UNKNOWN: u64 = 8 << 30;
    // SAFETY: `sysconf` only reads its argument.
    let [pages, page] = [libc::_SC_PHYS_PAGES, libc::_SC_PAGESIZE].map(|name| unsafe { libc::sysconf(name) });
    match (u64::try_from(pages), u64::try_from(page)) {
        (Ok(pages), Ok(page)) if pages > 0 && page > 0 => pages.saturating_mul(page),
        _ => UNKNOWN,
    }
}
