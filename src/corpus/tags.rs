use std::fs::File;
use std::io::Write;

use memmap2::Mmap;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Dataset, Error, Shard, Split};
use crate::fgram::{FgramSet, MAX_N};
use crate::new_file::NewFile;

/// Positions that one task matches.
const CHUNK: usize = 1 << 16;
/// Positions matched before they are written.
const ROUND: usize = 16 << 20;

/// How many tokens have which tag. A tag is the length of the longest f-gram that ends at a token, 2 to K; 1 where
/// the token falls back; 0 for a special token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// By tag, 0 to K.
    pub tokens: Vec<u64>,
}

impl Histogram {
    fn add(&mut self, tags: &[u8]) {
        let mut counts = [0; MAX_N + 1];
        for &tag in tags {
            counts[usize::from(tag).min(MAX_N)] += 1;
        }
        for (total, count) in self.tokens.iter_mut().zip(counts) {
            *total += count;
        }
    }

    /// All tokens.
    pub fn total(&self) -> u64 {
        self.tokens.iter().sum()
    }

    /// The share of all tokens whose longest match has exactly `n` tokens.
    pub fn share(&self, n: usize) -> f64 {
        self.tokens.get(n).copied().unwrap_or(0) as f64 / self.total().max(1) as f64
    }

    /// The share of all tokens where an f-gram ends.
    pub fn hit_rate(&self) -> f64 {
        (2..self.tokens.len()).map(|n| self.share(n)).sum()
    }

    /// The mean tag: a fallback counts as 1, a special token as 0.
    pub fn mean_match(&self) -> f64 {
        (1..self.tokens.len()).map(|n| n as f64 * self.share(n)).sum()
    }
}

/// `tags.json`: what the tags of a dataset are, and what they came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagReport {
    /// The set's identity, [`FgramSet::sha256`].
    pub fgrams_sha256: String,
    /// How many f-grams it holds.
    pub fgrams: u64,
    /// Its K.
    pub max_n: usize,
    /// The training split's tags.
    pub train: Histogram,
    /// The validation split's tags.
    pub validation: Histogram,
}

/// Writes the tag of every token, a byte each, beside the dataset's shards (`train-00000.tags`), and `tags.json`.
///
/// A match lies inside its shard and crosses no special token. The old tags, if any, are replaced as a whole: while
/// that goes on there is no `tags.json`. `step` is told how many more tokens are done.
///
/// # Errors
/// Where the set belongs to another tokenizer, a shard is damaged, or the disk cannot be written; unless files were
/// already being replaced, the old tags then stay.
pub fn tag(dataset: &Dataset, set: &FgramSet, step: &mut dyn FnMut(u64)) -> Result<TagReport, Error> {
    check_tokenizer(dataset, set)?;
    let empty = || Histogram { tokens: vec![0; set.policy().max_n + 1] };
    let mut report = TagReport {
        fgrams_sha256: set.sha256(),
        fgrams: set.len() as u64,
        max_n: set.policy().max_n,
        train: empty(),
        validation: empty(),
    };
    let mut written = Vec::new();
    let splits = [(dataset.train(), &mut report.train), (dataset.validation(), &mut report.validation)];
    for (split, histogram) in splits {
        for shard in &split.shards {
            let path = shard.path().with_extension("tags");
            let mut file = NewFile::create(&path).map_err(Error::io("write", &path))?;
            tag_shard(shard, set, |tags| {
                histogram.add(tags);
                step(tags.len() as u64);
                file.write_all(tags).map_err(Error::io("write", &path))
            })?;
            written.push(file);
        }
    }
    let path = dataset.directory().join("tags.json");
    let mut file = NewFile::create(&path).map_err(Error::io("write", &path))?;
    let mut json =
        serde_json::to_vec_pretty(&report).map_err(|error| Error::damaged(&path, error.to_string()))?;
    json.push(b'\n');
    file.write_all(&json).map_err(Error::io("write", &path))?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("replace", &path)(error));
        }
        _ => {}
    }
    written.push(file);
    for file in written {
        let path = file.path().to_owned();
        file.commit().map_err(Error::io("write", &path))?;
    }
    Ok(report)
}

