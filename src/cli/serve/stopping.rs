use std::future::Future;
use std::time::Duration;

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::duration::parse_duration;
use crate::server::Stopping;

/// How the server stops.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Stopping")]
pub(super) struct StoppingArgs {
    /// How long requests are still taken after the signal to stop, while /ready says 503, so that load balancers notice
    #[arg(long, value_name = "TIME", env = "SCONE_SHUTDOWN_DELAY", default_value = "0s", value_parser = parse_duration)]
    shutdown_delay: Duration,
    /// How long answers that are under way may take after that; what is not finished then ends with an error
    #[arg(long, value_name = "TIME", env = "SCONE_DRAIN_TIMEOUT", default_value = "30s", value_parser = parse_duration)]
    drain_timeout: Duration,
}

impl StoppingArgs {
    pub(super) fn stopping(&self) -> Stopping {
        Stopping { delay: self.shutdown_delay, drain: self.drain_timeout }
    }
}

/// The signals to stop.
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// From now on they no longer end the program by themselves.
    pub(super) fn new() -> Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the first; a second one ends the program at once.
    pub(super) async fn stop(mut self) {
        self.next().await;
        tracing::info!("stopping: finishing the answers under way; a second signal ends them");
        // A supervisor that is none is no reason not to stop.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        tokio::spawn(async move {
            let number = self.next().await;
            // As a shell shows that a signal ended a program.
            std::process::exit(128 + number);
        });
    }

    /// These signals again once `loaded` is there; one that comes before ends the program.
    pub(super) async fn unless_loading(mut self, loaded: impl Future<Output = ()>) -> Self {
        tokio::select! {
            biased;
            () = loaded => self,
            number = self.next() => std::process::exit(128 + number),
        }
    }

    /// Waits for the next and gives its number.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => libc::SIGTERM,
            _ = self.interrupt.recv() => libc::SIGINT,
        }
    }
}
