use std::sync::Arc;
use std::time::Duration;

use super::ahead::Ahead;
use super::block::Block;
use super::weight::{Side, Weight};
use super::{Cache, GpuTransformer, Graphs, Held, Shape, Workspace};
use crate::gpu::{Buffer, Gpu, GpuError, Type, ops};
use crate::kernels::{BLOCK, Encoding};
use crate::model::checkpoint::Checkpoint;
use crate::model::{Config, ModelError};

/// Weights on their way from a checkpoint to a GPU.
pub(in crate::model) struct GpuWeights<'a> {
    gpu: Arc<dyn Gpu>,
    checkpoint: &'a Checkpoint,
    /// What matrices are converted to; as they are stored if None.
    to: Option<Encoding>,
    /// The type of activations, and of weights that are not packed.
    kind: Type,
}

/// The type that activations have beside weights of this encoding.
fn activations(encoding: Encoding) -> Type {
    match encoding {
        Encoding::F32 => Type::F32,
        Encoding::F16 => Type::F16,
        _ => Type::Bf16,
    }
}

fn packing(encoding: Encoding) -> Option<ops::Packing> {
    match encoding {
        Encoding::Q8_0 => Some(ops::Packing::Q8_0),
        Encoding::Q4_0 => Some(ops::Packing::Q4_0),
        Encoding::Q4_1 => Some(ops::Packing::Q4_1),
        Encoding::Q4K => Some(ops::Packing::Q4K),
        Encoding::Q6K => Some(ops::Packing::Q6K),
        Encoding::F32 | Encoding::F16 | Encoding::Bf16 => None,
    }
}

/// A matrix on the host, in the encoding that it will have.
struct Rows {
    encoding: Encoding,
    bytes: Vec<u8>,
    outputs: usize,
    inputs: usize,
}

impl<'a> GpuWeights<'a> {
    /// The weights of `checkpoint`, matrices as they are stored or converted.
    ///
    /// # Errors
    /// Where it has no layer.
    pub(in crate::model) fn new(
        gpu: Arc<dyn Gpu>,
        checkpoint: &'a Checkpoint,
        to: Option<Encoding>,
    ) -> Result<Self, ModelError> {
        let first = checkpoint.encoding("model.layers.0.self_attn.q_proj.weight");
        let kind = activations(to.or(first).unwrap_or(Encoding::Bf16));
        Ok(Self { gpu, checkpoint, to, kind })
    }

    /// Brings them all there, and makes room for keys and values.
    ///
    /// # Errors
    /// Where a tensor is missing or does not fit the configuration, or the GPU has not enough memory.
    pub(in crate::model) fn transformer(
        &self,
        config: &Config,
        kv_blocks: usize,
    ) -> Result<GpuTransformer, ModelError> {
        let shape = Shape {
            kind: self.kind,
            width: config.hidden_size,
            feed_forward: config.intermediate_size,
            heads: config.num_attention_heads,
            kv_heads: config.kv_heads(),
            head: config.head(),
            vocabulary: config.vocab_size,
            tile: ops::forward_rows(&*self.gpu, self.kind, config.head())?,
            eps: config.rms_norm_eps as f32,
        };
        let (d, vocabulary) = (shape.width, shape.vocabulary);
        let blocks: Vec<Block> =
            (0..config.num_hidden_layers).map(|i| self.block(config, &shape, i)).collect::<Result<_, _>>()?;
        let tokens = self.rows("model.embed_tokens.weight", vocabulary, d)?;
        let is_packed = packing(tokens.encoding).is_some();
        let head = match config.tie_word_embeddings {
            false => Some(self.weight("lm_head.weight", vocabulary, d)?),
            // A packed head is read packed; its rows are needed one by one as well.
            true if is_packed => Some(self.put(&tokens)?),
            true => None,
        };
        let tokens = if is_packed { self.converted(&tokens)? } else { tokens };
        let layer = kv_blocks * shape.kv_heads * shape.head * BLOCK * shape.kind.bytes();
        let room = || self.gpu.alloc(layer).map_err(|error| no_room("keys and values", error));
        let layers = blocks.iter().map(|_| Ok([room()?, room()?])).collect::<Result<_, ModelError>>()?;
        let largest =
            blocks.iter().flat_map(Block::packed).chain(&head).filter(|weight| weight.packing.is_some());
        let largest = largest.map(|weight| weight.outputs * weight.inputs).max().unwrap_or(0);
        Ok(GpuTransformer {
            tokens: self.put(&tokens)?.data,
            head,
            norm: self.vector("model.norm.weight", d)?,
            frequencies: self.numbers(&config.inverse_frequencies())?,
            cache: Cache { layers, blocks: kv_blocks },
            workspace: Workspace::new(&*self.gpu, largest)?,
            ahead: Ahead::new(&*self.gpu)?,
            graphs: Graphs::default(),
            held: Held::default(),
            host_time: Duration::ZERO,
            gpu: self.gpu.clone(),
            blocks,
            shape,
        })
    }

