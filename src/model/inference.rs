use candle_core::{Device, Tensor};
use std::sync::Arc;

use super::decoder::GetParameter;
use super::ops::{CachedPiece, Linear, take_rows};
use super::{Attend, Config, Decoder, Embedding, Fgrams, KvCache, ModelError, Piece};

/// The main model without its input embedding: decoder and head.
pub struct MainModel {
    /// The blocks.
    pub decoder: Decoder,
    /// `T` `[vocabulary, d]`.
    pub token_embedding: Tensor,
    /// The output head `[vocabulary, d]`: `T` itself where they are tied.
    pub head: Tensor,
}

impl MainModel {
    /// Builds it from parameters of Hugging Face's names.
    ///
    /// # Errors
    /// Those of `get`.
    pub fn new(config: &Config, get: &mut GetParameter<'_>) -> Result<Self, ModelError> {
        let shape = [config.vocab_size, config.hidden_size];
        let token_embedding = get("model.embed_tokens.weight", &shape)?;
        let decoder = Decoder::new(config, get)?;
        let head =
            if config.tie_word_embeddings { token_embedding.clone() } else { get("lm_head.weight", &shape)? };
        Ok(Self { decoder, token_embedding, head })
    }
}

/// A model that serves: embedding, decoder, head, and the KV cache of its sequences.
pub struct Model {
    config: Config,
    decoder: Decoder,
    head: Linear,
    embedding: Embedding,
    cache: Option<KvCache>,
    device: Device,
}

impl Model {
    /// Puts a model together and fixes its weights. `slots` sequences can be served at a time; with none, only
    /// [`Model::score`] works.
    ///
    /// # Errors
    /// Where the device has not enough memory, or the weights are being trained.
    pub fn new(config: Config, main: MainModel, fgrams: Fgrams, slots: usize) -> Result<Self, ModelError> {
        let device = main.head.device().clone();
        let context = config.max_position_embeddings;
        let cache = if slots > 0 { Some(KvCache::new(&config, slots, context, &device)?) } else { None };
        let embedding = Embedding::new(main.token_embedding, fgrams);
        let (decoder, head) = (main.decoder.fixed()?, Linear::new(main.head).fixed()?);
        Ok(Self { config, decoder, head, embedding, cache, device })
    }

    /// Its shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its input embedding.
    pub fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    /// Its KV cache.
    pub fn cache(&self) -> Option<&KvCache> {
        self.cache.as_ref()
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of the weights as they are held: a head that is the token embedding is held twice, by rows for the input
    /// and in panels for the output.
    pub fn weight_bytes(&self) -> usize {
        let tied = if self.config.tie_word_embeddings { self.config.vocab_size } else { 0 };
        (self.config.parameters() + tied * self.config.hidden_size) * size_of::<f32>()
    }

    /// One step over a ragged batch: writes the new tokens' keys and values and returns the wanted logits
    /// `[wanted, vocabulary]`, in the order of the pieces and their tokens.
    ///
    /// # Errors
    /// Where a token is beyond the vocabulary or a piece beyond the cache.
    pub fn forward(&mut self, pieces: &[Piece<'_>]) -> Result<Tensor, ModelError> {
        let Some(cache) = &self.cache else {
            return Err(candle_core::Error::Msg("the model was loaded without a KV cache".into()).into());
        };
        let slot = |blocks: &[u32]| blocks.first().map_or(usize::MAX, |&slot| slot as usize);
        let cached: Vec<CachedPiece> = pieces
            .iter()
            .map(|p| CachedPiece { slot: slot(p.blocks), past: p.past, new: p.new_tokens() })
            .collect();
        let x = self.embedding.embed(pieces)?;
        let h = self.decoder.forward(&x, &Attend::Cached { cache, pieces: &cached })?;
        let mut wanted = Vec::new();
        let mut at = 0u32;
        for (piece, cached) in pieces.iter().zip(&cached) {
            let end = at + cached.new as u32;
            wanted.extend(end - piece.wanted.min(cached.new) as u32..end);
            at = end;
        }
        if wanted.is_empty() {
            return Ok(Tensor::zeros((0, self.config.vocab_size), candle_core::DType::F32, &self.device)?);
        }
        let h = if wanted.len() == at as usize { h } else { take_rows(&h, &Arc::new(wanted))? };
        Ok(self.head.forward(&self.decoder.norm(&h)?)?)
    }

    /// The logits `[tokens, vocabulary]` of whole sequences, without the cache.
    ///
    /// # Errors
    /// Where a token is beyond the vocabulary or a sequence beyond the context.
    pub fn score<'a>(&self, sequences: &[&'a [u32]]) -> Result<Tensor, ModelError> {
        let whole = |tokens: &&'a [u32]| Piece { tokens, past: 0, blocks: &[], wanted: tokens.len() };
        let pieces: Vec<Piece<'a>> = sequences.iter().map(whole).collect();
        let lengths = sequences.iter().map(|tokens| tokens.len()).collect();
        let x = self.embedding.embed(&pieces)?;
        let h = self.decoder.forward(&x, &Attend::Whole(Arc::new(lengths)))?;
        Ok(self.head.forward(&self.decoder.norm(&h)?)?)
    }
}
