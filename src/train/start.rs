//! What a run starts from where that is not chance: the shape and the weights of a trained model.

use std::fmt::Debug;

use super::{FgramSection, ModelSection, Parameters, RunConfig, TrainError};
use crate::corpus::Dataset;
use crate::model::{Checkpoint, Config, FgramConfig, ModelDirectory, ModelError};
use crate::tokenizer::Tokenizer;

impl RunConfig {
    /// Gives the run the shape of the model that it starts from, if it starts from one: the main model's, and the f-gram
    /// model's where both have one. Once is enough, and twice changes nothing. Where a run went on `before` from the same
    /// model, its configuration says it all.
    ///
    /// # Errors
    /// Where the model cannot be read or trained, or the configuration asks for another shape.
    pub fn take_shape(&mut self, before: Option<&Self>) -> Result<(), TrainError> {
        let Some(path) = self.model.init_from.clone() else { return Ok(()) };
        if let Some(before) = before.filter(|before| before.model.init_from.as_ref() == Some(&path)) {
            self.take_left_out(before);
            return Ok(());
        }
        let source = ModelDirectory::open(&path)?;
        let error = |why: String| TrainError::Config { path: path.clone(), why };
        trainable(source.config()).map_err(error)?;
        self.model.take(source.config()).map_err(error)?;
        if let Some((config, _)) = fgram_model(self, &source)? {
            if let Some(fgram) = &mut self.fgram {
                fgram.take(&config, source.config()).map_err(error)?;
            }
            self.check_fgrams(&config).map_err(error)?;
        }
        Ok(())
    }

    /// Takes over what was left out of the shape; what is said otherwise stays, and a run does not go on with it.
    fn take_left_out(&mut self, before: &Self) {
        let vocab_size = before.model.vocab_size.unwrap_or_default();
        let main = before.model_config(vocab_size);
        let mut model = self.model.clone();
        if model.take(&main).is_ok() {
            self.model = model;
        }
        if let (Some(fgram), Some(before)) = (&mut self.fgram, &before.fgram) {
            fgram.take_left_out(before);
        }
    }

    /// Whether the f-gram model that the configuration describes is of the given shape, K and vocabulary aside.
    fn check_fgrams(&self, source: &FgramConfig) -> Result<(), String> {
        let Some(ours) = self.fgram_config(source.decoder.vocab_size, 2) else { return Ok(()) };
        let theirs = &source.decoder;
        let decoder = Config {
            model_type: ours.decoder.model_type.clone(),
            num_key_value_heads: Some(theirs.kv_heads()),
            head_dim: Some(theirs.head()),
            max_position_embeddings: ours.decoder.max_position_embeddings,
            vocab_size: ours.decoder.vocab_size,
            tie_word_embeddings: ours.decoder.tie_word_embeddings,
            ..theirs.clone()
        };
        if ours == (FgramConfig { decoder, ..source.clone() }) {
            return Ok(());
        }
        Err("its f-gram model has another shape than [fgram] asks for: leave the shape out of [fgram], or start one \
             from chance with fresh = true"
            .into())
    }
}

impl ModelSection {
    fn take(&mut self, source: &Config) -> Result<(), String> {
        let default = Self::default();
        take("hidden_size", &mut self.hidden_size, &default.hidden_size, source.hidden_size)?;
        let inner = source.intermediate_size;
        take("intermediate_size", &mut self.intermediate_size, &default.intermediate_size, inner)?;
        take("layers", &mut self.layers, &default.layers, source.num_hidden_layers)?;
        take("heads", &mut self.heads, &default.heads, source.num_attention_heads)?;
        take("kv_heads", &mut self.kv_heads, &default.kv_heads, source.kv_heads())?;
        take("rope_theta", &mut self.rope_theta, &default.rope_theta, source.rope_theta)?;
        take("rms_norm_eps", &mut self.rms_norm_eps, &default.rms_norm_eps, source.rms_norm_eps)?;
        take("tied", &mut self.tied, &default.tied, source.tie_word_embeddings)?;
        take("head_dim", &mut self.head_dim, &None, Some(source.head()))?;
        take("vocab_size", &mut self.vocab_size, &None, Some(source.vocab_size))?;
        self.served_context = self.served_context.max(Some(source.max_position_embeddings));
        Ok(())
    }
}

