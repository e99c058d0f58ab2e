use std::sync::Arc;

use candle_core::{DType, Tensor, bail};

use super::ops::{
    Linear, Rope, add, attention, last_attention, recompute, rms_norm, rope, swiglu, take_rows,
    tree_attention,
};
use super::{Config, ModelError};

/// Gives the parameter of a name and shape: from a file, or made and remembered by the trainer.
pub type GetParameter<'a> = dyn FnMut(&str, &[usize]) -> Result<Tensor, ModelError> + 'a;

/// Rows that pass through a feed-forward layer at a time, outside of training: what they make in it stays in cache.
const ROWS: usize = 1024;

/// Short sequences that share their beginnings, each token there once.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// By row: the row of the token before it, an earlier one; the row itself where a sequence begins.
    pub parents: Vec<u32>,
    /// By row: how many tokens are before it.
    pub positions: Vec<u32>,
}

/// What the tokens of a ragged batch attend to, on candle's tensors: in training and in the f-gram model. The main model
/// is served by `transformer/`.
pub enum Attend<'a> {
    /// All of their own sequence up to themselves: the batch holds whole sequences of these lengths. Differentiable.
    Whole(Arc<Vec<usize>>),
    /// Themselves and what is before them in a tree of sequences. Not differentiable.
    Tree(&'a Tree),
}

impl Attend<'_> {
    fn positions(&self) -> Vec<u32> {
        match self {
            Self::Whole(lengths) => lengths.iter().flat_map(|&n| 0..n as u32).collect(),
            Self::Tree(tree) => tree.positions.clone(),
        }
    }
}

/// A Llama decoder without embedding and head: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
pub struct Decoder {
    blocks: Vec<Arc<Block>>,
    norm: Tensor,
    rope: Arc<Rope>,
    eps: f64,
    recompute: bool,
    precision: DType,
}

