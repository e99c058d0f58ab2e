use super::{Gpu, GpuError, Launch, Slice, Type, arguments, need, small};

/// Threads of a row at most: all that a block can have, for there may be a single row.
const THREADS: u32 = 1024;

/// How a row's token is chosen, as the kernel reads it. All zeros: the largest.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Draw {
    /// One over the temperature; 0 takes the largest.
    pub(crate) scale: f32,
    /// The least share of the largest weight that is left.
    pub(crate) min_p: f32,
    /// The least share of the weight that is left.
    pub(crate) top_p: f32,
    /// Where in the weight that is left the token is, 0 to 1.
    pub(crate) uniform: f32,
    /// How many are left; 0: all.
    pub(crate) top_k: u32,
}

impl Draw {
    /// Numbers of one.
    pub(crate) const NUMBERS: usize = 5;

    /// As numbers.
    pub(crate) fn numbers(self) -> [u32; Self::NUMBERS] {
        let Self { scale, min_p, top_p, uniform, top_k } = self;
        [scale.to_bits(), min_p.to_bits(), top_p.to_bits(), uniform.to_bits(), top_k]
    }
}

/// The token of each row of n logits, as its draw has it; `u32::MAX` where one is not a number or the largest is not finite.
pub(crate) fn choose(
    gpu: &dyn Gpu,
    x: Slice<'_>,
    draws: Slice<'_>,
    places: Slice<'_>,
    n: usize,
) -> Result<(), GpuError> {
    const OP: &str = "choose";
    need(OP, "rows", x, places.len() * n, Type::F32)?;
    need(OP, "draws", draws, places.len() * Draw::NUMBERS, Type::U32)?;
    need(OP, "places", places, places.len(), Type::U32)?;
    if places.len() == 0 || n == 0 {
        return Ok(());
    }
    let arguments = arguments![x, draws, places, small(OP, n)?];
    let block = THREADS.min(small(OP, n.next_multiple_of(32))?);
    let grid = [small(OP, places.len())?, 1, 1];
    // SAFETY: a block a row, and a draw for each.
    unsafe { gpu.launch(&Launch { kernel: "choose", grid, block, shared: 0, arguments }) }
}
