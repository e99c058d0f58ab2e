use thiserror::Error;

/// What can go wrong between the processes of a run.
#[derive(Debug, Error)]
pub enum GroupError {
    /// What flags and environment say about this process's place does not fit together.
    #[error("{0}")]
    Place(String),
    /// Rank 0 cannot wait for the others.
    #[error("rank 0 cannot listen at {address} for the other processes: {why}")]
    Listen {
        /// Where.
        address: String,
        /// Why not.
        why: String,
    },
    /// Rank 0 is not to be reached.
    #[error(
        "no answer from rank 0 at {address} within {seconds} s: {why}. Was it started, and can this machine reach it?"
    )]
    Unreachable {
        /// Where.
        address: String,
        /// How long this process tried.
        seconds: u64,
        /// The last attempt's outcome.
        why: String,
    },
    /// Not all processes came.
    #[error("only {} of {world_size} processes came within {seconds} s: rank {} is missing", world_size - missing.len(), listed(missing))]
    Missing {
        /// The ranks that did not come.
        missing: Vec<usize>,
        /// How many processes there should be.
        world_size: usize,
        /// How long the others waited.
        seconds: u64,
    },
    /// Rank 0 does not take this process.
    #[error("rank 0 refuses this process: {0}")]
    Refused(String),
    /// A process is gone, or hangs.
    #[error("rank {rank} is lost: {why}. Its own log says more; start all processes again with --resume")]
    Lost {
        /// Which.
        rank: usize,
        /// What was seen of it.
        why: String,
    },
    /// A process does something else.
    #[error(
        "rank {rank} is out of step: it is at exchange {theirs}, this process at {ours}; was it built from other sources?"
    )]
    OutOfStep {
        /// Which.
        rank: usize,
        /// The number and the size of its message.
        theirs: String,
        /// Those of the message that was waited for.
        ours: String,
    },
    /// Processes hold different things that must be the same.
    #[error("rank {rank} and rank 0 differ in {what}")]
    Differs {
        /// The first that differs from rank 0.
        rank: usize,
        /// In what, and what to do about it.
        what: &'static str,
    },
    /// An update cannot be shared evenly.
    #[error(
        "accumulate = {accumulate} batches of an update cannot be shared by {world_size} processes: make it a multiple (and \
         batch smaller by as much, for the same update)"
    )]
    Uneven {
        /// Batches of an update.
        accumulate: usize,
        /// How many processes there are.
        world_size: usize,
    },
    /// NCCL or its device.
    #[error("NCCL: {0}")]
    Nccl(String),
}

fn listed(ranks: &[usize]) -> String {
    ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}
