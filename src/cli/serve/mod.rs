//! `scone serve`: completions over HTTP.

mod access;
mod admission;
mod config_file;
mod describe;
mod stopping;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::FromArgMatches;
use clap::builder::BoolishValueParser;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::DEFAULT_MODEL;
use super::bytes::parse_bytes;
use super::compute::{Compute, Room};
use super::log::Logging;
use super::open_model::{Opened, open_model};
use super::table_mode::TableMode;
use super::table_watch::{reload_on_hangup, watch};
use crate::engine::{Config, Engine};
use crate::model::LiveTable;
use crate::server::{self, App, Chat, Guard, ModelCard, Observe};
use access::AccessArgs;
use admission::Admission;
use describe::{describe, directory_name, summary};
use stopping::{StopSignals, StoppingArgs};

/// Serves a model over HTTP, with OpenAI's completion endpoint.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  scone serve --listen 0.0.0.0:8080
  curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' \\
    -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 50}'

It prints `listening on http://ADDRESS:PORT` on standard output once requests are served; until then /ready and all others
answer 503. On SIGTERM or Ctrl-C /ready says 503; then (--shutdown-delay) no more requests are taken; the answers under way
are finished (--drain-timeout), and it exits with 0. A second signal ends it at once.

Each flag can also be a variable of the environment or a line of a TOML file (--config): `max-queue = 100`. Flags come before
variables, variables before the file. `--print-config` shows what holds, as such a file.

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
    /// Memory for keys and values, as 2GiB, taken at the start: sequences share it in blocks of 16 tokens as they grow, and when it runs out the
    /// youngest waits and is computed again [default: 1 GiB, or what a sequence of the whole
    /// context needs if that is more, but at most a quarter of the machine's; on a GPU all that is left, up to --max-sequences whole contexts]
    #[arg(long, value_name = "SIZE", env = "SCONE_KV_MEMORY", value_parser = parse_bytes)]
    kv_memory: Option<u64>,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    steps: Steps,
    #[command(flatten)]
    admission: Admission,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    stopping: StoppingArgs,
    #[command(flatten)]
    logging: Logging,
    /// Send a span of each request to the OpenTelemetry collector at this address, as OTLP over HTTP; only in programs
    /// that were built with `--features otel`
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// A TOML file with a line for each flag that is wanted, under the same name
    #[arg(long, value_name = "FILE", env = "SCONE_CONFIG", help_heading = "Configuration")]
    config: Option<PathBuf>,
    /// Print the configuration that holds, as TOML for --config, and exit
    #[arg(long, help_heading = "Configuration")]
    print_config: bool,
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
    #[arg(long, env = "SCONE_NO_PREFIX_CACHE", value_parser = BoolishValueParser::new())]
    no_prefix_cache: bool,
    /// Guess up to so many tokens ahead from what a text repeats of itself, and check them in one step; what is generated
    /// stays the same. 0 guesses none
    #[arg(long, value_name = "N", env = "SCONE_SPECULATE", default_value_t = 0)]
    speculate: usize,
}

/// Runs the command: with `args`, and what a configuration file adds to them.
///
/// # Errors
/// If the configuration is wrong, the address cannot be listened on or the model cannot be loaded.
pub fn run(args: &Args) -> Result<()> {
    let command = <Args as clap::Args>::augment_args(clap::Command::new("serve"));
    // What clap has read into `args`: the sub-command's name and all after it.
    let given: Vec<OsString> = std::env::args_os().skip(1).collect();
    let matches = config_file::effective(&command, &given, args.config.as_deref())?;
    let effective = Args::from_arg_matches(&matches)?;
    check_endpoint(effective.otlp_endpoint.as_deref())?;
    if args.print_config {
        return Ok(super::print(config_file::to_toml(&command, &matches).trim_end())?);
    }
    effective.start()
}

/// Refuses an address with a password in it, which would be shown wherever the address is. The message does not.
fn check_endpoint(endpoint: Option<&str>) -> Result<()> {
    let authority = endpoint.and_then(|endpoint| endpoint.split_once("://")?.1.split('/').next());
    ensure!(
        authority.is_none_or(|authority| !authority.contains('@')),
        "--otlp-endpoint has a user or a password in it: headers for the collector belong into OTEL_EXPORTER_OTLP_HEADERS"
    );
    Ok(())
}

