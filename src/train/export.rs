use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use serde_json::{Value, json};

use super::{Card, Freeze, History, Parameters, RunConfig, TrainError};
use crate::corpus::Dataset;
use crate::fgram::FgramSet;
use crate::model::{Config, ModelDirectory, SconeConfig, write_weights};
use crate::new_file;

/// Writes the model directory that `scone` serves and Hugging Face's `transformers` opens: built beside its final name
/// and renamed, in place of an older one. `card` becomes its README.md.
pub(super) fn write(
    directory: &Path,
    config: &RunConfig,
    dataset: &Dataset,
    set: Option<&FgramSet>,
    parameters: &Parameters,
    card: &str,
) -> Result<(), TrainError> {
    let beside = sibling(directory, "partial");
    remove(&beside)?;
    std::fs::create_dir_all(&beside).map_err(TrainError::io(&beside))?;
    let dtype = dtype_of(&config.checkpoint.dtype);
    let main_values = parameters.values("main");
    // A model that others serve beside this one has to stay what it is, whatever the f-gram model is stored as.
    let main_dtype = match config.train.freeze {
        Some(Freeze::Main) => exact_dtype(&main_values)?,
        None => config.checkpoint.dtype.as_str(),
    };
    let tokenizer = dataset.tokenizer();
    let main = config.model_config(tokenizer.vocab_size());
    let eos = dataset.eos();
    write_json(&beside.join("config.json"), &hugging_face(&main, eos, main_dtype)?)?;
    write_json(&beside.join("generation_config.json"), &json!({ "bos_token_id": eos, "eos_token_id": eos }))?;
    let source = dataset.directory().join("tokenizer.json");
    let text = std::fs::read(&source).map_err(TrainError::io(&source))?;
    new_file::write(&beside.join("tokenizer.json"), &text)
        .map_err(TrainError::io(&beside.join("tokenizer.json")))?;
    let eos_token = tokenizer.id_to_token(eos).unwrap_or_default();
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": eos_token,
        "eos_token": eos_token,
        "model_max_length": main.max_position_embeddings,
        "clean_up_tokenization_spaces": false,
    });
    write_json(&beside.join("tokenizer_config.json"), &tokenizer_config)?;
    if let Some(source) = config.model.init_from.as_ref().filter(|source| source.is_dir()) {
        ModelDirectory::open(source)?.copy_settings(&beside)?;
    }
    write_weights(&beside.join("model.safetensors"), &main_values, dtype_of(main_dtype))?;
    if let (Some(set), Some(fgram)) =
        (set, config.fgram_config(tokenizer.vocab_size(), set.map_or(2, |set| set.policy().max_n)))
    {
        let fgram_directory = beside.join("fgram_model");
        std::fs::create_dir_all(&fgram_directory).map_err(TrainError::io(&fgram_directory))?;
        let mut value = hugging_face(&fgram.decoder, eos, &config.checkpoint.dtype)?;
        value["residual_output"] = fgram.residual_output.into();
        value["own_embedding"] = fgram.own_embedding.into();
        value["output_size"] = json!(fgram.output_size);
        write_json(&fgram_directory.join("config.json"), &value)?;
        write_weights(&fgram_directory.join("model.safetensors"), &parameters.values("fgram"), dtype)?;
        let scone = SconeConfig {
            max_n: set.policy().max_n,
            fgrams_sha256: set.sha256(),
            table: PathBuf::from("table.safetensors"),
            baseline: None,
            adapters: Vec::new(),
        };
        write_json(&beside.join("scone.json"), &serde_json::to_value(scone).map_err(json_error(directory))?)?;
    }
    new_file::write(&beside.join("README.md"), card.as_bytes())
        .map_err(TrainError::io(&beside.join("README.md")))?;
    let old = sibling(directory, "old");
    remove(&old)?;
    if directory.exists() {
        std::fs::rename(directory, &old).map_err(TrainError::io(directory))?;
    }
    std::fs::rename(&beside, directory).map_err(TrainError::io(directory))?;
    remove(&old)
}

fn dtype_of(name: &str) -> DType {
    match name {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        _ => DType::F16,
    }
}

/// The shortest type that holds all of these numbers as they are.
fn exact_dtype(tensors: &BTreeMap<String, Tensor>) -> Result<&'static str, TrainError> {
    let bits = |tensor: &Tensor| -> candle_core::Result<Vec<u32>> {
        let numbers = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(numbers.into_iter().map(f32::to_bits).collect())
    };
    'types: for name in ["f16", "bf16"] {
        for tensor in tensors.values() {
            if bits(&tensor.to_dtype(dtype_of(name))?)? != bits(tensor)? {
                continue 'types;
            }
        }
        return Ok(name);
    }
    Ok("f32")
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
fn hugging_face(config: &Config, eos: u32, dtype: &str) -> Result<Value, TrainError> {
    let mut value = serde_json::to_value(config).map_err(json_error(Path::new("config.json")))?;
    let dtype = match dtype {
        "f32" => "float32",
        "bf16" => "bfloat16",
        _ => "float16",
    };
    for (field, extra) in [
        ("architectures", json!(["LlamaForCausalLM"])),
        ("hidden_act", json!("silu")),
        ("attention_bias", json!(false)),
        ("mlp_bias", json!(false)),
        ("bos_token_id", json!(eos)),
        ("eos_token_id", json!(eos)),
        ("torch_dtype", json!(dtype)),
    ] {
        value[field] = extra;
    }
    Ok(value)
}

/// The card of a run that has just ended and was not measured yet.
pub(super) fn card(config: &RunConfig, dataset: &Dataset, run: &Path) -> String {
    let card = Card {
        config: config.clone(),
        vocab_size: dataset.tokenizer().vocab_size(),
        corpus_tokens: Some(dataset.train().tokens),
        history: History::read(run).ok(),
        results: None,
        against: None,
        environment: Card::environment(run).ok().flatten(),
    };
    card.render()
}
