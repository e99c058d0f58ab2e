//! `scone-train tag`: the longest match at every token of a dataset.

use std::path::PathBuf;
use std::time::Instant;

use super::progress_bar;
use crate::corpus::{Dataset, TagReport, tag};
use crate::fgram::{MAX_N, Policy, parquet};

/// Write the length of the longest f-gram that ends at every token of a dataset.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Beside each shard (train-00000.bin) comes a file of one byte a token (train-00000.tags): 2 to K \
where an f-gram ends, 1 where the token falls back to its own embedding, 0 for a special token. tags.json says \
which f-gram set they are of. A set from another program (columns `tokens` and `count`, without our metadata) is \
taken to be of the dataset's tokenizer.

Example: scone-train tag data/books --fgrams data/fgrams.parquet"
)]
pub struct Args {
    /// A directory that `prepare` made
    #[arg(env = "SCONE_DATASET", value_name = "DATASET")]
    dataset: PathBuf,
    /// The f-gram set, Parquet
    #[arg(long, env = "SCONE_FGRAMS", value_name = "FILE")]
    fgrams: PathBuf,
    /// Print tags.json, with the rates, on standard output
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// See [`tag`] and [`parquet::read_with`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let dataset = Dataset::open(&args.dataset)?;
    let policy = Policy {
        max_n: MAX_N,
        special_tokens: dataset.special_tokens(),
        tokenizer_sha256: dataset.tokenizer().sha256().to_owned(),
    };
    let set = parquet::read_with(&args.fgrams, &policy)?;
    let bar = progress_bar(dataset.manifest().tokens, "tagging [{bar:40}] {human_pos} tokens {eta}");
    let report = tag(&dataset, &set, &mut |done| bar.inc(done))?;
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        super::print(&json(&report, seconds)?.to_string())?;
    } else {
        let (path, fgrams) = (args.dataset.display(), report.fgrams);
        super::print(&format!("{}{path}: {fgrams} f-grams, {seconds:.1} s", table(&report)))?;
    }
    Ok(())
}

fn json(report: &TagReport, seconds: f64) -> anyhow::Result<serde_json::Value> {
    let mut json = serde_json::to_value(report)?;
    for (name, histogram) in [("train", &report.train), ("validation", &report.validation)] {
        json[name]["hit_rate"] = histogram.hit_rate().into();
        json[name]["mean_match"] = histogram.mean_match().into();
    }
    json["seconds"] = seconds.into();
    Ok(json)
}

fn table(report: &TagReport) -> String {
    let mut text = format!("{:12} {:>13} {:>9} {:>10}", "split", "tokens", "hit rate", "mean match");
    for n in 1..=report.max_n {
        text += &format!(" {:>8}", format!("n = {n}"));
    }
    for (name, histogram) in [("train", &report.train), ("validation", &report.validation)] {
        let (total, hits, mean) = (histogram.total(), histogram.hit_rate(), histogram.mean_match());
        text += &format!("\n{name:12} {total:>13} {:>7.2} % {mean:>10.3}", 100.0 * hits);
        for n in 1..=report.max_n {
            text += &format!(" {:>6.2} %", 100.0 * histogram.share(n));
        }
    }
    text.push('\n');
    text
}
