use super::simd::{Kernel, LANES, Level, Simd};
use super::{Pool, Shared};

/// Inputs of a block: what shares a scale.
pub(super) const BLOCK: usize = 32;
/// The largest code: with it the upper byte is 127, and the lower one has its greatest value.
const MOST: f32 = 32_639.0;
/// Rows that a task writes.
const TASK_ROWS: usize = 8;
/// Numbers that a task makes bytes of.
const TASK: usize = 1 << 14;

/// 32 inputs as quantised weights read them: `scale` times whole numbers of two signed bytes, `256 * upper + lower`.
///
/// One byte is more common, and rounds so much that SmolLM2-135M in Q4_1 has 0.4 % more perplexity than in f32 arithmetic.
/// The second is nearly free where a step is bound by reading the weights.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Block {
    /// The upper bytes of four numbers each, as they lie in memory.
    pub(super) upper: [i32; 8],
    /// The lower bytes.
    pub(super) lower: [i32; 8],
    pub(super) scale: f32,
    /// `scale` times the sum of the codes.
    pub(super) total: f32,
    /// Minus the sum of all codes, and of the first 16: by what an offset of the weight's codes is taken back.
    pub(super) minus_sum: i32,
    pub(super) minus_first: i32,
}

/// The input rows of products, `[rows, inputs]`: in f32, as they are written, and, once [prepared](Self::prepare), as
/// quantised weights read them. A buffer to be used again and again.
#[derive(Default)]
pub struct Activations {
    rows: usize,
    inputs: usize,
    numbers: Vec<f32>,
    blocks: Vec<Block>,
    is_prepared: bool,
}

impl Activations {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for rows of this size; what they hold is left over from before. Allocates only what it has never had.
    pub fn resize(&mut self, rows: usize, inputs: usize) {
        (self.rows, self.inputs, self.is_prepared) = (rows, inputs, false);
        if self.numbers.len() < rows * inputs {
            self.numbers.resize(rows * inputs, 0.0);
        }
    }

    /// Makes room for rows of this size and has each written by `write(row, numbers)`, on all threads, then
    /// [prepares](Self::prepare) them if `is_quantised`.
    pub fn fill(
        &mut self,
        pool: &Pool,
        (rows, inputs): (usize, usize),
        is_quantised: bool,
        write: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        self.resize(rows, inputs);
        let numbers = Shared::new(&mut self.numbers);
        pool.run(rows.div_ceil(TASK_ROWS), &|task| {
            for row in task * TASK_ROWS..rows.min((task + 1) * TASK_ROWS) {
                // SAFETY: each row belongs to one task.
                write(row, unsafe { numbers.part(row * inputs..(row + 1) * inputs) });
            }
        });
        if is_quantised {
            self.prepare(pool);
        }
    }

    /// Rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers of a row.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// All rows, one after the other.
    pub fn numbers(&self) -> &[f32] {
        &self.numbers[..self.rows * self.inputs]
    }

    /// All rows, to be written; they are no longer prepared then.
    pub fn numbers_mut(&mut self) -> &mut [f32] {
        self.is_prepared = false;
        &mut self.numbers[..self.rows * self.inputs]
    }

    /// Makes of all rows what quantised weights read: blocks of 32 numbers of sixteen bits that share a scale. Needed before a
    /// [`product`](super::product) with a weight that [is quantised](super::Matrix::is_quantised).
    ///
    /// # Panics
    /// If a row is no multiple of 32.
    pub fn prepare(&mut self, pool: &Pool) {
        self.prepare_by(pool, Level::best());
    }

    pub(super) fn prepare_by(&mut self, pool: &Pool, level: Level) {
        assert!(self.inputs.is_multiple_of(BLOCK), "quantised weights need rows of a multiple of 32");
        let blocks = self.rows * self.inputs / BLOCK;
        if self.blocks.len() < blocks {
            self.blocks.resize(blocks, Block::default());
        }
        let of_task = TASK / BLOCK;
        let (numbers, _) = self.numbers.as_chunks::<BLOCK>();
        let shared = Shared::new(&mut self.blocks);
        pool.run(blocks.div_ceil(of_task), &|task| {
            let range = task * of_task..((task + 1) * of_task).min(blocks);
            // SAFETY: tasks have ranges of their own.
            let blocks = unsafe { shared.part(range.clone()) };
            level.run(Quantise { numbers: &numbers[range], blocks });
        });
        self.is_prepared = true;
    }

    /// The blocks of all rows.
    ///
    /// # Panics
    /// If the rows have been written since they were prepared.
    pub(super) fn blocks(&self) -> &[Block] {
        assert!(self.is_prepared, "a product with a quantised weight before `prepare`");
        &self.blocks[..self.rows * self.inputs / BLOCK]
    }
}

struct Quantise<'a> {
    numbers: &'a [[f32; BLOCK]],
    blocks: &'a mut [Block],
}

impl Kernel for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (numbers, block) in self.numbers.iter().zip(self.blocks) {
            quantise(simd, numbers, block);
        }
    }
}

