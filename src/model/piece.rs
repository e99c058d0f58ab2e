use super::Draw;

/// What one pass is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// What it computes.
    pub pieces: &'a [Piece<'a>],
    /// How tokens are chosen of the pieces of which only these are of use: one for each wanted position. Empty: of none.
    pub draws: &'a [Option<Vec<Draw>>],
    /// What the next pass is likely to compute, as far as its tokens are known: parts of prompts. Their blocks are of no account.
    /// It changes no result; rows of f-grams may be brought for it meanwhile. Of use to a GPU alone.
    pub ahead: &'a [Piece<'a>],
}

impl<'a> Pass<'a> {
    /// Logits of all that is wanted, with nothing known of the next.
    pub fn of(pieces: &'a [Piece<'a>]) -> Self {
        Self { pieces, draws: &[], ahead: &[] }
    }
}

/// One sequence's part of a batch: a chunk of its prompt, or the token sampled last and drafts of those that may follow.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// All tokens of the sequence up to the end of this piece. Those before `past` are given because a token's embedding
    /// depends on the ones before it.
    pub tokens: &'a [u32],
    /// How many of `tokens` have keys and values in the cache; `tokens[past..]`, never empty, are to be computed.
    pub past: usize,
    /// The sequence's blocks of the KV cache in order: with blocks of `b` positions, `blocks[i]` holds positions
    /// `i * b..(i + 1) * b`. They reach at least to the end of `tokens`.
    pub blocks: &'a [u32],
    /// Of how many of the new positions, counted from the end, logits are wanted: none inside a prompt, 1 where a token is to
    /// be sampled, one more than drafts where those are to be verified, all for a prompt's own log-probabilities.
    pub wanted: usize,
}

impl Piece<'_> {
    /// How many tokens are to be computed.
    pub fn new_tokens(&self) -> usize {
        self.tokens.len().saturating_sub(self.past)
    }
}
