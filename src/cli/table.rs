//! `scone table`: build, verify, inspect, export.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Subcommand;

use super::{DEFAULT_MODEL, progress_bar};
use crate::fgram::{FgramSet, parquet};
use crate::model::{ModelDirectory, build_table, check_rows};
use crate::table::{ExportType, Format, RowType, Table, describe, export, verify};

/// Make, check and convert the table of f-gram embeddings
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(BuildArgs),
    Verify(VerifyArgs),
    Inspect(InspectArgs),
    Export(ExportArgs),
}

/// Run the f-gram model over a whole set and write the table
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: scone table build runs/scone/model --fgrams fgrams.parquet --dtype int8

The rows are computed from the weights as the directory holds them, written beside the final name and renamed: a \
killed build leaves no table.")]
struct BuildArgs {
    /// A directory that `scone-train fit` wrote
    #[arg(default_value = DEFAULT_MODEL, env = "SCONE_MODEL_DIR", value_name = "MODEL_DIR")]
    model: PathBuf,
    /// The f-gram set the model was trained with; left out: that of the table which is there already
    #[arg(long, env = "SCONE_FGRAMS", value_name = "FILE")]
    fgrams: Option<PathBuf>,
    /// How rows are stored: f32, f16, bf16, or int8 with a scale a row
    #[arg(long, default_value = "int8", value_name = "TYPE")]
    dtype: RowType,
    /// Where to; left out: the place that scone.json names
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
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
/// See [`build_table`], [`verify`], [`check_rows`], [`describe`] and [`export`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Build(args) => build(args),
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

fn build(args: &BuildArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let directory = ModelDirectory::open(&args.model)?;
    let Some(own) = directory.table_path() else {
        bail!("{} is a baseline: it has no scone.json, so no table can be built", args.model.display());
    };
    let set = match &args.fgrams {
        Some(path) => parquet::read(path)?,
        None if own.exists() => set_of(&Table::open(&own)?)?,
        None => {
            bail!("{} is not there yet: say with --fgrams FILE which set to build it from", own.display())
        }
    };
    let output = args.output.as_ref().unwrap_or(&own);
    let bar = progress_bar(set.len() as u64, "embedding f-grams [{bar:40}] {pos}/{len} {per_sec} {eta}");
    build_table(&directory, &set, args.dtype, output, &mut |rows| bar.inc(rows))?;
    bar.finish_and_clear();
    let table = Table::open(output)?;
    println!(
        "{}: {} rows of {} x {}, {} bytes, {:.1} s",
        output.display(),
        table.len(),
        table.dim(),
        table.row_type(),
        table.bytes(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The f-gram set that a table holds.
fn set_of(table: &Table) -> anyhow::Result<FgramSet> {
    verify(table, |_| {})?;
    let grams: Vec<Vec<u32>> =
        (0..table.len() as u32).filter_map(|rank| table.index().tokens(rank)).collect();
    let ranked = grams.iter().zip(0..).map(|(gram, rank)| (gram.as_slice(), table.count(rank)));
    Ok(FgramSet::from_ranked(table.policy().clone(), ranked)?)
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
