//! A small corpus, and runs on it that take milliseconds a step.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a program of its own and uses a part of this"
)]

use std::path::PathBuf;

use scone::corpus::{Dataset, Input, MineOptions, PrepareOptions, TokenizerSource, mine, prepare, tag};
use scone::fgram::parquet;
use scone::model::WeightType;
use scone::train::{ModelSection, RunConfig};

/// A small corpus, mined and tagged.
pub struct Data {
    directory: tempfile::TempDir,
}

impl Data {
    pub fn make() -> Self {
        Self::with_vocabulary(500)
    }

    pub fn with_vocabulary(vocab_size: usize) -> Self {
        Self::with_tokenizer(TokenizerSource::Train { vocab_size, sample_bytes: 1 << 20 })
    }

    pub fn with_tokenizer(tokenizer: TokenizerSource) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let text = include_str!("../../examples/sotu/sotu-small.jsonl");
        let text: String = text.lines().take(8).flat_map(|line| [line, "\n"]).collect();
        std::fs::write(path("text.jsonl"), text).unwrap();
        let options = PrepareOptions {
            output: path("dataset"),
            tokenizer,
            eos: None,
            validation: 0.2,
            shard_tokens: 1 << 30,
        };
        prepare(&Input::new(&[path("text.jsonl")]).unwrap(), &options, &mut |_| {}).unwrap();
        let dataset = Dataset::open(path("dataset")).unwrap();
        let mined = mine(&dataset, MineOptions { max_n: 4, size: 2000, min_count: 3 }, &|_, _| {}).unwrap();
        parquet::write(&mined.set, path("fgrams.parquet")).unwrap();
        tag(&dataset, &mined.set, &mut |_| {}).unwrap();
        Self { directory }
    }

    pub fn config(&self, fgrams: bool) -> RunConfig {
        let mut config = RunConfig::example();
        config.data.dataset = self.directory.path().join("dataset");
        config.model = ModelSection {
            hidden_size: 32,
            intermediate_size: 48,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            context: 32,
            ..ModelSection::default()
        };
        config.train.steps = 12;
        config.train.batch = 4;
        config.train.accumulate = 2;
        config.train.warmup_steps = 3;
        config.validation.every = 4;
        config.validation.tokens = 200;
        config.checkpoint.every = 5;
        config.checkpoint.dtype = WeightType::F32;
        match &mut config.fgram {
            Some(fgram) if fgrams => fgram.set = self.directory.path().join("fgrams.parquet"),
            _ => config.fgram = None,
        }
        config
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
