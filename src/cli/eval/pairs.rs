use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::harness::is_space;
use crate::model::Span;
use crate::tokenizer::Tokenizer;

/// A line of `--pairs`.
#[derive(Debug, Deserialize)]
pub(super) struct Pair {
    context: String,
    continuation: String,
}

/// What is printed of a line.
#[derive(Debug, Serialize)]
pub(super) struct Scored {
    pub(super) loglikelihood: f64,
    pub(super) is_greedy: bool,
    /// How many tokens the continuation has.
    pub(super) tokens: usize,
}

/// What is to be scored of each: its continuation after its context, of which the beginning is cut where both are longer
/// than `context` tokens and one more.
pub(super) fn spans(tokenizer: &Tokenizer, pairs: &[Pair], context: usize) -> Result<Vec<Span>> {
    let spans = pairs
        .iter()
        .zip(1..)
        .map(|(pair, number)| pair.span(tokenizer, context).with_context(|| format!("pair {number}")));
    spans.collect()
}

impl Pair {
    fn span(&self, tokenizer: &Tokenizer, context: usize) -> Result<Span> {
        let (before, scored) = self.tokens(tokenizer)?;
        ensure!(!scored.is_empty(), "the continuation adds no token to its context");
        ensure!(
            scored.len() <= context,
            "the continuation has {} tokens, more than the {context} of a window",
            scored.len()
        );
        let count = scored.len();
        let mut tokens = [before, scored].concat();
        tokens.drain(..tokens.len().saturating_sub(context + 1));
        Ok(Span { tokens, scored: count })
    }

    /// The tokens of both. They are cut out of those of the whole text, so that the context is read as it would be without
    /// the continuation, and spaces between the two belong to the continuation, where most tokenizers have them.
    fn tokens(&self, tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
        if self.context.is_empty() {
            let prefix =
                tokenizer.eos().context("the context is empty, and the model has no end-of-text token")?;
            let mut scored = tokenizer.encode(&self.continuation)?;
            // One that begins with it has its own.
            let before = if scored.first() == Some(&prefix) { vec![scored.remove(0)] } else { vec![prefix] };
            return Ok((before, scored));
        }
        let context = self.context.trim_end_matches(is_space);
        let whole = tokenizer.encode(&format!("{}{}", self.context, self.continuation))?;
        let before = tokenizer.encode(context)?;
        ensure!(!before.is_empty(), "the context is nothing but spaces: leave it empty");
        let scored = whole.get(before.len()..).unwrap_or_default().to_vec();
        Ok((before, scored))
    }
}
