use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use sha2::{Digest, Sha256};

use super::Args;
use crate::cli::progress_bar;
use crate::model::{Model, ModelDirectory, Shard, Span, build_table, likelihoods, perplexity};
use crate::table::RowFormat;
use crate::train::{
    Corpora, Costs, HeldOut, History, ParameterCounts, Results, RunConfig, StoredBytes, TextResult,
    ValidationResult, Work, words_and_line_ends,
};

/// A text to be scored.
pub(super) struct Text {
    text: String,
    sha256: String,
}

impl Text {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let text =
            String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8 text", path.display()))?;
        Ok(Self { text, sha256 })
    }
}

/// A run, and what it was made of.
pub(super) struct Measured {
    pub(super) config: RunConfig,
    history: History,
    pub(super) directory: ModelDirectory,
    corpora: Corpora,
}

impl Measured {
    pub(super) fn open(args: &Args) -> Result<Self> {
        let mut config = RunConfig::of_run(&args.run)?;
        let history = History::read(&args.run)?;
        let model = args.run.join("model");
        ensure!(
            model.exists(),
            "{} is not there: the run stopped after step {} of {}; `scone-train fit --resume` finishes it",
            model.display(),
            history.steps,
            config.train.steps
        );
        move_datasets(&mut config, &args.dataset)?;
        if let (Some(fgram), Some(path)) = (&mut config.fgram, &args.fgrams) {
            fgram.set.clone_from(path);
        }
        let directory = ModelDirectory::open(&model)?;
        let corpora = Corpora::open_untagged(&config).context(
            "the run's dataset and f-gram set (relative to where fit was started) are needed: name them with --dataset \
             and --fgrams",
        )?;
        ensure!(
            directory.tokenizer().sha256() == corpora.first().tokenizer().sha256(),
            "{} has another tokenizer than the model: it is not the dataset of this run",
            corpora.first().directory().display()
        );
        if let (Some(set), Some(scone)) = (corpora.set(), directory.scone()) {
            ensure!(
                set.sha256() == scone.fgrams_sha256,
                "the f-gram set is not the one that the run trained with"
            );
        }
        Ok(Self { config, history, directory, corpora })
    }

    /// The table to be used, and whether it was built for this; a baseline has none.
    pub(super) fn table(&self, args: &Args, device: &Device) -> Result<(Option<PathBuf>, bool)> {
        let (Some(set), Some(own)) = (self.corpora.set(), self.directory.table_path()) else {
            ensure!(args.table.is_none(), "the run is a baseline: it takes no --table");
            return Ok((None, false));
        };
        if args.table.is_some() || own.exists() {
            return Ok((Some(args.table.clone().unwrap_or(own)), false));
        }
        let bar = progress_bar(set.len() as u64, "embedding f-grams [{bar:40}] {pos}/{len} {per_sec} {eta}");
        let format = RowFormat::packed(args.row_dtype, self.directory.config().hidden_size);
        build_table(&self.directory, set, format, Shard::WHOLE, &own, device, &mut |rows| bar.inc(rows))?;
        bar.finish_and_clear();
        Ok((Some(own), true))
    }

    /// The served model on the very windows on which the run validated; each corpus weighs as much as its share.
    pub(super) fn validate(&self, model: &mut Model) -> Result<ValidationResult> {
        let mut sum =
            ValidationResult { tokens: 0, loss: 0.0, perplexity: 0.0, hit_rate: 0.0, mean_match: 0.0 };
        for held_out in self.corpora.held_out(&self.config)? {
            let found = self.validate_corpus(model, &held_out)?;
            sum.tokens += found.tokens;
            sum.loss += held_out.share * found.loss;
            sum.hit_rate += held_out.share * found.hit_rate;
            sum.mean_match += held_out.share * found.mean_match;
        }
        Ok(ValidationResult { perplexity: sum.loss.exp(), ..sum })
    }

