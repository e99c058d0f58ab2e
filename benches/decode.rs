//! How fast a model decodes and reads a prompt, in the cases that llama.cpp's own benchmarks measure: what
//! `benches/peers/llama_cpp.py` holds against it.
//!
//! `cargo bench --bench decode -- MODEL [--threads 2] [--json]`. Tokens/s of all sequences together; the tokens are those
//! of a real text and nothing is sampled.

mod machine;
mod sequences;

use std::path::PathBuf;

use clap::Parser;
use machine::median;
use scone::engine::Forward;
use sequences::Sequences;

// As in the programs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
struct Arguments {
    /// The model.
    model: PathBuf,
    /// Threads; 0: one for each processor.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Times that each case is measured.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Tokens that each sequence decodes in a measurement.
    #[arg(long, default_value_t = 32)]
    tokens: usize,
    /// Print one JSON document with every measurement.
    #[arg(long)]
    json: bool,
    /// Said by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Name, sequences, and the tokens that each has in the cache before.
const DECODE: [(&str, usize, usize); 3] = [
    ("decode 1 sequence at 128", 1, 128),
    ("decode 8 sequences at 128", 8, 128),
    ("decode 1 sequence at 2048", 1, 2048),
];
const PREFILL: (&str, usize) = ("prefill of 512", 512);

/// Tokens a second of each repetition, after one that is not counted.
fn decode(
    model: &mut impl Forward,
    text: &[u32],
    (count, past): (usize, usize),
    arguments: &Arguments,
) -> Vec<f64> {
    let end = past + arguments.tokens;
    let mut sequences = Sequences::new(model, text, count, end, 0);
    sequences.fill(model, past);
    let mut rate = || {
        let seconds: f64 = (past + 1..=end).map(|len| sequences.pass(model, len - 1, len)).sum();
        (count * arguments.tokens) as f64 / seconds
    };
    rate();
    (0..arguments.repetitions).map(|_| rate()).collect()
}

fn prefill(model: &mut impl Forward, text: &[u32], repetitions: usize) -> Vec<f64> {
    let tokens = PREFILL.1;
    let mut rates = (0..=repetitions)
        .map(|round| tokens as f64 / Sequences::new(model, text, 1, tokens, round).pass(model, 0, tokens));
    rates.next();
    rates.collect()
}

fn main() {
    let arguments = Arguments::parse();
    rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).build_global().expect("a pool");
    let (bandwidth, peak) = (machine::read_bandwidth(), machine::peak());
    let (mut model, text) = sequences::open(&arguments.model, sequences::RAM, 8);
    let mut cases: Vec<(&str, Vec<f64>)> = Vec::new();
    for (name, count, past) in DECODE {
        if past + arguments.tokens <= model.context() {
            cases.push((name, decode(&mut model, &text, (count, past), &arguments)));
        }
    }
    if PREFILL.1 <= model.context() {
        cases.push((PREFILL.0, prefill(&mut model, &text, arguments.repetitions)));
    }
    if arguments.json {
        let cases: serde_json::Map<_, _> =
            cases.into_iter().map(|(name, rates)| (name.to_owned(), rates.into())).collect();
        let document = serde_json::json!({
            "threads": rayon::current_num_threads(),
            "read_bytes_per_s": bandwidth,
            "peak_flops": peak,
            "tokens_per_s": cases,
        });
        println!("{document}");
        return;
    }
    println!(
        "{} threads, {:.1} GB/s read, peak {:.0} GFLOP/s in f32\n\n| | tokens/s |\n|---|---|",
        rayon::current_num_threads(),
        bandwidth / 1e9,
        peak / 1e9
    );
    for (name, rates) in cases {
        println!("| {name} | {:.1} |", median(rates));
    }
}
