//! How likely a model finds the ends of token sequences.

use std::sync::OnceLock;

use super::perplexity::{BATCH_TOKENS, loss};
use super::{Model, ModelError, Piece};
use crate::kernels::BLOCK;

/// Tokens of which the last are to be scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// What the model reads; the last only as what is predicted.
    pub tokens: Vec<u32>,
    /// How many of them are scored; at least one stays before these.
    pub scored: usize,
}

/// What [`likelihoods`] found of a [`Span`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// The sum of the scored tokens' log-probabilities, in nats.
    pub log: f64,
    /// Whether none of them has a likelier one in its place.
    pub is_greedy: bool,
}

/// Scores each span by itself; short ones are computed together. `progress` is told of every so many spans more.
///
/// # Errors
/// Where a token is beyond the vocabulary, or a span is longer than the model's context and one token more, or has nothing
/// before what is scored.
pub fn likelihoods(
    model: &mut Model,
    spans: &[Span],
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<Likelihood>, ModelError> {
    let most = model.config().max_position_embeddings.min(model.kv_blocks() * BLOCK);
    if let Some(span) = spans.iter().find(|span| span.scored >= span.tokens.len() || span.read() > most) {
        let why = format!(
            "cannot score {} of {} tokens: one must stay before them, and the model reads {most} at most",
            span.scored,
            span.tokens.len()
        );
        return Err(candle_core::Error::Msg(why).into());
    }
    let blocks: Vec<u32> = (0..model.kv_blocks() as u32).collect();
    let mut found = Vec::with_capacity(spans.len());
    let mut rest = spans;
    while !rest.is_empty() {
        let together = Span::together(rest, blocks.len());
        let (batch, after) = rest.split_at(together);
        score(model, batch, &blocks, &mut found)?;
        progress(together as u64);
        rest = after;
    }
    Ok(found)
}

impl Span {
    /// How many tokens the model reads.
    fn read(&self) -> usize {
        self.tokens.len() - 1
    }

    /// How many of the first spans fit into one pass, at least one.
    fn together(spans: &[Self], blocks: usize) -> usize {
        let (mut tokens, mut taken) = (0, 0);
        let fits = spans.iter().take_while(|span| {
            tokens += span.read();
            taken += span.read().div_ceil(BLOCK);
            tokens <= BATCH_TOKENS && taken <= blocks
        });
        fits.count().max(1)
    }

    /// What is to be computed of it in the pass that begins at its position `past`, and the tokens that the wanted logits
    /// predict.
    fn piece<'a>(&'a self, past: usize, blocks: &'a [u32]) -> Option<(Piece<'a>, &'a [u32])> {
        let end = self.read().min(past + BATCH_TOKENS);
        if past >= end {
            return None;
        }
        let first = (self.tokens.len() - self.scored).max(past + 1).min(end + 1);
        let targets = &self.tokens[first..=end];
        Some((Piece { tokens: &self.tokens[..end], past, blocks, wanted: targets.len() }, targets))
    }
}

/// Scores spans together: as many passes as the longest needs.
fn score(
    model: &mut Model,
    batch: &[Span],
    blocks: &[u32],
    found: &mut Vec<Likelihood>,
) -> Result<(), ModelError> {
    let first = found.len();
    found.extend(batch.iter().map(|_| Likelihood { log: 0.0, is_greedy: true }));
    let mut left = blocks;
    let own: Vec<&[u32]> = batch
        .iter()
        .map(|span| {
            let (own, rest) = left.split_at(span.read().div_ceil(BLOCK));
            left = rest;
            own
        })
        .collect();
    let longest = batch.iter().map(Span::read).max().unwrap_or(0);
    let mut logits = Vec::new();
    for past in (0..longest).step_by(BATCH_TOKENS) {
        let parts: Vec<(usize, Piece<'_>, &[u32])> = batch
            .iter()
            .zip(&own)
            .enumerate()
            .filter_map(|(i, (span, own))| span.piece(past, own).map(|(piece, targets)| (i, piece, targets)))
            .collect();
        let pieces: Vec<Piece<'_>> = parts.iter().map(|(_, piece, _)| *piece).collect();
        model.forward(&pieces, &mut logits)?;
        let targets: Vec<(usize, u32)> =
            parts.iter().flat_map(|(i, _, targets)| targets.iter().map(|&token| (*i, token))).collect();
        for ((i, _), (loss, is_likeliest)) in targets.iter().zip(losses(model, &logits, &targets)) {
            let one = &mut found[first + i];
            one.log -= loss;
            one.is_greedy &= is_likeliest;
        }
    }
    Ok(())
}

/// Of each target, given the logits before it: its negative log-likelihood, and whether no other is likelier.
fn losses(model: &Model, logits: &[f32], targets: &[(usize, u32)]) -> Vec<(f64, bool)> {
    let cells: Vec<OnceLock<(f64, bool)>> = targets.iter().map(|_| OnceLock::new()).collect();
    let vocabulary = model.config().vocab_size;
    model.pool().run(targets.len(), &|i| {
        let (row, token) = (&logits[i * vocabulary..][..vocabulary], targets[i].1);
        let own = row[token as usize];
        let _ = cells[i].set((loss(row, token), row.iter().all(|&other| other <= own)));
    });
    cells.into_iter().map(|cell| cell.into_inner().unwrap_or((f64::NAN, false))).collect()
}
