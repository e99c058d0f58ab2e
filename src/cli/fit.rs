//! `scone-train fit`: one run, from a TOML file to a model directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use candle_core::Device;
use indicatif::ProgressBar;

use super::device::DeviceFlag;
use super::processes::Processes;
use super::progress_bar;
use crate::train::{Freeze, Outcome, Progress, Run, RunConfig};

/// Train a model: the main model and, with an `[fgram]` section, the f-gram model, jointly
#[derive(Debug, clap::Args)]
#[command(
    after_help = "RUN_DIR receives config.toml, environment.json (corpora, machine, every start), metrics.jsonl (a line an update), \
curves.svg (the same, drawn anew at every validation), signs.jsonl (signs of trouble), samples.jsonl (continuations of the \
[samples] prompts), step-*.safetensors (the newest checkpoints), best.safetensors (the weights of the lowest validation \
loss) and, at the end, model/: a directory that \
`scone` serves and transformers opens. Ctrl-C writes a checkpoint and stops; --resume goes on, bit for bit as if \
nothing had happened (on the same kind of CPU with the same number of threads; a GPU adds in orders of its own), after a kill -9 too.

Without an [fgram] section the same run trains the baseline. With one, make the table afterwards:
  scone-train fit --config scone.toml --output runs/scone
  scone table build runs/scone/model --fgrams fgrams.parquet

With --init-from the run has the shape and the weights of a trained model, which [model] then leaves out, and goes on \
from there: a new f-gram model (residual_output = true) starts at the token embedding, so nothing is lost at the start, \
which is validated first. --freeze main trains the f-gram model alone and gives back the main model as it was: \
docs/models.md.

Several processes, on one machine or many, train together if each is told its rank, how many there are and where they meet, \
as torchrun and Slurm do by themselves (docs/scale.md). Each computes its share of an update's `accumulate` batches; the result \
is that of one process. Rank 0 alone writes RUN_DIR."
)]
pub struct Args {
    /// The run's TOML file; see --print-config
    #[arg(long, env = "SCONE_RUN_CONFIG", value_name = "RUN.toml", required_unless_present = "print_config")]
    config: Option<PathBuf>,
    /// Where the run's files go
    #[arg(long, env = "SCONE_RUN_DIR", value_name = "RUN_DIR", required_unless_present = "print_config")]
    output: Option<PathBuf>,
    /// Continue the run in RUN_DIR from its newest whole checkpoint; start it if there is none
    #[arg(long)]
    resume: bool,
    /// Stop after so many updates, as Ctrl-C does, and let --resume go on another time; 0 writes the initial weights only
    #[arg(long, value_name = "N", env = "SCONE_STOP_AFTER")]
    stop_after: Option<u64>,
    /// The exit status where the run was stopped before its end: other than 0 for what starts it again then
    #[arg(long, value_name = "CODE", env = "SCONE_STOPPED_EXIT_CODE", default_value_t = 0)]
    stopped_exit_code: u8,
    /// Start from a trained model, a directory or a GGUF file, instead of from chance; [model] init_from of the run's file
    #[arg(long, env = "SCONE_INIT_FROM", value_name = "MODEL_DIR")]
    init_from: Option<PathBuf>,
    /// Leave a part as it is: with `main` only the f-gram model is trained; [train] freeze of the run's file
    #[arg(long, env = "SCONE_FREEZE", value_name = "PART")]
    freeze: Option<Freeze>,
    /// Print the configuration in full, every field with its value (without --config: the defaults), and stop
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    device: DeviceFlag,
    #[command(flatten, next_help_heading = "Several processes")]
    processes: Processes,
}

