//! Runs that start from a trained model: nothing is lost on the way in, and what is frozen comes out as it was.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/gguf.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
mod gguf;
#[path = "common/small_corpus.rs"]
mod small_corpus;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use scone::corpus::TokenizerSource;
use scone::fgram::parquet;
use scone::model::{ModelDirectory, SconeConfig, Shard, WeightType, build_table, write_weights};
use scone::table::{Placement, RowFormat, RowType};
use scone::train::{Outcome, Progress, Run, RunConfig};
use small_corpus::Data;

/// The shape of models that are trained here; a run that starts from one of them leaves it out.
const SHAPE: &str = "hidden_size = 32\nintermediate_size = 48\nlayers = 2\nheads = 4\nkv_heads = 2\n";
const FGRAM: &str = "[fgram]\nset = \"fgrams.parquet\"\nlayers = 1\n";

/// Runs on a small corpus.
struct Runs(Data);

impl Runs {
    fn make() -> Self {
        Self(Data::make())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    /// The run that a file with these lines in `[model]`, `[train]` and after them describes.
    fn read(&self, model: &str, train: &str, rest: &str) -> Result<RunConfig, String> {
        let text = format!(
            "[data]\ndataset = \"dataset\"\n[model]\ncontext = 32\n{model}\n[train]\nsteps = 8\nbatch = 4\n\
             warmup_steps = 2\n{train}\n[validation]\nevery = 4\ntokens = 200\n[checkpoint]\nevery = 5\ndtype = \
             \"f32\"\n{rest}"
        );
        std::fs::write(self.path("run.toml"), text).unwrap();
        RunConfig::read(&self.path("run.toml")).map_err(|error| error.to_string())
    }

    /// Runs it to its end, or stops it.
    fn fit(&self, config: &RunConfig, name: &str, stop_after: Option<u64>) -> (Run, Vec<Progress>) {
        let mut run = Run::open(config, &self.path(name), self.path(name).exists()).unwrap();
        let (stop, mut seen) = (AtomicBool::new(false), Vec::new());
        let outcome = run.train(None, &stop, &mut |progress| {
            stop.store(stop_after == Some(progress.step), Ordering::Relaxed);
            seen.push(progress.clone());
        });
        let expected = if stop_after.is_some() { Outcome::Stopped } else { Outcome::Finished };
        assert_eq!(outcome.unwrap(), expected);
        (run, seen)
    }

    /// What a run from these lines says of its start.
    fn first_loss(&self, name: &str, model: &str, rest: &str) -> f64 {
        let (_, seen) = self.fit(&self.read(model, "", rest).unwrap(), name, Some(1));
        assert_eq!((seen[0].step, seen[0].tokens, seen[0].loss), (0, 0, None));
        seen[0].validation_loss.unwrap()
    }
}

/// Trains the main model alone, and both.
fn sources(data: &Runs) -> [f64; 2] {
    [("plain", ""), ("scone", FGRAM)].map(|(name, fgram)| {
        let config = data.read(SHAPE, "learning_rate = 1e-2", fgram).unwrap();
        let (run, _) = data.fit(&config, name, None);
        run.best().unwrap().0
    })
}

fn weights(directory: &Path) -> Vec<u8> {
    std::fs::read(directory.join("model.safetensors")).unwrap()
}

#[test]
fn a_run_starts_where_its_model_ended() {
    let data = Runs::make();
    let [plain, scone] = sources(&data);
    assert!(plain != scone);
    let from = |name: &str| format!("init_from = \"{name}/model\"");
    let new = "[fgram]\nset = \"fgrams.parquet\"\nlayers = 2\nheads = 2\n";
    assert_eq!(data.first_loss("alone", &from("plain"), ""), plain);
    assert_eq!(data.first_loss("attached", &from("plain"), new), plain, "the new f-gram model starts at T");
    assert_eq!(data.first_loss("on", &from("scone"), "[fgram]\nset = \"fgrams.parquet\"\n"), scone);
    let fresh = data.first_loss("fresh", &from("scone"), &format!("{new}fresh = true\n"));
    assert!(fresh > scone, "without the trained f-gram model: {fresh}, with it {scone}");

    // The full configuration is read again as it is, and the shape is the model's.
    let config = data.read(&from("scone"), "", "[fgram]\nset = \"fgrams.parquet\"\n").unwrap();
    std::fs::write(data.path("full.toml"), config.to_toml()).unwrap();
    assert_eq!(RunConfig::read(&data.path("full.toml")).unwrap(), config);
    let (model, scone) = (&config.model, config.fgram.as_ref().unwrap());
    assert_eq!((model.hidden_size, model.layers, model.kv_heads, scone.layers), (32, 2, 2, 1));
}

#[test]
fn a_run_from_a_model_is_resumed_bit_for_bit() {
    let data = Runs::make();
    sources(&data);
    let mut config = data.read("init_from = \"plain/model\"", "freeze = \"main\"", FGRAM).unwrap();
    (config.samples.prompts, config.samples.tokens) = (vec!["The".into()], 4);
    let (_, whole) = data.fit(&config, "whole", None);
    let (_, first) = data.fit(&config, "parts", Some(3));
    // The model that it started from is not needed any more.
    std::fs::rename(data.path("plain"), data.path("elsewhere")).unwrap();
    let before = RunConfig::of_run(&data.path("parts")).unwrap();
    let again = RunConfig::read_with(&data.path("run.toml"), Some(&before), |read| {
        read.samples = config.samples.clone();
    });
    assert_eq!(again.unwrap(), config);
    let (_, last) = data.fit(&config, "parts", None);
    let steps = |seen: &[Progress]| seen.iter().map(|p| (p.step, p.loss)).collect::<Vec<_>>();
    assert_eq!([steps(&first), steps(&last)].concat(), steps(&whole));
    let made = ["model/fgram_model/model.safetensors", "model/generation_config.json", "model/config.json"];
    for file in ["step-00000008.safetensors"].iter().chain(&made) {
        let read = |run: &str| std::fs::read(data.path(run).join(file)).unwrap();
        assert!(read("whole") == read("parts"), "{file} differs");
    }
    let log = std::fs::read_to_string(data.path("parts/metrics.jsonl")).unwrap();
    std::fs::rename(data.path("elsewhere"), data.path("plain")).unwrap();
    // One that is gone before its first checkpoint begins again, with what it showed before its first update.
    let gone = std::panic::catch_unwind(|| {
        let mut run = Run::open(&config, &data.path("gone"), false).unwrap();
        run.train(None, &AtomicBool::new(false), &mut |progress| assert!(progress.step < 2)).unwrap();
    });
    assert!(gone.is_err());
    data.fit(&config, "gone", None);
    let [samples, again] =
        ["whole", "gone"].map(|run| std::fs::read(data.path(run).join("samples.jsonl")).unwrap());
    assert!(!samples.is_empty() && samples == again);
    let steps: Vec<u64> =
        log.lines().map(|line| serde_json::from_str::<Progress>(line).unwrap().step).collect();
    assert_eq!(steps, (0..=8).collect::<Vec<_>>());
}

#[test]
fn a_model_that_is_broken_is_not_the_best() {
    let data = Runs::make();
    sources(&data);
    let file = data.path("plain/model/model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let end = bytes.len() - 4;
    bytes[end..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let config = data.read("init_from = \"plain/model\"", "", "").unwrap();
    let mut run = Run::open(&config, &data.path("broken"), false).unwrap();
    let error = run.train(None, &AtomicBool::new(false), &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("step 0: the validation loss"), "{error}");
    assert!(run.best().is_none() && !data.path("broken/model").exists());
}

#[test]
fn a_frozen_main_model_comes_out_as_it_was_and_its_tables_stay_apart() {
    let data = Runs::make();
    let mut config = data.read(SHAPE, "learning_rate = 1e-2", FGRAM).unwrap();
    config.checkpoint.dtype = WeightType::F16;
    let (_, _) = data.fit(&config, "source", None);
    let source = data.path("source/model");
    std::fs::write(source.join("generation_config.json"), "{\"eos_token_id\": [0, 7]}").unwrap();
    // Stored longer than need be, it stays so: a hash of weights is of their type too.
    let file = source.join("model.safetensors");
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap().into_iter().collect();
    write_weights(&file, &tensors, WeightType::F32).unwrap();

    let section = "[fgram]\nset = \"fgrams.parquet\"\nlearning_rate_scale = 1.0\n";
    let train = "freeze = \"main\"\nlearning_rate = 1e-2";
    let mut config = data.read("init_from = \"source/model\"", train, section).unwrap();
    config.train.steps = 40;
    config.validation.tokens = 2000;
    let (run, seen) = data.fit(&config, "adapter", None);
    let adapter = data.path("adapter/model");
    let (best, step) = run.best().unwrap();
    assert!(
        step > 0 && best < seen[0].validation_loss.unwrap(),
        "{best} after step {step}: nothing was learned"
    );
    assert!(weights(&source) == weights(&adapter), "the main model has changed");
    assert!(weights(&source.join("fgram_model")) != weights(&adapter.join("fgram_model")));
    let [source, adapter] = [source, adapter].map(|path| ModelDirectory::open(&path).unwrap());
    assert_eq!(adapter.stop_tokens().unwrap(), [0, 7]);

    let set = parquet::read(data.path("fgrams.parquet")).unwrap();
    let [ours, theirs] = [&adapter, &source].map(|directory| {
        let (format, path) = (RowFormat::packed(RowType::F16, 32), directory.table_path().unwrap());
        build_table(directory, &set, format, Shard::WHOLE, &path, &candle_core::Device::Cpu, &mut |_| {})
            .unwrap();
        path
    });
    adapter.open_table(&ours).unwrap();
    let error = adapter.open_table(&theirs).unwrap_err().to_string();
    assert!(error.contains("another f-gram model."), "only the f-gram model differs: {error}");

    // Named as an adapter its table is taken, if its main model is this one.
    let with_adapter = |path: &str| {
        let file = adapter.path().join("scone.json");
        let text = std::fs::read(&file).unwrap();
        let mut scone: SconeConfig = serde_json::from_slice(&text).unwrap();
        scone.adapters = vec![path.into()];
        std::fs::write(&file, serde_json::to_vec(&scone).unwrap()).unwrap();
        ModelDirectory::open(adapter.path()).unwrap()
    };
    let both = with_adapter("../../source/model");
    let live = both.live_table(None, Placement::default(), &mut |_, _| ()).unwrap().unwrap();
    live.reload(Some(&theirs)).unwrap();
    live.reload(Some(&ours)).unwrap();
    data.fit(&data.read(SHAPE, "learning_rate = 1e-2", FGRAM).unwrap(), "other", None);
    let error = with_adapter("../../other/model").open_table(&ours).unwrap_err().to_string();
    assert!(error.contains("another main model"), "{error}");
}

#[test]
fn a_gguf_file_is_started_from_as_its_directory() {
    let made = gguf::make(gguf::config("llama", 32));
    let texts = tempfile::tempdir().unwrap();
    std::fs::write(texts.path().join("tokenizer.json"), &made.tokenizer).unwrap();
    let data = Runs(Data::with_tokenizer(TokenizerSource::File(texts.path().join("tokenizer.json"))));
    made.write_directory(&data.path("directory"), WeightType::F32);
    made.write_gguf(&data.path("exact.gguf"), GgmlDType::F32);
    made.write_gguf(&data.path("rounded.gguf"), GgmlDType::Q8_0);
    let loss =
        |name: &str| data.first_loss(&format!("from-{name}"), &format!("init_from = \"{name}\""), FGRAM);
    let [directory, exact, rounded] = ["directory", "exact.gguf", "rounded.gguf"].map(loss);
    assert_eq!(directory, exact);
    assert!(rounded != exact && (rounded - exact).abs() < 0.05, "{rounded} {exact}");

    // Head, context and rounded weights are those of the file.
    let config = data.read("init_from = \"rounded.gguf\"", "freeze = \"main\"", FGRAM).unwrap();
    data.fit(&config, "frozen", None);
    let [source, frozen] = [data.path("rounded.gguf"), data.path("frozen/model")]
        .map(|path| ModelDirectory::open(&path).unwrap());
    let (ours, theirs) = (frozen.config(), source.config());
    assert_eq!(
        (ours.max_position_embeddings, ours.tie_word_embeddings, ours.rope_theta, ours.vocab_size),
        (64, false, theirs.rope_theta, theirs.vocab_size)
    );
    for (name, shape) in gguf::shapes(theirs) {
        let [a, b] = [&source, &frozen].map(|directory| {
            let tensor = directory.weights().tensor(&name, &shape, &Device::Cpu).unwrap();
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        });
        assert_eq!(a, b, "{name}");
    }
}

#[test]
fn what_cannot_be_started_from_is_refused_by_name() {
    let data = Runs::make();
    sources(&data);
    let refused = |model: &str, train: &str, rest: &str, what: &str| {
        let error = match data.read(model, train, rest) {
            Err(error) => error,
            Ok(config) => Run::open(&config, &data.path("no"), false).err().unwrap().to_string(),
        };
        assert!(error.contains(what), "{error}");
        assert!(!data.path("no").exists());
    };
    let scone = "init_from = \"scone/model\"";
    refused(&format!("{scone}\nhidden_size = 48"), "", "", "hidden_size is 32");
    refused(scone, "", "[fgram]\nset = \"fgrams.parquet\"\nheads = 2\n", "fresh = true");
    refused(scone, "", "[fgram]\nset = \"fgrams.parquet\"\nlayers = 3\n", "layers in [fgram] is 1");
    refused(scone, "freeze = \"main\"", "", "needs an [fgram] section");
    refused(SHAPE, "freeze = \"main\"", FGRAM, "--init-from");
    refused(scone, "freeze = \"head\"", FGRAM, "head");
    refused("init_from = \"nothing\"", "", "", "nothing");

    let biased = gguf::make(gguf::config("qwen2", 32));
    biased.write_directory(&data.path("biased"), WeightType::F32);
    refused("init_from = \"biased\"", "", "", "biases in attention");
    gguf::make(gguf::config("llama", 32)).write_directory(&data.path("other"), WeightType::F32);
    refused("init_from = \"other\"", "", "", "prepared with another tokenizer");
}
