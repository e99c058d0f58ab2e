//! What a run directory keeps: the newest checkpoints and only whole ones, what the run stood on, samples, signs of
//! trouble; and that it belongs to one process.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/small_corpus.rs"]
mod small_corpus;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use scone::corpus::{Dataset, Input, MineOptions, PrepareOptions, TokenizerSource, mine, prepare, tag};
use scone::fgram::{FgramSet, parquet};
use scone::train::{Outcome, Run, RunConfig, TrainError};
use serde_json::Value;
use small_corpus::Data;

/// Trains to the end, or for `most` updates.
fn train(config: &RunConfig, run: &Path, most: Option<u64>) -> Outcome {
    let mut run = Run::open(config, run, run.join("config.toml").exists()).unwrap();
    run.train(most, &AtomicBool::new(false), &mut |_| {}).unwrap()
}

fn names(run: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(run)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("safetensors"))
        .collect();
    names.sort();
    names
}

fn lines(run: &Path, file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// `program` without what the environment of the test says.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONE_")) {
        command.env_remove(name);
    }
    command
}

#[test]
fn the_newest_checkpoints_stay() {
    let data = Data::make();
    let mut config = data.config(true);
    config.checkpoint.every = 2;
    for (keep, steps) in [(1, &["12"][..]), (3, &["08", "10", "12"])] {
        config.checkpoint.keep = keep;
        let run = data.path(&format!("keep-{keep}"));
        assert_eq!(train(&config, &run, Some(1)), Outcome::Stopped);
        let first: Vec<_> = names(&run).into_iter().filter(|name| name.starts_with("step")).collect();
        assert_eq!(first.len(), keep.min(2), "{first:?}: that of step 0 and that of step 1");
        assert_eq!(train(&config, &run, None), Outcome::Finished);
        let mut expected = vec!["best.safetensors".to_owned()];
        expected.extend(steps.iter().map(|step| format!("step-000000{step}.safetensors")));
        assert_eq!(names(&run), expected);
    }
}

type Damage = fn(&mut Vec<u8>);

/// Any one byte of a checkpoint, or its end, may be lost: the run goes on from the one before, and ends as it would have.
#[test]
fn a_damaged_checkpoint_is_set_aside_for_the_one_before() {
    let data = Data::make();
    let config = data.config(true);
    let whole = data.path("whole");
    train(&config, &whole, None);
    let expected = std::fs::read(whole.join("step-00000012.safetensors")).unwrap();

    let damages: [(&str, Damage); 4] = [
        ("halved", |bytes| bytes.truncate(bytes.len() / 2)),
        ("empty", Vec::clear),
        ("a number", |bytes| *bytes.last_mut().unwrap() ^= 1),
        ("the state", |bytes| {
            let at = bytes.windows(13).position(|w| w == b"warmup_steps ").unwrap();
            bytes[at] ^= 1;
        }),
    ];
    for (name, damage) in damages {
        let run = data.path(name);
        assert_eq!(train(&config, &run, Some(7)), Outcome::Stopped);
        assert_eq!(names(&run)[1..], ["step-00000005.safetensors", "step-00000007.safetensors"]);
        let newest = run.join("step-00000007.safetensors");
        let mut bytes = std::fs::read(&newest).unwrap();
        damage(&mut bytes);
        std::fs::write(&newest, bytes).unwrap();
        assert_eq!(Run::open(&config, &run, true).unwrap().step(), 5, "{name}");
        assert!(run.join("step-00000007.safetensors.damaged").exists() && !newest.exists(), "{name}");
        assert_eq!(train(&config, &run, None), Outcome::Finished);
        assert!(std::fs::read(run.join("step-00000012.safetensors")).unwrap() == expected, "{name}");
    }
}

#[test]
fn a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew() {
    let data = Data::make();
    let (config, run) = (data.config(false), data.path("run"));
    train(&config, &run, Some(2));
    for name in names(&run).iter().filter(|name| name.starts_with("step")) {
        std::fs::write(run.join(name), b"nothing of the kind").unwrap();
    }
    let before = names(&run);
    let error = Run::open(&config, &run, true).err().unwrap().to_string();
    assert!(error.contains("step-00000002.safetensors: damaged"), "{error}");
    assert_eq!(names(&run), before, "they stay what they are called");
}

