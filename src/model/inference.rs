use std::sync::Arc;
use std::time::Duration;

use candle_core::Device;

use super::executor::{Executor, Output, Step, Wanted};
use super::{Checkpoint, Config, Draw, Embedding, Fgrams, ModelError, Pass, Piece};
use crate::kernels::{BLOCK, Encoding, KvType, Pool, Span};

/// How a model is run.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Where the transformer is computed.
    pub device: Device,
    /// The threads that compute: all of it on a CPU, and what is left to one beside a GPU.
    pub pool: Arc<Pool>,
    /// What the weights are converted to; as they are stored if None.
    pub dtype: Option<Encoding>,
    /// How keys and values are held on a CPU. On a GPU they have the type of activations.
    pub kv_type: KvType,
    /// Blocks of [`BLOCK`] positions that there is room for.
    pub kv_blocks: usize,
    /// Whether their memory is taken at the start, as a server should, or as it is used.
    pub takes_memory: bool,
}

impl Runtime {
    /// On a CPU, on these threads: weights as they are stored, exact keys and values, of so many positions.
    pub fn new(pool: Arc<Pool>, positions: usize) -> Self {
        Self {
            device: Device::Cpu,
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
    executor: Executor,
    embedding: Embedding,
    pool: Arc<Pool>,
    /// The batch's rows whose logits are wanted: a step's own, kept for its memory.
    wanted: Vec<usize>,
    /// How the token is chosen of those of which only that is.
    choosing: Vec<Option<Draw>>,
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
        let mut executor = Executor::new(&config, checkpoint, runtime)?;
        if let Fgrams::Table(live) = &fgrams {
            executor.hold(live)?;
        }
        let (embedding, pool) = (Embedding::new(fgrams), Arc::clone(&runtime.pool));
        Ok(Self {
            config,
            executor,
            embedding,
            pool,
            wanted: Vec::new(),
            choosing: Vec::new(),
            written: Vec::new(),
        })
    }

    /// Its shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How many steps a GPU has recorded.
    #[cfg(test)]
    pub(crate) fn recorded_steps(&self) -> usize {
        match &self.executor {
            Executor::Gpu(transformer) => transformer.recorded_steps(),
            Executor::Cpu { .. } => 0,
        }
    }

    /// Whether a GPU reads rows of the table by itself.
    #[cfg(test)]
    pub(crate) fn holds_table(&self) -> bool {
        match &self.executor {
            Executor::Gpu(transformer) => transformer.holds_table(),
            Executor::Cpu { .. } => false,
        }
    }

    /// How often a GPU was brought a row ahead that a step needed.
    #[cfg(test)]
    pub(crate) fn rows_taken(&self) -> usize {
        match &self.executor {
            Executor::Gpu(transformer) => transformer.rows_taken(),
            Executor::Cpu { .. } => 0,
        }
    }

    /// Its input embedding.
    pub fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    /// Blocks of [`BLOCK`] positions that there is room for.
    pub fn kv_blocks(&self) -> usize {
        self.executor.kv_blocks()
    }

    /// Bytes of the memory for keys and values.
    pub fn kv_bytes(&self) -> usize {
        self.executor.kv_bytes()
    }

    /// The threads it computes on.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Bytes of the weights as they are held.
    pub fn weight_bytes(&self) -> usize {
        self.executor.weight_bytes()
    }

    /// One step over a ragged batch: writes the new tokens' keys and values and puts the wanted logits
    /// `[wanted, vocabulary]`, in the order of the pieces and their tokens, into `logits`, in place of what was there.
    ///
    /// # Errors
    /// Where a token is beyond the vocabulary, a piece beyond the context or its blocks, or the table is damaged.
    pub fn forward(&mut self, pieces: &[Piece<'_>], logits: &mut Vec<f32>) -> Result<(), ModelError> {
        self.forward_choosing(&Pass::of(pieces), logits, &mut Vec::new())
    }

    /// How long the host took for the last step on a GPU, from when the one before was done until all was asked for: rows that it
    /// brings ahead while the GPU computes are not counted. Zero on a CPU, and after a step that failed.
    pub fn host_time(&self) -> Duration {
        self.executor.host_time()
    }

    /// Whether a GPU computes it.
    pub fn is_on_gpu(&self) -> bool {
        self.executor.is_on_gpu()
    }

    /// As [`Model::forward`], where of pieces that have draws only the tokens are of use that these choose: a GPU (a CPU gives logits of
    /// all) puts them into `chosen`, or [`NO_TOKEN`](super::NO_TOKEN) where the logits are no distribution, and only the other
    /// pieces' logits into `logits`.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_choosing(
        &mut self,
        pass: &Pass<'_>,
        logits: &mut Vec<f32>,
        chosen: &mut Vec<u32>,
    ) -> Result<(), ModelError> {
        let &Pass { pieces, draws, ahead } = pass;
        pieces.iter().try_for_each(|piece| self.check(piece))?;
        self.check_blocks(pieces)?;
        let spans: Vec<Span<'_>> = pieces
            .iter()
            .map(|piece| Span { blocks: piece.blocks, past: piece.past, new: piece.new_tokens() })
            .collect();
        self.wanted.clear();
        self.choosing.clear();
        let mut end = 0;
        for (i, (piece, span)) in pieces.iter().zip(&spans).enumerate() {
            end += span.new;
            self.wanted.extend(end - piece.wanted.min(span.new)..end);
            if let Some(draws) = draws.get(i).and_then(Option::as_ref) {
                let rows = self.wanted.len() - self.choosing.len();
                self.choosing.extend(draws.iter().copied().map(Some).take(rows));
            }
            self.choosing.resize(self.wanted.len(), None);
        }
        let Self { executor, embedding, pool, wanted, choosing, .. } = self;
        let wanted = Wanted { rows: wanted, choosing };
        let step = Step { pieces, spans: &spans, wanted, ahead };
        executor.forward(pool, embedding, step, &mut Output { logits, chosen })
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
        if blocks.is_none_or(|blocks| blocks.iter().any(|&block| block as usize >= self.kv_blocks())) {
            return no(format!("{len} tokens need blocks that the cache of {} has not", self.kv_blocks()));
        }
        Ok(())
    }
}
