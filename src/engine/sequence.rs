use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::blocks::Blocks;
use super::queue::{Turn, Waiting};
use super::speculate::{Speculation, propose};
use super::{Event, Failure, Finish, NotANumber, Piece, Request, Sampler, Score, score};
use crate::model::{Draw, NO_TOKEN};

/// A sequence that has its turn: its tokens so far, and how far the model has got with them.
pub(super) struct Sequence {
    pub(super) is_finished: bool,
    /// Which other sequences came with the same prompt.
    pub(super) group: Option<u64>,
    pub(super) speculation: Speculation,
    tokens: Vec<u32>,
    /// How many of the last tokens are only drafts.
    drafted: usize,
    /// How many tokens' keys and values the blocks hold.
    computed: usize,
    /// None while it has no place in the cache: before it is let in, and while it is pushed out.
    place: Option<Place>,
    has_started: bool,
    turn: Turn,
    prompt_len: usize,
    max_tokens: usize,
    min_tokens: usize,
    stop_tokens: Vec<u32>,
    logprobs: Option<usize>,
    /// None as well once they were sent.
    prompt_logprobs: Option<usize>,
    prompt_scores: Vec<Option<Score>>,
    sampler: Sampler,
    events: UnboundedSender<Event>,
}

/// Blocks of the KV cache.
struct Place {
    blocks: Vec<u32>,
    /// How many of them are entered for others to share.
    entered: usize,
    /// What [`super::Forward::epoch`] was when the first of them was filled.
    epoch: u64,
}

impl Sequence {
    pub(super) fn new(waiting: Waiting) -> Self {
        let Waiting { request, group, turn, events } = waiting;
        let Request { prompt, max_tokens, min_tokens, sampling, stop_tokens, logprobs, prompt_logprobs } =
            request;
        Self {
            is_finished: false,
            group,
            speculation: Speculation::new(),
            sampler: Sampler::new(sampling, &prompt),
            prompt_len: prompt.len(),
            tokens: prompt,
            drafted: 0,
            computed: 0,
            place: None,
            has_started: false,
            turn,
            max_tokens,
            min_tokens,
            stop_tokens,
            logprobs,
            prompt_logprobs,
            prompt_scores: vec![None],
            events,
        }
    }

    /// Its tokens.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// How many tokens a step may compute: none without a place; 1 while decoding.
    pub(super) fn left(&self) -> usize {
        match self.place {
            None => 0,
            Some(_) => self.len() - self.computed,
        }
    }

    /// As `left`, without drafts.
    pub(super) fn known_left(&self) -> usize {
        self.left() - self.drafted
    }

    /// Whether it has a place in the cache.
    pub(super) fn has_place(&self) -> bool {
        self.place.is_some()
    }

    /// Whether it has ever had one.
    pub(super) fn has_started(&self) -> bool {
        self.has_started
    }

    /// Gives blocks back that only drafts needed.
    pub(super) fn shrink(&mut self, blocks: &mut Blocks) {
        let needed = blocks.needed(self.len());
        if let Some(place) = self.place.as_mut().filter(|place| place.blocks.len() > needed) {
            blocks.release(&mut place.blocks.split_off(needed));
        }
    }

    /// Nobody reads the events any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Ends it if it has waited for its turn for longer than that.
    pub(super) fn expire(&mut self, timeout: Duration) {
        if !self.has_started && self.turn.is_overdue(timeout) {
            self.fail(Failure::Expired(timeout));
        }
    }

    /// Whether log-probabilities of its prompt are still to be computed.
    pub(super) fn scores_prompt(&self) -> bool {
        self.prompt_logprobs.is_some()
    }

    /// Whether others with the same prompt should wait, because it is filling blocks that they can share.
    pub(super) fn is_filling_shared(&self, blocks: &Blocks) -> bool {
        self.has_place() && !self.scores_prompt() && {
            let shared = (self.prompt_len - 1) / blocks.size() * blocks.size();
            self.computed < shared
        }
    }

