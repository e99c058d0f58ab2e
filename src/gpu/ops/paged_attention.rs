use super::attention::forward_shared;
use super::{BLOCK, Gpu, GpuError, Launch, Slice, Type, arguments, need, small, step_kernel};

/// Positions of a chunk of [`paged_queries`].
pub(crate) const CHUNK: usize = 256;
/// Threads of a block there.
const THREADS: usize = 128;

/// Attention over a cache in pages of 16 positions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paged<'a> {
    /// Queries, keys and values of the step's rows, side by side: queries are read.
    pub(crate) qkv: Slice<'a>,
    /// Keys of the layer `[pages, kv_heads, 16, head]`.
    pub(crate) keys: Slice<'a>,
    /// Values of the layer.
    pub(crate) values: Slice<'a>,
    /// The sequences' pages.
    pub(crate) pages: Slice<'a>,
    /// Query heads, key heads, features of a head.
    pub(crate) heads: [usize; 3],
    /// The most queries of a tile: [`forward_rows`](super::forward_rows).
    pub(crate) tile: usize,
}

const OP: &str = "paged attention";

impl Paged<'_> {
    fn check(self, out: Slice<'_>) -> Result<(), GpuError> {
        let ([q_heads, kv_heads, head], kind) = (self.heads, self.qkv.kind());
        if kv_heads == 0 || head == 0 || head > 256 || !q_heads.is_multiple_of(kv_heads) {
            return Err(GpuError::operands(OP, format!("{q_heads} heads of {head} over {kv_heads} of keys")));
        }
        let rows = self.qkv.len() / self.stride();
        need(OP, "queries, keys and values", self.qkv, rows * self.stride(), kind)?;
        need(OP, "the result", out, rows * q_heads * head, kind)?;
        need(OP, "keys", self.keys, self.values.len(), kind)?;
        need(OP, "values", self.values, self.keys.len(), kind)?;
        need(OP, "pages", self.pages, self.pages.len(), Type::U32)
    }

    fn stride(self) -> usize {
        (self.heads[0] + 2 * self.heads[1]) * self.heads[2]
    }

    fn scale(self) -> f32 {
        1.0 / (self.heads[2] as f32).sqrt()
    }
}

/// Single queries: `rows` has, by query, its row in the batch, where its pages begin, and how many positions it sees, at most
/// `chunks` times 256; the caller answers for them. `parts` is room for `[queries, heads, chunks, 2 + head]`.
pub(crate) fn paged_queries(
    gpu: &dyn Gpu,
    paged: Paged<'_>,
    rows: Slice<'_>,
    chunks: usize,
    parts: Slice<'_>,
    out: Slice<'_>,
) -> Result<(), GpuError> {
    paged.check(out)?;
    let ([q_heads, kv_heads, head], kind, queries) = (paged.heads, paged.qkv.kind(), rows.len() / 3);
    need(OP, "queries", rows, 3 * queries, Type::U32)?;
    if queries == 0 {
        return Ok(());
    }
    let parts = parts.part(0, queries * q_heads * chunks * (2 + head))?;
    let Paged { qkv, keys, values, pages, .. } = paged;
    let (q, kv, width, count) =
        (small(OP, q_heads)?, small(OP, kv_heads)?, small(OP, head)?, small(OP, chunks)?);
    let stride = small(OP, paged.stride())?;
    let arguments = arguments![qkv, keys, values, rows, pages, parts, stride, q, kv, width, paged.scale()];
    let teams = THREADS / (head.div_ceil(8)).next_power_of_two();
    let launch = Launch {
        kernel: step_kernel!("paged_queries", kind)?,
        grid: [small(OP, queries)?, kv, count],
        block: THREADS as u32,
        shared: small(OP, teams * (2 + head) * 4)?,
        arguments,
    };
    // SAFETY: a block a query, key head and chunk, with a part for each of its query heads; rows and pages are the caller's
    // word.
    unsafe { gpu.launch(&launch)? };
    let arguments = arguments![parts, rows, out, count, q, width];
    let (kernel, grid) = (step_kernel!("paged_merge", kind)?, [small(OP, queries)?, q, 1]);
    // SAFETY: a block a query and head.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK.min(128), shared: 0, arguments }) }
}

/// Many queries of a sequence: `tiles` has, by tile, the first row, how many (at most the tile's), the position of the
/// first, and where the sequence's pages begin; the caller answers for them.
pub(crate) fn paged_tiles(
    gpu: &dyn Gpu,
    paged: Paged<'_>,
    tiles: Slice<'_>,
    out: Slice<'_>,
) -> Result<(), GpuError> {
    paged.check(out)?;
    let ([q_heads, kv_heads, head], kind, count) = (paged.heads, paged.qkv.kind(), tiles.len() / 4);
    need(OP, "tiles", tiles, 4 * count, Type::U32)?;
    if count == 0 {
        return Ok(());
    }
    let Paged { qkv, keys, values, pages, .. } = paged;
    let (q, kv, width) = (small(OP, q_heads)?, small(OP, kv_heads)?, small(OP, head)?);
    let stride = small(OP, paged.stride())?;
    let arguments = arguments![qkv, keys, values, tiles, pages, out, stride, q, kv, width, paged.scale()];
    let launch = Launch {
        kernel: step_kernel!("paged_tiles", kind)?,
        grid: [small(OP, count)?, q, 1],
        block: 4 * paged.tile as u32,
        shared: forward_shared(kind, paged.tile, head)?,
        arguments,
    };
    // SAFETY: a block a tile and head; tiles and pages are the caller's word.
    unsafe { gpu.launch(&launch) }
}
