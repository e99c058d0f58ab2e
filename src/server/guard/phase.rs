/// What a server does, in the order in which it comes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::server) enum Phase {
    /// The model is not there yet.
    Loading,
    /// Requests are answered.
    Serving,
    /// Requests are answered, but `/ready` says no. From here on each connection is closed with its next answer.
    Leaving,
    /// Answers under way are finished, and nobody new is let in.
    Draining,
    /// All answers are finished, or have had their time: connections on which nothing is under way are closed.
    Closing,
    /// What is still under way ends.
    Over,
}
