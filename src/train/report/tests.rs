//! Runs that are made of a few lines, and what is said of them.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::curves::curves;
use super::equal::Equal;
use super::*;
use crate::train::Progress;

fn progress(step: u64, loss: f64, validation_loss: Option<f64>) -> Progress {
    Progress {
        step,
        tokens: 1000 * step,
        loss: Some(loss),
        validation_loss,
        learning_rate: 0.001,
        gradient_norm: 0.5,
        tokens_per_second: 100.0 + step as f64,
        corpora: Default::default(),
    }
}

const BASELINE: &str =
    "seed = 1\n[data]\ndataset = \"a/b/books\"\n[train]\nlearning_rate = 0.004\n[model]\nlayers = 4\n";
const FGRAM: &str = "[fgram]\nset = \"sets/five.parquet\"\nlayers = 2\n";

/// A run's directory of three updates, the last of them validated with this loss.
fn make(root: &Path, name: &str, config: &str, loss: f64, results: Option<Value>) -> PathBuf {
    let directory = root.join(name);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("config.toml"), config).unwrap();
    let updates = [progress(1, 9.0, None), progress(2, 6.0, Some(loss + 1.0)), progress(3, 5.0, Some(loss))];
    let lines = updates.map(|update| serde_json::to_string(&update).unwrap());
    // The last line is being written.
    std::fs::write(directory.join("metrics.jsonl"), lines.join("\n") + "\n{\"step\":4,\"tok").unwrap();
    if let Some(results) = results {
        std::fs::write(directory.join("results.json"), results.to_string()).unwrap();
    }
    directory
}

/// The cells of a table's row.
fn row(table: &str, first: &str) -> Vec<String> {
    let line = table.lines().find(|line| line.split('|').nth(1).is_some_and(|cell| cell.trim() == first));
    let line = line.unwrap_or_else(|| panic!("no row {first} in\n{table}"));
    line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
}

#[test]
fn runs_are_compared_with_the_first() {
    let root = tempfile::tempdir().unwrap();
    let faster = BASELINE.replace("0.004", "0.008");
    let runs = [
        make(root.path(), "base", BASELINE, 4.0, None),
        make(root.path(), "scone", &format!("{faster}{FGRAM}"), 3.9, None),
    ];
    let comparison = Comparison::read(&runs).unwrap();
    let table = comparison.table(&[]).unwrap();
    assert_eq!(
        row(&table, "run")[1..],
        [
            "tokens trained on",
            "best validation loss",
            "best validation perplexity",
            "to base",
            "tokens/s",
            "settings that differ"
        ]
    );
    assert_eq!(
        row(&table, "base")[1..],
        ["3000", "4.0000", "54.60", "–", "102", "train.learning_rate=0.004"]
    );
    // exp(3.9) = 49.402, and exp(-0.1) = 0.90484.
    assert_eq!(
        row(&table, "scone")[1..],
        ["3000", "3.9000", "49.40", "-9.52 %", "102", "train.learning_rate=0.008"]
    );
    let error = comparison.table(&["texts.books.perplexity".into()]).unwrap_err().to_string();
    assert!(error.contains("texts.books.perplexity") && error.contains("best.perplexity"), "{error}");
    let json = comparison.json();
    assert_eq!(
        json["runs"][1]["figures"]["best"],
        json!({ "loss": 3.9, "perplexity": 3.9f64.exp(), "step": 3 })
    );
    assert_eq!(json["runs"][1]["baseline"], false);
}

/// The loss of the served model and the lowest of those in training are different figures.
#[test]
fn measured_figures_stand_beside_measured_ones_only() {
    let root = tempfile::tempdir().unwrap();
    let results = |loss: f64| {
        Some(json!({
            "validation": { "loss": loss }, "tokens": 2_999, "parameters": { "main": 1_000_000, "fgram": 0 },
            "texts": { "books": { "perplexity": 20.0, "hit_rate": 0.5 } }, "fgrams": 0,
        }))
    };
    let base = make(root.path(), "base", BASELINE, 4.0, results(4.5));
    let scone = make(root.path(), "scone", &format!("{BASELINE}{FGRAM}"), 3.9, results(4.25));
    let unmeasured = make(root.path(), "unmeasured", BASELINE, 3.0, None);
    let table = |runs: &[PathBuf]| Comparison::read(runs).unwrap().table(&[]).unwrap();
    let measured = table(&[base.clone(), scone.clone()]);
    assert_eq!(row(&measured, "scone")[4..7], ["2999", "4.2500", "70.11"]);
    // Figures of f-grams are none of a baseline's, though its file has zeros.
    assert_eq!(row(&measured, "base")[..4], ["base", "1M", "–", "–"]);
    assert_eq!(row(&measured, "scone")[8..10], ["20.00", "50.0 %"]);
    let mixed = table(&[base, scone, unmeasured]);
    assert!(mixed.contains("best validation loss") && !mixed.contains("4.2500"), "{mixed}");
}