    fn block(&self, config: &Config, shape: &Shape, i: usize) -> Result<Block, ModelError> {
        let (d, ffn, q, kv) = (shape.width, shape.feed_forward, shape.queries(), shape.kv_heads * shape.head);
        let name = |part: &str| format!("model.layers.{i}.{part}");
        let vector = |part: &str, len| self.vector(&name(part), len);
        let side = |parts: &[(&str, usize)]| self.side(parts.iter().map(|(part, len)| (name(part), *len)), d);
        let bias = if config.qkv_bias() {
            let mut all = Vec::new();
            for (part, len) in [("q", q), ("k", kv), ("v", kv)] {
                let name = name(&format!("self_attn.{part}_proj.bias"));
                all.extend(self.checkpoint.stored(&name, &[len])?.decode());
            }
            Some(self.numbers(&all)?)
        } else {
            None
        };
        let head_norms = match config.qk_norm() {
            true => Some([
                vector("self_attn.q_norm.weight", shape.head)?,
                vector("self_attn.k_norm.weight", shape.head)?,
            ]),
            false => None,
        };
        Ok(Block {
            attention_norm: vector("input_layernorm.weight", d)?,
            qkv: side(&[
                ("self_attn.q_proj.weight", q),
                ("self_attn.k_proj.weight", kv),
                ("self_attn.v_proj.weight", kv),
            ])?,
            bias,
            head_norms,
            o: self.weight(&name("self_attn.o_proj.weight"), d, q)?,
            o_bias: if config.output_bias() { Some(vector("self_attn.o_proj.bias", d)?) } else { None },
            ffn_norm: vector("post_attention_layernorm.weight", d)?,
            gate_up: side(&[("mlp.gate_proj.weight", ffn), ("mlp.up_proj.weight", ffn)])?,
            down: self.weight(&name("mlp.down_proj.weight"), d, ffn)?,
        })
    }

    /// Matrices of the same input, one below the other where they have one encoding.
    fn side(&self, parts: impl Iterator<Item = (String, usize)>, inputs: usize) -> Result<Side, ModelError> {
        let mut all: Vec<Rows> = Vec::new();
        for (name, outputs) in parts {
            let rows = self.rows(&name, outputs, inputs)?;
            match all.last_mut().filter(|last| last.encoding == rows.encoding) {
                Some(last) => {
                    last.bytes.extend(rows.bytes);
                    last.outputs += outputs;
                }
                None => all.push(rows),
            }
        }
        Ok(Side { parts: all.iter().map(|rows| self.put(rows)).collect::<Result<_, _>>()? })
    }

    fn weight(&self, name: &str, outputs: usize, inputs: usize) -> Result<Weight, ModelError> {
        self.put(&self.rows(name, outputs, inputs)?)
    }

    /// A matrix as it will be held: converted where that was asked for, and where it is neither packed nor of the type of
    /// activations. Packed ones stand beside bf16 only.
    fn rows(&self, name: &str, outputs: usize, inputs: usize) -> Result<Rows, ModelError> {
        let stored = self.checkpoint.stored(name, &[outputs, inputs])?;
        let to = self.to.filter(|to| to.bytes(inputs).is_some()).unwrap_or(stored.encoding);
        let held = packing(to).is_some() && self.kind == Type::Bf16
            || activations(to) == self.kind && packing(to).is_none();
        let to = if held { to } else { self.plain() };
        let wrong = |why: String| ModelError::weights(self.checkpoint.path(), format!("\"{name}\": {why}"));
        let bytes = match to == stored.encoding {
            true => stored.bytes.into_owned(),
            false => {
                let mut bytes = Vec::new();
                to.encode(&stored.decode(), &mut bytes).map_err(wrong)?;
                bytes
            }
        };
        Ok(Rows { encoding: to, bytes, outputs, inputs })
    }

    /// The encoding of the type of activations.
    fn plain(&self) -> Encoding {
        match self.kind {
            Type::F32 => Encoding::F32,
            Type::F16 => Encoding::F16,
            _ => Encoding::Bf16,
        }
    }

    fn converted(&self, rows: &Rows) -> Result<Rows, ModelError> {
        let (encoding, mut numbers, mut bytes) =
            (self.plain(), vec![0.0; rows.outputs * rows.inputs], Vec::new());
        rows.encoding.decode(&rows.bytes, &mut numbers);
        encoding
            .encode(&numbers, &mut bytes)
            .map_err(|why| ModelError::weights(self.checkpoint.path(), why))?;
        Ok(Rows { encoding, bytes, outputs: rows.outputs, inputs: rows.inputs })
    }

    fn put(&self, rows: &Rows) -> Result<Weight, ModelError> {
        let data = self.gpu.alloc(rows.bytes.len()).map_err(|error| no_room("weights", error))?;
        self.gpu.upload(&rows.bytes, data.of(Type::U8))?;
        let packing = packing(rows.encoding);
        Ok(Weight { data, kind: self.kind, packing, outputs: rows.outputs, inputs: rows.inputs })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Buffer, ModelError> {
        self.numbers(&self.checkpoint.stored(name, &[len])?.decode())
    }

    fn numbers(&self, numbers: &[f32]) -> Result<Buffer, ModelError> {
        let buffer = self.gpu.alloc(numbers.len() * Type::F32.bytes())?;
        self.gpu.upload(bytemuck::cast_slice(numbers), buffer.of(Type::F32))?;
        Ok(buffer)
    }
}

impl Block {
    /// The matrices that may be packed.
    fn packed(&self) -> impl Iterator<Item = &Weight> {
        self.qkv.parts.iter().chain(&self.gate_up.parts).chain([&self.o, &self.down])
    }
}

/// Says what the memory was for.
pub(super) fn no_room(what: &str, error: GpuError) -> ModelError {
    match error {
        GpuError::Memory { bytes, .. } => GpuError::Memory { what: what.to_owned(), bytes }.into(),
        error => error.into(),
    }
}
