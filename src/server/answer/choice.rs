use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream;
use tokio::sync::mpsc::UnboundedReceiver;

use super::transcript::{Entry, Released, Transcript};
use crate::engine::{Event, Finish, Score};
use crate::server::observe::ChoiceWatch;
use crate::server::wire::response::FinishReason;
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
    tokenizer: Arc<Tokenizer>,
    decoder: Decoder<Arc<Tokenizer>>,
    transcript: Transcript,
    /// Tokens that end a completion: they have no text.
    stop_tokens: Arc<[u32]>,
    /// The prompt, while it is still to be echoed.
    echo: Option<Arc<[u32]>>,
    has_logprobs: bool,
    /// Tokens generated since the last piece.
    generated: usize,
    watch: ChoiceWatch,
}

/// What a choice has to say next.
#[derive(Debug)]
pub(in crate::server) struct Piece {
    pub(in crate::server) index: usize,
    pub(in crate::server) text: String,
    /// Empty unless log-probabilities were asked for.
    pub(in crate::server) entries: Vec<Entry>,
    /// Tokens generated since the piece before.
    pub(in crate::server) generated: usize,
    /// In the last piece, and only there.
    pub(in crate::server) finish: Option<FinishReason>,
}

/// What the choices of a request have in common.
pub(in crate::server) struct Common {
    pub(in crate::server) tokenizer: Arc<Tokenizer>,
    pub(in crate::server) stop_tokens: Arc<[u32]>,
    pub(in crate::server) echo: bool,
    pub(in crate::server) has_logprobs: bool,
}

impl Choice {
    pub(in crate::server) fn new(
        index: usize,
        common: &Common,
        prompt: &Arc<[u32]>,
        transcript: Transcript,
        events: UnboundedReceiver<Event>,
        watch: ChoiceWatch,
    ) -> Self {
        let tokenizer = Arc::clone(&common.tokenizer);
        let mut decoder = Decoder::new(Arc::clone(&tokenizer));
        if !common.echo {
            for &id in &prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..] {
                decoder.push(id);
            }
        }
        Self {
            index,
            events: Some(events),
            tokenizer,
            decoder,
            transcript,
            stop_tokens: Arc::clone(&common.stop_tokens),
            echo: common.echo.then(|| Arc::clone(prompt)),
            has_logprobs: common.has_logprobs,
            generated: 0,
            watch,
        }
    }

    /// The pieces as they come, the last with its finish reason; an error's message ends them.
    pub(in crate::server) fn into_pieces(self) -> impl Stream<Item = Result<Piece, String>> + Send {
        stream::unfold(self, async |mut choice| choice.next().await.map(|piece| (piece, choice)))
    }

    async fn next(&mut self) -> Option<Result<Piece, String>> {
        loop {
            let piece = match self.events.as_mut()?.recv().await {
                Some(Event::Started { cached_tokens }) => {
                    self.watch.started(cached_tokens);
                    continue;
                }
                Some(Event::Prompt(scores)) => self.echo(scores),
                Some(Event::Token { id, score }) => self.token(id, score),
                Some(Event::Done(finish)) => self.done(finish),
                Some(Event::Failed(message)) => return self.fail(message),
                None => return self.fail("the engine has died".into()),
            };
            if !piece.text.is_empty() || !piece.entries.is_empty() || piece.finish.is_some() {
                return Some(Ok(piece));
            }
            // A token that shows nothing yet, the first half of a character say, counts with the next piece.
            self.generated = piece.generated;
        }
    }

    fn fail(&mut self, message: String) -> Option<Result<Piece, String>> {
        self.events = None;
        self.watch.finished("error");
        Some(Err(message))
    }

    /// The prompt, with its scores if there are any, if it is to be echoed and has not been.
    fn echo(&mut self, scores: Vec<Option<Score>>) -> Piece {
        let Some(prompt) = self.echo.take() else { return self.piece(Released::default(), None) };
        let mut scores = scores.into_iter();
        for &id in &*prompt {
            let text = self.decoder.push(id).unwrap_or_default();
            let entry = self.has_logprobs.then(|| self.entry(id, scores.next().flatten()));
            self.transcript.echo(&text, entry);
        }
        let released = self.transcript.release();
        self.piece(released, None)
    }

    fn token(&mut self, id: u32, score: Option<Score>) -> Piece {
        self.generated += 1;
        self.watch.token();
        let mut echoed = self.echo(Vec::new());
        let is_silent = self.stop_tokens.contains(&id) || self.tokenizer.special_tokens().contains(&id);
        let text = if is_silent { None } else { self.decoder.push(id) };
        let entry = score.map(|score| self.entry(id, Some(score)));
        let released = self.transcript.push(&text.unwrap_or_default(), entry);
        let finish = released.is_stopped.then_some(FinishReason::Stop);
        echoed.absorb(self.piece(released, finish));
        echoed
    }

    fn done(&mut self, finish: Finish) -> Piece {
        let mut echoed = self.echo(Vec::new());
        let decoder = std::mem::replace(&mut self.decoder, Decoder::new(Arc::clone(&self.tokenizer)));
        let released = self.transcript.finish(&decoder.finish().unwrap_or_default());
        let reason = match finish {
            Finish::Length if !released.is_stopped => FinishReason::Length,
            _ => FinishReason::Stop,
        };
        echoed.absorb(self.piece(released, Some(reason)));
        echoed
    }

    fn piece(&mut self, released: Released, finish: Option<FinishReason>) -> Piece {
        if let Some(reason) = finish {
            self.events = None;
            self.watch.finished(reason.name());
        }
        let Released { text, entries, .. } = released;
        Piece { index: self.index, text, entries, generated: std::mem::take(&mut self.generated), finish }
    }

    fn entry(&self, id: u32, score: Option<Score>) -> Entry {
        let named =
            |top: Vec<(u32, f32)>| top.into_iter().map(|(id, logprob)| (self.name(id), logprob)).collect();
        let (logprob, top) = score.map(|score| (score.logprob, named(score.top))).unzip();
        Entry { token: self.name(id), logprob, top, offset: 0 }
    }

    /// A token's text; where that is no text of its own (a part of a character), `bytes:` and the token's name in the
    /// vocabulary, which may be another token's text.
    fn name(&self, id: u32) -> String {
        let text = self.tokenizer.decode(&[id]);
        if !text.contains('\u{fffd}') {
            return text;
        }
        self.tokenizer.id_to_token(id).map_or(text, |name| format!("bytes:{name}"))
    }
}

impl Piece {
    /// Appends the piece that follows this one.
    pub(in crate::server) fn absorb(&mut self, next: Self) {
        self.text.push_str(&next.text);
        self.entries.extend(next.entries);
        self.generated += next.generated;
        self.finish = self.finish.or(next.finish);
    }
}
