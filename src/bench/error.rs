use std::error::Error;
use std::path::PathBuf;
use std::process::ExitStatus;

use thiserror::Error;

/// Why a measurement could not be made. A request that fails is no such error: it is counted and shown.
#[derive(Debug, Error)]
pub enum BenchError {
    /// A file that could not be read or has the wrong content.
    #[error("{}: {why}", .path.display())]
    Input {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A text shorter than the prompts that are to be cut from it.
    #[error("{origin} is too short for prompts of {tokens} tokens: give a longer one with --text")]
    ShortText {
        /// Length of a prompt.
        tokens: usize,
        /// Which text.
        origin: String,
    },
    /// Targets or numbers that make no sense together.
    #[error("{0}")]
    Config(String),
    /// A target that does not answer as an OpenAI server does.
    #[error("target {name} at {url}: {why}")]
    Target {
        /// Its name.
        name: String,
        /// Its address.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// A server that could not be started.
    #[error("could not start the server {name}: {why}{}", quote(.stderr))]
    Start {
        /// Its name.
        name: String,
        /// What went wrong.
        why: String,
        /// The last that it wrote to standard error.
        stderr: String,
    },
    /// A server that ended before it was told to.
    #[error("the server {name} ended by itself ({status}){}", quote(.stderr))]
    Died {
        /// Its name.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// The last that it wrote to standard error.
        stderr: String,
    },
    /// The log of requests could not be written.
    #[error("could not write {}", .path.display())]
    Log {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Ctrl-C or SIGTERM.
    #[error("interrupted")]
    Interrupted,
}

fn quote(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; the last that it wrote:\n{stderr}") }
}

/// An error with all that caused it, which reqwest's own message leaves out.
pub(super) fn with_causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message += &format!(": {error}");
        cause = error.source();
    }
    message
}
