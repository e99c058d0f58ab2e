use super::{Argument, BLOCK, Gpu, GpuError, Launch, Slice, Type, arguments, kernel, need, small};

/// The tiles of sequences of these lengths, `rows` queries, or keys, a tile: the first row of its sequence, the sequence's
/// length, the tile's number in it. The long ones' last tiles, which see the most, come first.
pub(crate) fn tiles(lengths: &[usize], rows: usize) -> Vec<u32> {
    let mut tiles = Vec::new();
    let mut first = 0u32;
    for &length in lengths {
        tiles.extend((0..length.div_ceil(rows) as u32).rev().map(|number| [first, length as u32, number]));
        first += length as u32;
    }
    tiles.sort_by_key(|tile| std::cmp::Reverse(tile[2]));
    tiles.concat()
}

/// Sizes of attention over a ragged batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    /// Features of a head.
    pub(crate) head: usize,
    /// Rows of a tile.
    pub(crate) rows: usize,
}

/// What lies in shared memory during a kernel: operands, weights, scores and sums of a tile.
#[derive(Clone, Copy)]
struct Shared([usize; 4]);

/// Of the forward pass, and of the kernel that needs the most.
const FORWARD: Shared = Shared([3, 1, 1, 1]);
const KEYS: Shared = Shared([4, 2, 2, 2]);
const QUERIES: Shared = Shared([4, 2, 2, 1]);

impl Shared {
    /// Bytes for tiles of so many rows, of heads of so many features. Each piece is rounded up to 128.
    fn bytes(self, kind: Type, rows: usize, head: usize) -> usize {
        let Self([operands, weights, scores, sums]) = self;
        let padded = head.next_multiple_of(16);
        let piece = |row: usize, bytes: usize| (rows * row * bytes).next_multiple_of(128);
        let narrow = operands * piece(padded + 8, kind.bytes()) + weights * piece(rows + 8, kind.bytes());
        narrow + scores * piece(rows + 4, 4) + sums * piece(padded + 4, 4)
    }
}

/// Rows of a tile of a forward pass: as many as a block's shared memory has room for.
pub(crate) fn forward_rows(gpu: &dyn Gpu, kind: Type, head: usize) -> Result<usize, GpuError> {
    rows_for(gpu, FORWARD, kind, head)
}

fn rows_for(gpu: &dyn Gpu, shared: Shared, kind: Type, head: usize) -> Result<usize, GpuError> {
    // Wide heads have enough to do for a block in fewer rows.
    let all = if head > 64 { [32, 16].as_slice() } else { [64, 32, 16].as_slice() };
    let fits = all.iter().copied().find(|&rows| shared.bytes(kind, rows, head) <= gpu.shared_memory());
    fits.ok_or_else(|| {
        GpuError::operands(OP, format!("heads of {head} are too wide for this GPU's shared memory"))
    })
}

const OP: &str = "attention";

impl Attention {
    /// With tiles of as many rows as the backward pass has room for.
    pub(crate) fn new(
        gpu: &dyn Gpu,
        kind: Type,
        tokens: usize,
        [heads, kv_heads, head]: [usize; 3],
    ) -> Result<Self, GpuError> {
        Ok(Self { tokens, heads, kv_heads, head, rows: rows_for(gpu, KEYS, kind, head)? })
    }

    fn check(self, q: Slice<'_>, kv: &[Slice<'_>], tiles: Slice<'_>) -> Result<(), GpuError> {
        need(OP, "queries", q, self.tokens * self.heads * self.head, q.kind())?;
        for operand in kv {
            need(OP, "keys or values", *operand, self.tokens * self.kv_heads * self.head, q.kind())?;
        }
        need(OP, "tiles", tiles, tiles.len() / 3 * 3, Type::U32)?;
        if self.kv_heads == 0 || self.head == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let Self { heads, kv_heads, head, .. } = self;
            return Err(GpuError::operands(OP, format!("{heads} heads of {head} over {kv_heads} of keys")));
        }
        Ok(())
    }

    fn shared(self, kind: Type, shared: Shared) -> Result<u32, GpuError> {
        small(OP, shared.bytes(kind, self.rows, self.head))
    }

    fn sizes(self) -> Result<[u64; 5], GpuError> {
        let [heads, kv_heads, head, tokens] =
            [self.heads, self.kv_heads, self.head, self.tokens].map(|size| small(OP, size));
        let scale = 1.0 / (self.head as f32).sqrt();
        Ok([heads?.number(), kv_heads?.number(), head?.number(), tokens?.number(), scale.number()])
    }

    /// # Safety
    /// The kernel must take these operands and then the sizes.
    unsafe fn launch(
        self,
        gpu: &dyn Gpu,
        kernel: &str,
        grid: [u32; 3],
        shared: u32,
        operands: &[u64],
    ) -> Result<(), GpuError> {
        let mut arguments = [0; 16];
        let count = operands.len() + 5;
        arguments[..operands.len()].copy_from_slice(operands);
        arguments[operands.len()..count].copy_from_slice(&self.sizes()?);
        let block = 4 * self.rows as u32;
        // SAFETY: the caller's word.
        unsafe { gpu.launch(&Launch { kernel, grid, block, shared, arguments: &arguments[..count] }) }
    }
}

