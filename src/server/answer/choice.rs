use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream;
use tokio::sync::mpsc::UnboundedReceiver;

use super::stops::StopStrings;
use super::transcript::{Entry, Released, TokenText, Transcript};
use crate::engine::{Event, Finish, Score};
use crate::server::observe::ChoiceWatch;
use crate::server::wire::error::ApiError;
use crate::server::wire::response::{FinishReason, Finished, StopReason};
use crate::tokenizer::{Decoder, Tokenizer};

/// As much of a prompt's end as decides how the text after it begins: a character that is not complete, or a space that
/// some decoders drop at the start of a text.
const CONTEXT_TOKENS: usize = 8;

/// One choice of an answer: it turns the engine's events into text.
#[derive(Debug)]
pub(in crate::server) struct Choice {
    index: usize,
    /// None once the choice is complete. Dropping the receiver is what ends a sequence early.
    events: Option<UnboundedReceiver<Event>>,
    common: Arc<Common>,
    decoder: Decoder<Arc<Tokenizer>>,
    transcript: Transcript,
    prompt: Arc<[u32]>,
    /// Whether the prompt is still to be echoed.
    is_echo_due: bool,
    generated: usize,
    /// The last of the generated tokens.
    last: Option<u32>,
    watch: ChoiceWatch,
}

/// What a choice has to say next.
#[derive(Debug, Default)]
pub(in crate::server) struct Piece {
    pub(in crate::server) index: usize,
    pub(in crate::server) text: String,
    /// Empty unless log-probabilities were asked for.
    pub(in crate::server) entries: Vec<Entry>,
    /// Generated since the piece before.
    pub(in crate::server) tokens: Vec<u32>,
    /// The sum of their log-probabilities, where the engine was asked for them.
    pub(in crate::server) logprob: f64,
    /// The prompt, in the first piece.
    pub(in crate::server) prompt: Option<Arc<[u32]>>,
    /// In the first piece: the tokens of the prompt that had been computed before.
    pub(in crate::server) cached_tokens: Option<usize>,
    /// In the last piece, and only there.
    pub(in crate::server) finish: Option<Finished>,
}

/// What the choices of a request have in common.
#[derive(Debug)]
pub(in crate::server) struct Common {
    pub(in crate::server) tokenizer: Arc<Tokenizer>,
    /// The model's own tokens that end a text, unless they are ignored.
    pub(in crate::server) eos: Vec<u32>,
    /// Those that the request named.
    pub(in crate::server) stop_tokens: Vec<u32>,
    pub(in crate::server) stops: StopStrings,
    /// Whether the token that ended a completion stays in its text.
    pub(in crate::server) is_stop_included: bool,
    pub(in crate::server) skip_special_tokens: bool,
    /// No stop string is looked for in the text of so many tokens.
    pub(in crate::server) min_tokens: usize,
    pub(in crate::server) echo: bool,
    pub(in crate::server) has_logprobs: bool,
}

