//! `scone-train fit`, killed -9 at random moments twenty times and resumed each time, ends with the very files of a run
//! that was left alone.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/small_corpus.rs"]
mod small_corpus;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use small_corpus::Data;

const KILLS: usize = 20;
const STEPS: u64 = 300;

fn start(data: &Data, run: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scone-train"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SCONE_")) {
        command.env_remove(name);
    }
    // The order of some sums depends on the number of threads.
    command.env("RAYON_NUM_THREADS", "2").args(["fit", "--resume", "--config"]).arg(data.path("run.toml"));
    command.arg("--output").arg(run).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Updates that a run has written down so far, those that it will have to do again included.
fn steps(run: &Path) -> usize {
    std::fs::read(run.join("metrics.jsonl")).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count())
}

/// Waits for a number of steps, and then some time more; or for the end.
fn wait(child: &mut Child, run: &Path, steps_before: usize, random: &mut ChaCha8Rng) {
    let more = random.random_range(0..STEPS as usize / KILLS);
    let deadline = Instant::now() + Duration::from_secs(60);
    while steps(run) < steps_before + more && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the run stands still");
        std::thread::sleep(Duration::from_millis(1));
    }
    // In the middle of whatever there is: an update, a checkpoint, a validation, the start.
    std::thread::sleep(Duration::from_micros(random.random_range(0..20_000)));
}

fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = names.filter(|path| path.to_string_lossy().contains("step-")).collect();
    found.sort();
    found
}

#[test]
fn killed_twenty_times_it_ends_as_if_left_alone() {
    let data = Data::make();
    let mut config = data.config(true);
    config.train.steps = STEPS;
    config.train.accumulate = 1;
    config.validation.every = 20;
    config.checkpoint.every = 7;
    config.samples.prompts = vec!["The people".to_owned()];
    config.samples.tokens = 4;
    std::fs::write(data.path("run.toml"), config.to_toml()).unwrap();

    let alone = data.path("alone");
    assert!(start(&data, &alone).wait().unwrap().success());

    let killed = data.path("killed");
    let seed = std::process::id().into();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut moments = Vec::new();
    for _ in 0..KILLS {
        let before = steps(&killed);
        let mut child = start(&data, &killed);
        wait(&mut child, &killed, before, &mut random);
        // A run that has ended is started all the same and writes its model once more.
        child.kill().unwrap();
        child.wait().unwrap();
        moments.push(steps(&killed));
    }
    assert!(start(&data, &killed).wait().unwrap().success(), "seed {seed}, killed after steps {moments:?}");

    let names =
        |run: &Path| checkpoints(run).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    let (expected, found): (Vec<_>, Vec<_>) = (names(&alone), names(&killed));
    assert_eq!(expected, ["step-00000294.safetensors", "step-00000300.safetensors"]);
    // A run whose last kill came after its end has nothing more to write than its model.
    assert_eq!(found, expected, "seed {seed}, killed after steps {moments:?}");
    for file in [
        "step-00000300.safetensors",
        "best.safetensors",
        "model/model.safetensors",
        "samples.jsonl",
        "signs.jsonl",
    ] {
        let [a, b] = [&alone, &killed].map(|run| std::fs::read(run.join(file)).unwrap());
        assert!(a == b, "{file} differs; seed {seed}, killed after steps {moments:?}");
    }
    let steps: Vec<u64> = std::fs::read_to_string(killed.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>(), "seed {seed}, killed after steps {moments:?}");
    let different = moments.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(different > 5, "killed after steps {moments:?}: not at random moments");
    let left: Vec<_> = std::fs::read_dir(&killed)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("partial") || name.contains("damaged"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
