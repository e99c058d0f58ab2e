//! The program: parse, set up logging, call the sub-command.

use clap::{Parser, Subcommand};
use scone::cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves SCONE language models: n-gram input embeddings kept in a table in host memory.
#[derive(Debug, Parser)]
#[command(version)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bench(cli::bench::Args),
}

fn main() -> anyhow::Result<()> {
    match Program::parse().command {
        Command::Bench(args) => cli::bench::run(&args),
    }
}
