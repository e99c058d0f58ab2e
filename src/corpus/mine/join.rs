//! Joining files of counts to a set, side by side, so that it takes no more memory than the set.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::path::{Path, PathBuf};

use super::choose::{Chosen, choose};
use super::part::import;
use super::survivors::{PartWriter, Survivors, Walk};
use super::{Scan, check_max_n};
use crate::corpus::Error;
use crate::fgram::parquet::Reader;
use crate::fgram::{FgramSet, MAX_VOCABULARY, Policy};

/// Bits of any token id.
const TOKEN_BITS: u32 = MAX_VOCABULARY.trailing_zeros();

/// What [`join`] came to.
#[derive(Debug)]
pub struct Joined {
    /// The f-grams.
    pub set: FgramSet,
    /// A row a length, from n = 2. Candidates are the different n-grams of all files.
    pub scans: Vec<Scan>,
}

/// What is joined.
#[derive(Clone, Debug)]
pub struct JoinOptions<'a> {
    /// Files of counts, each sorted by length and then tokens.
    pub counts: &'a [PathBuf],
    /// Where the counts were pruned: the survivors that they were pruned with, whose f-grams are taken over.
    pub survivors: Option<&'a FgramSet>,
    /// What the files do not say of their policy.
    pub default: Option<&'a Policy>,
    /// Those below it are dropped.
    pub min_count: u64,
    /// The most f-grams that are kept.
    pub size: u64,
}

/// Joins the counts of all parts of a corpus to the set that [`mine`](super::mine) would make of the whole.
///
/// The files are read once, side by side; n-grams that are frequent enough go to files in `directory`.
///
/// # Errors
/// Where a file cannot be read, is out of order, has an n-gram twice or one that the policy does not allow, the files
/// belong to different tokenizers, or counts are missing, so that the set is not closed.
pub fn join(options: &JoinOptions<'_>, directory: &Path) -> Result<Joined, Error> {
    let mut sources = Vec::new();
    let mut policy: Option<Policy> = options.survivors.map(|set| set.policy().clone());
    for path in options.counts {
        let reader = Reader::open(path)?;
        let theirs = reader.policy(options.default)?;
        policy = Some(match policy {
            None => theirs,
            Some(ours) => common(ours, &theirs, path)?,
        });
        sources.push(Source::new(path.clone(), Rows::File(Box::new(reader))));
    }
    let Some(policy) = policy else { return Err(Error::Option("there are no counts to join".to_owned())) };
    check_max_n(policy.max_n)?;
    let scans = match options.survivors {
        Some(set) => {
            let path = directory.join("survivors");
            std::fs::create_dir_all(&path).map_err(Error::io("make", &path))?;
            let states = import(set, set.policy().max_n, &path, TOKEN_BITS)?.into_iter().zip(2..);
            let scan =
                |(state, n): (super::work::ScanState, _)| Survivors::new(&path, n, state.parts, TOKEN_BITS);
            states.map(scan).collect::<Result<Vec<_>, _>>()?
        }
        None => Vec::new(),
    };
    for n in 1..=scans.len() {
        sources.push(Source::new(PathBuf::from("the survivors"), Rows::Set(Walk::new(&scans[..n]))));
    }
    let mut heads = Heads::new(sources)?;
    let (mut survivors, mut candidates) = (Vec::new(), Vec::new());
    for n in 2..=policy.max_n {
        let (scan, met) = level(n, &mut heads, &survivors, (&policy, options.min_count), directory)?;
        survivors.push(scan);
        candidates.push(met);
    }
    if let Some(ngram) = heads.next()? {
        return Err(ngram.wrong(format!(
            "it has {} tokens, the set is to have 2 to {}",
            ngram.tokens.len(),
            policy.max_n
        )));
    }
    if survivors.iter().all(|scan| scan.len == 0) {
        let what = format!("no n-gram of these files has a count of {}", options.min_count);
        return Err(Error::Option(what));
    }
    let Chosen { set, mut scans, .. } = choose(policy, &survivors, options.size)?;
    for (scan, candidates) in scans.iter_mut().zip(candidates) {
        scan.candidates = candidates;
    }
    Ok(Joined { set, scans })
}

/// The policy of two files, which must belong to one tokenizer.
fn common(ours: Policy, theirs: &Policy, path: &Path) -> Result<Policy, Error> {
    if ours.tokenizer_sha256 != theirs.tokenizer_sha256 || ours.special_tokens != theirs.special_tokens {
        let what = format!(
            "it belongs to tokenizer {:.12} with special tokens {:?}, the files before it to {:.12} with {:?}",
            theirs.tokenizer_sha256, theirs.special_tokens, ours.tokenizer_sha256, ours.special_tokens
        );
        return Err(Error::damaged(path, what));
    }
    Ok(Policy { max_n: ours.max_n.max(theirs.max_n), ..ours })
}

