use std::path::Path;

use serde::Deserialize;

use super::ModelError;

#[derive(Deserialize)]
#[serde(untagged)]
enum Eos {
    One(u32),
    Many(Vec<u32>),
}

#[derive(Deserialize)]
struct Generation {
    #[serde(default)]
    eos_token_id: Option<Eos>,
}

/// The tokens that end a text by a directory's `generation_config.json`; None where it does not say.
pub(super) fn of_directory(directory: &Path) -> Result<Option<Vec<u32>>, ModelError> {
    let file = directory.join("generation_config.json");
    if !file.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&file).map_err(ModelError::io(&file))?;
    let parsed: Generation = serde_json::from_str(&text).map_err(|e| {
        ModelError::config(&file, format!("\"eos_token_id\" must be a token id or a list: {e}"))
    })?;
    Ok(parsed.eos_token_id.map(|eos| match eos {
        Eos::One(token) => vec![token],
        Eos::Many(tokens) => tokens,
    }))
}
