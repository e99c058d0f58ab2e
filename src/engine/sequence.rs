use rayon::prelude::*;
use tokio::sync::mpsc::UnboundedSender;

use super::queue::Waiting;
use super::{Event, Finish, NotANumber, Piece, Request, Sampler, Score, score};

/// A sequence that has a slot: its tokens so far and how far the model has got with them.
pub(super) struct Sequence {
    pub(super) slot: usize,
    blocks: Vec<u32>,
    pub(super) is_finished: bool,
    tokens: Vec<u32>,
    /// How many tokens' keys and values the slot holds.
    computed: usize,
    prompt_len: usize,
    max_tokens: usize,
    stop_tokens: Vec<u32>,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
    prompt_scores: Vec<Option<Score>>,
    sampler: Sampler,
    events: UnboundedSender<Event>,
}

impl Sequence {
    pub(super) fn new(slot: usize, blocks: Vec<u32>, waiting: Waiting) -> Self {
        let Request { prompt, max_tokens, sampling, stop_tokens, logprobs, prompt_logprobs } =
            waiting.request;
        Self {
            slot,
            blocks,
            is_finished: false,
            prompt_len: prompt.len(),
            tokens: prompt,
            computed: 0,
            max_tokens,
            stop_tokens,
            logprobs,
            prompt_logprobs,
            prompt_scores: vec![None],
            sampler: Sampler::new(sampling),
            events: waiting.events,
        }
    }

    /// How many tokens are still to be computed; 1 while decoding.
    pub(super) fn left(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Nobody reads the events any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// The next `count` tokens as part of a batch.
    pub(super) fn piece(&self, count: usize) -> Piece<'_> {
        let end = self.computed + count;
        let wanted = if self.prompt_logprobs.is_some() && self.computed < self.prompt_len {
            count
        } else if end == self.tokens.len() {
            1
        } else {
            0
        };
        Piece { tokens: &self.tokens[..end], past: self.computed, blocks: &self.blocks, wanted }
    }

    /// Takes the logits of [`Self::piece`]`(count)`: notes the prompt's scores, samples where a token is due, and tells
    /// the receiver.
    pub(super) fn advance(&mut self, count: usize, logits: &[f32], vocab_size: usize) {
        if let Err(error) = self.try_advance(count, logits, vocab_size) {
            self.fail(error.to_string());
        }
    }

    fn try_advance(&mut self, count: usize, logits: &[f32], vocab_size: usize) -> Result<(), NotANumber> {
        let first = self.computed;
        self.computed += count;
        if let Some(top) = self.prompt_logprobs.filter(|_| first < self.prompt_len) {
            // The logits at a position are about the token after it.
            let next = &self.tokens[first + 1..self.prompt_len.min(self.computed + 1)];
            let rows = logits.par_chunks_exact(vocab_size);
            let scores: Result<Vec<_>, _> =
                next.par_iter().zip(rows).map(|(&token, row)| score(row, token, top).map(Some)).collect();
            self.prompt_scores.extend(scores?);
            if self.computed == self.prompt_len {
                let scores = std::mem::take(&mut self.prompt_scores);
                self.send(Event::Prompt(scores));
            }
        }
        if self.computed < self.tokens.len() {
            return Ok(());
        }
        if self.max_tokens == 0 {
            self.finish(Event::Done(Finish::Length));
            return Ok(());
        }
        self.take_token(&logits[logits.len() - vocab_size..])
    }

    fn take_token(&mut self, logits: &[f32]) -> Result<(), NotANumber> {
        let id = self.sampler.sample(logits)?;
        let score = self.logprobs.map(|top| score(logits, id, top)).transpose()?;
        self.tokens.push(id);
        self.send(Event::Token { id, score });
        if self.stop_tokens.contains(&id) {
            self.finish(Event::Done(Finish::Stop));
        } else if self.tokens.len() == self.prompt_len + self.max_tokens {
            self.finish(Event::Done(Finish::Length));
        }
        Ok(())
    }

    /// Ends the sequence with an error.
    pub(super) fn fail(&mut self, message: String) {
        self.finish(Event::Failed(message));
    }

    fn finish(&mut self, last: Event) {
        self.is_finished = true;
        self.send(last);
    }

    fn send(&self, event: Event) {
        // Nobody there to read it is no error: the next step sees that the receiver is gone and frees the slot.
        let _ = self.events.send(event);
    }
}
