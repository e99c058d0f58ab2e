use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::device::DeviceFlag;
use super::dtype::DtypeFlag;
use super::serve::at_least_one;
use crate::kernels::{BLOCK, KvType, Pool};
use crate::memory;
use crate::model::{GpuNeeds, LiveTable, ModelDirectory, Runtime, gpu_memory};

/// How a model is run: the flags that serve, generate and eval have in common.
#[derive(Debug, clap::Args)]
pub(super) struct Compute {
    /// Threads that compute [default: one a core]
    #[arg(long, value_name = "N", env = "SCONE_THREADS", value_parser = at_least_one)]
    threads: Option<usize>,
    #[command(flatten)]
    device: DeviceFlag,
    #[command(flatten)]
    dtype: DtypeFlag,
    /// How keys and values are held: f16 takes half the memory of f32 and half the time to read, and changes logits by
    /// about a thousandth; auto is f32 for models of f32 and f16 for all others. On a GPU they have the type of activations
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
    /// As many as that; their memory is taken as it is used.
    Positions(usize),
    /// As many as one sequence can have; taken as it is used.
    Context,
    /// As many as so many sequences of the whole context have, or as fit into so many bytes; taken at the start.
    Sequences {
        /// Sequences that run at a time.
        most: usize,
        /// Bytes of keys and values; [`usual_room`] if None.
        memory: Option<u64>,
    },
}

impl Compute {
    /// The threads, and room for keys and values.
    pub(super) fn runtime(
        &self,
        directory: &ModelDirectory,
        table: Option<&LiveTable>,
        room: Room,
    ) -> Result<Runtime> {
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
            Room::Context => config.max_position_embeddings,
            Room::Sequences { most, .. } => most.saturating_mul(config.max_position_embeddings),
        };
        let mut runtime = Runtime::new(Arc::new(pool), positions);
        runtime.device = self.device.open()?;
        runtime.dtype = self.dtype.encoding();
        runtime.kv_type = match self.kv_dtype {
            KvDtype::F32 => KvType::F32,
            KvDtype::F16 => KvType::F16,
            KvDtype::Auto => directory.kv_type(runtime.dtype),
        };
        if let Some(memory) = gpu_memory(&runtime.device)? {
            let (most, kv_memory) = match room {
                Room::Sequences { most, memory } => (most, memory),
                Room::Positions(_) | Room::Context => (1, None),
            };
            let needs = GpuNeeds::of(directory, runtime.dtype, table, most, memory);
            runtime.kv_blocks =
                needs.blocks(memory, runtime.kv_blocks, kv_memory).map_err(anyhow::Error::msg)?;
            return Ok(runtime);
        }
        if let Room::Sequences { memory, .. } = room {
            let bytes = directory.kv_shape().block_bytes(runtime.kv_type) as u64;
            let whole = bytes.saturating_mul(config.max_position_embeddings.div_ceil(BLOCK) as u64);
            let memory = memory.unwrap_or_else(|| usual_room(whole));
            let most = usize::try_from(memory / bytes.max(1)).unwrap_or(usize::MAX);
            ensure!(
                most > 0,
                "{memory} bytes hold no block of keys and values: {BLOCK} tokens take {bytes}; raise --kv-memory"
            );
            runtime.kv_blocks = runtime.kv_blocks.min(most);
            runtime.takes_memory = true;
            let taken = bytes.saturating_mul(runtime.kv_blocks as u64);
            ensure!(
                taken < memory::total(),
                "keys and values of {taken} bytes do not fit into this machine's memory of {}; lower --kv-memory",
                memory::total()
            );
        }
        Ok(runtime)
    }
}

/// The memory for keys and values where nobody says how much: a gigabyte, or what one sequence of the whole context needs
/// if that is more, but no more than a quarter of the machine's.
fn usual_room(whole: u64) -> u64 {
    whole.max(1 << 30).min(memory::total() / 4)
}
