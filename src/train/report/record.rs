use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::field;
use crate::train::config::leaves;
use crate::train::{History, Progress, TrainError};

/// A run as its directory tells it, whether it has ended or not.
pub struct RunRecord {
    /// Its directory's name.
    pub name: String,
    directory: PathBuf,
    /// Every update, in order.
    pub(super) updates: Vec<Progress>,
    config: Value,
    figures: Value,
}

impl RunRecord {
    /// Reads `config.toml`, `metrics.jsonl` and, where they are, `results.json` and the header of `best.safetensors`.
    ///
    /// # Errors
    /// Where one of the first two is missing, or one of the first three is damaged.
    pub fn read(directory: &Path) -> Result<Self, TrainError> {
        let path = directory.join("config.toml");
        let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path))?;
        let config = toml::from_str(&text).map_err(|e| TrainError::Config { path, why: e.to_string() })?;
        let updates = read_updates(&directory.join("metrics.jsonl"))?;
        let mut figures = own_figures(&updates);
        if let Some(parameters) = count_parameters(&directory.join("best.safetensors")) {
            figures["parameters"] = parameters;
        }
        if let Some(results) = read_results(&directory.join("results.json"))? {
            merge(&mut figures, results);
        }
        if let Some(loss) = figures.pointer("/validation/loss").and_then(Value::as_f64) {
            figures["validation"]["perplexity"] = loss.exp().into();
        }
        let name = directory.canonicalize().ok();
        let name = name.as_deref().unwrap_or(directory).file_name().unwrap_or(directory.as_os_str());
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            directory: directory.to_owned(),
            updates,
            config,
            figures,
        })
    }

    /// Where it lies, as it was named.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether it has no f-grams.
    pub fn is_baseline(&self) -> bool {
        self.config.get("fgram").is_none()
    }

    /// All figures that are known of it, as one JSON object: those of `results.json`, and those that follow from
    /// `metrics.jsonl`.
    pub fn figures(&self) -> &Value {
        &self.figures
    }

    /// A figure, or a setting of `config.toml`, by its path: `texts.books.perplexity`, `train.learning_rate`.
    ///
    /// A baseline has no figures that speak of f-grams, whatever its files say.
    pub fn number(&self, path: &str) -> Option<f64> {
        if self.is_baseline() && field::is_of_fgrams(path) {
            return None;
        }
        let pointer = format!("/{}", path.replace('.', "/"));
        let value = self.figures.pointer(&pointer).or_else(|| self.config.pointer(&pointer))?;
        value.as_f64().or_else(|| value.as_bool().map(|yes| f64::from(u8::from(yes))))
    }

    /// The paths of all numbers that [`Self::number`] finds.
    pub(super) fn paths(&self) -> Vec<String> {
        leaves(&self.figures)
            .into_iter()
            .chain(leaves(&self.config))
            .map(|(path, _)| path)
            .filter(|path| self.number(path).is_some())
            .collect()
    }

    /// The settings of `config.toml`, each with its value as text; of a path only the file's name.
    pub(super) fn settings(&self) -> Vec<(String, String)> {
        let text = |value: &Value| match value {
            Value::String(text) => Path::new(text)
                .file_name()
                .map_or_else(|| text.clone(), |name| name.to_string_lossy().into_owned()),
            other => other.to_string(),
        };
        leaves(&self.config).into_iter().map(|(path, value)| (path, text(value))).collect()
    }
}

/// Reads `metrics.jsonl`. Lines that are none, such as one that is just being written, are left out.
pub(in crate::train) fn read_updates(path: &Path) -> Result<Vec<Progress>, TrainError> {
    let text = std::fs::read(path).map_err(TrainError::io(path))?;
    let lines = text.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

fn read_results(path: &Path) -> Result<Option<Value>, TrainError> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = std::fs::read(path).map_err(TrainError::io(path))?;
    let results = serde_json::from_slice(&bytes);
    results.map(Some).map_err(|e| TrainError::Config { path: path.to_owned(), why: e.to_string() })
}

/// What follows from the updates alone.
fn own_figures(updates: &[Progress]) -> Value {
    let trained = updates.iter().filter(|update| update.loss.is_some());
    let mut rates: Vec<f64> = trained.map(|update| update.tokens_per_second).collect();
    rates.sort_by(f64::total_cmp);
    let mut figures = json!({});
    let Some(history) = History::of(updates) else { return figures };
    figures["tokens"] = history.tokens.into();
    // The median: a machine that had something else to do for a while does not count.
    if let Some(median) = rates.get(rates.len() / 2) {
        figures["tokens_per_second"] = (*median).into();
    }
    if let (Some(loss), Some(step)) = (history.best_loss, history.best_step) {
        figures["best"] = json!({ "loss": loss, "perplexity": loss.exp(), "step": step });
    }
    figures
}

/// Numbers of parameters, from the shapes in a checkpoint's header; nothing where there is no such file.
fn count_parameters(path: &Path) -> Option<Value> {
    const LONGEST_HEADER: u64 = 100 << 20;
    let mut file = File::open(path).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let mut header = Vec::new();
    file.take(u64::from_le_bytes(length).min(LONGEST_HEADER)).read_to_end(&mut header).ok()?;
    let header: Map<String, Value> = serde_json::from_slice(&header).ok()?;
    let size = |tensor: &Value| -> Option<u64> {
        let shape = tensor.get("shape")?.as_array()?.iter();
        shape.map(Value::as_u64).try_fold(1u64, |size, length| size.checked_mul(length?))
    };
    let count = |counted: &dyn Fn(&str) -> bool| -> u64 {
        header
            .iter()
            .filter(|(name, _)| counted(name))
            .filter_map(|(_, tensor)| size(tensor))
            .fold(0, u64::saturating_add)
    };
    let embedding = |name: &str| name.contains("embed_tokens") || name.contains("lm_head");
    Some(json!({
        "main": count(&|name| name.starts_with("p/main/")),
        "non_embedding": count(&|name| name.starts_with("p/main/") && !embedding(name)),
        "fgram": count(&|name| name.starts_with("p/fgram/")),
    }))
}

/// Puts the fields of `new` in place of those in `old`, object by object.
fn merge(old: &mut Value, new: Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                merge(old.entry(key).or_insert(Value::Null), value);
            }
        }
        (old, new) => *old = new,
    }
}
