use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use serde_json::{Value, json};

use super::{Card, Freeze, History, Parameters, RunConfig, TrainError};
use crate::corpus::Dataset;
use crate::fgram::FgramSet;
use crate::model::{Config, ModelDirectory, SconeConfig, WeightType, copy_settings, write_weights};
use crate::new_file;

/// What becomes a model directory: a run's weights, and what they belong to.
pub(super) struct Export<'a> {
    pub(super) config: &'a RunConfig,
    /// What the model says of itself that the run started from.
    pub(super) settings: Option<PathBuf>,
    pub(super) dataset: &'a Dataset,
    pub(super) set: Option<&'a FgramSet>,
    pub(super) parameters: &'a Parameters,
}

impl Export<'_> {
    /// Writes the model directory that `scone` serves and Hugging Face's `transformers` opens: built beside its final name
    /// and renamed, in place of an older one. `card` gives its README.md, told how the main model's weights are stored.
    pub(super) fn write(
        &self,
        directory: &Path,
        card: impl FnOnce(WeightType) -> String,
    ) -> Result<(), TrainError> {
        let beside = sibling(directory, "partial");
        remove(&beside)?;
        std::fs::create_dir_all(&beside).map_err(TrainError::io(&beside))?;
        let weights = self.write_main_model(&beside)?;
        self.write_fgram_model(&beside)?;
        new_file::write(&beside.join("README.md"), card(weights).as_bytes())
            .map_err(TrainError::io(&beside.join("README.md")))?;
        let old = sibling(directory, "old");
        remove(&old)?;
        if directory.exists() {
            std::fs::rename(directory, &old).map_err(TrainError::io(directory))?;
        }
        std::fs::rename(&beside, directory).map_err(TrainError::io(directory))?;
        remove(&old)
    }

    /// Shape, tokenizer, settings and weights; returns how these are stored.
    fn write_main_model(&self, directory: &Path) -> Result<WeightType, TrainError> {
        let (tokenizer, eos) = (self.dataset.tokenizer(), self.dataset.eos());
        let values = self.parameters.values("main")?;
        // A model that others serve beside this one has to stay what it is, whatever the f-gram model is stored as.
        let weights = match self.config.train.freeze {
            Some(Freeze::Main) => exact_type(&values, self.source_type())?,
            None => self.config.checkpoint.dtype,
        };
        let main = self.config.model_config(tokenizer.vocab_size());
        write_json(&directory.join("config.json"), &hugging_face(&main, eos, weights)?)?;
        let generation = json!({ "bos_token_id": eos, "eos_token_id": eos });
        write_json(&directory.join("generation_config.json"), &generation)?;
        let source = self.dataset.directory().join("tokenizer.json");
        let text = std::fs::read(&source).map_err(TrainError::io(&source))?;
        new_file::write(&directory.join("tokenizer.json"), &text)
            .map_err(TrainError::io(&directory.join("tokenizer.json")))?;
        let eos_token = tokenizer.id_to_token(eos).unwrap_or_default();
        let tokenizer_config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": eos_token,
            "eos_token": eos_token,
            "model_max_length": main.max_position_embeddings,
            "clean_up_tokenization_spaces": false,
        });
        write_json(&directory.join("tokenizer_config.json"), &tokenizer_config)?;
        if let Some(settings) = &self.settings {
            copy_settings(settings, directory)?;
        }
        write_weights(&directory.join("model.safetensors"), &values, weights)?;
        Ok(weights)
    }

    /// How the weights that the run started from are stored, if they are still there.
    fn source_type(&self) -> Option<WeightType> {
        ModelDirectory::open(self.config.model.init_from.as_ref()?).ok()?.weight_type()
    }

    /// The f-gram model and `scone.json`; nothing for a baseline.
    fn write_fgram_model(&self, directory: &Path) -> Result<(), TrainError> {
        let vocab_size = self.dataset.tokenizer().vocab_size();
        let Some(set) = self.set else { return Ok(()) };
        let Some(fgram) = self.config.fgram_config(vocab_size, set.policy().max_n) else { return Ok(()) };
        let own = directory.join("fgram_model");
        std::fs::create_dir_all(&own).map_err(TrainError::io(&own))?;
        let weights = self.config.checkpoint.dtype;
        let mut value = hugging_face(&fgram.decoder, self.dataset.eos(), weights)?;
        value["residual_output"] = fgram.residual_output.into();
        value["own_embedding"] = fgram.own_embedding.into();
        value["output_size"] = json!(fgram.output_size);
        write_json(&own.join("config.json"), &value)?;
        write_weights(&own.join("model.safetensors"), &self.parameters.values("fgram")?, weights)?;
        let scone = SconeConfig {
            max_n: set.policy().max_n,
            fgrams_sha256: set.sha256(),
            table: PathBuf::from("table.safetensors"),
            baseline: None,
            adapters: Vec::new(),
        };
        write_json(
            &directory.join("scone.json"),
            &serde_json::to_value(scone).map_err(json_error(directory))?,
        )
    }

    /// The card of a run that has just ended and was not measured yet.
    pub(super) fn card(&self, run: &Path, weights: WeightType) -> Card {
        Card {
            config: self.config.clone(),
            vocab_size: self.dataset.tokenizer().vocab_size(),
            weights,
            corpus_tokens: Some(self.dataset.train().tokens).filter(|_| self.config.data.corpora.is_empty()),
            history: History::read(run).ok(),
            results: None,
            against: None,
            environment: Card::environment(run).ok().flatten(),
        }
    }
}

