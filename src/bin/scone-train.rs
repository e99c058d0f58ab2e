//! The program: parse, set up logging, call the sub-command.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use scone::cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Prepare text, mine its frequent n-grams, and train SCONE language models.
#[derive(Debug, Parser)]
#[command(name = "scone-train", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// How many threads to use; 0: one for each processor
    #[arg(long, global = true, env = "SCONE_THREADS", default_value_t = 0, value_name = "N")]
    threads: usize,
    /// What to log on standard error: error, warn, info, debug, or a filter such as scone=debug
    #[arg(long, global = true, env = "SCONE_LOG", default_value = "info", value_name = "FILTER")]
    log: tracing_subscriber::EnvFilter,
}

#[derive(Debug, Subcommand)]
enum Command {
    Prepare(cli::prepare::Args),
    Mine(cli::mine::Args),
    Tag(cli::tag::Args),
    Fit(cli::fit::Args),
    Measure(cli::measure::Args),
    Card(cli::card::Args),
    Compare(cli::compare::Args),
    Synthesize(cli::synthesize::Args),
}

fn main() -> ExitCode {
    // candle adds up gradients with a pool of threads of its own, beside rayon's: its waiting takes 12 % of a step.
    // SAFETY: this is the program's first line, so no other thread reads the environment.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    let Arguments { command, threads, log } = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(log)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let result = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(anyhow::Error::from)
        .and_then(|()| match command {
            Command::Prepare(args) => cli::prepare::run(&args),
            Command::Mine(args) => cli::mine::run(&args),
            Command::Tag(args) => cli::tag::run(&args),
            Command::Fit(args) => cli::fit::run(&args),
            Command::Measure(args) => cli::measure::run(&args),
            Command::Card(args) => cli::card::run(&args),
            Command::Compare(args) => cli::compare::run(&args),
            Command::Synthesize(args) => cli::synthesize::run(&args),
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if cli::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
