use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use super::Error;
use crate::tokenizer::Tokenizer;

/// How token ids are stored, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Two bytes, for vocabularies of up to 65,536 tokens.
    U16,
    /// Four bytes.
    U32,
}

impl Dtype {
    /// The smaller type that holds every id below `vocab_size`.
    pub fn for_vocabulary(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::U16 } else { Self::U32 }
    }

    /// Bytes a token.
    pub fn size(self) -> usize {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }
}

/// `dataset.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Hash of the `tokenizer.json` beside it.
    pub tokenizer_sha256: String,
    /// The type of the shards' elements.
    pub dtype: Dtype,
    /// The token after each document.
    pub eos: u32,
    /// Tokens of both splits, one EOS a document included.
    pub tokens: u64,
    /// Documents of both splits.
    pub documents: u64,
    /// What is trained on and mined.
    pub train: SplitEntry,
    /// What is held out.
    pub validation: SplitEntry,
}

/// A split, as `dataset.json` lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitEntry {
    /// Its files, in order.
    pub shards: Vec<ShardEntry>,
    /// Tokens of all shards.
    pub tokens: u64,
    /// Documents of all shards.
    pub documents: u64,
    /// UTF-8 bytes of the text (EOS counts nothing): what bits per byte are per.
    pub bytes: u64,
}

/// A shard, as `dataset.json` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Its name in the dataset's directory.
    pub file: String,
    /// Its length.
    pub tokens: u64,
    /// How many documents lie in it, all of them whole.
    pub documents: u64,
}

/// A prepared corpus: a directory with token shards, `tokenizer.json` and `dataset.json`.
#[derive(Debug)]
pub struct Dataset {
    directory: PathBuf,
    manifest: Manifest,
    tokenizer: Tokenizer,
    train: Split,
    validation: Split,
}

impl Dataset {
    /// Opens a dataset and maps its shards. Cost does not depend on their size: token ids are checked as they are
    /// read ([`Shard::read`]).
    ///
    /// # Errors
    /// Where files are missing, have another size than `dataset.json` says, or the tokenizer has been changed.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, Error> {
        let directory = directory.as_ref().to_owned();
        let path = directory.join("dataset.json");
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|error| Error::damaged(&path, error.to_string()))?;
        let tokenizer = Tokenizer::from_file(directory.join("tokenizer.json"))?;
        if tokenizer.sha256() != manifest.tokenizer_sha256 {
            let what = format!("tokenizer.json is another than {}", manifest.tokenizer_sha256);
            return Err(Error::damaged(&path, what));
        }
        if Dtype::for_vocabulary(tokenizer.vocab_size()) == Dtype::U32 && manifest.dtype == Dtype::U16 {
            return Err(Error::damaged(&path, "dtype u16 cannot hold this tokenizer's ids"));
        }
        let open = |entry| Split::open(&directory, entry, manifest.dtype, tokenizer.vocab_size());
        let (train, validation) = (open(&manifest.train)?, open(&manifest.validation)?);
        if manifest.train.tokens.checked_add(manifest.validation.tokens) != Some(manifest.tokens) {
            return Err(Error::damaged(&path, "the splits' tokens do not add up to the dataset's"));
        }
        Ok(Self { directory, manifest, tokenizer, train, validation })
    }

    /// Where it lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its `dataset.json`.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The tokenizer that made it.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The token after each document.
    pub fn eos(&self) -> u32 {
        self.manifest.eos
    }

    /// The tokens that are in no f-gram, ascending: the tokenizer's special ones, and EOS.
    pub fn special_tokens(&self) -> Vec<u32> {
        let mut special = self.tokenizer.special_tokens().to_vec();
        if let Err(place) = special.binary_search(&self.eos()) {
            special.insert(place, self.eos());
        }
        special
    }

    /// What is trained on and mined.
    pub fn train(&self) -> &Split {
        &self.train
    }

    /// What is held out.
    pub fn validation(&self) -> &Split {
        &self.validation
    }
}

/// The shards of a split, opened.
#[derive(Debug)]
pub struct Split {
    /// In order.
    pub shards: Vec<Shard>,
    /// The length of all of them.
    pub tokens: u64,
    /// How many documents.
    pub documents: u64,
    /// UTF-8 bytes of their text.
    pub bytes: u64,
}

