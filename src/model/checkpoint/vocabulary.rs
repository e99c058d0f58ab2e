use super::{Checkpoint, Metadata};
use crate::model::ModelError;
use crate::tokenizer::{GgufVocabulary, Tokenizer};

impl Checkpoint {
    /// The tokenizer inside a GGUF file.
    ///
    /// # Errors
    /// Where there is none, or one of a kind that is not supported.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let metadata = self.metadata().ok_or_else(|| "there is none: this is no GGUF file".to_owned());
        let tokenizer = metadata.and_then(|metadata| Tokenizer::from_gguf(&vocabulary(&metadata)?));
        tokenizer.map_err(|why| ModelError::config(&self.path, format!("its tokenizer: {why}")))
    }

    /// The tokens that end a text by a GGUF file's metadata: the end of a text, of a turn and of a message.
    ///
    /// # Errors
    /// Where an id is none.
    pub fn stop_tokens(&self) -> Result<Vec<u32>, ModelError> {
        let Some(metadata) = self.metadata() else { return Ok(Vec::new()) };
        let ids = ["eos", "eot", "eom"].map(|name| id(&metadata, &format!("{name}_token_id")));
        let ids = ids.into_iter().collect::<Result<Vec<_>, _>>();
        let ids = ids.map_err(|why| ModelError::config(&self.path, why))?;
        let mut ids: Vec<u32> = ids.into_iter().flatten().collect();
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }
}

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

/// A token id. Files that have no such token say so with the highest number.
fn id(metadata: &Metadata<'_>, name: &str) -> Result<Option<u32>, String> {
    let id = metadata.integer(&key(name))?.filter(|&id| id != u64::from(u32::MAX));
    id.map(|id| u32::try_from(id).map_err(|_| format!("\"{}\": {id} is no token id", key(name)))).transpose()
}

fn vocabulary(metadata: &Metadata<'_>) -> Result<GgufVocabulary, String> {
    let text = |name: &str| metadata.text(&key(name)).map(|text| text.map(str::to_owned));
    let missing = |name: &str| format!("\"{}\" is missing", key(name));
    Ok(GgufVocabulary {
        model: text("model")?.ok_or_else(|| missing("model"))?,
        pre: text("pre")?,
        tokens: metadata.texts(&key("tokens"))?.ok_or_else(|| missing("tokens"))?,
        types: metadata.integers(&key("token_type"))?.unwrap_or_default(),
        scores: metadata.floats(&key("scores"))?.unwrap_or_default(),
        merges: metadata.texts(&key("merges"))?.unwrap_or_default(),
        bos: id(metadata, "bos_token_id")?,
        eos: id(metadata, "eos_token_id")?,
        unknown: id(metadata, "unknown_token_id")?,
        add_bos: metadata.flag(&key("add_bos_token"))?,
        add_eos: metadata.flag(&key("add_eos_token"))?,
        add_space_prefix: metadata.flag(&key("add_space_prefix"))?,
    })
}
