//! `scone-train measure`: its figures are those of `scone eval`, of the run itself, and of the batches it saw.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/small_corpus.rs"]
mod small_corpus;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;

use scone::train::{CardSection, Corpora, Results, Run, RunConfig, unique_grams};
use serde_json::Value;
use small_corpus::Data;

const SCONE: &str = env!("CARGO_BIN_EXE_scone");
const TRAIN: &str = env!("CARGO_BIN_EXE_scone-train");

/// A mined corpus, a finished run with f-grams (`scone`) and a baseline stopped half way (`baseline`).
struct Runs {
    data: Data,
}

impl Runs {
    fn make() -> Self {
        let data = Data::make();
        let held_out = include_str!("../examples/sotu/held-out.txt");
        std::fs::write(data.path("held-out.txt"), held_out.chars().take(5_000).collect::<String>()).unwrap();
        let runs = Self { data };
        for (name, most) in [("scone", None), ("baseline", Some(6))] {
            let mut run = Run::open(&runs.config(name), &runs.path(name), false).unwrap();
            run.train(most, &AtomicBool::new(false), &mut |_| {}).unwrap();
        }
        runs
    }

    fn config(&self, name: &str) -> RunConfig {
        let mut config = self.data.config(name == "scone");
        config.train.learning_rate = 0.01;
        config.validation.tokens = 600;
        if let Some(fgram) = &mut config.fgram {
            (fgram.own_embedding, fgram.hidden_size) = (true, Some(48));
            fgram.fallback = 0.2;
        }
        config
    }

    fn path(&self, name: &str) -> PathBuf {
        self.data.path(name)
    }

