use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Dtype, Error, Manifest, ShardEntry, SplitEntry};
use crate::tokenizer::Tokenizer;

/// A shard is closed at the end of the document that brings it to this many tokens.
pub const SHARD_TOKENS: u64 = 100_000_000;

/// The two parts of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitName {
    /// Trained on and mined.
    Train,
    /// Held out.
    Validation,
}

impl SplitName {
    fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
        }
    }
}

/// Writes a dataset, document by document, into a directory beside the final one, which [`DatasetWriter::finish`]
/// renames. Dropped before that, it leaves nothing.
#[derive(Debug)]
pub struct DatasetWriter {
    output: PathBuf,
    directory: TempDir,
    dtype: Dtype,
    vocab_size: usize,
    eos: u32,
    tokenizer_sha256: String,
    shard_tokens: u64,
    train: SplitWriter,
    validation: SplitWriter,
}

impl DatasetWriter {
    /// Begins a dataset at `output`, which must not exist or be an empty directory; copies the tokenizer into it.
    ///
    /// # Errors
    /// Where the output is taken, `eos` is not in the vocabulary, or the disk cannot be written.
    pub fn create(
        output: &Path,
        tokenizer: &Tokenizer,
        tokenizer_json: &Path,
        eos: u32,
        shard_tokens: u64,
    ) -> Result<Self, Error> {
        refuse_taken(output)?;
        if eos as usize >= tokenizer.vocab_size() {
            return Err(Error::NoEos);
        }
        let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).map_err(Error::io("make", parent))?;
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        let directory = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .suffix(".partial")
            .permissions(std::fs::Permissions::from_mode(0o777))
            .tempdir_in(parent)
            .map_err(Error::io("write into", parent))?;
        let copy = directory.path().join("tokenizer.json");
        std::fs::copy(tokenizer_json, &copy).map_err(Error::io("write", &copy))?;
        let split = |name| SplitWriter {
            name,
            directory: directory.path().to_owned(),
            entry: SplitEntry::default(),
            open: None,
            document: None,
            last: None,
        };
        Ok(Self {
            output: output.to_owned(),
            dtype: Dtype::for_vocabulary(tokenizer.vocab_size()),
            vocab_size: tokenizer.vocab_size(),
            eos,
            tokenizer_sha256: tokenizer.sha256().to_owned(),
            shard_tokens,
            train: split(SplitName::Train),
            validation: split(SplitName::Validation),
            directory,
        })
    }

    /// Appends to the current document of a split: tokens, and how many bytes of text they stand for.
    ///
    /// # Errors
    /// Where a token is outside the vocabulary or the disk cannot be written.
    pub fn append(&mut self, split: SplitName, tokens: &[u32], bytes: u64) -> Result<(), Error> {
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= self.vocab_size) {
            let what = format!("token {token} is outside the vocabulary of {}", self.vocab_size);
            return Err(Error::Option(what));
        }
        let dtype = self.dtype;
        self.split(split).append(tokens, bytes, dtype)
    }

    /// Ends the current document of a split with an EOS.
    ///
    /// # Errors
    /// Where the disk cannot be written.
    pub fn end_document(&mut self, split: SplitName) -> Result<(), Error> {
        let (eos, dtype, limit) = (self.eos, self.dtype, self.shard_tokens);
        let split = self.split(split);
        split.append(&[eos], 0, dtype)?;
        split.end_document(limit)
    }

    /// Tokens written so far.
    pub fn tokens(&self) -> u64 {
        self.train.entry.tokens + self.validation.entry.tokens
    }

    /// Documents ended so far.
    pub fn documents(&self) -> u64 {
        self.train.entry.documents + self.validation.entry.documents
    }

    /// Documents ended so far in a split.
    pub fn documents_of(&self, split: SplitName) -> u64 {
        match split {
            SplitName::Train => self.train.entry.documents,
            SplitName::Validation => self.validation.entry.documents,
        }
    }

    /// Moves the training split's last document to the validation split.
    ///
    /// # Errors
    /// Where the disk cannot be read or written.
    pub fn move_last_to_validation(&mut self) -> Result<(), Error> {
        let Some((tokens, bytes)) = self.train.take_last_document(self.dtype)? else { return Ok(()) };
        self.append(SplitName::Validation, &tokens, bytes)?;
        self.end_document(SplitName::Validation)
    }

    /// Writes `dataset.json`, makes everything durable and gives the directory its name.
    ///
    /// # Errors
    /// Where there is no training document, or the disk cannot be written.
    pub fn finish(self) -> Result<Manifest, Error> {
        let Self { output, directory, dtype, eos, tokenizer_sha256, train, validation, .. } = self;
        let (train, validation) = (train.finish()?, validation.finish()?);
        if train.documents == 0 {
            return Err(Error::Empty("no document has any text".to_owned()));
        }
        let manifest = Manifest {
            tokenizer_sha256,
            dtype,
            eos,
            tokens: train.tokens + validation.tokens,
            documents: train.documents + validation.documents,
            train,
            validation,
        };
        let path = directory.path().join("dataset.json");
        let mut json =
            serde_json::to_vec_pretty(&manifest).map_err(|error| Error::damaged(&path, error.to_string()))?;
        json.push(b'\n');
        std::fs::write(&path, json).map_err(Error::io("write", &path))?;
        for name in ["dataset.json", "tokenizer.json", ""] {
            let path = directory.path().join(name);
            File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("write", &path))?;
        }
        refuse_taken(&output)?;
        // Renaming replaces an empty directory, and fails on one that has been filled meanwhile.
        std::fs::rename(directory.path(), &output).map_err(Error::io("write", &output))?;
        // The directory has moved away from under its guard, which then has nothing to remove.
        let _ = directory.keep();
        Ok(manifest)
    }

    fn split(&mut self, split: SplitName) -> &mut SplitWriter {
        match split {
            SplitName::Train => &mut self.train,
            SplitName::Validation => &mut self.validation,
        }
    }
}

