//! `scone-train mine`: a dataset to its most frequent n-grams, at once or in parts.

use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::{HumanBytes, ProgressBar};

use crate::corpus::{
    Counted, Dataset, Effort, JoinOptions, Joined, MineOptions, MineProgress, Mined, PartOptions, Scan,
    WorkDirectory, count_part, half_of_memory, join, mine_in, mine_work, part_work,
};
use crate::fgram::{FgramSet, Policy, parquet};
use crate::memory;

use super::bytes::parse_bytes;
use super::progress_bar;
use super::shard::parse_shard;

/// Find the most frequent n-grams of a dataset's training split.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Scan n counts the n-grams whose first and last n - 1 tokens survived the scan before, and those \
that occur --min-count times survive. Then all survivors are ranked by count, then length (the shorter first), \
then token ids, and the first --size are kept. Counts are exact; the result depends on neither --threads nor \
--memory. What does not fit in memory goes to files in --temp-dir; killed, the same command goes on after the last \
finished scan.

On several machines, each counts a part with --shard, and --merge joins the files to the very same set: see \
docs/scale.md.

Examples:
  scone-train mine data/books --output data/fgrams.parquet --size 200000
  scone-train mine data/books --shard 1/2 --output counts-1.parquet
  scone-train mine data/books --shard 2/2 --output counts-2.parquet
  scone-train mine --merge counts-1.parquet counts-2.parquet --output data/fgrams.parquet --size 200000"
)]
pub struct Args {
    /// A directory that `prepare` made. With --merge only for what the files do not say of their tokenizer
    #[arg(env = "SCONE_DATASET", value_name = "DATASET", required_unless_present = "merge")]
    dataset: Option<PathBuf>,
    /// The Parquet file to write: `tokens` (list of u32) and `count` (u64), by rank
    #[arg(long, short, env = "SCONE_FGRAMS", value_name = "FILE")]
    output: PathBuf,
    /// K: the most tokens of an n-gram (2 to 16)
    #[arg(long, env = "SCONE_MAX_N", default_value_t = 5, value_name = "K")]
    max_n: usize,
    /// S: how many f-grams to keep, at most; `all` keeps all that are frequent enough
    #[arg(long, env = "SCONE_FGRAM_COUNT", default_value = "1000000", value_parser = size, value_name = "S")]
    size: usize,
    /// An n-gram that occurs less often is dropped, and all longer ones with it
    #[arg(long, env = "SCONE_MIN_COUNT", default_value_t = 5, value_name = "COUNT")]
    min_count: u64,
    /// The most memory to use, such as 8GiB; half of the machine's if left out
    #[arg(long, env = "SCONE_MEMORY", value_parser = parse_bytes, value_name = "SIZE")]
    memory: Option<u64>,
    /// Where to put files that do not fit in memory; beside the output if left out
    #[arg(long, env = "SCONE_TEMP_DIR", value_name = "DIR")]
    temp_dir: Option<PathBuf>,
    /// Only count one of N parts of the dataset, all n-grams of it, for --merge: 1/N to N/N
    #[arg(long, env = "SCONE_SHARD", value_parser = parse_shard, value_name = "I/N", conflicts_with = "merge")]
    shard: Option<(u64, u64)>,
    /// Count only n-grams of so many tokens, whose first and last tokens are in --survivors
    #[arg(long, env = "SCONE_SCAN", value_name = "N", requires = "shard")]
    scan: Option<usize>,
    /// The set of all that survived in the whole dataset so far
    #[arg(long, env = "SCONE_SURVIVORS", value_name = "FILE")]
    survivors: Option<PathBuf>,
    /// Join files of counts instead of counting
    #[arg(long, num_args = 1.., value_name = "COUNTS")]
    merge: Vec<PathBuf>,
    /// Print the table as one JSON document on standard output
    #[arg(long)]
    json: bool,
}

fn size(text: &str) -> Result<usize, String> {
    if text == "all" {
        return Ok(usize::MAX);
    }
    text.parse().map_err(|_| "give a number of f-grams, or `all`".to_owned())
}

/// Runs the command.
///
/// # Errors
/// See [`mine_in`], [`count_part`], [`join`] and [`parquet::write`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let survivors = args.survivors.as_ref().map(parquet::read).transpose()?;
    match (&args.dataset, args.shard) {
        (dataset, _) if !args.merge.is_empty() => {
            run_join(args, dataset.as_deref(), survivors.as_ref(), start)
        }
        (Some(dataset), Some(part)) => run_part(args, dataset, part, survivors.as_ref(), start),
        (Some(_), None) if survivors.is_some() => anyhow::bail!("--survivors needs --shard or --merge"),
        (Some(dataset), None) => run_all(args, dataset, start),
        (None, _) => anyhow::bail!("name a dataset"),
    }
}

