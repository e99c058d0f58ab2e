use std::path::{Path, PathBuf};

use super::{ModelDirectory, ModelError, SconeConfig};
use crate::fgram::FgramSet;
use crate::new_file;

/// Makes at `output` a directory of the same model with another f-gram set: everything but the table, which
/// [`build_table`](super::build_table) then computes. It is complete once its `scone.json` is there; called again for
/// the same set it writes the same files again.
///
/// # Errors
/// Where the directory has no f-gram model, the set is of another tokenizer or has f-grams longer than the f-gram model
/// was made for, something else is at `output`, or a file cannot be read or written.
pub fn extend_directory(
    directory: &ModelDirectory,
    set: &FgramSet,
    output: &Path,
) -> Result<ModelDirectory, ModelError> {
    let (config, _) = directory.fgram_files()?;
    let Some(old) = directory.scone() else {
        return Err(ModelError::config(directory.path(), "a baseline has no table: it has no scone.json"));
    };
    let (longest, most) = (set.policy().max_n, config.decoder.max_position_embeddings);
    if longest > most {
        let why = format!(
            "its f-gram model reads up to {most} tokens, the set goes to {longest}: mine it with --max-n {most}"
        );
        return Err(ModelError::config(directory.path(), why));
    }
    if set.policy().tokenizer_sha256 != directory.tokenizer().sha256() {
        let why =
            "the set was mined with another tokenizer: prepare the text with this model's tokenizer.json";
        return Err(ModelError::config(directory.path(), why));
    }
    let scone = SconeConfig {
        max_n: longest,
        fgrams_sha256: set.sha256(),
        table: PathBuf::from("table.safetensors"),
        baseline: None,
        adapters: Vec::new(),
    };
    free_for(directory, &scone, output)?;
    std::fs::create_dir_all(output).map_err(ModelError::io(output))?;
    directory.copy_model(output)?;
    let baseline = old.baseline.as_ref().map(|baseline| reached_from(output, directory.path(), baseline));
    let file = output.join("scone.json");
    let text = serde_json::to_string_pretty(&SconeConfig { baseline, ..scone })
        .map_err(|e| ModelError::config(&file, e.to_string()))?;
    new_file::write(&file, format!("{text}\n").as_bytes()).map_err(ModelError::io(&file))?;
    ModelDirectory::open(output)
}

/// Refuses a place where another model is already.
fn free_for(directory: &ModelDirectory, scone: &SconeConfig, output: &Path) -> Result<(), ModelError> {
    let file = output.join("scone.json");
    let there = std::fs::read_to_string(&file).ok();
    let there = there.and_then(|text| serde_json::from_str::<SconeConfig>(&text).ok());
    let identity = |of: &ModelDirectory| of.identity(scone.fgrams_sha256.clone());
    let is_other = match &there {
        Some(there) if there.fgrams_sha256 == scone.fgrams_sha256 => {
            identity(&ModelDirectory::open(output)?)? != identity(directory)?
        }
        there => there.is_some(),
    };
    if is_other || (there.is_none() && output.join("config.json").exists()) {
        return Err(ModelError::config(output, "there is another model already: choose another --output"));
    }
    Ok(())
}

/// How the baseline, named relative to `from`, is named from `output`: the same where that leads there too.
fn reached_from(output: &Path, from: &Path, baseline: &Path) -> PathBuf {
    let real = |path: PathBuf| path.canonicalize().ok();
    let there = real(from.join(baseline));
    match there {
        Some(there) if real(output.join(baseline)).as_ref() != Some(&there) => there,
        _ => baseline.to_owned(),
    }
}
