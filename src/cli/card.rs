//! `scone-train card`: a model's README.md, generated.

use std::path::PathBuf;

use anyhow::Context;

use super::print;
use crate::new_file;
use crate::train::Card;

/// Write the card of a finished run's model: its README.md, made of what the run and `measure` left behind
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Reads config.toml, metrics.jsonl, environment.json and results.json (`scone-train measure` writes it) and replaces \
RUN_DIR/model/README.md. No figure is typed: what no run can know stands in the [card] section of config.toml (title, description, \
license, language, data, limits).

Example:
  scone-train measure runs/baseline --text books=held-out.txt
  scone-train measure runs/scone --text books=held-out.txt
  scone-train card runs/scone --against runs/baseline"
)]
pub struct Args {
    /// What `fit` wrote
    #[arg(env = "SCONE_RUN_DIR", value_name = "RUN_DIR")]
    run: PathBuf,
    /// Another run, measured on the same texts, whose figures stand beside: the baseline's
    #[arg(long, env = "SCONE_AGAINST", value_name = "RUN_DIR")]
    against: Option<PathBuf>,
    /// The heading, in place of that of [card]
    #[arg(long, env = "SCONE_CARD_TITLE", value_name = "TEXT")]
    title: Option<String>,
    /// The licence of the weights, in place of that of [card]
    #[arg(long, env = "SCONE_CARD_LICENSE", value_name = "NAME")]
    license: Option<String>,
    /// Where to; left out: RUN_DIR/model/README.md
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// See [`Card::of_run`]; and where the card cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut card = Card::of_run(&args.run, args.against.as_deref())?;
    let typed = card.config.card.get_or_insert_default();
    typed.title = args.title.clone().or(typed.title.take());
    typed.license = args.license.clone().or(typed.license.take());
    let output = args.output.clone().unwrap_or_else(|| args.run.join("model/README.md"));
    new_file::write(&output, card.render().as_bytes()).with_context(|| output.display().to_string())?;
    Ok(print(&output.display().to_string())?)
}
