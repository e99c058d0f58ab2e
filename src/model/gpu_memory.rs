//! What fits into a GPU, before anything is put there.

use candle_core::Device;

use super::{LiveTable, ModelDirectory, ModelError};
use crate::kernels::{BLOCK, Encoding};
use crate::table::{GpuPlace, Placement, Table};

/// Rows of a step whose logits there is always room for: as many as evaluation asks for at a time.
const ROWS: usize = 512;

/// Memory of a GPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// What nobody has.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// What a model takes of a GPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuNeeds {
    /// The weights as they are held there.
    pub weights: u64,
    /// What of the table is there.
    pub table: u64,
    /// A block of keys and values of all layers.
    pub kv_block: u64,
    /// Left for a step's own numbers and the libraries: a twentieth of the GPU, at least 1 GiB, and logits of 512 rows.
    pub reserve: u64,
}

/// The memory of a device; None of a CPU.
///
/// # Errors
/// Where the driver does not say.
pub fn gpu_memory(device: &Device) -> Result<Option<GpuMemory>, ModelError> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            let (free, total) = device
                .cuda_stream()
                .context()
                .mem_get_info()
                .map_err(|error| ModelError::Gpu(format!("its memory is not known: {error:?}")))?;
            Ok(Some(GpuMemory { free: free as u64, total: total as u64 }))
        }
        _ => Ok(None),
    }
}

/// What a GPU is called; None of a CPU.
pub fn gpu_name(device: &Device) -> Option<String> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            Some(device.cuda_stream().context().name().unwrap_or_else(|_| "an NVIDIA GPU".to_owned()))
        }
        _ => None,
    }
}

impl GpuNeeds {
    /// Of a model whose matrices are converted to `dtype`, or held as they are stored; for steps of which so many rows'
    /// logits are wanted, and of 512 at least.
    pub fn of(
        directory: &ModelDirectory,
        dtype: Option<Encoding>,
        table: Option<&LiveTable>,
        wanted: usize,
        memory: GpuMemory,
    ) -> Self {
        let config = directory.config();
        let encoding = dtype.or_else(|| directory.encoding()).unwrap_or(Encoding::Bf16);
        let numbers = config.parameters() as u64;
        let packed = encoding.block() > 1;
        let mut weights = numbers * encoding.block_bytes() as u64 / encoding.block() as u64;
        if packed {
            // Token embeddings are read one by one, so they are there unpacked as well.
            weights += 2 * (config.vocab_size * config.hidden_size) as u64;
        }
        let width = if encoding == Encoding::F32 { 4 } else { 2 };
        let position = 2 * config.num_hidden_layers * config.kv_heads() * config.head() * width;
        let reserve = reserve(memory.total, wanted, config.vocab_size);
        let table = table.map_or(0, |live| match live.placement() {
            Placement::Gpu(place) => table_bytes(&live.get(), place),
            _ => 0,
        });
        Self { weights, table, kv_block: (position * BLOCK) as u64, reserve }
    }

    /// How many blocks of keys and values there is room for: `wanted` at most, `kv_memory` bytes if that is given.
    ///
    /// # Errors
    /// Where it does not fit; the message says what to lower.
    pub fn blocks(&self, memory: GpuMemory, wanted: usize, kv_memory: Option<u64>) -> Result<usize, String> {
        let Self { weights, table, kv_block, reserve } = *self;
        let Some(left) = memory.free.checked_sub(weights + table + reserve) else {
            if memory.free >= weights + reserve {
                return Err(format!(
                    "{table} bytes of the table do not fit: beside weights of {weights} the GPU has {} left for it; \
                     --table-mode pinned, ram or mmap keeps its rows in the host's memory",
                    memory.free - weights - reserve
                ));
            }
            return Err(format!(
                "weights of {weights} bytes, and {reserve} for a step, do not fit into the {} bytes that the GPU has free; a \
                 smaller --dtype (q8_0 or q4_0) takes less",
                memory.free
            ));
        };
        if let Some(asked) = kv_memory.filter(|&asked| asked > left) {
            return Err(format!(
                "keys and values of {asked} bytes do not fit: beside weights of {weights} and {table} of a table the GPU has \
                 {left} left; lower --kv-memory"
            ));
        }
        let room = usize::try_from(kv_memory.unwrap_or(left) / kv_block.max(1)).unwrap_or(usize::MAX);
        if room == 0 {
            let what = if kv_memory.is_some() { "raise --kv-memory" } else { "use a smaller --dtype" };
            return Err(format!(
                "no block of keys and values fits: {BLOCK} tokens take {kv_block} bytes; {what}"
            ));
        }
        Ok(room.min(wanted))
    }
}

/// What is left for a step, of whose rows so many logits are wanted, of a GPU of so many bytes.
pub(super) fn reserve(total: u64, wanted: usize, vocabulary: usize) -> u64 {
    (total / 20).max(1 << 30) + 4 * (wanted.max(ROWS) * vocabulary) as u64
}

/// Bytes of a table that a GPU has in its own memory.
pub(super) fn table_bytes(table: &Table, place: GpuPlace) -> u64 {
    let scales = if table.row_type().has_scales() { 4 * table.len() } else { 0 };
    let rows = if place == GpuPlace::Device { table.row_bytes_in_all() } else { 0 };
    (scales + rows) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_known_before_and_what_to_lower_is_said() {
        let memory = GpuMemory { free: 1000, total: 2000 };
        let needs = GpuNeeds { weights: 500, table: 100, kv_block: 10, reserve: 100 };
        assert_eq!(needs.blocks(memory, 100, None), Ok(30));
        assert_eq!(needs.blocks(memory, 7, None), Ok(7));
        assert_eq!(needs.blocks(memory, 100, Some(55)), Ok(5));
        assert!(needs.blocks(memory, 100, Some(301)).unwrap_err().contains("lower --kv-memory"));
        assert!(needs.blocks(memory, 100, Some(9)).unwrap_err().contains("raise --kv-memory"));
        let wide = GpuNeeds { table: 500, ..needs };
        assert!(wide.blocks(memory, 100, None).unwrap_err().contains("--table-mode"));
        let large = GpuNeeds { weights: 950, ..needs };
        assert!(large.blocks(memory, 100, None).unwrap_err().contains("--dtype"));
    }
}
