use half::f16;
use half::slice::HalfFloatSliceExt;

use super::super::Shared;

/// Positions of a block: as many as a register has lanes.
pub const BLOCK: usize = 16;

/// The numbers of a cache.
pub(super) enum Numbers {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

/// How keys and values are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// Exactly.
    F32,
    /// In half the memory, rounded to eleven bits.
    F16,
}

/// What a cache holds of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers of the model.
    pub layers: usize,
    /// Key and value heads of a layer.
    pub heads: usize,
    /// Features of a head.
    pub head: usize,
}

/// Keys and values in blocks of [`BLOCK`] positions, which any sequence can hold in any order.
///
/// A head's part of a block is its keys, feature by feature with the positions side by side, as scores are computed,
/// and then its values, position by position with the features side by side (filled up to whole registers).
pub struct KvCache {
    pub(super) numbers: Numbers,
    pub(super) shape: KvShape,
    blocks: usize,
}

/// One sequence's part of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// Its blocks: the `i`-th holds positions `16 i` to `16 i + 15`.
    pub blocks: &'a [u32],
    /// Positions that are in the cache.
    pub past: usize,
    /// Positions after them, which the batch computes.
    pub new: usize,
}

impl KvShape {
    /// Features of a head with what fills up its last register.
    pub(super) fn padded(&self) -> usize {
        self.head.next_multiple_of(BLOCK)
    }

    /// Numbers of a head's keys, and of its values, in a block.
    pub(super) fn part(&self) -> usize {
        BLOCK * self.padded()
    }

    /// Bytes of a block in all layers.
    pub fn block_bytes(&self, kv: KvType) -> usize {
        let bytes = match kv {
            KvType::F32 => 4,
            KvType::F16 => 2,
        };
        self.layers * self.heads * 2 * self.part() * bytes
    }
}

impl KvCache {
    /// Room for so many blocks. The memory is taken as it is used.
    pub fn new(shape: KvShape, kv: KvType, blocks: usize) -> Self {
        let len = shape.layers * blocks * shape.heads * 2 * shape.part();
        let numbers = match kv {
            KvType::F32 => Numbers::F32(vec![0.0; len]),
            // Zeroed by the system, page by page.
            KvType::F16 => Numbers::F16(bytemuck::allocation::zeroed_vec(len)),
        };
        Self { numbers, shape, blocks }
    }

    /// Blocks that there are.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// What it holds of a position.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// How it holds it.
    pub fn kv_type(&self) -> KvType {
        match self.numbers {
            Numbers::F32(_) => KvType::F32,
            Numbers::F16(_) => KvType::F16,
        }
    }

    /// Its size in bytes, when all of it has been used.
    pub fn bytes(&self) -> usize {
        self.blocks * self.shape.block_bytes(self.kv_type())
    }

    /// Where the keys of a head begin; its values follow.
    #[inline(always)]
    pub(super) fn at(&self, layer: usize, block: u32, head: usize) -> usize {
        ((layer * self.blocks + block as usize) * self.shape.heads + head) * 2 * self.shape.part()
    }

    /// A view that several tasks can write to, each its own positions.
    pub fn writer(&mut self, layer: usize) -> KvWriter<'_> {
        let (shape, blocks) = (self.shape, self.blocks);
        let len = blocks * shape.heads * 2 * shape.part();
        let layer = layer * len..(layer + 1) * len;
        let numbers = match &mut self.numbers {
            Numbers::F32(numbers) => Target::F32(Shared::new(&mut numbers[layer])),
            Numbers::F16(numbers) => Target::F16(Shared::new(&mut numbers[layer])),
        };
        KvWriter { numbers, shape }
    }
}

enum Target<'a> {
    F32(Shared<'a, f32>),
    F16(Shared<'a, f16>),
}

/// One layer of a cache, to be written to.
pub struct KvWriter<'a> {
    numbers: Target<'a>,
    shape: KvShape,
}

impl KvWriter<'_> {
    /// Stores the keys and the values of a position, `[heads * head]` each.
    ///
    /// # Safety
    /// Nobody else may write to the same position of the same block meanwhile, or read this layer.
    ///
    /// # Panics
    /// Where there is no such block.
    pub unsafe fn write(&self, block: u32, position: usize, keys: &[f32], values: &[f32]) {
        let (part, head, padded) = (self.shape.part(), self.shape.head, self.shape.padded());
        let heads = keys.chunks_exact(head).zip(values.chunks_exact(head));
        for (i, (keys, values)) in heads.enumerate() {
            let at = (block as usize * self.shape.heads + i) * 2 * part;
            let (lane, row) = (at + position % BLOCK, at + part + position % BLOCK * padded);
            match &self.numbers {
                Target::F32(numbers) => {
                    for (&key, at) in keys.iter().zip((lane..).step_by(BLOCK)) {
                        // SAFETY: each position has its own lane, and this one is the caller's.
                        unsafe { numbers.part(at..at + 1) }.fill(key);
                    }
                    // SAFETY: each position has its own row, and this one is the caller's.
                    unsafe { numbers.part(row..row + head) }.copy_from_slice(values);
                }
                Target::F16(numbers) => {
                    let mut rounded = [f16::ZERO; 64];
                    let mut places = (lane..).step_by(BLOCK);
                    for keys in keys.chunks(rounded.len()) {
                        let rounded = &mut rounded[..keys.len()];
                        rounded.convert_from_f32_slice(keys);
                        for (&key, at) in rounded.iter().zip(&mut places) {
                            // SAFETY: as above.
                            unsafe { numbers.part(at..at + 1) }.fill(key);
                        }
                    }
                    // SAFETY: as above.
                    unsafe { numbers.part(row..row + head) }.convert_from_f32_slice(values);
                }
            }
        }
    }
}
