//! The survivors of a scan, in files.
//!
//! An n-gram of scan n is a key, its prefix's number and its last token; a number is a place among the survivors of a
//! scan, in the order of their tokens. Keys are sorted, so the entries of a scan stand in the order of their tokens too,
//! and whoever reads all scans in step gets the tokens back.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::code::{Decoder, Encoder};
use super::text::NONE;
use crate::corpus::Error;

/// Bytes written or read at a time.
const BUFFER: usize = 256 << 10;

/// One file of survivors, as the state of a scan lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    file: String,
    bytes: u64,
    entries: u64,
    crc: u32,
}

impl Part {
    /// Its name.
    pub(super) fn file(&self) -> &str {
        &self.file
    }
}

/// Writes a part.
pub(super) struct PartWriter {
    path: PathBuf,
    file: BufWriter<File>,
    part: Part,
    encoder: Encoder,
    crc: crc32fast::Hasher,
    buffer: Vec<u8>,
}

impl PartWriter {
    /// Begins part `number` of scan `n`; an older file of that name is replaced.
    pub(super) fn create(directory: &Path, n: usize, number: usize) -> Result<Self, Error> {
        let file = format!("survivors-{n}-{number}");
        let path = directory.join(&file);
        let opened = File::create(&path).map_err(Error::io("write", &path))?;
        let part = Part { file, bytes: 0, entries: 0, crc: 0 };
        let (encoder, crc) = (Encoder::default(), crc32fast::Hasher::new());
        let file = BufWriter::with_capacity(BUFFER, opened);
        Ok(Self { path, file, part, encoder, crc, buffer: Vec::new() })
    }

    pub(super) fn push(&mut self, key: u64, count: u64) -> Result<(), Error> {
        self.encoder.push(key, count, &mut self.buffer);
        self.part.entries += 1;
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.crc.update(&self.buffer);
        self.part.bytes += self.buffer.len() as u64;
        self.file.write_all(&self.buffer).map_err(Error::io("write", &self.path))?;
        self.buffer.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Part, Error> {
        self.flush()?;
        self.file.flush().map_err(Error::io("write", &self.path))?;
        self.part.crc = self.crc.finalize();
        Ok(self.part)
    }
}

/// All survivors of a scan.
#[derive(Clone, Debug)]
pub(super) struct Survivors {
    directory: PathBuf,
    parts: Vec<Part>,
    token_bits: u32,
    /// How many.
    pub(super) len: u32,
}

/// One n-gram as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ngram {
    /// The number of all tokens but the last; of a bigram, the first token.
    pub(super) prefix: u32,
    pub(super) last: u32,
    pub(super) count: u64,
}

impl Survivors {
    pub(super) fn new(directory: &Path, n: usize, parts: Vec<Part>, token_bits: u32) -> Result<Self, Error> {
        let len = parts.iter().map(|part| part.entries).sum::<u64>();
        // The last number stands for "none".
        let Some(len) = u32::try_from(len).ok().filter(|&len| len < NONE) else {
            let what = format!("{len} {n}-grams survived, and {NONE} are too many: raise --min-count");
            return Err(Error::Option(what));
        };
        Ok(Self { directory: directory.to_owned(), parts, token_bits, len })
    }

    pub(super) fn reader(&self) -> Reader<'_> {
        Reader { survivors: self, next_part: 0, open: None }
    }
}

/// Reads survivors in order.
pub(super) struct Reader<'a> {
    survivors: &'a Survivors,
    next_part: usize,
    open: Option<(PathBuf, u32, Decoder<File>)>,
}

impl<'a> Reader<'a> {
    /// Not as many survivors as there should be.
    pub(super) fn missing(&self) -> Error {
        let what = "it holds other n-grams than its state says; remove it";
        Error::damaged(&self.survivors.directory, what)
    }

    /// What it reads.
    pub(super) fn survivors(&self) -> &'a Survivors {
        self.survivors
    }

    pub(super) fn next(&mut self) -> Result<Option<Ngram>, Error> {
        loop {
            if let Some((path, crc, decoder)) = &mut self.open {
                if let Some((key, count)) = decoder.next().map_err(Error::io("read", path))? {
                    let bits = self.survivors.token_bits;
                    let (prefix, last) = ((key >> bits) as u32, (key & ((1 << bits) - 1)) as u32);
                    return Ok(Some(Ngram { prefix, last, count }));
                }
                if decoder.crc() != *crc {
                    return Err(Error::damaged(path, "its checksum is wrong; remove the directory it is in"));
                }
            }
            let Some(part) = self.survivors.parts.get(self.next_part) else { return Ok(None) };
            self.next_part += 1;
            let path = self.survivors.directory.join(&part.file);
            let file = File::open(&path).map_err(Error::io("read", &path))?;
            self.open = Some((path, part.crc, Decoder::new(file, part.bytes, BUFFER)));
        }
    }
}

/// Reads the survivors of one scan with their tokens, by reading those of the scans before in step.
pub(super) struct Walk<'a> {
    levels: Vec<Cursor<'a>>,
}

struct Cursor<'a> {
    reader: Reader<'a>,
    /// The number of the n-gram that was read last, plus one.
    read: u64,
    ngram: Ngram,
}

impl<'a> Walk<'a> {
    /// Over the last of `scans`, which begin with n = 2.
    pub(super) fn new(scans: &'a [Survivors]) -> Self {
        let ngram = Ngram { prefix: 0, last: 0, count: 0 };
        let cursor = |scan: &'a Survivors| Cursor { reader: scan.reader(), read: 0, ngram };
        Self { levels: scans.iter().map(cursor).collect() }
    }

    /// Replaces `tokens` by those of the next n-gram; gives its count.
    pub(super) fn next(&mut self, tokens: &mut Vec<u32>) -> Result<Option<u64>, Error> {
        let Some((top, below)) = self.levels.split_last_mut() else { return Ok(None) };
        let Some(ngram) = top.reader.next()? else { return Ok(None) };
        tokens.clear();
        tokens.push(ngram.last);
        let mut prefix = ngram.prefix;
        for level in below.iter_mut().rev() {
            let found = level.advance_to(prefix)?;
            tokens.push(found.last);
            prefix = found.prefix;
        }
        tokens.push(prefix);
        tokens.reverse();
        Ok(Some(ngram.count))
    }
}

impl Cursor<'_> {
    /// The n-gram of this number, which never decreases from call to call.
    fn advance_to(&mut self, number: u32) -> Result<Ngram, Error> {
        while self.read <= u64::from(number) {
            let next = self.reader.next()?;
            self.ngram = next.ok_or_else(|| self.reader.missing())?;
            self.read += 1;
        }
        Ok(self.ngram)
    }
}
