use std::sync::Arc;

use candle_core::Tensor;

use super::ops::{
    CachedPiece, Rope, attention, cached_attention, linear, rms_norm, rope, swiglu, write_cache,
};
use super::{Config, KvCache, ModelError};

/// Gives the parameter of a name and shape: from a file, or made and remembered by the trainer.
pub type GetParameter<'a> = dyn FnMut(&str, &[usize]) -> Result<Tensor, ModelError> + 'a;

/// What the tokens of a ragged batch attend to.
pub enum Attend<'a> {
    /// All of their own sequence up to themselves: the batch holds whole sequences of these lengths. Differentiable.
    Whole(Arc<Vec<usize>>),
    /// The cached past of their sequence as well, to which their keys and values are added.
    Cached {
        /// Where keys and values are.
        cache: &'a KvCache,
        /// One entry a sequence of the batch, in order.
        pieces: &'a [CachedPiece],
    },
}

impl Attend<'_> {
    fn positions(&self) -> Vec<u32> {
        match self {
            Self::Whole(lengths) => lengths.iter().flat_map(|&n| 0..n as u32).collect(),
            Self::Cached { pieces, .. } => {
                pieces.iter().flat_map(|p| p.past as u32..(p.past + p.new) as u32).collect()
            }
        }
    }
}

/// A Llama decoder without embedding and head: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
pub struct Decoder {
    blocks: Vec<Block>,
    norm: Tensor,
    rope: Arc<Rope>,
    eps: f64,
}

struct Block {
    head: usize,
    eps: f64,
    attention_norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    ffn_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

impl Decoder {
    /// Builds the decoder from parameters of Hugging Face's names (`model.layers.0.self_attn.q_proj.weight`, ...).
    ///
    /// # Errors
    /// Those of `get`.
    pub fn new(config: &Config, get: &mut GetParameter<'_>) -> Result<Self, ModelError> {
        let blocks =
            (0..config.num_hidden_layers).map(|i| Block::new(config, i, get)).collect::<Result<_, _>>()?;
        Ok(Self {
            blocks,
            norm: get("model.norm.weight", &[config.hidden_size])?,
            rope: Rope::new(config.max_position_embeddings, config.head(), config.rope_theta),
            eps: config.rms_norm_eps,
        })
    }

    /// The last hidden states, before the last norm: `[tokens, d]` for input embeddings `[tokens, d]`.
    ///
    /// # Errors
    /// Where the shapes do not fit or a position is beyond the context.
    pub fn forward(&self, x: &Tensor, attend: &Attend<'_>) -> candle_core::Result<Tensor> {
        let positions = Arc::new(attend.positions());
        let mut x = x.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(i, &x, &self.rope, &positions, attend)?;
        }
        Ok(x)
    }

    /// The last norm.
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn norm(&self, h: &Tensor) -> candle_core::Result<Tensor> {
        rms_norm(h, &self.norm, self.eps)
    }

    /// The last norm and then a gain by feature: `gain * norm(h)`.
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn norm_with_gain(&self, h: &Tensor, gain: &Tensor) -> candle_core::Result<Tensor> {
        rms_norm(h, &(&self.norm * gain)?, self.eps)
    }
}

impl Block {
    fn new(config: &Config, i: usize, get: &mut GetParameter<'_>) -> Result<Self, ModelError> {
        let (d, ffn) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.num_attention_heads * config.head(), config.kv_heads() * config.head());
        let mut get = |name: &str, shape: &[usize]| get(&format!("model.layers.{i}.{name}.weight"), shape);
        Ok(Self {
            head: config.head(),
            eps: config.rms_norm_eps,
            attention_norm: get("input_layernorm", &[d])?,
            q: get("self_attn.q_proj", &[q, d])?,
            k: get("self_attn.k_proj", &[kv, d])?,
            v: get("self_attn.v_proj", &[kv, d])?,
            o: get("self_attn.o_proj", &[d, q])?,
            ffn_norm: get("post_attention_layernorm", &[d])?,
            gate: get("mlp.gate_proj", &[ffn, d])?,
            up: get("mlp.up_proj", &[ffn, d])?,
            down: get("mlp.down_proj", &[d, ffn])?,
        })
    }

    fn forward(
        &self,
        layer: usize,
        x: &Tensor,
        angles: &Arc<Rope>,
        positions: &Arc<Vec<u32>>,
        attend: &Attend<'_>,
    ) -> candle_core::Result<Tensor> {
        let h = rms_norm(x, &self.attention_norm, self.eps)?;
        let q = rope(&linear(&h, &self.q)?, angles, positions)?;
        let k = rope(&linear(&h, &self.k)?, angles, positions)?;
        let v = linear(&h, &self.v)?;
        let mixed = match attend {
            Attend::Whole(lengths) => attention(&q, &k, &v, lengths, self.head)?,
            Attend::Cached { cache, pieces } => {
                let (keys, values) = &cache.layers[layer];
                write_cache(keys, &k, pieces)?;
                write_cache(values, &v, pieces)?;
                cached_attention(&q, keys, values, pieces, self.head)?
            }
        };
        let x = (x + linear(&mixed, &self.o)?)?;
        let h = rms_norm(&x, &self.ffn_norm, self.eps)?;
        let inner = swiglu(&linear(&h, &self.gate)?, &linear(&h, &self.up)?)?;
        &x + linear(&inner, &self.down)?
    }
}
