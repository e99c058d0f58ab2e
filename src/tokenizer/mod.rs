//! Text to token ids and back, incrementally.
//!
//! [`Tokenizer`] is a `tokenizer.json` as Hugging Face's `tokenizers` defines it, with the facts that the rest of
//! the crate asks for: its hash, its special tokens, its end-of-text token. [`GgufVocabulary`] is what a GGUF file has
//! in its place. [`Decoder`] turns a stream of ids into
//! a stream of text, and [`train_bpe`] makes a new byte-level BPE.

mod bpe;
mod decoder;
mod gguf;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use thiserror::Error;
use tokenizers::{DecoderWrapper, ModelWrapper};

pub use bpe::{END_OF_TEXT, train_bpe};
pub use decoder::Decoder;
pub use gguf::GgufVocabulary;

/// The names that end-of-text tokens go by, the most telling first.
const EOS_NAMES: [&str; 8] = [
    END_OF_TEXT,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
];

/// What goes wrong with a tokenizer.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error("cannot read the tokenizer {}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a `tokenizer.json`.
    #[error("{} is not a tokenizer.json that this version reads: {why}", .path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What the parser said.
        why: String,
    },
    /// A text that the tokenizer refuses (its model has no unknown token, say).
    #[error("cannot tokenize the text: {0}")]
    Encode(String),
    /// Training a vocabulary failed.
    #[error("cannot train a tokenizer: {0}")]
    Train(String),
}

/// A `tokenizer.json`, read and ready; share it in an `Arc`.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    sha256: String,
    special_tokens: Vec<u32>,
    vocab_size: usize,
    eos: Option<u32>,
    /// The most bytes of a text that one token takes; None where that cannot be said.
    longest: Option<usize>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Truncation and padding that it may ask for are switched off: they are for batches
    /// of a fixed shape, and here would lose text.
    ///
    /// # Errors
    /// Where the file cannot be read or is no tokenizer.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let bytes =
            std::fs::read(path).map_err(|source| TokenizerError::Read { path: path.to_owned(), source })?;
        Self::from_bytes(&bytes).map_err(|why| TokenizerError::Parse { path: path.to_owned(), why })
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| error.to_string())?;
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        inner.with_padding(None);
        let added = inner.get_added_tokens_decoder();
        let mut special_tokens: Vec<u32> =
            added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        special_tokens.sort_unstable();
        let vocabulary = inner.get_vocab(true);
        let vocab_size = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        let longest = is_lossless(&inner).then(|| vocabulary.keys().map(String::len).max()).flatten();
        let eos = EOS_NAMES.iter().find_map(|name| inner.token_to_id(name));
        let sha256 = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { inner, sha256, special_tokens, vocab_size, eos, longest })
    }

    /// The ids of a text, with whatever special tokens the file's post-processor adds (the shipped tokenizer has
    /// none). Special tokens written out in the text become special tokens.
    ///
    /// # Errors
    /// Where the tokenizer's model has no token for a part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_as(text, true)
    }

    /// The ids of a text and nothing added before or after: for text that comes in pieces.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_piece(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_as(text, false)
    }

    fn encode_as(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|error| TokenizerError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// No fewer tokens than this has a text: what can be said without tokenizing it.
    pub fn least_tokens(&self, text: &str) -> usize {
        self.longest.map_or(0, |longest| text.len() / longest.max(1))
    }

    /// The text of these ids, special tokens as they are written. Bytes that are no UTF-8 become U+FFFD, and ids
    /// outside the vocabulary nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        // Only a decoder that is itself misconfigured can fail; the bare tokens are then the most that can be said.
        self.inner
            .decode(ids, false)
            .unwrap_or_else(|_| ids.iter().filter_map(|&id| self.id_to_token(id)).collect())
    }

    /// SHA-256 of the file's bytes, in hexadecimal: the tokenizer's identity.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The ids of the added tokens that are marked special, ascending.
    pub fn special_tokens(&self) -> &[u32] {
        &self.special_tokens
    }

    /// The highest id plus one, added tokens included: the rows that an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token by its name in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The name of a token in the vocabulary (a byte-level one shows a space as `Ġ`).
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The token that ends a text, found by its usual names (`<|endoftext|>`, `</s>`, ...).
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }
}

/// Whether every byte of a text ends up in a token, whose name is then at least as long as its text: byte-level BPE, and
/// nothing before it that drops text.
fn is_lossless(inner: &tokenizers::Tokenizer) -> bool {
    let is_bytes = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
    let has_no_unknown = matches!(inner.get_model(), ModelWrapper::BPE(bpe) if bpe.unk_token.is_none());
    let drops_space = inner.get_added_tokens_decoder().values().any(|token| token.lstrip || token.rstrip);
    is_bytes && has_no_unknown && inner.get_normalizer().is_none() && !drops_space
}
