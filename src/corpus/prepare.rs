use std::path::PathBuf;

use rayon::prelude::*;

use super::writer::refuse_taken;
use super::{DatasetWriter, Error, Input, Manifest, Piece, SplitName};
use crate::tokenizer::{Tokenizer, train_bpe};

/// Text is tokenized in parallel, this many bytes at a time.
const BATCH: usize = 16 << 20;

/// How much text a new tokenizer is trained on, at most, unless told otherwise.
pub const SAMPLE_BYTES: usize = 64 << 20;

/// Where the tokenizer comes from.
#[derive(Clone, Debug)]
pub enum TokenizerSource {
    /// A `tokenizer.json`.
    File(PathBuf),
    /// A new byte-level BPE, trained on a sample of the training split.
    Train {
        /// Its number of tokens.
        vocab_size: usize,
        /// The sample's size, at most.
        sample_bytes: usize,
    },
}

/// How [`prepare`] makes a dataset.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// The dataset's directory; it must not exist, or be empty.
    pub output: PathBuf,
    /// The tokenizer.
    pub tokenizer: TokenizerSource,
    /// The name of the token after each document; `None`: the tokenizer's usual one.
    pub eos: Option<String>,
    /// The share of documents that is held out, 0 to below 1.
    pub validation: f64,
    /// The size of a shard, [`super::SHARD_TOKENS`] as a rule.
    pub shard_tokens: u64,
}

/// How far [`prepare`] has come.
#[derive(Clone, Copy, Debug)]
pub enum Progress {
    /// Reading the corpus for the tokenizer's sample: bytes of the files read.
    Sampling(u64),
    /// Training the tokenizer: bytes of the sample.
    Training(u64),
    /// Tokenizing.
    Tokenizing {
        /// Bytes of the files read.
        bytes: u64,
        /// Tokens written.
        tokens: u64,
    },
}

/// Turns text into a dataset.
///
/// Which documents are held out depends on their number in the order of the inputs (a hash of it is compared with
/// the share), so neither on the tokenizer nor on the number of threads. The first document always belongs to the
/// training split; where the hashes select none and there are two or more, the last is held out.
///
/// # Errors
/// Where an input cannot be read, there is no text, the output exists or cannot be written. In every case nothing
/// is left under its name.
pub fn prepare(
    input: &Input,
    options: &PrepareOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Manifest, Error> {
    if !(0.0..1.0).contains(&options.validation) {
        return Err(Error::Option(format!(
            "the validation share must be at least 0 and below 1, not {}",
            options.validation
        )));
    }
    refuse_taken(&options.output)?;
    let scratch = tempfile::tempdir().map_err(Error::io("make a directory in", &std::env::temp_dir()))?;
    let json = match &options.tokenizer {
        TokenizerSource::File(path) => path.clone(),
        TokenizerSource::Train { vocab_size, sample_bytes } => {
            let path = scratch.path().join("tokenizer.json");
            let texts = sample(input, options.validation, *sample_bytes, progress)?;
            progress(Progress::Training(texts.iter().map(|text| text.len() as u64).sum()));
            train_bpe(texts.into_iter(), *vocab_size, &path)?;
            path
        }
    };
    let tokenizer = Tokenizer::from_file(&json)?;
    let eos = eos_of(&tokenizer, options.eos.as_deref())?;
    let mut writer = DatasetWriter::create(&options.output, &tokenizer, &json, eos, options.shard_tokens)?;
    write_all(input, &tokenizer, options.validation, &mut writer, progress)?;
    if writer.documents() == 0 {
        return Err(no_text(input));
    }
    let none_held_out = options.validation > 0.0 && writer.documents_of(SplitName::Validation) == 0;
    if none_held_out && writer.documents() >= 2 {
        writer.move_last_to_validation()?;
    }
    writer.finish()
}

fn no_text(input: &Input) -> Error {
    Error::Empty(format!("the inputs ({} bytes) hold no document with text", input.bytes()))
}

fn eos_of(tokenizer: &Tokenizer, name: Option<&str>) -> Result<u32, Error> {
    match name {
        None => tokenizer.eos().ok_or(Error::NoEos),
        Some(name) => tokenizer.token_to_id(name).ok_or_else(|| {
            Error::Option(format!("the tokenizer has no token {name:?} to end documents with"))
        }),
    }
}

/// The split of a document by its number.
fn split_of(document: u64, validation: f64) -> SplitName {
    // The finaliser of splitmix64; its upper 53 bits as a number from 0 to 1.
    let mut x = document.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let uniform = ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
    if document > 0 && uniform < validation { SplitName::Validation } else { SplitName::Train }
}

/// An even sample of the training split's pieces, in order: every k-th of them, with k doubled, and every other
/// piece let go, whenever the sample outgrows `limit`. So one pass is enough, however large the corpus.
fn sample(
    input: &Input,
    validation: f64,
    limit: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<String>, Error> {
    let mut kept: Vec<String> = Vec::new();
    let (mut bytes, mut stride, mut seen) = (0, 1u64, 0u64);
    input.for_each(|piece| {
        progress(Progress::Sampling(input.bytes_read()));
        if split_of(piece.document, validation) == SplitName::Validation {
            return Ok(());
        }
        if seen % stride == 0 {
            bytes += piece.text.len();
            kept.push(piece.text);
        }
        seen += 1;
        while bytes > limit && kept.len() > 1 {
            stride *= 2;
            let mut even = false;
            kept.retain(|_| {
                even = !even;
                even
            });
            bytes = kept.iter().map(String::len).sum();
        }
        Ok(())
    })?;
    if kept.is_empty() { Err(no_text(input)) } else { Ok(kept) }
}

fn write_all(
    input: &Input,
    tokenizer: &Tokenizer,
    validation: f64,
    writer: &mut DatasetWriter,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let mut batch: Vec<Piece> = Vec::new();
    let mut bytes = 0;
    let mut flush = |batch: &mut Vec<Piece>| -> Result<(), Error> {
        let encode = |piece: &Piece| tokenizer.encode_piece(&piece.text);
        let encoded = batch.par_iter().map(encode).collect::<Result<Vec<_>, _>>()?;
        for (piece, tokens) in batch.drain(..).zip(encoded) {
            let split = split_of(piece.document, validation);
            writer.append(split, &tokens, piece.text.len() as u64)?;
            if piece.last {
                writer.end_document(split)?;
            }
        }
        progress(Progress::Tokenizing { bytes: input.bytes_read(), tokens: writer.tokens() });
        Ok(())
    };
    input.for_each(|piece| {
        bytes += piece.text.len();
        batch.push(piece);
        if bytes >= BATCH {
            bytes = 0;
            flush(&mut batch)?;
        }
        Ok(())
    })?;
    flush(&mut batch)
}