/// Bytes of shared memory of a forward pass.
pub(super) fn forward_shared(kind: Type, rows: usize, head: usize) -> Result<u32, GpuError> {
    small(OP, FORWARD.bytes(kind, rows, head))
}

/// Causal attention inside the sequences whose [`tiles`] these are. `lse` `[heads, tokens]`, which the backward pass needs,
/// may be left out.
pub(crate) fn attention(
    gpu: &dyn Gpu,
    sizes: Attention,
    q: Slice<'_>,
    [k, v]: [Slice<'_>; 2],
    (out, lse): (Slice<'_>, Slice<'_>),
    tiles: Slice<'_>,
) -> Result<(), GpuError> {
    sizes.check(q, &[k, v], tiles)?;
    need(OP, "the result", out, q.len(), q.kind())?;
    if !lse.is_none() {
        need(OP, "the sums", lse, sizes.heads * sizes.tokens, Type::F32)?;
    }
    let grid = [small(OP, tiles.len() / 3)?, small(OP, sizes.heads)?, 1];
    if tiles.len() == 0 {
        return Ok(());
    }
    let (kernel, shared) = (kernel!("attention", q.kind())?, sizes.shared(q.kind(), FORWARD)?);
    // SAFETY: a block a tile and head; tiles are rows of the sequences that make up the operands.
    unsafe { sizes.launch(gpu, kernel, grid, shared, arguments![q, k, v, out, lse, tiles]) }
}

/// The gradients of [`attention`], from what it gave.
pub(crate) fn attention_backward(
    gpu: &dyn Gpu,
    sizes: Attention,
    q: Slice<'_>,
    [k, v]: [Slice<'_>; 2],
    (out, lse, dout): (Slice<'_>, Slice<'_>, Slice<'_>),
    [dq, dk, dv]: [Slice<'_>; 3],
    tiles: Slice<'_>,
) -> Result<(), GpuError> {
    let kind = q.kind();
    sizes.check(q, &[k, v, dk, dv], tiles)?;
    for operand in [out, dout, dq] {
        need(OP, "a gradient", operand, q.len(), kind)?;
    }
    need(OP, "the sums", lse, sizes.heads * sizes.tokens, Type::F32)?;
    if tiles.len() == 0 {
        return Ok(());
    }
    let delta = gpu.alloc(lse.bytes())?;
    let delta = delta.of(Type::F32);
    let warps = small(OP, sizes.tokens * sizes.heads * 32)?;
    let mut arguments = arguments![out, dout, delta].to_vec();
    arguments.extend(sizes.sizes()?);
    let count = small(OP, tiles.len() / 3)?;
    let (kernel, grid) = (kernel!("attention_delta", kind)?, [warps.div_ceil(BLOCK), 1, 1]);
    // SAFETY: a warp a token and head.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0, arguments: &arguments })? };
    let (kernel, grid) = (kernel!("attention_backward_keys", kind)?, [count, small(OP, sizes.kv_heads)?, 1]);
    let shared = sizes.shared(kind, KEYS)?;
    // SAFETY: as in the forward pass, a tile being one of keys.
    unsafe { sizes.launch(gpu, kernel, grid, shared, arguments![q, k, v, dout, lse, delta, dk, dv, tiles])? };
    let (kernel, grid) = (kernel!("attention_backward_queries", kind)?, [count, small(OP, sizes.heads)?, 1]);
    let shared = sizes.shared(kind, QUERIES)?;
    // SAFETY: as in the forward pass.
    unsafe { sizes.launch(gpu, kernel, grid, shared, arguments![q, k, v, dout, lse, delta, dq, tiles]) }
}
