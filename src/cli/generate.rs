//! `scone generate`: one completion, in the terminal.

use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::sync::mpsc::UnboundedReceiver;

use super::DEFAULT_MODEL;
use super::compute::{Compute, Room};
use super::open_model::{Opened, open_model};
use super::table_mode::TableMode;
use crate::engine::{Config, Engine, Event, Request, Sampling};
use crate::tokenizer::{Decoder, Tokenizer};

/// How many tokens are generated where no number is given and so many fit.
const DEFAULT_MAX_TOKENS: usize = 128;

/// Continues a text and prints what comes, as it comes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  scone generate --prompt 'It was a dark and stormy night' --max-tokens 200 --seed 7
  scone generate --prompt - --temperature 0 < beginning.txt

The text goes to standard output and nothing else does; times go to standard error.")]
pub struct Args {
    /// A model directory in the Hugging Face layout, or a .gguf file
    #[arg(value_name = "MODEL_DIR", env = "SCONE_MODEL_DIR", default_value = DEFAULT_MODEL)]
    model: PathBuf,
    /// The text to continue; `-` reads it from standard input
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// The most tokens to generate [default: 128, or as many as the context has room for]
    #[arg(long, value_name = "N", env = "SCONE_MAX_TOKENS")]
    max_tokens: Option<usize>,
    /// 0 always takes the likeliest token; 1 samples from the model's own distribution
    #[arg(long, value_name = "T", env = "SCONE_TEMPERATURE", default_value_t = 0.8, value_parser = temperature)]
    temperature: f64,
    /// Sample from the fewest likeliest tokens that have this much probability together; 1 keeps all
    #[arg(long, value_name = "P", env = "SCONE_TOP_P", default_value_t = 0.95, value_parser = probability)]
    top_p: f64,
    /// Sample from this many of the likeliest tokens; 0 keeps all
    #[arg(long, value_name = "N", env = "SCONE_TOP_K", default_value_t = 0)]
    top_k: usize,
    /// Makes the same text again [default: another one each time]
    #[arg(long, value_name = "N", env = "SCONE_SEED")]
    seed: Option<u64>,
    /// Another table of f-gram embeddings than the directory's; refused unless it fits the model
    #[arg(long, value_name = "FILE", env = "SCONE_TABLE")]
    table: Option<PathBuf>,
    #[command(flatten)]
    table_mode: TableMode,
    #[command(flatten)]
    compute: Compute,
}

/// Runs the command.
///
/// # Errors
/// If the model cannot be loaded, the prompt does not fit, or the model fails.
pub fn run(args: &Args) -> Result<()> {
    let text = read_prompt(&args.prompt)?;
    let Opened { forward, tokenizer, info, .. } =
        open_model(&args.model, args.table.as_deref(), &args.table_mode, &args.compute, Room::Context)?;
    let engine = Engine::start(forward, Config { max_sequences: 1, ..Config::default() })?;
    let prompt = tokenizer.encode(&text)?;
    let (context, prompt_tokens) = (engine.handle().context(), prompt.len());
    ensure!(
        prompt_tokens < context,
        "the prompt has {prompt_tokens} tokens, but the model's context is {context} tokens: make it shorter"
    );
    let request = Request {
        prompt: prompt.clone(),
        max_tokens: args.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS.min(context - prompt_tokens)),
        sampling: Sampling {
            temperature: args.temperature,
            top_p: args.top_p,
            top_k: args.top_k,
            seed: args.seed,
            ..Sampling::GREEDY
        },
        min_tokens: 0,
        stop_tokens: info.stop_tokens.clone(),
        logprobs: None,
        prompt_logprobs: None,
    };
    let start = Instant::now();
    let events = engine.handle().submit(vec![request])?.pop().context("the engine took no request")?;
    let mut decoder = Decoder::new(&tokenizer);
    for &id in &prompt {
        decoder.push(id);
    }
    let Some(tokens) = print(events, decoder, &tokenizer, &info.stop_tokens)? else { return Ok(()) };
    eprintln!("{}", statistics(prompt_tokens, &tokens, start));
    Ok(())
}

fn read_prompt(prompt: &str) -> Result<String> {
    if prompt != "-" {
        return Ok(prompt.to_owned());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the prompt from standard input")?;
    Ok(text)
}

/// Prints the text as it comes; returns when each token came, or None if nobody reads the output any more.
fn print(
    mut events: UnboundedReceiver<Event>,
    mut decoder: Decoder<&Tokenizer>,
    tokenizer: &Tokenizer,
    stop_tokens: &[u32],
) -> Result<Option<Vec<Instant>>> {
    let mut out = std::io::stdout().lock();
    let mut times = Vec::new();
    loop {
        let text = match events.blocking_recv() {
            Some(Event::Started { .. } | Event::Prompt(_)) => None,
            Some(Event::Token { id, .. }) => {
                times.push(Instant::now());
                let is_silent = stop_tokens.contains(&id) || tokenizer.special_tokens().contains(&id);
                if is_silent { None } else { decoder.push(id) }
            }
            Some(Event::Done(_)) => break,
            Some(Event::Failed(failure)) => bail!(failure),
            None => return Err(anyhow!("the engine has died")),
        };
        match out.write_all(text.unwrap_or_default().as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(None),
            result => result.context("cannot write the text")?,
        }
    }
    writeln!(out, "{}", decoder.finish().unwrap_or_default())?;
    Ok(Some(times))
}

fn statistics(prompt_tokens: usize, tokens: &[Instant], start: Instant) -> String {
    let (Some(&first), Some(&last)) = (tokens.first(), tokens.last()) else {
        return format!("{prompt_tokens} prompt tokens, nothing generated");
    };
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let (count, all) = (tokens.len(), last.duration_since(start));
    // With the prompt: a small model has made several tokens before the first is seen here.
    let rate = count as f64 / all.as_secs_f64();
    let (ttft, all) = (milliseconds(first.duration_since(start)), milliseconds(all));
    format!(
        "{prompt_tokens} prompt tokens, {count} generated in {all:.0} ms ({rate:.1} tokens/s), the first after {ttft:.0} ms"
    )
}

fn temperature(text: &str) -> Result<f64, String> {
    in_range(text, 0.0..=f64::MAX, "0 or more")
}

fn probability(text: &str) -> Result<f64, String> {
    in_range(text, 0.0..=1.0, "from 0 to 1")
}

fn in_range(text: &str, range: std::ops::RangeInclusive<f64>, words: &str) -> Result<f64, String> {
    let number = text.parse().map_err(|error| format!("{error}"))?;
    if range.contains(&number) { Ok(number) } else { Err(format!("must be {words}")) }
}
