use std::io::Write;
use std::path::Path;

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};
use tokenizers::{TokenizerBuilder, TokenizerImpl};

use super::TokenizerError;

/// The one special token of a trained tokenizer; its id is 0.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The smallest vocabulary: every byte and the end of text.
const SMALLEST: usize = 257;

type Parts = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Trains a byte-level BPE of `vocab_size` tokens and writes it to `path` as a `tokenizer.json`.
///
/// Text is split as GPT-2 splits it, with every digit by itself; any text can be encoded, for all 256 bytes are in
/// the vocabulary; nothing is added before or after a text. The result depends on the texts and their order only.
///
/// # Errors
/// Where `vocab_size` is below 257, the texts are too few to fill the vocabulary, or the file cannot be written.
pub fn train_bpe(
    texts: impl Iterator<Item = String> + Send,
    vocab_size: usize,
    path: &Path,
) -> Result<(), TokenizerError> {
    if vocab_size < SMALLEST {
        return Err(TokenizerError::Train(format!(
            "a byte-level vocabulary has at least {SMALLEST} tokens, not {vocab_size}"
        )));
    }
    let trained = train(texts, vocab_size).map_err(|error| TokenizerError::Train(error.to_string()))?;
    let reached = trained.get_vocab_size(true);
    if reached < vocab_size {
        return Err(TokenizerError::Train(format!(
            "the text gives {reached} tokens and no more; ask for a smaller vocabulary or give more text"
        )));
    }
    let json = trained.to_string(true).map_err(|error| TokenizerError::Train(error.to_string()))?;
    write_new(path, json.as_bytes())
        .map_err(|error| TokenizerError::Train(format!("cannot write {}: {error}", path.display())))
}

fn train(texts: impl Iterator<Item = String> + Send, vocab_size: usize) -> tokenizers::Result<Parts> {
    let byte_level = ByteLevel::new(false, true, true);
    let mut parts: Parts = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(vec![
            PreTokenizerWrapper::Digits(Digits::new(true)),
            PreTokenizerWrapper::ByteLevel(byte_level),
        ]))))
        .with_post_processor(None)
        .with_decoder(Some(DecoderWrapper::ByteLevel(byte_level)))
        .build()?;
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    parts.train(&mut trainer, texts)?;
    Ok(parts)
}

fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
