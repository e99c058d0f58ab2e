//! The stream of a mixture of corpora: what is in it, that it goes on where it stopped, and runs that train on it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use scone::corpus::{Dataset, Input, MineOptions, PrepareOptions, TokenizerSource, mine, prepare, tag};
use scone::fgram::parquet;
use scone::train::{
    Batch, Corpora, CorpusConfig, Documents, ModelSection, Outcome, Progress, Run, RunConfig,
};

const CONTEXT: usize = 32;
const BATCH: usize = 5;
const BATCHES: u64 = 300;

/// Two corpora of one tokenizer and many short documents, `b` the smaller, tagged with the f-grams of `a`.
struct Data {
    directory: tempfile::TempDir,
}

impl Data {
    fn make() -> Self {
        let data = Self { directory: tempfile::tempdir().unwrap() };
        let a = data.prepare("a", 0, 200, TokenizerSource::Train { vocab_size: 400, sample_bytes: 1 << 20 });
        let b = data.prepare("b", 200, 60, TokenizerSource::File(data.path("a").join("tokenizer.json")));
        let mined = mine(&a, MineOptions { max_n: 4, size: 300, min_count: 2 }, &|_, _| {}).unwrap();
        parquet::write(&mined.set, data.path("fgrams.parquet")).unwrap();
        for dataset in [a, b] {
            tag(&dataset, &mined.set, &mut |_| {}).unwrap();
        }
        data
    }

