use std::path::Path;

use anyhow::{Result, bail};

use crate::engine::Forward;
use crate::server::TableCard;
use crate::tokenizer::Tokenizer;

/// The model that the commands take when none is named.
pub(super) const DEFAULT_MODEL: &str = "model_cards/default";

/// A model directory, ready to run.
pub(super) struct Opened {
    pub(super) forward: Box<dyn Forward>,
    pub(super) tokenizer: Tokenizer,
    pub(super) info: ModelInfo,
}

/// What an operator wants to know of a model.
#[derive(Debug, Clone)]
pub(super) struct ModelInfo {
    pub(super) parameters: usize,
    pub(super) layers: usize,
    pub(super) width: usize,
    pub(super) table: Option<TableCard>,
    /// Memory of the weights, in bytes.
    pub(super) weight_bytes: u64,
    /// Memory of the keys and values of all slots, in bytes.
    pub(super) kv_bytes: u64,
    /// Tokens that end a text.
    pub(super) stop_tokens: Vec<u32>,
}

/// Loads the model in `directory`, with places for `slots` sequences, and its table: the one at `table` if given,
/// otherwise the one that the directory names, if it names one.
pub(super) fn open_model(directory: &Path, table: Option<&Path>, slots: usize) -> Result<Opened> {
    if !directory.is_dir() {
        bail!(
            "there is no model directory at {}: name one that holds config.json, model.safetensors and tokenizer.json, or \
             start the program where {DEFAULT_MODEL} is",
            directory.display()
        );
    }
    bail!(
        "cannot load {} with {slots} slots and {}: the model layer is not joined to the engine yet",
        directory.display(),
        table.map_or("its own table".into(), |table| table.display().to_string())
    )
}
