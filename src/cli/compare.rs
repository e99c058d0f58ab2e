//! `scone-train compare`: runs side by side, as a table and as a chart.

use std::path::PathBuf;

use anyhow::Context;

use super::print;
use crate::new_file;
use crate::train::{Axes, Comparison};

/// Compare runs: a table on standard output, and a chart
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A run is read from config.toml, metrics.jsonl and, where `scone-train measure` has made it, results.json; runs \
that still go on may be compared too. The table is Markdown; what is relative is relative to the first run. The chart has the \
runs' validation losses over the tokens trained on.

With --by the runs are laid out by one of their figures, and the chart has the validation perplexity, or the figure --of, over \
it. Runs with the same figure are repetitions with other seeds: the mean and the spread are shown. Baselines that have no such figure are a dashed line.
  scone-train compare runs/base runs/scone runs/other --output loss.svg
  scone-train compare runs/base runs/set-* --by fgrams --of texts.books.perplexity --output fgrams.svg
  scone-train compare runs/base-* runs/scone --by parameters.non_embedding --show costs.inference_flops,costs.table_bytes
  scone-train compare runs/rate-* --by train.learning_rate
A figure is named by its path in results.json or config.toml; a wrong one is answered with the list of all. --json has them all."
)]
pub struct Args {
    /// Directories of runs; the first is what the others are compared with
    #[arg(required = true, value_name = "RUN_DIR")]
    runs: Vec<PathBuf>,
    /// Where to write the chart
    #[arg(long, short, env = "SCONE_CHART", value_name = "FILE.svg")]
    output: Option<PathBuf>,
    /// Lay the runs out by this figure
    #[arg(long, env = "SCONE_COMPARE_BY", value_name = "FIGURE")]
    by: Option<String>,
    /// The figure that is judged; left out: the validation perplexity
    #[arg(long, env = "SCONE_COMPARE_OF", value_name = "FIGURE", requires = "by")]
    of: Option<String>,
    /// What tells the chart's lines apart; left out: whether a run has f-grams
    #[arg(long, env = "SCONE_COMPARE_SERIES", value_name = "FIGURE", requires = "by")]
    series: Option<String>,
    /// Figures that the table has besides
    #[arg(long, env = "SCONE_COMPARE_SHOW", value_name = "FIGURE,...", value_delimiter = ',')]
    show: Vec<String>,
    /// Print one JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Where a run cannot be read or lacks a figure that is asked for, and where the chart cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let comparison = Comparison::read(&args.runs)?;
    let (text, chart) = match &args.by {
        None => {
            let text =
                if args.json { comparison.json().to_string() } else { comparison.table(&args.show)? };
            (text, args.output.as_ref().map(|_| comparison.chart()).transpose()?)
        }
        Some(by) => {
            let axes = Axes { by: by.clone(), of: args.of.clone(), series: args.series.clone() };
            let grid = comparison.by(&axes)?;
            let text = if args.json { grid.json().to_string() } else { grid.table(&args.show)? };
            (text, args.output.as_ref().map(|_| grid.chart()))
        }
    };
    if let Some((path, chart)) = args.output.as_ref().zip(chart) {
        new_file::write(path, chart.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(print(&text)?)
}
