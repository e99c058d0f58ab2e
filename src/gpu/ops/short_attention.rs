use super::{BLOCK, Gpu, GpuError, Launch, Slice, Type, arguments, kernel, need, small};

/// The longest sequence.
const SHORT: usize = 16;
/// The widest head: what a lane of [`tree_attention`] keeps is 8 features.
const HEAD: usize = 256;

/// Short sequences, as the kernels read them.
#[derive(Debug, Default)]
pub(crate) struct ShortSequences {
    /// By query: its sequence's first row, and its place in the sequence.
    pub(crate) places: Vec<u32>,
    /// By sequence: its first row, its length, its first query, its queries.
    pub(crate) sequences: Vec<u32>,
}

impl ShortSequences {
    /// Of these lengths; queries are all rows, or the `last` of each.
    ///
    /// # Errors
    /// Where one is empty or longer than 16.
    pub(crate) fn of(lengths: &[usize], last: bool) -> Result<Self, GpuError> {
        let mut own = Self::default();
        let (mut first, mut query) = (0u32, 0u32);
        for &length in lengths {
            if !(1..=SHORT).contains(&length) {
                let why = format!("a sequence of {length} tokens is none of 1 to {SHORT}");
                return Err(GpuError::operands("short attention", why));
            }
            let length = length as u32;
            let queries = if last { 1 } else { length };
            own.places.extend((length - queries..length).flat_map(|place| [first, place]));
            own.sequences.extend([first, length, query, queries]);
            (first, query) = (first + length, query + queries);
        }
        Ok(own)
    }
}

/// The sizes of heads: how many of queries, of keys, and their width.
type Heads = [usize; 3];

fn check(op: &'static str, q: Slice<'_>, [k, v]: [Slice<'_>; 2], heads: Heads) -> Result<usize, GpuError> {
    let [heads, kv_heads, head] = heads;
    need(op, "values", v, k.len(), q.kind())?;
    need(op, "keys", k, v.len(), q.kind())?;
    let width = heads * head;
    if kv_heads == 0
        || width == 0
        || head > HEAD
        || !heads.is_multiple_of(kv_heads)
        || !q.len().is_multiple_of(width)
    {
        return Err(GpuError::operands(
            op,
            format!("{heads} heads of {head} over {kv_heads} of keys do not fit"),
        ));
    }
    Ok(q.len() / width)
}

fn scale(head: usize) -> f32 {
    1.0 / (head as f32).sqrt()
}

/// Attention of short sequences, whose `places` are a [`ShortSequences`]'.
pub(crate) fn short_attention(
    gpu: &dyn Gpu,
    q: Slice<'_>,
    [k, v]: [Slice<'_>; 2],
    out: Slice<'_>,
    places: Slice<'_>,
    heads: Heads,
) -> Result<(), GpuError> {
    const OP: &str = "short attention";
    let queries = check(OP, q, [k, v], heads)?;
    need(OP, "the result", out, q.len(), q.kind())?;
    need(OP, "places", places, 2 * queries, Type::U32)?;
    let [h, kv, head] = heads;
    let warps = queries * h;
    let arguments = arguments![
        q,
        k,
        v,
        out,
        places,
        small(OP, queries)?,
        small(OP, h)?,
        small(OP, kv)?,
        small(OP, head)?,
        scale(head)
    ];
    let (kernel, grid) =
        (kernel!("short_attention", q.kind())?, [small(OP, (warps * 32).div_ceil(BLOCK as usize))?, 1, 1]);
    if warps == 0 {
        return Ok(());
    }
    // SAFETY: a warp a query and head; the places say which rows of k and v belong to a query, and are made of the lengths
    // that make up k and v.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0, arguments }) }
}

/// The gradients of [`short_attention`] of queries, keys and values.
#[allow(clippy::too_many_arguments, reason = "the operands of a backward pass")]
pub(crate) fn short_attention_backward(
    gpu: &dyn Gpu,
    q: Slice<'_>,
    [k, v]: [Slice<'_>; 2],
    dout: Slice<'_>,
    [dq, dk, dv]: [Slice<'_>; 3],
    sequences: Slice<'_>,
    heads: Heads,
) -> Result<(), GpuError> {
    const OP: &str = "short attention backward";
    check(OP, q, [k, v], heads)?;
    for (gradient, of) in [(dout, q), (dq, q), (dk, k), (dv, v)] {
        need(OP, "a gradient", gradient, of.len(), q.kind())?;
    }
    need(OP, "sequences", sequences, sequences.len() / 4 * 4, Type::U32)?;
    let [h, kv, head] = heads;
    let arguments = arguments![
        q,
        k,
        v,
        dout,
        dq,
        dk,
        dv,
        sequences,
        small(OP, h)?,
        small(OP, kv)?,
        small(OP, head)?,
        scale(head)
    ];
    let (kernel, grid) = (
        kernel!("short_attention_backward", q.kind())?,
        [small(OP, sequences.len() / 4)?, small(OP, kv)?, 1],
    );
    if sequences.len() == 0 {
        return Ok(());
    }
    let shared = small(OP, 2 * SHORT * head * Type::F32.bytes())?;
    // SAFETY: a warp a sequence and key head, with room for the gradients of 16 keys and values; the sequences are made of
    // the lengths that make up k and v.
    unsafe { gpu.launch(&Launch { kernel, grid, block: 32, shared, arguments }) }
}

/// Attention in a tree of tokens, each of which sees itself and its ancestors: `parents[i]` is an earlier row, or `i` where
/// a sequence begins, which is the caller's word.
pub(crate) fn tree_attention(
    gpu: &dyn Gpu,
    q: Slice<'_>,
    [k, v]: [Slice<'_>; 2],
    out: Slice<'_>,
    parents: Slice<'_>,
    heads: Heads,
) -> Result<(), GpuError> {
    const OP: &str = "attention in a tree";
    let tokens = check(OP, q, [k, v], heads)?;
    let [h, kv, head] = heads;
    need(OP, "the result", out, q.len(), q.kind())?;
    need(OP, "keys", k, tokens * kv * head, q.kind())?;
    need(OP, "parents", parents, tokens, Type::U32)?;
    let arguments = arguments![
        q,
        k,
        v,
        out,
        parents,
        small(OP, tokens)?,
        small(OP, h)?,
        small(OP, kv)?,
        small(OP, head)?,
        scale(head)
    ];
    let (kernel, grid) = (
        kernel!("tree_attention", q.kind())?,
        [small(OP, (tokens * h * 32).div_ceil(BLOCK as usize))?, 1, 1],
    );
    if tokens == 0 {
        return Ok(());
    }
    // SAFETY: a warp a token and head; ancestors are rows, by the caller's word.
    unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0, arguments }) }
}
