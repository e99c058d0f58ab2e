//! `scone table`: everything that is done with a table but serving it.

mod build;
mod extend;
mod merge;
mod plan;
mod quantize;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;

use super::{DEFAULT_MODEL, progress_bar};
use crate::model::{ModelDirectory, check_rows};
use crate::table::{ExportType, Format, Table, describe, export, verify};

/// Make, check and convert the table of f-gram embeddings
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(build::Args),
    Merge(merge::Args),
    Extend(extend::Args),
    Quantize(quantize::Args),
    Plan(plan::Args),
    Verify(VerifyArgs),
    Inspect(InspectArgs),
    Export(ExportArgs),
}

/// Check every byte of a table, its f-grams, and its rows against the f-gram model
#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// The model it must fit
    #[arg(default_value = DEFAULT_MODEL, env = "SCONE_MODEL_DIR", value_name = "MODEL_DIR")]
    model: PathBuf,
    /// Another table than the directory's
    #[arg(long, env = "SCONE_TABLE", value_name = "FILE")]
    table: Option<PathBuf>,
    /// How many rows to compute again, spread evenly over the ranks; 0: none
    #[arg(long, default_value_t = 10_000, value_name = "N", conflicts_with = "all")]
    rows: usize,
    /// Compute all rows again
    #[arg(long)]
    all: bool,
    /// Print one JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// Say what a table holds
#[derive(Debug, clap::Args)]
struct InspectArgs {
    /// Whose table
    #[arg(default_value = DEFAULT_MODEL, env = "SCONE_MODEL_DIR", value_name = "MODEL_DIR")]
    model: PathBuf,
    /// Another table than the directory's
    #[arg(long, env = "SCONE_TABLE", value_name = "FILE")]
    table: Option<PathBuf>,
    /// Print one JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// Write f-grams, counts and embeddings as a plain file for other tools
#[derive(Debug, clap::Args)]
#[command(
    after_help = "safetensors: tokens u32 [N, K] (left-aligned, padded with 4294967295), length u8 [N], \
count u64 [N], embeddings [N, d]; in Python: safetensors.numpy.load_file(FILE). parquet: the same as columns.

Example: scone table export --output table.parquet --format parquet"
)]
struct ExportArgs {
    /// Whose table
    #[arg(default_value = DEFAULT_MODEL, env = "SCONE_MODEL_DIR", value_name = "MODEL_DIR")]
    model: PathBuf,
    /// Another table than the directory's
    #[arg(long, env = "SCONE_TABLE", value_name = "FILE")]
    table: Option<PathBuf>,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// safetensors or parquet
    #[arg(long, default_value = "safetensors", value_name = "FORMAT")]
    format: Format,
    /// The embeddings' type: f32 or f16
    #[arg(long, default_value = "f32", value_name = "TYPE")]
    dtype: ExportType,
}

/// Runs the command.
///
/// # Errors
/// See [`build_table`](crate::model::build_table), [`merge`](crate::table::merge),
/// [`extend_directory`](crate::model::extend_directory), [`quantize`](crate::table::quantize), [`plan`](crate::table::plan), [`verify`], [`check_rows`], [`describe`] and
/// [`export`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Build(args) => build::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Extend(args) => extend::run(args),
        Command::Quantize(args) => quantize::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Verify(args) => check(args),
        Command::Inspect(args) => inspect(args),
        Command::Export(args) => write_export(args),
    }
}

/// The table given, or the one that the directory's scone.json names.
fn table_path(model: &Path, table: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(table) = table {
        return Ok(table.to_owned());
    }
    let directory = ModelDirectory::open(model)?;
    directory
        .table_path()
        .with_context(|| format!("{} is a baseline: it has no scone.json, so no table", model.display()))
}

/// One line about a finished table.
fn report(path: &Path, seconds: f64) -> anyhow::Result<()> {
    let table = Table::open(path)?;
    let (rows, dim, dtype, bytes) = (table.len(), table.dim(), table.row_type(), table.bytes());
    super::print(&format!(
        "{}: {rows} rows of {dim} x {dtype}, {bytes} bytes, {seconds:.1} s",
        path.display()
    ))?;
    Ok(())
}

fn check(args: &VerifyArgs) -> anyhow::Result<()> {
    let directory = ModelDirectory::open(&args.model)?;
    let path = table_path(&args.model, args.table.as_deref())?;
    let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
    let bar = progress_bar(bytes, "checking [{bar:40}] {bytes}/{total_bytes} {eta}");
    // The file itself first: in a damaged one a wrong identity would only mislead.
    let report = verify(&Table::open(&path)?, |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let table = directory.open_table(&path)?;
    let sample = if args.all { table.len() } else { args.rows };
    let bar =
        progress_bar(sample.min(table.len()) as u64, "computing rows again [{bar:40}] {pos}/{len} {eta}");
    let rows = match sample {
        0 => None,
        _ => Some(check_rows(&directory, &table, sample, &mut |rows| bar.inc(rows))?),
    };
    bar.finish_and_clear();
    if args.json {
        let document = serde_json::json!({
            "table": path,
            "ok": true,
            "checked": report,
            "recomputed": rows,
            "identity": "matches the model",
        });
        println!("{document}");
        return Ok(());
    }
    println!("{}: good", path.display());
    println!("  {} bytes under {} checksums", report.bytes, report.checksums);
    println!("  {} f-grams: allowed, in order, closed, each found by the index", report.fgrams);
    println!("  made for this tokenizer, token embedding, f-gram model and f-gram set");
    if let Some(rows) = rows {
        println!(
            "  {} rows computed again: at most {:.2e} of a row's largest number off",
            rows.rows, rows.max_difference
        );
    }
    Ok(())
}

fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let table = Table::open(table_path(&args.model, args.table.as_deref())?)?;
    let description = describe(&table);
    if args.json {
        println!("{}", serde_json::to_string(&description)?);
    } else {
        print!("{description}");
    }
    Ok(())
}

fn write_export(args: &ExportArgs) -> anyhow::Result<()> {
    let table = Table::open(table_path(&args.model, args.table.as_deref())?)?;
    // Into other tools only what is whole: rows are read once more anyway.
    verify(&table, |_| {})?;
    export(&table, &args.output, args.format, args.dtype)?;
    println!(
        "{}: {} f-grams, embeddings {} x {}",
        args.output.display(),
        table.len(),
        table.dim(),
        args.dtype
    );
    Ok(())
}
