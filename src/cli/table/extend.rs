//! `scone table extend`: a model with more f-grams than it was trained with.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail, ensure};

use super::super::device::DeviceFlag;
use super::super::{DEFAULT_MODEL, print, progress_bar};
use super::build::set_of;
use super::table_path;
use crate::fgram::{FgramSet, parquet};
use crate::model::{ModelDirectory, Shard, build_table, extend_directory};
use crate::new_file;
use crate::table::{RowFormat, RowType};

/// Add f-grams of another corpus to a model's table, without training
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  scone-train prepare speeches.jsonl --output speeches --tokenizer model_cards/default/tokenizer.json
  scone-train mine speeches --output speeches.parquet --size 50000
  scone table extend model_cards/default --fgrams speeches.parquet --output larger
  scone serve larger

DIR becomes a model directory: the same model, byte for byte, with a table of the f-grams of both, ranked by the sum of \
their counts, all rows computed by the model's own f-gram model. fgrams.parquet in it is the joined set, to tag a dataset \
with and train on. MODEL_DIR stays as it is. What was measured: docs/table.md.")]
pub(super) struct Args {
    /// A model with its table and its f-gram model
    #[arg(default_value = DEFAULT_MODEL, env = "SCONE_MODEL_DIR", value_name = "MODEL_DIR")]
    model: PathBuf,
    /// The f-grams to add: a set mined with the model's tokenizer
    #[arg(long, env = "SCONE_FGRAMS", value_name = "FILE")]
    fgrams: PathBuf,
    /// The type of rows: f32, f16, bf16, int8 or int4 [default: that of the model's own table]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<RowType>,
    /// Start every row at a multiple of so many bytes (a power of two up to 4096) [default: as in the model's own table]
    #[arg(long, value_name = "BYTES")]
    row_align: Option<usize>,
    #[command(flatten)]
    device: DeviceFlag,
    /// The directory to make
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let directory = ModelDirectory::open(&args.model)?;
    let table = table_path(&args.model, None)?;
    if !table.exists() {
        bail!("{} is not there yet: build the model's own table first", table.display());
    }
    let own = directory.open_table(&table)?;
    let (old, format) = (set_of(&own)?, own.row_format());
    let format = RowFormat {
        row_type: args.dtype.unwrap_or(format.row_type),
        align: args.row_align.unwrap_or(format.align),
        ..format
    };
    format.stride().map_err(anyhow::Error::msg)?;
    let new = parquet::read_with(&args.fgrams, old.policy())?;
    let set = old.union(&new).with_context(|| args.fgrams.display().to_string())?;
    let added = set.len() - old.len();
    ensure!(added > 0, "all {} f-grams of {} are in the table already", new.len(), args.fgrams.display());
    let larger = extend_directory(&directory, &set, &args.output)?;
    parquet::write(&set, args.output.join("fgrams.parquet"))?;
    write_card(args, &old, added)?;
    let output = larger.table_path().context("scone.json is gone")?;
    let bar = progress_bar(set.len() as u64, "embedding f-grams [{bar:40}] {pos}/{len} {per_sec} {eta}");
    build_table(&larger, &set, format, Shard::WHOLE, &output, &args.device.open()?, &mut |rows| {
        bar.inc(rows);
    })?;
    bar.finish_and_clear();
    let both = new.len() - added;
    print(&format!("{} f-grams and {added} more ({both} of the new were there already)", old.len()))?;
    super::report(&output, start.elapsed().as_secs_f64())
}

/// The card of the new directory: what it is made of. Figures of the old model are not its own.
fn write_card(args: &Args, old: &FgramSet, added: usize) -> anyhow::Result<()> {
    let name = |path: &Path| {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        real.file_name().unwrap_or_default().to_string_lossy().into_owned()
    };
    let text = format!(
        "---\nlibrary_name: scone\npipeline_tag: text-generation\ntags:\n- scone\n---\n\n# {}, with more f-grams\n\nThe model \
         of `{}` and its {} f-grams, with {added} more from `{}` (`fgrams.parquet` is the joined set). Nothing was trained: \
         the rows of the new f-grams are what the model's f-gram model makes of them.\n",
        name(&args.model),
        name(&args.model),
        old.len(),
        name(&args.fgrams),
    );
    let path = args.output.join("README.md");
    new_file::write(&path, text.as_bytes()).with_context(|| path.display().to_string())
}
