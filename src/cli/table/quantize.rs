//! `scone table quantize`: a table's rows in another format.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::ensure;

use super::super::{DEFAULT_MODEL, progress_bar};
use super::build::RowArgs;
use super::table_path;
use crate::table::{Table, quantize, verify};

/// Write a finished table again with rows of another type
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: scone table quantize --table big-f16.safetensors --dtype int4 --output big-int4.safetensors

Needs no f-gram model. The table is checked first; it stays as it is. What each type costs and keeps: docs/table.md."
)]
pub(super) struct Args {
    /// Whose table
    #[arg(default_value = DEFAULT_MODEL, env = "SCONE_MODEL_DIR", value_name = "MODEL_DIR")]
    model: PathBuf,
    /// Another table than the directory's
    #[arg(long, env = "SCONE_TABLE", value_name = "FILE")]
    table: Option<PathBuf>,
    #[command(flatten)]
    rows: RowArgs,
    /// The table to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let path = table_path(&args.model, args.table.as_deref())?;
    let same = path.canonicalize().ok() == args.output.canonicalize().ok();
    ensure!(!same, "--output is the table itself: write to another file, and rename that");
    let table = Table::open(&path)?;
    // What is damaged would get new checksums, and pass for good.
    verify(&table, |_| {})?;
    let bar = progress_bar(table.len() as u64, "rounding rows [{bar:40}] {pos}/{len} {eta}");
    quantize(&table, &args.output, args.rows.format(table.dim()), &mut |rows| bar.inc(rows))?;
    bar.finish_and_clear();
    super::report(&args.output, start.elapsed().as_secs_f64())
}
