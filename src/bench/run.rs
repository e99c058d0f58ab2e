use std::path::PathBuf;
use std::time::Duration;

use indicatif::ProgressBar;
use serde::Serialize;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use super::load::pass;
use super::log::RequestLog;
use super::{
    BenchError, Client, Load, Machine, Metric, Pass, Prompts, Quality, Ratio, Report, Sampling, Server, Slo,
    Summary, TargetReport, quality,
};

/// What is measured.
#[derive(Debug)]
pub struct Target {
    /// Its name in the report.
    pub name: String,
    /// Where it comes from.
    pub source: Source,
}

/// Where a target comes from.
#[derive(Debug)]
pub enum Source {
    /// A server that runs, as `http://host:port`.
    Url(String),
    /// A program that serves as long as the measurement takes. It prints `listening on http://host:port` on a line
    /// of its own to standard output, and `GET /health` answers 200 when it is ready.
    Program(Command),
}

/// How much is measured, and in which order: load by load; in a repetition every target once; from one repetition
/// to the next in the opposite order, so that a drift of the machine harms none of them.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// One measurement each.
    pub loads: Vec<Load>,
    /// Requests of a repetition.
    pub requests: usize,
    /// Repetitions, each with other prompts as far as there are.
    pub repetitions: usize,
    /// Requests to each target before each load, not counted.
    pub warmup: usize,
    /// Of arrival times and of the bootstrap.
    pub seed: u64,
    /// For goodput.
    pub slo: Option<Slo>,
}

/// A text to measure perplexity on.
#[derive(Clone, Debug)]
pub struct QualityText {
    /// All of it.
    pub text: String,
    /// Characters of a piece, at most: a piece must fit the targets' contexts.
    pub piece_chars: usize,
    /// Pieces, at most; evenly spread over the text.
    pub limit: usize,
}

/// A run, ready to be made.
#[derive(Debug)]
pub struct Bench {
    /// At least one.
    pub targets: Vec<Target>,
    /// The name of the target that the others are divided by; the first if none.
    pub baseline: Option<String>,
    /// How much.
    pub plan: Plan,
    /// What is asked.
    pub prompts: Prompts,
    /// How it is asked.
    pub sampling: Sampling,
    /// The text for perplexity, if that is wanted.
    pub quality: Option<QualityText>,
    /// Where the log of requests goes, if it is wanted.
    pub requests_log: Option<PathBuf>,
    /// How long a spawned server may take to be ready.
    pub startup: Duration,
}

/// A target that answers.
struct Connected {
    name: String,
    url: String,
    spawned: bool,
    client: Client,
}

/// Starts the servers, measures, and ends them again, also on an error, Ctrl-C or SIGTERM.
///
/// # Errors
/// Where the run makes no sense, a target cannot be reached, a server ends, or a file cannot be written. Requests
/// that fail are counted in the report instead: see [`Report::all_failed`].
pub async fn run(bench: Bench, progress: &ProgressBar) -> Result<Report, BenchError> {
    let mut servers = Vec::new();
    let outcome = tokio::select! {
        outcome = measure(bench, &mut servers, progress) => outcome,
        () = interrupted() => Err(BenchError::Interrupted),
    };
    futures_util::future::join_all(servers.into_iter().map(Server::stop)).await;
    outcome
}

async fn interrupted() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => terminate.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated => {}
    }
}

async fn measure(
    bench: Bench,
    servers: &mut Vec<Server>,
    progress: &ProgressBar,
) -> Result<Report, BenchError> {
    let baseline = check(&bench)?;
    let mut log = bench.requests_log.as_deref().map(RequestLog::create).transpose()?;
    let targets = connect(bench.targets, bench.startup, servers, progress).await?;
    let plan = &bench.plan;
    let per_load = targets.len() * (plan.requests * plan.repetitions + plan.warmup);
    progress.set_length((plan.loads.len() * per_load) as u64);

    let qualities = score(&targets, bench.quality.as_ref(), bench.sampling.timeout, progress).await?;
    let mut summaries = Vec::new();
    let mut ratios = Vec::new();
    for (number, &load) in plan.loads.iter().enumerate() {
        let work = Work { plan, prompts: &bench.prompts, sampling: &bench.sampling, load, number };
        let passes = work.passes(&targets, servers, &mut log, progress).await?;
        summaries.extend(targets.iter().zip(&passes).map(|(target, passes)| {
            let passes: Vec<&Pass> = passes.iter().collect();
            work.summary(target, &passes)
        }));
        ratios.extend(work.ratios(&targets, &passes, baseline));
    }
    if let Some(log) = log {
        log.finish()?;
    }
    let targets = targets.into_iter().zip(qualities).map(|(target, quality)| TargetReport {
        model: target.client.model().to_owned(),
        name: target.name,
        url: target.url,
        spawned: target.spawned,
        quality,
    });
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        machine: Machine::this(),
        prompts: bench.prompts.source,
        sampling: bench.sampling,
        plan: bench.plan,
        targets: targets.collect(),
        results: summaries,
        ratios,
    })
}