#[test]
fn what_is_missing_or_damaged_is_named() {
    let root = tempfile::tempdir().unwrap();
    let refused = |path: &Path| RunRecord::read(path).err().unwrap().to_string();
    assert!(refused(&root.path().join("none")).contains("config.toml"));
    let run = make(root.path(), "run", BASELINE, 4.0, None);
    std::fs::write(run.join("results.json"), "{").unwrap();
    assert!(refused(&run).contains("results.json"));
    std::fs::remove_file(run.join("metrics.jsonl")).unwrap();
    assert!(refused(&run).contains("metrics.jsonl"));
}

#[test]
fn parameters_are_counted_in_the_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let run = make(root.path(), "run", &format!("{BASELINE}{FGRAM}"), 4.0, None);
    let shapes = [
        ("p/main/model.embed_tokens.weight", vec![10, 4]),
        ("p/main/model.norm.weight", vec![4]),
        ("p/fgram/output_gain", vec![3]),
    ];
    let zeros = [0u8; 160];
    let views = shapes.map(|(name, shape)| {
        let bytes = &zeros[..4 * shape.iter().product::<usize>()];
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, bytes).unwrap())
    });
    std::fs::write(run.join("best.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let record = RunRecord::read(&run).unwrap();
    let counts = ["main", "non_embedding", "fgram"].map(|part| record.number(&format!("parameters.{part}")));
    assert_eq!(counts, [Some(44.0), Some(4.0), Some(3.0)]);
    std::fs::write(run.join("best.safetensors"), u64::MAX.to_le_bytes()).unwrap();
    assert_eq!(RunRecord::read(&run).unwrap().number("parameters.main"), None);
}

fn measured(perplexity: f64, size: u64, fgrams: u64) -> Option<Value> {
    Some(json!({
        "validation": { "loss": perplexity.ln() }, "fgrams": fgrams,
        "parameters": { "non_embedding": size }, "costs": { "table_bytes": fgrams * 64 },
    }))
}

fn axes(by: &str) -> Axes {
    Axes { by: by.into(), of: None, series: None }
}

#[test]
fn repetitions_are_averaged_and_a_baseline_is_a_level() {
    let root = tempfile::tempdir().unwrap();
    let scone = format!("{BASELINE}{FGRAM}");
    let again = scone.replace("seed = 1", "seed = 2");
    let runs = [
        make(root.path(), "base", BASELINE, 4.0, measured(40.0, 1000, 0)),
        make(root.path(), "large", &scone, 4.0, measured(30.0, 1000, 100_000)),
        make(root.path(), "small", &scone, 4.0, measured(38.0, 1000, 10_000)),
        make(root.path(), "small-2", &again, 4.0, measured(36.0, 1000, 10_000)),
    ];
    let comparison = Comparison::read(&runs).unwrap();
    let grid = comparison.by(&axes("fgrams")).unwrap();
    let table = grid.table(&["costs.table_bytes".into()]).unwrap();
    let rows: Vec<Vec<&str>> =
        table.lines().map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect();
    assert_eq!(rows[0], ["", "f-grams", "runs", "validation perplexity", "to base", "table bytes"]);
    assert_eq!(rows[2], ["baseline", "–", "1", "40.00", "–", "–"]);
    assert_eq!(rows[3], ["SCONE", "10K", "2", "37.00 (36.00 to 38.00)", "-7.50 %", "640K"]);
    assert_eq!(rows[4], ["SCONE", "100K", "1", "30.00", "-25.00 %", "6.4M"]);
    assert_eq!(rows.len(), 5, "runs that differ in the seed need no note:\n{table}");
    let svg = grid.chart();
    assert_eq!(svg.matches("<circle").count(), 2);
    assert_eq!(svg.matches("stroke-dasharray=\"5 4\"").count(), 1);
    assert!(svg.contains(">baseline 40<") && svg.contains(">f-grams<"));

    // A larger baseline is a level of its own.
    let larger = BASELINE.replace("layers = 4", "layers = 9");
    let mut with_larger = runs.to_vec();
    with_larger.push(make(root.path(), "base-2x", &larger, 4.0, measured(33.0, 2000, 0)));
    let larger = Comparison::read(&with_larger).unwrap();
    let svg = larger.by(&axes("fgrams")).unwrap().chart();
    assert!(svg.contains(">baseline 40<") && svg.contains(">base-2x 33<"));

    // The same with a run that is no repetition.
    let other = again.replace("0.004", "0.1");
    make(root.path(), "small-2", &other, 4.0, measured(36.0, 1000, 10_000));
    let comparison = Comparison::read(&runs).unwrap();
    let table = comparison.by(&axes("fgrams")).unwrap().table(&[]).unwrap();
    assert!(
        table.contains("small, small-2 are averaged") && table.contains("seed: train.learning_rate."),
        "{table}"
    );
}

#[test]
fn a_run_is_as_good_as_a_larger_baseline() {
    let root = tempfile::tempdir().unwrap();
    let mut runs: Vec<PathBuf> = [(1000, 40.0), (2000, 36.0), (4000, 33.0)]
        .map(|(size, perplexity)| {
            make(root.path(), &format!("base-{size}"), BASELINE, 4.0, measured(perplexity, size, 0))
        })
        .into();
    let scone = format!("{BASELINE}{FGRAM}");
    for (name, perplexity, fgrams) in [("scone", 34.5, 10_000), ("better", 20.0, 100_000)] {
        runs.push(make(root.path(), name, &scone, 4.0, measured(perplexity, 1000, fgrams)));
    }
    let comparison = Comparison::read(&runs).unwrap();
    let mut axes = axes("parameters.non_embedding");
    axes.series = Some("fgrams".into());
    let grid = comparison.by(&axes).unwrap();
    let table = grid.table(&[]).unwrap();
    // Half way from 36 to 33, so half way from 2000 to 4000 in logarithms.
    assert_eq!(row(&table, "f-grams 10K")[1..], ["1000", "34.50", "-13.75 %", "2828"]);
    assert_eq!(row(&table, "f-grams 100K")[4], "more than 4000");
    assert_eq!(grid.json()["points"][3]["as_good_as_first_series_at"].as_f64().unwrap().round(), 2828.0);
    let error =
        comparison.by(&super::Axes { by: "fgram.layers".into(), of: Some("nothing".into()), series: None });
    assert!(error.err().unwrap().to_string().contains("nothing"));
}

proptest! {
    /// Against a walk along the line in small steps.
    #[test]
    fn the_place_on_a_line_is_found(
        steps in prop::collection::vec((1.1..4.0f64, 0.1..3.0f64), 1..5),
        start in 1.0..1e6f64,
        y in 20.0..45.0f64,
    ) {
        let mut line = vec![(start, 40.0)];
        for (factor, fall) in steps {
            let (x, y) = line[line.len() - 1];
            line.push((x * factor, y - fall));
        }
        let (first, last) = (line[0], line[line.len() - 1]);
        let found = Equal::on(&line, y).unwrap();
        if y > first.1 {
            prop_assert_eq!(found, Equal::Before(first.0));
        } else if y < last.1 {
            prop_assert_eq!(found, Equal::Beyond(last.0));
        } else {
            let walk = line.windows(2).flat_map(|pair| {
                (0..=1000).map(move |i| {
                    let share = f64::from(i) / 1000.0;
                    let x = (pair[0].0.ln() * (1.0 - share) + pair[1].0.ln() * share).exp();
                    (x, pair[0].1 * (1.0 - share) + pair[1].1 * share)
                })
            });
            let nearest = walk.min_by(|a, b| (a.1 - y).abs().total_cmp(&(b.1 - y).abs())).unwrap();
            let Equal::At(x) = found else { panic!("{found:?}") };
            prop_assert!((x / nearest.0 - 1.0).abs() < 0.01, "{x} {nearest:?}");
        }
    }
}

#[test]
fn one_spike_in_a_long_run_shows_in_its_curves() {
    let updates = |spike: f64| -> Vec<Progress> {
        (1..=5000u64)
            .map(|step| Progress {
                gradient_norm: if step == 3333 { spike } else { 0.5 },
                ..progress(step, 5.0, step.is_multiple_of(1000).then_some(4.5))
            })
            .collect()
    };
    let [calm, spiky] = [0.5, 80.0].map(|spike| curves("run", &updates(spike)));
    assert_eq!(calm.matches("<polygon").count(), 0);
    assert_eq!(spiky.matches("<polygon").count(), 1);
    assert!(
        calm.contains("training 5<")
            && calm.contains("validation 4.5<")
            && calm.contains("run: 5000 updates")
    );
    assert!(calm.len() < 40_000, "{} bytes", calm.len());
    // A run that has barely begun.
    assert!(curves("run", &[]).contains("run: 0 updates"));
}
