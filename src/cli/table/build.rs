//! `scone table build`: rows from the f-gram model.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;

use super::super::device::DeviceFlag;
use super::super::shard::parse_shard;
use super::super::{DEFAULT_MODEL, progress_bar};
use crate::fgram::{FgramSet, parquet};
use crate::model::{ModelDirectory, Shard, build_table};
use crate::table::{RowFormat, RowType, Table, verify};

/// Run the f-gram model over a whole set and write the table
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: scone table build runs/scone/model --fgrams fgrams.parquet --dtype int8

The rows are computed from the weights as the directory holds them. The file grows as FILE.partial and gets its name \
when it is complete. A build that was stopped or killed goes on where it was when the same command is given again. \
Several machines can each build a part, which `scone table merge` joins:

  scone table build MODEL_DIR --fgrams fgrams.parquet --shard 3/8 --output part-3.safetensors")]
pub(super) struct Args {
    /// A directory that `scone-train fit` wrote
    #[arg(default_value = DEFAULT_MODEL, env = "SCONE_MODEL_DIR", value_name = "MODEL_DIR")]
    model: PathBuf,
    /// The f-gram set the model was trained with; left out: that of the table which is there already
    #[arg(long, env = "SCONE_FGRAMS", value_name = "FILE")]
    fgrams: Option<PathBuf>,
    #[command(flatten)]
    rows: RowArgs,
    #[command(flatten)]
    device: DeviceFlag,
    /// Build the i-th of n parts only; needs --output
    #[arg(long, value_name = "I/N", value_parser = parse_shard, requires = "output")]
    shard: Option<(u64, u64)>,
    /// Where to; left out: the place that scone.json names
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// How rows are stored.
#[derive(Debug, clap::Args)]
pub(super) struct RowArgs {
    /// The type of rows: f32, f16, bf16, int8 or int4, the last two with a scale a row
    #[arg(long, default_value = "int8", value_name = "TYPE")]
    dtype: RowType,
    /// Start every row at a multiple of so many bytes (a power of two up to 4096); 1 packs them
    #[arg(long, default_value_t = 1, value_name = "BYTES")]
    row_align: usize,
}

impl RowArgs {
    pub(super) fn format(&self, dim: usize) -> RowFormat {
        RowFormat { row_type: self.dtype, dim, align: self.row_align }
    }
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
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
    let (shard, format) = (shard(args), args.rows.format(directory.config().hidden_size));
    let rows = shard.ranks(set.len()).len();
    let bar = progress_bar(rows as u64, "embedding f-grams [{bar:40}] {pos}/{len} {per_sec} {eta}");
    let (mut told, device) = (false, args.device.open()?);
    build_table(&directory, &set, format, shard, output, &device, &mut |rows| {
        if !std::mem::replace(&mut told, true) && rows > 0 {
            tracing::info!("{rows} rows were there already, from a build that was stopped");
            bar.set_position(rows);
            bar.reset_eta();
        } else {
            bar.inc(rows);
        }
    })?;
    bar.finish_and_clear();
    match shard {
        Shard::WHOLE => super::report(output, start.elapsed().as_secs_f64()),
        Shard { index, count } => {
            let seconds = start.elapsed().as_secs_f64();
            let line = format!("{}: part {index} of {count}, {rows} rows, {seconds:.1} s", output.display());
            Ok(super::super::print(&line)?)
        }
    }
}

fn shard(args: &Args) -> Shard {
    args.shard.map_or(Shard::WHOLE, |(index, count)| Shard { index: index as usize, count: count as usize })
}

/// The f-gram set that a table holds.
pub(super) fn set_of(table: &Table) -> anyhow::Result<FgramSet> {
    verify(table, |_| {})?;
    let counts = (0..table.len() as u32).map(|rank| table.count(rank)).collect();
    Ok(FgramSet::from_keys(table.policy().clone(), table.index().keys().to_vec(), counts))
}