/// Checks that the run makes sense, and finds the baseline.
fn check(bench: &Bench) -> Result<usize, BenchError> {
    let bad = |why: &str| Err(BenchError::Config(why.to_owned()));
    let plan = &bench.plan;
    if bench.targets.is_empty() {
        return bad("there is no target: give one with --target NAME=URL or --spawn NAME=MODEL_DIR");
    }
    if plan.loads.is_empty() || plan.requests == 0 || plan.repetitions == 0 || bench.prompts.list.is_empty() {
        return bad("a run needs a load, a prompt, a request and a repetition at least");
    }
    for load in &plan.loads {
        match load {
            Load::Closed { concurrency: 0 } => return bad("a concurrency of 0 sends nothing"),
            Load::Open { rate } if !(rate.is_finite() && *rate > 0.0) => {
                return bad("a rate must be above 0 requests a second");
            }
            _ => {}
        }
    }
    let names: Vec<&str> = bench.targets.iter().map(|target| target.name.as_str()).collect();
    if let Some((_, name)) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        return bad(&format!("two targets are named {name}"));
    }
    let Some(baseline) = &bench.baseline else {
        return Ok(0);
    };
    names.iter().position(|name| name == baseline).ok_or_else(|| {
        BenchError::Config(format!("no target is named {baseline}: there is {}", names.join(", ")))
    })
}

async fn connect(
    targets: Vec<Target>,
    startup: Duration,
    servers: &mut Vec<Server>,
    progress: &ProgressBar,
) -> Result<Vec<Connected>, BenchError> {
    let mut connected = Vec::new();
    for Target { name, source } in targets {
        progress.set_message(format!("waiting for {name}"));
        let (url, spawned) = match source {
            Source::Url(url) => (url, false),
            Source::Program(command) => {
                let server = Server::start(&name, command, startup).await?;
                let url = server.url().to_owned();
                servers.push(server);
                (url, true)
            }
        };
        match Client::connect(&url).await {
            Ok(client) => connected.push(Connected { name, url, spawned, client }),
            Err(why) => return Err(BenchError::Target { name, url, why }),
        }
    }
    Ok(connected)
}

/// Every target's quality, in their order. It comes first: a text that does not fit should not cost the hour after.
async fn score(
    targets: &[Connected],
    text: Option<&QualityText>,
    patience: Duration,
    progress: &ProgressBar,
) -> Result<Vec<Option<Quality>>, BenchError> {
    let Some(text) = text else {
        return Ok(targets.iter().map(|_| None).collect());
    };
    let pieces = quality::spread(&quality::pieces(&text.text, text.piece_chars), text.limit);
    progress.inc_length((pieces.len() * targets.len()) as u64);
    let mut qualities = Vec::new();
    for target in targets {
        progress.set_message(format!("{}: perplexity", target.name));
        let measured = quality::measure(&target.client, &pieces, patience, || progress.inc(1)).await;
        qualities.push(Some(measured.map_err(|why| BenchError::Target {
            name: target.name.clone(),
            url: target.url.clone(),
            why: format!("{why} (a piece must fit the context: --quality-chars)"),
        })?));
    }
    Ok(qualities)
}

/// The measurement under one load.
struct Work<'a> {
    plan: &'a Plan,
    prompts: &'a Prompts,
    sampling: &'a Sampling,
    load: Load,
    number: usize,
}

impl Work<'_> {
    /// The passes of each target, by repetition.
    async fn passes(
        &self,
        targets: &[Connected],
        servers: &mut [Server],
        log: &mut Option<RequestLog>,
        progress: &ProgressBar,
    ) -> Result<Vec<Vec<Pass>>, BenchError> {
        let Plan { requests, repetitions, warmup, .. } = *self.plan;
        for target in targets {
            progress.set_message(format!("{}: warming up", target.name));
            // With the prompts after those that are measured, so that no server has seen any of those.
            self.pass(target, (requests * repetitions, warmup), repetitions, progress).await;
        }
        let mut passes: Vec<Vec<Pass>> = targets.iter().map(|_| Vec::new()).collect();
        for repetition in 0..repetitions {
            let mut order: Vec<usize> = (0..targets.len()).collect();
            if repetition % 2 == 1 {
                order.reverse();
            }
            for i in order {
                let (target, load) = (&targets[i], self.load);
                progress.set_message(format!(
                    "{}: {load}, repetition {} of {repetitions}",
                    target.name,
                    repetition + 1
                ));
                let pass = self.pass(target, (requests * repetition, requests), repetition, progress).await;
                for server in servers.iter_mut() {
                    server.check().await?;
                }
                if let Some(log) = log {
                    log.write(&target.name, load, repetition, &pass)?;
                }
                passes[i].push(pass);
            }
        }
        Ok(passes)
    }

    async fn pass(
        &self,
        target: &Connected,
        prompts: (usize, usize),
        repetition: usize,
        progress: &ProgressBar,
    ) -> Pass {
        // The same for every target, and another for every pass of one.
        let seed = self.plan.seed.wrapping_add((self.number as u64) << 32).wrapping_add(repetition as u64);
        let done = |_: &_| progress.inc(1);
        pass(&target.client, self.load, self.prompts, prompts, self.sampling, seed, done).await
    }

    fn summary(&self, target: &Connected, passes: &[&Pass]) -> Summary {
        let slo = self.plan.slo.as_ref();
        Summary::of(&target.name, self.load, passes, self.sampling, slo)
    }

    fn ratios(&self, targets: &[Connected], passes: &[Vec<Pass>], baseline: usize) -> Vec<Ratio> {
        let by_repetition: Vec<Vec<Summary>> = targets
            .iter()
            .zip(passes)
            .map(|(target, passes)| passes.iter().map(|pass| self.summary(target, &[pass])).collect())
            .collect();
        let others = (0..targets.len()).filter(|&i| i != baseline);
        let pairs = others.flat_map(|i| Metric::ALL.map(|metric| (i, metric)));
        pairs
            .filter_map(|(i, metric)| {
                Ratio::of(&by_repetition[i], &by_repetition[baseline], metric, self.plan.seed)
            })
            .collect()
    }
}
