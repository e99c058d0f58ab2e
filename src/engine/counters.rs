use std::fmt;
use std::time::Duration;

/// What the engine has done since it was started, and how full its cache is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Forward passes.
    pub steps: u64,
    /// Tokens that these computed: of prompts, generated ones, and drafts.
    pub step_tokens: u64,
    /// How long they and the sampling after them took.
    pub step_time: Duration,
    /// How much of it the host took to put passes together and ask a GPU for them; zero where a CPU computes.
    pub host_time: Duration,
    /// Tokens of the prompts of sequences that got a place.
    pub prompt_tokens: u64,
    /// Tokens that were not computed because another request began with the same.
    pub cached_tokens: u64,
    /// How often a sequence had to give its place in the cache up for a while.
    pub preemptions: u64,
    /// Drafts that were tried, and those that were right.
    pub drafted: u64,
    /// See `drafted`.
    pub accepted: u64,
    /// Blocks of the cache that hold nothing.
    pub free_blocks: usize,
    /// Blocks that hold what no sequence needs now but a later one may.
    pub kept_blocks: usize,
    /// Blocks of the sequences that run.
    pub held_blocks: usize,
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, cached_tokens, preemptions, drafted, accepted, .. } = self;
        write!(f, "{steps} steps, {cached_tokens} prompt tokens cached, {preemptions} preemptions")?;
        if *drafted > 0 {
            write!(f, ", {accepted} of {drafted} drafts right")?;
        }
        Ok(())
    }
}
