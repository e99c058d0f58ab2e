//! The sub-commands of both programs, one file each: `Args` (parsed by clap) and `run`.

pub mod generate;
pub mod mine;
mod open_model;
pub mod prepare;
pub mod serve;
pub mod tag;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on standard error; nothing is drawn where that is no terminal.
fn progress_bar(total: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    // The templates are constants of this program, and a test of each command draws them.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
