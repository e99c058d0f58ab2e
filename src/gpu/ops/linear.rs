use super::{Gpu, GpuError, Slice, need};
use crate::gpu::{Gemm, Operand};

/// `y[tokens, outputs] = x[tokens, inputs] * w[outputs, inputs]^T`; `x` and `w` of one type.
pub(crate) fn linear(
    gpu: &dyn Gpu,
    x: Slice<'_>,
    w: Slice<'_>,
    y: Slice<'_>,
    [tokens, inputs, outputs]: [usize; 3],
) -> Result<(), GpuError> {
    product(gpu, (x, inputs, false), (w, inputs, true), (y, outputs), [tokens, outputs, inputs], false)
}

/// `dx[tokens, inputs] = dy[tokens, outputs] * w[outputs, inputs]`.
pub(crate) fn linear_backward_input(
    gpu: &dyn Gpu,
    dy: Slice<'_>,
    w: Slice<'_>,
    dx: Slice<'_>,
    [tokens, inputs, outputs]: [usize; 3],
) -> Result<(), GpuError> {
    product(gpu, (dy, outputs, false), (w, inputs, false), (dx, inputs), [tokens, inputs, outputs], false)
}

/// `dw[outputs, inputs] = dy[tokens, outputs]^T * x[tokens, inputs]`, added to what is there where `adds`.
pub(crate) fn linear_backward_weight(
    gpu: &dyn Gpu,
    dy: Slice<'_>,
    x: Slice<'_>,
    dw: Slice<'_>,
    [tokens, inputs, outputs]: [usize; 3],
    adds: bool,
) -> Result<(), GpuError> {
    product(gpu, (dy, outputs, true), (x, inputs, false), (dw, inputs), [outputs, inputs, tokens], adds)
}

fn product(
    gpu: &dyn Gpu,
    a: (Slice<'_>, usize, bool),
    b: (Slice<'_>, usize, bool),
    c: (Slice<'_>, usize),
    sizes: [usize; 3],
    adds: bool,
) -> Result<(), GpuError> {
    const OP: &str = "linear";
    let [m, n, k] = sizes;
    need(OP, "the left operand", a.0, m * k, a.0.kind())?;
    need(OP, "the right operand", b.0, k * n, a.0.kind())?;
    need(OP, "the product", c.0, m * n, c.0.kind())?;
    if m * n == 0 {
        return Ok(());
    }
    let [a, b, c] =
        [a, b, (c.0, c.1, false)].map(|(data, row, transposed)| Operand { data, row, transposed });
    // SAFETY: the operands have the sizes, packed.
    unsafe { gpu.gemm(&Gemm { sizes, a, b, c, adds }) }
}