impl Args {
    fn memory(&self) -> u64 {
        self.memory.unwrap_or_else(half_of_memory)
    }

    fn temp_dir(&self) -> &Path {
        let beside = self.output.parent().filter(|parent| !parent.as_os_str().is_empty());
        self.temp_dir.as_deref().unwrap_or(beside.unwrap_or(Path::new(".")))
    }

    fn options(&self) -> MineOptions {
        MineOptions { max_n: self.max_n, size: self.size, min_count: self.min_count }
    }
}

/// Says so where an earlier process left off.
fn say_resumed(work: &WorkDirectory) {
    let finished = work.finished_scans();
    if finished > 0 {
        tracing::info!("going on after {finished} finished scans in {}", work.path().display());
    }
}

/// A bar of what the scans to `max_n` go through, and what feeds it.
struct Bar {
    bar: ProgressBar,
    start: Instant,
}

impl Bar {
    fn new(tokens: u64, max_n: usize) -> Self {
        let passes = (2 * max_n as u64).saturating_sub(3);
        Self {
            bar: progress_bar(passes * tokens, "{msg} [{bar:40}] {percent} % {eta}"),
            start: Instant::now(),
        }
    }

    fn show(&self, progress: MineProgress) {
        let MineProgress { n, counts, tokens, spilled } = progress;
        self.bar.inc(tokens);
        let rate = self.bar.position() as f64 / self.start.elapsed().as_secs_f64().max(1e-3);
        let what = if counts { "counting" } else { "numbering" };
        let spilled = if spilled > 0 { format!(", {} spilled", HumanBytes(spilled)) } else { String::new() };
        self.bar.set_message(format!("{what} {n}-grams, {:.1} M tokens/s{spilled}", rate / 1e6));
    }
}

fn run_all(args: &Args, dataset: &Path, start: Instant) -> anyhow::Result<()> {
    let dataset = Dataset::open(dataset)?;
    let mut work = mine_work(args.temp_dir(), &dataset, args.options())?;
    say_resumed(&work);
    let bar = Bar::new(dataset.train().tokens, args.max_n);
    let mined = mine_in(&mut work, &dataset, args.options(), args.memory(), &|progress| bar.show(progress))?;
    bar.bar.finish_and_clear();
    parquet::write(&mined.set, &args.output)?;
    work.remove()?;
    let seconds = start.elapsed().as_secs_f64();
    let longest = mined.scans.iter().filter(|scan| scan.candidates > 0).map(|scan| scan.n).max();
    if let Some(longest) = longest.filter(|&longest| longest < args.max_n) {
        tracing::warn!("no n-gram of more than {longest} tokens could be counted; --max-n is {}", args.max_n);
    }
    if args.json {
        super::print(&json(&mined, seconds).to_string())?;
    } else {
        super::print(&format!("{}\n{}", table(&mined), set_line(&args.output, &mined.set, seconds)))?;
    }
    Ok(())
}

fn run_part(
    args: &Args,
    dataset: &Path,
    part: (u64, u64),
    survivors: Option<&FgramSet>,
    start: Instant,
) -> anyhow::Result<()> {
    let dataset = Dataset::open(dataset)?;
    let max_n = args.scan.unwrap_or(args.max_n);
    anyhow::ensure!(
        survivors.is_some() == args.scan.is_some_and(|n| n > 2),
        "--scan N with N of 3 or more and --survivors, the set of all that survived scan N - 1, belong together"
    );
    let options = PartOptions { part, max_n, survivors, last_only: args.scan.is_some() };
    let mut work = part_work(args.temp_dir(), &dataset, options)?;
    say_resumed(&work);
    let bar = Bar::new(dataset.train().tokens / part.1, max_n);
    let show = |progress| bar.show(progress);
    let counted = count_part(&mut work, &dataset, options, args.memory(), &args.output, &show)?;
    work.remove()?;
    bar.bar.finish_and_clear();
    let Counted { tokens, rows, scans, efforts } = counted;
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        let json = serde_json::json!({
            "shard": format!("{}/{}", part.0, part.1),
            "tokens": tokens,
            "rows": rows,
            "scans": rows_of(&scans, &efforts),
            "seconds": seconds,
            "peak_rss_bytes": memory::peak_resident(),
        });
        super::print(&json.to_string())?;
    } else {
        let (path, (part, parts)) = (args.output.display(), part);
        super::print(&format!(
            "{path}: {rows} n-grams of up to {max_n} tokens in shard {part}/{parts} of {tokens} tokens, {seconds:.1} s"
        ))?;
    }
    Ok(())
}