    /// Makes a dataset of `documents` pieces of the text, the first ones left out.
    fn prepare(&self, name: &str, first: usize, documents: usize, tokenizer: TokenizerSource) -> Dataset {
        let text: Vec<char> = include_str!("../examples/sotu/held-out.txt").chars().collect();
        let pieces = text.chunks(150).skip(first).take(documents);
        let lines = pieces.map(|piece| {
            let text: String = piece.iter().take(20 + piece[0] as usize % 130).collect();
            format!("{}\n", serde_json::json!({ "text": text }))
        });
        let source = self.path(&format!("{name}.jsonl"));
        std::fs::write(&source, lines.collect::<String>()).unwrap();
        let output = self.path(name);
        let options = PrepareOptions { output, tokenizer, eos: None, validation: 0.2, shard_tokens: 3000 };
        prepare(&Input::new(&[source]).unwrap(), &options, &mut |_| {}).unwrap();
        Dataset::open(self.path(name)).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Three parts of `a` to two of `b`.
    fn config(&self, fgrams: bool) -> RunConfig {
        let mut config = RunConfig::example();
        config.data.dataset = self.path("a");
        config.data.weight = 3.0;
        config.data.corpora = vec![CorpusConfig { dataset: self.path("b"), weight: 2.0 }];
        config.data.documents = Documents::Apart;
        config.model = ModelSection {
            hidden_size: 16,
            intermediate_size: 24,
            layers: 2,
            heads: 2,
            kv_heads: 2,
            context: CONTEXT,
            ..ModelSection::default()
        };
        config.train.steps = 8;
        config.train.batch = BATCH;
        config.train.accumulate = 2;
        config.train.warmup_steps = 2;
        config.validation.every = 4;
        config.validation.tokens = 400;
        config.checkpoint.every = 3;
        match &mut config.fgram {
            Some(fgram) if fgrams => {
                fgram.set = self.path("fgrams.parquet");
                fgram.layers = 1;
                fgram.fallback = 0.3;
            }
            _ => config.fgram = None,
        }
        config
    }
}

/// The tokens of each window of a corpus's training split and the one after it, read one by one.
fn windows(dataset: &Dataset) -> Vec<Vec<u32>> {
    let mut windows = Vec::new();
    for shard in &dataset.train().shards {
        for start in (0..shard.len()).step_by(CONTEXT) {
            let window: Option<Vec<u32>> = (start..=start + CONTEXT).map(|i| shard.get(i)).collect();
            windows.extend(window);
        }
    }
    windows
}

fn windows_of(batch: &Batch) -> Vec<Vec<u32>> {
    let (inputs, targets) = (batch.inputs.chunks(CONTEXT), batch.targets.chunks(CONTEXT));
    let window = |(inputs, targets): (&[u32], &[u32])| {
        assert_eq!(inputs[1..], targets[..CONTEXT - 1]);
        [inputs, &targets[CONTEXT - 1..]].concat()
    };
    inputs.zip(targets).map(window).collect()
}

#[test]
fn every_epoch_of_a_corpus_is_each_of_its_windows_once_and_weights_are_kept() {
    let data = Data::make();
    let config = data.config(true);
    let corpora = Corpora::open(&config).unwrap();
    let stream = corpora.training(&config).unwrap();
    let mut of_window = HashMap::new();
    for (c, corpus) in corpora.iter().enumerate() {
        assert!(c == 1 || corpus.dataset().train().shards.len() > 1, "one shard: the test shows less");
        let windows = windows(corpus.dataset());
        assert_eq!(windows.len() as u64, stream.windows()[c]);
        for (i, window) in windows.into_iter().enumerate() {
            assert!(of_window.insert(window, (c, i)).is_none(), "two windows are alike");
        }
    }
    let mut orders = [Vec::new(), Vec::new()];
    for number in 0..BATCHES {
        let windows = windows_of(&stream.shuffled(number, BATCH).unwrap());
        assert_eq!(windows.len(), BATCH);
        for window in windows {
            let (corpus, i) = of_window[&window];
            orders[corpus].push(i);
        }
        let seen = (number + 1) as f64 * BATCH as f64;
        assert!((orders[0].len() as f64 - 0.6 * seen).abs() < 1.0, "{} of {seen}", orders[0].len());
    }
    let epochs = stream.epochs(BATCHES * BATCH as u64);
    for ((order, count), epochs) in orders.iter().zip(stream.windows()).zip(epochs) {
        assert_eq!(order.len() as f64 / count as f64, epochs);
        let passes: Vec<&[usize]> = order.chunks_exact(count as usize).collect();
        assert!(passes.len() >= 2, "{epochs} epochs: too few to show much");
        for pass in &passes {
            assert_eq!(pass.iter().collect::<HashSet<_>>().len(), count as usize);
            assert!(!pass.is_sorted());
        }
        assert!(passes.windows(2).all(|two| two[0] != two[1]), "two epochs in one order");
    }
}

/// The longest f-gram that ends at a position of a window, by trying all lengths; 1 if none does, 0 for a special token.
fn longest(grams: &HashSet<Vec<u32>>, special: &[u32], window: &[u32], at: usize) -> u8 {
    let longest = (2..=at + 1).rev().find(|n| grams.contains(&window[at + 1 - n..=at]));
    longest.map_or(u8::from(!special.contains(&window[at])), |n| n as u8)
}

#[test]
fn documents_are_apart_and_matches_are_those_of_brute_force() {
    let data = Data::make();
    let config = data.config(true);
    let corpora = Corpora::open(&config).unwrap();
    let stream = corpora.training(&config).unwrap();
    let set = corpora.set().unwrap();
    let grams: HashSet<Vec<u32>> = (0..set.len() as u32).map(|rank| set.tokens(rank).unwrap()).collect();
    let special = corpora.first().special_tokens();
    let eos = corpora.first().eos();
    let (mut documents, mut hits) = (0, 0);
    for number in 0..30 {
        let batch = stream.shuffled(number, BATCH).unwrap();
        let starts: Vec<usize> =
            (0..batch.inputs.len()).filter(|i| i % CONTEXT == 0 || batch.inputs[*i] == eos).collect();
        let ends = starts[1..].iter().copied().chain([batch.inputs.len()]);
        let lengths: Vec<usize> = starts.iter().zip(ends).map(|(start, end)| end - start).collect();
        assert_eq!(*batch.lengths, lengths);
        documents += lengths.len() - BATCH;
        for (&start, length) in starts.iter().zip(lengths) {
            let sequence = &batch.inputs[start..start + length];
            for at in 0..length {
                let n = longest(&grams, &special, sequence, at);
                assert_eq!(batch.matches[start + at], n, "no match reaches before its own document");
                hits += usize::from(n >= 2);
            }
        }
    }
    assert!(
        documents > 30 && hits > 300,
        "{documents} ends of documents, {hits} matches: too few to show much"
    );
    let mut together = config.clone();
    together.data.documents = Documents::Together;
    let whole = corpora.training(&together).unwrap().shuffled(3, BATCH).unwrap();
    assert_eq!(*whole.lengths, vec![CONTEXT; BATCH]);
    assert_eq!(whole.inputs, stream.shuffled(3, BATCH).unwrap().inputs);
}

#[test]
fn a_stream_that_is_taken_up_goes_on_as_the_undisturbed_one() {
    let data = Data::make();
    for fgrams in [false, true] {
        let config = data.config(fgrams);
        let corpora = Corpora::open(&config).unwrap();
        let stream = corpora.training(&config).unwrap();
        let undisturbed: Vec<Batch> = (0..60).map(|i| stream.shuffled(i, BATCH).unwrap()).collect();
        assert!(undisturbed[0].matches.is_empty() != fgrams);
        for stopped in [1, 13, 59] {
            let reopened = Corpora::open(&config).unwrap();
            let resumed = reopened.training(&config).unwrap();
            for (number, batch) in undisturbed.iter().enumerate().skip(stopped) {
                assert!(*batch == resumed.shuffled(number as u64, BATCH).unwrap(), "batch {number}");
            }
        }
        let other = RunConfig { seed: 1, ..config };
        let other = corpora.training(&other).unwrap().shuffled(0, BATCH).unwrap();
        assert!(other != undisturbed[0], "the seed changes nothing");
    }
}

fn train(run: &mut Run, stop_after: Option<u64>) -> (Outcome, Vec<Progress>) {
    let stop = AtomicBool::new(false);
    let mut seen = Vec::new();
    let outcome = run.train(None, &stop, &mut |progress| {
        stop.store(stop_after == Some(progress.step), Ordering::Relaxed);
        seen.push(progress.clone());
    });
    (outcome.unwrap(), seen)
}

/// What is the same whenever and however fast it was computed.
fn figures(seen: &[Progress]) -> Vec<Progress> {
    seen.iter().map(|progress| Progress { tokens_per_second: 0.0, ..progress.clone() }).collect()
}

#[test]
fn a_resumed_run_on_a_mixture_ends_bit_for_bit_as_an_undisturbed_one_and_reports_each_corpus() {
    let data = Data::make();
    let mut config = data.config(true);
    let (whole, parts) = (data.path("whole"), data.path("parts"));
    let (_, undisturbed) = train(&mut Run::open(&config, &whole, false).unwrap(), None);
    train(&mut Run::open(&config, &parts, false).unwrap(), Some(3));
    let (outcome, rest) = train(&mut Run::open(&config, &parts, true).unwrap(), None);
    assert_eq!(outcome, Outcome::Finished);
    assert_eq!(figures(&rest), figures(&undisturbed)[3..]);
    let weights = |run: &PathBuf| std::fs::read(run.join("model/model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&parts));

    // Computing blocks again costs time and changes nothing else.
    config.train.recompute = true;
    let again = data.path("again");
    let (_, recomputed) = train(&mut Run::open(&config, &again, false).unwrap(), None);
    assert_eq!(figures(&recomputed), figures(&undisturbed));
    assert!(weights(&whole) == weights(&again));

    for progress in &undisturbed {
        assert_eq!(progress.corpora.is_empty(), progress.validation_loss.is_none());
    }
    let last = &undisturbed[7];
    let (a, b) = (last.corpora["a"], last.corpora["b"]);
    let loss = 0.6 * a.validation_loss + 0.4 * b.validation_loss;
    assert!((last.validation_loss.unwrap() - loss).abs() < 1e-9 && a.validation_loss != b.validation_loss);
    let windows = (8 * 2 * BATCH) as f64;
    let count = |name: &str| windows_count(&Dataset::open(data.path(name)).unwrap());
    assert_eq!(a.epochs, (0.6 * windows).round() / count("a"));
    assert_eq!(b.epochs, (0.4 * windows).round() / count("b"));
}

fn windows_count(dataset: &Dataset) -> f64 {
    windows(dataset).len() as f64
}

#[test]
fn corpora_that_do_not_go_together_are_refused_by_name() {
    let data = Data::make();
    let refused = |config: &RunConfig| Corpora::open(config).err().unwrap().to_string();
    data.prepare("c", 0, 60, TokenizerSource::Train { vocab_size: 300, sample_bytes: 1 << 20 });
    let mut config = data.config(false);
    config.data.corpora[0].dataset = data.path("c");
    let error = refused(&config);
    assert!(error.contains("another tokenizer") && error.contains("--tokenizer"), "{error}");

    data.prepare("d", 0, 60, TokenizerSource::File(data.path("a").join("tokenizer.json")));
    config = data.config(true);
    config.data.corpora[0].dataset = data.path("d");
    let error = refused(&config);
    assert!(error.contains("tag") && error.contains("/d/"), "{error}");
    config.fgram = None;
    assert!(Corpora::open(&config).is_ok());

    let toml = data.path("run.toml");
    let refused = |config: &RunConfig| {
        std::fs::write(&toml, config.to_toml()).unwrap();
        RunConfig::read(&toml).unwrap_err().to_string()
    };
    for weight in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        config.data.weight = weight;
        assert!(refused(&config).contains("must be positive"), "{weight}");
    }
    config = data.config(false);
    config.data.corpora[0].dataset = data.path("a");
    assert!(refused(&config).contains("listed twice"));
    let wrong = data.config(false).to_toml().replace("\"apart\"", "\"aside\"");
    std::fs::write(&toml, wrong).unwrap();
    assert!(RunConfig::read(&toml).unwrap_err().to_string().contains("aside"));
}

#[test]
fn a_mixture_is_read_from_toml_with_paths_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let toml = directory.path().join("run.toml");
    let text = "[data]\ndataset = \"books\"\ndocuments = \"apart\"\n[[data.corpora]]\ndataset = \"wiki\"\nweight = 0.25\n";
    std::fs::write(&toml, text).unwrap();
    let config = RunConfig::read(&toml).unwrap();
    let weighted: Vec<_> = config.data.weighted().map(|(path, weight)| (path.to_owned(), weight)).collect();
    assert_eq!(weighted, [(directory.path().join("books"), 1.0), (directory.path().join("wiki"), 0.25)]);
    assert_eq!(config.data.documents, Documents::Apart);
    std::fs::write(&toml, config.to_toml()).unwrap();
    assert_eq!(RunConfig::read(&toml).unwrap(), config);
}