impl FgramSection {
    /// Takes over what was left out and stands in the configuration of the run that goes on.
    fn take_left_out(&mut self, before: &Self) {
        let default = Self::of("");
        self.heads = self.heads.or(before.heads);
        self.intermediate_size = self.intermediate_size.or(before.intermediate_size);
        self.hidden_size = self.hidden_size.or(before.hidden_size);
        let left_out = |ours: bool, default: bool, before: bool| if ours == default { before } else { ours };
        self.residual_output =
            left_out(self.residual_output, default.residual_output, before.residual_output);
        self.own_embedding = left_out(self.own_embedding, default.own_embedding, before.own_embedding);
        if self.layers == default.layers {
            self.layers = before.layers;
        }
    }

    /// Takes over what was left out; [`RunConfig::check_fgrams`] looks at the rest.
    fn take(&mut self, source: &FgramConfig, main: &Config) -> Result<(), String> {
        let decoder = &source.decoder;
        let heads = (decoder.num_attention_heads, decoder.kv_heads());
        let own_heads = (heads != (main.num_attention_heads, main.kv_heads())).then_some(heads.0);
        let default = Self::of("");
        self.heads = self.heads.or(own_heads);
        self.intermediate_size = self.intermediate_size.or(Some(decoder.intermediate_size));
        self.hidden_size = self.hidden_size.or(source.own_embedding.then_some(decoder.hidden_size));
        take("layers in [fgram]", &mut self.layers, &default.layers, decoder.num_hidden_layers)?;
        take("residual_output", &mut self.residual_output, &default.residual_output, source.residual_output)?;
        take("own_embedding", &mut self.own_embedding, &default.own_embedding, source.own_embedding)
    }
}

/// Puts the model's value into a field that says the same or was left at its default.
fn take<T: PartialEq + Debug>(name: &str, field: &mut T, default: &T, model: T) -> Result<(), String> {
    if *field != model && field != default {
        return Err(format!(
            "{name} is {model:?} in the model to start from, {field:?} in the run's file: leave it out there"
        ));
    }
    *field = model;
    Ok(())
}

/// Refuses what the trainer does not compute.
fn trainable(config: &Config) -> Result<(), String> {
    let refused = [
        (config.qkv_bias() || config.output_bias(), "biases in attention"),
        (config.qk_norm(), "norms of heads"),
        (config.rope_scaling.is_some(), "scaled rotary angles"),
    ];
    match refused.iter().find(|(has, _)| *has) {
        Some((_, what)) => Err(format!(
            "a run cannot start from this model (model_type \"{}\"): it has {what}, which are served but not trained",
            config.model_type
        )),
        None => Ok(()),
    }
}

/// The f-gram model that the run's starts from.
fn fgram_model(
    config: &RunConfig,
    source: &ModelDirectory,
) -> Result<Option<(FgramConfig, Checkpoint)>, ModelError> {
    if config.fgram.as_ref().is_none_or(|fgram| fgram.fresh) {
        return Ok(None);
    }
    match source.fgram_files() {
        Ok(files) => Ok(Some(files)),
        Err(ModelError::NoFgramModel(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts the weights of the model that the run starts from, if it does, in place of the initial ones, exactly as they are
/// stored. An f-gram model that it does not have stays at its initial weights.
///
/// # Errors
/// Where the model's tokens are not the dataset's, or a tensor is missing or of another shape.
pub(super) fn load(config: &RunConfig, dataset: &Dataset, parameters: &Parameters) -> Result<(), TrainError> {
    let Some(path) = &config.model.init_from else { return Ok(()) };
    let source = ModelDirectory::open(path)?;
    if !same_tokens(source.tokenizer(), dataset.tokenizer()) {
        let (dataset, model) = (dataset.directory().display(), path.display());
        return Err(TrainError::Data(format!(
            "{dataset} was prepared with another tokenizer than that of {model}: prepare the text with \
             --tokenizer {model}/tokenizer.json"
        )));
    }
    let fgrams = fgram_model(config, &source)?;
    if source.scone().is_some() && config.fgram.is_none() {
        tracing::warn!("{}: its f-gram model is left out, for there is no [fgram] section", path.display());
    }
    for (name, var) in parameters.iter() {
        let (weights, name) = match (name.split_once('/'), &fgrams) {
            (Some(("main", name)), _) => (source.weights(), name),
            (Some(("fgram", name)), Some((_, weights))) => (weights, name),
            _ => continue,
        };
        var.set(&weights.tensor(name, var.dims(), var.device())?)?;
    }
    Ok(())
}

/// Whether every id means the same token. A GGUF file's tokenizer is rebuilt, so its hash says nothing.
fn same_tokens(a: &Tokenizer, b: &Tokenizer) -> bool {
    a.sha256() == b.sha256()
        || (a.vocab_size() == b.vocab_size()
            && (0..a.vocab_size() as u32).all(|id| a.id_to_token(id) == b.id_to_token(id)))
}