impl Args {
    fn start(&self) -> Result<()> {
        let _log = self.logging.start()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let guard = Guard::new(self.admission.limits(), self.access.open()?, self.stopping.stopping());
        // Before the model is loaded: that the port is taken should not have to be waited for.
        let listener = runtime.block_on(TcpListener::bind(&self.listen)).with_context(|| {
            format!("cannot listen on {}: choose another address or a free port with --listen", self.listen)
        })?;
        let scheme = if guard.is_encrypted() { "https" } else { "http" };
        let address = format!("{scheme}://{}", listener.local_addr()?);
        let guard = Arc::new(guard);
        let (loaded, loading) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let served = runtime.spawn(server::run_when_loaded(
            listener,
            Arc::clone(&guard),
            async { loading.await.ok() },
            async {
                let _ = stopped.await;
            },
        ));
        let signals = runtime.block_on(async { StopSignals::new() })?;
        // Taken by a baseline too, which has nothing to reload: by default the signal would end it.
        let hangup = runtime.block_on(async { signal(SignalKind::hangup()) })?;
        let (ready, is_ready) = oneshot::channel();
        let signals = runtime.spawn(signals.unless_loading(async {
            let _ = is_ready.await;
        }));
        let (engine, app) = self.load(Arc::clone(&guard))?;
        let _ = ready.send(());
        let signals = runtime.block_on(signals)?;
        let (table, observe) = (app.table.clone(), Arc::clone(&app.observe));
        // They fail only if the server has ended, which the last of these says.
        let _ = loaded.send(app);
        runtime.block_on(until_stopped(&address, &guard, table.clone(), signals, hangup))?;
        let _ = stop.send(());
        runtime.block_on(served)?;
        tracing::info!("engine: {}", engine.handle().counters());
        if let Some(live) = &table {
            tracing::info!("{}", summary(&live.get().metrics().snapshot()));
        }
        // What is not finished by now has had its time.
        runtime.shutdown_background();
        observe.finish();
        Ok(())
    }

    /// Loads the model and starts the engine.
    fn load(&self, guard: Arc<Guard>) -> Result<(Engine, App)> {
        let room = Room::Sequences { most: self.max_sequences, memory: self.kv_memory };
        let Opened { forward, tokenizer, table, info } =
            open_model(&self.model, self.table.as_deref(), &self.table_mode, &self.compute, room)?;
        let config = Config {
            max_sequences: self.max_sequences,
            max_batch_tokens: self.steps.max_batch_tokens,
            prefill_chunk: self.steps.prefill_chunk,
            max_queue: self.admission.max_queue,
            max_queue_tokens: self.admission.max_queue_tokens.unwrap_or(usize::MAX),
            queue_timeout: self.admission.queue_timeout(),
            prefix_cache: !self.steps.no_prefix_cache,
            speculate: self.steps.speculate,
        };
        let engine = Engine::start(forward, config).context("cannot start the engine")?;
        let card = ModelCard {
            id: self.model_name.clone().unwrap_or_else(|| directory_name(&self.model)),
            created: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        };
        let observe = observe(self.otlp_endpoint.as_deref(), &card.id)?;
        let described = describe(&card.id, &info, table.as_deref(), &engine.handle(), self.max_sequences);
        described.lines().for_each(|line| tracing::info!("{line}"));
        let app = App {
            engine: engine.handle(),
            tokenizer: Arc::new(tokenizer),
            chat: Chat::new(info.tokenizer),
            card,
            table,
            stop_tokens: info.stop_tokens,
            observe,
            guard,
        };
        Ok((engine, app))
    }
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

/// Says that requests are served, looks after the table, and waits for a signal to stop.
async fn until_stopped(
    address: &str,
    guard: &Guard,
    table: Option<Arc<LiveTable>>,
    signals: StopSignals,
    hangup: Signal,
) -> Result<()> {
    if let Some(live) = table {
        tokio::spawn(watch(Arc::clone(&live)));
        tokio::spawn(reload_on_hangup(live, hangup));
    }
    guard.opened().await;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {address}")?;
    stdout.flush()?;
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!("systemd could not be told that the server is ready: {error}");
    }
    signals.stop().await;
    Ok(())
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}
