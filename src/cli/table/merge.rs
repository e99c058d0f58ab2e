//! `scone table merge`: parts into a table.

use std::path::PathBuf;
use std::time::Instant;

use indicatif::ProgressBar;

use crate::table::merge;

/// Join the parts that `table build --shard` wrote
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: scone table merge part-*.safetensors --output table.safetensors

The result is the file that one build of the whole would have written, byte for byte. Every part is checked against its \
checksums first.")]
pub(super) struct Args {
    /// All parts of one table, in any order
    #[arg(required = true, value_name = "PART")]
    parts: Vec<PathBuf>,
    /// The table to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let bar = ProgressBar::new_spinner().with_message("joining");
    merge(&args.parts, &args.output, &mut |rows| bar.inc(rows))?;
    bar.finish_and_clear();
    super::report(&args.output, start.elapsed().as_secs_f64())
}
