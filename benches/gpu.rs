//! Decoding and reading on a GPU, beside what the GPU could do at most: the time to read the weights once at the rate at
//! which it copies, and the operations at the rate at which it multiplies large bf16 matrices. Weights are random.
//!
//! `cargo bench --features cuda --bench gpu -- [--device cuda:0] [--json FILE]`. Prints a table in Markdown.

mod machine;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use clap::Parser;
use machine::median;
use scone::kernels::{BLOCK, Pool};
use scone::model::{
    Checkpoint, Config, DeviceChoice, Fgrams, Model, Piece, Runtime, WeightType, gpu_name, write_weights,
};
use serde_json::json;

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
    /// Sequences that decode together.
    #[arg(long, value_delimiter = ',', default_value = "1,4,32,128")]
    batches: Vec<usize>,
    /// Positions that each has before.
    #[arg(long, default_value_t = 128)]
    past: usize,
    /// Steps that are measured.
    #[arg(long, default_value_t = 64)]
    steps: usize,
    /// Where to write all measurements, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Said by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Name, width, feed-forward width, layers, heads, key heads; of 49,152 tokens. The first is SmolLM2-135M's.
const SHAPES: [(&str, [usize; 5]); 4] = [
    ("tiny", [64, 192, 2, 4, 2]),
    ("135M", [576, 1536, 30, 9, 3]),
    ("1B", [2048, 5632, 22, 32, 8]),
    ("1.9B", [2048, 8192, 30, 32, 8]),
];
const VOCABULARY: usize = 49_152;
const CONTEXT: usize = 2048;
const PREFILL: usize = 512;

fn config([d, ffn, layers, heads, kv_heads]: [usize; 5]) -> Config {
    let text = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": d, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": true,
    });
    Config::parse(&text.to_string()).expect("a shape")
}

/// Random weights of a shape in bf16, in a file.
fn weights(config: &Config, directory: &Path) -> Checkpoint {
    let (d, ffn, head) = (config.hidden_size, config.intermediate_size, config.head());
    let (q, kv) = (config.num_attention_heads * head, config.kv_heads() * head);
    let matrix = |rows, columns| {
        let numbers = Tensor::rand(-0.02f32, 0.02, (rows, columns), &Device::Cpu).expect("memory");
        numbers.to_dtype(DType::BF16).expect("memory")
    };
    let ones = || Tensor::ones(d, DType::BF16, &Device::Cpu).expect("memory");
    let mut all = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), matrix(VOCABULARY, d)),
        ("model.norm.weight".to_owned(), ones()),
    ]);
    for i in 0..config.num_hidden_layers {
        let name = |part: &str| format!("model.layers.{i}.{part}.weight");
        for (part, rows, columns) in [
            ("self_attn.q_proj", q, d),
            ("self_attn.k_proj", kv, d),
            ("self_attn.v_proj", kv, d),
            ("self_attn.o_proj", d, q),
            ("mlp.gate_proj", ffn, d),
            ("mlp.up_proj", ffn, d),
            ("mlp.down_proj", d, ffn),
        ] {
            all.insert(name(part), matrix(rows, columns));
        }
        all.insert(name("input_layernorm"), ones());
        all.insert(name("post_attention_layernorm"), ones());
    }
    write_weights(&directory.join("model.safetensors"), &all, WeightType::Bf16).expect("a file");
    Checkpoint::open(directory).expect("the file")
}

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

/// Sequences of random tokens, each with blocks of its own, of up to `len` positions.
struct Sequences {
    tokens: Vec<Vec<u32>>,
    blocks: Vec<Vec<u32>>,
}

impl Sequences {
    fn new(count: usize, len: usize) -> Self {
        let each = len.div_ceil(BLOCK);
        let token = |i: usize, n: usize| ((i * 7919 + n * 104_729) % VOCABULARY) as u32;
        Self {
            tokens: (0..count).map(|i| (0..len).map(|n| token(i, n)).collect()).collect(),
            blocks: (0..count).map(|i| (0..each).map(|block| (block * count + i) as u32).collect()).collect(),
        }
    }

    /// The time of a step from `past` to `len`, whose likeliest tokens are chosen, and that of the host in it.
    fn step(&self, model: &mut Model, past: usize, len: usize) -> (Duration, Duration) {
        let pieces: Vec<Piece<'_>> = self
            .tokens
            .iter()
            .zip(&self.blocks)
            .map(|(tokens, blocks)| Piece { tokens: &tokens[..len], past, blocks, wanted: 1 })
            .collect();
        let (mut logits, mut chosen) = (Vec::new(), Vec::new());
        let greedy = vec![true; pieces.len()];
        let start = Instant::now();
        model.forward_choosing(&pieces, &greedy, &mut logits, &mut chosen).expect("a step");
        (start.elapsed(), model.host_time())
    }
}

fn main() {
    let arguments = Arguments::parse();
    let device = arguments.device.open(0).unwrap_or_else(|error| panic!("{error}"));
    let name = gpu_name(&device).unwrap_or_else(|| "the CPU".to_owned());
    let (copied, multiplied) = bounds(&device);
    println!("{name}: copies {:.0} GB/s, multiplies {:.1} TFLOP/s\n", copied / 1e9, multiplied / 1e12);
    println!(
        "| shape | case | ms a step | tokens/s | bound, ms | of the bound | host, ms |\n|---|---|---|---|---|---|---|"
    );
    let mut results = Vec::new();
    for (shape, sizes) in
        SHAPES.into_iter().filter(|(name, _)| arguments.shapes.iter().any(|asked| asked == name))
    {
        let (config, directory) = (config(sizes), tempfile::tempdir().expect("a directory"));
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
            let sequences = Sequences::new(batch, end);
            // A few at a time, so that the largest step is no larger than a server's.
            for past in (0..arguments.past).step_by(16) {
                sequences.step(&mut model, past, (past + 16).min(arguments.past));
            }
            let times = (arguments.past..end).map(|past| sequences.step(&mut model, past, past + 1));
            report(format!("decode, {batch} at {}", arguments.past), batch, times.skip(8).collect());
        }
        let sequences = Sequences::new(1, PREFILL);
        let times = (0..10).map(|_| sequences.step(&mut model, 0, PREFILL)).skip(2).collect();
        report(format!("read {PREFILL}"), PREFILL, times);
    }
    if let Some(path) = arguments.json {
        let all =
            json!({ "device": name, "copy_bytes_per_s": copied, "bf16_flops": multiplied, "steps": results });
        std::fs::write(&path, format!("{all:#}\n")).expect("the file of measurements");
    }
}
