//! `scone-train measure`: what a finished run came to.

mod measured;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};

use self::measured::{Measured, Text};
use super::device::DeviceFlag;
use super::print;
use crate::kernels::Pool;
use crate::model::Runtime;
use crate::table::{Placement, RowType};
use crate::train::Results;

/// Measure a finished run: quality on texts, and what the model and its training cost
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Scores RUN_DIR/model, as it is served, on each text as `scone eval` does (windows of the whole context, half \
of one apart) and on the windows of the validation split on which the run validated, counts what the model and the run \
cost, and writes everything to RUN_DIR/results.json. A SCONE model without a table gets it first, as by `scone table \
build`.

word_perplexity is by the words between white space and one for each line's end, as WikiText's is. \
inference_flops are those of the main model's forward pass for a token at the end of its context; training_flops those of forward and \
backward, with the f-grams that the batches really held.

Example:
  scone-train measure runs/scone --text books=held-out.txt --text wikitext=wiki.valid.raw"
)]
pub struct Args {
    /// What `fit` wrote
    #[arg(env = "SCONE_RUN_DIR", value_name = "RUN_DIR")]
    run: PathBuf,
    /// A UTF-8 text file and what the results call it; may be given several times
    #[arg(long, value_name = "NAME=FILE", value_parser = parse_text)]
    text: Vec<(String, PathBuf)>,
    /// Another table than the model's own
    #[arg(long, env = "SCONE_TABLE", value_name = "FILE")]
    table: Option<PathBuf>,
    /// How the rows of a table that is built are stored: f32, f16, bf16, int8 or int4
    #[arg(long, env = "SCONE_ROW_DTYPE", default_value = "int8", value_name = "TYPE")]
    row_dtype: RowType,
    /// Remove the table afterwards if it had to be built
    #[arg(long)]
    discard_table: bool,
    /// Where the dataset is, if not where the run's config.toml has it; of a mixture all of them, in the run's order
    #[arg(long, env = "SCONE_DATASET", value_name = "DATASET", value_delimiter = ',')]
    dataset: Vec<PathBuf>,
    /// Where the f-gram set is, if not where the run's config.toml has it
    #[arg(long, env = "SCONE_FGRAMS", value_name = "FILE")]
    fgrams: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceFlag,
    /// Print the results as one JSON document on standard output
    #[arg(long)]
    json: bool,
}

fn parse_text(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => Ok((name.to_owned(), file.into())),
        _ => Err(format!("`{text}` is not NAME=FILE")),
    }
}

/// Runs the command.
///
/// # Errors
/// Where the run is not finished, or its dataset, set or a text cannot be read.
pub fn run(args: &Args) -> Result<()> {
    let measured = Measured::open(args)?;
    let texts = args.text.iter().map(|(name, path)| Ok((name, path, Text::read(path)?)));
    let texts = texts.collect::<Result<Vec<_>>>()?;
    let device = args.device.open()?;
    let (table, built) = measured.table(args, &device)?;
    let live = measured.directory.live_table(table.as_deref(), Placement::default(), &mut |_, _| ())?;
    let (row_type, table_bytes) = match &live {
        Some(live) => (Some(live.get().row_type().to_string()), live.get().bytes()),
        None => (None, 0),
    };
    let context = measured.config.model.context;
    let pool = Pool::new(rayon::current_num_threads()).context("cannot start the threads that compute")?;
    let mut runtime = Runtime::new(Arc::new(pool), context.max(1024));
    runtime.device = device;
    runtime.kv_type = measured.directory.kv_type(None);
    let mut model = measured.directory.load_with(live, &runtime)?;
    let validation = measured.validate(&mut model)?;
    let mut scores = BTreeMap::new();
    for (name, path, text) in texts {
        scores.insert(name.clone(), measured.score(&mut model, path, &text)?);
    }
    drop(model);
    if built && args.discard_table {
        table.map_or(Ok(()), |path| std::fs::remove_file(&path).context(path.display().to_string()))?;
    }
    let results = measured.results(row_type, table_bytes, validation, scores)?;
    results.write(&args.run)?;
    if args.json { Ok(print(&serde_json::to_string(&results)?)?) } else { report(&results) }
}

fn report(results: &Results) -> Result<()> {
    let Results { validation, costs, parameters, history, .. } = results;
    let mut text = format!(
        "parameters       {} (without the embedding {}), f-gram model {}\n\
         trained on       {} tokens, {:.0} s, {:.0} tokens/s\n\
         inference        {:.4e} operations a token at {} positions\n\
         weights, table   {} and {} bytes\n\
         training         {:.4e} operations, {:.1} % of them the f-gram model's\n\
         {:<16} loss {:.4}, perplexity {:.2}, hit rate {:.1} %, mean match {:.2}",
        parameters.main,
        parameters.non_embedding,
        parameters.fgram,
        history.tokens,
        history.seconds,
        history.tokens_per_second,
        costs.inference_flops,
        costs.context,
        costs.accelerator_bytes,
        costs.table_bytes,
        costs.training_flops,
        100.0 * costs.fgram_training_flops / costs.training_flops,
        "validation",
        validation.loss,
        validation.perplexity,
        100.0 * validation.hit_rate,
        validation.mean_match
    );
    for (name, found) in &results.texts {
        text += &format!(
            "\n{name:<16} perplexity {:.2}, bits per byte {:.4}, by the word {:.2}, hit rate {:.1} %, mean match {:.2}",
            found.perplexity,
            found.bits_per_byte,
            found.word_perplexity,
            100.0 * found.hit_rate,
            found.mean_match
        );
    }
    Ok(print(&text)?)
}