/// A type that holds all of these numbers as they are: that of their `source`, for its hash is of the type too, or the
/// shortest.
fn exact_type(
    tensors: &BTreeMap<String, Tensor>,
    source: Option<WeightType>,
) -> Result<WeightType, TrainError> {
    let bits = |tensor: &Tensor| -> candle_core::Result<Vec<u32>> {
        let numbers = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(numbers.into_iter().map(f32::to_bits).collect())
    };
    'types: for weights in source.into_iter().chain([WeightType::F16, WeightType::Bf16]) {
        for tensor in tensors.values() {
            if bits(&tensor.to_dtype(weights.dtype())?)? != bits(tensor)? {
                continue 'types;
            }
        }
        return Ok(weights);
    }
    Ok(WeightType::F32)
}

fn sibling(directory: &Path, suffix: &str) -> PathBuf {
    let mut name = directory.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{suffix}"));
    directory.with_file_name(name)
}

fn remove(directory: &Path) -> Result<(), TrainError> {
    if directory.exists() {
        std::fs::remove_dir_all(directory).map_err(TrainError::io(directory))
    } else {
        Ok(())
    }
}

fn json_error(path: &Path) -> impl Fn(serde_json::Error) -> TrainError {
    let path = path.to_owned();
    move |e| TrainError::Config { path: path.clone(), why: e.to_string() }
}

fn write_json(path: &Path, value: &Value) -> Result<(), TrainError> {
    let mut text = serde_json::to_string_pretty(value).map_err(json_error(path))?;
    text.push('\n');
    new_file::write(path, text.as_bytes()).map_err(TrainError::io(path))
}

/// A `config.json` with what `transformers` wants besides the shape.
fn hugging_face(config: &Config, eos: u32, weights: WeightType) -> Result<Value, TrainError> {
    let mut value = serde_json::to_value(config).map_err(json_error(Path::new("config.json")))?;
    for (field, extra) in [
        ("architectures", json!(["LlamaForCausalLM"])),
        ("hidden_act", json!("silu")),
        ("attention_bias", json!(false)),
        ("mlp_bias", json!(false)),
        ("bos_token_id", json!(eos)),
        ("eos_token_id", json!(eos)),
        ("torch_dtype", json!(weights.torch_name())),
    ] {
        value[field] = extra;
    }
    Ok(value)
}
