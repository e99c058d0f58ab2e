//! `scone bench`: load on one or several servers, and how they compare.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::process::Command;

use crate::bench::{
    self, Bench, BenchError, Load, OutputTokens, Plan, Prompts, QualityText, Sampling, Slo, Source, Target,
};

const EXAMPLES: &str = "\
Examples:
  Two models, each served by this program, one request at a time and eight, with their perplexity on a book:
    scone bench --spawn baseline=model_cards/default-baseline --spawn scone=model_cards/default \\
        --concurrency 1,8 --quality book.txt
  A server that runs, under four requests a second on average, with each request logged:
    scone bench --target vllm=http://127.0.0.1:8000 --rate 4 --prompts questions.jsonl \\
        --requests-log requests.jsonl --json > report.json

Servers started by --spawn inherit the environment: SCONE_* variables configure them all.
Exits with 1 where all requests to a target failed, and with 130 after Ctrl-C.";

/// Measure completion servers under load, and compare them.
///
/// Sends streamed requests to /v1/completions and reports time to first token (TTFT), gaps between tokens (ITL),
/// time per output token (TPOT), end-to-end time (E2E) and tokens/s. Several targets take turns, with the same
/// prompts at the same times, and are compared by the ratios of paired repetitions with 95% intervals.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A server that runs: NAME=http://host:port. May be given several times.
    #[arg(long = "target", value_name = "NAME=URL", value_parser = name_and_value)]
    targets: Vec<(String, String)>,
    /// A model for this program to serve while it is measured. May be given several times; comes after --target.
    #[arg(long = "spawn", value_name = "NAME=MODEL_DIR", value_parser = name_and_value)]
    spawns: Vec<(String, String)>,
    /// The target that the others are compared with. The first if left out.
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// Closed loop: requests at a time. Several are measured one after another.
    #[arg(long, value_delimiter = ',', default_value = "1", conflicts_with = "rate")]
    concurrency: Vec<usize>,
    /// Open loop: requests a second on average (Poisson), however long the answers take. Several as above.
    #[arg(long, value_delimiter = ',')]
    rate: Vec<f64>,
    /// Requests of each repetition.
    #[arg(long, env = "SCONE_BENCH_REQUESTS", default_value_t = 32)]
    requests: usize,
    /// Repetitions: the n of the ratios.
    #[arg(long, env = "SCONE_BENCH_REPETITIONS", default_value_t = 5)]
    repetitions: usize,
    /// Requests to each target before each load, not counted.
    #[arg(long, env = "SCONE_BENCH_WARMUP", default_value_t = 4)]
    warmup: usize,
    #[command(flatten)]
    prompts: PromptArgs,
    /// Tokens to generate for each request, as 64 or 16..128: then each request has a number of its own from 16 to 128, drawn by
    /// the seed. An end of text does not stop it (ignore_eos).
    #[arg(long, env = "SCONE_BENCH_OUTPUT_TOKENS", default_value = "64", value_name = "TOKENS")]
    output_tokens: OutputTokens,
    /// Sampling temperature; 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Seed of the arrival times, of --output-tokens, of the intervals, and sent along with each request.
    #[arg(long, env = "SCONE_BENCH_SEED", default_value_t = 0)]
    seed: u64,
    /// Seconds after which a request has failed.
    #[arg(long, env = "SCONE_BENCH_TIMEOUT", default_value = "120", value_parser = seconds)]
    timeout: Duration,
    /// Seconds that a spawned server may take to be ready.
    #[arg(long, env = "SCONE_BENCH_STARTUP_TIMEOUT", default_value = "300", value_parser = seconds)]
    startup_timeout: Duration,
    /// Count goodput: requests within these milliseconds, as in ttft:200,tpot:20,e2e:3000.
    #[arg(long, value_name = "LIMITS")]
    slo: Option<Slo>,
    #[command(flatten)]
    quality: QualityArgs,
    /// Log each request as a line of JSON.
    #[arg(long, value_name = "FILE.jsonl")]
    requests_log: Option<PathBuf>,
    /// Print one JSON document instead of text.
    #[arg(long)]
    json: bool,
}

