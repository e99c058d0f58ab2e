use std::sync::Arc;

use candle_core::{DType, Tensor};
use hashbrown::HashMap;

use super::decoder::GetParameter;
use super::ops::{Linear, add, take_rows};
use super::{Attend, Decoder, FgramConfig, ModelError, Tree};

/// F-grams laid end to end, as the f-gram model reads them.
#[derive(Clone, Debug, Default)]
pub struct Grams {
    tokens: Vec<u32>,
    lengths: Vec<usize>,
    starts: Vec<usize>,
}

impl Grams {
    /// Adds one.
    pub fn push(&mut self, gram: &[u32]) {
        self.starts.push(self.tokens.len());
        self.tokens.extend_from_slice(gram);
        self.lengths.push(gram.len());
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// The tokens of the `i`-th.
    ///
    /// # Panics
    /// Where there are fewer.
    pub fn get(&self, i: usize) -> &[u32] {
        &self.tokens[self.starts[i]..][..self.lengths[i]]
    }

    /// The last token of each.
    fn last_tokens(&self) -> Vec<u32> {
        self.starts.iter().zip(&self.lengths).map(|(&start, &n)| self.tokens[start + n - 1]).collect()
    }

    /// Their tree: its tokens by row, and the row of each f-gram's last token.
    fn tree(&self) -> (Tree, Vec<u32>, Vec<u32>) {
        let (mut tree, mut tokens) = (Tree::default(), Vec::new());
        let mut rows = HashMap::<(Option<u32>, u32), u32>::new();
        let ends = (0..self.len()).map(|i| {
            let mut end = None;
            for (position, &token) in self.get(i).iter().enumerate() {
                end = Some(*rows.entry((end, token)).or_insert_with(|| {
                    let row = tokens.len() as u32;
                    tokens.push(token);
                    tree.parents.push(end.unwrap_or(row));
                    tree.positions.push(position as u32);
                    row
                }));
            }
            end.unwrap_or_default()
        });
        let ends = ends.collect();
        (tree, tokens, ends)
    }
}

/// `A_f`: a transformer that reads the token embeddings of ONE f-gram, at positions 0..n-1 and attending inside it only,
/// and whose last hidden state becomes the f-gram's embedding (SCONE, section 3). It has the main model's embeddings and
/// width, or its own of both.
///
/// The paper leaves norm and scale of the output open. The residual form, `x_n + gain * norm(h_n)` with a gain that
/// starts at 0, makes a run begin as its baseline.
pub struct FgramModel {
    decoder: Decoder,
    embedding: Option<Tensor>,
    projection: Option<Linear>,
    gain: Option<Tensor>,
    residual: bool,
    fixed: bool,
}

impl FgramModel {
    /// Builds it from parameters named as a decoder's, and `output_gain` in the residual form or, where
    /// its width is its own, `output_proj.weight`.
    ///
    /// # Errors
    /// Those of `get`.
    pub fn new(config: &FgramConfig, get: &mut GetParameter<'_>) -> Result<Self, ModelError> {
        let (width, vocabulary) = (config.decoder.hidden_size, config.decoder.vocab_size);
        let decoder = Decoder::new(&config.decoder, get)?;
        let embedding = config
            .own_embedding
            .then(|| get("model.embed_tokens.weight", &[vocabulary, width]))
            .transpose()?;
        let projection = config.output_size.map(|d| get("output_proj.weight", &[d, width])).transpose()?;
        let gain = (config.residual_output && projection.is_none())
            .then(|| get("output_gain", &[width]))
            .transpose()?;
        Ok(Self {
            decoder,
            embedding,
            projection: projection.map(Linear::new),
            gain,
            residual: config.residual_output,
            fixed: false,
        })
    }

    /// The same model with its weights [fixed](Decoder::fixed).
    ///
    /// # Errors
    /// Where they are being trained.
    pub fn fixed(self) -> candle_core::Result<Self> {
        let projection = self.projection.map(Linear::fixed).transpose()?;
        Ok(Self { decoder: self.decoder.fixed()?, projection, fixed: true, ..self })
    }

    /// See [`Decoder::set_recompute`].
    pub fn set_recompute(&mut self, recompute: bool) {
        self.decoder.set_recompute(recompute);
    }

    /// See [`Decoder::set_precision`].
    pub fn set_precision(&mut self, precision: DType) {
        self.decoder.set_precision(precision);
    }

    /// Its token embedding `[vocabulary, width]`, if it has its own.
    pub fn token_embedding(&self) -> Option<&Tensor> {
        self.embedding.as_ref()
    }

    /// The embeddings `[f-grams, d]` of f-grams, in f32, given the main model's token embedding `T` `[vocabulary, d]`.
    /// Differentiable in `T` as well, unless the weights are fixed: then what f-grams share at their beginnings is computed
    /// once.
    ///
    /// # Errors
    /// Where a token is beyond `T`.
    pub fn embed(&self, token_embedding: &Tensor, grams: &Grams) -> candle_core::Result<Tensor> {
        self.embed_with(token_embedding, self.embedding.as_ref().unwrap_or(token_embedding), grams)
    }

    /// As [`FgramModel::embed`] with `tokens` in place of the embedding that it reads. Of both a part of the rows may be
    /// given, the same ones, where f-grams are made of the numbers of these rows.
    ///
    /// # Errors
    /// Where a token is beyond either.
    pub fn embed_with(
        &self,
        token_embedding: &Tensor,
        tokens: &Tensor,
        grams: &Grams,
    ) -> candle_core::Result<Tensor> {
        let h = if self.fixed {
            let (tree, ids, ends) = grams.tree();
            let x = take_rows(tokens, &Arc::new(ids))?;
            take_rows(&self.decoder.forward(&x, &Attend::Tree(&tree))?, &Arc::new(ends))?
        } else {
            let x = take_rows(tokens, &Arc::new(grams.tokens.clone()))?;
            self.decoder.forward_last(&x, &Arc::new(grams.lengths.clone()))?
        };
        let h = match (&self.projection, &self.gain) {
            (Some(projection), _) => projection.forward(&self.decoder.norm(&h)?)?,
            (None, Some(gain)) => self.decoder.norm_with_gain(&h, gain)?,
            (None, None) => self.decoder.norm(&h)?,
        };
        let h = h.to_dtype(DType::F32)?;
        if !self.residual {
            return Ok(h);
        }
        add(&take_rows(token_embedding, &Arc::new(grams.last_tokens()))?, &h)
    }
}
