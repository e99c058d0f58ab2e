use super::{BLOCK, Gpu, GpuError, Launch, Slice, Type, arguments, blocks, need};

/// The most blocks that share a sum of squares.
const SUMS: u32 = 256;

/// The numbers of an update by AdamW.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamW {
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    /// The learning rate with both bias corrections.
    pub(crate) rate: f32,
    /// The epsilon with the second moment's.
    pub(crate) epsilon: f32,
    /// What is left of a weight by decay.
    pub(crate) keep: f32,
    /// What gradients are multiplied by.
    pub(crate) scale: f32,
}

/// Updates a parameter and its moments.
pub(crate) fn adamw(
    gpu: &dyn Gpu,
    p: Slice<'_>,
    g: Slice<'_>,
    (m, v): (Slice<'_>, Slice<'_>),
    update: AdamW,
) -> Result<(), GpuError> {
    let n = p.len();
    for operand in [p, g, m, v] {
        need("adamw", "an operand", operand, n, Type::F32)?;
    }
    let AdamW { beta1, beta2, rate, epsilon, keep, scale } = update;
    let arguments = arguments![p, g, m, v, n as u64, beta1, beta2, rate, epsilon, keep, scale];
    let grid = [blocks(n as u64), 1, 1];
    // SAFETY: all four have n numbers.
    unsafe { gpu.launch(&Launch { kernel: "adamw", grid, block: BLOCK, shared: 0, arguments }) }
}

/// The sum of the squares of each operand; the GPU is waited for once.
pub(crate) fn square_sums(gpu: &dyn Gpu, operands: &[Slice<'_>]) -> Result<Vec<f64>, GpuError> {
    let share = |x: &Slice<'_>| blocks(x.len() as u64).min(SUMS);
    let count = operands.iter().map(|x| share(x) as usize).sum();
    let memory = gpu.alloc(count * Type::F32.bytes())?;
    let sums = memory.of(Type::F32);
    let mut from = 0;
    for x in operands {
        need("a sum of squares", "the operand", *x, x.len(), Type::F32)?;
        let own = share(x);
        let arguments = arguments![*x, sums.part(from, own as usize)?, x.len() as u64];
        let grid = [own, 1, 1];
        // SAFETY: a sum for each block.
        unsafe { gpu.launch(&Launch { kernel: "squares", grid, block: BLOCK, shared: 0, arguments })? };
        from += own as usize;
    }
    let mut parts = vec![0f32; count];
    gpu.download(sums, bytemuck::cast_slice_mut(&mut parts))?;
    let mut rest = parts.as_slice();
    let sum = |x| {
        let (own, others) = rest.split_at(share(x) as usize);
        rest = others;
        own.iter().map(|&x| f64::from(x)).sum()
    };
    Ok(operands.iter().map(sum).collect())
}

/// `sum = scale * (the sum of x)`, one number.
pub(crate) fn sum(gpu: &dyn Gpu, x: Slice<'_>, sum: Slice<'_>, scale: f32) -> Result<(), GpuError> {
    need("a sum", "the operand", x, x.len(), Type::F32)?;
    need("a sum", "the result", sum, 1, Type::F32)?;
    let arguments = arguments![x, sum, x.len() as u64, scale];
    // SAFETY: one block, one sum.
    unsafe { gpu.launch(&Launch { kernel: "sum", grid: [1, 1, 1], block: BLOCK, shared: 0, arguments }) }
}
