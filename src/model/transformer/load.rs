use super::block::{Block, Turn};
use super::{Shape, Transformer, Workspace};
use crate::kernels::{Encoding, Matrix};
use crate::model::checkpoint::Checkpoint;
use crate::model::{Config, ModelError};

/// Weights on their way from a checkpoint into the form that serves.
pub(in crate::model) struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    /// What matrices are converted to; as they are stored if None.
    to: Option<Encoding>,
}

impl<'a> Weights<'a> {
    /// The weights of `checkpoint`, matrices as they are stored or converted.
    pub(in crate::model) fn new(checkpoint: &'a Checkpoint, to: Option<Encoding>) -> Self {
        Self { checkpoint, to }
    }

    /// Packs them all.
    ///
    /// # Errors
    /// Where a tensor is missing or does not fit the configuration.
    pub(in crate::model) fn transformer(&self, config: &Config) -> Result<Transformer, ModelError> {
        let shape = Shape {
            width: config.hidden_size,
            feed_forward: config.intermediate_size,
            heads: config.num_attention_heads,
            kv_heads: config.kv_heads(),
            head: config.head(),
            eps: config.rms_norm_eps as f32,
            frequencies: config.inverse_frequencies(),
        };
        let (d, vocabulary) = (shape.width, config.vocab_size);
        let blocks =
            (0..config.num_hidden_layers).map(|i| self.block(config, &shape, i)).collect::<Result<_, _>>()?;
        let is_tied = config.tie_word_embeddings;
        Ok(Transformer {
            blocks,
            tokens: self.matrix("model.embed_tokens.weight", vocabulary, d)?,
            head: if is_tied { None } else { Some(self.matrix("lm_head.weight", vocabulary, d)?) },
            norm: self.vector("model.norm.weight", d)?,
            shape,
            workspace: Workspace::default(),
        })
    }

    fn block(&self, config: &Config, shape: &Shape, i: usize) -> Result<Block, ModelError> {
        let (d, ffn, q, kv) = (shape.width, shape.feed_forward, shape.queries(), shape.keys());
        let name = |name: &str| format!("model.layers.{i}.{name}");
        let matrix =
            |part: &str, outputs, inputs| self.matrix(&name(&format!("{part}.weight")), outputs, inputs);
        let vector = |part: &str, len| self.vector(&name(part), len);
        let bias = if config.qkv_bias() {
            let parts = [("q", q), ("k", kv), ("v", kv)];
            let parts = parts.map(|(part, len)| vector(&format!("self_attn.{part}_proj.bias"), len));
            Some(parts.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
        } else {
            None
        };
        let norms = if config.qk_norm() {
            Some((
                vector("self_attn.q_norm.weight", shape.head)?,
                vector("self_attn.k_norm.weight", shape.head)?,
            ))
        } else {
            None
        };
        Ok(Block {
            attention_norm: vector("input_layernorm.weight", d)?,
            q: matrix("self_attn.q_proj", q, d)?,
            k: matrix("self_attn.k_proj", kv, d)?,
            v: matrix("self_attn.v_proj", kv, d)?,
            turn: Turn { bias, norms },
            o: matrix("self_attn.o_proj", d, q)?,
            o_bias: if config.output_bias() { Some(vector("self_attn.o_proj.bias", d)?) } else { None },
            ffn_norm: vector("post_attention_layernorm.weight", d)?,
            gate: matrix("mlp.gate_proj", ffn, d)?,
            up: matrix("mlp.up_proj", ffn, d)?,
            down: matrix("mlp.down_proj", d, ffn)?,
        })
    }

    fn matrix(&self, name: &str, outputs: usize, inputs: usize) -> Result<Matrix, ModelError> {
        let stored = self.checkpoint.stored(name, &[outputs, inputs])?;
        // What does not divide into the blocks of an encoding stays as it is stored.
        let matrix = match self.to.filter(|&to| to != stored.encoding && to.bytes(inputs).is_some()) {
            None => Matrix::new(stored.encoding, outputs, inputs, &stored.bytes),
            Some(to) => Matrix::convert(stored.encoding, outputs, inputs, &stored.bytes, to),
        };
        matrix.map_err(|why| ModelError::weights(self.checkpoint.path(), format!("\"{name}\": {why}")))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        Ok(self.checkpoint.stored(name, &[len])?.decode())
    }
}