    /// Takes a place: blocks for all its tokens, those at the beginning shared where they can be. Returns how many tokens
    /// need not be computed; None if there are not so many blocks that `reserve` remain.
    pub(super) fn take_place(
        &mut self,
        blocks: &mut Blocks,
        reserve: usize,
        shares: bool,
        epoch: u64,
    ) -> Option<usize> {
        // The last token is computed in any case: its logits are wanted.
        let sharable = if shares && !self.scores_prompt() { self.len() - 1 } else { 0 };
        let mut own = blocks.find(&self.tokens[..sharable]);
        let entered = own.len();
        let missing = blocks.needed(self.len()) - entered;
        if blocks.available() < missing + reserve {
            blocks.release(&mut own);
            return None;
        }
        own.extend((0..missing).map_while(|_| blocks.take()));
        self.place = Some(Place { blocks: own, entered, epoch });
        self.computed = entered * blocks.size();
        if !self.has_started {
            self.has_started = true;
            self.turn.come();
            self.send(Event::Started { cached_tokens: self.computed });
        }
        Some(self.computed)
    }

    /// Gives its place up. Its tokens are to be computed again.
    pub(super) fn leave_place(&mut self, blocks: &mut Blocks) {
        if let Some(mut place) = self.place.take() {
            blocks.release(&mut place.blocks);
        }
        self.computed = 0;
        self.prompt_scores.truncate(1);
    }

    /// Blocks that are missing for its tokens and `more`.
    pub(super) fn missing(&self, blocks: &Blocks, more: usize) -> usize {
        let has = self.place.as_ref().map_or(0, |place| place.blocks.len());
        blocks.needed(self.len() + more).saturating_sub(has)
    }

    /// Takes blocks for its tokens and `more`, as far as there are any.
    pub(super) fn grow(&mut self, blocks: &mut Blocks, more: usize) {
        let missing = self.missing(blocks, more);
        if let Some(place) = &mut self.place {
            place.blocks.extend((0..missing).map_while(|_| blocks.take()));
        }
    }

    /// How many drafts may follow its tokens: the last token that it may generate is not computed.
    fn most_drafts(&self) -> usize {
        if self.scores_prompt() {
            return 0;
        }
        (self.prompt_len + self.max_tokens).saturating_sub(self.len() + 1)
    }

    /// Puts up to `most` drafts behind its tokens, as many as there are blocks for, and returns how many.
    pub(super) fn draft(&mut self, blocks: &mut Blocks, most: usize) -> usize {
        let mut found = propose(&self.tokens, most.min(self.most_drafts()));
        while self.missing(blocks, found.len()) > blocks.available() {
            found.end -= 1;
        }
        self.grow(blocks, found.len());
        self.drafted = found.len();
        self.tokens.extend_from_within(found);
        self.drafted
    }

    /// How many drafts are behind its tokens.
    pub(super) fn drafted(&self) -> usize {
        self.drafted
    }

