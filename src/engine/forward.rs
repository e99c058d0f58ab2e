use std::sync::Arc;
use std::time::Duration;

use crate::model::{Pass, Piece};

/// What a forward pass failed with. It ends the requests that fail by themselves, not the engine.
pub type ForwardError = Box<dyn std::error::Error + Send + Sync>;

/// Brings nearer what a model will need of a sequence's tokens. Called from a thread of its own.
pub type Prefetch = Arc<dyn Fn(&[u32]) + Send + Sync>;

/// What the engine needs of a model: a forward pass over a ragged batch, and blocks that keep keys and values of a few
/// positions each between passes.
///
/// The engine says which blocks are whose. It relies on one thing: what a sequence gets is the same, bit for bit, whatever
/// runs beside it, however its tokens are cut into pieces, and when a pass is repeated. Of a model that only comes near to
/// that, as on a GPU, tokens that are all but equally likely may be chosen otherwise; nothing else breaks.
pub trait Forward: Send {
    /// Logits of a position: one for each token id below this.
    fn vocab_size(&self) -> usize;

    /// The most tokens of one sequence, prompt and output together.
    fn context(&self) -> usize;

    /// Positions of a block, at least 1.
    fn block_tokens(&self) -> usize;

    /// How many blocks there are. They are numbered from 0.
    fn blocks(&self) -> usize;

    /// Runs one pass over `batch`: writes the new tokens' keys and values into their blocks, and puts the wanted logits
    /// into `logits`, whose former contents are dropped: for each piece, for each wanted position, `vocab_size` values. No
    /// block that a piece writes to occurs in another piece.
    ///
    /// # Errors
    /// Whatever keeps the model from computing. The engine then repeats the pass for each piece alone.
    fn forward(&mut self, batch: &[Piece<'_>], logits: &mut Vec<f32>) -> Result<(), ForwardError>;

    /// Whether it can choose tokens where the logits are: see [`Forward::forward_choosing`].
    fn chooses(&self) -> bool {
        false
    }

    /// As [`Forward::forward`], where of the pieces that have draws only the tokens are of use that these choose: they go into `chosen`,
    /// whose former contents are dropped, or [`NO_TOKEN`](crate::model::NO_TOKEN) where the logits are no distribution; `logits` has
    /// only the other pieces'. Asked of models that [choose](Forward::chooses), which must override it.
    ///
    /// # Errors
    /// As [`Forward::forward`].
    fn forward_choosing(
        &mut self,
        pass: &Pass<'_>,
        logits: &mut Vec<f32>,
        chosen: &mut Vec<u32>,
    ) -> Result<(), ForwardError> {
        let _ = (pass, logits, chosen);
        Err("this model does not choose tokens".into())
    }

    /// Calls `work` with each number below `tasks`, on the model's own threads, which have nothing else to do between
    /// passes.
    fn parallel(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(work);
    }

    /// What to call with the prompt of each request that was taken, before its turn comes; None if there is nothing to do.
    fn prefetch(&self) -> Option<Prefetch> {
        None
    }

    /// How long the host took to put the last pass together and ask a GPU for it. Zero where a CPU computes.
    fn host_time(&self) -> Duration {
        Duration::ZERO
    }

    /// Changes when keys and values of old no longer are what the model would compute, because it reads another table: new
    /// sequences then share nothing with those of before.
    fn epoch(&self) -> u64 {
        0
    }
}
