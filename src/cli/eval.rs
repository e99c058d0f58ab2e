//! `scone eval`: perplexity of a model on a text.

use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;

use super::compute::{Compute, Room};
use super::table_mode::TableMode;
use super::{DEFAULT_MODEL, progress_bar};
use crate::model::{ModelDirectory, perplexity};

/// Measure how well a model predicts a text: loss, perplexity, bits per byte, hit rate
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each token is scored once, from at least context - stride tokens before it. nll is the mean \
over the predicted tokens (all but the first), in nats, and perplexity its exponential; bits_per_byte is the sum over \
the UTF-8 bytes of the text.

Examples:
  scone eval --text book.txt
  scone eval --text book.txt --embeddings model --json   # the same from the f-gram model: how good are the rows?
  scone eval model_cards/default-baseline --text book.txt"
)]
pub struct Args {
    /// A model directory in the Hugging Face layout, or a .gguf file
    #[arg(default_value = DEFAULT_MODEL, env = "SCONE_MODEL_DIR", value_name = "MODEL_DIR")]
    model: PathBuf,
    /// A UTF-8 text file
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Another table than the directory's
    #[arg(long, env = "SCONE_TABLE", value_name = "FILE")]
    table: Option<PathBuf>,
    #[command(flatten)]
    table_mode: TableMode,
    /// Where f-grams' embeddings come from: the table, or the f-gram model on the spot
    #[arg(long, value_enum, default_value_t = Embeddings::Table, value_name = "SOURCE")]
    embeddings: Embeddings,
    #[command(flatten)]
    compute: Compute,
    /// Tokens of a window; left out: the model's context
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// Tokens from one window to the next; left out: half a window
    #[arg(long, value_name = "TOKENS")]
    stride: Option<usize>,
    /// Print one JSON document on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Embeddings {
    Table,
    Model,
}

/// Runs the command.
///
/// # Errors
/// Where the model or the text cannot be read, or the windows do not fit the model.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let bytes = std::fs::read(&args.text).with_context(|| args.text.display().to_string())?;
    let text =
        String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8 text", args.text.display()))?;
    let directory = ModelDirectory::open(&args.model)?;
    let context = args.context.unwrap_or(directory.config().max_position_embeddings);
    // Short windows are scored together.
    let runtime = args.compute.runtime(
        &directory,
        Room::Positions(context.min(directory.config().max_position_embeddings).max(1024)),
    )?;
    let table = args.table.as_deref();
    let mut model = match args.embeddings {
        Embeddings::Table => directory.load_with(args.table_mode.open(&directory, table)?, &runtime)?,
        Embeddings::Model => directory.load_without_rows(table, &runtime)?,
    };
    let tokenizer = directory.tokenizer();
    let tokens = tokenizer.encode(&text)?;
    let stride = args.stride.unwrap_or((context / 2).max(1));
    let bar = progress_bar(tokens.len() as u64, "scoring [{bar:40}] {pos}/{len} tokens {per_sec} {eta}");
    let result = perplexity(
        &mut model,
        tokenizer.special_tokens(),
        &tokens,
        text.len(),
        (context, stride),
        &mut |tokens| {
            bar.inc(tokens);
        },
    )?;
    bar.finish_and_clear();
    if args.json {
        println!("{}", serde_json::to_string(&result)?);
        return Ok(());
    }
    println!("tokens         {} ({} predicted)", result.tokens, result.predicted);
    println!("nll            {:.6} nats a token", result.nll);
    println!("perplexity     {:.4}", result.perplexity);
    println!("bits per byte  {:.4}", result.bits_per_byte);
    println!("hit rate       {:.2} %", 100.0 * result.hit_rate);
    println!("mean match     {:.3} tokens", result.mean_match);
    println!("windows        {} tokens, {} apart", result.context, result.stride);
    Ok(())
}