    fn command(&self, program: &str, arguments: &str) -> Output {
        let mut command = Command::new(program);
        command.current_dir(self.path("")).args(arguments.split_whitespace());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONE_")) {
            command.env_remove(name);
        }
        command.output().unwrap()
    }

    fn json(&self, program: &str, arguments: &str) -> Value {
        let output = self.command(program, arguments);
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refused(&self, arguments: &str) -> String {
        let output = self.command(TRAIN, arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

fn close(a: f64, b: f64, share: f64) -> bool {
    (a - b).abs() <= share * b.abs()
}

fn table(runs: &Runs) -> PathBuf {
    runs.path("scone").join("model/table.safetensors")
}

#[test]
fn figures_are_those_of_eval_of_the_run_and_of_its_batches() {
    let runs = Runs::make();
    let measure = "measure scone --text held=held-out.txt --row-dtype f32 --json";
    let printed = runs.json(TRAIN, &format!("{measure} --discard-table"));
    assert!(!table(&runs).exists(), "the table is still there");
    assert_eq!(runs.json(TRAIN, measure), printed, "another table, other figures");
    let results = Results::read(&runs.path("scone")).unwrap();
    assert_eq!(serde_json::to_value(&results).unwrap(), printed, "what is printed is not what is kept");

    let eval = runs.json(SCONE, "eval scone/model --text held-out.txt --json");
    let held = &printed["texts"]["held"];
    for (ours, evals) in [("loss", "nll"), ("perplexity", "perplexity"), ("bits_per_byte", "bits_per_byte")] {
        assert!(close(held[ours].as_f64().unwrap(), eval[evals].as_f64().unwrap(), 1e-9), "{held} {eval}");
    }
    assert_eq!(held["hit_rate"], eval["hit_rate"]);
    assert!(results.texts["held"].hit_rate > 0.2, "hardly an f-gram was met: {held}");

    // Rows and weights are exact, so the served model has the loss that the run had.
    let best = results.history.best_loss.unwrap();
    assert!(close(results.validation.loss, best, 1e-4), "{} is not {best}", results.validation.loss);
    assert_eq!(results.history.tokens, 12 * 4 * 2 * 32);
    assert_eq!(results.costs.table_bytes, table(&runs).metadata().unwrap().len());
    the_f_grams_met_are_those_of_the_tags(&runs, &results);
}

/// By the dataset's tags and every batch of the run.
fn the_f_grams_met_are_those_of_the_tags(runs: &Runs, results: &Results) {
    let config = runs.config("scone");
    let corpora = Corpora::open(&config).unwrap();
    let batches = corpora.training(&config).unwrap();
    let (mut met, mut all) = (0, 0);
    for number in 0..24 {
        let mut batch = batches.shuffled(number, 4).unwrap();
        all += unique_grams(&batch, 0).grams.len();
        batch.fall_back(0.2, config.seed ^ number);
        met += unique_grams(&batch, 0).grams.len();
    }
    let expected = met as f64 / results.history.tokens as f64;
    assert!(met < all, "matches that fell back are counted whole");
    assert!(close(results.costs.fgrams_per_token, expected, 1e-12), "{:?}, not {expected}", results.costs);

    let held_out = corpora.held_out(&config).unwrap();
    let tags: Vec<u8> = held_out[0].batches.iter().flat_map(|batch| batch.matches.clone()).collect();
    let share = |sum: usize| sum as f64 / tags.len() as f64;
    assert_eq!(results.validation.hit_rate, share(tags.iter().filter(|&&n| n >= 2).count()));
    assert_eq!(results.validation.mean_match, share(tags.iter().map(|&n| usize::from(n)).sum()));
}

#[test]
fn what_cannot_be_measured_is_refused_and_a_baseline_is_one() {
    let runs = Runs::make();
    let error = runs.refused("measure baseline --text held=held-out.txt");
    assert!(error.contains("step 6 of 12") && error.contains("--resume"), "{error}");
    assert!(!Path::new(&runs.path("baseline")).join("results.json").exists());

    let mut run = Run::open(&runs.config("baseline"), &runs.path("baseline"), true).unwrap();
    run.train(None, &AtomicBool::new(false), &mut |_| {}).unwrap();
    assert!(runs.refused("measure baseline --table t.safetensors").contains("baseline"));
    assert!(runs.refused("measure baseline --dataset nowhere").contains("--dataset"));
    assert!(runs.refused("measure scone --fgrams nowhere").contains("--fgrams"));
    assert!(runs.refused("measure baseline --text held=nowhere.txt").contains("nowhere.txt"));
    let printed = runs.json(TRAIN, "measure baseline --text held=held-out.txt --json");
    let results = Results::read(&runs.path("baseline")).unwrap();
    assert_eq!((results.fgrams, results.max_n, results.parameters.fgram), (0, 1, 0), "{printed}");
    assert_eq!((results.costs.table_bytes, results.costs.fgram_training_flops), (0, 0.0));
    assert_eq!(results.texts["held"].hit_rate, 0.0);
    // The main model serves at its baseline's cost.
    runs.json(TRAIN, "measure scone --json --discard-table");
    let scone = Results::read(&runs.path("scone")).unwrap();
    assert_eq!(scone.costs.inference_flops, results.costs.inference_flops);
    assert_eq!(scone.costs.accelerator_bytes, results.costs.accelerator_bytes);
    assert!(scone.costs.training_flops > results.costs.training_flops);
}

/// The part of a card between its two `---`.
fn front_matter(card: &str) -> Value {
    let yaml = card.strip_prefix("---\n").unwrap().split_once("---\n").unwrap().0;
    serde_saphyr::from_str(yaml).unwrap()
}

/// Whether a card's recipe is this run's, of whose paths it gives the names only.
fn has_recipe(card: &str, mut config: RunConfig) -> bool {
    config.data.dataset = "dataset".into();
    config.fgram.as_mut().unwrap().set = "fgrams.parquet".into();
    let recipe = card.split_once("```toml\n").unwrap().1.split_once("```").unwrap().0;
    toml::from_str::<RunConfig>(recipe).unwrap() == config
}

#[test]
fn a_card_says_what_was_measured_and_typed_and_nothing_else() {
    let runs = Runs::make();
    let card = || std::fs::read_to_string(runs.path("scone").join("model/README.md")).unwrap();
    let first = card();
    assert!(first.contains("Not measured yet") && first.contains("Trained on 3,072 tokens"), "{first}");
    assert_eq!(front_matter(&first)["tags"], serde_json::json!(["scone", "llama", "n-gram"]));
    assert!(has_recipe(&first, runs.config("scone")), "{first}");
    assert!(first.contains("- scone ") && first.contains(" thread"), "no machine: {first}");

    let mut run = Run::open(&runs.config("baseline"), &runs.path("baseline"), true).unwrap();
    run.train(None, &AtomicBool::new(false), &mut |_| {}).unwrap();
    runs.json(TRAIN, "measure baseline --text held=held-out.txt --json");
    runs.json(TRAIN, "measure scone --text held=held-out.txt --json");
    let mut config = runs.config("scone");
    let data = "Addresses, \"as given\": from 1790 on.\n---\nkey: value".to_owned();
    config.card =
        Some(CardSection { title: Some("A: \"title\"".into()), data: Some(data), ..Default::default() });
    std::fs::write(runs.path("scone").join("config.toml"), config.to_toml()).unwrap();
    let output = runs.command(TRAIN, "card scone --against baseline --license apache-2.0");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let (card, [scone, baseline]) =
        (card(), ["scone", "baseline"].map(|run| Results::read(&runs.path(run)).unwrap()));
    let front = front_matter(&card);
    assert_eq!(
        (&front["license"], &front["model-index"][0]["name"]),
        (&"apache-2.0".into(), &"A: \"title\"".into())
    );
    let (own, other) = (scone.texts["held"].perplexity, baseline.texts["held"].perplexity);
    let metric = &front["model-index"][0]["results"][0]["metrics"][0]["value"];
    assert!(close(metric.as_f64().unwrap(), own, 1e-4), "{front}");
    let change = 100.0 * (own / other - 1.0);
    for line in [
        "# A: \"title\"".to_owned(),
        "Addresses, \"as given\": from 1790 on.".to_owned(),
        "| | baseline | SCONE | change |".to_owned(),
        format!("| held: perplexity | {other:.2} | {own:.2} | {change:+.1} % |"),
        format!("| held: hit rate, % | – | {:.1} | |", 100.0 * scone.texts["held"].hit_rate),
    ] {
        assert!(card.lines().any(|found| found == line), "no line `{line}` in\n{card}");
    }
    assert!(has_recipe(&card, runs.config("scone")), "{card}");

    std::fs::write(runs.path("held-out.txt"), "Another text under the same name.").unwrap();
    runs.json(TRAIN, "measure baseline --text held=held-out.txt --json");
    let error = runs.refused("card scone --against baseline");
    assert!(error.contains("\"held\"") && error.contains("same files"), "{error}");
}