/// The first checkpoint has no moments: three times its size does not fit any more. That is found by a thread of its own.
#[test]
fn a_checkpoint_that_cannot_be_written_ends_the_run() {
    let data = Data::make();
    let config = data.config(true);
    std::fs::write(data.path("run.toml"), config.to_toml()).unwrap();
    let run = data.path("run");
    let fit = |script: &str, flags: &[&str]| {
        let mut command = command("bash");
        command.args(["-c", script, env!("CARGO_BIN_EXE_scone-train"), "fit", "--config"]);
        command.arg(data.path("run.toml")).arg("--output").arg(&run).args(flags).output().unwrap()
    };
    assert!(fit("exec \"$0\" \"$@\"", &["--stop-after", "0"]).status.success());
    let kib = std::fs::metadata(run.join("step-00000000.safetensors")).unwrap().len() / 1024;
    let full = fit(&format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", kib * 2), &["--resume"]);
    let message = String::from_utf8_lossy(&full.stderr);
    assert_eq!(full.status.code(), Some(1), "{message}");
    assert!(message.contains("error:") && message.contains("step-00000005.safetensors"), "{message}");
    assert_eq!(names(&run), ["best.safetensors", "step-00000000.safetensors"], "nothing half written");
    assert!(fit("exec \"$0\" \"$@\"", &["--resume"]).status.success());
}

#[test]
fn a_run_belongs_to_one_process_which_clears_up_after_a_killed_one() {
    let data = Data::make();
    let (config, run) = (data.config(false), data.path("run"));
    let open = Run::open(&config, &run, false).unwrap();
    let error = Run::open(&config, &run, true).err().unwrap();
    assert!(matches!(&error, TrainError::Busy(directory) if *directory == run), "{error}");
    drop(open);
    std::fs::remove_file(run.join("config.toml")).unwrap();
    let error = Run::open(&config, &run, false).err().unwrap();
    assert!(matches!(&error, TrainError::Exists(_)), "checkpoints without a configuration: {error}");
    let half = run.join("step-00000005.safetensors.Xy12ab.partial");
    std::fs::write(&half, b"half").unwrap();
    Run::open(&config, &run, true).unwrap();
    assert!(!half.exists());
}

/// F-grams that are the longest match at a position of the validation split, found position by position.
fn matched(dataset: &Dataset, set: &FgramSet) -> HashSet<u32> {
    let mut found = HashSet::new();
    for shard in &dataset.validation().shards {
        let mut tokens = Vec::new();
        shard.read(0..shard.len(), &mut tokens).unwrap();
        found.extend((1..=tokens.len()).filter_map(|end| Some(set.longest_match(&tokens[..end])?.rank)));
    }
    found
}

#[test]
fn what_a_run_stands_on_is_written_down_at_every_start() {
    let data = Data::make();
    let (config, run) = (data.config(true), data.path("run"));
    train(&config, &run, Some(4));
    train(&config, &run, None);
    let environment = json(&run.join("environment.json"));
    let dataset = Dataset::open(data.path("dataset")).unwrap();
    let set = parquet::read(data.path("fgrams.parquet")).unwrap();
    assert_eq!(environment["corpora"][0]["tokenizer_sha256"], dataset.tokenizer().sha256());
    assert_eq!(environment["corpora"][0]["train_tokens"], dataset.train().tokens);
    assert_eq!(environment["fgrams"]["sha256"], set.sha256());
    let dead = set.len() - matched(&dataset, &set).len();
    assert!(dead > 0 && dead < set.len(), "the text shows nothing");
    assert_eq!(environment["fgrams"]["dead_in_validation"]["count"], dead);
    let starts = environment["starts"].as_array().unwrap();
    let steps: Vec<_> = starts.iter().map(|start| start["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 4]);
    for start in starts {
        assert_eq!(start["version"], env!("CARGO_PKG_VERSION"));
        assert!(
            start["threads"].as_u64().unwrap() > 0 && start["simd"].is_string() && start["os"].is_string()
        );
        let time = start["time"].as_str().unwrap();
        assert!(time.starts_with("20") && time.ends_with("+00:00"), "{time}");
    }
}

#[test]
fn another_number_of_threads_is_warned_of() {
    let data = Data::make();
    std::fs::write(data.path("run.toml"), data.config(false).to_toml()).unwrap();
    let fit = |threads: &str| {
        let mut fit = command(env!("CARGO_BIN_EXE_scone-train"));
        fit.env("RAYON_NUM_THREADS", threads).args(["fit", "--resume", "--stop-after", "1", "--config"]);
        let output = fit.arg(data.path("run.toml")).arg("--output").arg(data.path("run")).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    assert!([fit("1"), fit("1")].iter().all(|said| !said.contains("began with")));
    let said = fit("2");
    assert!(said.contains("began with") && said.contains("2 threads"), "{said}");
}

/// The last sample against what `scone generate` says with the finished model, whose best weights are the last here.
#[test]
fn samples_are_what_the_model_would_say() {
    let data = Data::make();
    for fgrams in [false, true] {
        let mut config = data.config(fgrams);
        config.train.learning_rate = 1e-2;
        config.train.steps = 60;
        config.validation.every = 20;
        config.samples.prompts = ["The people of the", "", "It is"].map(str::to_owned).to_vec();
        config.samples.tokens = 10;
        config.samples.every = 2;
        let run = data.path(&format!("run-{fgrams}"));
        train(&config, &run, None);
        let samples = lines(&run, "samples.jsonl");
        let steps: Vec<_> = samples.iter().map(|sample| sample["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, [40, 40, 40, 60, 60, 60], "every second validation and the last");
        assert_eq!(lines(&run, "metrics.jsonl").len(), 60);

        let model = run.join("model");
        if fgrams {
            let mut build = command(env!("CARGO_BIN_EXE_scone"));
            build.args(["table", "build"]).arg(&model).arg("--fgrams").arg(data.path("fgrams.parquet"));
            assert!(build.args(["--dtype", "f32"]).output().unwrap().status.success());
        }
        for sample in samples[3..].iter().filter(|sample| sample["prompt"] != "") {
            let mut generate = command(env!("CARGO_BIN_EXE_scone"));
            generate.arg("generate").arg(&model).args([
                "--temperature",
                "0",
                "--max-tokens",
                "10",
                "--prompt",
            ]);
            let output = generate.arg(sample["prompt"].as_str().unwrap()).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(format!("{}\n", sample["text"].as_str().unwrap()), text, "f-grams: {fgrams}");
        }
        let text = |sample: &Value| sample["text"].as_str().unwrap().to_owned();
        assert!(samples[3..].iter().all(|sample| !text(sample).is_empty()));

        // Drawn instead: something else, and the same again.
        config.samples.temperature = 1.0;
        let drawn = ["a", "b"].map(|name| {
            let run: PathBuf = data.path(&format!("drawn-{fgrams}-{name}"));
            train(&config, &run, None);
            lines(&run, "samples.jsonl")
        });
        assert_eq!(drawn[0], drawn[1]);
        assert_ne!(text(&drawn[0][3]), text(&samples[3]));
    }
}

#[test]
fn signs_of_trouble_are_kept_and_said_once() {
    let data = Data::make();
    let mut config = data.config(false);
    config.train.steps = 240;
    config.train.accumulate = 1;
    config.train.clip = 1e-3;
    config.validation.every = 240;
    config.checkpoint.every = 40;
    let run = data.path("run");
    let signs = |run: &Path| -> Vec<(u64, String)> {
        let of = |sign: &Value| (sign["step"].as_u64().unwrap(), sign["sign"].as_str().unwrap().to_owned());
        lines(run, "signs.jsonl").iter().map(of).collect()
    };
    train(&config, &run, Some(90));
    assert_eq!(signs(&run), [], "too early to tell");
    // The updates before the stop count, and those after a sign do not repeat it.
    train(&config, &run, Some(30));
    let clipping = [(103, "clipping".to_owned())];
    assert_eq!(signs(&run), clipping);
    train(&config, &run, None);
    assert_eq!(signs(&run), clipping);
}

/// A set mined from digits, of which the validation split has none.
#[test]
fn a_set_that_never_matches_is_said_at_the_start() {
    let data = Data::make();
    let digits: String = (0..3000).map(|i| format!("{} ", i % 37 + 1000)).collect();
    let text = serde_json::json!({ "text": digits }).to_string();
    std::fs::write(data.path("digits.jsonl"), (0..10).map(|_| format!("{text}\n")).collect::<String>())
        .unwrap();
    let options = PrepareOptions {
        output: data.path("digits"),
        tokenizer: TokenizerSource::File(data.path("dataset/tokenizer.json")),
        eos: None,
        validation: 0.2,
        shard_tokens: 1 << 30,
    };
    prepare(&Input::new(&[data.path("digits.jsonl")]).unwrap(), &options, &mut |_| {}).unwrap();
    let digits = Dataset::open(data.path("digits")).unwrap();
    let set = mine(&digits, MineOptions { max_n: 4, size: 200, min_count: 3 }, &|_, _| {}).unwrap().set;
    parquet::write(&set, data.path("fgrams.parquet")).unwrap();
    let dataset = Dataset::open(data.path("dataset")).unwrap();
    tag(&dataset, &set, &mut |_| {}).unwrap();

    let run = data.path("run");
    train(&data.config(true), &run, Some(1));
    train(&data.config(true), &run, Some(1));
    let signs = lines(&run, "signs.jsonl");
    assert_eq!(signs.len(), 1, "{signs:?}");
    assert_eq!((&signs[0]["sign"], &signs[0]["step"]), (&"dead_fgrams".into(), &0.into()));
    let alive = matched(&dataset, &set).len();
    let share = 1.0 - alive as f64 / set.len() as f64;
    assert!((signs[0]["value"].as_f64().unwrap() - share).abs() < 1e-12 && share > 0.8, "{signs:?}, {share}");
    assert!(signs[0]["limit"].as_f64().unwrap() < 0.6, "{signs:?}");
}
