use std::fs::File;
use std::io;
use std::path::Path;

use super::{ModelDirectory, ModelError};
use crate::new_file::NewFile;

/// What other programs read of a model beside shape, weights and tokenizer.
const SETTINGS: [&str; 4] =
    ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];

impl ModelDirectory {
    /// Copies the model into another directory, all but its table, its `scone.json` and its card: byte for byte, so that
    /// every hash stays what it is.
    ///
    /// # Errors
    /// Where a file cannot be read or written.
    pub fn copy_model(&self, to: &Path) -> Result<(), ModelError> {
        let inner = to.join("fgram_model");
        std::fs::create_dir_all(&inner).map_err(ModelError::io(&inner))?;
        let (_, fgram_weights) = self.fgram_files()?;
        let fgram_model = self.path().join("fgram_model");
        copy_present(&["config.json"], &fgram_model, &inner)?;
        copy_present(&["config.json", "tokenizer.json"], self.path(), to)?;
        copy_settings(self.path(), to)?;
        for (weights, from, to) in
            [(self.weights(), self.path(), to), (&fgram_weights, fgram_model.as_path(), inner.as_path())]
        {
            copy_present(&["model.safetensors.index.json"], from, to)?;
            for file in weights.files() {
                copy(file, &to.join(file.file_name().unwrap_or_default()))?;
            }
        }
        Ok(())
    }
}

/// Copies into another directory what a model directory says of its model beside shape, weights and tokenizer, such as the
/// tokens that end a text or the template of a conversation, as far as it is there. Of a GGUF file that is nothing.
///
/// # Errors
/// Where a file cannot be read or written.
pub(crate) fn copy_settings(from: &Path, to: &Path) -> Result<(), ModelError> {
    copy_present(&SETTINGS, from, to)
}

fn copy_present(names: &[&str], from: &Path, to: &Path) -> Result<(), ModelError> {
    names
        .iter()
        .map(|name| (from.join(name), to.join(name)))
        .filter(|(from, _)| from.exists())
        .try_for_each(|(from, to)| copy(&from, &to))
}

fn copy(from: &Path, to: &Path) -> Result<(), ModelError> {
    let mut source = File::open(from).map_err(ModelError::io(from))?;
    let mut copy = NewFile::create(to).map_err(ModelError::io(to))?;
    io::copy(&mut source, &mut copy).and_then(|_| copy.commit()).map_err(ModelError::io(to))
}
