use super::{Gpu, GpuError, Launch, Slice, Type, arguments, need, small};

/// Threads that fetch a row.
const THREADS: u32 = 128;

/// How the numbers of a table's rows are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowKind {
    F32,
    F16,
    Bf16,
    /// With a scale a row.
    Int8,
    /// With a scale a row.
    Int4,
}

/// A table's rows as they lie in its file, where a GPU can read them: in its own memory or, over the bus, in the host's.
#[derive(Clone, Copy)]
pub(crate) struct TableRows<'a> {
    /// From the first row's first byte to the last one's last.
    pub(crate) bytes: Slice<'a>,
    /// A scale a row; none of types without.
    pub(crate) scales: Slice<'a>,
    pub(crate) kind: RowKind,
    /// Bytes of a row.
    pub(crate) row: usize,
    /// Bytes from the start of one to the start of the next.
    pub(crate) stride: usize,
    /// How many there are.
    pub(crate) count: usize,
}

/// `y[i]` `[ranks, d]` is the row of rank `ranks[i]`. The caller answers for the ranks: each must be there.
pub(crate) fn table_rows(
    gpu: &dyn Gpu,
    table: TableRows<'_>,
    ranks: Slice<'_>,
    y: Slice<'_>,
    d: usize,
) -> Result<(), GpuError> {
    const OP: &str = "table-rows";
    let TableRows { bytes, scales, kind, row, stride, count } = table;
    let rows = ranks.len();
    // What a row of so many numbers has at least: the kernel reads no further.
    let (kernel, least, scaled) = match kind {
        RowKind::F32 => ("table_rows_f32", 4 * d, false),
        RowKind::F16 => ("table_rows_f16", 2 * d, false),
        RowKind::Bf16 => ("table_rows_bf16", 2 * d, false),
        RowKind::Int8 => ("table_rows_int8", d, true),
        RowKind::Int4 => ("table_rows_int4", d.div_ceil(2) + d.div_ceil(16).div_ceil(2), true),
    };
    if row < least || stride < row {
        return Err(GpuError::operands(
            OP,
            format!("rows of {row} bytes, {stride} apart, hold no {d} numbers"),
        ));
    }
    need(OP, "the rows", bytes, (count.max(1) - 1) * stride + row, Type::U8)?;
    need(OP, "scales", scales, if scaled { count } else { 0 }, Type::F32)?;
    need(OP, "ranks", ranks, rows, Type::U32)?;
    need(OP, "the result", y, rows * d, Type::F32)?;
    if row > gpu.shared_memory() {
        return Err(GpuError::operands(OP, format!("rows of {row} bytes are more than a block holds")));
    }
    if rows == 0 {
        return Ok(());
    }
    let arguments = arguments![bytes, scales, ranks, y, stride as u64, small(OP, row)?, small(OP, d)?];
    let (grid, shared) = ([small(OP, rows)?, 1, 1], small(OP, row.next_multiple_of(16))?);
    // SAFETY: a block a row of y; rows and scales are as many as `count`, and that ranks are below it is the caller's word.
    unsafe { gpu.launch(&Launch { kernel, grid, block: THREADS, shared, arguments }) }
}
