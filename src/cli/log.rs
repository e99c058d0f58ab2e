//! What the programs say while they run, on standard error.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use clap::ValueEnum;
use tracing_appender::non_blocking::NonBlockingBuilder;
pub use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;

/// Lines that may wait to be written. Beyond them lines are lost, for a program that serves must not wait for whoever reads its log.
const WAITING: usize = 16 << 10;

/// What is logged, and how.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Logging {
    /// How log lines are written: for people, or one JSON object a line
    #[arg(long, value_enum, value_name = "FORMAT", env = "SCONE_LOG_FORMAT", default_value_t)]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, also for parts, as in "warn,scone::request=info" [default: SCONE_LOG,
    /// else RUST_LOG, else info]
    #[arg(long, value_name = "LEVEL", env = "SCONE_LOG_LEVEL")]
    log_level: Option<String>,
}

/// See [`Logging`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

impl Logging {
    /// Starts logging. To be called once. When what is returned is dropped, lines that wait are written.
    ///
    /// # Errors
    /// If the level says nothing that can be understood.
    pub fn start(&self) -> Result<WorkerGuard> {
        let filter = match &self.log_level {
            Some(level) => EnvFilter::try_new(level).with_context(|| format!("--log-level {level}"))?,
            None => from_environment()?,
        };
        let (writer, guard) =
            NonBlockingBuilder::default().buffered_lines_limit(WAITING).finish(std::io::stderr());
        // An error of the writer would itself be printed, which ends the program where nobody reads any more.
        let lines =
            tracing_subscriber::fmt().log_internal_errors(false).with_env_filter(filter).with_writer(writer);
        match self.log_format {
            LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
            LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).init(),
        }
        Ok(guard)
    }
}

/// What the environment wants logged.
fn from_environment() -> Result<EnvFilter> {
    for name in ["SCONE_LOG", EnvFilter::DEFAULT_ENV] {
        if let Ok(level) = std::env::var(name) {
            return EnvFilter::try_new(&level).with_context(|| format!("{name}={level}"));
        }
    }
    Ok(EnvFilter::new("info"))
}
