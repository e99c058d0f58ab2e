//! `scone-train synthesize`: a model and a table of any shape, to measure speed with.

use std::path::PathBuf;
use std::time::Instant;

use crate::table::RowType;
use crate::train::{RunConfig, synthesize};

/// Make a model of random weights, its table and its baseline, to measure speed with
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Reads the run file of `fit` and leaves the training out: DIR/baseline and DIR/scone are what such a \
run starts from, and every identity fits. The rows are those of the untrained f-gram model, so nothing is computed for \
them: a million take seconds. What decides speed is real: the shape, the text's f-grams and how often they match.

Example: a model of SmolLM2-135M's shape with a million f-grams of real text
  scone-train prepare books/ --output data --tokenizer tokenizer.json
  scone-train mine data --size 1000000 --min-count 2 --output data/fgrams.parquet
  scone-train synthesize --config benches/synthetic-135m.toml --output synthetic
  cargo bench --bench step -- synthetic/scone synthetic/baseline"
)]
pub struct Args {
    /// The run's TOML file, with an [fgram] section; see `fit --print-config`
    #[arg(long, env = "SCONE_RUN_CONFIG", value_name = "RUN.toml")]
    config: PathBuf,
    /// Where the two directories go; what they held before is replaced
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// The type of the table's rows: f32, f16, bf16, int8 or int4
    #[arg(long, default_value = "int8", value_name = "TYPE")]
    row_dtype: RowType,
}

/// Runs the command.
///
/// # Errors
/// See [`synthesize`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let directories = synthesize(&RunConfig::read(&args.config)?, args.row_dtype, &args.output)?;
    for directory in directories {
        super::print(&directory.display().to_string())?;
    }
    tracing::info!("made in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}
