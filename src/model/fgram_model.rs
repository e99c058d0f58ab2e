use std::sync::Arc;

use candle_core::Tensor;

use super::decoder::GetParameter;
use super::ops::take_rows;
use super::{Attend, Decoder, FgramConfig, ModelError};

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
}

/// `A_f`: a transformer of the main model's width that reads the token embeddings of ONE f-gram, at positions 0..n-1
/// and attending inside it only, and whose last hidden state becomes the f-gram's embedding (SCONE, section 3).
///
/// The paper leaves norm and scale of the output open. The residual form, `x_n + gain * norm(h_n)` with a gain that
/// starts at 0, makes a run begin as its baseline.
pub struct FgramModel {
    decoder: Decoder,
    gain: Option<Tensor>,
}

impl FgramModel {
    /// Builds it from parameters named as a decoder's, and `output_gain` in the residual form.
    ///
    /// # Errors
    /// Those of `get`.
    pub fn new(config: &FgramConfig, get: &mut GetParameter<'_>) -> Result<Self, ModelError> {
        let decoder = Decoder::new(&config.decoder, get)?;
        let gain = if config.residual_output {
            Some(get("output_gain", &[config.decoder.hidden_size])?)
        } else {
            None
        };
        Ok(Self { decoder, gain })
    }

    /// The same model with its weights [fixed](Decoder::fixed).
    ///
    /// # Errors
    /// Where they are being trained.
    pub fn fixed(self) -> candle_core::Result<Self> {
        Ok(Self { decoder: self.decoder.fixed()?, ..self })
    }

    /// The embeddings `[f-grams, d]` of f-grams, given the token embedding `T` `[vocabulary, d]`. Differentiable in
    /// `T` as well.
    ///
    /// # Errors
    /// Where a token is beyond `T`.
    pub fn embed(&self, token_embedding: &Tensor, grams: &Grams) -> candle_core::Result<Tensor> {
        let x = take_rows(token_embedding, &Arc::new(grams.tokens.clone()))?;
        let h = self.decoder.forward(&x, &Attend::Whole(Arc::new(grams.lengths.clone())))?;
        let mut end = 0;
        let last = grams.lengths.iter().map(|&n| {
            end += n as u32;
            end - 1
        });
        let last = Arc::new(last.collect::<Vec<_>>());
        let h = take_rows(&h, &last)?;
        match &self.gain {
            Some(gain) => take_rows(&x, &last)? + self.decoder.norm_with_gain(&h, gain)?,
            None => self.decoder.norm(&h),
        }
    }
}
