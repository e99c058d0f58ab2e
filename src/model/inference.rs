use std::sync::Arc;

use super::transformer::{Transformer, Weights};
use super::{Checkpoint, Config, Embedding, Fgrams, ModelError, Piece};
use crate::kernels::{BLOCK, Encoding, KvCache, KvType, Pool, Span};

/// How a model is run.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The threads that compute.
    pub pool: Arc<Pool>,
    /// What the weights are converted to; as they are stored if None.
    pub dtype: Option<Encoding>,
    /// How keys and values are held.
    pub kv_type: KvType,
    /// Blocks of [`BLOCK`] positions that there is room for.
    pub kv_blocks: usize,
    /// Whether their memory is taken at the start, as a server should, or as it is used.
    pub takes_memory: bool,
}

impl Runtime {
    /// On these threads: weights as they are stored, exact keys and values, of so many positions.
    pub fn new(pool: Arc<Pool>, positions: usize) -> Self {
        Self {
            pool,
            dtype: None,
            kv_type: KvType::F32,
            kv_blocks: positions.div_ceil(BLOCK),
            takes_memory: false,
        }
    }
}

/// A model that serves: embedding, transformer, and the keys and values of its sequences.
pub struct Model {
    config: Config,
    transformer: Transformer,
    embedding: Embedding,
    cache: KvCache,
    pool: Arc<Pool>,
    /// The batch's rows whose logits are wanted: a step's own, kept for its memory.
    wanted: Vec<usize>,
    /// The blocks that a step writes, in order.
    written: Vec<u32>,
}

impl Model {
    /// Packs the weights and makes room for keys and values.
    ///
    /// # Errors
    /// Where a tensor is missing or does not fit the configuration.
    pub fn new(
        config: Config,
        checkpoint: &Checkpoint,
        fgrams: Fgrams,
        runtime: &Runtime,
    ) -> Result<Self, ModelError> {
        let transformer = Weights::new(checkpoint, runtime.dtype).transformer(&config)?;
        let no_memory = |why: String| candle_core::Error::Msg(format!("keys and values: {why}"));
        let cache =
            KvCache::new(transformer.kv_shape(), runtime.kv_type, runtime.kv_blocks).map_err(no_memory)?;
        if runtime.takes_memory {
            cache.populate().map_err(no_memory)?;
        }
        let (embedding, pool) = (Embedding::new(fgrams), Arc::clone(&runtime.pool));
        Ok(Self { config, transformer, embedding, cache, pool, wanted: Vec::new(), written: Vec::new() })
    }

    /// Its shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its input embedding.
    pub fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    /// Its keys and values.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// The threads it computes on.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Bytes of the weights as they are held.
    pub fn weight_bytes(&self) -> usize {
        self.transformer.weight_bytes()
    }

    /// One step over a ragged batch: writes the new tokens' keys and values and puts the wanted logits
    /// `[wanted, vocabulary]`, in the order of the pieces and their tokens, into `logits`, in place of what was there.
    ///
    /// # Errors
    /// Where a token is beyond the vocabulary, a piece beyond the context or its blocks, or the table is damaged.
    pub fn forward(&mut self, pieces: &[Piece<'_>], logits: &mut Vec<f32>) -> Result<(), ModelError> {
        pieces.iter().try_for_each(|piece| self.check(piece))?;
        self.check_blocks(pieces)?;
        let spans: Vec<Span<'_>> = pieces
            .iter()
            .map(|piece| Span { blocks: piece.blocks, past: piece.past, new: piece.new_tokens() })
            .collect();
        self.wanted.clear();
        let mut end = 0;
        for (piece, span) in pieces.iter().zip(&spans) {
            end += span.new;
            self.wanted.extend(end - piece.wanted.min(span.new)..end);
        }
        let (x, tokens) = self.transformer.input(end);
        self.embedding.embed(&self.pool, pieces, tokens, x)?;
        self.transformer.forward(&self.pool, &mut self.cache, &spans, &self.wanted, logits);
        Ok(())
    }

    /// That no block is written for two sequences, or twice.
    fn check_blocks(&mut self, pieces: &[Piece<'_>]) -> Result<(), ModelError> {
        self.written.clear();
        for piece in pieces {
            self.written.extend(&piece.blocks[piece.past / BLOCK..piece.tokens.len().div_ceil(BLOCK)]);
        }
        self.written.sort_unstable();
        match self.written.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => {
                let why = format!("block {} of the cache would be written for two pieces of text", pair[0]);
                Err(candle_core::Error::Msg(why).into())
            }
            None => Ok(()),
        }
    }

    fn check(&self, piece: &Piece<'_>) -> Result<(), ModelError> {
        let (len, context) = (piece.tokens.len(), self.config.max_position_embeddings);
        let no = |why: String| Err(candle_core::Error::Msg(why).into());
        let vocabulary = self.config.vocab_size;
        if let Some(&token) = piece.tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(ModelError::Token { token, vocabulary });
        }
        if piece.past >= len || len > context {
            return no(format!("{} to {len} are no positions of a context of {context}", piece.past));
        }
        let blocks = piece.blocks.get(..len.div_ceil(BLOCK));
        if blocks.is_none_or(|blocks| blocks.iter().any(|&block| block as usize >= self.cache.blocks())) {
            return no(format!("{len} tokens need blocks that the cache of {} has not", self.cache.blocks()));
        }
        Ok(())
    }
}
