use super::{BLOCK, Gpu, GpuError, Launch, Slice, Type, arguments, kernel, need, small};

/// Blocks that share the rows of a backward pass: each keeps a part of the weight's gradient.
const PARTS: usize = 256;

/// `y = x / sqrt(mean(x^2) + eps) * weight` by row, of as many rows as `x` has.
pub(crate) fn rms_norm(
    gpu: &dyn Gpu,
    x: Slice<'_>,
    weight: Slice<'_>,
    y: Slice<'_>,
    eps: f32,
) -> Result<(), GpuError> {
    const OP: &str = "rms-norm";
    let (d, kind) = (weight.len(), x.kind());
    need(OP, "the weight", weight, d, Type::F32)?;
    need(OP, "the result", y, x.len(), kind)?;
    let rows = whole_rows(OP, x, d)?;
    if rows == 0 {
        return Ok(());
    }
    let arguments = arguments![x, weight, y, small(OP, d)?, eps];
    let kernel = kernel!("rms_norm", kind)?;
    // SAFETY: a block a row of d elements, of which x and y have as many; the weight has d.
    unsafe {
        gpu.launch(&Launch { kernel, grid: [small(OP, rows)?, 1, 1], block: BLOCK, shared: 0, arguments })
    }
}

/// The gradients of [`rms_norm`]: of `x` as its own type, of the weight in f32.
#[allow(clippy::too_many_arguments, reason = "the operands of a backward pass")]
pub(crate) fn rms_norm_backward(
    gpu: &dyn Gpu,
    x: Slice<'_>,
    weight: Slice<'_>,
    dy: Slice<'_>,
    dx: Slice<'_>,
    dweight: Slice<'_>,
    eps: f32,
) -> Result<(), GpuError> {
    const OP: &str = "rms-norm backward";
    let (d, kind) = (weight.len(), x.kind());
    need(OP, "the weight", weight, d, Type::F32)?;
    need(OP, "the weight's gradient", dweight, d, Type::F32)?;
    need(OP, "the result's gradient", dy, x.len(), kind)?;
    need(OP, "the gradient", dx, x.len(), kind)?;
    let rows = whole_rows(OP, x, d)?;
    let count = PARTS.min(rows);
    let parts = gpu.alloc(count.max(1) * d * Type::F32.bytes())?;
    let parts = parts.of(Type::F32);
    let (wide, parts_number) = (small(OP, d)?, small(OP, count)?);
    if rows > 0 {
        let arguments = arguments![x, weight, dy, dx, parts, small(OP, rows)?, wide, eps];
        let kernel = kernel!("rms_norm_backward", kind)?;
        let grid = [parts_number, 1, 1];
        // SAFETY: rows of d elements, of which x, dy and dx have as many; a part of d numbers for each block, and as many
        // in shared memory.
        unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 4 * wide, arguments })? };
    }
    let arguments = arguments![parts, dweight, parts_number, wide];
    let grid = [wide.div_ceil(BLOCK).max(1), 1, 1];
    // SAFETY: as many parts of d numbers as there are, and d sums.
    unsafe { gpu.launch(&Launch { kernel: "sum_columns", grid, block: BLOCK, shared: 0, arguments }) }
}

fn whole_rows(op: &'static str, x: Slice<'_>, d: usize) -> Result<usize, GpuError> {
    if d == 0 || !x.len().is_multiple_of(d) {
        return Err(GpuError::operands(op, format!("{} elements are no rows of {d}", x.len())));
    }
    Ok(x.len() / d)
}