/// Writes the n-grams of one length that are frequent enough; gives them, and how many different ones there were.
fn level(
    n: usize,
    heads: &mut Heads<'_>,
    below: &[Survivors],
    (policy, min_count): (&Policy, u64),
    directory: &Path,
) -> Result<(Survivors, u64), Error> {
    let mut part = PartWriter::create(directory, n, 0)?;
    let mut prefixes = Prefixes { walk: Walk::new(below), tokens: Vec::new(), number: 0, begun: false };
    let mut candidates = 0;
    while heads.next_len() == Some(n) {
        let Some(ngram) = heads.next()? else { break };
        let forbidden =
            |token: &&u32| **token >= MAX_VOCABULARY || policy.special_tokens.binary_search(token).is_ok();
        if let Some(token) = ngram.tokens.iter().find(forbidden) {
            return Err(
                ngram.wrong(format!("token {token} is special or too large, so it can be in no n-gram"))
            );
        }
        candidates += 1;
        if ngram.count < min_count {
            continue;
        }
        let prefix = if n == 2 { Some(ngram.tokens[0]) } else { prefixes.find(&ngram.tokens[..n - 1])? };
        let Some(prefix) = prefix else {
            return Err(ngram.wrong(format!(
                "its first {} tokens are not as frequent: counts are missing. Give the files of all shards and \
                 lengths, or --survivors",
                n - 1
            )));
        };
        part.push(u64::from(prefix) << TOKEN_BITS | u64::from(ngram.tokens[n - 1]), ngram.count)?;
    }
    Ok((Survivors::new(directory, n, vec![part.finish()?], TOKEN_BITS)?, candidates))
}

/// Numbers of n-grams that are asked for in order.
struct Prefixes<'a> {
    walk: Walk<'a>,
    /// The n-gram that was read last, and its number.
    tokens: Vec<u32>,
    number: u32,
    begun: bool,
}

impl Prefixes<'_> {
    fn find(&mut self, wanted: &[u32]) -> Result<Option<u32>, Error> {
        while !self.begun || self.tokens.as_slice() < wanted {
            if self.walk.next(&mut self.tokens)?.is_none() {
                return Ok(None);
            }
            self.number += u32::from(self.begun);
            self.begun = true;
        }
        Ok((self.tokens == wanted).then_some(self.number))
    }
}

/// Rows in order of length, then tokens.
enum Rows<'a> {
    File(Box<Reader>),
    Set(Walk<'a>),
}

/// A file, or the survivors of one scan, and its next row.
struct Source<'a> {
    name: PathBuf,
    rows: Rows<'a>,
    tokens: Vec<u32>,
    count: u64,
}

impl<'a> Source<'a> {
    fn new(name: PathBuf, rows: Rows<'a>) -> Self {
        Self { name, rows, tokens: Vec::new(), count: 0 }
    }

    /// Goes to the next row, if there is one.
    fn advance(&mut self) -> Result<bool, Error> {
        match &mut self.rows {
            Rows::Set(walk) => {
                let count = walk.next(&mut self.tokens)?;
                self.count = count.unwrap_or(0);
                Ok(count.is_some())
            }
            Rows::File(reader) => {
                let Some((tokens, count)) = reader.next_row()? else { return Ok(false) };
                if tokens.len() < 2 || order(&self.tokens, tokens) != Ordering::Less {
                    let what = format!(
                        "{tokens:?} comes after {:?}: sort by length, then tokens, each n-gram of two or more tokens once",
                        self.tokens
                    );
                    return Err(Error::damaged(&self.name, what));
                }
                self.tokens.clear();
                self.tokens.extend_from_slice(tokens);
                self.count = count;
                Ok(true)
            }
        }
    }
}

fn order(a: &[u32], b: &[u32]) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

// A heap gives its greatest, so the order is turned round.
impl Ord for Source<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        order(&other.tokens, &self.tokens)
    }
}

impl PartialOrd for Source<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Source<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.tokens == other.tokens
    }
}

impl Eq for Source<'_> {}

/// All sources, the one with the first row on top.
struct Heads<'a> {
    heap: BinaryHeap<Source<'a>>,
    ngram: Ngram,
}

/// An n-gram and the sum of its counts.
#[derive(Default)]
struct Ngram {
    tokens: Vec<u32>,
    count: u64,
    /// Where it was met last.
    source: PathBuf,
}

impl Ngram {
    fn wrong(&self, what: impl std::fmt::Display) -> Error {
        Error::damaged(&self.source, format!("n-gram {:?}: {what}", self.tokens))
    }
}

impl<'a> Heads<'a> {
    fn new(sources: Vec<Source<'a>>) -> Result<Self, Error> {
        let mut heap = BinaryHeap::with_capacity(sources.len());
        for mut source in sources {
            if source.advance()? {
                heap.push(source);
            }
        }
        Ok(Self { heap, ngram: Ngram::default() })
    }

    /// How many tokens the next n-gram has.
    fn next_len(&self) -> Option<usize> {
        self.heap.peek().map(|source| source.tokens.len())
    }

    /// The next n-gram of all sources.
    fn next(&mut self) -> Result<Option<&Ngram>, Error> {
        let ngram = &mut self.ngram;
        let (mut met, mut of_set) = (0, false);
        while let Some(mut top) = self.heap.peek_mut() {
            if met == 0 {
                ngram.tokens.clone_from(&top.tokens);
                ngram.count = 0;
            } else if top.tokens != ngram.tokens {
                break;
            }
            met += 1;
            of_set |= matches!(top.rows, Rows::Set(_));
            let sum = ngram.count.checked_add(top.count).filter(|&sum| sum < 1 << 62);
            ngram.source.clone_from(&top.name);
            ngram.count = sum.ok_or_else(|| ngram.wrong("its counts are too large"))?;
            if !top.advance()? {
                PeekMut::pop(top);
            }
        }
        if of_set && met > 1 {
            return Err(
                ngram.wrong("it is in the counts and in the survivors: give only the next scan's counts")
            );
        }
        Ok((met > 0).then_some(ngram))
    }
}
