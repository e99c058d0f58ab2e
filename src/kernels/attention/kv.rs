use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::kernels::Shared;
use crate::kernels::memory::Pages;

/// Positions of a block: as many as a register has lanes.
pub const BLOCK: usize = 16;

/// The numbers of a cache.
pub(super) enum Numbers {
    F32(Pages<f32>),
    F16(Pages<f16>),
}

/// How keys and values are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// Exactly.
    F32,
    /// In half the memory, rounded to eleven bits; what is beyond 65,504 becomes that.
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

    /// Bytes of a block in all layers; the largest number where they are more.
    pub fn block_bytes(&self, kv: KvType) -> usize {
        let number = match kv {
            KvType::F32 => 4,
            KvType::F16 => 2,
        };
        let head = 2usize.saturating_mul(BLOCK * number).saturating_mul(self.padded());
        head.saturating_mul(self.heads).saturating_mul(self.layers)
    }
}

impl KvCache {
    /// Room for so many blocks. The memory is taken as it is used, unless [`KvCache::populate`] takes it.
    ///
    /// # Errors
    /// Where the system has not that much.
    pub fn new(shape: KvShape, kv: KvType, blocks: usize) -> Result<Self, String> {
        let bytes = blocks
            .checked_mul(shape.block_bytes(kv))
            .ok_or_else(|| format!("{blocks} blocks of keys and values are larger than memory"))?;
        let numbers = match kv {
            KvType::F32 => Numbers::F32(Pages::new(bytes / 4)?),
            KvType::F16 => Numbers::F16(Pages::new(bytes / 2)?),
        };
        Ok(Self { numbers, shape, blocks })
    }

    /// Takes all of the memory now, so that none is missing, or looked for, later.
    ///
    /// # Errors
    /// Where the system has not that much.
    pub fn populate(&self) -> Result<(), String> {
        match &self.numbers {
            Numbers::F32(pages) => pages.populate(),
            Numbers::F16(pages) => pages.populate(),
        }
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
                    let mut places = (lane..).step_by(BLOCK);
                    in_halves(keys, |halves| {
                        for (&key, at) in halves.iter().zip(&mut places) {
                            // SAFETY: as above.
                            unsafe { numbers.part(at..at + 1) }.fill(key);
                        }
                    });
                    // SAFETY: as above.
                    let mut rest = unsafe { numbers.part(row..row + head) };
                    in_halves(values, |halves| {
                        let (to, after) = std::mem::take(&mut rest).split_at_mut(halves.len());
                        to.copy_from_slice(halves);
                        rest = after;
                    });
                }
            }
        }
    }
}

/// Gives numbers as the nearest halves, a few at a time. Beyond their range they stay finite: an infinite key would take
/// all attention, and an infinite value make no number of what does not even see it.
fn in_halves(numbers: &[f32], mut take: impl FnMut(&[f16])) {
    let mut halves = [f16::ZERO; 64];
    for numbers in numbers.chunks(halves.len()) {
        let mut clamped = [0f32; 64];
        let most = f32::from(f16::MAX);
        clamped.iter_mut().zip(numbers).for_each(|(to, x)| *to = x.clamp(-most, most));
        halves.convert_from_f32_slice(&clamped);
        take(&halves[..numbers.len()]);
    }
}