impl Choice {
    pub(in crate::server) fn new(
        index: usize,
        common: &Arc<Common>,
        prompt: &Arc<[u32]>,
        events: UnboundedReceiver<Event>,
        watch: ChoiceWatch,
    ) -> Self {
        let mut decoder = Decoder::new(Arc::clone(&common.tokenizer));
        if !common.echo {
            for &id in &prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..] {
                decoder.push(id);
            }
        }
        Self {
            index,
            events: Some(events),
            common: Arc::clone(common),
            decoder,
            transcript: Transcript::new(common.stops.clone()),
            prompt: Arc::clone(prompt),
            is_echo_due: common.echo,
            generated: 0,
            last: None,
            watch,
        }
    }

    /// The pieces as they come, the last with its finish reason; an error ends them.
    pub(in crate::server) fn into_pieces(self) -> impl Stream<Item = Result<Piece, ApiError>> + Send {
        stream::unfold((self, true), async |(mut choice, is_first)| {
            let piece = choice.next(is_first).await?;
            Some((piece, (choice, false)))
        })
    }

    async fn next(&mut self, is_first: bool) -> Option<Result<Piece, ApiError>> {
        let mut piece = Piece::new(self.index);
        piece.prompt = is_first.then(|| Arc::clone(&self.prompt));
        // A token that shows nothing yet, the first half of a character say, goes with what follows.
        while !piece.shows_something() {
            match self.events.as_mut()?.recv().await {
                Some(Event::Started { cached_tokens }) => {
                    self.watch.started(cached_tokens);
                    piece.cached_tokens = Some(cached_tokens);
                }
                Some(Event::Prompt(scores)) => self.echo(scores, &mut piece),
                Some(Event::Token { id, score }) => self.token(id, score, &mut piece),
                Some(Event::Done(finish)) => self.done(finish, &mut piece),
                Some(Event::Failed(failure)) => return self.fail(failure.into()),
                None => return self.fail(ApiError::internal("the engine has died")),
            }
        }
        Some(Ok(piece))
    }

    fn fail(&mut self, error: ApiError) -> Option<Result<Piece, ApiError>> {
        self.events = None;
        self.watch.finished("error");
        Some(Err(error))
    }

    /// The prompt, with its scores if there are any, if it is to be echoed and has not been.
    fn echo(&mut self, scores: Vec<Option<Score>>, piece: &mut Piece) {
        if !std::mem::take(&mut self.is_echo_due) {
            return;
        }
        let mut scores = scores.into_iter();
        for &id in &*self.prompt {
            let text = self.decoder.push(id).unwrap_or_default();
            let entry = self.common.entry(id, scores.next().flatten());
            self.transcript.pass(&text, entry);
        }
        piece.append(self.transcript.release());
    }

    fn token(&mut self, id: u32, score: Option<Score>, piece: &mut Piece) {
        self.echo(Vec::new(), piece);
        self.generated += 1;
        self.last = Some(id);
        self.watch.token();
        piece.tokens.push(id);
        piece.logprob += score.as_ref().map_or(0.0, |score| f64::from(score.logprob));
        let text = if self.common.is_silent(id) { None } else { self.decoder.push(id) };
        let text = text.unwrap_or_default();
        let entry = score.and_then(|score| self.common.entry(id, Some(score)));
        let released = if self.generated <= self.common.min_tokens {
            self.transcript.pass(&text, entry);
            self.transcript.release()
        } else {
            self.transcript.push(&text, entry)
        };
        let stop = released.stop.clone();
        piece.append(released);
        if let Some(stop) = stop {
            self.end(FinishReason::Stop, Some(StopReason::String(stop)), piece);
        }
    }

    fn done(&mut self, finish: Finish, piece: &mut Piece) {
        self.echo(Vec::new(), piece);
        let decoder = std::mem::replace(&mut self.decoder, Decoder::new(Arc::clone(&self.common.tokenizer)));
        let released = self.transcript.finish(&decoder.finish().unwrap_or_default());
        let stop = released.stop.clone();
        piece.append(released);
        let named = self.last.filter(|id| !self.common.eos.contains(id)).map(StopReason::Token);
        match (stop, finish) {
            (Some(stop), _) => self.end(FinishReason::Stop, Some(StopReason::String(stop)), piece),
            (None, Finish::Stop) => self.end(FinishReason::Stop, named, piece),
            (None, Finish::Length) => self.end(FinishReason::Length, None, piece),
        }
    }

    fn end(&mut self, reason: FinishReason, stop: Option<StopReason>, piece: &mut Piece) {
        self.events = None;
        self.watch.finished(reason.name());
        piece.finish = Some(Finished { reason, stop });
    }
}

impl Common {
    /// Whether a generated token adds nothing to the text.
    fn is_silent(&self, id: u32) -> bool {
        let is_end = self.eos.contains(&id) || self.stop_tokens.contains(&id);
        let is_special = self.tokenizer.special_tokens().binary_search(&id).is_ok();
        (is_end && !self.is_stop_included) || (is_special && self.skip_special_tokens)
    }

    /// The token as `logprobs` show it, if they were asked for.
    fn entry(&self, id: u32, score: Option<Score>) -> Option<Entry> {
        if !self.has_logprobs {
            return None;
        }
        let named =
            |top: Vec<(u32, f32)>| top.into_iter().map(|(id, logprob)| (self.name(id), logprob)).collect();
        let (logprob, top) = score.map(|score| (score.logprob, named(score.top))).unzip();
        Some(Entry { token: self.name(id), logprob, top, offset: 0 })
    }

    fn name(&self, id: u32) -> TokenText {
        let text = self.tokenizer.decode(&[id]);
        match self.tokenizer.id_to_token(id) {
            Some(name) if text.contains('\u{fffd}') => TokenText::Name(name),
            _ => {
                // Some decoders drop a space at the start of a text: what counts is what the token is in the middle of one.
                let twice = self.tokenizer.decode(&[id, id]);
                TokenText::Text(twice.strip_prefix(&text).map_or(text.clone(), str::to_owned))
            }
        }
    }
}

impl Piece {
    /// A piece without anything in it.
    pub(in crate::server) fn new(index: usize) -> Self {
        Self { index, ..Self::default() }
    }

    fn shows_something(&self) -> bool {
        !self.text.is_empty() || !self.entries.is_empty() || self.finish.is_some()
    }

    fn append(&mut self, released: Released) {
        self.text.push_str(&released.text);
        self.entries.extend(released.entries);
    }

    /// Appends the piece that follows this one.
    pub(in crate::server) fn absorb(&mut self, next: Self) {
        self.text.push_str(&next.text);
        self.entries.extend(next.entries);
        self.tokens.extend(next.tokens);
        self.logprob += next.logprob;
        self.finish = self.finish.take().or(next.finish);
    }
}