struct Block {
    head: usize,
    eps: f64,
    attention_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    ffn_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Decoder {
    /// Builds the decoder from parameters of Hugging Face's names (`model.layers.0.self_attn.q_proj.weight`, ...).
    ///
    /// # Errors
    /// Those of `get`; and where the shape has what this decoder does not compute: biases, norms of heads, scaled
    /// rotary angles.
    pub fn new(config: &Config, get: &mut GetParameter<'_>) -> Result<Self, ModelError> {
        if config.qkv_bias() || config.output_bias() || config.qk_norm() || config.rope_scaling.is_some() {
            let why = "biases, norms of heads and scaled rotary angles are not for training or f-gram models";
            return Err(candle_core::Error::Msg(why.into()).into());
        }
        let blocks = (0..config.num_hidden_layers).map(|i| Block::new(config, i, get).map(Arc::new));
        Ok(Self {
            blocks: blocks.collect::<Result<_, _>>()?,
            norm: get("model.norm.weight", &[config.hidden_size])?,
            rope: Rope::new(config.max_position_embeddings, config.head(), config.rope_theta),
            eps: config.rms_norm_eps,
            recompute: false,
            precision: DType::F32,
        })
    }

    /// Whether training keeps only the blocks' inputs and computes the rest again in the backward pass, block by block.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    /// What is computed in, whatever the type of the input; f32 at first.
    pub fn set_precision(&mut self, precision: DType) {
        self.precision = precision;
    }

    /// The same decoder with its weights fixed, in the form that serves them fastest: for weights that nothing will
    /// change.
    ///
    /// # Errors
    /// Where they are being trained.
    pub fn fixed(self) -> candle_core::Result<Self> {
        let blocks = self.blocks.into_iter().map(|block| match Arc::into_inner(block) {
            Some(block) => block.fixed().map(Arc::new),
            None => bail!("a block that a backward pass still needs cannot be fixed"),
        });
        Ok(Self { blocks: blocks.collect::<candle_core::Result<_>>()?, ..self })
    }

    /// The last hidden states, before the last norm and in the decoder's precision: `[tokens, d]` for input embeddings `[tokens, d]`.
    ///
    /// # Errors
    /// Where the shapes do not fit or a position is beyond the context.
    pub fn forward(&self, x: &Tensor, attend: &Attend<'_>) -> candle_core::Result<Tensor> {
        self.through(&self.blocks, x, &Arc::new(attend.positions()), attend)
    }

    fn through(
        &self,
        blocks: &[Arc<Block>],
        x: &Tensor,
        positions: &Arc<Vec<u32>>,
        attend: &Attend<'_>,
    ) -> candle_core::Result<Tensor> {
        let mut x = x.to_dtype(self.precision)?;
        for block in blocks {
            x = match attend {
                Attend::Whole(lengths) if self.recompute => {
                    block.clone().recomputed(&x, &self.rope, positions, lengths)?
                }
                _ => block.forward(&x, &self.rope, positions, attend)?,
            };
        }
        Ok(x)
    }

    /// The last hidden states of the last token of each sequence, `[sequences, d]`, for input embeddings `[tokens, d]`
    /// of whole sequences of these lengths, up to 16 each. Differentiable; the last block is computed for those tokens
    /// only, as nothing reads the others.
    ///
    /// # Errors
    /// Where the shapes do not fit or a position is beyond the context.
    pub fn forward_last(&self, x: &Tensor, lengths: &Arc<Vec<usize>>) -> candle_core::Result<Tensor> {
        let attend = Attend::Whole(lengths.clone());
        let positions = Arc::new(attend.positions());
        let ends = lengths.iter().scan(0, |end, &n| {
            *end += n as u32;
            Some(*end - 1)
        });
        let ends = Arc::new(ends.collect::<Vec<u32>>());
        let Some((last, others)) = self.blocks.split_last() else { return take_rows(x, &ends) };
        let x = self.through(others, x, &positions, &attend)?;
        if self.recompute {
            return last.clone().recomputed_last(&x, &self.rope, &positions, lengths, &ends);
        }
        last.forward_last(&x, &self.rope, &positions, lengths, &ends)
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
            q: Linear::new(get("self_attn.q_proj", &[q, d])?),
            k: Linear::new(get("self_attn.k_proj", &[kv, d])?),
            v: Linear::new(get("self_attn.v_proj", &[kv, d])?),
            o: Linear::new(get("self_attn.o_proj", &[d, q])?),
            ffn_norm: get("post_attention_layernorm", &[d])?,
            gate: Linear::new(get("mlp.gate_proj", &[ffn, d])?),
            up: Linear::new(get("mlp.up_proj", &[ffn, d])?),
            down: Linear::new(get("mlp.down_proj", &[d, ffn])?),
        })
    }

    fn fixed(self) -> candle_core::Result<Self> {
        Ok(Self {
            q: self.q.fixed()?,
            k: self.k.fixed()?,
            v: self.v.fixed()?,
            o: self.o.fixed()?,
            gate: self.gate.fixed()?,
            up: self.up.fixed()?,
            down: self.down.fixed()?,
            ..self
        })
    }

    /// What is trained, or would be.
    fn parameters(&self) -> Vec<&Tensor> {
        let linear = [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down];
        let weights = linear.into_iter().filter_map(Linear::weight);
        weights.chain([&self.attention_norm, &self.ffn_norm]).collect()
    }

    /// As `forward` for whole sequences, computed again in the backward pass.
    fn recomputed(
        self: Arc<Self>,
        x: &Tensor,
        angles: &Arc<Rope>,
        positions: &Arc<Vec<u32>>,
        lengths: &Arc<Vec<usize>>,
    ) -> candle_core::Result<Tensor> {
        let (block, angles, positions) = (self.clone(), angles.clone(), positions.clone());
        let attend = Attend::Whole(lengths.clone());
        let forward = move |x: &Tensor| block.forward(x, &angles, &positions, &attend);
        recompute(x, &self.parameters(), Arc::new(forward))
    }

    /// As `forward_last`, computed again in the backward pass.
    fn recomputed_last(
        self: Arc<Self>,
        x: &Tensor,
        angles: &Arc<Rope>,
        positions: &Arc<Vec<u32>>,
        lengths: &Arc<Vec<usize>>,
        ends: &Arc<Vec<u32>>,
    ) -> candle_core::Result<Tensor> {
        let (block, angles, positions) = (self.clone(), angles.clone(), positions.clone());
        let (lengths, ends) = (lengths.clone(), ends.clone());
        let forward = move |x: &Tensor| block.forward_last(x, &angles, &positions, &lengths, &ends);
        recompute(x, &self.parameters(), Arc::new(forward))
    }

    fn forward(
        &self,
        x: &Tensor,
        angles: &Arc<Rope>,
        positions: &Arc<Vec<u32>>,
        attend: &Attend<'_>,
    ) -> candle_core::Result<Tensor> {
        let h = rms_norm(x, &self.attention_norm, self.eps)?;
        let q = rope(&self.q.forward(&h)?, angles, positions)?;
        let k = rope(&self.k.forward(&h)?, angles, positions)?;
        let v = self.v.forward(&h)?;
        let mixed = match attend {
            Attend::Whole(lengths) => attention(&q, &k, &v, lengths, self.head)?,
            Attend::Tree(tree) => tree_attention(&q, &k, &v, &tree.parents, self.head)?,
        };
        let x = add(x, &self.o.forward(&mixed)?)?;
        let tokens = x.dim(0)?;
        if tokens <= ROWS || x.track_op() || !x.device().is_cpu() {
            return self.feed_forward(&x);
        }
        let parts = (0..tokens).step_by(ROWS);
        let parts = parts.map(|from| self.feed_forward(&x.narrow(0, from, ROWS.min(tokens - from))?));
        Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 0)
    }

    fn forward_last(
        &self,
        x: &Tensor,
        angles: &Arc<Rope>,
        positions: &Arc<Vec<u32>>,
        lengths: &Arc<Vec<usize>>,
        ends: &Arc<Vec<u32>>,
    ) -> candle_core::Result<Tensor> {
        let h = rms_norm(x, &self.attention_norm, self.eps)?;
        let k = rope(&self.k.forward(&h)?, angles, positions)?;
        let v = self.v.forward(&h)?;
        let positions = Arc::new(ends.iter().map(|&end| positions[end as usize]).collect());
        let q = rope(&self.q.forward(&take_rows(&h, ends)?)?, angles, &positions)?;
        let mixed = last_attention(&q, &k, &v, lengths, self.head)?;
        self.feed_forward(&add(&take_rows(x, ends)?, &self.o.forward(&mixed)?)?)
    }

    fn feed_forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let h = rms_norm(x, &self.ffn_norm, self.eps)?;
        let inner = swiglu(&self.gate.forward(&h)?, &self.up.forward(&h)?)?;
        add(x, &self.down.forward(&inner)?)
    }
}