/// Where prompts come from.
#[derive(Debug, clap::Args)]
struct PromptArgs {
    /// Prompts as JSONL, of each line the first that exists of `prompt`, `text`, `question` and `turns`.
    #[arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["prompt_tokens", "text", "tokenizer"])]
    prompts: Option<PathBuf>,
    /// Prompts from the file are cut to this many characters, to fit small contexts.
    #[arg(long, default_value_t = 600)]
    max_prompt_chars: usize,
    /// Without --prompts: tokens of each prompt; a word counts as 4/3 tokens unless --tokenizer is given.
    #[arg(long, default_value_t = 64)]
    prompt_tokens: usize,
    /// Text to cut such prompts from. A short built-in one if left out.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// The targets' tokenizer.json: prompts of exactly that length, sent as token ids.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

/// What quality is measured on.
#[derive(Debug, clap::Args)]
struct QualityArgs {
    /// A text to measure each target's perplexity on, through its endpoint (echo and logprobs).
    #[arg(long, value_name = "FILE")]
    quality: Option<PathBuf>,
    /// Characters of each piece of that text; a piece must fit the context.
    #[arg(long, default_value_t = 800)]
    quality_chars: usize,
    /// Pieces at most, evenly spread over the text.
    #[arg(long, default_value_t = 64)]
    quality_limit: usize,
}

/// Measures as the arguments say and prints the report.
///
/// # Errors
/// Where it cannot be measured, or all requests to a target failed.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let bench = bench(args)?;
    if !std::io::stderr().is_terminal() {
        eprintln!("measuring {} targets; prompts: {}", bench.targets.len(), bench.prompts.source);
    }
    // One thread: the servers are often on the same machine and need the others.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let progress = progress();
    let outcome = runtime.block_on(bench::run(bench, &progress));
    progress.finish_and_clear();
    let report = match outcome {
        Err(BenchError::Interrupted) => {
            eprintln!("interrupted; nothing is reported");
            std::process::exit(130);
        }
        outcome => outcome?,
    };
    let mut stdout = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut stdout, &report)?;
        writeln!(stdout)?;
    } else {
        write!(stdout, "{report}")?;
    }
    if report.all_failed() {
        bail!("all requests to a target failed");
    }
    Ok(())
}

fn bench(args: &Args) -> anyhow::Result<Bench> {
    let count = args.requests.saturating_mul(args.repetitions).saturating_add(args.warmup);
    Ok(Bench {
        targets: targets(args)?,
        baseline: args.baseline.clone(),
        plan: Plan {
            loads: if args.rate.is_empty() {
                args.concurrency.iter().map(|&concurrency| Load::Closed { concurrency }).collect()
            } else {
                args.rate.iter().map(|&rate| Load::Open { rate }).collect()
            },
            requests: args.requests,
            repetitions: args.repetitions,
            warmup: args.warmup,
            seed: args.seed,
            slo: args.slo,
        },
        prompts: prompts(&args.prompts, count)?,
        sampling: Sampling {
            output_tokens: args.output_tokens,
            temperature: args.temperature,
            seed: args.seed,
            timeout: args.timeout,
        },
        quality: quality(&args.quality)?,
        requests_log: args.requests_log.clone(),
        startup: args.startup_timeout,
    })
}

fn targets(args: &Args) -> anyhow::Result<Vec<Target>> {
    let urls = args.targets.iter().map(|(name, url)| (name, Source::Url(url.clone())));
    let mut targets: Vec<(&String, Source)> = urls.collect();
    for (name, model) in &args.spawns {
        let this = std::env::current_exe().context("could not find this program's own file to start it")?;
        let mut command = Command::new(this);
        command.args(["serve", model, "--listen", "127.0.0.1:0"]);
        targets.push((name, Source::Program(command)));
    }
    Ok(targets.into_iter().map(|(name, source)| Target { name: name.clone(), source }).collect())
}

fn prompts(args: &PromptArgs, count: usize) -> Result<Prompts, BenchError> {
    match &args.prompts {
        Some(path) => Prompts::from_jsonl(path, args.max_prompt_chars),
        None => {
            Prompts::of_length(args.prompt_tokens, count, args.text.as_deref(), args.tokenizer.as_deref())
        }
    }
}

fn quality(args: &QualityArgs) -> anyhow::Result<Option<QualityText>> {
    let Some(path) = &args.quality else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))?;
    Ok(Some(QualityText { text, piece_chars: args.quality_chars, limit: args.quality_limit }))
}

fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} (left: {eta}) {msg}");
    ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err("it must be a name, '=' and a value".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it must be a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
