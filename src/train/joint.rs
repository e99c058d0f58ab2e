use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::{Batch, Freeze, Parameters, RunConfig, unique_grams};
use crate::fgram::FgramSet;
use crate::model::ops::{Linear, cross_entropy, take_rows, take_rows_of_two};
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
        let residual = config.fgram.as_ref().is_some_and(|fgram| fgram.residual_output);
        Self::build(config, vocab_size, max_n, &mut |part, name, shape, layers| match name {
            // What is added to the last token's embedding is nothing at first.
            "output_gain" | "output_proj.weight" if residual => parameters.create_zeros(part, name, shape),
            _ => parameters.create(part, name, shape, layers),
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
        let mut main = MainModel::new(&main, &mut |name, shape| get("main", name, shape, layers))?;
        let precision = config.train.precision.dtype();
        main.decoder.set_recompute(config.train.recompute);
        main.decoder.set_precision(precision);
        let fgrams = match config.fgram_config(vocab_size, max_n) {
            Some(fgram) => {
                let layers = fgram.decoder.num_hidden_layers;
                let mut model =
                    FgramModel::new(&fgram, &mut |name, shape| get("fgram", name, shape, layers))?;
                model.set_recompute(config.train.recompute);
                model.set_precision(precision);
                Some(model)
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
        let h = self.main.decoder.forward(&x, &Attend::Whole(batch.lengths.clone()))?;
        cross_entropy(&self.main.decoder.norm(&h)?, &self.main.head, &batch.targets)
    }

    /// The logits after the last token of each sequence, whose f-grams are those of `set`: `[sequences, vocabulary]`.
    ///
    /// # Errors
    /// Where a sequence is empty or a token is beyond the vocabulary.
    pub fn next_logits(&self, sequences: &[&[u32]], set: Option<&FgramSet>) -> candle_core::Result<Tensor> {
        let lengths: Vec<usize> = sequences.iter().map(|tokens| tokens.len()).collect();
        if lengths.contains(&0) {
            candle_core::bail!("a sequence without a token has no next one");
        }
        let matches = set.map_or_else(Vec::new, |set| {
            let found = set.index().matches_of(sequences.iter().map(|tokens| (*tokens, 0)));
            found.into_iter().map(|found| found.map_or(1, |found| found.n)).collect()
        });
        let ends = lengths.iter().scan(0, |end, n| {
            *end += n;
            Some(*end as u32 - 1)
        });
        let ends = Arc::new(ends.collect());
        let (inputs, lengths) = (sequences.concat(), Arc::new(lengths.clone()));
        let batch = Batch { inputs, targets: Arc::default(), matches, lengths };
        let h = self.main.decoder.forward(&self.embed(&batch)?, &Attend::Whole(batch.lengths.clone()))?;
        let head = Linear::new(self.main.head.clone());
        head.forward(&self.main.decoder.norm(&take_rows(&h, &ends)?)?)?.to_dtype(DType::F32)
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
