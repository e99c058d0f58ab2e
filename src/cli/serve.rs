//! `scone serve`: completions over HTTP.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use indicatif::{HumanBytes, HumanCount};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::DEFAULT_MODEL;
use super::bytes::parse_bytes;
use super::compute::{Compute, Room};
use super::log::Logging;
use super::open_model::{ModelInfo, Opened, open_model};
use super::table_mode::TableMode;
use super::table_watch::{reload_on_hangup, watch};
use crate::engine::{Config, Engine, EngineHandle};
use crate::kernels::simd::Level;
use crate::model::LiveTable;
use crate::server::{self, App, Chat, ModelCard, Observe};
use crate::table::MetricsSnapshot;

/// Serves a model over HTTP, with OpenAI's completion endpoint.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  scone serve --listen 0.0.0.0:8080
  curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' \\
    -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 50}'

It prints `listening on http://ADDRESS:PORT` on standard output once requests are served. On SIGTERM or Ctrl-C it takes no
more connections, finishes the answers under way (for at most five seconds) and exits with 0.

On SIGHUP, or `curl -X POST http://127.0.0.1:8080/admin/table` from the same machine, it opens the table's file again and
goes on with it if it fits the model; no request is dropped. To replace a table, move the new file over the old one; never
write into a file that is being served. With `-d '{\"path\": \"FILE\"}'` and a JSON content type another file is taken.")]
pub struct Args {
    /// A model directory in the Hugging Face layout, or a .gguf file
    #[arg(value_name = "MODEL_DIR", env = "SCONE_MODEL_DIR", default_value = DEFAULT_MODEL)]
    model: PathBuf,
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, env = "SCONE_LISTEN", default_value = "127.0.0.1:8080")]
    listen: String,
    /// Another table of f-gram embeddings than the directory's; refused unless it fits the model
    #[arg(long, value_name = "FILE", env = "SCONE_TABLE")]
    table: Option<PathBuf>,
    #[command(flatten)]
    table_mode: TableMode,
    /// The name that clients use for the model [default: the directory's or file's]
    #[arg(long, value_name = "NAME", env = "SCONE_MODEL_NAME")]
    model_name: Option<String>,
    /// Sequences that run at a time, as far as there is memory for their keys and values
    #[arg(long, value_name = "N", env = "SCONE_MAX_SEQUENCES", default_value_t = 64, value_parser = at_least_one)]
    max_sequences: usize,
    /// Sequences that may wait for a place; beyond them requests are answered with 429
    #[arg(long, value_name = "N", env = "SCONE_MAX_QUEUE", default_value_t = 256, value_parser = at_least_one)]
    max_queue: usize,
    /// Memory for keys and values, as 2GiB, taken at the start: sequences share it in blocks of 16 tokens as they grow, and when it runs out the
    /// youngest waits and is computed again [default: 1 GiB, or what a sequence of the whole
    /// context needs if that is more, but at most a quarter of the machine's]
    #[arg(long, value_name = "SIZE", env = "SCONE_KV_MEMORY", value_parser = parse_bytes)]
    kv_memory: Option<u64>,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    steps: Steps,
    #[command(flatten)]
    logging: Logging,
    /// Send a span of each request to the OpenTelemetry collector at this address, as OTLP over HTTP; only in programs
    /// that were built with `--features otel`
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
}

/// What a step of the engine does.
#[derive(Debug, clap::Args)]
struct Steps {
    /// Tokens that one step computes at most; longer prompts are read in several, between which the others go on
    #[arg(long, value_name = "N", env = "SCONE_MAX_BATCH_TOKENS", default_value_t = 512, value_parser = at_least_one)]
    max_batch_tokens: usize,
    /// Tokens that one step reads while others generate, for each prompt that waits [default: as many as make a step take
    /// twice as long as without, by what steps are measured to cost]
    #[arg(long, value_name = "N", env = "SCONE_PREFILL_CHUNK", value_parser = at_least_one)]
    prefill_chunk: Option<usize>,
    /// Compute each prompt anew, even where an earlier one began with the same tokens
    #[arg(long, env = "SCONE_NO_PREFIX_CACHE")]
    no_prefix_cache: bool,
    /// Guess up to so many tokens ahead from what a text repeats of itself, and check them in one step; what is generated
    /// stays the same. 0 guesses none
    #[arg(long, value_name = "N", env = "SCONE_SPECULATE", default_value_t = 0)]
    speculate: usize,
}

