//! `scone table plan`: what a table would take.

use indicatif::{HumanBytes, HumanCount, HumanDuration};
use std::time::Duration;

use super::build::RowArgs;
use crate::model::matmul_rate;
use crate::table::plan;

/// Say what disk, memory and time a table would take
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: scone table plan --rows 1e9 --dim 2048 --dtype int8 --fgram-params 1.8e9

The build time is for this machine: a matrix product is timed for a moment, and a build reaches that rate or more. n \
machines that build a part each take the n-th part of it.")]
pub(super) struct Args {
    /// F-grams; 1e9 is understood
    #[arg(long, value_name = "N", value_parser = number)]
    rows: usize,
    /// The width of the model: numbers in a row
    #[arg(long, value_name = "D", value_parser = number)]
    dim: usize,
    #[command(flatten)]
    format: RowArgs,
    /// Parameters of the f-gram model, its token embedding not counted: adds the build time
    #[arg(long, value_name = "P", value_parser = number)]
    fgram_params: Option<usize>,
    /// Tokens of an f-gram on average
    #[arg(long, default_value_t = 3.0, value_name = "TOKENS")]
    mean_length: f64,
    /// Print one JSON document on standard output
    #[arg(long)]
    json: bool,
}

fn number(text: &str) -> Result<usize, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is not a number like 1000000 or 1e6"))?;
    match (1.0..=1e15).contains(&number) && number.fract() == 0.0 {
        true => Ok(number as usize),
        false => Err("a whole number from 1 to 1e15".to_owned()),
    }
}

/// Runs the command.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let planned = plan(args.rows, args.format.format(args.dim))?;
    let flops = args.fgram_params.map(|params| 2.0 * params as f64 * args.mean_length * args.rows as f64);
    let rate = flops.map(|_| matmul_rate()).transpose()?;
    let seconds = flops.zip(rate).map(|(flops, rate)| flops / rate);
    if args.json {
        let document = serde_json::json!({
            "bytes": planned, "build_flops": flops, "matmul_flops_per_second": rate, "build_seconds": seconds,
        });
        return Ok(super::super::print(&document.to_string())?);
    }
    let [disk, rows, index, building] = [planned.disk, planned.rows, planned.index, planned.building]
        .map(|bytes| HumanBytes(bytes).to_string());
    let mut text = format!(
        "{} rows of {}\n\
         disk                    {disk}: rows {rows}, index {index}\n\
         memory, --table-mode\n  \
           ram                   {disk}, shared by all servers of the host\n  \
           mmap                  {index} at least; every row that is kept beside it saves a read\n  \
           direct                {index} and --table-cache\n  \
           pinned                {index}, and the rows locked, {rows} for each server; a GPU reads them\n  \
           device                {index}, and {rows} of a GPU's, with the scales of its rows\n\
         memory of the build     {building}",
        HumanCount(args.rows as u64),
        HumanBytes(planned.rows / args.rows as u64)
    );
    if let Some(((flops, rate), seconds)) = flops.zip(rate).zip(seconds) {
        let time = HumanDuration(Duration::from_secs_f64(seconds.min(1e12)));
        let (work, rate) = (flops / 1e12, rate / 1e9);
        text +=
            &format!("\nbuild on this machine   {time} ({work:.0} TFLOP at the {rate:.0} GFLOP/s measured)");
    }
    Ok(super::super::print(&text)?)
}
