use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::lookup::Lookup;
use super::{Batch, Freeze, Gradient, Gradients, Parameters, RunConfig, TrainError, unique_grams};
use crate::fgram::FgramSet;
use crate::model::ops::{Linear, cross_entropy, is_gpu, take_rows, take_rows_of_two};
use crate::model::{Attend, FgramModel, MainModel, ModelError};

/// The main model and, unless it is a baseline, the f-gram model, on the same parameters.
pub struct JointModel {
    main: MainModel,
    fgrams: Option<FgramModel>,
}

/// The token embeddings of both models: whole, or the rows of them that a batch reads.
#[derive(Clone)]
struct Tables {
    /// `T`.
    main: Tensor,
    /// The f-gram model's, if it has its own.
    own: Option<Tensor>,
}

impl Tables {
    fn map(&self, of: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> candle_core::Result<Self> {
        Ok(Self { main: of(&self.main)?, own: self.own.as_ref().map(of).transpose()? })
    }

    /// The one that is the parameter of a name.
    fn of(&self, name: &str) -> Option<&Tensor> {
        match name {
            "main/model.embed_tokens.weight" => Some(&self.main),
            "fgram/model.embed_tokens.weight" => self.own.as_ref(),
            _ => None,
        }
    }
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
        self.loss_with(&self.tables(), batch)
    }

    /// The loss of a batch, and `share` of its gradient for each parameter that is trained.
    ///
    /// # Errors
    /// Where a token is beyond the vocabulary, or a parameter receives no gradient.
    pub fn gradients(
        &self,
        batch: &Batch,
        parameters: &Parameters,
        share: f64,
    ) -> Result<(Tensor, Gradients), TrainError> {
        let tables = self.tables();
        let lookup = self.lookup(batch, parameters.device())?;
        let rows = match &lookup {
            Some(lookup) => tables.map(|table| lookup.rows_of(table))?,
            None => tables.clone(),
        };
        let loss = self.loss_with(&rows, lookup.as_ref().map_or(batch, |lookup| &lookup.batch))?;
        let mut store = (&loss * share)?.backward()?;
        let mut gradients = Gradients::new();
        for (name, var) in parameters.trained() {
            let mut gradient = store.remove(var).map(Gradient::Whole);
            let of_rows = rows.of(name).and_then(|rows| store.remove(rows));
            if let (Some(lookup), Some(of_rows)) = (&lookup, of_rows) {
                let of_rows = Gradient::Rows(lookup.gradient(var, &of_rows)?);
                gradient = Some(match gradient {
                    Some(whole) => whole.plus(of_rows)?,
                    None => of_rows,
                });
            }
            let gradient = match gradient {
                Some(gradient) => gradient,
                // A batch in which no f-gram occurs says nothing about the f-gram model.
                None if name.starts_with("fgram/") => Gradient::Whole(var.zeros_like()?),
                None => return Err(TrainError::NoGradient(name.to_owned())),
            };
            gradients.insert(name.to_owned(), gradient);
        }
        Ok((loss.detach(), gradients))
    }

    fn tables(&self) -> Tables {
        let own = self.fgrams.as_ref().and_then(FgramModel::token_embedding);
        Tables { main: self.main.token_embedding.clone(), own: own.cloned() }
    }

    /// What a batch reads of the tables, where that is known to pay: on a CPU. What a GPU would gain is not measured.
    fn lookup(&self, batch: &Batch, device: &Device) -> candle_core::Result<Option<Lookup>> {
        if is_gpu(device)? {
            return Ok(None);
        }
        Lookup::new(batch, self.main.token_embedding.dim(0)?).map(Some)
    }

    fn loss_with(&self, tables: &Tables, batch: &Batch) -> candle_core::Result<Tensor> {
        let x = self.embed(tables, batch)?;
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
        let h = self
            .main
            .decoder
            .forward(&self.embed(&self.tables(), &batch)?, &Attend::Whole(batch.lengths.clone()))?;
        let head = Linear::new(self.main.head.clone());
        head.forward(&self.main.decoder.norm(&take_rows(&h, &ends)?)?)?.to_dtype(DType::F32)
    }

    fn embed(&self, Tables { main: tokens, own }: &Tables, batch: &Batch) -> candle_core::Result<Tensor> {
        let Some(model) = &self.fgrams else { return take_rows(tokens, &Arc::new(batch.inputs.clone())) };
        let unique = unique_grams(batch, tokens.dim(0)?);
        if unique.grams.is_empty() {
            return take_rows(tokens, &unique.rows);
        }
        take_rows_of_two(
            tokens,
            &model.embed_with(tokens, own.as_ref().unwrap_or(tokens), &unique.grams)?,
            &unique.rows,
        )
    }
}
