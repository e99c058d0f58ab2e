//! `scone-train mine`: a dataset to its most frequent n-grams.

use std::path::PathBuf;
use std::time::Instant;

use crate::corpus::{Dataset, MineOptions, Mined, Scan, mine};
use crate::fgram::parquet;

use super::progress_bar;

/// Find the most frequent n-grams of a dataset's training split.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Scan n counts the n-grams whose first and last n - 1 tokens survived the scan before, and those \
that occur --min-count times survive. Then all survivors are ranked by count, then length (the shorter first), \
then token ids, and the first --size are kept. Counts are exact; the result does not depend on --threads. \
Memory: 8 bytes a training token, and up to 17 for each different n-gram of one scan.

Example: scone-train mine data/books --output data/fgrams.parquet --size 200000"
)]
pub struct Args {
    /// A directory that `prepare` made
    #[arg(env = "SCONE_DATASET", value_name = "DATASET")]
    dataset: PathBuf,
    /// The Parquet file to write: `tokens` (list of u32) and `count` (u64), by rank
    #[arg(long, short, env = "SCONE_FGRAMS", value_name = "FILE")]
    output: PathBuf,
    /// K: the most tokens of an n-gram (2 to 16)
    #[arg(long, env = "SCONE_MAX_N", default_value_t = 5, value_name = "K")]
    max_n: usize,
    /// S: how many f-grams to keep, at most
    #[arg(long, env = "SCONE_FGRAM_COUNT", default_value_t = 1_000_000, value_name = "S")]
    size: usize,
    /// An n-gram that occurs less often is dropped, and all longer ones with it
    #[arg(long, env = "SCONE_MIN_COUNT", default_value_t = 5, value_name = "COUNT")]
    min_count: u64,
    /// Print the table as one JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// See [`mine`] and [`parquet::write`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let dataset = Dataset::open(&args.dataset)?;
    let options = MineOptions { max_n: args.max_n, size: args.size, min_count: args.min_count };
    let scans = args.max_n.saturating_sub(1) as u64;
    let bar = progress_bar(scans * dataset.train().tokens, "{msg} [{bar:40}] {percent} % {eta}");
    let mined = mine(&dataset, options, &|n, done| {
        bar.set_message(format!("counting {n}-grams"));
        bar.inc(done);
    })?;
    bar.finish_and_clear();
    parquet::write(&mined.set, &args.output)?;
    let seconds = start.elapsed().as_secs_f64();
    let longest = mined.scans.iter().filter(|scan| scan.candidates > 0).map(|scan| scan.n).max();
    if let Some(longest) = longest.filter(|&longest| longest < args.max_n) {
        tracing::warn!("no n-gram of more than {longest} tokens could be counted; --max-n is {}", args.max_n);
    }
    if args.json {
        super::print(&json(&mined, seconds).to_string())?;
    } else {
        let (path, fgrams, hash) = (args.output.display(), mined.set.len(), mined.set.sha256());
        super::print(&format!(
            "{}\n{path}: {fgrams} f-grams, set {hash:.12}, {seconds:.1} s",
            table(&mined)
        ))?;
    }
    Ok(())
}

fn json(mined: &Mined, seconds: f64) -> serde_json::Value {
    let share = |n| mined.matches.share(n);
    let scans = mined.scans.iter().map(|scan| {
        let mut row = serde_json::json!(scan);
        row["share"] = share(scan.n).into();
        row
    });
    serde_json::json!({
        "fgrams": mined.set.len(),
        "fgrams_sha256": mined.set.sha256(),
        "max_n": mined.set.policy().max_n,
        "scans": scans.collect::<Vec<_>>(),
        "fallback_share": share(1),
        "special_share": share(0),
        "hit_rate": mined.matches.hit_rate(),
        "mean_match": mined.matches.mean_match(),
        "seconds": seconds,
    })
}

fn table(mined: &Mined) -> String {
    let mut text = format!(
        "{:>4} {:>13} {:>12} {:>12} {:>10} {:>10}\n",
        "n", "candidates", "survivors", "kept", "cut-off", "positions"
    );
    let percent = |n| 100.0 * mined.matches.share(n);
    text += &format!("{:>4} {:>13} {:>12} {:>12} {:>10} {:>8.2} %\n", 1, "", "", "", "", percent(1));
    for Scan { n, candidates, survivors, kept, cutoff } in &mined.scans {
        let cutoff = cutoff.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let percent = percent(*n);
        text +=
            &format!("{n:>4} {candidates:>13} {survivors:>12} {kept:>12} {cutoff:>10} {percent:>8.2} %\n");
    }
    text += &format!(
        "positions: the share of training tokens whose longest match has n tokens (1: none).\n\
         hit rate {:.2} %, mean match length {:.3}",
        100.0 * mined.matches.hit_rate(),
        mined.matches.mean_match()
    );
    text
}
