use super::{BLOCK, Gpu, GpuError, Launch, Slice, Type, arguments, blocks, need, small, step_kernel};

/// From this source on the rows of [`embed`] are those that were brought ahead; the kernel has the same number.
pub(crate) const AHEAD: u32 = 1 << 31;

/// The residual stream `[rows, d]`: rows of `tokens` `[vocabulary, d]`; from source `vocabulary` on of `fgrams`, counted from the
/// last one backwards; from [`AHEAD`] on of `ahead`. The caller answers for the sources.
pub(crate) fn embed(
    gpu: &dyn Gpu,
    tokens: Slice<'_>,
    fgrams: Slice<'_>,
    ahead: Slice<'_>,
    sources: Slice<'_>,
    residual: Slice<'_>,
    d: usize,
) -> Result<(), GpuError> {
    const OP: &str = "embed";
    let rows = sources.len();
    need(OP, "sources", sources, rows, Type::U32)?;
    need(OP, "the residual stream", residual, rows * d, Type::F32)?;
    need(OP, "rows of f-grams", fgrams, fgrams.len(), Type::F32)?;
    need(OP, "rows brought ahead", ahead, ahead.len(), Type::F32)?;
    let vocabulary = small(OP, tokens.len() / d.max(1))?;
    let end = fgrams.at() + fgrams.bytes() as u64;
    let arguments = arguments![tokens, end, ahead, sources, residual, vocabulary, small(OP, d)?];
    let (kernel, grid) = (step_kernel!("embed", tokens.kind())?, [small(OP, rows)?, 1, 1]);
    if rows == 0 {
        return Ok(());
    }
    // SAFETY: a block a row of d numbers; the sources are the caller's word.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0, arguments }) }
}

/// Adds `change`, and `bias` to each row, to the residual stream, and normalises it into `x`. Either of them may be left out.
#[allow(clippy::too_many_arguments, reason = "the operands of two ops in one")]
pub(crate) fn add_norm(
    gpu: &dyn Gpu,
    residual: Slice<'_>,
    change: Slice<'_>,
    bias: Slice<'_>,
    weight: Slice<'_>,
    x: Slice<'_>,
    eps: f32,
) -> Result<(), GpuError> {
    const OP: &str = "add-norm";
    let (d, len) = (weight.len(), x.len());
    need(OP, "the weight", weight, d, Type::F32)?;
    need(OP, "the residual stream", residual, len, Type::F32)?;
    if !change.is_none() {
        need(OP, "the change", change, len, Type::F32)?;
    }
    if !bias.is_none() {
        need(OP, "the bias", bias, d, Type::F32)?;
    }
    if d == 0 || !len.is_multiple_of(d) {
        return Err(GpuError::operands(OP, format!("{len} numbers are no rows of {d}")));
    }
    if len == 0 {
        return Ok(());
    }
    let arguments = arguments![residual, change, bias, weight, x, small(OP, d)?, eps];
    let (kernel, grid) = (step_kernel!("add_norm", x.kind())?, [small(OP, len / d)?, 1, 1]);
    // SAFETY: a block a row of d numbers, of which all have as many.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0, arguments }) }
}

/// What [`turn`] does besides turning, where there is any of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn<'a> {
    /// Of queries, keys and values, side by side.
    pub(crate) bias: Slice<'a>,
    /// Of a head of queries.
    pub(crate) q_norm: Slice<'a>,
    /// Of a head of keys.
    pub(crate) k_norm: Slice<'a>,
    /// By pair of features: radians a position.
    pub(crate) frequencies: Slice<'a>,
    pub(crate) eps: f32,
    /// Query heads, key heads, features of a head.
    pub(crate) heads: [usize; 3],
}

/// Finishes queries, keys and values `[rows, (q + 2 kv) * head]`: queries in place, keys and values into the `cache` of their
/// layer, at the rows' slots (a page's number times 16 and the place in it; `u32::MAX` for a row that only fills the batch),
/// for which the caller answers.
pub(crate) fn turn(
    gpu: &dyn Gpu,
    qkv: Slice<'_>,
    how: Turn<'_>,
    positions: Slice<'_>,
    slots: Slice<'_>,
    [keys, values]: [Slice<'_>; 2],
) -> Result<(), GpuError> {
    const OP: &str = "turn";
    let ([q_heads, kv_heads, head], rows) = (how.heads, positions.len());
    let all = q_heads + 2 * kv_heads;
    need(OP, "queries, keys and values", qkv, rows * all * head, qkv.kind())?;
    need(OP, "positions", positions, rows, Type::U32)?;
    need(OP, "slots", slots, rows, Type::U32)?;
    need(OP, "values", values, keys.len(), qkv.kind())?;
    need(OP, "keys", keys, values.len(), qkv.kind())?;
    need(OP, "frequencies", how.frequencies, head / 2, Type::F32)?;
    for (what, operand, len) in
        [("the bias", how.bias, all * head), ("a norm", how.q_norm, head), ("a norm", how.k_norm, head)]
    {
        if !operand.is_none() {
            need(OP, what, operand, len, Type::F32)?;
        }
    }
    let Turn { bias, q_norm, k_norm, frequencies, eps, .. } = how;
    let count = small(OP, rows)?;
    let (q_heads, kv_heads, head) = (small(OP, q_heads)?, small(OP, kv_heads)?, small(OP, head)?);
    let arguments = arguments![
        qkv,
        bias,
        q_norm,
        k_norm,
        frequencies,
        positions,
        slots,
        keys,
        values,
        count,
        q_heads,
        kv_heads,
        head,
        eps
    ];
    let warps = small(OP, rows * all * 32)?;
    let (kernel, grid) = (step_kernel!("turn", qkv.kind())?, [warps.div_ceil(BLOCK), 1, 1]);
    if rows == 0 {
        return Ok(());
    }
    // SAFETY: a warp a row and head; the slots are the caller's word.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0, arguments }) }
}

/// `x[rows, width] = silu(gate) * up` of rows in which both lie side by side.
pub(crate) fn gated(gpu: &dyn Gpu, wide: Slice<'_>, x: Slice<'_>, width: usize) -> Result<(), GpuError> {
    const OP: &str = "gated";
    let n = x.len();
    need(OP, "gate and up", wide, 2 * n, x.kind())?;
    if n == 0 || !n.is_multiple_of(width) {
        return if n == 0 {
            Ok(())
        } else {
            Err(GpuError::operands(OP, format!("{n} numbers are no rows of {width}")))
        };
    }
    let arguments = arguments![wide, x, small(OP, width)?, n as u64];
    let (kernel, grid) = (step_kernel!("gated", x.kind())?, [blocks(n as u64), 1, 1]);
    // SAFETY: n numbers, of rows twice as wide.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0, arguments }) }
}