/// Runs the command.
///
/// # Errors
/// See [`Run::open`] and [`Run::train`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let before = args.output.as_deref().filter(|_| args.resume).and_then(|run| RunConfig::of_run(run).ok());
    let config = match &args.config {
        Some(path) => RunConfig::read_with(path, before.as_ref(), |config| {
            config.model.init_from = args.init_from.clone().or(config.model.init_from.take());
            config.train.freeze = args.freeze.or(config.train.freeze);
        })?,
        None => RunConfig::example(),
    };
    if args.print_config {
        print!("{}", config.to_toml());
        return Ok(());
    }
    let directory = args.output.as_deref().context("--output RUN_DIR is missing")?;
    // Without the feature `cuda` a GPU only adds gradients up, and the device is NCCL's.
    let device =
        if cfg!(feature = "cuda") || !args.processes.uses_nccl() { args.device.open()? } else { Device::Cpu };
    let group = args.processes.meet(args.device.number())?;
    let mut run = Run::open_in(&config, directory, args.resume, group, &device)?;
    if !run.leads() {
        // What there is to see and to say is rank 0's.
        let outcome = run.train(args.stop_after, &*stop_on_signal()?, &mut |_| {})?;
        drop(run);
        leave(args, outcome);
        return Ok(());
    }
    report_start(&config, &run);
    let stop = stop_on_signal()?;
    let bar = progress_bar(config.train.steps, "[{bar:30}] step {pos}/{len} {msg}, {eta} left");
    bar.set_position(run.step());
    bar.reset_eta();
    let mut display = Display {
        bar,
        validation: String::new(),
        plain: !std::io::IsTerminal::is_terminal(&std::io::stderr()),
    };
    let outcome = run.train(args.stop_after, &stop, &mut |progress| display.show(progress))?;
    display.bar.finish_and_clear();
    report_end(&run, outcome, directory);
    drop(run);
    leave(args, outcome);
    Ok(())
}

/// Ends the program where a run that was stopped is to end it in another way.
fn leave(args: &Args, outcome: Outcome) {
    if outcome == Outcome::Stopped && args.stopped_exit_code != 0 {
        std::process::exit(args.stopped_exit_code.into());
    }
}

fn report_start(config: &RunConfig, run: &Run) {
    let tokens =
        config.train.steps * (config.train.batch * config.train.accumulate * config.model.context) as u64;
    let kind = if config.fgram.is_some() { "SCONE" } else { "baseline" };
    tracing::info!(
        "{kind}: main model {} parameters, f-gram model {}; {} steps, {tokens} tokens",
        run.parameters().count("main"),
        run.parameters().count("fgram"),
        config.train.steps,
    );
    for corpus in run.corpora().iter() {
        let (seen, all) = (tokens as f64 * corpus.share(), corpus.dataset().train().tokens);
        tracing::info!(
            "{}: {:.1} % of them, {:.2} epochs of its {all} tokens",
            corpus.name(),
            100.0 * corpus.share(),
            seen / all as f64
        );
    }
    if let Some(source) = &config.model.init_from {
        let frozen = config.train.freeze.map_or("", |_| "; the main model stays as it is");
        tracing::info!("starting from {}{frozen}", source.display());
    }
    if run.step() > 0 {
        tracing::info!("continuing after step {}", run.step());
    }
}

fn report_end(run: &Run, outcome: Outcome, directory: &Path) {
    let best = run.best().map_or_else(String::new, |(loss, step)| {
        format!("; lowest validation loss {loss:.4} (perplexity {:.2}) after step {step}", loss.exp())
    });
    match outcome {
        Outcome::Finished => println!("{}{best}", directory.join("model").display()),
        Outcome::Stopped => {
            println!("stopped after step {}{best}; --resume goes on", run.step());
        }
    }
}

/// Set by the first Ctrl-C or SIGTERM; a second one ends the program at once, as if it had no handler.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            super::stop_signal().await;
            flag.store(true, Ordering::Relaxed);
            eprintln!("stopping after this step (once more: at once)");
            super::stop_signal().await;
            std::process::exit(130);
        });
    });
    Ok(stop)
}

struct Display {
    bar: ProgressBar,
    /// The newest validation loss, and those of a mixture's corpora.
    validation: String,
    /// No terminal: a line at every validation instead of a bar.
    plain: bool,
}

impl Display {
    fn show(&mut self, progress: &Progress) {
        if let Some(loss) = progress.validation_loss {
            let corpora =
                progress.corpora.iter().map(|(name, c)| format!(" {name} {:.4}", c.validation_loss));
            self.validation = format!(", validation {loss:.4}{}", corpora.collect::<String>());
        }
        let validation = &self.validation;
        let message = match progress.loss {
            Some(loss) => format!("loss {loss:.4}{validation}, {:.0} tokens/s", progress.tokens_per_second),
            None => format!("before the first update{validation}"),
        };
        self.bar.set_position(progress.step);
        if self.plain && progress.validation_loss.is_some() {
            eprintln!("step {}/{}: {message}", progress.step, self.bar.length().unwrap_or(0));
        }
        self.bar.set_message(message);
    }
}
