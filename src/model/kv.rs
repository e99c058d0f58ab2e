use candle_core::{DType, Device, Tensor};

use super::{Config, ModelError};

/// Keys and values of the sequences being served, allocated once: for each layer `[slots, context, kv_heads * head]`.
pub struct KvCache {
    pub(super) layers: Vec<(Tensor, Tensor)>,
    slots: usize,
    context: usize,
}

impl KvCache {
    /// Room for `slots` sequences of `context` tokens each.
    ///
    /// # Errors
    /// Where the device has not that much memory.
    pub fn new(config: &Config, slots: usize, context: usize, device: &Device) -> Result<Self, ModelError> {
        let shape = (slots, context, config.kv_heads() * config.head());
        let zeros = || Tensor::zeros(shape, DType::F32, device);
        let layers = (0..config.num_hidden_layers)
            .map(|_| Ok((zeros()?, zeros()?)))
            .collect::<candle_core::Result<_>>()?;
        Ok(Self { layers, slots, context })
    }

    /// Sequences that fit.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Tokens of a sequence that fit.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|(k, v)| (k.elem_count() + v.elem_count()) * size_of::<f32>()).sum()
    }
}
