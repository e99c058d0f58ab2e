//! Runs from text to a model directory: resumed bit for bit, refused where they should be, stopped where they diverge.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/small_corpus.rs"]
mod small_corpus;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use scone::model::ModelDirectory;
use scone::train::{CardSection, Outcome, Progress, Run, RunConfig, TrainError};
use small_corpus::Data;

fn train(run: &mut Run, stop_after: Option<u64>) -> (Outcome, Vec<Progress>) {
    let stop = AtomicBool::new(false);
    let mut seen = Vec::new();
    let outcome = run.train(None, &stop, &mut |progress| {
        stop.store(stop_after == Some(progress.step), Ordering::Relaxed);
        seen.push(progress.clone());
    });
    (outcome.unwrap(), seen)
}

fn losses(seen: &[Progress]) -> Vec<(u64, Option<f64>, Option<f64>)> {
    seen.iter().map(|p| (p.step, p.loss, p.validation_loss)).collect()
}

fn read(directory: &Path, file: &str) -> Vec<u8> {
    std::fs::read(directory.join(file)).unwrap()
}

#[test]
fn a_resumed_run_ends_bit_for_bit_as_an_undisturbed_one() {
    let data = Data::make();
    for fgrams in [false, true] {
        let config = data.config(fgrams);
        let (whole, parts) = (data.path(&format!("whole-{fgrams}")), data.path(&format!("parts-{fgrams}")));
        let (outcome, undisturbed) = train(&mut Run::open(&config, &whole, false).unwrap(), None);
        assert_eq!(outcome, Outcome::Finished);

        // Asked to stop after step 3, then killed after step 9: its last checkpoint is that of step 5.
        let (outcome, first) = train(&mut Run::open(&config, &parts, false).unwrap(), Some(3));
        assert_eq!((outcome, first.len()), (Outcome::Stopped, 3));
        let mut killed = Run::open(&config, &parts, true).unwrap();
        assert_eq!(killed.step(), 3);
        let at_five = {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                killed.train(None, &AtomicBool::new(false), &mut |progress| {
                    assert!(progress.step < 9, "the kill");
                })
            }));
            assert!(result.is_err());
            drop(killed);
            Run::open(&config, &parts, true).unwrap().step()
        };
        assert_eq!(at_five, 5);
        let (outcome, last) = train(&mut Run::open(&config, &parts, true).unwrap(), None);
        assert_eq!(outcome, Outcome::Finished);

        assert_eq!(losses(&last), losses(&undisturbed)[5..]);
        for file in [
            "step-00000010.safetensors",
            "step-00000012.safetensors",
            "best.safetensors",
            "model/model.safetensors",
        ] {
            assert!(read(&whole, file) == read(&parts, file), "{file} differs, f-grams: {fgrams}");
        }
        let log = String::from_utf8(read(&parts, "metrics.jsonl")).unwrap();
        let steps: Vec<u64> =
            log.lines().map(|line| serde_json::from_str::<Progress>(line).unwrap().step).collect();
        assert_eq!(steps, (1..=12).collect::<Vec<_>>(), "a line a step, none twice");
        let curves = String::from_utf8(read(&parts, "curves.svg")).unwrap();
        assert!(curves.contains(&format!("parts-{fgrams}: 12 updates")), "drawn at the last validation");
        let model = ModelDirectory::open(&whole.join("model")).unwrap();
        assert_eq!(model.scone().is_some(), fgrams);
    }
}

#[test]
fn training_learns_and_the_baseline_sees_the_same_data() {
    let data = Data::make();
    let first_losses = [false, true].map(|fgrams| {
        let mut config = data.config(fgrams);
        config.train.steps = 40;
        let mut run = Run::open(&config, &data.path(&format!("learn-{fgrams}")), false).unwrap();
        let (_, seen) = train(&mut run, None);
        let (first, last) = (seen[0].loss.unwrap(), seen[39].loss.unwrap());
        assert!(last < first - 0.3, "the loss went from {first} to {last}");
        first
    });
    // The f-gram model's output starts at the token embedding, so the first loss is the same if the data are.
    assert_eq!(first_losses[0], first_losses[1]);
}

#[test]
fn divergence_stops_the_run_and_names_step_and_tensor() {
    let data = Data::make();
    let mut config = data.config(true);
    config.train.learning_rate = 1e30;
    config.train.warmup_steps = 0;
    let mut run = Run::open(&config, &data.path("diverged"), false).unwrap();
    let error = run.train(None, &AtomicBool::new(false), &mut |_| {}).unwrap_err();
    let TrainError::Diverged { step, ref tensor, .. } = error else { panic!("{error}") };
    assert!(
        step >= 2 && (tensor.contains("main/") || tensor.contains("fgram/") || tensor == "the loss"),
        "{error}"
    );
    assert!(!data.path("diverged").join("model").exists());
}

