//! What the table costs a decode step: the model of the repository against its baseline, step by step in one process.
//!
//! `cargo bench --bench step`. Both read the same real text, a token of each sequence a step, in turns, so that whatever
//! disturbs the machine disturbs both.

use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use scone::model::{Model, ModelDirectory, Piece};

/// Tokens of a sequence before the first step that is timed, and the steps.
const PAST: usize = 64;
const STEPS: usize = 192;

fn step(model: &mut Model, sequences: &[&[u32]], past: usize, len: usize) -> f64 {
    let slots: Vec<u32> = (0..sequences.len() as u32).collect();
    let pieces = sequences.iter().zip(slots.chunks(1));
    let pieces = pieces.map(|(tokens, blocks)| Piece { tokens: &tokens[..len], past, blocks, wanted: 1 });
    let pieces: Vec<_> = pieces.collect();
    let start = Instant::now();
    model.forward(&pieces).expect("a step");
    start.elapsed().as_secs_f64() * 1e6
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let open = |name: &str| ModelDirectory::open(&Path::new("model_cards").join(name)).expect("the model");
    let (scone, baseline) = (open("default"), open("default-baseline"));
    let text = std::fs::read_to_string("examples/sotu/held-out.txt").expect("a text");
    let tokens = scone.tokenizer().encode(&text).expect("its tokens");
    println!("| sequences | baseline, us a step | SCONE | ratio of medians |\n|---|---|---|---|");
    for batch in [1, 4, 16] {
        let load = |directory: &ModelDirectory| directory.load(None, batch, &Device::Cpu).expect("the model");
        let mut models = [load(&baseline), load(&scone)];
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..12 {
            let at = |i: usize| (round * batch + i) * 61 % (tokens.len() - PAST - STEPS);
            let sequences: Vec<&[u32]> = (0..batch).map(|i| &tokens[at(i)..at(i) + PAST + STEPS]).collect();
            models.iter_mut().for_each(|model| _ = step(model, &sequences, 0, PAST));
            for len in PAST + 1..=PAST + STEPS {
                // Either goes first every other time.
                for i in [len % 2, 1 - len % 2] {
                    times[i].push(step(&mut models[i], &sequences, len - 1, len));
                }
            }
        }
        let [baseline, scone] = times.map(median);
        println!("| {batch} | {baseline:.0} | {scone:.0} | {:.3} |", scone / baseline);
    }
}