pub(super) fn check_tokenizer(dataset: &Dataset, set: &FgramSet) -> Result<(), Error> {
    let (theirs, ours) = (&set.policy().tokenizer_sha256, dataset.tokenizer().sha256());
    if theirs != ours {
        let (theirs, ours) = (theirs.clone(), ours.to_owned());
        return Err(Error::OtherTokenizer { what: "f-gram set", theirs, ours });
    }
    let (theirs, ours) = (&set.policy().special_tokens, dataset.special_tokens());
    if *theirs != ours {
        let what = format!("the f-gram set leaves out special tokens {theirs:?}, the dataset has {ours:?}");
        return Err(Error::Option(what));
    }
    Ok(())
}

/// Gives the tags of a shard to `take`, in order, some millions at a time.
fn tag_shard(
    shard: &Shard,
    set: &FgramSet,
    mut take: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut tags = Vec::new();
    for from in (0..shard.len()).step_by(ROUND) {
        tags.clear();
        tags.resize(ROUND.min(shard.len() - from), 0);
        tags.par_chunks_mut(CHUNK).enumerate().try_for_each_init(Vec::new, |tokens, (chunk, tags)| {
            let start = from + chunk * CHUNK;
            let context = start.saturating_sub(set.policy().max_n - 1);
            shard.read_file(context..start + tags.len(), tokens)?;
            tag_tokens(set, tokens, start - context, tags);
            Ok::<_, Error>(())
        })?;
        take(&tags)?;
    }
    Ok(())
}

/// The tags of `tokens[context..]`.
fn tag_tokens(set: &FgramSet, tokens: &[u32], context: usize, tags: &mut [u8]) {
    let matches = set.index().matches(tokens, context);
    for ((tag, found), token) in tags.iter_mut().zip(matches).zip(&tokens[context..]) {
        *tag = match found {
            Some(found) => found.n,
            None => u8::from(set.policy().special_tokens.binary_search(token).is_err()),
        };
    }
}

/// The tags of a dataset, mapped.
#[derive(Debug)]
pub struct Tags {
    report: TagReport,
    train: Vec<Mmap>,
    validation: Vec<Mmap>,
}

impl Tags {
    /// Opens the tags of a dataset, which must be those of this set.
    ///
    /// # Errors
    /// Where there are none, they belong to another set, or do not fit the shards.
    pub fn open(dataset: &Dataset, fgrams_sha256: &str) -> Result<Self, Error> {
        let path = dataset.directory().join("tags.json");
        let bytes =
            std::fs::read(&path).map_err(Error::io("read the dataset's tags (run `tag` first):", &path))?;
        let report: TagReport =
            serde_json::from_slice(&bytes).map_err(|error| Error::damaged(&path, error.to_string()))?;
        if report.fgrams_sha256 != fgrams_sha256 {
            let (theirs, ours) = (report.fgrams_sha256, fgrams_sha256.to_owned());
            return Err(Error::OtherTags { path, theirs, ours });
        }
        let map = |split: &Split| split.shards.iter().map(map_tags).collect::<Result<Vec<_>, _>>();
        Ok(Self { report, train: map(dataset.train())?, validation: map(dataset.validation())? })
    }

    /// `tags.json`.
    pub fn report(&self) -> &TagReport {
        &self.report
    }

    /// The tags of the training split, a slice a shard. A value above K can only come of damage: clamp what is used
    /// as a length.
    pub fn train(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.train.iter().map(|map| &map[..])
    }

    /// The tags of the validation split, a slice a shard.
    pub fn validation(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.validation.iter().map(|map| &map[..])
    }
}

fn map_tags(shard: &Shard) -> Result<Mmap, Error> {
    let path = shard.path().with_extension("tags");
    let file = File::open(&path).map_err(Error::io("open", &path))?;
    // SAFETY: as for the shards: tags are replaced by renaming, never changed in place.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", &path))?;
    if map.len() != shard.len() {
        return Err(Error::damaged(&path, format!("{} tags for {} tokens", map.len(), shard.len())));
    }
    Ok(map)
}
