//! The sub-commands of both programs, one file each: `Args` (parsed by clap) and `run`.

pub mod bench;
mod bytes;
pub mod card;
pub mod compare;
mod compute;
mod device;
mod dtype;
mod duration;
pub mod eval;
pub mod explain;
pub mod fit;
pub mod generate;
pub mod log;
pub mod measure;
pub mod mine;
mod open_model;
pub mod prepare;
mod processes;
pub mod serve;
mod shard;
pub mod synthesize;
pub mod table;
mod table_mode;
mod table_watch;
pub mod tag;

use std::io::Write;

use indicatif::{ProgressBar, ProgressStyle};

/// The model that is in the repository.
const DEFAULT_MODEL: &str = "model_cards/default";

/// The text of an argument, or all of standard input for `-`.
fn text_argument(argument: &str) -> std::io::Result<String> {
    if argument == "-" { std::io::read_to_string(std::io::stdin()) } else { Ok(argument.to_owned()) }
}

/// A bar on standard error; nothing is drawn where that is no terminal.
fn progress_bar(total: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    // The templates are constants of this program, and a test of each command draws them.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// Waits for Ctrl-C or SIGTERM.
async fn stop_signal() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    // Without a handler the signal keeps its usual effect, which is to end the program.
    let _ = interrupt.await;
}

/// Prints a command's result. Unlike `println!` it returns an error when the reader has gone, and `main` is then silent.
fn print(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// Whether a command failed only because nobody reads its output any more, as under `| head`.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref().map(std::io::Error::kind);
    error.chain().any(|cause| kind(cause) == Some(std::io::ErrorKind::BrokenPipe))
}
