use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};

use super::DEFAULT_MODEL;
use super::compute::{Compute, Room};
use super::table_mode::TableMode;
use crate::engine::Forward;
use crate::kernels::BLOCK;
use crate::model::{LiveTable, ModelDirectory, TokenizerInfo, gpu_name};
use crate::tokenizer::Tokenizer;

/// A model, ready to run.
pub(super) struct Opened {
    pub(super) forward: Box<dyn Forward>,
    pub(super) tokenizer: Tokenizer,
    pub(super) table: Option<Arc<LiveTable>>,
    pub(super) info: ModelInfo,
}

/// What an operator wants to know of a model.
#[derive(Debug, Clone)]
pub(super) struct ModelInfo {
    pub(super) parameters: usize,
    pub(super) layers: usize,
    pub(super) width: usize,
    /// Memory of the weights, in bytes.
    pub(super) weight_bytes: u64,
    /// Memory that keys and values may take, in bytes.
    pub(super) kv_bytes: u64,
    /// Positions that these are of.
    pub(super) kv_positions: usize,
    /// Threads that compute.
    pub(super) threads: usize,
    /// The GPU that computes, if one does.
    pub(super) gpu: Option<String>,
    /// Tokens that end a text.
    pub(super) stop_tokens: Vec<u32>,
    /// What the model says of its tokenizer.
    pub(super) tokenizer: TokenizerInfo,
}

/// Loads the model at `directory`, which may also be a GGUF file, to be run as `compute` says, and its table: the one at
/// `table` if given,
/// otherwise the one that the directory names, if it names one. Its rows are put where `mode` says.
pub(super) fn open_model(
    directory: &Path,
    table: Option<&Path>,
    mode: &TableMode,
    compute: &Compute,
    room: Room,
) -> Result<Opened> {
    if !directory.exists() {
        bail!(
            "there is no model at {}: name a directory that holds config.json, model.safetensors and tokenizer.json, or a \
             .gguf file, or start the program where {DEFAULT_MODEL} is",
            directory.display()
        );
    }
    let directory = ModelDirectory::open(directory)?;
    let table = mode.open(&directory, table)?;
    let runtime = compute.runtime(&directory, table.as_deref(), room)?;
    let model = directory.load_with(table.clone(), &runtime)?;
    let info = ModelInfo {
        parameters: model.config().parameters(),
        layers: model.config().num_hidden_layers,
        width: model.config().hidden_size,
        weight_bytes: model.weight_bytes() as u64,
        kv_bytes: model.kv_bytes() as u64,
        kv_positions: model.kv_blocks() * BLOCK,
        threads: model.pool().threads(),
        gpu: gpu_name(&runtime.device),
        stop_tokens: directory.stop_tokens()?,
        tokenizer: directory.tokenizer_info()?,
    };
    Ok(Opened { forward: Box::new(model), tokenizer: directory.into_tokenizer(), table, info })
}