#[test]
fn a_run_is_neither_overwritten_nor_continued_with_other_settings() {
    let data = Data::make();
    let config = data.config(false);
    let directory = data.path("run");
    train(&mut Run::open(&config, &directory, false).unwrap(), Some(2));
    let refused =
        |config: &RunConfig, resume| Run::open(config, &directory, resume).err().unwrap().to_string();
    assert!(refused(&config, false).contains("--resume"));
    let mut other = config.clone();
    other.train.learning_rate *= 2.0;
    let error = refused(&other, true);
    assert!(
        error.contains("another configuration (train.learning_rate was 0.003, is 0.006)")
            && error.contains("step-00000002.safetensors"),
        "{error}"
    );
    other.train.learning_rate = config.train.learning_rate;
    other.checkpoint.every = 1;
    other.samples.prompts = vec!["The".to_owned()];
    other.card = Some(CardSection { title: Some("A model".to_owned()), ..CardSection::default() });
    assert_eq!(Run::open(&other, &directory, true).unwrap().step(), 2, "what is kept and shown may change");
}

#[test]
fn settings_that_cannot_be_are_refused_by_name() {
    let data = Data::make();
    let toml = data.path("run.toml");
    let refused = |text: &str| {
        std::fs::write(&toml, text).unwrap();
        RunConfig::read(&toml).unwrap_err().to_string()
    };
    let good = data.config(false).to_toml();
    assert!(refused(&good.replace("learning_rate", "learnin_rate")).contains("learnin_rate"));
    assert!(refused(&good.replace("kv_heads = 2", "kv_heads = 3")).contains("num_key_value_heads"));
    assert!(refused(&good.replace("batch = 4", "batch = 0")).contains("batch"));
    let mut config = data.config(false);
    config.model.context = 1 << 20;
    let error = Run::open(&config, &data.path("no"), false).err().unwrap().to_string();
    assert!(error.contains("not enough") && error.contains("context"), "{error}");
    assert!(!data.path("no").exists());
    let mut config = data.config(true);
    for (fallback, scale, what) in [(30.0, 0.3, "fallback"), (0.3, -1.0, "learning_rate_scale")] {
        let fgram = config.fgram.as_mut().unwrap();
        (fgram.fallback, fgram.learning_rate_scale) = (fallback, scale);
        assert!(refused(&config.to_toml()).contains(what));
    }
}

#[test]
fn an_f_gram_set_of_another_tokenizer_is_refused() {
    let (data, other) = (Data::make(), Data::with_vocabulary(400));
    let mut config = data.config(true);
    let fgram = config.fgram.as_mut().unwrap();
    fgram.set = other.path("fgrams.parquet");
    let error = Run::open(&config, &data.path("run"), false).err().unwrap().to_string();
    assert!(error.contains("another tokenizer") && error.contains("fgrams.parquet"), "{error}");
    assert!(!data.path("run").exists());
}

/// A limit on the size of files fails a write as a full disk does.
#[test]
fn a_full_disk_ends_the_run_with_an_error_and_leaves_no_half_checkpoint() {
    let data = Data::make();
    std::fs::write(data.path("run.toml"), data.config(true).to_toml()).unwrap();
    let fit = |script: &str, resume: bool| {
        std::process::Command::new("bash")
            .args(["-c", script, env!("CARGO_BIN_EXE_scone-train"), "fit", "--config"])
            .arg(data.path("run.toml"))
            .arg("--output")
            .arg(data.path("run"))
            .args(resume.then_some("--resume"))
            .output()
            .unwrap()
    };
    let full = fit("trap '' XFSZ; ulimit -f 50; exec \"$0\" \"$@\"", false);
    let message = String::from_utf8_lossy(&full.stderr);
    assert_eq!(full.status.code(), Some(1), "{message}");
    assert!(message.contains("error:") && message.contains(".safetensors"), "{message}");
    let files: Vec<_> =
        std::fs::read_dir(data.path("run")).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(files.iter().all(|name| !name.to_string_lossy().contains("safetensors")), "{files:?}");
    let good = fit("exec \"$0\" \"$@\"", true);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    assert!(data.path("run/model/model.safetensors").exists());
}
