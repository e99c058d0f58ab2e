use std::time::Duration;

use super::embedding::Embedding;
#[cfg(any(feature = "cuda", test))]
use super::gpu_transformer::{GpuTransformer, GpuWeights};
use super::transformer::{Transformer, Weights};
use super::{Checkpoint, Config, Draw, LiveTable, ModelError, Piece, Runtime};
use crate::kernels::{KvCache, Pool, Span};
use crate::table::Placement;

/// What computes the transformer, and keeps its keys and values.
pub(super) enum Executor {
    /// A CPU.
    Cpu { transformer: Box<Transformer>, cache: KvCache },
    /// A GPU.
    #[cfg(any(feature = "cuda", test))]
    Gpu(Box<GpuTransformer>),
}

/// Which of a batch's rows something is wanted of.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// The rows, ascending.
    pub(super) rows: &'a [usize],
    /// How the token is chosen of those of which only that is wanted.
    #[cfg_attr(
        not(any(feature = "cuda", test)),
        expect(dead_code, reason = "a CPU gives logits of all rows")
    )]
    pub(super) choosing: &'a [Option<Draw>],
}

/// A step over a ragged batch.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    pub(super) pieces: &'a [Piece<'a>],
    /// Where the pieces' keys and values are.
    pub(super) spans: &'a [Span<'a>],
    pub(super) wanted: Wanted<'a>,
    /// What the next step is likely to compute.
    #[cfg_attr(not(any(feature = "cuda", test)), expect(dead_code, reason = "a CPU does not look ahead"))]
    pub(super) ahead: &'a [Piece<'a>],
}

/// Where a step's results go, in place of what was there.
pub(super) struct Output<'a> {
    /// The logits of the wanted rows.
    pub(super) logits: &'a mut Vec<f32>,
    /// The tokens, of those of which only these are wanted: of none on a CPU.
    pub(super) chosen: &'a mut Vec<u32>,
}

impl Executor {
    /// Brings the weights to where they are computed, and makes room for keys and values.
    ///
    /// # Errors
    /// Where a tensor is missing or does not fit the configuration, or there is not enough memory.
    pub(super) fn new(
        config: &Config,
        checkpoint: &Checkpoint,
        runtime: &Runtime,
    ) -> Result<Self, ModelError> {
        #[cfg(any(feature = "cuda", test))]
        if let Some(gpu) = super::ops::gpu::gpu_of(&runtime.device)? {
            let weights = GpuWeights::new(gpu, checkpoint, runtime.dtype)?;
            return Ok(Self::Gpu(Box::new(weights.transformer(config, runtime.kv_blocks)?)));
        }
        let transformer = Box::new(Weights::new(checkpoint, runtime.dtype).transformer(config)?);
        let no_memory = |why: String| candle_core::Error::Msg(format!("keys and values: {why}"));
        let cache =
            KvCache::new(transformer.kv_shape(), runtime.kv_type, runtime.kv_blocks).map_err(no_memory)?;
        if runtime.takes_memory {
            cache.populate().map_err(no_memory)?;
        }
        Ok(Self::Cpu { transformer, cache })
    }

    /// Puts the rows of a table where a GPU reads them by itself, if that is what they are for.
    ///
    /// # Errors
    /// Where there is no room for them, they cannot be read, or a CPU computes.
    pub(super) fn hold(&mut self, live: &LiveTable) -> Result<(), ModelError> {
        let Placement::Gpu(place) = live.placement() else { return Ok(()) };
        match self {
            #[cfg(any(feature = "cuda", test))]
            Self::Gpu(transformer) => transformer.hold(&live.get(), place),
            Self::Cpu { .. } => Err(ModelError::Gpu(format!(
                "rows of the table are to be where a GPU reads them ({}), and the CPU computes: use --table-mode ram, mmap or \
                 direct",
                Placement::Gpu(place)
            ))),
        }
    }

    pub(super) fn kv_blocks(&self) -> usize {
        match self {
            Self::Cpu { cache, .. } => cache.blocks(),
            #[cfg(any(feature = "cuda", test))]
            Self::Gpu(transformer) => transformer.kv_blocks(),
        }
    }

    pub(super) fn kv_bytes(&self) -> usize {
        match self {
            Self::Cpu { cache, .. } => cache.bytes(),
            #[cfg(any(feature = "cuda", test))]
            Self::Gpu(transformer) => transformer.kv_bytes(),
        }
    }

    pub(super) fn weight_bytes(&self) -> usize {
        match self {
            Self::Cpu { transformer, .. } => transformer.weight_bytes(),
            #[cfg(any(feature = "cuda", test))]
            Self::Gpu(transformer) => transformer.weight_bytes(),
        }
    }

    /// How long the host was busy with the last step on a GPU.
    pub(super) fn host_time(&self) -> Duration {
        match self {
            Self::Cpu { .. } => Duration::ZERO,
            #[cfg(any(feature = "cuda", test))]
            Self::Gpu(transformer) => transformer.host_time(),
        }
    }

    pub(super) fn is_on_gpu(&self) -> bool {
        !matches!(self, Self::Cpu { .. })
    }

    /// Computes a step. A CPU gives logits of all wanted rows.
    ///
    /// # Errors
    /// Where the table is damaged or was changed while in use, or the GPU fails.
    ///
    /// # Panics
    /// Where a token is beyond the vocabulary, or a block is not there.
    pub(super) fn forward(
        &mut self,
        pool: &Pool,
        embedding: &mut Embedding,
        step: Step<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), ModelError> {
        match self {
            Self::Cpu { transformer, cache } => {
                let Step { pieces, spans, wanted, .. } = step;
                let rows = spans.iter().map(|span| span.new).sum();
                let (x, tokens) = transformer.input(rows);
                embedding.embed(pool, pieces, tokens, x)?;
                transformer.forward(pool, cache, spans, wanted.rows, output.logits);
                output.chosen.clear();
                Ok(())
            }
            #[cfg(any(feature = "cuda", test))]
            Self::Gpu(transformer) => transformer.forward(embedding, step, output),
        }
    }
}