    /// The next `count` tokens, and all drafts, as part of a batch.
    pub(super) fn piece(&self, count: usize) -> Piece<'_> {
        let end = self.computed + count + self.drafted;
        let wanted = if self.scores_prompt() && self.computed < self.prompt_len {
            count
        } else if end == self.len() {
            1 + self.drafted
        } else {
            0
        };
        let blocks = self.place.as_ref().map_or(&[][..], |place| &place.blocks);
        Piece { tokens: &self.tokens[..end], past: self.computed, blocks, wanted }
    }

    /// The `next` tokens after those of [`Self::piece`]`(count)`, as the piece of a later step, without blocks; None if these are none.
    pub(super) fn next_piece(&self, count: usize, next: usize) -> Option<Piece<'_>> {
        let past = self.computed + count;
        (next > 0).then(|| Piece { tokens: &self.tokens[..past + next], past, blocks: &[], wanted: 0 })
    }

    /// The tokens whose log-probabilities are asked for after [`Self::piece`]`(count)`, each the one after the position of
    /// a row of its logits, and with how many of the likeliest.
    pub(super) fn to_score(&self, count: usize) -> Option<(&[u32], usize)> {
        let next = self.computed + 1..self.prompt_len.min(self.computed + count + 1);
        self.prompt_logprobs.map(|top| (&self.tokens[next], top))
    }

    /// How its next tokens, so many, are chosen from their logits, where nothing else is wanted of these.
    pub(super) fn draws(&self, count: usize) -> Option<Vec<Draw>> {
        let generated = (self.len() - self.drafted).saturating_sub(self.prompt_len);
        let asks = self.logprobs.is_some() || self.scores_prompt();
        if asks || generated < self.min_tokens { None } else { self.sampler.draws(count) }
    }

    /// Takes the logits of [`Self::piece`]`(count)`, or in their place the tokens `chosen`, and the scores of [`Self::to_score`]`(count)`: samples where a token
    /// is due, as far as the drafts are what was sampled, and tells the receiver. Returns how many drafts were right.
    ///
    /// # Errors
    /// If the logits define no distribution. The sequence is then to be ended.
    pub(super) fn advance(
        &mut self,
        count: usize,
        scores: Vec<Option<Score>>,
        logits: &mut [f32],
        chosen: Option<&[u32]>,
        vocab_size: usize,
    ) -> Result<usize, NotANumber> {
        self.computed += count;
        let drafted = std::mem::take(&mut self.drafted);
        let known = self.len() - drafted;
        if self.scores_prompt() {
            self.prompt_scores.extend(scores);
            if self.computed >= self.prompt_len {
                self.prompt_logprobs = None;
                let scores = std::mem::take(&mut self.prompt_scores);
                self.send(Event::Prompt(scores));
            }
        }
        if self.computed < known {
            return Ok(0);
        }
        if self.max_tokens == 0 {
            self.finish(Event::Done(Finish::Length));
            return Ok(0);
        }
        for right in 0..=drafted {
            // Those of the last positions are for sampling.
            let back = 1 + drafted - right;
            let generated = known + right - self.prompt_len;
            let id = match chosen {
                Some(tokens) => self.accept(generated, tokens[tokens.len() - back])?,
                None => {
                    let at = logits.len() - back * vocab_size;
                    self.choose(generated, &mut logits[at..][..vocab_size])?
                }
            };
            let was_draft = self.tokens.get(known + right) == Some(&id);
            if was_draft && !self.is_finished {
                // Its keys and values are those of the token that was sampled.
                self.computed += 1;
                continue;
            }
            self.tokens.truncate(known + right);
            self.tokens.push(id);
            return Ok(right + usize::from(was_draft));
        }
        Ok(drafted)
    }

    /// Samples the token after so many generated ones, and tells the receiver.
    fn choose(&mut self, generated: usize, logits: &mut [f32]) -> Result<u32, NotANumber> {
        let banned = if generated < self.min_tokens { self.stop_tokens.as_slice() } else { &[] };
        let id = self.sampler.sample(logits, banned)?;
        let score = self.logprobs.map(|top| score(logits, id, top)).transpose()?;
        self.tell(generated, id, score);
        Ok(id)
    }

    /// Takes a token that was chosen after so many generated ones, and tells the receiver.
    fn accept(&mut self, generated: usize, id: u32) -> Result<u32, NotANumber> {
        if id == NO_TOKEN {
            return Err(NotANumber);
        }
        self.sampler.take_draw();
        self.tell(generated, id, None);
        Ok(id)
    }

    /// Tells the receiver of a token, and of the end if it is the last.
    fn tell(&mut self, generated: usize, id: u32, score: Option<Score>) {
        self.send(Event::Token { id, score });
        if self.stop_tokens.contains(&id) {
            self.finish(Event::Done(Finish::Stop));
        } else if generated + 1 == self.max_tokens {
            self.finish(Event::Done(Finish::Length));
        }
    }

    /// Enters the blocks that are full by now, unless they were begun in another epoch.
    pub(super) fn share(&mut self, blocks: &mut Blocks, epoch: u64) {
        let Some(place) = self.place.as_mut().filter(|place| place.epoch == epoch) else { return };
        let size = blocks.size();
        while (place.entered + 1) * size <= self.computed {
            let tokens = &self.tokens[place.entered * size..][..size];
            place.entered += 1;
            blocks.enter(&mut place.blocks[..place.entered], tokens);
        }
    }

    /// Ends the sequence with an error.
    pub(super) fn fail(&mut self, failure: Failure) {
        if !self.is_finished {
            self.finish(Event::Failed(failure));
        }
    }

    fn finish(&mut self, last: Event) {
        self.is_finished = true;
        self.send(last);
    }

    fn send(&self, event: Event) {
        // Nobody there to read it is no error: the next step sees that the receiver is gone and frees the place.
        let _ = self.events.send(event);
    }
}
