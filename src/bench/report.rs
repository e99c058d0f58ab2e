use std::fmt::{self, Display, Formatter, Write};

use serde::Serialize;

use super::{Distribution, Load, Machine, Metric, Plan, Quality, Ratio, Sampling, Summary};

/// All that a run found: serialised it is the JSON document, displayed the text.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of this program.
    pub version: &'static str,
    /// Where it ran.
    pub machine: Machine,
    /// Where the prompts come from.
    pub prompts: String,
    /// What every request asked for.
    pub sampling: Sampling,
    /// How much was measured.
    pub plan: Plan,
    /// In the order given.
    pub targets: Vec<TargetReport>,
    /// By load, then by target.
    pub results: Vec<Summary>,
    /// By load, then by target, then by metric.
    pub ratios: Vec<Ratio>,
}

/// What was measured, and how good it is.
#[derive(Clone, Debug, Serialize)]
pub struct TargetReport {
    /// Its name.
    pub name: String,
    /// Its address.
    pub url: String,
    /// The model that it was asked for.
    pub model: String,
    /// Whether it was started for this run.
    pub spawned: bool,
    /// On the text given, if one was.
    pub quality: Option<Quality>,
}

impl Report {
    /// Whether there is a target none of whose requests succeeded.
    pub fn all_failed(&self) -> bool {
        self.targets.iter().any(|target| {
            self.results.iter().filter(|result| result.target == target.name).all(|result| result.ok == 0)
        })
    }

    fn quality(&self, target: &str) -> Option<&Quality> {
        self.targets.iter().find(|report| report.name == target)?.quality.as_ref()
    }

    fn write_load(&self, f: &mut Formatter<'_>, load: Load) -> fmt::Result {
        let results: Vec<&Summary> = self.results.iter().filter(|result| result.load == load).collect();
        let mut table = Table::new(load.to_string(), results.iter().map(|result| result.target.clone()));
        table.row("requests ok", results.iter().map(|result| Some(result.ok.to_string())));
        table.row("requests failed", results.iter().map(|result| Some(result.failed.to_string())));
        let rate = |value: f64| Some(format!("{value:.2}"));
        table.row("requests/s", results.iter().map(|result| rate(result.requests_per_s)));
        table.row("goodput, requests/s", results.iter().map(|result| rate(result.goodput_per_s?)));
        table.row("output tokens/s", results.iter().map(|result| rate(result.output_tokens_per_s)));
        table.row("total tokens/s", results.iter().map(|result| rate(result.total_tokens_per_s?)));
        table.row(
            "times in ms",
            results.iter().map(|_| Some(HEAD.iter().map(|h| format!("{h:>9}")).collect())),
        );
        table.row("  TTFT", results.iter().map(|result| times(result.ttft_ms)));
        table.row("  ITL", results.iter().map(|result| times(result.itl_ms)));
        table.row("  TPOT", results.iter().map(|result| times(result.tpot_ms)));
        table.row("  E2E", results.iter().map(|result| times(result.e2e_ms)));
        let quality = |figure: fn(&Quality) -> String| {
            results.iter().map(move |result| self.quality(&result.target).map(figure))
        };
        table.row("perplexity", quality(|quality| format!("{:.3}", quality.perplexity)));
        table.row("bits per byte", quality(|quality| format!("{:.4}", quality.bits_per_byte)));
        table.row("tokens scored", quality(|quality| quality.tokens.to_string()));
        write!(f, "\n{table}")?;
        results.iter().try_for_each(|result| write_troubles(f, result))?;
        self.write_ratios(f, load)
    }

