//! What the programs say while they run, on standard error.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

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
    /// Starts logging. To be called once.
    ///
    /// # Errors
    /// If the level says nothing that can be understood.
    pub fn start(&self) -> Result<()> {
        let filter = match &self.log_level {
            Some(level) => EnvFilter::try_new(level).with_context(|| format!("--log-level {level}"))?,
            None => EnvFilter::try_from_env("SCONE_LOG")
                .or_else(|_| EnvFilter::try_from_default_env())
                .unwrap_or_else(|_| EnvFilter::new("info")),
        };
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
            LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).init(),
        }
        Ok(())
    }
}
