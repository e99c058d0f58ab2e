use std::sync::Arc;

use candle_core::Tensor;

use super::{Batch, Freeze, Parameters, RunConfig, unique_grams};
use crate::model::ops::{cross_entropy, take_rows, take_rows_of_two};
use crate::model::{Attend, FgramModel, MainModel, ModelError};

/// The main model and, unless it is a baseline, the f-gram model, on the same parameters.
pub struct JointModel {
    main: MainModel,
    fgrams: Option<FgramModel>,
}

/// Gives a part's parameter of a name and shape, in a model of so many layers.
type GetOf<'a> = dyn FnMut(&str, &str, &[usize], usize) -> Result<Tensor, ModelError> + 'a;

impl JointModel {
    /// Makes the models and their initial parameters. What the configuration freezes gets no gradient.
    ///
    /// # Errors
    /// Where the device has not enough memory.
    pub fn create(
        config: &RunConfig,
        vocab_size: usize,
        max_n: usize,
        parameters: &mut Parameters,
    ) -> Result<Self, ModelError> {
        if config.train.freeze == Some(Freeze::Main) {
            parameters.freeze("main");
        }
        Self::build(config, vocab_size, max_n, &mut |part, name, shape, layers| {
            parameters.create(part, name, shape, layers)
        })
    }

    /// The same models over the same storage, but outside of autograd: what they compute is what a server would.
    ///
    /// # Errors
    /// Where `parameters` are of another configuration.
    pub fn for_validation(
        config: &RunConfig,
        vocab_size: usize,
        max_n: usize,
        parameters: &Parameters,
    ) -> Result<Self, ModelError> {
        Self::build(config, vocab_size, max_n, &mut |part, name, _, _| {
            let name = format!("{part}/{name}");
            let var = parameters.get(&name);
            Ok(var
                .ok_or_else(|| candle_core::Error::Msg(format!("no parameter {name}")))?
                .as_detached_tensor())
        })
    }

    fn build(
        config: &RunConfig,
        vocab_size: usize,
        max_n: usize,
        get: &mut GetOf<'_>,
    ) -> Result<Self, ModelError> {
        let main = config.model_config(vocab_size);
        let layers = main.num_hidden_layers;
        let main = MainModel::new(&main, &mut |name, shape| get("main", name, shape, layers))?;
        let fgrams = match config.fgram_config(vocab_size, max_n) {
            Some(fgram) => {
                let layers = fgram.decoder.num_hidden_layers;
                Some(FgramModel::new(&fgram, &mut |name, shape| get("fgram", name, shape, layers))?)
            }
            None => None,
        };
        Ok(Self { main, fgrams })
    }

    /// The mean cross-entropy of a batch's targets, in nats: a scalar.
    ///
    /// # Errors
    /// Where a token is beyond the vocabulary.
    pub fn loss(&self, batch: &Batch) -> candle_core::Result<Tensor> {
        let x = self.embed(batch)?;
        let lengths = vec![batch.context; batch.inputs.len() / batch.context];
        let h = self.main.decoder.forward(&x, &Attend::Whole(Arc::new(lengths)))?;
        cross_entropy(&self.main.decoder.norm(&h)?, &self.main.head, &batch.targets)
    }

    fn embed(&self, batch: &Batch) -> candle_core::Result<Tensor> {
        let tokens = &self.main.token_embedding;
        let Some(model) = &self.fgrams else { return take_rows(tokens, &Arc::new(batch.inputs.clone())) };
        let unique = unique_grams(batch, tokens.dim(0)?);
        if unique.grams.is_empty() {
            return take_rows(tokens, &unique.rows);
        }
        take_rows_of_two(tokens, &model.embed(tokens, &unique.grams)?, &unique.rows)
    }
}
