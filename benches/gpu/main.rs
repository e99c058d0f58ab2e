//! Decoding and reading on a GPU, beside what the GPU could do at most: the time to read the weights once at the rate at
//! which it copies, and the operations at the rate at which it multiplies large bf16 matrices. Weights are random.
//!
//! And what a table costs a model of 1.3 billion parameters, wherever its rows are.
//!
//! `cargo bench --features cuda --bench gpu -- [--device cuda:0] [--json FILE]`. Prints tables in Markdown.

#[path = "../machine/mod.rs"]
mod machine;
mod sequences;
mod shapes;
mod table;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use clap::Parser;
use machine::median;
use scone::kernels::{BLOCK, Pool};
use scone::model::{Config, DeviceChoice, Fgrams, Model, Runtime, gpu_name};
use sequences::Sequences;
use serde_json::{Value, json};
use shapes::{SHAPES, config_json, shape, weights, write_model};
use tempfile::TempDir;

// As in the programs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
struct Arguments {
    /// Where to measure.
    #[arg(long, default_value = "cuda:0")]
    device: DeviceChoice,
    /// Shapes to measure, of those that there are.
    #[arg(long, value_delimiter = ',', default_value = "135M,1B,1.9B")]
    shapes: Vec<String>,
    /// Tokens that there are.
    #[arg(long, default_value_t = 49_152)]
    vocabulary: usize,
    /// Sequences that decode together.
    #[arg(long, value_delimiter = ',', default_value = "1,4,32,128")]
    batches: Vec<usize>,
    /// Positions that each has before.
    #[arg(long, default_value_t = 128)]
    past: usize,
    /// Steps that are measured.
    #[arg(long, default_value_t = 64)]
    steps: usize,
    /// Rows of the table that is measured with the shape --table-shape, in 4,096 bytes each; 0: none.
    #[arg(long, default_value_t = 0)]
    table_rows: usize,
    /// The shape that has the table.
    #[arg(long, default_value = "1.3B")]
    table_shape: String,
    /// Where the table is written while it is measured [default: the system's directory for temporary files].
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// Writes a model of the first of --shapes, with the tokenizer of model_cards/default-baseline, and ends.
    #[arg(long, value_name = "DIR")]
    write_model: Option<PathBuf>,
    /// Where to write all measurements, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Said by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

const PREFILL: usize = 512;

/// Seconds of each of some runs, after one that is not counted.
fn seconds(device: &Device, runs: usize, mut work: impl FnMut()) -> Vec<f64> {
    let mut run = || {
        let start = Instant::now();
        work();
        device.synchronize().expect("the device");
        start.elapsed().as_secs_f64()
    };
    run();
    (0..runs).map(|_| run()).collect()
}

/// Bytes a second that are read and written by a copy, and operations a second of a large product in bf16.
fn bounds(device: &Device) -> (f64, f64) {
    let size = if device.is_cpu() { 512 } else { 8192 };
    let kind = if device.is_cpu() { DType::F32 } else { DType::BF16 };
    let a = Tensor::ones((size, size), kind, device).expect("memory");
    let product = seconds(device, 20, || drop(a.matmul(&a).expect("a product")));
    let bytes = size * size * 8 * kind.size_in_bytes();
    let large = Tensor::ones(bytes, DType::U8, device).expect("memory");
    let copy = seconds(device, 20, || drop(large.copy().expect("a copy")));
    (2.0 * bytes as f64 / median(copy), 2.0 * (size as f64).powi(3) / median(product))
}

/// What a table costs.
fn with_table(arguments: &Arguments, device: &Device, directory: &TempDir) -> Vec<Value> {
    let name = &arguments.table_shape;
    let sizes = shape(name).unwrap_or_else(|| panic!("there is no shape {name}"));
    let config = Config::parse(&config_json(sizes, arguments.vocabulary)).expect("a shape");
    let checkpoint = weights(&config, directory.path());
    let case = table::Case {
        rows: arguments.table_rows,
        batch: 4,
        past: arguments.past,
        steps: arguments.steps,
        gpu: !device.is_cpu(),
    };
    let decoding = case.batch * (case.past + case.steps + 8).next_multiple_of(BLOCK);
    let positions = decoding.max(table::PROMPT.0);
    let mut runtime = Runtime::new(Arc::new(Pool::new(4).expect("threads")), positions);
    runtime.device = device.clone();
    table::measure(&case, config.hidden_size, directory.path(), |fgrams| {
        Model::new(config.clone(), &checkpoint, fgrams, &runtime).expect("a model")
    })
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(directory) = &arguments.write_model {
        let name = arguments.shapes.first().expect("a shape");
        write_model(
            shape(name).unwrap_or_else(|| panic!("there is no shape {name}")),
            arguments.vocabulary,
            directory,
        );
        return;
    }
    let device = arguments.device.open(0).unwrap_or_else(|error| panic!("{error}"));
    let name = gpu_name(&device).unwrap_or_else(|| "the CPU".to_owned());
    let (copied, multiplied) = bounds(&device);
    println!("{name}: copies {:.0} GB/s, multiplies {:.1} TFLOP/s\n", copied / 1e9, multiplied / 1e12);
    let measured = |name: &str| arguments.shapes.iter().any(|asked| asked == name);
    if SHAPES.iter().any(|(name, _)| measured(name)) {
        println!(
            "| shape | case | ms a step | tokens/s | bound, ms | of the bound | host, ms |\n|---|---|---|---|---|---|---|"
        );
    }
    let scratch = || {
        let made = arguments.scratch.as_ref().map_or_else(tempfile::tempdir, tempfile::tempdir_in);
        made.expect("a directory")
    };
    let mut results = Vec::new();
    for (shape, sizes) in SHAPES.into_iter().filter(|(name, _)| measured(name)) {
        let config = Config::parse(&config_json(sizes, arguments.vocabulary)).expect("a shape");
        let directory = scratch();
        let checkpoint = weights(&config, directory.path());
        let end = arguments.past + arguments.steps + 8;
        let most = arguments.batches.iter().max().copied().unwrap_or(1);
        let positions = (most * end.next_multiple_of(BLOCK)).max(PREFILL);
        let mut runtime = Runtime::new(Arc::new(Pool::new(4).expect("threads")), positions);
        runtime.device = device.clone();
        let mut model = Model::new(config.clone(), &checkpoint, Fgrams::None, &runtime).expect("a model");
        let weight_bytes = model.weight_bytes() as f64;
        let operations = |tokens: usize| 2.0 * config.parameters() as f64 * tokens as f64;
        let mut report = |case: String, tokens: usize, times: Vec<(Duration, Duration)>| {
            let all = median(times.iter().map(|(all, _)| all.as_secs_f64()).collect());
            let host = median(times.iter().map(|(_, host)| host.as_secs_f64()).collect());
            let bound = (weight_bytes / copied).max(operations(tokens) / multiplied);
            println!(
                "| {shape} | {case} | {:.3} | {:.0} | {:.3} | {:.2} | {:.3} |",
                1e3 * all,
                tokens as f64 / all,
                1e3 * bound,
                bound / all,
                1e3 * host
            );
            results.push(json!({
                "shape": shape, "case": case, "seconds": all, "tokens": tokens, "bound_seconds": bound,
                "host_seconds": host, "weight_bytes": weight_bytes,
            }));
        };
        for &batch in &arguments.batches {
            let sequences = Sequences::new(batch, end, arguments.vocabulary - 1);
            sequences.read(&mut model, arguments.past);
            let times = (arguments.past..end).map(|past| sequences.step(&mut model, past, past + 1));
            report(format!("decode, {batch} at {}", arguments.past), batch, times.skip(8).collect());
        }
        let sequences = Sequences::new(1, PREFILL, arguments.vocabulary - 1);
        let times = (0..10).map(|_| sequences.step(&mut model, 0, PREFILL)).skip(2).collect();
        report(format!("read {PREFILL}"), PREFILL, times);
    }
    let tables =
        if arguments.table_rows > 0 { with_table(&arguments, &device, &scratch()) } else { Vec::new() };
    if let Some(path) = arguments.json {
        let all = json!({
            "device": name, "copy_bytes_per_s": copied, "bf16_flops": multiplied, "steps": results, "tables": tables,
        });
        std::fs::write(&path, format!("{all:#}\n")).expect("the file of measurements");
    }
}
