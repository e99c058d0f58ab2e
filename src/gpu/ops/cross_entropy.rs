use super::{
    BLOCK, Gpu, GpuError, Launch, Slice, Type, arguments, kernel, linear, linear_backward_input,
    linear_backward_weight, need, small,
};

/// Bytes of logits that exist at a time: `[tokens, vocabulary]` as a whole would be the largest thing in training.
const LOGITS: usize = 256 << 20;

/// The operands of [`cross_entropy`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct CrossEntropy<'a> {
    /// The last states `[tokens, d]`.
    pub(crate) h: Slice<'a>,
    /// The head `[vocabulary, d]`, of the type of the states.
    pub(crate) head: Slice<'a>,
    /// By token, below the vocabulary's size: the caller's word.
    pub(crate) targets: Slice<'a>,
    /// The states' gradient, or none.
    pub(crate) dh: Slice<'a>,
    /// The head's gradient in f32, or none; only beside `dh`.
    pub(crate) dhead: Slice<'a>,
    /// Each token's loss.
    pub(crate) losses: Slice<'a>,
}

/// Losses of targets under `softmax(h * head^T)`, and the gradients of their mean, chunk by chunk of tokens.
pub(crate) fn cross_entropy(gpu: &dyn Gpu, operands: CrossEntropy<'_>, d: usize) -> Result<(), GpuError> {
    const OP: &str = "cross-entropy";
    let CrossEntropy { h, head, targets, dh, dhead, losses } = operands;
    let (tokens, vocabulary, kind) = (targets.len(), head.len() / d.max(1), h.kind());
    need(OP, "targets", targets, tokens, Type::U32)?;
    need(OP, "losses", losses, tokens, Type::F32)?;
    need(OP, "the states", h, tokens * d, kind)?;
    need(OP, "the head", head, vocabulary * d, kind)?;
    if !dh.is_none() {
        need(OP, "the states' gradient", dh, tokens * d, kind)?;
    }
    if !dhead.is_none() {
        need(OP, "the head's gradient", dhead, vocabulary * d, Type::F32)?;
        gpu.zero(dhead)?;
    }
    let chunk = (LOGITS / (4 * vocabulary.max(1))).clamp(1, tokens.max(1));
    let logits = gpu.alloc(chunk * vocabulary * Type::F32.bytes())?;
    let changes = gpu.alloc(if dh.is_none() { 1 } else { chunk * vocabulary * kind.bytes() })?;
    let scale = 1.0 / tokens as f32;
    for from in (0..tokens).step_by(chunk) {
        let rows = chunk.min(tokens - from);
        let logits = logits.of(Type::F32).part(0, rows * vocabulary)?;
        let states = h.part(from * d, rows * d)?;
        linear(gpu, states, head, logits, [rows, d, vocabulary])?;
        let changes = match dh.is_none() {
            true => Slice::none(kind),
            false => changes.of(kind).part(0, rows * vocabulary)?,
        };
        let (targets, losses) = (targets.part(from, rows)?, losses.part(from, rows)?);
        let arguments = arguments![logits, targets, changes, losses, small(OP, vocabulary)?, scale];
        let (kernel, grid) = (kernel!("cross_entropy", kind)?, [small(OP, rows)?, 1, 1]);
        // SAFETY: a block a row of the vocabulary, of which logits and changes have as many, with a target and a loss; the
        // targets are the caller's word.
        unsafe { gpu.launch(&Launch { kernel, grid, block: BLOCK, shared: 0, arguments })? };
        if dh.is_none() {
            continue;
        }
        linear_backward_input(gpu, changes, head, dh.part(from * d, rows * d)?, [rows, d, vocabulary])?;
        if !dhead.is_none() {
            linear_backward_weight(gpu, changes, states, dhead, [rows, d, vocabulary], true)?;
        }
    }
    Ok(())
}
