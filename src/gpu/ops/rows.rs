use super::{BLOCK, Gpu, GpuError, Launch, Slice, Type, arguments, kernel, need, small};

/// `y[i]` is row `rows[i]` of `a` `[n, d]` with `b` `[m, d]` below it; `b` may be left out. The caller answers for the rows:
/// each must be there.
pub(crate) fn take_rows(
    gpu: &dyn Gpu,
    (a, b): (Slice<'_>, Slice<'_>),
    rows: Slice<'_>,
    y: Slice<'_>,
    d: usize,
) -> Result<(), GpuError> {
    const OP: &str = "take-rows";
    let (kind, count) = (a.kind(), rows.len());
    need(OP, "rows", rows, count, Type::U32)?;
    need(OP, "the result", y, count * d, kind)?;
    need(OP, "b", b, b.len(), kind)?;
    if count == 0 {
        return Ok(());
    }
    let n = small(OP, a.len() / d.max(1))?;
    let arguments = arguments![a, b, rows, y, n, small(OP, d)?];
    let (kernel, grid) = (kernel!("take_rows", kind)?, [small(OP, count)?, 1, 1]);
    // SAFETY: a block a row of d elements, of which y has as many; the rows are the caller's word.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0, arguments }) }
}

/// Which rows are added to which, for [`add_rows`]: the other way of [`take_rows`].
#[derive(Debug, Default)]
pub(crate) struct Scatter {
    /// The rows that something is added to.
    pub(crate) targets: Vec<u32>,
    /// Where each one's part of `order` begins, and the end.
    pub(crate) starts: Vec<u32>,
    /// The rows that are added, by target and then as they came.
    pub(crate) order: Vec<u32>,
}

impl Scatter {
    /// Of rows that were taken.
    pub(crate) fn of(rows: &[u32]) -> Self {
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        // Stable: sums are in the order of the rows.
        order.sort_by_key(|&i| rows[i as usize]);
        let mut scatter = Self::default();
        for (at, &i) in order.iter().enumerate() {
            let target = rows[i as usize];
            if scatter.targets.last() != Some(&target) {
                scatter.targets.push(target);
                scatter.starts.push(at as u32);
            }
        }
        scatter.starts.push(order.len() as u32);
        Self { order, ..scatter }
    }
}

/// The gradients of [`take_rows`], into zeros: `da` `[n, d]` and `db`, either of which may be left out. `scatter` is three
/// slices: targets, starts and order of a [`Scatter`] whose rows are those of `dy` and whose targets are below `n + m`.
pub(crate) fn add_rows(
    gpu: &dyn Gpu,
    dy: Slice<'_>,
    [targets, starts, order]: [Slice<'_>; 3],
    (da, db): (Slice<'_>, Slice<'_>),
    n: usize,
    d: usize,
) -> Result<(), GpuError> {
    const OP: &str = "take-rows backward";
    let kind = dy.kind();
    need(OP, "targets", targets, targets.len(), Type::U32)?;
    need(OP, "starts", starts, targets.len() + 1, Type::U32)?;
    need(OP, "the order", order, dy.len() / d.max(1), Type::U32)?;
    for gradient in [da, db] {
        need(OP, "a gradient", gradient, gradient.len(), kind)?;
    }
    if targets.len() == 0 {
        return Ok(());
    }
    let arguments = arguments![dy, targets, starts, order, da, db, small(OP, n)?, small(OP, d)?];
    let (kernel, grid) = (kernel!("add_rows", kind)?, [small(OP, targets.len())?, 1, 1]);
    // SAFETY: a block a target, each of which has a start and an end in the order; the rows are the caller's word.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0, arguments }) }
}
