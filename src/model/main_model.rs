use candle_core::Tensor;

use super::decoder::GetParameter;
use super::{Config, Decoder, ModelError};

/// The main model as it is trained, without the embedding of f-grams: decoder, `T` and head.
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
