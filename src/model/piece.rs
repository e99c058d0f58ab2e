/// One sequence's part of a batch: a chunk of its prompt, or the token sampled last.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Where the sequence's keys and values are. A piece with `past` 0 starts the slot anew.
    pub slot: usize,
    /// All tokens of the sequence up to the end of this piece. Those before `past` are given because a token's embedding
    /// depends on the ones before it.
    pub tokens: &'a [u32],
    /// How many of `tokens` the slot already holds; `tokens[past..]`, never empty, are to be computed.
    pub past: usize,
    /// Which of the new positions' logits are wanted.
    pub wanted: Wanted,
}

/// Which positions of a [`Piece`] need logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// None: a chunk inside a prompt.
    None,
    /// The last: a token is to be sampled after it.
    Last,
    /// All: the prompt's own log-probabilities were asked for.
    All,
}

impl Piece<'_> {
    /// How many tokens are to be computed.
    pub fn new_tokens(&self) -> usize {
        self.tokens.len().saturating_sub(self.past)
    }

    /// How many rows of logits are wanted.
    pub fn wanted_rows(&self) -> usize {
        match self.wanted {
            Wanted::None => 0,
            Wanted::Last => 1,
            Wanted::All => self.new_tokens(),
        }
    }
}