#[inline(always)]
fn quantise<S: Simd>(simd: S, numbers: &[f32; BLOCK], block: &mut Block) {
    let (halves, _) = numbers.as_chunks::<LANES>();
    let (a, b) = (simd.load(&halves[0]), simd.load(&halves[1]));
    let zero = simd.splat(0.0);
    let magnitude = simd.splat_i32(i32::MAX);
    let magnitudes = simd.max(
        simd.from_bits(simd.and(simd.to_bits(a), magnitude)),
        simd.from_bits(simd.and(simd.to_bits(b), magnitude)),
    );
    let most = simd.reduce_max(magnitudes);
    // Smaller ones have no reciprocal.
    let (scale, inverse) = if most > 1e-33 { (most / MOST, MOST / most) } else { (0.0, 0.0) };
    let inverse = simd.splat(inverse);
    let first = simd.round(simd.mul(a, inverse));
    let second = simd.round(simd.mul(b, inverse));
    let upper: &mut [[i8; LANES]; 2] = bytemuck::cast_mut(&mut block.upper);
    let lower: &mut [[i8; LANES]; 2] = bytemuck::cast_mut(&mut block.lower);
    for (codes, (upper, lower)) in [first, second].into_iter().zip(upper.iter_mut().zip(lower)) {
        let (high, low) = bytes(simd, codes);
        simd.store_i8(high, upper);
        simd.store_i8(low, lower);
    }
    // Whole numbers far below 2^24: exact. Zero times infinity or NaN is NaN, which the maximum may have lost: it must
    // reach the result.
    let first = simd.reduce_add(simd.mul_add(a, zero, simd.to_f32(first)));
    let second = simd.reduce_add(simd.mul_add(b, zero, simd.to_f32(second)));
    let sum = first + second;
    block.scale = scale + 0.0 * sum;
    block.total = block.scale * sum;
    block.minus_sum = -sum as i32;
    block.minus_first = -first as i32;
}

/// The two signed bytes of each number.
#[inline(always)]
fn bytes<S: Simd>(simd: S, codes: S::I32) -> (S::I32, S::I32) {
    // Shifts know no sign: 128 times 256 lifts every code above zero.
    let lifted = simd.add_i32(codes, simd.splat_i32((128 << 8) + 128));
    let upper = simd.sub_i32(simd.shift_right::<8>(lifted), simd.splat_i32(128));
    (upper, simd.sub_i32(codes, simd.shift_left::<8>(upper)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prepared(numbers: &[f32], inputs: usize, level: Level, threads: usize) -> Activations {
        let mut x = Activations::new();
        x.resize(numbers.len() / inputs, inputs);
        x.numbers_mut().copy_from_slice(numbers);
        x.prepare_by(&Pool::new(threads).unwrap(), level);
        x
    }

    fn codes(block: &Block) -> Vec<i32> {
        let bytes =
            |fours: [i32; 8]| fours.into_iter().flat_map(i32::to_ne_bytes).map(|byte| i32::from(byte as i8));
        bytes(block.upper).zip(bytes(block.lower)).map(|(upper, lower)| 256 * upper + lower).collect()
    }

    proptest! {
        #[test]
        fn codes_are_the_nearest_ones(numbers in prop::collection::vec(-1e3f32..1e3, 32..=32), small: bool) {
            let numbers: Vec<f32> = numbers.iter().map(|x| if small { x * 1e-28 } else { *x }).collect();
            for level in Level::all() {
                let x = prepared(&numbers, 32, level, 1);
                let [block] = x.blocks() else { panic!("one block") };
                let codes = codes(block);
                let most = numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
                prop_assert_eq!(block.scale, most / MOST);
                for (code, x) in codes.iter().zip(&numbers) {
                    prop_assert!((*code as f32 * block.scale - x).abs() <= block.scale * 0.51, "{code} for {x}");
                }
                prop_assert_eq!(-block.minus_sum, codes.iter().sum::<i32>());
                prop_assert_eq!(-block.minus_first, codes[..16].iter().sum::<i32>());
                prop_assert_eq!(block.total, block.scale * codes.iter().sum::<i32>() as f32);
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_what_is_no_number_shows() {
        for level in Level::all() {
            for small in [0.0, 1e-40] {
                let x = prepared(&[small; 64], 64, level, 1);
                assert!(x.blocks().iter().all(|b| b.scale == 0.0 && b.total == 0.0 && codes(b) == [0; 32]));
            }
            for at in 0..32 {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut numbers = [1.0; 32];
                    numbers[at] = bad;
                    assert!(prepared(&numbers, 32, level, 1).blocks()[0].scale.is_nan(), "{bad} at {at}");
                }
            }
        }
    }

    #[test]
    fn threads_make_the_same() {
        let numbers: Vec<f32> = (0..64 * 640).map(|i| (i as f32).sin()).collect();
        let one = prepared(&numbers, 640, Level::best(), 1);
        let many = prepared(&numbers, 640, Level::best(), 3);
        let same = |a: &Block, b: &Block| {
            a.upper == b.upper && a.lower == b.lower && a.total == b.total && a.minus_first == b.minus_first
        };
        assert!(one.blocks().iter().zip(many.blocks()).all(|(a, b)| same(a, b)));
        assert_eq!(one.blocks().len(), 64 * 20);
    }

    #[test]
    #[should_panic(expected = "before `prepare`")]
    fn stale_blocks_are_not_given() {
        let mut x = prepared(&[1.0; 32], 32, Level::best(), 1);
        x.numbers_mut()[0] = 2.0;
        x.blocks();
    }
}