    fn validate_corpus(&self, model: &mut Model, held_out: &HeldOut) -> Result<ValidationResult> {
        let spans: Vec<Span> =
            held_out.batches.iter().flat_map(|batch| batch.sequences()).map(span).collect();
        let bar = progress_bar(spans.len() as u64, "validating [{bar:40}] {pos}/{len} windows {eta}");
        let found = likelihoods(model, &spans, &mut |spans| bar.inc(spans))?;
        bar.finish_and_clear();
        let tokens: usize = spans.iter().map(|span| span.scored).sum();
        let loss = -found.iter().map(|found| found.log).sum::<f64>() / tokens as f64;
        let (mut hits, mut matched) = (0, 0);
        let special = self.corpora.first().special_tokens();
        for span in &spans {
            let inputs = &span.tokens[..span.scored];
            matched += inputs.iter().filter(|token| special.binary_search(token).is_err()).count();
            if let Some(set) = self.corpora.set() {
                for found in set.index().matches(inputs, 0).into_iter().flatten() {
                    hits += 1;
                    matched += usize::from(found.n) - 1;
                }
            }
        }
        let share = |count: usize| count as f64 / tokens as f64;
        let (hit_rate, mean_match) = (share(hits), share(matched));
        Ok(ValidationResult { tokens, loss, perplexity: loss.exp(), hit_rate, mean_match })
    }

    /// As `scone eval` scores it.
    pub(super) fn score(&self, model: &mut Model, path: &Path, text: &Text) -> Result<TextResult> {
        let tokenizer = self.directory.tokenizer();
        let tokens = tokenizer.encode(&text.text)?;
        let windows = (self.config.model.context, (self.config.model.context / 2).max(1));
        let bar = progress_bar(tokens.len() as u64, "scoring [{bar:40}] {pos}/{len} tokens {per_sec} {eta}");
        let special = tokenizer.special_tokens();
        let bytes = text.text.len();
        let found = perplexity(model, special, &tokens, bytes, windows, &mut |tokens| bar.inc(tokens))
            .with_context(|| path.display().to_string())?;
        bar.finish_and_clear();
        let words = words_and_line_ends(&text.text);
        Ok(TextResult {
            file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            sha256: text.sha256.clone(),
            bytes,
            words,
            tokens: found.tokens,
            predicted: found.predicted,
            loss: found.nll,
            perplexity: found.perplexity,
            bits_per_byte: found.bits_per_byte,
            word_perplexity: (found.nll * found.predicted as f64 / words as f64).exp(),
            hit_rate: found.hit_rate,
            mean_match: found.mean_match,
            context: found.context,
            stride: found.stride,
        })
    }

    pub(super) fn results(
        self,
        row_type: Option<String>,
        table_bytes: u64,
        validation: ValidationResult,
        texts: BTreeMap<String, TextResult>,
    ) -> Result<Results> {
        let config = &self.config;
        let vocab_size = self.directory.config().vocab_size;
        let max_n = self.corpora.set().map_or(1, |set| set.policy().max_n);
        let passes = self.history.steps * config.train.accumulate as u64;
        let work = Work::count(config, &self.corpora.training(config)?, self.corpora.set(), passes)?;
        let main = config.model_config(vocab_size);
        let parameters = ParameterCounts {
            main: main.parameters(),
            fgram: config.fgram_config(vocab_size, max_n).map_or(0, |fgram| fgram.parameters()),
            non_embedding: main.decoder_parameters(),
        };
        let weight = self.directory.weight_type().unwrap_or(config.checkpoint.dtype).bytes();
        let stored = StoredBytes { weight, table: table_bytes };
        let costs = Costs::of_run(config, vocab_size, max_n, self.history.tokens, stored, work);
        Ok(Results {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            seed: config.seed,
            history: self.history,
            corpus_tokens: self.corpora.iter().map(|corpus| corpus.dataset().train().tokens).sum(),
            fgrams: self.corpora.set().map_or(0, |set| set.len() as u64),
            max_n,
            row_type,
            parameters,
            validation,
            texts,
            costs,
        })
    }
}

/// Puts the datasets where they are now in place of those that the run had.
fn move_datasets(config: &mut RunConfig, now: &[PathBuf]) -> Result<()> {
    let corpora = config.data.corpora.iter_mut().map(|corpus| &mut corpus.dataset);
    let before: Vec<&mut PathBuf> = std::iter::once(&mut config.data.dataset).chain(corpora).collect();
    ensure!(
        now.is_empty() || now.len() == before.len(),
        "the run is of {} datasets: give --dataset for each, in the order of its config.toml",
        before.len()
    );
    before.into_iter().zip(now).for_each(|(before, now)| before.clone_from(now));
    Ok(())
}

/// All targets of a sequence, given what is before each.
fn span((inputs, targets): (&[u32], &[u32])) -> Span {
    Span { tokens: inputs.iter().chain(targets.last()).copied().collect(), scored: inputs.len() }
}
