//! `scone eval`: perplexity of a model on a text, and likelihoods as lm-eval asks for them.

mod harness;
mod pairs;
mod rolling;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::ValueEnum;

use super::compute::{Compute, Room};
use super::table_mode::TableMode;
use super::{DEFAULT_MODEL, print, progress_bar};
use crate::model::{Likelihood, Model, ModelDirectory, likelihoods, perplexity};
use harness::{json_lines, read_text};
use pairs::{Pair, Scored};

/// Measure how well a model predicts a text: loss, perplexity, bits per byte, hit rate
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each token is scored once, from at least context - stride tokens before it. nll is the mean \
over the predicted tokens (all but the first), in nats, and perplexity its exponential; bits_per_byte is the sum over \
the UTF-8 bytes of the text.

--rolling scores each document as lm-eval's loglikelihood_rolling does: after an end-of-text token, in windows that share one
token, each token once; FILE may be JSON lines with a `text` each. --pairs scores JSON lines with `context` and
`continuation`, as its loglikelihood does, and prints a line {\"loglikelihood\", \"is_greedy\", \"tokens\"} for each. Both
take --context TOKENS for lm-eval's max_length; what its local-completions reads with max_length M, they read with M - 2.

Examples:
  scone eval --text book.txt
  scone eval --text book.txt --embeddings model --json   # the same from the f-gram model: how good are the rows?
  scone eval model_cards/default-baseline --text book.txt
  scone eval --text wikitext.jsonl --rolling"
)]
pub struct Args {
    /// A model directory in the Hugging Face layout, or a .gguf file
    #[arg(default_value = DEFAULT_MODEL, env = "SCONE_MODEL_DIR", value_name = "MODEL_DIR")]
    model: PathBuf,
    /// A UTF-8 text file
    #[arg(long, value_name = "FILE", required_unless_present = "pairs")]
    text: Option<PathBuf>,
    /// Score as lm-eval's loglikelihood_rolling does
    #[arg(long, conflicts_with_all = ["pairs", "stride"])]
    rolling: bool,
    /// Score continuations after their contexts, as lm-eval's loglikelihood does
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "stride"])]
    pairs: Option<PathBuf>,
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
pub fn run(args: &Args) -> Result<()> {
    let input = Input::read(args)?;
    let directory = ModelDirectory::open(&args.model)?;
    let most = directory.config().max_position_embeddings;
    let context = args.context.unwrap_or(most);
    let mut model = load(args, &directory, context.min(most))?;
    match input {
        Input::Pairs(pairs) => score_pairs(&mut model, &directory, &pairs, context),
        Input::Documents(documents) => score_rolling(&mut model, &directory, &documents, context, args.json),
        Input::Text(text) => score_text(args, &mut model, &directory, &text, context),
    }
}

/// What is to be scored.
enum Input {
    Text(String),
    Documents(Vec<String>),
    Pairs(Vec<Pair>),
}

impl Input {
    fn read(args: &Args) -> Result<Self> {
        match (&args.pairs, &args.text) {
            (Some(pairs), _) => Ok(Self::Pairs(json_lines(pairs)?)),
            (None, Some(text)) if args.rolling => Ok(Self::Documents(rolling::documents(text)?)),
            (None, Some(text)) => Ok(Self::Text(read_text(text)?)),
            (None, None) => anyhow::bail!("there is nothing to score: say --text or --pairs"),
        }
    }
}

/// The model, with room for windows of so many tokens: short ones are scored together.
fn load(args: &Args, directory: &ModelDirectory, context: usize) -> Result<Model> {
    let (table, room) = (args.table.as_deref(), Room::Positions(context.max(1024)));
    Ok(match args.embeddings {
        Embeddings::Table => {
            let live = args.table_mode.open(directory, table)?;
            let runtime = args.compute.runtime(directory, live.as_deref(), room)?;
            directory.load_with(live, &runtime)?
        }
        Embeddings::Model => {
            directory.load_without_rows(table, &args.compute.runtime(directory, None, room)?)?
        }
    })
}

fn score_pairs(model: &mut Model, directory: &ModelDirectory, pairs: &[Pair], context: usize) -> Result<()> {
    let spans = pairs::spans(directory.tokenizer(), pairs, context)?;
    let bar = progress_bar(spans.len() as u64, "scoring [{bar:40}] {pos}/{len} pairs {eta}");
    let found = likelihoods(model, &spans, &mut |pairs| bar.inc(pairs))?;
    bar.finish_and_clear();
    for (span, Likelihood { log, is_greedy }) in spans.iter().zip(found) {
        print(&serde_json::to_string(&Scored { loglikelihood: log, is_greedy, tokens: span.scored })?)?;
    }
    Ok(())
}

fn score_rolling(
    model: &mut Model,
    directory: &ModelDirectory,
    documents: &[String],
    context: usize,
    json: bool,
) -> Result<()> {
    ensure!(context > 0, "--context must be at least 1");
    let bar = progress_bar(documents.len() as u64, "scoring [{bar:40}] {pos}/{len} documents {eta}");
    let found = rolling::rolling(model, directory.tokenizer(), documents, context, &mut |documents| {
        bar.inc(documents);
    })?;
    bar.finish_and_clear();
    if json {
        println!("{}", serde_json::to_string(&found)?);
    } else {
        found.print();
    }
    Ok(())
}

fn score_text(
    args: &Args,
    model: &mut Model,
    directory: &ModelDirectory,
    text: &str,
    context: usize,
) -> Result<()> {
    let tokenizer = directory.tokenizer();
    let tokens = tokenizer.encode(text)?;
    let stride = args.stride.unwrap_or((context / 2).max(1));
    let bar = progress_bar(tokens.len() as u64, "scoring [{bar:40}] {pos}/{len} tokens {per_sec} {eta}");
    let result = perplexity(
        model,
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
