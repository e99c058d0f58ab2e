use super::{BLOCK, Gpu, GpuError, Launch, Slice, Type, arguments, blocks, kernel, need, small};

fn launch(gpu: &dyn Gpu, kernel: &str, n: usize, arguments: &[u64]) -> Result<(), GpuError> {
    if n == 0 {
        return Ok(());
    }
    let grid = [blocks(n as u64), 1, 1];
    // SAFETY: these kernels touch the first n elements, or pairs, of each operand; the callers have checked that they are
    // there.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0, arguments }) }
}

/// `sum = x + y`, elementwise.
pub(crate) fn add(gpu: &dyn Gpu, x: Slice<'_>, y: Slice<'_>, sum: Slice<'_>) -> Result<(), GpuError> {
    let (n, kind) = (x.len(), x.kind());
    need("add", "the other", y, n, kind)?;
    need("add", "the sum", sum, n, kind)?;
    launch(gpu, kernel!("add", kind)?, n, arguments![x, y, sum, n as u64])
}

/// `y = silu(gate) * up`, elementwise.
pub(crate) fn swiglu(gpu: &dyn Gpu, gate: Slice<'_>, up: Slice<'_>, y: Slice<'_>) -> Result<(), GpuError> {
    let (n, kind) = (gate.len(), gate.kind());
    need("swiglu", "up", up, n, kind)?;
    need("swiglu", "the result", y, n, kind)?;
    launch(gpu, kernel!("swiglu", kind)?, n, arguments![gate, up, y, n as u64])
}

/// The gradients of [`swiglu`].
pub(crate) fn swiglu_backward(
    gpu: &dyn Gpu,
    gate: Slice<'_>,
    up: Slice<'_>,
    dy: Slice<'_>,
    dgate: Slice<'_>,
    dup: Slice<'_>,
) -> Result<(), GpuError> {
    let (n, kind) = (gate.len(), gate.kind());
    for operand in [up, dy, dgate, dup] {
        need("swiglu backward", "an operand", operand, n, kind)?;
    }
    launch(gpu, kernel!("swiglu_backward", kind)?, n, arguments![gate, up, dy, dgate, dup, n as u64])
}

/// Turns every head of `x` `[positions, heads * 2 * half]` by the angles `[.., half]` of its row's position; the other way
/// where `back`. The caller answers for the positions: each must have angles.
#[allow(clippy::too_many_arguments, reason = "the operands and their angles")]
pub(crate) fn rope(
    gpu: &dyn Gpu,
    x: Slice<'_>,
    y: Slice<'_>,
    positions: Slice<'_>,
    (cos, sin): (Slice<'_>, Slice<'_>),
    half: usize,
    back: bool,
) -> Result<(), GpuError> {
    const OP: &str = "rope";
    need(OP, "the result", y, x.len(), x.kind())?;
    need(OP, "positions", positions, positions.len(), Type::U32)?;
    need(OP, "cosines", cos, sin.len(), Type::F32)?;
    need(OP, "sines", sin, cos.len(), Type::F32)?;
    let width = x.len().checked_div(positions.len()).unwrap_or_default();
    if half == 0 || width * positions.len() != x.len() || !width.is_multiple_of(2 * half) {
        return Err(GpuError::operands(OP, format!("{} elements are no heads of {}", x.len(), 2 * half)));
    }
    let (pairs, sign) = (x.len() / 2, if back { -1f32 } else { 1.0 });
    let (heads, half) = (small(OP, width / (2 * half))?, small(OP, half)?);
    let arguments = arguments![x, y, positions, cos, sin, pairs as u64, heads, half, sign];
    launch(gpu, kernel!("rope", x.kind())?, pairs, arguments)
}

/// `y = x` in the type of `y`.
pub(crate) fn convert(gpu: &dyn Gpu, x: Slice<'_>, y: Slice<'_>) -> Result<(), GpuError> {
    let n = x.len();
    let kernel = match (x.kind(), y.kind()) {
        (Type::F32, Type::Bf16) => "convert_float_bf16",
        (Type::Bf16, Type::F32) => "convert_bf16_float",
        (from, to) => return Err(GpuError::operands("convert", format!("{from:?} to {to:?}"))),
    };
    need("convert", "the result", y, n, y.kind())?;
    launch(gpu, kernel, n, arguments![x, y, n as u64])
}

/// `x *= by`, elementwise.
pub(crate) fn scale(gpu: &dyn Gpu, x: Slice<'_>, by: f32) -> Result<(), GpuError> {
    launch(gpu, kernel!("scale", x.kind())?, x.len(), arguments![x, by, x.len() as u64])
}
