//! The program: parse, set up logging, call the sub-command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use scone::cli::{bench, eval, explain, generate, log, serve, table};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves SCONE language models: n-gram input embeddings kept in a table in host memory.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, for the length of the program")]
enum Command {
    Serve(serve::Args),
    Generate(generate::Args),
    Explain(explain::Args),
    Eval(eval::Args),
    Table(table::Args),
    Bench(bench::Args),
}

/// A server is told how to log, and starts it itself; the other commands log as little as they always do.
fn start_logging(command: &Command) -> anyhow::Result<Option<log::WorkerGuard>> {
    match command {
        Command::Serve(_) => Ok(None),
        _ => log::Logging::default().start().map(Some),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = start_logging(&cli.command).and_then(|_log| match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Table(args) => table::run(&args),
        Command::Bench(args) => bench::run(&args),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