/// Runs the command.
///
/// # Errors
/// If the address cannot be listened on or the model cannot be loaded.
pub fn run(args: &Args) -> Result<()> {
    args.logging.start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Before the model is loaded: that the port is taken should not have to be waited for.
    let listener = runtime.block_on(TcpListener::bind(&args.listen)).with_context(|| {
        format!("cannot listen on {}: choose another address or a free port with --listen", args.listen)
    })?;
    let room = Room::Sequences { most: args.max_sequences, memory: args.kv_memory };
    let Opened { forward, tokenizer, table, info } =
        open_model(&args.model, args.table.as_deref(), &args.table_mode, &args.compute, room)?;
    let config = Config {
        max_sequences: args.max_sequences,
        max_batch_tokens: args.steps.max_batch_tokens,
        prefill_chunk: args.steps.prefill_chunk,
        max_queue: args.max_queue,
        prefix_cache: !args.steps.no_prefix_cache,
        speculate: args.steps.speculate,
    };
    let engine = Engine::start(forward, config).context("cannot start the engine")?;
    let card = ModelCard {
        id: args.model_name.clone().unwrap_or_else(|| directory_name(&args.model)),
        created: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    eprint!("{}", describe(&card.id, &info, table.as_deref(), &engine.handle(), args.max_sequences));
    let stop_tokens = info.stop_tokens;
    let observe = observe(args.otlp_endpoint.as_deref(), &card.id)?;
    let tokenizer = Arc::new(tokenizer);
    let app = App {
        engine: engine.handle(),
        tokenizer,
        chat: Chat::new(info.tokenizer),
        card,
        table: table.clone(),
        stop_tokens,
        observe: Arc::clone(&observe),
    };
    runtime.block_on(serve(listener, app))?;
    tracing::info!("engine: {}", engine.handle().counters());
    if let Some(live) = &table {
        tracing::info!("{}", summary(&live.get().metrics().snapshot()));
    }
    // What is not finished by now has had its time.
    runtime.shutdown_background();
    observe.finish();
    Ok(())
}

/// What is counted and logged, and where traces go, if anywhere.
#[cfg(feature = "otel")]
fn observe(endpoint: Option<&str>, model: &str) -> Result<Arc<Observe>> {
    let Some(endpoint) = endpoint else { return Ok(Observe::new()) };
    // The client that sends them asks for a provider of TLS even where it uses none; who set one before is right too.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let traces = server::Traces::start(endpoint, model.to_owned())
        .map_err(anyhow::Error::from_boxed)
        .with_context(|| format!("cannot send traces to {endpoint}"))?;
    Ok(Observe::with_traces(traces))
}

/// What is counted and logged.
#[cfg(not(feature = "otel"))]
#[expect(clippy::unnecessary_wraps, reason = "with traces it can fail")]
fn observe(endpoint: Option<&str>, _model: &str) -> Result<Arc<Observe>> {
    if endpoint.is_some() {
        tracing::warn!("no traces are sent: this program was built without the feature `otel`");
    }
    Ok(Observe::new())
}

async fn serve(listener: TcpListener, app: App) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        eprintln!("stopping: finishing the answers under way");
    };
    // Taken by a baseline too, which has nothing to reload: by default the signal would end it.
    let hangup = signal(SignalKind::hangup())?;
    if let Some(live) = app.table.clone() {
        tokio::spawn(watch(Arc::clone(&live)));
        tokio::spawn(reload_on_hangup(live, hangup));
    }
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on http://{}", listener.local_addr()?)?;
    stdout.flush()?;
    Ok(server::run(listener, app, shutdown).await?)
}

/// What the table was asked for, in a line.
fn summary(metrics: &MetricsSnapshot) -> String {
    let positions = HumanCount(metrics.positions.iter().sum());
    let [cache, memory, disk] = [metrics.rows_cache, metrics.rows_memory, metrics.rows_disk].map(HumanCount);
    format!(
        "table: {positions} tokens, hit rate {:.1} %; rows from the cache {cache}, memory {memory}, disk {disk}; {:.3} s \
         looking up, {:.3} s gathering",
        100.0 * metrics.hit_rate,
        metrics.lookup_seconds,
        metrics.gather_seconds
    )
}

fn describe(
    name: &str,
    info: &ModelInfo,
    table: Option<&LiveTable>,
    engine: &EngineHandle,
    sequences: usize,
) -> String {
    let ModelInfo { parameters, layers, width, weight_bytes, kv_bytes, kv_positions, threads, .. } = info;
    let (parameters, vocabulary) = (HumanCount(*parameters as u64), HumanCount(engine.vocab_size() as u64));
    let context = HumanCount(engine.context() as u64);
    let table = match table {
        None => "none: token embeddings only".to_owned(),
        Some(live) => {
            let table = live.get();
            let (rows, bytes) = (HumanCount(table.len() as u64), HumanBytes(table.bytes()));
            let (mode, residence) = (live.placement(), table.residence());
            format!("{rows} rows of {}, {bytes}; {mode}: {residence}", table.row_type())
        }
    };
    let positions = HumanCount(*kv_positions as u64);
    let [weights, kv] = [*weight_bytes, *kv_bytes].map(HumanBytes);
    format!(
        "model   {name}: {parameters} parameters, {layers} layers of width {width}, {vocabulary} tokens, context {context}\n\
         table   {table}\n\
         memory  weights {weights}, keys and values up to {kv}: {positions} tokens of up to {sequences} sequences\n\
         compute {} on {threads} threads\n",
        Level::best().name()
    )
}

/// The last part of a model's path, without the ending of a GGUF file.
fn directory_name(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name =
        if full.extension().is_some_and(|end| end == "gguf") { full.file_stem() } else { full.file_name() };
    name.map_or_else(|| "default".into(), |name| name.to_string_lossy().into_owned())
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}