fn run_join(
    args: &Args,
    dataset: Option<&Path>,
    survivors: Option<&FgramSet>,
    start: Instant,
) -> anyhow::Result<()> {
    let default = match dataset {
        Some(dataset) => {
            let dataset = Dataset::open(dataset)?;
            Some(Policy {
                max_n: args.max_n,
                special_tokens: dataset.special_tokens(),
                tokenizer_sha256: dataset.tokenizer().sha256().to_owned(),
            })
        }
        None => None,
    };
    let options = JoinOptions {
        counts: &args.merge,
        survivors,
        default: default.as_ref(),
        min_count: args.min_count,
        size: args.size as u64,
    };
    std::fs::create_dir_all(args.temp_dir())?;
    let scratch = tempfile::Builder::new().prefix("scone-merge-").tempdir_in(args.temp_dir())?;
    let Joined { set, scans } = join(&options, scratch.path())?;
    parquet::write(&set, &args.output)?;
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        let json = serde_json::json!({
            "fgrams": set.len(),
            "fgrams_sha256": set.sha256(),
            "max_n": set.policy().max_n,
            "scans": rows_of(&scans, &[]),
            "seconds": seconds,
            "peak_rss_bytes": memory::peak_resident(),
        });
        super::print(&json.to_string())?;
    } else {
        let mut text =
            format!("{:>4} {:>13} {:>12} {:>12} {:>10}\n", "n", "candidates", "survivors", "kept", "cut-off");
        for scan in &scans {
            text += &format!("{}\n", columns(scan));
        }
        super::print(&(text + &set_line(&args.output, &set, seconds)))?;
    }
    Ok(())
}

fn set_line(path: &Path, set: &FgramSet, seconds: f64) -> String {
    format!("{}: {} f-grams, set {:.12}, {seconds:.1} s", path.display(), set.len(), set.sha256())
}

/// What each scan came to and took.
fn rows_of(scans: &[Scan], efforts: &[Effort]) -> Vec<serde_json::Value> {
    let row = |(i, scan): (usize, &Scan)| {
        let mut row = serde_json::json!(scan);
        let effort = efforts.get(i).map(|effort| serde_json::json!(effort));
        if let (Some(row), Some(serde_json::Value::Object(effort))) = (row.as_object_mut(), effort) {
            row.extend(effort);
        }
        row
    };
    scans.iter().enumerate().map(row).collect()
}

fn json(mined: &Mined, seconds: f64) -> serde_json::Value {
    let share = |n| mined.matches.share(n);
    let mut scans = rows_of(&mined.scans, &mined.efforts);
    for (row, scan) in scans.iter_mut().zip(&mined.scans) {
        row["share"] = share(scan.n).into();
    }
    serde_json::json!({
        "fgrams": mined.set.len(),
        "fgrams_sha256": mined.set.sha256(),
        "max_n": mined.set.policy().max_n,
        "scans": scans,
        "fallback_share": share(1),
        "special_share": share(0),
        "hit_rate": mined.matches.hit_rate(),
        "mean_match": mined.matches.mean_match(),
        "seconds": seconds,
        "peak_rss_bytes": memory::peak_resident(),
    })
}

fn columns(scan: &Scan) -> String {
    let Scan { n, candidates, survivors, kept, cutoff } = scan;
    let cutoff = cutoff.map_or_else(|| "-".to_owned(), |count| count.to_string());
    format!("{n:>4} {candidates:>13} {survivors:>12} {kept:>12} {cutoff:>10}")
}

fn table(mined: &Mined) -> String {
    let mut text = format!(
        "{:>4} {:>13} {:>12} {:>12} {:>10} {:>10}\n",
        "n", "candidates", "survivors", "kept", "cut-off", "positions"
    );
    let percent = |n| 100.0 * mined.matches.share(n);
    text += &format!("{:>4} {:>13} {:>12} {:>12} {:>10} {:>8.2} %\n", 1, "", "", "", "", percent(1));
    for scan in &mined.scans {
        text += &format!("{} {:>8.2} %\n", columns(scan), percent(scan.n));
    }
    text += &format!(
        "positions: the share of training tokens whose longest match has n tokens (1: none).\n\
         hit rate {:.2} %, mean match length {:.3}",
        100.0 * mined.matches.hit_rate(),
        mined.matches.mean_match()
    );
    text
}
