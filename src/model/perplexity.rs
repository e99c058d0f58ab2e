//! How well a model predicts a text.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::{Model, ModelError, Piece};
use crate::kernels::BLOCK;

/// Tokens of one forward pass: their logits are the largest thing in memory.
pub(super) const BATCH_TOKENS: usize = 512;

/// What [`perplexity`] measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// Tokens of the text.
    pub tokens: usize,
    /// Tokens predicted: all but the first, before which there is nothing (where windows do not overlap, all but the
    /// first of each).
    pub predicted: usize,
    /// The mean negative log-likelihood of a predicted token, in nats.
    pub nll: f64,
    /// `exp(nll)`.
    pub perplexity: f64,
    /// All the negative log-likelihood, in bits, over the UTF-8 bytes of the whole text.
    pub bits_per_byte: f64,
    /// The share of tokens at which an f-gram ends.
    pub hit_rate: f64,
    /// The mean length of the longest match; a token that falls back counts 1, a special token 0.
    pub mean_match: f64,
    /// Tokens of a window.
    pub context: usize,
    /// Tokens from one window to the next.
    pub stride: usize,
}

/// Scores a text of `bytes` bytes in windows of `context` tokens that start `stride` tokens apart. Each token counts
/// once, in the first window that holds it, and so is predicted from at least `context - stride` tokens before it
/// (fewer at the beginning of the text). No match reaches before its window, as in training.
///
/// # Errors
/// Where a token is beyond the vocabulary or the text has fewer than two.
pub fn perplexity(
    model: &mut Model,
    special_tokens: &[u32],
    tokens: &[u32],
    bytes: usize,
    (context, stride): (usize, usize),
    progress: &mut dyn FnMut(u64),
) -> Result<Perplexity, ModelError> {
    let most = model.config().max_position_embeddings;
    if tokens.len() < 2 || context < 2 || context > most || stride == 0 || stride > context {
        let why = format!(
            "cannot score {} tokens in windows of {context} that start {stride} apart: at least 2 tokens, windows of 2 \
             to {most} and a stride of 1 to the window are needed",
            tokens.len()
        );
        return Err(candle_core::Error::Msg(why).into());
    }
    let blocks = context.div_ceil(BLOCK);
    let together = (model.kv_blocks() / blocks).min(BATCH_TOKENS.div_ceil(context));
    if together == 0 {
        let why = format!("there is no room for the keys and values of a window of {context} tokens");
        return Err(candle_core::Error::Msg(why).into());
    }
    let blocks: Vec<u32> = (0..(together * blocks) as u32).collect();
    let blocks: Vec<&[u32]> = blocks.chunks(context.div_ceil(BLOCK)).collect();
    let windows = windows(tokens.len(), context, stride);
    let (mut nll, mut predicted, mut hits, mut match_tokens) = (0f64, 0usize, 0usize, 0usize);
    let mut logits = Vec::new();
    for batch in windows.chunks(together) {
        for past in (0..context).step_by(BATCH_TOKENS) {
            let pieces: Vec<(Piece<'_>, &[u32])> = batch
                .iter()
                .zip(&blocks)
                .filter_map(|(window, blocks)| window.piece(tokens, past, blocks))
                .collect();
            let (pieces, targets): (Vec<_>, Vec<_>) = pieces.into_iter().unzip();
            model.forward(&pieces, &mut logits)?;
            let targets = targets.concat();
            nll += loss_of_all(model, &logits, &targets);
            predicted += targets.len();
            progress(targets.len() as u64);
        }
        if let Some(table) = model.embedding().table() {
            for window in batch {
                let matches =
                    table.index().matches(&tokens[window.start..window.end], window.new - window.start);
                hits += matches.iter().flatten().count();
                match_tokens += matches.iter().flatten().map(|found| usize::from(found.n) - 1).sum::<usize>();
            }
        }
    }
    let special = tokens.iter().filter(|token| special_tokens.contains(token)).count();
    let mean = nll / predicted as f64;
    Ok(Perplexity {
        tokens: tokens.len(),
        predicted,
        nll: mean,
        perplexity: mean.exp(),
        bits_per_byte: nll / std::f64::consts::LN_2 / bytes as f64,
        hit_rate: hits as f64 / tokens.len() as f64,
        mean_match: (tokens.len() - special + match_tokens) as f64 / tokens.len() as f64,
        context,
        stride,
    })
}

/// `start..end` of the text, of which the tokens from `new` on are in no window before.
struct Window {
    start: usize,
    end: usize,
    new: usize,
}

impl Window {
    /// What is to be computed of it in the pass that begins at its position `past`, and the tokens that the wanted logits
    /// predict.
    fn piece<'a>(&self, tokens: &'a [u32], past: usize, blocks: &'a [u32]) -> Option<(Piece<'a>, &'a [u32])> {
        // What follows the last token lies outside of the window.
        let (begin, end) = (self.start + past, (self.end - 1).min(self.start + past + BATCH_TOKENS));
        if begin >= end {
            return None;
        }
        let first = self.new.max(begin + 1).min(end + 1);
        let targets = &tokens[first..=end];
        Some((Piece { tokens: &tokens[self.start..end], past, blocks, wanted: targets.len() }, targets))
    }
}

fn windows(tokens: usize, context: usize, stride: usize) -> Vec<Window> {
    let mut windows = Vec::new();
    let (mut start, mut new) = (0, 0);
    while new < tokens {
        let end = (start + context).min(tokens);
        windows.push(Window { start, end, new });
        (start, new) = (start + stride, end);
    }
    windows
}

/// The negative log-likelihoods of tokens, given the logits before each, in nats, added up in their order.
fn loss_of_all(model: &Model, logits: &[f32], targets: &[u32]) -> f64 {
    let losses: Vec<AtomicU64> = targets.iter().map(|_| AtomicU64::new(0)).collect();
    let vocabulary = model.config().vocab_size;
    model.pool().run(targets.len(), &|i| {
        let loss = loss(&logits[i * vocabulary..][..vocabulary], targets[i]);
        losses[i].store(loss.to_bits(), Ordering::Relaxed);
    });
    losses.into_iter().map(|loss| f64::from_bits(loss.into_inner())).sum()
}

/// The negative log-likelihood of a token, in nats.
pub(super) fn loss(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    sum.ln() + f64::from(max) - f64::from(logits[token as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_new_in_exactly_one_window() {
        for (tokens, context, stride) in
            [(2, 2, 1), (10, 4, 3), (11, 4, 2), (100, 16, 15), (5, 16, 8), (12, 4, 4), (13, 4, 4)]
        {
            let mut next = 0;
            for window in windows(tokens, context, stride) {
                assert_eq!(window.new, next);
                assert!(window.end - window.start <= context);
                assert!(window.new == 0 || window.new - window.start >= context - stride);
                next = window.end;
            }
            assert_eq!(next, tokens);
        }
    }
}