    fn write_ratios(&self, f: &mut Formatter<'_>, load: Load) -> fmt::Result {
        for ratio in self.ratios.iter().filter(|ratio| ratio.load == load) {
            let what = format!("{} / {}, {}", ratio.target, ratio.baseline, ratio.metric);
            let n = ratio.ratios.len();
            match (ratio.geometric_mean, ratio.interval) {
                (Some(mean), Some([low, high])) => {
                    let verdict = match ratio.includes_one {
                        Some(true) => "; it includes 1: no difference shown",
                        _ => "",
                    };
                    writeln!(f, "{what}: {mean:.3}, 95% interval {low:.3} to {high:.3} (n = {n}){verdict}")?;
                }
                (Some(mean), None) => {
                    writeln!(f, "{what}: {mean:.3} (n = {n}: an interval needs 2 repetitions)")?;
                }
                (None, _) => writeln!(f, "{what}: no repetition in which both have it")?,
            }
        }
        Ok(())
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Machine { cpu, cores, platform, .. } = &self.machine;
        writeln!(
            f,
            "scone {}, {}, {cores} threads, {platform}",
            self.version,
            cpu.as_deref().unwrap_or("CPU")
        )?;
        for TargetReport { name, url, model, spawned, .. } in &self.targets {
            writeln!(f, "{name}: {model} at {url}{}", if *spawned { ", started for this run" } else { "" })?;
        }
        let Plan { requests, repetitions, .. } = &self.plan;
        let Sampling { output_tokens, temperature, .. } = &self.sampling;
        writeln!(f, "prompts: {}", self.prompts)?;
        writeln!(
            f,
            "{repetitions} repetitions of {requests} requests, {output_tokens} output tokens, temperature {temperature}"
        )?;
        for &load in &self.plan.loads {
            self.write_load(f, load)?;
        }
        if !self.ratios.is_empty() {
            writeln!(
                f,
                "\nRatios are geometric means of paired repetitions; intervals bootstrap over repetitions."
            )?;
            if self.plan.repetitions < 10 {
                writeln!(
                    f,
                    "Of few repetitions they are too narrow (5 give about 85%, 3 about 75%): use 10 or more."
                )?;
            }
        }
        let tokens =
            self.targets.iter().filter_map(|target| target.quality.as_ref()).map(|quality| quality.tokens);
        let counts: std::collections::BTreeSet<usize> = tokens.collect();
        if counts.len() > 1 {
            writeln!(f, "Tokenizers differ: compare bits per byte, not perplexity nor tokens/s.")?;
        }
        Ok(())
    }
}

impl Display for Metric {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutputTokensPerS => "output tokens/s",
            Self::TtftP50 => "median TTFT",
            Self::TpotP50 => "median TPOT",
        })
    }
}

fn write_troubles(f: &mut Formatter<'_>, result: &Summary) -> fmt::Result {
    let target = &result.target;
    for failures in result.failures.values() {
        writeln!(f, "{target}: {} failed, the first: {}", failures.count, failures.first)?;
    }
    if result.short > 0 {
        writeln!(f, "{target}: {} answers have fewer output tokens than were asked for", result.short)?;
    }
    Ok(())
}

const HEAD: [&str; 4] = ["mean", "p50", "p90", "p99"];

fn times(distribution: Option<Distribution>) -> Option<String> {
    let Distribution { mean, p50, p90, p99, .. } = distribution?;
    Some([mean, p50, p90, p99].iter().map(|ms| format!("{ms:>9.2}")).collect())
}

/// Rows of cells aligned to the right under their columns' names.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(title: String, columns: impl Iterator<Item = String>) -> Self {
        Self { rows: vec![std::iter::once(title).chain(columns).collect()] }
    }

    /// Adds a row, unless no column has anything in it.
    fn row(&mut self, name: &str, cells: impl Iterator<Item = Option<String>>) {
        let cells: Vec<Option<String>> = cells.collect();
        if cells.iter().any(Option::is_some) {
            let cells = cells.into_iter().map(|cell| cell.unwrap_or_else(|| "-".to_owned()));
            self.rows.push(std::iter::once(name.to_owned()).chain(cells).collect());
        }
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if column == 0 {
                    write!(line, "{cell:<width$}")?;
                } else {
                    write!(line, "  {cell:>width$}")?;
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
