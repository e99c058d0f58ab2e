use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::harness::{json_lines, read_text, words};
use crate::model::{Likelihood, Model, Span, likelihoods};
use crate::tokenizer::Tokenizer;

/// What `--rolling` prints.
#[derive(Debug, Serialize)]
pub(super) struct Rolling {
    documents: usize,
    tokens: usize,
    words: usize,
    bytes: usize,
    /// That of each document.
    loglikelihoods: Vec<f64>,
    loglikelihood: f64,
    word_perplexity: f64,
    byte_perplexity: f64,
    bits_per_byte: f64,
    /// Tokens predicted of a window.
    context: usize,
}

/// The documents of a file: of JSON lines each one's `text`, of any other file all of it.
pub(super) fn documents(path: &Path) -> Result<Vec<String>> {
    if path.extension().is_some_and(|end| end == "jsonl") {
        return Ok(json_lines::<Document>(path)?.into_iter().map(|document| document.text).collect());
    }
    Ok(vec![read_text(path)?])
}

#[derive(serde::Deserialize)]
struct Document {
    text: String,
}

/// Scores each document by itself.
pub(super) fn rolling(
    model: &mut Model,
    tokenizer: &Tokenizer,
    documents: &[String],
    context: usize,
    progress: &mut dyn FnMut(u64),
) -> Result<Rolling> {
    let prefix = tokenizer.eos().context("the model has no end-of-text token to begin a text with")?;
    let (mut loglikelihoods, mut tokens) = (Vec::new(), 0);
    for document in documents {
        let encoded = tokenizer.encode(document)?;
        let spans = windows(&encoded, prefix, context);
        let found = likelihoods(model, &spans, &mut |_| ())?;
        loglikelihoods.push(found.iter().map(|Likelihood { log, .. }| log).sum::<f64>());
        tokens += encoded.len();
        progress(1);
    }
    let bytes: usize = documents.iter().map(String::len).sum();
    ensure!(bytes > 0, "there is no text to score");
    let words: usize = documents.iter().map(|document| words(document)).sum();
    let loglikelihood: f64 = loglikelihoods.iter().sum();
    Ok(Rolling {
        documents: documents.len(),
        tokens,
        words,
        bytes,
        loglikelihood,
        loglikelihoods,
        word_perplexity: (-loglikelihood / words as f64).exp(),
        byte_perplexity: (-loglikelihood / bytes as f64).exp(),
        bits_per_byte: -loglikelihood / bytes as f64 / std::f64::consts::LN_2,
        context,
    })
}

/// The windows in which a text is scored, each token once: the first predicts up to `context` tokens after `prefix`; each
/// that follows predicts as many after the one token before them, the last, which has fewer left, after so many more
/// that it too reads `context` tokens.
fn windows(tokens: &[u32], prefix: u32, context: usize) -> Vec<Span> {
    if tokens.is_empty() {
        return Vec::new();
    }
    let first = tokens.len().min(context);
    let mut spans =
        vec![Span { tokens: [prefix].iter().chain(&tokens[..first]).copied().collect(), scored: first }];
    let mut done = first;
    while done < tokens.len() {
        let scored = context.min(tokens.len() - done);
        done += scored;
        spans.push(Span { tokens: tokens[done - context - 1..done].to_vec(), scored });
    }
    spans
}

impl Rolling {
    pub(super) fn print(&self) {
        println!("documents        {}", self.documents);
        println!("tokens           {} in windows of {}", self.tokens, self.context);
        println!("loglikelihood    {:.6} nats", self.loglikelihood);
        println!("word perplexity  {:.4} ({} words)", self.word_perplexity, self.words);
        println!("byte perplexity  {:.6} ({} bytes)", self.byte_perplexity, self.bytes);
        println!("bits per byte    {:.6}", self.bits_per_byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(tokens: &[u32], scored: usize) -> Span {
        Span { tokens: tokens.to_vec(), scored }
    }

    #[test]
    fn ten_tokens_in_windows_of_four() {
        let tokens: Vec<u32> = (0..10).collect();
        let expected = [span(&[99, 0, 1, 2, 3], 4), span(&[3, 4, 5, 6, 7], 4), span(&[5, 6, 7, 8, 9], 2)];
        assert_eq!(windows(&tokens, 99, 4), expected);
        assert_eq!(windows(&tokens[..3], 99, 4), [span(&[99, 0, 1, 2], 3)]);
        assert_eq!(windows(&[], 99, 4), []);
    }

    proptest! {
        #[test]
        fn each_token_is_scored_once_after_what_is_before_it(len in 1usize..60, context in 1usize..12) {
            let tokens: Vec<u32> = (0..len as u32).collect();
            let mut scored = Vec::new();
            for Span { tokens, scored: count } in windows(&tokens, 99, context) {
                let (before, new) = tokens.split_at(tokens.len() - count);
                prop_assert!(!before.is_empty() && tokens.len() <= context + 1);
                let follows = before.last().is_some_and(|&last| last == 99 || last + 1 == new[0]);
                prop_assert!(follows && tokens[1..].is_sorted());
                scored.extend_from_slice(new);
            }
            prop_assert_eq!(scored, tokens);
        }
    }
}
