/// What a forward pass failed with. It ends the requests of its batch, not the engine.
pub type ForwardError = Box<dyn std::error::Error + Send + Sync>;

/// What the engine needs of a model: a forward pass over a ragged batch, and places ("slots") that each keep the keys and
/// values of one sequence between passes.
pub trait Forward: Send {
    /// Logits of a position: one for each token id below this.
    fn vocab_size(&self) -> usize;

    /// The most tokens of one sequence, prompt and output together.
    fn context(&self) -> usize;

    /// How many sequences can have keys and values at a time. Slots are numbered from 0.
    fn slots(&self) -> usize;

    /// Runs one pass over `batch`, in which no slot occurs twice, and returns the wanted logits: for each piece, for each
    /// wanted position, `vocab_size` values, all in one vector in that order.
    ///
    /// # Errors
    /// Whatever keeps the model from computing; the sequences of the batch are then ended.
    fn forward(&mut self, batch: &[Piece<'_>]) -> Result<Vec<f32>, ForwardError>;
}

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
        self.tokens.len() - self.past
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