impl Split {
    fn open(directory: &Path, entry: &SplitEntry, dtype: Dtype, vocab_size: usize) -> Result<Self, Error> {
        let open = |shard| Shard::open(directory, shard, dtype, vocab_size);
        let shards = entry.shards.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        if shards.iter().map(|shard| shard.len() as u64).sum::<u64>() != entry.tokens {
            let path = directory.join("dataset.json");
            return Err(Error::damaged(&path, "the shards' tokens do not add up to their split's"));
        }
        Ok(Self { shards, tokens: entry.tokens, documents: entry.documents, bytes: entry.bytes })
    }
}

/// A mapped file of token ids. Documents lie in it whole, an EOS after each.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    map: Mmap,
    dtype: Dtype,
    vocab_size: usize,
    documents: u64,
}

impl Shard {
    fn open(directory: &Path, entry: &ShardEntry, dtype: Dtype, vocab_size: usize) -> Result<Self, Error> {
        let path = directory.join(&entry.file);
        if Path::new(&entry.file).file_name() != Some(entry.file.as_ref()) {
            return Err(Error::damaged(&path, "a shard's name must be a plain file name"));
        }
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        // SAFETY: a mapped file must not be changed by others while it is in use. Shards are written once, under a
        // temporary name, and never changed after their renaming; every value read is checked against the vocabulary.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", &path))?;
        if Some(map.len() as u64) != entry.tokens.checked_mul(dtype.size() as u64) {
            let what =
                format!("{} bytes, where dataset.json says {} tokens ({dtype:?})", map.len(), entry.tokens);
            return Err(Error::damaged(&path, what));
        }
        Ok(Self { path, map, dtype, vocab_size, documents: entry.documents })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many tokens it holds.
    pub fn len(&self) -> usize {
        self.map.len() / self.dtype.size()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// How many documents it holds.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// The token at `i`; `None` past the end.
    pub fn get(&self, i: usize) -> Option<u32> {
        let size = self.dtype.size();
        let bytes = self.map.get(i.checked_mul(size)?..)?.get(..size)?;
        Some(bytes.iter().rev().fold(0, |token, &byte| token << 8 | u32::from(byte)))
    }

    /// Replaces the contents of `tokens` by those of `range`.
    ///
    /// # Errors
    /// Where the range reaches past the end, or an id is outside the vocabulary.
    pub fn read(&self, range: Range<usize>, tokens: &mut Vec<u32>) -> Result<(), Error> {
        let bytes = self.place(&range)?;
        self.decode(&self.map[bytes], range.start, tokens)
    }

    /// As [`Shard::read`], but the bytes are read, not touched in the mapping: mapped pages count as this process's
    /// memory, and whoever goes through all of a corpus must stay within what it was given.
    ///
    /// # Errors
    /// As [`Shard::read`], and where the file cannot be read.
    pub(super) fn read_file(&self, range: Range<usize>, tokens: &mut Vec<u32>) -> Result<(), Error> {
        let place = self.place(&range)?;
        let mut bytes = vec![0; place.len()];
        File::open(&self.path)
            .and_then(|file| file.read_exact_at(&mut bytes, place.start as u64))
            .map_err(Error::io("read", &self.path))?;
        self.decode(&bytes, range.start, tokens)
    }

    /// Where the tokens of a range lie.
    fn place(&self, range: &Range<usize>) -> Result<Range<usize>, Error> {
        let size = self.dtype.size();
        if range.start > range.end || range.end > self.len() {
            let what = format!("tokens {range:?} were asked for, of {}", self.len());
            return Err(Error::damaged(&self.path, what));
        }
        Ok(range.start * size..range.end * size)
    }

    fn decode(&self, bytes: &[u8], start: usize, tokens: &mut Vec<u32>) -> Result<(), Error> {
        tokens.clear();
        match self.dtype {
            Dtype::U16 => {
                tokens.extend(bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))));
            }
            Dtype::U32 => {
                tokens.extend(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            }
        }
        // The maximum first, for it is vectorised; where it lies is looked for only when it is too large.
        if tokens.iter().max().is_some_and(|&token| token as usize >= self.vocab_size) {
            let at = tokens.iter().position(|&token| token as usize >= self.vocab_size).unwrap_or(0);
            let what =
                format!("token {} is {}, the vocabulary has {}", start + at, tokens[at], self.vocab_size);
            return Err(Error::damaged(&self.path, what));
        }
        Ok(())
    }
}
