use super::windows::{Cut, Windows};
use super::{Batch, Batches};
use crate::corpus::{Dataset, Tags};
use crate::fgram::{FgramSet, parquet};
use crate::train::{RunConfig, TrainError};

/// The corpora of a run, all of one tokenizer, and the f-gram set that they are tagged with.
pub struct Corpora {
    corpora: Vec<Corpus>,
    set: Option<FgramSet>,
}

/// One of them.
pub struct Corpus {
    name: String,
    share: f64,
    dataset: Dataset,
    tags: Option<Tags>,
}

/// What is held out of one corpus.
pub struct HeldOut {
    /// The corpus's name.
    pub name: String,
    /// The corpus's share of the mixture.
    pub share: f64,
    /// Windows spread over its validation split, always the same.
    pub batches: Vec<Batch>,
}

impl Corpora {
    /// Opens the datasets of a configuration, its f-gram set and the tags.
    ///
    /// # Errors
    /// Where a file is missing or damaged, tokenizers or ends of documents differ, or a dataset is not tagged with the
    /// set.
    pub fn open(config: &RunConfig) -> Result<Self, TrainError> {
        Self::open_as(config, true)
    }

    /// As [`Corpora::open`], without the tags, which may be those of another set by now: batches have no matches.
    ///
    /// # Errors
    /// As there, but for the tags.
    pub fn open_untagged(config: &RunConfig) -> Result<Self, TrainError> {
        Self::open_as(config, false)
    }

    fn open_as(config: &RunConfig, tagged: bool) -> Result<Self, TrainError> {
        let weighted: Vec<_> = config.data.weighted().collect();
        let datasets = weighted.iter().map(|(path, _)| Dataset::open(path)).collect::<Result<Vec<_>, _>>()?;
        for dataset in &datasets[1..] {
            check_alike(&datasets[0], dataset)?;
        }
        let set = config.fgram.as_ref().map(|fgram| parquet::read(&fgram.set)).transpose()?;
        if let (Some(set), Some(fgram)) = (&set, &config.fgram)
            && set.policy().tokenizer_sha256 != datasets[0].tokenizer().sha256()
        {
            return Err(TrainError::Data(format!(
                "{} was mined with another tokenizer than that of {}: mine this dataset",
                fgram.set.display(),
                datasets[0].directory().display()
            )));
        }
        let sha256 = set.as_ref().filter(|_| tagged).map(FgramSet::sha256);
        let total: f64 = weighted.iter().map(|(_, weight)| weight).sum();
        let names = names(&datasets);
        let mut corpora = Vec::new();
        for ((dataset, name), (_, weight)) in datasets.into_iter().zip(names).zip(&weighted) {
            let tags = sha256.as_ref().map(|sha256| Tags::open(&dataset, sha256)).transpose()?;
            corpora.push(Corpus { name, share: weight / total, dataset, tags });
        }
        Ok(Self { corpora, set })
    }

    /// The first dataset, whose tokenizer and end of documents are those of all.
    pub fn first(&self) -> &Dataset {
        &self.corpora[0].dataset
    }

    /// The f-gram set; `None` for a baseline.
    pub fn set(&self) -> Option<&FgramSet> {
        self.set.as_ref()
    }

    /// All of them, in the configuration's order.
    pub fn iter(&self) -> std::slice::Iter<'_, Corpus> {
        self.corpora.iter()
    }

    /// The stream that a run of `config` trains on.
    ///
    /// # Errors
    /// Where a training split does not hold even one window.
    pub fn training(&self, config: &RunConfig) -> Result<Batches<'_>, TrainError> {
        let windows = (0..).zip(&self.corpora).map(|(i, corpus): (u64, _)| {
            // Corpora of one length are not to be in one order.
            corpus.windows(config, false, config.seed.wrapping_add(i << 32))
        });
        Ok(Batches::new(self, windows.collect::<Result<_, _>>()?))
    }

    /// What a run of `config` is judged by: as many tokens of each corpus.
    ///
    /// # Errors
    /// Where a validation split does not hold even one window, or an impossible token.
    pub fn held_out(&self, config: &RunConfig) -> Result<Vec<HeldOut>, TrainError> {
        let tokens = config.validation.tokens / self.corpora.len();
        let held_out = self.corpora.iter().map(|corpus| {
            let windows = corpus.windows(config, true, config.seed)?;
            let batches = windows.spread(tokens, config.train.batch)?;
            Ok(HeldOut { name: corpus.name.clone(), share: corpus.share, batches })
        });
        held_out.collect()
    }
}

impl Corpus {
    /// The last part of its path; the whole path where another's is the same.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its weight over the sum of all.
    pub fn share(&self) -> f64 {
        self.share
    }

    /// Its files.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// Its tags; `None` for a baseline.
    pub fn tags(&self) -> Option<&Tags> {
        self.tags.as_ref()
    }

    fn windows(&self, config: &RunConfig, validation: bool, seed: u64) -> Result<Windows<'_>, TrainError> {
        let cut = Cut { validation, context: config.model.context, documents: config.data.documents };
        Windows::new(&self.dataset, self.tags.as_ref(), cut, seed)
    }
}

fn check_alike(first: &Dataset, other: &Dataset) -> Result<(), TrainError> {
    let (a, b) = (first.directory().display(), other.directory().display());
    if first.tokenizer().sha256() != other.tokenizer().sha256() {
        return Err(TrainError::Data(format!(
            "{b} was prepared with another tokenizer than {a}: prepare it with --tokenizer {a}/tokenizer.json"
        )));
    }
    if first.eos() != other.eos() {
        let (eos, others) = (first.eos(), other.eos());
        return Err(TrainError::Data(format!(
            "documents end with token {others} in {b} and with {eos} in {a}: prepare both with the same --eos"
        )));
    }
    Ok(())
}

fn names(datasets: &[Dataset]) -> Vec<String> {
    let last = |dataset: &Dataset| {
        dataset.directory().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    };
    let lasts: Vec<String> = datasets.iter().map(last).collect();
    let alone = |name: &String| !name.is_empty() && lasts.iter().filter(|other| *other == name).count() == 1;
    let name = |(dataset, last): (&Dataset, &String)| match alone(last) {
        true => last.clone(),
        false => dataset.directory().display().to_string(),
    };
    datasets.iter().zip(&lasts).map(name).collect()
}
