//! What the table costs: a SCONE model against its baseline, pass by pass in one process.
//!
//! `cargo bench --bench step -- [SCONE_DIR BASELINE_DIR]`; without directories, the models of the repository. Both read
//! the same real text, a token of each sequence a step, in turns, so that whatever disturbs the machine disturbs both;
//! then they read prompts. `scone-train synthesize` makes the two directories of any shape.

mod machine;
mod sequences;

use std::path::PathBuf;

use clap::Parser;
use machine::median;
use scone::engine::Forward;
use scone::model::Model;
use scone::table::{DirectReads, Placement};
use sequences::Sequences;

// As in the programs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
struct Arguments {
    /// The model with a table.
    #[arg(default_value = "model_cards/default")]
    scone: PathBuf,
    /// The same model without.
    #[arg(default_value = "model_cards/default-baseline")]
    baseline: PathBuf,
    /// Where the table's rows are: ram, mmap, or direct, read from the disk each time and kept in no cache.
    #[arg(long, default_value = "ram")]
    table_mode: String,
    /// Threads; 0: one for each processor.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// How many sequences are decoded at a time.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
    sequences: Vec<usize>,
    /// Tokens of a sequence before the first step that is timed.
    #[arg(long, default_value_t = 64)]
    past: usize,
    /// Steps of a round.
    #[arg(long, default_value_t = 64)]
    steps: usize,
    /// Rounds, each with other parts of the text.
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Tokens of a prompt, or the model's context if that is less.
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Said by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    fn placement(&self) -> Placement {
        match self.table_mode.as_str() {
            "ram" => sequences::RAM,
            "mmap" => Placement::Mmap { prefault: 0 },
            "direct" => Placement::Direct { cache: 0, queue_depth: 32, reads: DirectReads::Ring },
            other => panic!("--table-mode {other}: ram, mmap or direct"),
        }
    }
}

/// Seconds of the passes from `past` to each of `ends`, of either model, which take turns; either goes first every
/// other time.
fn in_turns(
    models: &mut [Model; 2],
    sequences: &mut [Sequences; 2],
    mut past: usize,
    ends: impl Iterator<Item = usize>,
    times: &mut [Vec<f64>; 2],
) {
    for end in ends {
        for i in [end % 2, 1 - end % 2] {
            times[i].push(sequences[i].pass(&mut models[i], past, end));
        }
        past = end;
    }
}

fn print(name: &str, tokens: usize, times: [Vec<f64>; 2]) {
    let passes = times[0].len();
    let ratio = median(times[1].iter().zip(&times[0]).map(|(scone, baseline)| scone / baseline).collect());
    let [baseline, scone] = times.map(median);
    println!(
        "| {name} | {passes} | {:.1} | {:.0} | {:.1} | {:.0} | {:.4} | {ratio:.4} |",
        baseline * 1e6,
        tokens as f64 / baseline,
        scone * 1e6,
        tokens as f64 / scone,
        scone / baseline
    );
}

fn main() {
    let arguments = Arguments::parse();
    rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).build_global().expect("a pool");
    let most = arguments.sequences.iter().copied().max().unwrap_or(1);
    let (baseline, text) = sequences::open(&arguments.baseline, sequences::RAM, most);
    let mut models = [baseline, sequences::open(&arguments.scone, arguments.placement(), most).0];
    println!(
        "| | passes | baseline, us | tokens/s | SCONE, us | tokens/s | ratio of medians | median of ratios |\n\
         |---|---|---|---|---|---|---|---|"
    );
    let past = arguments.past;
    for count in arguments.sequences {
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..arguments.rounds {
            let end = past + arguments.steps;
            let mut sequences =
                models.each_ref().map(|model| Sequences::new(model, &text, count, end, round));
            models.iter_mut().zip(&mut sequences).for_each(|(model, sequences)| sequences.fill(model, past));
            in_turns(&mut models, &mut sequences, past, past + 1..=end, &mut times);
        }
        print(&format!("decode, {count} sequences"), count, times);
    }
    let prompt = arguments.prompt.min(models[0].context());
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..arguments.rounds {
        let mut sequences = models.each_ref().map(|model| Sequences::new(model, &text, 1, prompt, round));
        // The first reading warms the rows of this part of the text, as a server's are warm.
        for _ in 0..3 {
            in_turns(&mut models, &mut sequences, 0, std::iter::once(prompt), &mut times);
        }
    }
    print(&format!("prefill of {prompt}"), prompt, times);
}