/// An output must not exist, or be an empty directory.
pub(super) fn refuse_taken(output: &Path) -> Result<(), Error> {
    match std::fs::read_dir(output) {
        Ok(mut entries) => match entries.next() {
            Some(_) => Err(Error::Exists(output.to_owned())),
            None => Ok(()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io { doing: "make a directory of", path: output.to_owned(), source }),
    }
}

#[derive(Debug)]
struct SplitWriter {
    name: SplitName,
    directory: PathBuf,
    entry: SplitEntry,
    /// The file of the last shard, unless that is full.
    open: Option<BufWriter<File>>,
    /// The document that is being written.
    document: Option<Document>,
    /// The last one that was ended.
    last: Option<Document>,
}

#[derive(Clone, Copy, Debug)]
struct Document {
    /// Its first token's place in its shard.
    start: u64,
    /// UTF-8 bytes of its text.
    bytes: u64,
}

impl SplitWriter {
    fn append(&mut self, tokens: &[u32], bytes: u64, dtype: Dtype) -> Result<(), Error> {
        if self.open.is_none() {
            self.begin_shard()?;
        }
        let (Some(file), Some(shard)) = (self.open.as_mut(), self.entry.shards.last_mut()) else {
            return Ok(());
        };
        let document = self.document.get_or_insert(Document { start: shard.tokens, bytes: 0 });
        document.bytes += bytes;
        let mut raw = Vec::with_capacity(tokens.len() * dtype.size());
        for token in tokens {
            // Little-endian, so that the narrow form is a prefix of the wide one.
            raw.extend_from_slice(&token.to_le_bytes()[..dtype.size()]);
        }
        file.write_all(&raw).map_err(Error::io("write", &self.directory.join(&shard.file)))?;
        shard.tokens += tokens.len() as u64;
        self.entry.tokens += tokens.len() as u64;
        self.entry.bytes += bytes;
        Ok(())
    }

    fn begin_shard(&mut self) -> Result<(), Error> {
        let file = format!("{}-{:05}.bin", self.name.as_str(), self.entry.shards.len());
        let path = self.directory.join(&file);
        let mut options = File::options();
        let opened = options.read(true).write(true).create_new(true).open(&path);
        self.open = Some(BufWriter::with_capacity(1 << 20, opened.map_err(Error::io("write", &path))?));
        self.entry.shards.push(ShardEntry { file, tokens: 0, documents: 0 });
        Ok(())
    }

    fn end_document(&mut self, limit: u64) -> Result<(), Error> {
        let Some(shard) = self.entry.shards.last_mut() else { return Ok(()) };
        shard.documents += 1;
        self.entry.documents += 1;
        self.last = self.document.take();
        if shard.tokens >= limit {
            self.close_shard()?;
        }
        Ok(())
    }

    fn close_shard(&mut self) -> Result<(), Error> {
        let (Some(file), Some(shard)) = (self.open.take(), self.entry.shards.last()) else { return Ok(()) };
        let path = self.directory.join(&shard.file);
        let file =
            file.into_inner().map_err(|error| error.into_error()).map_err(Error::io("write", &path))?;
        file.sync_all().map_err(Error::io("write", &path))
    }

    /// Cuts the last document off its shard: its tokens, without the EOS, and the bytes of its text.
    fn take_last_document(&mut self, dtype: Dtype) -> Result<Option<(Vec<u32>, u64)>, Error> {
        self.close_shard()?;
        let (Some(document), Some(shard)) = (self.last.take(), self.entry.shards.last_mut()) else {
            return Ok(None);
        };
        let path = self.directory.join(&shard.file);
        let size = dtype.size();
        let mut raw = Vec::new();
        let cut = |raw: &mut Vec<u8>| -> std::io::Result<File> {
            let mut file = File::options().read(true).write(true).open(&path)?;
            file.seek(SeekFrom::Start(document.start * size as u64))?;
            file.read_to_end(raw)?;
            file.set_len(document.start * size as u64)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = cut(&mut raw).map_err(Error::io("write", &path))?;
        let taken = shard.tokens - document.start;
        self.entry.tokens -= taken;
        self.entry.bytes -= document.bytes;
        self.entry.documents -= 1;
        shard.tokens = document.start;
        shard.documents -= 1;
        if shard.tokens == 0 {
            self.entry.shards.pop();
            std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        } else {
            self.open = Some(BufWriter::new(file));
        }
        let widen = |b: &[u8]| b.iter().rev().fold(0, |token, &byte| token << 8 | u32::from(byte));
        let mut tokens: Vec<u32> = raw.chunks_exact(size).map(widen).collect();
        tokens.pop();
        Ok(Some((tokens, document.bytes)))
    }

    fn finish(mut self) -> Result<SplitEntry, Error> {
        self.close_shard()?;
        Ok(self.entry)
    }
}
